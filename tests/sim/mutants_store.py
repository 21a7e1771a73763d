"""The store: acceptance, claims, leases, ends, dead letters, what is forgotten."""

from __future__ import annotations

from typing import Final

from tests.sim.mutation import Mutant

SQLITE: Final = "runtime/fairlead/runtime/sqlite.py"
SCHEMA: Final = "proxy/fairlead/proxy/store/sqlite/0004_trust.sql"
JOURNEY: Final = "proxy/fairlead/proxy/store/journey.py"
LEASES: Final = "proxy/fairlead/proxy/store/leases.py"
LINEAGE: Final = "proxy/fairlead/proxy/store/lineage.py"
ENDS: Final = "proxy/fairlead/proxy/store/ends.py"
CALLBACKS: Final = "proxy/fairlead/proxy/store/callbacks.py"
VIEWS: Final = "proxy/fairlead/proxy/store/views.py"
FLEET: Final = "proxy/fairlead/proxy/store/fleet.py"

TEST_SQLITE_WRITER: Final = "tests/shell/test_sqlite_writer.py"
TEST_STORE_SCHEMA: Final = "tests/shell/test_store_schema.py"
TEST_STORE_CONTRACT: Final = "tests/shell/test_store_contract.py"
TEST_STORE_CONTRACT_ORDER: Final = "tests/shell/test_store_contract_order.py"
TEST_STORE_CONTRACT_FAMILIES: Final = "tests/shell/test_store_contract_families.py"
TEST_STORE_CONTRACT_DEAD_LETTERS: Final = "tests/shell/test_store_contract_dead_letters.py"
TEST_STORE_CONTRACT_LEASES: Final = "tests/shell/test_store_contract_leases.py"
TEST_STORE_CONTRACT_UPKEEP: Final = "tests/shell/test_store_contract_upkeep.py"
TEST_STORE_CONTRACT_CONTROLS: Final = "tests/shell/test_store_contract_controls.py"

MUTANTS: Final = (
    Mutant(
        "commit_without_flush",
        "A commit is answered before the disk has it.",
        SQLITE,
        'connection.execute("PRAGMA synchronous=FULL")',
        'connection.execute("PRAGMA synchronous=OFF")',
        (f"{TEST_SQLITE_WRITER}::test_the_file_is_opened_as_promised[inline]",),
    ),
    Mutant(
        "answered_before_commit",
        "A batch of writes is answered before COMMIT.",
        SQLITE,
        """\
            values = [job(connection) for job in jobs]
            connection.execute("COMMIT")
            return [outcome.Value(value) for value in values]
""",
        """\
            values = [job(connection) for job in jobs]
            answers: list[outcome.Outcome[Any]] = [outcome.Value(value) for value in values]
            try:
                connection.execute("COMMIT")
            except sqlite3.Error:
                _rollback(connection)
            return answers
""",
        (
            f"{TEST_SQLITE_WRITER}::test_what_the_commit_refuses_is_not_answered_as_done_and_harms_no_neighbour",
        ),
    ),
    Mutant(
        "terminal_states_change",
        "What ended may be changed by an update.",
        SCHEMA,
        """\
ON runs
WHEN OLD.status IN ('COMPLETED', 'FAILED', 'CANCELLED', 'EXPIRED')""",
        """\
ON runs
WHEN OLD.status IN ('COMPLETED', 'CANCELLED', 'EXPIRED')""",
        (f"{TEST_STORE_SCHEMA}::test_terminal_states_are_immutable_by_plain_sql[FAILED-sqlite inline]",),
    ),
    Mutant(
        "terminal_states_replaced",
        "What ended may be replaced by inserting it again.",
        SCHEMA,
        "SELECT 1 FROM runs WHERE run_id = NEW.run_id AND status IN ('COMPLETED', 'FAILED', 'CANCELLED', 'EXPIRED')",
        "SELECT 1 FROM runs WHERE run_id = NEW.run_id AND status IN ('FAILED', 'CANCELLED', 'EXPIRED')",
        (f"{TEST_STORE_SCHEMA}::test_terminal_states_cannot_be_replaced_in_sqlite[COMPLETED]",),
    ),
    Mutant(
        "payload_of_a_key_ignored",
        "Another request under the same idempotency key is answered with the first one's run.",
        JOURNEY,
        "if bytes(row[0]) != payload_hash:",
        "if not row[0]:",
        (
            f"{TEST_STORE_CONTRACT}::test_the_same_key_for_another_payload_is_refused_and_names_its_run[sqlite inline]",
        ),
    ),
    Mutant(
        "keys_of_all_tenants",
        "An idempotency key of one tenant answers for another.",
        JOURNEY,
        """\
        " WHERE i.tenant = ? AND i.key = ?",
        (tenant, key),
""",
        """\
        " WHERE i.key = ?",
        (key,),
""",
        (f"{TEST_STORE_CONTRACT}::test_keys_are_of_a_tenant[sqlite inline]",),
    ),
    Mutant(
        "anothers_run_id_accepted",
        "A chosen run id that another tenant uses is answered as accepted.",
        JOURNEY,
        "if stands != (run.tenant, run.command, run.args_json, run.identity_json):",
        "if stands[1:3] != (run.command, run.args_json):",
        (f"{TEST_STORE_CONTRACT}::test_a_chosen_id_of_another_request_is_taken[sqlite inline-tenant]",),
    ),
    Mutant(
        "claim_without_a_higher_fence",
        "A run that is claimed again keeps its fence.",
        JOURNEY,
        "(row[0], row[1] + 1, node_id, incarnation, *row[4:])",
        "(row[0], max(1, row[1]), node_id, incarnation, *row[4:])",
        (
            f"{TEST_STORE_CONTRACT}::test_what_is_not_idempotent_is_retried_on_its_own_node[sqlite inline-once]",
        ),
    ),
    Mutant(
        "ordering_key_ignored",
        "Runs with one ordering key are delivered side by side.",
        JOURNEY,
        "(ordering_key = '' OR NOT EXISTS (SELECT 1",
        "(ordering_key = ordering_key OR NOT EXISTS (SELECT 1",
        (f"{TEST_STORE_CONTRACT_ORDER}::test_order_beats_priority[sqlite inline]",),
    ),
    Mutant(
        "retry_overtaken",
        "A run that waits for its retry is overtaken by the next of its ordering key.",
        JOURNEY,
        "AND earlier.status IN ('PENDING_APPROVAL', 'PENDING', 'RUNNING') AND earlier.seq < runs.seq",
        "AND earlier.status = 'RUNNING' AND earlier.seq < runs.seq",
        (f"{TEST_STORE_CONTRACT_ORDER}::test_runs_for_several_nodes_keep_their_order_too[sqlite inline]",),
    ),
    Mutant(
        "keys_order_all_tenants",
        "One tenant's ordering key holds up another's.",
        JOURNEY,
        '(SELECT 1 FROM runs AS earlier WHERE earlier.tenant = runs.tenant"',
        "(SELECT 1 FROM runs AS earlier WHERE earlier.tenant <> ''\"",
        (
            f"{TEST_STORE_CONTRACT_ORDER}::test_keys_do_not_wait_for_each_other_and_are_of_a_tenant[sqlite inline]",
        ),
    ),
    Mutant(
        "schedule_ignored",
        "A run that is scheduled for later is delivered at once.",
        JOURNEY,
        "0 if run.not_before_ms > run.accepted_at_ms else 1,",
        "1,",
        (f"{TEST_STORE_CONTRACT_ORDER}::test_a_run_waits_for_its_moment[sqlite inline]",),
    ),
    Mutant(
        "paused_tenant_claimed",
        "A claim takes runs of a paused tenant.",
        JOURNEY,
        'f" AND NOT (tenant {db.dialect.one_of})"',
        "f\" AND (tenant {db.dialect.one_of} OR tenant <> '')\"",
        (f"{TEST_STORE_CONTRACT_ORDER}::test_what_belongs_to_a_paused_tenant_waits[sqlite inline-]",),
    ),
    Mutant(
        "report_without_fence",
        "A proxy settles a run by the report of an attempt that was replaced.",
        JOURNEY,
        'same = row["fence"] == report.fence and row["node_id"] == report.node_id',
        'same = row["node_id"] == report.node_id',
        (
            f"{TEST_STORE_CONTRACT}::test_a_statement_about_a_run_that_is_not_the_nodes_is_foreign[sqlite inline-False-a later fence]",
        ),
    ),
    Mutant(
        "foreign_statement_believed",
        "A node ends the run that another one executes.",
        JOURNEY,
        'same = row["fence"] == report.fence and row["node_id"] == report.node_id',
        'same = row["fence"] == report.fence',
        (
            f"{TEST_STORE_CONTRACT}::test_a_statement_about_a_run_that_is_not_the_nodes_is_foreign[sqlite inline-True-no fence]",
        ),
    ),
    Mutant(
        "refused_cancellation_goes_round",
        "A cancelled run that its node refuses is given out again.",
        JOURNEY,
        'if report.refused and not row["cancel_at_ms"]:',
        "if report.refused:",
        (
            f"{TEST_STORE_CONTRACT_FAMILIES}::test_a_cancelled_run_that_its_node_refuses_has_been_cancelled[sqlite inline]",
        ),
    ),
    Mutant(
        "cancelled_run_retried",
        "A cancelled run that fails is tried again.",
        JOURNEY,
        'if not report.completed and decide is not None and not row["cancel_at_ms"]:',
        "if not report.completed and decide is not None:",
        (f"{TEST_STORE_CONTRACT_FAMILIES}::test_a_cancelled_run_is_not_retried[sqlite inline]",),
    ),
    Mutant(
        "retry_on_another_node",
        "A retry of what is not idempotent may go to a node that does not know the first attempt.",
        JOURNEY,
        'node = row["target_node"] if row["effect"] == "idempotent" else report.node_id',
        'node = row["target_node"]',
        (
            f"{TEST_STORE_CONTRACT}::test_what_is_not_idempotent_is_retried_on_its_own_node[sqlite inline-transactional]",
        ),
    ),
    Mutant(
        "retry_budget_ignored_in_a_batch",
        "One batch of failures may be retried beyond the budget.",
        JOURNEY,
        "decide = partial(retry.delay_ms, index) if retried < retry.allowed else None",
        "decide = partial(retry.delay_ms, index) if retry.allowed else None",
        (f"{TEST_STORE_CONTRACT}::test_no_more_retries_than_the_budget_allows[sqlite inline]",),
    ),
    Mutant(
        "late_completion_ignored",
        "A run that completes late stays a dead letter, and is replayed.",
        JOURNEY,
        'past[1] != "refused" and report.completed',
        'past[1] == "refused" and report.completed',
        (
            f"{TEST_STORE_CONTRACT_DEAD_LETTERS}::test_a_run_that_completes_late_resolves_its_record[sqlite inline]",
        ),
    ),
    Mutant(
        "lease_renewed_by_a_stranger",
        "A proxy renews the lease of a run that another one took over.",
        LEASES,
        "for row in rows if owner is None or row[2] == owner}",
        "for row in rows}",
        (
            f"{TEST_STORE_CONTRACT_LEASES}::test_only_the_proxy_that_dispatched_a_run_renews_its_lease[sqlite inline]",
        ),
    ),
    Mutant(
        "lease_renewed_by_another_node",
        "A node keeps another node's runs leased.",
        LEASES,
        """\
        "SELECT run_id, fence, owner FROM runs WHERE status = 'RUNNING' AND node_id = ?"
""",
        """\
        "SELECT run_id, fence, owner FROM runs WHERE status = 'RUNNING' AND ? <> ''"
""",
        (
            f"{TEST_STORE_CONTRACT_LEASES}::test_a_heartbeat_renews_the_lease_of_what_the_node_holds[sqlite inline]",
        ),
    ),
    Mutant(
        "lease_renewed_under_an_old_fence",
        "A heartbeat that names an old fence renews the lease of the new one.",
        LEASES,
        "for run_id, fence in runs if (run_id, fence) in ours],",
        "for run_id, fence in runs if any(run_id == each[0] for each in ours)],",
        (
            f"{TEST_STORE_CONTRACT_LEASES}::test_a_heartbeat_renews_the_lease_of_what_the_node_holds[sqlite inline]",
        ),
    ),
    Mutant(
        "takeover_without_a_higher_fence",
        "A proxy takes a run over under the fence of the one that lost it.",
        LEASES,
        "attempt = attempt_of((found[0], found[1] + 1, *found[2:]))",
        "attempt = attempt_of((found[0], found[1], *found[2:]))",
        (
            f"{TEST_STORE_CONTRACT_LEASES}::test_what_is_pinned_is_told_again_under_a_higher_fence[sqlite inline]",
        ),
    ),
    Mutant(
        "expired_lease_frees_an_effect",
        "A lease that ran out lets another node do what the first may have done.",
        LEASES,
        'if row["effect"] == "idempotent" and not row["target_node"]:',
        'if not row["target_node"]:',
        (
            f"{TEST_STORE_CONTRACT_LEASES}::test_a_lease_that_ran_out_frees_an_idempotent_run_under_a_higher_fence[sqlite inline]",
        ),
    ),
    Mutant(
        "cancelled_run_freed",
        "A cancelled run whose lease ran out executes somewhere else.",
        LEASES,
        """\
    if row["cancel_at_ms"]:
        why""",
        """\
    if row["cancel_at_ms"] < 0:
        why""",
        (
            f"{TEST_STORE_CONTRACT_FAMILIES}::test_a_cancelled_run_whose_lease_runs_out_is_not_freed[sqlite inline]",
        ),
    ),
    Mutant(
        "lost_inbox_repeats_an_effect",
        "A node that lost its inbox makes its transactional runs execute again.",
        LEASES,
        """\
        if row["effect"] == "idempotent":
            ended.append""",
        """\
        if row["effect"] != "once":
            ended.append""",
        (
            f"{TEST_STORE_CONTRACT_LEASES}::test_what_an_earlier_incarnation_was_given_is_unknown_or_free[sqlite inline]",
        ),
    ),
    Mutant(
        "expired_after_delivery",
        "A run that was delivered ends as one that never was.",
        LEASES,
        """\
        if delivered:
""",
        """\
        if delivered is None:
""",
        (f"{TEST_STORE_CONTRACT_LEASES}::test_what_was_delivered_once_never_expires[sqlite inline]",),
    ),
    Mutant(
        "no_grace_at_the_deadline",
        "A result that is on its way at the deadline comes too late.",
        LEASES,
        '("RUNNING", now_ms - grace_ms)',
        '("RUNNING", now_ms)',
        (
            f"{TEST_STORE_CONTRACT_LEASES}::test_what_was_delivered_fails_at_its_deadline_after_a_grace[sqlite inline-a:tx-OUTCOME_UNKNOWN]",
        ),
    ),
    Mutant(
        "expired_run_is_no_dead_letter",
        "A run that nobody took in time leaves no record.",
        LINEAGE,
        """\
        elif ending.status is not RunStatus.CANCELLED and ending.reason not in NOT_FOR_REPLAY:
""",
        """\
        elif ending.status is RunStatus.FAILED and ending.reason not in NOT_FOR_REPLAY:
""",
        (
            f"{TEST_STORE_CONTRACT_DEAD_LETTERS}::test_an_expired_run_is_a_dead_letter_and_a_completed_or_cancelled_one_is_not[sqlite inline]",
        ),
    ),
    Mutant(
        "failure_is_no_dead_letter",
        "A run that failed leaves no record.",
        ENDS,
        'if not is_parent and (status is not RunStatus.COMPLETED or row["root_id"] != row["run_id"]):',
        'if not is_parent and row["root_id"] != row["run_id"]:',
        (
            f"{TEST_STORE_CONTRACT_DEAD_LETTERS}::test_failures_of_one_kind_have_one_fingerprint[sqlite inline]",
        ),
    ),
    Mutant(
        "two_records_of_a_lineage",
        "A replay that fails is a second record.",
        LINEAGE,
        'f"dlq-{row[\'root_id\']}", row["root_id"], row["run_id"],',
        'f"dlq-{row[\'run_id\']}", row["run_id"], row["run_id"],',
        (
            f"{TEST_STORE_CONTRACT_DEAD_LETTERS}::test_a_late_completion_of_a_failed_replay_resolves_its_record_too[sqlite inline]",
        ),
    ),
    Mutant(
        "resolved_record_opens_again",
        "What completed late is a dead letter again when its replay fails.",
        LINEAGE,
        """\
        " WHERE dead_letters.state <> 'replayed'",
""",
        """\
        " WHERE dead_letters.state <> ''",
""",
        (
            f"{TEST_STORE_CONTRACT_DEAD_LETTERS}::test_a_late_completion_and_the_replay_under_way_are_counted_once[sqlite inline]",
        ),
    ),
    Mutant(
        "cancelled_replay_lost",
        "A record whose replay was cancelled is never queued again.",
        LINEAGE,
        """\
        _requeue(db, ending)
""",
        """\
        pass
""",
        (f"{TEST_STORE_CONTRACT_DEAD_LETTERS}::test_a_cancelled_replay_puts_its_record_back[sqlite inline]",),
    ),
    Mutant(
        "replay_counted_twice",
        "A late word of an earlier run counts for the replay under way.",
        LINEAGE,
        'if record is not None and record[1] == row["run_id"]:',
        "if record is not None:",
        (
            f"{TEST_STORE_CONTRACT_DEAD_LETTERS}::test_a_late_completion_of_a_failed_replay_resolves_its_record_too[sqlite inline]",
        ),
    ),
    Mutant(
        "expired_child_succeeded",
        "A parent completes although a child never ran.",
        ENDS,
        "failed = 0 if status is RunStatus.COMPLETED else 1",
        "failed = 1 if status is RunStatus.FAILED else 0",
        (f"{TEST_STORE_CONTRACT_FAMILIES}::test_one_child_is_cancelled_by_itself[sqlite inline]",),
    ),
    Mutant(
        "open_record_pruned",
        "A run that an open dead letter would replay is forgotten.",
        ENDS,
        """\
        " AND NOT EXISTS (SELECT 1 FROM dead_letters d WHERE d.root_id = runs.root_id AND d.state <> 'replayed')"
""",
        "",
        (f"{TEST_STORE_CONTRACT_UPKEEP}::test_what_an_open_record_or_callback_needs_is_kept[sqlite inline]",),
    ),
    Mutant(
        "pending_callback_pruned",
        "A run is forgotten before its callback was delivered.",
        ENDS,
        """\
        " AND NOT EXISTS (SELECT 1 FROM callbacks c WHERE c.run_id = runs.run_id AND c.state <> 'delivered')"
""",
        "",
        (f"{TEST_STORE_CONTRACT_UPKEEP}::test_what_an_open_record_or_callback_needs_is_kept[sqlite inline]",),
    ),
    Mutant(
        "event_received_twice_as_new",
        "A repeated event id is taken for a new one.",
        CALLBACKS,
        'return "duplicate" if (bytes(known[0]), known[1]) == (body_hash, run_id) else "conflict"',
        'return "duplicate" if (bytes(known[0]), known[1]) != (body_hash, run_id) else "new"',
        (f"{TEST_STORE_CONTRACT_CONTROLS}::test_an_event_is_received_once[sqlite inline-h-r2-conflict]",),
    ),
    Mutant(
        "event_body_ignored",
        "An event id is taken again with another body.",
        CALLBACKS,
        'return "duplicate" if (bytes(known[0]), known[1]) == (body_hash, run_id) else "conflict"',
        'return "duplicate" if known[1] == run_id else "conflict"',
        (f"{TEST_STORE_CONTRACT_CONTROLS}::test_an_event_is_received_once[sqlite inline-other-r1-conflict]",),
    ),
    Mutant(
        "callback_without_lease",
        "Two proxies send the same callback at once.",
        CALLBACKS,
        "[(clock_ms + lease_ms, row[0]) for row in rows],",
        "[(clock_ms, row[0]) for row in rows],",
        (
            f"{TEST_STORE_CONTRACT_CONTROLS}::test_a_callback_is_given_out_once_until_its_lease_ends[sqlite inline]",
        ),
    ),
    Mutant(
        "watch_of_another_principal",
        "Anybody of a tenant is told of every run of it.",
        VIEWS,
        """\
{db.dialect.one_of} AND tenant = ? AND identity_json = ?",
        (texts(run_ids), tenant, identity_json),""",
        """\
{db.dialect.one_of} AND tenant = ?",
        (texts(run_ids), tenant),""",
        (f"{TEST_STORE_CONTRACT_UPKEEP}::test_somebodys_own_runs_are_told_apart[sqlite inline]",),
    ),
    Mutant(
        "revocation_counted_down",
        "A key epoch that was raised falls back.",
        FLEET,
        "epoch = 1 if held is None else int(held[2]) + 1",
        "epoch = 1",
        (f"{TEST_STORE_CONTRACT_UPKEEP}::test_key_epochs_only_rise[sqlite inline]",),
    ),
)
