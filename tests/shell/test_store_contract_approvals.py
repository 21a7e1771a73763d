"""The contract of approvals: what waits, who decides, what is bound to what, and what nobody can forge."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.store_contract import (
    SEALS,
    SECRET,
    SECRET_BEFORE,
    T0,
    ContractStore,
    Open,
    audit_event,
    claimed,
    dead,
    done,
    failed,
    family,
    new,
    record,
    replay_of,
    settle,
    shown,
    start_of,
    status,
    swept,
)

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason
from fairlead.proxy.store import approval_rules as rules
from fairlead.proxy.store.approval_records import Approval, ApprovalFilter, Decision, NewVote
from fairlead.proxy.store.records import Accepted, ApprovalTerms, NewApproval, NewRun, RunStatus
from fairlead.proxy.store.seals import Seals

WAIT_MS = 3_600_000
DIGEST = "d1"
TERMS = ApprovalTerms(DIGEST, 1, WAIT_MS)
ME = b'["me"]'
LATER = T0 + 50_000


def asked(run_id: str = "r1", needed: int = 1, principal: str = "me", **more: Any) -> NewRun:
    """A run that waits for approval."""
    return rules.waiting(
        new(run_id, **more),
        ApprovalTerms(DIGEST, needed, WAIT_MS),
        principal,
        "me",
        auth="key:1",
        address="::1",
    )


async def waits(store: ContractStore, run: NewRun | None = None) -> Approval:
    run = run or asked()
    (accepted,) = await store.accept([run])
    assert isinstance(accepted, Accepted)
    assert accepted.status is RunStatus.PENDING_APPROVAL
    return await approval(store, run.run_id)


async def approval(store: ContractStore, subject_id: str = "r1") -> Approval:
    found = await store.approval(f"apr-{subject_id}")
    assert found is not None
    return found


async def vote(
    store: ContractStore, held: Approval, principal: str = "op1", decision: Any = "approve", now_ms: int = LATER,
    plan_hash: str | None = None, digest: str = DIGEST, why: str = "looks right",
) -> Decision:  # fmt: skip
    quoted = held.plan_hash if plan_hash is None else plan_hash
    event = audit_event("vote", now_ms, id=f"{principal}-{decision}-{now_ms}")
    found = await store.vote(NewVote(held.id, principal, decision, quoted, why, digest, event), now_ms)
    assert found is not None
    return found


# -- asked for, approved


async def test_a_run_waits_and_is_told_of_what(store: ContractStore) -> None:
    run = asked()
    (accepted,) = await store.accept([run])
    held = await approval(store)
    assert accepted == Accepted(
        "r1", RunStatus.PENDING_APPROVAL, False, "apr-r1", held.plan_hash, T0 + WAIT_MS
    )
    assert (held.status, held.needed, held.requested_by, held.expires_at_ms) == (
        "PENDING",
        1,
        "me",
        T0 + WAIT_MS,
    )
    assert held.holds
    assert held.votes == ()
    assert held.detail["digest"] == DIGEST
    assert await claimed(store) == [], "nobody is given it"
    assert await status(store) == "PENDING_APPROVAL"
    assert (await store.status_counts())["PENDING_APPROVAL"] == 1
    assert await store.approval_counts() == {"PENDING": 1}
    waiting = await store.waiting_runs(T0)
    assert (dict(waiting.due), waiting.delayed, waiting.for_approval) == ({}, 0, 1)
    (again,) = await store.accept([msgspec_later(run)])
    assert again == Accepted("r1", RunStatus.PENDING_APPROVAL, True, "apr-r1", held.plan_hash, T0 + WAIT_MS)
    assert [event["action"] for event in await store.audit_events(5)] == ["approval_requested"]


def msgspec_later(run: NewRun) -> NewRun:
    """The same submission, said again a second later."""
    return asked(run.run_id, accepted_at_ms=T0 + 1_000, chosen_id=True)


async def test_approved_it_executes_and_its_time_begins_then(store: ContractStore) -> None:
    held = await waits(store)
    decided = await vote(store, held, now_ms=LATER)
    assert (decided.approval.status, decided.refused, decided.ended) == ("APPROVED", None, ())
    assert await status(store) == "PENDING"
    run = await shown(store)
    assert run["deadline_at_ms"] == LATER + 60_000, "a command's time is not spent by those who decide"
    assert run["due_at_ms"] == LATER, "nor is it lag"
    assert await claimed(store, now_ms=LATER, digests={"a:once": DIGEST}) == ["r1"]
    await settle(store, done(), LATER + 10)
    assert await status(store) == "COMPLETED"
    held = await approval(store)
    assert (held.status, held.decided_at_ms, held.holds) == ("APPROVED", LATER, True)
    assert [(each.principal, each.decision, each.why) for each in held.votes] == [
        ("op1", "approve", "looks right")
    ]
    events = [step["event"] for step in (await shown(store))["timeline"]]
    assert events[:4] == ["accepted", "approval requested", "vote: approve", "approval approved"]
    actions = [event["action"] for event in await store.audit_events(5)]
    assert actions == ["approval_approved", "approval_requested"]


async def test_each_of_several_has_one_vote_and_the_last_one_counts(store: ContractStore) -> None:
    held = await waits(store, asked(needed=2))
    first = await vote(store, held, "op1")
    assert (first.approval.status, first.refused) == ("PENDING", None)
    assert await claimed(store, now_ms=LATER) == []
    again = await vote(store, held, "op1", now_ms=LATER + 1)
    assert again.refused is Reason.APPROVAL_ALREADY_VOTED
    other_mind = await vote(store, held, "op1", "reject", now_ms=LATER + 1)
    assert other_mind.refused is Reason.APPROVAL_ALREADY_VOTED
    assert (await vote(store, held, "op2", now_ms=LATER + 2)).approval.status == "APPROVED"
    assert await claimed(store, now_ms=LATER + 3) == ["r1"]


async def test_nobody_approves_their_own(store: ContractStore) -> None:
    """Neither who asked for it, nor on whose behalf it executes."""
    held = await waits(store, asked(principal="asker"))
    for principal in ("asker", "me"):
        assert (await vote(store, held, principal)).refused is Reason.APPROVAL_OWN
    assert await status(store) == "PENDING_APPROVAL"
    assert [event["action"] for event in await store.audit_events(2)] == ["approval_requested"]


async def test_who_asked_may_take_it_back(store: ContractStore) -> None:
    held = await waits(store)
    decided = await vote(store, held, "me", "reject", plan_hash="")
    assert decided.approval.status == "CANCELLED"
    assert [(each.run_id, each.status, each.reason) for each in decided.ended] == [
        ("r1", RunStatus.CANCELLED, Reason.RUN_CANCELLED)
    ]
    assert await status(store) == "CANCELLED"


async def test_one_who_says_no_ends_it(store: ContractStore) -> None:
    held = await waits(store, asked(needed=3))
    await vote(store, held, "op1")
    decided = await vote(store, held, "op2", "reject", why="not today")
    assert decided.approval.status == "REJECTED"
    run = await shown(store)
    assert (run["status"], run["reason"]) == ("CANCELLED", "APPROVAL_REJECTED")
    assert run["detail"] == "rejected by op2: not today"
    assert (await store.dead_letter_counts())["queued"] == 0, "it is not for replay"


async def test_what_was_shown_has_to_be_quoted(store: ContractStore) -> None:
    held = await waits(store)
    for quoted in ("", "another"):
        assert (await vote(store, held, plan_hash=quoted)).refused is Reason.APPROVAL_PLAN_CHANGED
    assert (await vote(store, held, digest="d2")).refused is Reason.APPROVAL_PLAN_CHANGED, (
        "the command changed"
    )
    assert await status(store) == "PENDING_APPROVAL"


async def test_a_plan_stands_for_everything_that_executes() -> None:
    hashes = {
        rules.hash_of(rules.plan_of(run, digest, by))
        for run, digest, by in (
            (new(), "d1", "me"), (new(), "d2", "me"), (new(), "d1", "you"),
            (new(args_json=b'{"n":2}'), "d1", "me"), (new(target="n1", target_node="n1"), "d1", "me"),
            (new(tenant="u"), "d1", "me"), (new(identity_json=b'["you"]'), "d1", "me"),
            (new(deadline_at_ms=T0 + 1), "d1", "me"), (new(timeout_ms=1), "d1", "me"), (new("r1", "a:tx"), "d1", "me"),
            (new(ordering_key="k"), "d1", "me"), (new(callback_url="https://x.example/"), "d1", "me"),
            (new(not_before_ms=T0 + 5), "d1", "me"), (family(), "d1", "me"), (family(nodes=("n1",)), "d1", "me"),
        )
    }  # fmt: skip
    assert len(hashes) == 15


async def test_a_command_that_changed_after_its_approval_does_not_execute(store: ContractStore) -> None:
    await vote(store, await waits(store))
    assert await claimed(store, now_ms=LATER, digests={"a:once": "d2"}) == []
    run = await shown(store)
    assert (run["status"], run["reason"]) == ("FAILED", "APPROVAL_PLAN_CHANGED")
    assert [each.run_id for each in store.ended_by_claims()] == ["r1"], "and whoever waits is told"


# -- time


async def test_what_nobody_decides_in_time_ends_and_is_no_dead_letter(open_store: Open) -> None:
    store = await open_store()
    held = await waits(store)
    assert await swept(store, T0 + WAIT_MS - 1) == [], "its own deadline does not count while it waits"
    await store.aclose()
    store = await open_store("B")  # after a restart, or the other proxy
    (ended,) = await swept(store, T0 + WAIT_MS)
    assert (ended.run_id, ended.status, ended.reason) == (
        "r1",
        RunStatus.EXPIRED,
        Reason.HITL_TIMEOUT_FAIL_CLOSED,
    )
    assert (await approval(store)).status == "EXPIRED"
    assert (await store.dead_letter_counts())["queued"] == 0
    late = await vote(store, held, now_ms=T0 + WAIT_MS + 1)
    assert late.refused is Reason.HITL_TERMINAL_STATE_IMMUTABLE
    assert [event["action"] for event in await store.audit_events(5)] == [
        "approval_expired",
        "approval_requested",
    ]


async def test_a_vote_that_comes_too_late_ends_it(store: ContractStore) -> None:
    held = await waits(store)
    decided = await vote(store, held, now_ms=T0 + WAIT_MS)
    assert decided.refused is Reason.HITL_TIMEOUT_FAIL_CLOSED
    assert [each.run_id for each in decided.ended] == ["r1"]
    assert await status(store) == "EXPIRED"


async def test_what_is_decided_stays_decided(store: ContractStore) -> None:
    held = await waits(store)
    await vote(store, held)
    for principal, decision in (("op2", "reject"), ("op2", "approve"), ("op1", "reject")):
        found = await vote(store, held, principal, decision, now_ms=LATER + 1)
        assert found.refused is Reason.HITL_TERMINAL_STATE_IMMUTABLE, (principal, decision)


async def test_a_cancelled_run_needs_no_approval_any_more(store: ContractStore) -> None:
    await waits(store)
    outcome = await store.cancel("r1", "me", LATER)
    assert outcome is not None
    assert outcome.status is RunStatus.CANCELLED
    held = await approval(store)
    assert (held.status, held.holds) == ("CANCELLED", True)


# -- several at once, order, schedule


async def test_a_parent_waits_with_its_members_and_goes_on_with_them(store: ContractStore) -> None:
    run = rules.waiting(family(), TERMS, "me", "me")
    held = await waits(store, run)
    assert {await status(store, each) for each in ("p", "p-n1", "p-n2")} == {"PENDING_APPROVAL"}
    assert (await store.waiting_runs(T0)).for_approval == 2
    await vote(store, held)
    assert (await status(store, "p"), await status(store, "p-n1")) == ("RUNNING", "PENDING")
    for node in ("n1", "n2"):
        assert await claimed(store, node, now_ms=LATER, digests={"a:once": DIGEST}) == [f"p-{node}"]
        await settle(store, done(f"p-{node}", node=node), LATER + 10)
    assert await status(store, "p") == "COMPLETED"


@pytest.mark.parametrize(
    ("decision", "ends_as", "reason"),
    [("reject", "CANCELLED", "APPROVAL_REJECTED"), (None, "EXPIRED", "hitl_timeout_fail_closed")],
)
async def test_a_parent_ends_as_its_members_do(
    store: ContractStore, decision: str | None, ends_as: str, reason: str
) -> None:
    held = await waits(store, rules.waiting(family(), TERMS, "me", "me"))
    ended = (await vote(store, held, "op1", decision)).ended if decision else await swept(store, T0 + WAIT_MS)
    assert {each.parent_status for each in ended} == {None, RunStatus(ends_as)}
    for each in ("p", "p-n1", "p-n2"):
        run = await shown(store, each)
        assert (run["status"], run["reason"]) == (ends_as, reason)


async def test_a_run_that_waits_keeps_its_place_in_the_order(store: ContractStore) -> None:
    held = await waits(store, asked(ordering_key="k"))
    await store.accept([new("r2", ordering_key="k")])
    assert await claimed(store) == [], "whoever comes after it waits too"
    await vote(store, held, "op1", "reject", now_ms=T0 + 10)
    assert await claimed(store, now_ms=T0 + 20) == ["r2"], "no longer than it does"


async def test_a_scheduled_run_waits_for_its_time_as_well(store: ContractStore) -> None:
    held = await waits(store, asked(not_before_ms=LATER + 500, deadline_at_ms=LATER + 1_500))
    await vote(store, held, now_ms=LATER)
    run = await shown(store)
    assert (run["due_at_ms"], run["deadline_at_ms"]) == (LATER + 500, LATER + 1_500)
    assert await claimed(store, now_ms=LATER) == []
    await store.waiting_runs(LATER + 500)
    assert await claimed(store, now_ms=LATER + 500) == ["r1"]


async def test_who_waits_for_a_key_is_told_of_the_approval(store: ContractStore) -> None:
    held = await waits(store, asked(idempotency_key="key", payload_hash=b"x"))
    (again,) = await store.accept([asked("r9", idempotency_key="key", payload_hash=b"x")])
    assert again == Accepted("r1", RunStatus.PENDING_APPROVAL, True, "apr-r1", held.plan_hash, T0 + WAIT_MS)


@pytest.mark.parametrize("decision", ["reject", None])
async def test_who_wanted_to_be_called_back_is_told_that_it_did_not_execute(
    store: ContractStore, decision: str | None
) -> None:
    held = await waits(store, asked(callback_url="https://x.example/"))
    if decision:
        await vote(store, held, "op1", decision)
    else:
        await swept(store, T0 + WAIT_MS)
    (due,) = await store.claim_callbacks(10, T0 + WAIT_MS + 1, 1_000)
    assert (due.event_id, due.run_id) == ("evt-r1", "r1")


# -- again


async def test_a_retry_of_what_was_approved_has_to_be_approved_again(store: ContractStore) -> None:
    identity = b'["me","service"]'
    assert Identity("me").principal == "me"
    await vote(store, await waits(store, asked(identity_json=identity)))
    assert await claimed(store, now_ms=LATER) == ["r1"]
    await settle(store, failed(), LATER + 10)
    again = await store.retry_failed("r1", "r2", "me", LATER + 20)
    assert (again.status, again.approval_id) == (RunStatus.PENDING_APPROVAL, "apr-r2")
    held = await approval(store, "r2")
    assert held.detail["deadline_ms"] == 60_000, "as long as the first one had from its approval on"
    assert held.requested_by == "me"
    assert await claimed(store, now_ms=LATER + 20) == []
    await vote(store, held, now_ms=LATER + 30)
    assert await claimed(store, now_ms=LATER + 30) == ["r2"]


async def test_a_replay_of_what_was_approved_has_to_be_approved_again(store: ContractStore) -> None:
    await vote(store, await waits(store))
    assert await claimed(store, now_ms=LATER) == ["r1"]
    await settle(store, failed(), LATER + 10)
    await store.request_replay(replay_of("dlq-r1"), LATER + 20)
    (started,) = await store.start_replays([start_of("dlq-r1", "r2")], LATER + 30)
    assert started.run_id == "r2"
    held = await approval(store, "r2")
    assert (held.requested_by, held.submitted_by) == ("operator", "me")
    for principal in ("operator", "me"):
        assert (await vote(store, held, principal, now_ms=LATER + 40)).refused is Reason.APPROVAL_OWN
    (ended,) = await swept(store, LATER + 30 + WAIT_MS)
    assert ended.reason is Reason.HITL_TIMEOUT_FAIL_CLOSED
    found = await record(store)
    assert (found.state, found.replay_run_id) == ("queued", ""), "the record waits again"


# -- replays that wait


def replay_plan(*record_ids: str, forced: bool = True) -> str:
    return rules.replay_hash(forced, [(each, each.removeprefix("dlq-"), 0) for each in record_ids])


async def waiting_replay(store: ContractStore, *run_ids: str) -> tuple[str, Approval]:
    ids = [(await dead(store, each)).id for each in run_ids]
    plan_hash = replay_plan(*ids)
    identifier = f"replay-of-{'-'.join(run_ids)}"
    made = NewApproval(
        f"apr-{identifier}", "replay", identifier, "t", "", plan_hash, "operator", 1, WAIT_MS, {"records": ids},
        audit_event("approval_requested"),
    )  # fmt: skip
    found = await store.request_replay(
        replay_of(*ids, key=identifier, id=identifier, forced=True, plan_hash=plan_hash, approval=made),
        T0 + 200,
    )
    assert (found.status, found.approval_id) == ("pending_approval", made.id)
    return identifier, await approval(store, identifier)


async def test_a_replay_that_waits_starts_nothing(store: ContractStore) -> None:
    _, held = await waiting_replay(store, "r1")
    assert await store.replays(10, open_only=True) == []
    (started,) = await store.start_replays([start_of("dlq-r1", "r2", forced=True)], T0 + 300)
    assert started.reason == "security_seal_invalid"
    assert (await vote(store, held, "operator")).refused is Reason.APPROVAL_OWN
    assert (await vote(store, held, "op1", digest="")).approval.status == "APPROVED"
    (open_one,) = await store.replays(10, open_only=True)
    assert open_one.status == "running"
    (started,) = await store.start_replays([start_of("dlq-r1", "r2", forced=True)], LATER)
    assert started.run_id == "r2"


async def test_a_replay_whose_plan_changed_is_stopped(store: ContractStore) -> None:
    identifier, held = await waiting_replay(store, "r1", "r2")
    await store.sql("UPDATE dead_letters SET run_id = 'other' WHERE id = 'dlq-r2'")
    decided = await vote(store, held)
    assert (decided.refused, decided.approval.status) == (Reason.APPROVAL_PLAN_CHANGED, "CANCELLED")
    (replay,) = await store.replays(10)
    assert (replay.id, replay.status) == (identifier, "stopped")
    assert (await record(store)).state == "queued"


@pytest.mark.parametrize(("decision", "ends_as"), [("reject", "rejected"), (None, "expired")])
async def test_a_replay_that_is_not_approved_gives_its_records_back(
    store: ContractStore, decision: str | None, ends_as: str
) -> None:
    _, held = await waiting_replay(store, "r1")
    if decision:
        await vote(store, held, "op1", decision)
    else:
        await swept(store, T0 + 200 + WAIT_MS)
    (replay,) = await store.replays(10)
    assert replay.status == ends_as
    found = await record(store)
    assert found.state == "queued"
    assert found.deferred_reason == ("APPROVAL_REJECTED" if decision else "hitl_timeout_fail_closed")


# -- who writes to the database


FORGERIES = (
    "UPDATE runs SET status = 'PENDING' WHERE run_id = 'r1'",
    "UPDATE runs SET status = 'PENDING', approval_id = '' WHERE run_id = 'r1'",
    "UPDATE approvals SET status = 'APPROVED', decided_at_ms = 5; UPDATE runs SET status = 'PENDING'",
    "INSERT INTO approval_votes (approval_id, principal, decision, at_ms, why, plan_hash)"
    " SELECT id, 'op1', 'approve', 5, '', plan_hash FROM approvals;"
    " UPDATE approvals SET status = 'APPROVED', decided_at_ms = 5; UPDATE runs SET status = 'PENDING'",
)


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_no_statement_makes_a_run_execute(store: ContractStore, forgery: str) -> None:
    await waits(store)
    for statement in forgery.split(";"):
        await store.sql(statement)
    assert await claimed(store, now_ms=T0 + 10) == []
    run = await shown(store)
    assert (run["status"], run["reason"]) == ("FAILED", "security_seal_invalid")


async def test_what_an_approved_run_lost_its_approval_for_does_not_execute(store: ContractStore) -> None:
    """Its own seals hold: what is looked at once more, when it is handed out, is the approval."""
    for run_id, statement in (
        ("r1", "DELETE FROM approvals WHERE id = 'apr-r1'"),
        ("r2", "DELETE FROM approval_votes WHERE approval_id = 'apr-r2'"),
        ("r3", "UPDATE approval_votes SET seal = (SELECT seal FROM approval_votes WHERE approval_id = 'apr-r4')"
               " WHERE approval_id = 'apr-r3'"),
    ):  # fmt: skip
        if run_id == "r3":
            await vote(store, await waits(store, asked("r4")))
        await vote(store, await waits(store, asked(run_id)))
        await store.sql(statement)
    assert await claimed(store, now_ms=LATER) == ["r4"]
    for run_id in ("r1", "r2", "r3"):
        assert (await shown(store, run_id))["reason"] == "security_seal_invalid"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE approvals SET needed = 0",
        "UPDATE approvals SET expires_at_ms = expires_at_ms + 1000000000",
        "UPDATE approvals SET requested_by = 'nobody'",
        "INSERT INTO approval_votes (approval_id, principal, decision, at_ms, why, plan_hash)"
        " SELECT id, 'op1', 'approve', 5, '', plan_hash FROM approvals",
    ],
)
async def test_what_was_bent_cannot_be_approved_and_ends_in_time(
    store: ContractStore, statement: str
) -> None:
    held = await waits(store, asked(needed=2))
    await store.sql(statement)
    assert not (await approval(store)).holds
    assert (await vote(store, held, "op2")).refused is Reason.SECURITY_SEAL_INVALID
    assert await status(store) == "PENDING_APPROVAL"
    (ended,) = await swept(store, T0 + WAIT_MS)
    assert ended.reason is Reason.HITL_TIMEOUT_FAIL_CLOSED


async def test_a_run_whose_approval_was_taken_away_does_not_wait_for_ever(store: ContractStore) -> None:
    await waits(store)
    await store.sql("DELETE FROM approvals")
    assert await store.vote(NewVote("apr-r1", "op1", "approve", "", "", DIGEST, audit_event()), LATER) is None
    (ended,) = await swept(store, T0 + WAIT_MS)
    assert ended.reason is Reason.HITL_TIMEOUT_FAIL_CLOSED


async def test_a_run_that_was_changed_while_it_waited_ends_when_it_is_approved(store: ContractStore) -> None:
    held = await waits(store)
    await store.sql("UPDATE runs SET args_json = ? WHERE run_id = 'r1'", b'{"n":1000}')
    decided = await vote(store, held)
    assert (decided.refused, decided.approval.status) == (Reason.SECURITY_SEAL_INVALID, "CANCELLED")
    assert (await shown(store))["reason"] == "security_seal_invalid"


async def test_a_replay_cannot_be_set_going_by_hand(store: ContractStore) -> None:
    for number, statement in enumerate((
        "UPDATE replay_runs SET status = 'running'",
        "UPDATE replay_runs SET status = 'running', approval_id = ''",
        "UPDATE approvals SET status = 'APPROVED'",
    )):  # fmt: skip
        run_id = f"x{number}"
        await waiting_replay(store, run_id)
        await store.sql(statement)
        (started,) = await store.start_replays(
            [start_of(f"dlq-{run_id}", f"{run_id}-2", forced=True)], T0 + 300
        )
        assert (started.run_id, started.reason) == ("", "security_seal_invalid"), statement


@pytest.mark.parametrize("what", ["approvals SET status = 'PENDING'", "approvals SET detail_json = '{}'",
                                  "approval_votes SET decision = 'reject'", "approval_votes SET why = ''"])  # fmt: skip
async def test_the_database_itself_refuses_to_change_what_is_decided(store: ContractStore, what: str) -> None:
    await vote(store, await waits(store))
    with pytest.raises(Exception, match="immutable"):
        await store.sql(f"UPDATE {what}")


async def test_seals_of_approvals_can_be_renewed(open_store: Open) -> None:
    """Under another secret, what was decided is decided still."""
    before = await open_store(seals=Seals(SECRET_BEFORE))
    await vote(before, await waits(before))
    await before.aclose()
    both = await open_store(seals=Seals(SECRET, SECRET_BEFORE))
    for _ in range(3):
        await both.renew_seals(100, LATER)
    await both.aclose()
    after = await open_store(seals=SEALS)
    assert (await approval(after)).holds
    assert await claimed(after, now_ms=LATER) == ["r1"]


# -- twice, and forgotten


async def test_a_vote_whose_commit_nobody_knew_of_counts_once(open_store: Open) -> None:
    store = await open_store(twice=True)
    held = await waits(store, asked(needed=2))
    assert (await vote(store, held, "op1")).refused is None
    decided = await vote(store, held, "op2")
    assert (decided.refused, decided.approval.status) == (None, "APPROVED")
    held = await waits(store, asked("r2"))
    assert [each.run_id for each in (await vote(store, held, "op2", "reject")).ended] == ["r2"]
    actions = [event["action"] for event in await store.audit_events(9)]
    assert actions.count("approval_approved") == 2
    assert actions.count("approval_rejected") == 1


async def test_approvals_are_listed_and_forgotten_with_their_runs(store: ContractStore) -> None:
    await vote(store, await waits(store), "op1", "reject")
    await waits(store, asked("r2", tenant="u"))
    every = await store.approvals(ApprovalFilter())
    assert {each.subject_id for each in every} == {"r1", "r2"}
    assert [each.id for each in await store.approvals(ApprovalFilter(tenant="u"))] == ["apr-r2"]
    assert [each.id for each in await store.approvals(ApprovalFilter(status="REJECTED"))] == ["apr-r1"]
    assert await store.tenant_of_approval("apr-r2") == "u"
    assert await store.prune(LATER + 1, 10) == 1
    assert [each.id for each in await store.approvals(ApprovalFilter())] == ["apr-r2"]
    assert await store.sql("SELECT * FROM approval_votes") == []
