"""Replays of dead letters: their guards, budgets, stages and lineage."""

from __future__ import annotations

from typing import Final

from tests.sim.mutation import Mutant

DEAD_LETTERS: Final = "proxy/fairlead/proxy/store/dead_letters.py"
CONTROLS: Final = "proxy/fairlead/proxy/store/controls.py"
GCRA: Final = "runtime/fairlead/runtime/gcra.py"
REPLAY: Final = "proxy/fairlead/proxy/dispatch/replay.py"
DEAD_LETTERS_API: Final = "proxy/fairlead/proxy/ops/dead_letters_api.py"
REPLAYER: Final = "proxy/fairlead/proxy/dispatch/replayer.py"

TEST_STORE_CONTRACT_REPLAYS: Final = "tests/shell/test_store_contract_replays.py"
TEST_STORE_CONTRACT_DEAD_LETTERS: Final = "tests/shell/test_store_contract_dead_letters.py"
TEST_REPLAY: Final = "tests/unit/proxy/test_replay.py"
TEST_REPLAY_IN_MEMORY: Final = "tests/shell/test_replay_in_memory.py"
TEST_DEAD_LETTERS_API: Final = "tests/unit/proxy/test_dead_letters_api.py"
TEST_STORE_CONTRACT_CONTROLS: Final = "tests/shell/test_store_contract_controls.py"

MUTANTS: Final = (
    Mutant(
        "guard_bounds_requests",
        "Asking for a replay counts as one, whether anything ran or not.",
        DEAD_LETTERS,
        "\"UPDATE dead_letters SET state = 'replay_requested', replay_id = ?, requested_at_ms = ?, requested_by = ?,\"",
        """\
"UPDATE dead_letters SET state = 'replay_requested', replay_count = replay_count + 1, replay_id = ?,"
        " requested_at_ms = ?, requested_by = ?,\"""",
        (
            f"{TEST_STORE_CONTRACT_REPLAYS}::test_a_start_makes_a_new_run_and_counts_an_attempt[sqlite inline]",
        ),
    ),
    Mutant(
        "replays_without_bound",
        "The transaction that starts a replay does not count the ones before.",
        DEAD_LETTERS,
        "if record.replay_count >= each.max_count and not each.forced:",
        "if record.replay_count < 0 and not each.forced:",
        (
            f"{TEST_STORE_CONTRACT_REPLAYS}::test_no_record_is_started_more_often_than_allowed_unless_forced[sqlite inline]",
        ),
    ),
    Mutant(
        "record_started_twice",
        "A record whose replay is under way is replayed once more.",
        DEAD_LETTERS,
        "record.state is not DeadLetterState.REPLAY_REQUESTED or record.replay_run_id:",
        "record.state is not DeadLetterState.REPLAY_REQUESTED:",
        (f"{TEST_STORE_CONTRACT_REPLAYS}::test_a_record_is_not_started_twice[sqlite inline]",),
    ),
    Mutant(
        "replay_on_another_node",
        "A replay of an effect goes to a node that does not know what became of it.",
        DEAD_LETTERS,
        'pinned = row["node_id"] if row["effect"] != "idempotent" else ""',
        'pinned = row["node_id"] if row["effect"] == "once" else ""',
        (
            f"{TEST_STORE_CONTRACT_DEAD_LETTERS}::test_what_is_not_idempotent_is_replayed_on_its_node[sqlite inline-a:tx-n1]",
        ),
    ),
    Mutant(
        "lineage_broken_by_a_replay",
        "A replay is a lineage of its own, so nothing knows what its ancestor did.",
        DEAD_LETTERS,
        'root_id=row["root_id"], retry_of=run_id,',
        "root_id=new_run_id, retry_of=run_id,",
        (f"{TEST_STORE_CONTRACT_DEAD_LETTERS}::test_a_cancelled_replay_puts_its_record_back[sqlite inline]",),
    ),
    Mutant(
        "retry_of_anothers_run",
        "Anybody retries anybody's failed run.",
        DEAD_LETTERS,
        "if controls.principal_of(bytes(row[1])) != principal:",
        "if not controls.principal_of(bytes(row[1])):",
        (
            f"{TEST_STORE_CONTRACT_DEAD_LETTERS}::test_a_retry_is_for_the_owner_of_a_failed_run_and_no_other[sqlite inline]",
        ),
    ),
    Mutant(
        "retry_of_what_did_not_fail",
        "A run that expired is retried by its user as one that failed.",
        DEAD_LETTERS,
        "if row[0] != RunStatus.FAILED.value:",
        "if row[0] not in (RunStatus.FAILED.value, RunStatus.EXPIRED.value):",
        (
            f"{TEST_STORE_CONTRACT_DEAD_LETTERS}::test_a_retry_is_for_the_owner_of_a_failed_run_and_no_other[sqlite inline]",
        ),
    ),
    Mutant(
        "retry_beside_a_replay",
        "A user's retry runs beside the replay of the same record.",
        DEAD_LETTERS,
        'if record[2] != "queued" or record[3]:',
        'if record[2] == "replayed":',
        (
            f"{TEST_STORE_CONTRACT_DEAD_LETTERS}::test_a_retry_waits_for_the_replay_that_is_under_way[sqlite inline]",
        ),
    ),
    Mutant(
        "request_in_part",
        "A replay of records that are not there any more is accepted for the rest.",
        DEAD_LETTERS,
        "if len(ready) != len(set(asked.record_ids)):",
        "if not ready:",
        (f"{TEST_STORE_CONTRACT_REPLAYS}::test_a_request_is_all_or_nothing[sqlite inline]",),
    ),
    Mutant(
        "request_not_audited",
        "A replay leaves no line in the audit log.",
        DEAD_LETTERS,
        """\
    audit(db, asked.event)
""",
        "",
        (f"{TEST_STORE_CONTRACT_REPLAYS}::test_the_same_key_is_the_same_replay[sqlite inline]",),
    ),
    Mutant(
        "monthly_budget_never_reset",
        "What was spent in one month is missing in the next.",
        CONTROLS,
        "used_this_month = month_used if month_window == month else 0",
        "used_this_month = month_used",
        (
            f"{TEST_STORE_CONTRACT_REPLAYS}::test_a_month_has_its_budget_and_the_next_one_its_own[sqlite inline]",
        ),
    ),
    Mutant(
        "daily_budget_never_reset",
        "What was spent yesterday is missing today.",
        CONTROLS,
        "used_today = day_used if day_window == day else 0",
        "used_today = day_used",
        (
            f"{TEST_STORE_CONTRACT_REPLAYS}::test_a_tenants_own_limits_hold_before_the_configured_ones[sqlite inline]",
        ),
    ),
    Mutant(
        "budget_per_request",
        "A whole request of replays costs one.",
        DEAD_LETTERS,
        "refused = controls.spend(db, seals, record.tenant, each.daily_limit, each.monthly_limit, now_ms)",
        "refused = None if runs else controls.spend(db, seals, record.tenant, each.daily_limit, each.monthly_limit, now_ms)",
        (f"{TEST_STORE_CONTRACT_REPLAYS}::test_a_budget_is_spent_item_by_item_and_by_tenant[sqlite inline]",),
    ),
    Mutant(
        "plan_ignores_the_budget",
        "A dry run promises more than the budget pays for.",
        REPLAY,
        "reason = reason or _over_budget(record.tenant, cost.get(record.tenant, 0), controls, budgets)",
        "reason = reason or _over_budget(record.tenant, 0, controls, budgets)",
        (
            f"{TEST_REPLAY}::test_what_only_has_to_wait_may_be_asked_for_and_is_within_the_budget_all_the_same",
        ),
    ),
    Mutant(
        "plan_hash_ignored",
        "A replay runs although it is not what the quoted plan said.",
        DEAD_LETTERS_API,
        "if asked.plan_hash is not None and asked.plan_hash != planned.hash:",
        "if asked.plan_hash is not None and not planned.hash:",
        (f"{TEST_REPLAY_IN_MEMORY}::test_a_dead_letter_is_found_dry_run_and_replayed",),
    ),
    Mutant(
        "plan_hash_of_ids_alone",
        "A plan's hash stays the same although its records have run since.",
        REPLAY,
        "(each.record.id, each.record.run_id, each.record.replay_count)",
        "(each.record.id, each.record.command, 0)",
        (f"{TEST_REPLAY}::test_a_plan_hash_stands_for_what_would_run_and_for_nothing_else",),
    ),
    Mutant(
        "stop_percentage_ignored",
        "A bulk replay goes on although most of it fails.",
        REPLAY,
        "if replay.failed * 100 > stop_percent * ended and",
        "if replay.failed * 100 > 100 * ended and",
        (f"{TEST_REPLAY}::test_more_than_a_fifth_failed_stops_it_and_exactly_a_fifth_does_not",),
    ),
    Mutant(
        "stages_ignored",
        "A bulk replay starts everything at once.",
        REPLAY,
        "allowed = STAGES[stage] if stage < len(STAGES) else replay.total",
        "allowed = replay.total",
        (f"{TEST_REPLAY}::test_more_than_a_fifth_failed_stops_it_and_exactly_a_fifth_does_not",),
    ),
    Mutant(
        "stage_before_the_last_has_ended",
        "The next stage begins while the last one is under way.",
        REPLAY,
        "replay.started >= STAGES[stage] and ended >= replay.started:",
        "replay.started >= STAGES[stage]:",
        (f"{TEST_REPLAY}::test_more_than_a_fifth_failed_stops_it_and_exactly_a_fifth_does_not",),
    ),
    Mutant(
        "force_for_everybody",
        "Anybody with a role may force a replay past its guards.",
        DEAD_LETTERS_API,
        "if asked.force and not may(caller, Scope.OPERATE):",
        "if asked.force and not caller.roles:",
        (f"{TEST_DEAD_LETTERS_API}::test_force_is_for_the_operator_role",),
    ),
    Mutant(
        "force_past_a_pause",
        "Force replays what belongs to a paused tenant.",
        REPLAY,
        """\
if around.paused_tenants and (
""",
        """\
if not forced and around.paused_tenants and (
""",
        (f"{TEST_REPLAY}::test_force_passes_over_what_protects_from_repeating_and_over_nothing_else",),
    ),
    Mutant(
        "lasting_failures_replayed",
        "What failed for a lasting reason is replayed without force.",
        REPLAY,
        "if controls.require_transient and not record.transient:",
        "if not controls.require_transient and not record.transient:",
        (f"{TEST_REPLAY}::test_the_bounds_themselves_pass",),
    ),
    Mutant(
        "young_records_replayed",
        "What failed a moment ago is replayed at once.",
        REPLAY,
        "if around.now_ms - record.last_failed_at_ms < controls.min_age_ms:",
        "if around.now_ms < record.last_failed_at_ms:",
        (f"{TEST_REPLAY}::test_the_first_guard_in_the_way_is_named",),
    ),
    Mutant(
        "replay_under_the_kill_switch",
        "The replay worker goes on while the kill switch is on.",
        REPLAYER,
        "if self._dispatcher.kill_switch:",
        "if self._dispatcher.kill_switch and self._dispatcher.draining:",
        (f"{TEST_REPLAY_IN_MEMORY}::test_the_flag_and_the_kill_switch_stop_the_worker",),
    ),
    Mutant(
        "rate_limiter_fails_open",
        "A store that cannot count lets every replay pass.",
        DEAD_LETTERS_API,
        """\
        cell = await self._store.rate_limit(f"replay:{scope}:{peer}", limit, self._world.wall_ms())
""",
        """\
        try:
            cell = await self._store.rate_limit(f"replay:{scope}:{peer}", limit, self._world.wall_ms())
        except Exception:
            return ()
""",
        (f"{TEST_DEAD_LETTERS_API}::test_a_rate_limit_that_cannot_be_counted_lets_nothing_pass",),
    ),
    Mutant(
        "rate_limit_off_by_one",
        "One call more than allowed passes in every window.",
        GCRA,
        "    wait_us = after_us - burst_us - now_us\n",
        "    wait_us = after_us - burst_us - now_us - period_us\n",
        (f"{TEST_STORE_CONTRACT_CONTROLS}::test_rate_limits_are_cleared_by_prefix[sqlite inline]",),
    ),
    Mutant(
        "clock_set_back_locks_out",
        "A clock that was set back keeps callers out until the old time has come again.",
        GCRA,
        "    start_us = min(max(next_at_us, now_us), now_us + burst_us)\n",
        "    start_us = max(next_at_us, now_us)\n",
        (f"{TEST_STORE_CONTRACT_CONTROLS}::test_a_clock_that_was_set_back_locks_nobody_out[sqlite inline]",),
    ),
)
