"""Dispatch: what is accepted, delivered, retried and told, and to whom."""

from __future__ import annotations

from typing import Final

from tests.sim.mutation import Mutant

DISPATCHER: Final = "proxy/fairlead/proxy/dispatch/dispatcher.py"
SETTLER: Final = "proxy/fairlead/proxy/dispatch/settler.py"
RETRY: Final = "proxy/fairlead/proxy/dispatch/retry.py"
BACKOFF: Final = "runtime/fairlead/runtime/backoff.py"
FLEET: Final = "proxy/fairlead/proxy/dispatch/fleet.py"
DELIVERIES: Final = "proxy/fairlead/proxy/dispatch/deliveries.py"
UPKEEP: Final = "proxy/fairlead/proxy/dispatch/upkeep.py"
DESK: Final = "proxy/fairlead/proxy/dispatch/desk.py"
SUBMIT: Final = "proxy/fairlead/proxy/dispatch/submit.py"
WAITERS: Final = "proxy/fairlead/proxy/dispatch/waiters.py"
CIRCUIT: Final = "proxy/fairlead/proxy/dispatch/circuit.py"
BOOK: Final = "client/fairlead/client/book.py"

TEST_DISPATCH_FAULTS: Final = "tests/shell/test_dispatch_faults.py"
TEST_HOSTILE_NODE: Final = "tests/shell/test_hostile_node.py"
TEST_RETRY: Final = "tests/unit/proxy/test_retry.py"
TEST_BACKOFF: Final = "tests/unit/runtime/test_backoff.py"
TEST_FLEET: Final = "tests/unit/proxy/test_fleet.py"
TEST_DISPATCH_IN_MEMORY: Final = "tests/shell/test_dispatch_in_memory.py"
TEST_CLIENT_LINK: Final = "tests/shell/test_client_link.py"
TEST_SUBMIT: Final = "tests/unit/proxy/test_submit.py"
TEST_WAITERS: Final = "tests/unit/proxy/test_waiters.py"
TEST_CIRCUIT: Final = "tests/unit/proxy/test_circuit.py"
TEST_BOOK: Final = "tests/unit/client/test_book.py"

MUTANTS: Final = (
    Mutant(
        "accepted_before_commit",
        "A submission is answered before it is on disk.",
        DISPATCHER,
        """\
            outcomes = await (
                self._store.accept(runs, nonce, self._world.wall_ms()) if nonce else self._store.accept(runs)
            )
""",
        """\
            from fairlead.proxy.store.records import RunStatus

            trio.lowlevel.spawn_system_task(self._store.accept, runs)
            outcomes: list[AcceptOutcome] = [Accepted(run.run_id, RunStatus.PENDING) for run in runs]
""",
        (f"{TEST_DISPATCH_FAULTS}::test_a_refused_acceptance_frees_the_place_that_was_kept",),
    ),
    Mutant(
        "delivered_before_commit",
        "A run is sent to its node before its acceptance is on disk.",
        DISPATCHER,
        """\
            outcomes = await (
                self._store.accept(runs, nonce, self._world.wall_ms()) if nonce else self._store.accept(runs)
            )
""",
        """\
            self._start(runs)
            outcomes = await (
                self._store.accept(runs, nonce, self._world.wall_ms()) if nonce else self._store.accept(runs)
            )
""",
        (f"{TEST_DISPATCH_FAULTS}::test_a_submission_said_twice_at_the_same_moment_is_delivered_once",),
    ),
    Mutant(
        "acknowledged_before_settled",
        "A node's result is acknowledged before the store has it.",
        SETTLER,
        """\
            self._reports.append((link, report, correlation_id))
""",
        """\
            self._reports.append((link, report, correlation_id))
            link.send(m.ResultAck(((report.run_id, report.fence),)))
""",
        (f"{TEST_DISPATCH_FAULTS}::test_a_result_is_acknowledged_and_told_only_once_it_is_settled",),
    ),
    Mutant(
        "told_before_settled",
        "A caller is told a result before the store has it.",
        SETTLER,
        """\
        try:
            settled = await self._settle([report for _, report, _ in batch])
""",
        """\
        try:
            told = [
                RunResult(each.run_id, RunStatus.COMPLETED, each.value_json, "", "", each.node_id)
                for _, each, _ in batch
                if each.completed
            ]
            await self._waiters.wake_many(told)
            settled = await self._settle([report for _, report, _ in batch])
""",
        (f"{TEST_DISPATCH_FAULTS}::test_a_result_is_acknowledged_and_told_only_once_it_is_settled",),
    ),
    Mutant(
        "reports_lost_when_the_store_fails",
        "Reports that could not be settled are dropped.",
        SETTLER,
        """\
            if len(batch) == 1:
                self._reports.rotate(-1)
            raise
""",
        """\
            for _ in batch:
                self._reports.popleft()
            raise
""",
        (
            f"{TEST_DISPATCH_FAULTS}::test_a_report_that_came_while_the_store_failed_is_settled_as_soon_as_it_works",
        ),
    ),
    Mutant(
        "foreign_statement_acknowledged",
        "A statement about another's run is acknowledged, not refused.",
        SETTLER,
        """\
            if outcome.verdict is Verdict.FOREIGN:
                link.refuse""",
        """\
            if outcome.verdict is Verdict.UNKNOWN:
                link.refuse""",
        (f"{TEST_HOSTILE_NODE}::test_a_statement_about_another_nodes_run_is_foreign",),
    ),
    Mutant(
        "once_retried",
        "A `once` command that failed is executed again.",
        RETRY,
        "if not self.enabled or reason not in RETRYABLE_ENDS or effect == Effect.ONCE:",
        "if not self.enabled or reason not in RETRYABLE_ENDS:",
        (f"{TEST_RETRY}::test_a_once_command_is_never_retried",),
    ),
    Mutant(
        "lasting_failures_retried",
        "What failed for good is tried again.",
        RETRY,
        "if not self.enabled or reason not in RETRYABLE_ENDS or",
        "if not self.enabled or",
        (f"{TEST_RETRY}::test_only_ends_that_the_node_calls_passing_are_retried[BACKEND_TIMEOUT]",),
    ),
    Mutant(
        "retry_past_the_deadline",
        "A retry is planned for after the deadline.",
        RETRY,
        "return delay_ms if delay_ms < left_ms else None",
        "return delay_ms",
        (f"{TEST_RETRY}::test_no_retry_past_the_deadline",),
    ),
    Mutant(
        "retries_without_end",
        "The configuration's bound on attempts does not hold.",
        RETRY,
        "if failed >= (attempts_max or self.attempts_max):",
        "if failed >= (attempts_max or 2**31):",
        (f"{TEST_RETRY}::test_attempts_are_bounded_by_the_command_or_else_by_the_configuration",),
    ),
    Mutant(
        "no_jitter",
        "All that failed together is tried again together.",
        RETRY,
        "delay_ms = int(unit * ceiling)",
        "delay_ms = int(ceiling)",
        (f"{TEST_RETRY}::test_no_retry_past_the_deadline",),
    ),
    Mutant(
        "retry_budget_never_spent",
        "Retries cost nothing of the budget.",
        RETRY,
        """\
        self.tokens -= retries
""",
        """\
        self.tokens -= 0
""",
        (f"{TEST_RETRY}::test_the_budget_is_a_share_of_first_attempts",),
    ),
    Mutant(
        "no_jitter_in_dialling",
        "All nodes dial a returning proxy at the same moment.",
        BACKOFF,
        "return unit * ceiling",
        "return ceiling",
        (f"{TEST_BACKOFF}::test_full_jitter_may_draw_no_wait_at_all",),
    ),
    Mutant(
        "credit_ignored",
        "A node is given more runs than it has room for.",
        FLEET,
        "free = self.capacity - len(self.outstanding)",
        "free = self.capacity",
        (f"{TEST_FLEET}::test_a_named_node_or_nobody",),
    ),
    Mutant(
        "claims_beyond_the_credit",
        "A claim takes more than the node has room for.",
        DISPATCHER,
        "limit = min(self.fleet.claim_max(slot), CLAIM_MAX)",
        "limit = CLAIM_MAX if self.fleet.claim_max(slot) else 0",
        (f"{TEST_DISPATCH_IN_MEMORY}::test_the_highest_priority_goes_first_and_equals_in_their_order",),
    ),
    Mutant(
        "paused_tenant_assigned",
        "A paused tenant's run is given to a node as it is accepted.",
        DISPATCHER,
        "if paused and (run.tenant in paused or EVERYBODY in paused):",
        "if paused and EVERYBODY in paused:",
        (
            f"{TEST_DISPATCH_IN_MEMORY}::test_nothing_of_a_paused_tenant_is_delivered_and_all_of_it_afterwards",
        ),
    ),
    Mutant(
        "order_lost_at_acceptance",
        "A run with an ordering key is given to a node as it is accepted, before its turn.",
        DISPATCHER,
        """\
            or run.ordering_key
""",
        "",
        (f"{TEST_DISPATCH_IN_MEMORY}::test_runs_of_one_ordering_key_never_overlap_and_keep_their_order",),
    ),
    Mutant(
        "schedule_lost_at_acceptance",
        "A scheduled run is given to a node as it is accepted.",
        DISPATCHER,
        """\
            or run.not_before_ms > run.accepted_at_ms
""",
        "",
        (f"{TEST_DISPATCH_IN_MEMORY}::test_cancelling_what_waits_at_the_proxy_ends_it_at_once",),
    ),
    Mutant(
        "kill_switch_ignored_at_submission",
        "Submissions are accepted while the kill switch is on.",
        DISPATCHER,
        """\
        if self.kill_switch:
            raise Refused(""",
        """\
        if self.kill_switch and self.draining:
            raise Refused(""",
        (
            f"{TEST_DISPATCH_IN_MEMORY}::test_the_kill_switch_stops_deliveries_and_retries_and_what_runs_finishes",
        ),
    ),
    Mutant(
        "kill_switch_ignored_for_claims",
        "What waits is claimed while the kill switch is on.",
        DISPATCHER,
        """\
            if self.kill_switch:
                next_turn_s""",
        """\
            if self.kill_switch and self.draining:
                next_turn_s""",
        (
            f"{TEST_DISPATCH_IN_MEMORY}::test_under_the_kill_switch_nothing_is_claimed_and_given_back_in_turns",
        ),
    ),
    Mutant(
        "kill_switch_ignored_for_redelivery",
        "What a node lost is delivered again while the kill switch is on.",
        DELIVERIES,
        "message = None if link is None or self._halted() else",
        "message = None if link is None else",
        (f"{TEST_DISPATCH_IN_MEMORY}::test_the_kill_switch_stops_what_would_be_delivered_again",),
    ),
    Mutant(
        "queue_bound_raced",
        "Submissions at the same moment exceed the bound on what waits.",
        DISPATCHER,
        """\
waiting = self.outbox.waiting_total + self._accepting
""",
        """\
waiting = self.outbox.waiting_total
""",
        (
            f"{TEST_DISPATCH_IN_MEMORY}::test_submissions_at_the_same_moment_do_not_exceed_pending_max_together",
        ),
    ),
    Mutant(
        "cancellation_of_anothers_run",
        "An application cancels the runs of another.",
        DISPATCHER,
        'if principal is not None and found["submitted_by"][0] != principal:',
        'if principal is not None and not found["submitted_by"][0]:',
        (f"{TEST_DISPATCH_IN_MEMORY}::test_nobody_cancels_the_run_of_another_principal",),
    ),
    Mutant(
        "given_back_and_delivered",
        "What was given back is delivered to the node that returns meanwhile.",
        UPKEEP,
        "return [each for each in held if not self._deliveries.was_given_back(each)]",
        "return held",
        (f"{TEST_HOSTILE_NODE}::test_what_was_given_back_is_not_delivered_to_a_node_that_returns_meanwhile",),
    ),
    Mutant(
        "another_incarnation_served",
        "A node that lost its inbox is given what its old self was to do.",
        DELIVERIES,
        "if slot is None or slot.incarnation != attempt.incarnation or item is None:",
        "if slot is None or item is None:",
        (
            f"{TEST_DISPATCH_FAULTS}::test_what_was_claimed_for_a_node_that_lost_its_inbox_meanwhile_is_not_sent_under_that_claim",
        ),
    ),
    Mutant(
        "lost_delivery_never_said_again",
        "A delivery that a node never got waits for its deadline.",
        UPKEEP,
        "if run_id not in held and now_s - known.sent_at_s > REDELIVER_AFTER_S",
        "if run_id in held and now_s - known.sent_at_s > REDELIVER_AFTER_S",
        (
            f"{TEST_DISPATCH_FAULTS}::test_a_delivery_that_never_arrived_does_not_wait_until_its_lease_runs_out",
        ),
    ),
    Mutant(
        "lost_cancellation_never_said_again",
        "A cancellation that its node never heard is forgotten.",
        UPKEEP,
        "for run_id, fence, node_id in swept.cancel_again:",
        "for run_id, fence, node_id in swept.cancel_again[:0]:",
        (
            f"{TEST_DISPATCH_IN_MEMORY}::test_a_cancellation_that_never_reached_its_node_is_said_again_over_the_same_link",
        ),
    ),
    Mutant(
        "cancelled_run_delivered",
        "A cancelled run whose delivery was lost is delivered on the next link, and begins.",
        DELIVERIES,
        "if link is not None and attempt.cancelled and again:",
        "if link is not None and attempt.cancelled and not again:",
        (
            f"{TEST_DISPATCH_IN_MEMORY}::test_a_cancelled_run_whose_delivery_was_lost_is_not_delivered_any_more",
        ),
    ),
    Mutant(
        "watch_of_anothers_run",
        "An application is told the results of another's runs.",
        DESK,
        "mine = set(await self._desk.owned(batch, self._tenant, self._identity_json))",
        "mine = set(batch)",
        (f"{TEST_CLIENT_LINK}::test_another_tenants_run_is_neither_told_nor_replaced",),
    ),
    Mutant(
        "scope_not_checked",
        "An application without the scope dispatches.",
        DESK,
        "if not self._may_dispatch:",
        "if not self._may_dispatch and not asked.command:",
        (f"{TEST_CLIENT_LINK}::test_without_the_scope_nothing_is_dispatched",),
    ),
    Mutant(
        "clients_beyond_their_credit",
        "An application may have any number of runs open.",
        DESK,
        """\
            elif room <= 0:
""",
        """\
            elif room <= -(2**31):
""",
        (f"{TEST_CLIENT_LINK}::test_what_exceeds_the_credit_is_answered_one_by_one",),
    ),
    Mutant(
        "arguments_of_clients_not_checked",
        "What comes over a client link is accepted whatever its arguments.",
        DESK,
        """\
        if problems:
""",
        """\
        if problems and not asked.command:
""",
        (f"{TEST_CLIENT_LINK}::test_what_is_refused_and_what_fails_say_why",),
    ),
    Mutant(
        "callback_inside_accepted",
        "A submission may name a callback URL on a loopback address.",
        SUBMIT,
        "problem = callback_url_problem(callback_url, bounds.callback_hosts)",
        "problem = None",
        (f"{TEST_SUBMIT}::test_a_callback_may_not_lead_inside",),
    ),
    Mutant(
        "payload_hash_without_the_target",
        "Two requests that differ in their target are the same under one key.",
        SUBMIT,
        "asked.command, asked.args, asked.target, asked.deadline_ms,",
        "asked.command, asked.args, asked.deadline_ms,",
        (f"{TEST_SUBMIT}::test_the_payload_hash_is_of_what_was_asked_and_of_nothing_else",),
    ),
    Mutant(
        "missed_end_never_found",
        "Who waits for a run that another proxy settled waits for ever.",
        WAITERS,
        """\
            try:
                await self.look(still)
            except""",
        """\
            try:
                await self.look(still[:0])
            except""",
        (f"{TEST_WAITERS}::test_an_end_that_was_missed_is_found_by_the_next_look",),
    ),
    Mutant(
        "circuit_never_closes",
        "A node on which much failed is never tried again.",
        CIRCUIT,
        "if self.state is CircuitState.OPEN and now_s >= self._open_until_s:",
        "if self.state is CircuitState.OPEN and now_s < 0:",
        (f"{TEST_CIRCUIT}::test_it_lets_one_run_pass_when_its_time_is_over",),
    ),
    Mutant(
        "sent_and_lost",
        "What an application sent over a link that broke is never said again.",
        BOOK,
        "again = [entry for entry in self.entries.values() if entry.stage is SENT]",
        "again = [entry for entry in self.entries.values() if entry.stage is QUEUED and entry.cancel_asked]",
        (f"{TEST_BOOK}::test_a_refusal_is_final_except_where_a_proxy_drains_and_there_are_others",),
    ),
    Mutant(
        "accepted_and_not_watched",
        "An application does not ask again for what was accepted before its link broke.",
        BOOK,
        "accepted = [entry for entry in self.entries.values() if entry.stage is ACCEPTED]",
        "accepted = [entry for entry in self.entries.values() if entry.stage is OVER]",
        (f"{TEST_BOOK}::test_a_cancellation_is_asked_again_on_the_next_link",),
    ),
)
