"""A node: what it executes, what it remembers, what it says and when."""

from __future__ import annotations

from typing import Final

from tests.sim.mutation import Mutant

DECISIONS: Final = "backend/fairlead/backend/decisions.py"
INBOX: Final = "backend/fairlead/backend/inbox.py"
RETENTION: Final = "backend/fairlead/backend/retention.py"
EXECUTOR: Final = "backend/fairlead/backend/executor.py"
ISOLATION: Final = "backend/fairlead/backend/isolation.py"
EXECUTION: Final = "backend/fairlead/backend/execution.py"
CONTEXT: Final = "backend/fairlead/backend/context.py"

TEST_INBOX_DECIDE: Final = "tests/unit/backend/test_inbox_decide.py"
TEST_INBOX: Final = "tests/shell/test_inbox.py"
TEST_LINEAGE: Final = "tests/shell/test_lineage.py"
TEST_RETENTION: Final = "tests/unit/backend/test_retention.py"
TEST_ISOLATION: Final = "tests/shell/test_isolation.py"
TEST_CANCEL: Final = "tests/shell/test_cancel.py"
TEST_CONTEXT: Final = "tests/unit/backend/test_context.py"

MUTANTS: Final = (
    Mutant(
        "lower_fence_accepted",
        "A node takes a delivery whose fence is lower than one it knows.",
        DECISIONS,
        "if fence < known:",
        "if fence < 0:",
        (f"{TEST_INBOX_DECIDE}::test_a_lower_fence_is_stale_whatever_is_held",),
    ),
    Mutant(
        "refusals_not_remembered",
        "What was refused under a fence is started under it when it is said again.",
        DECISIONS,
        "return Refuse(Reason(reason), detail) if fence == known else Execute()",
        "return Execute()",
        (f"{TEST_INBOX_DECIDE}::test_a_run_that_was_cancelled_is_not_started_under_that_fence",),
    ),
    Mutant(
        "once_again_after_a_crash",
        "A run that began and has no end is executed again.",
        DECISIONS,
        'if state == "finished" and retry and',
        """\
if state == "started":
        return Execute()
    if state == "finished" and retry and""",
        (f"{TEST_INBOX_DECIDE}::test_no_other_end_is_executed_again",),
    ),
    Mutant(
        "once_begins_unrecorded",
        "A `once` handler begins before that is on disk.",
        DECISIONS,
        "return effect == Effect.ONCE.value",
        "return effect == Effect.TRANSACTIONAL.value",
        (f"{TEST_INBOX_DECIDE}::test_only_what_may_not_be_repeated_is_recorded_before_it_begins",),
    ),
    Mutant(
        "retry_of_an_unknown_outcome",
        "A run whose outcome nobody knows is executed again when a retry is asked for.",
        DECISIONS,
        "_RETRIED_ENDS: Final = (Reason.HANDLER_FAILED_TRANSIENT.value, Reason.HANDLER_TIMEOUT.value)",
        """\
_RETRIED_ENDS: Final = (
    Reason.HANDLER_FAILED_TRANSIENT.value, Reason.HANDLER_TIMEOUT.value, Reason.OUTCOME_UNKNOWN.value
)""",
        (f"{TEST_INBOX_DECIDE}::test_no_other_end_is_executed_again",),
    ),
    Mutant(
        "retry_of_what_completed",
        "A completed run is executed again where the proxy asks for a retry.",
        DECISIONS,
        "retry and not completed and fence > known and reason in _RETRIED_ENDS",
        "retry and fence > known and (completed or reason in _RETRIED_ENDS)",
        (f"{TEST_INBOX_DECIDE}::test_a_completed_run_is_never_executed_again",),
    ),
    Mutant(
        "result_beside_the_transaction",
        "A transactional handler commits its effect without its result.",
        INBOX,
        """\
                _store(db, result, delivery.command, delivery.root_run_id)
            except BaseException as error:
""",
        """\
            except BaseException as error:
""",
        (f"{TEST_INBOX}::test_a_fence_that_rises_while_the_run_executes_is_the_results",),
    ),
    Mutant(
        "failed_transaction_stays",
        "What a failed transactional handler wrote is not rolled back.",
        INBOX,
        'db.execute("ROLLBACK TO handler")',
        "pass",
        (f"{TEST_INBOX}::test_a_transaction_that_fails_leaves_nothing",),
    ),
    Mutant(
        "older_attempt_commits",
        "A transaction of an attempt that ended takes effect beside the next one.",
        INBOX,
        'row[0] > current or row[1] == "finished" or (row[1] == "refused" and row[0] >= current)',
        'row[0] > current or (row[1] == "refused" and row[0] >= current)',
        (f"{TEST_INBOX}::test_a_newer_attempt_elsewhere_leaves_no_trace_of_an_older_one",),
    ),
    Mutant(
        "given_up_attempt_commits",
        "A thread of an attempt that was given up commits beside the next one.",
        INBOX,
        'row[0] > current or row[1] == "finished" or (row[1] == "refused" and row[0] >= current)',
        'row[0] > current or row[1] == "finished"',
        (
            f"{TEST_LINEAGE}::test_a_thread_of_an_attempt_that_was_given_up_takes_no_effect_beside_the_next_one",
        ),
    ),
    Mutant(
        "ancestor_not_looked_up",
        "A replay of what completed here is executed again.",
        INBOX,
        "if delivery.root_run_id != delivery.run_id:",
        "if not delivery.root_run_id:",
        (f"{TEST_LINEAGE}::test_a_replay_of_what_completed_here_answers_the_stored_value",),
    ),
    Mutant(
        "relative_not_looked_up_in_the_transaction",
        "Two runs of one lineage that execute side by side both take effect.",
        INBOX,
        "related = _related(db, delivery, current)",
        "related = None",
        (f"{TEST_LINEAGE}::test_two_runs_of_a_lineage_that_execute_side_by_side_take_effect_once",),
    ),
    Mutant(
        "failed_ancestor_answers",
        "A failed run of the lineage answers for its replay.",
        INBOX,
        "WHERE run_id = ?1 AND completed = 1 AND run_id <> ?2 LIMIT 1",
        "WHERE run_id = ?1 AND run_id <> ?2 LIMIT 1",
        (f"{TEST_LINEAGE}::test_a_second_replay_finds_the_first_one",),
    ),
    Mutant(
        "tombstones_too_early",
        "A tombstone goes while a proxy may still deliver its run.",
        RETENTION,
        "return max(FLOOR_MS, self.lease_ms + self._ttl_ms + 2 * self._skew_ms)",
        "return FLOOR_MS",
        (f"{TEST_RETENTION}::test_a_longer_lease_heard_later_keeps_what_was_due",),
    ),
    Mutant(
        "tombstones_by_the_wall_clock",
        "A clock that jumps ahead forgets tombstones.",
        RETENTION,
        "return min(reading_ms for _, reading_ms in self._readings)",
        "return wall_ms - self.keep_ms",
        (f"{TEST_RETENTION}::test_a_clock_that_jumps_ahead_forgets_nothing_early",),
    ),
    Mutant(
        "unacknowledged_pruned",
        "Results that no proxy has yet are pruned.",
        INBOX,
        "SELECT run_id FROM inbox WHERE acked_at_ms < ? LIMIT ?",
        "SELECT run_id FROM inbox WHERE finished_at_ms < ? LIMIT ?",
        (f"{TEST_INBOX}::test_what_began_is_neither_acked_nor_pruned_nor_told",),
    ),
    Mutant(
        "ack_of_an_older_fence",
        "An acknowledgement under an older fence silences the newer one's result.",
        INBOX,
        "WHERE run_id = ? AND fence <= ? AND state <> 'started'",
        "WHERE run_id = ? AND ? >= 0 AND state <> 'started'",
        (f"{TEST_INBOX}::test_acks_make_tombstones_that_still_answer_until_they_are_pruned",),
    ),
    Mutant(
        "fence_goes_down_in_the_inbox",
        "A result under an older fence lowers the fence that the inbox knows.",
        INBOX,
        "fence = max(inbox.fence, excluded.fence)",
        "fence = excluded.fence",
        (f"{TEST_INBOX}::test_a_stored_end_never_changes",),
    ),
    Mutant(
        "stored_end_overwritten",
        "A second end replaces the value of the first.",
        INBOX,
        "value_json = CASE inbox.state WHEN 'finished' THEN inbox.value_json ELSE excluded.value_json END,",
        "value_json = excluded.value_json,",
        (f"{TEST_INBOX}::test_a_stored_end_never_changes",),
    ),
    Mutant(
        "told_before_the_inbox_commit",
        "A node reports a result before its inbox has it.",
        EXECUTOR,
        """\
        run.phase = Phase.ENDING
        self._ends.add(run, result)
""",
        """\
        run.phase = Phase.ENDING
        self._report(result, run.correlation_id, run.origin)
        self._ends.add(run, result)
""",
        (f"{TEST_INBOX}::test_a_disk_that_fails_while_refusing_ends_nothing",),
    ),
    Mutant(
        "refusal_told_before_durable",
        "A refusal is reported without being in the inbox.",
        EXECUTOR,
        """\
            if durable:
                await self._inbox.refuse(durable)
""",
        """\
            if not told:
                await self._inbox.refuse(durable)
""",
        (f"{TEST_INBOX}::test_each_refusal_is_durable_before_it_is_said_and_the_run_may_come_again",),
    ),
    Mutant(
        "executed_without_identity",
        "A delivery that says on nobody's behalf is executed.",
        "protocol/fairlead/protocol/trust.py",
        "if delivery.identity is None:",
        "if delivery.identity is None and delivery.retry:",
        ("tests/unit/protocol/test_trust.py::test_the_order_is_identity_then_token_then_mac_then_time",),
    ),
    Mutant(
        "another_version_executed",
        "A handler of another version than the registry's is called.",
        EXECUTOR,
        "if held is None or held.digest != delivery.descriptor_digest:",
        "if held is None:",
        (f"{TEST_INBOX}::test_each_refusal_is_durable_before_it_is_said_and_the_run_may_come_again",),
    ),
    Mutant(
        "executed_past_the_deadline",
        "A run whose deadline passed in the queue is begun.",
        EXECUTOR,
        "if started_at_ms >= delivery.deadline_at_ms:",
        "if started_at_ms < 0:",
        (f"{TEST_INBOX}::test_a_deadline_that_passed_in_the_queue_is_not_begun",),
    ),
    Mutant(
        "paused_node_executes",
        "A paused node takes new runs.",
        EXECUTOR,
        "if self.switches.paused:",
        "if self.switches.paused and self.switches.draining:",
        (f"{TEST_INBOX}::test_each_refusal_is_durable_before_it_is_said_and_the_run_may_come_again",),
    ),
    Mutant(
        "node_beyond_its_credit",
        "A node takes more runs than it gave credit for.",
        EXECUTOR,
        "if not has_room:",
        "if not has_room and self.switches.draining:",
        (f"{TEST_INBOX}::test_beyond_the_credit_it_is_refused",),
    ),
    Mutant(
        "condemned_run_again",
        "A run that killed its node three times is tried a fourth time.",
        ISOLATION,
        "return self.crashes.get(run_id, 0) >= CRASHES_MAX",
        "return self.crashes.get(run_id, 0) > 10 * CRASHES_MAX",
        (f"{TEST_ISOLATION}::test_a_run_is_given_up_after_so_many_crashes",),
    ),
    Mutant(
        "suspect_beside_others",
        "A run that may have killed the node executes beside innocent ones.",
        ISOLATION,
        "return not self._alone and run_id not in self.crashes",
        "return not self._alone",
        (f"{TEST_ISOLATION}::test_nobody_starts_freely_who_is_a_suspect_or_beside_one",),
    ),
    Mutant(
        "cancelled_run_commits",
        "A cancelled run's transaction takes effect.",
        EXECUTION,
        """\
        if self._active.cancelled:
            raise RunCancelled""",
        """\
        if self._active.delivery.fence < 0:
            raise RunCancelled""",
        (f"{TEST_CANCEL}::test_a_transaction_in_the_writers_queue_when_its_run_is_cancelled_has_no_effect",),
    ),
    Mutant(
        "cancelled_run_executed",
        "A run that was cancelled while it waited is executed.",
        EXECUTOR,
        """\
            if run.phase is Phase.QUEUED:  # not cancelled meanwhile
                return run
""",
        """\
            return run
""",
        (f"{TEST_CANCEL}::test_a_waiting_run_ends_at_once_and_its_handler_is_never_called",),
    ),
    Mutant(
        "cancellation_leaves_no_tombstone",
        "A delivery that comes after its cancellation is executed.",
        INBOX,
        """\
                and (row is None or row[2] == "refused")
            ):
""",
        """\
                and row is not None
                and row[2] == "refused"
            ):
""",
        (f"{TEST_CANCEL}::test_a_run_cancelled_before_its_delivery_came_is_not_started",),
    ),
    Mutant(
        "delivery_beside_itself",
        "A run that is said again under a higher fence executes beside itself.",
        EXECUTOR,
        """\
        if known is None:
            return False
        if problem is not None:""",
        """\
        if known is None or delivery.fence > known.fence:
            return False
        if problem is not None:""",
        (f"{TEST_INBOX}::test_a_fence_that_rises_while_the_result_is_written_is_the_one_that_is_told",),
    ),
    Mutant(
        "result_under_the_old_fence",
        "A result is told under the fence that it began with.",
        EXECUTOR,
        "if run.fence > result.fence:",
        "if run.fence < 0:",
        (f"{TEST_INBOX}::test_a_fence_that_rises_while_the_result_is_written_is_the_one_that_is_told",),
    ),
    Mutant(
        "handler_past_its_deadline",
        "A handler may take its whole time although the deadline comes first.",
        EXECUTOR,
        "return max(0, min(delivery.timeout_ms, self._timeout_ms_max, left_ms)) / 1000",
        "return max(0, min(delivery.timeout_ms, self._timeout_ms_max)) / 1000",
        (f"{TEST_INBOX}::test_neither_the_deadline_nor_the_nodes_own_limit_is_exceeded",),
    ),
    Mutant(
        "known_outcome_of_a_thread",
        "A `once` handler that was given up counts as one that may be tried again.",
        EXECUTION,
        "reason = Reason.OUTCOME_UNKNOWN if once else Reason.HANDLER_TIMEOUT",
        "reason = Reason.HANDLER_TIMEOUT",
        (f"{TEST_INBOX}::test_a_handler_that_takes_too_long",),
    ),
    Mutant(
        "door_stays_open",
        "A handler writes to the inbox's database after its function returned.",
        INBOX,
        """\
                door.close()
""",
        """\
                pass
""",
        (f"{TEST_INBOX}::test_a_door_that_was_kept_does_not_lead_into_the_next_runs_transaction",),
    ),
    Mutant(
        "handler_ends_the_transaction",
        "A handler may commit by itself, and its effect without its result.",
        CONTEXT,
        """\
    if word in _CONTROL_WORDS:
""",
        """\
    if word == "ATTACH":
""",
        (
            f"{TEST_CONTEXT}::test_beginning_and_ending_transactions_is_refused_wherever_it_hides[DETACH main-plain]",
        ),
    ),
)
