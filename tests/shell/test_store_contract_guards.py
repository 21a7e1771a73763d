"""The store's contract: nonces of signed requests are used once, and are counted without being looked at."""

from __future__ import annotations

from collections import Counter

import pytest
import trio
from tests.support.store_contract import STORES, T0, ContractStore, Open, new

from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.store.records import Accepted, KeyReused, NonceReservation, RunStatus

VALID_MS = 600_000


def nonce(name: str, by: str = "", *, nonces_max: int = 100, at_ms: int = T0) -> NonceReservation:
    return NonceReservation(f"k:{name}", by or f"job of {name}", at_ms + VALID_MS, nonces_max)


async def reserve(store: ContractStore, asked: NonceReservation, now_ms: int = T0) -> Reason | None:
    try:
        await store.reserve_nonce(asked, now_ms)
    except Refused as refused:
        return refused.reason
    return None


async def held(store: ContractStore) -> int:
    """What the counter says, which must be what there is."""
    ((rows,),) = await store.sql("SELECT count(*) FROM replay_guards")
    ((counted,),) = await store.sql("SELECT COALESCE(sum(nonces), 0) FROM replay_guard_totals")
    assert rows == counted
    return int(rows)


async def test_a_nonce_is_used_once(store: ContractStore) -> None:
    assert await reserve(store, nonce("a")) is None
    assert await reserve(store, nonce("a", "another")) is Reason.SECURITY_REPLAY_DETECTED
    assert await reserve(store, nonce("b")) is None
    assert await held(store) == 2


async def test_a_used_nonce_stays_used_after_a_restart(open_store: Open) -> None:
    store = await open_store()
    await store.accept([new("r1")], nonce("a"), T0)
    await store.aclose()
    again = await open_store()
    assert await reserve(again, nonce("a", "another")) is Reason.SECURITY_REPLAY_DETECTED


async def test_a_replayed_acceptance_makes_no_run(store: ContractStore) -> None:
    assert await store.accept([new("r1")], nonce("a", "1"), T0) == [Accepted("r1", RunStatus.PENDING)]
    with pytest.raises(Refused) as refused:
        await store.accept([new("r2")], nonce("a", "2"), T0)
    assert refused.value.reason is Reason.SECURITY_REPLAY_DETECTED
    assert await store.status_counts() == {"PENDING": 1}


async def test_an_idempotency_key_finds_its_run_under_a_fresh_nonce_only(store: ContractStore) -> None:
    run = new("r1", idempotency_key="i", payload_hash=b"h")
    await store.accept([run], nonce("a"), T0)
    again = new("r2", idempotency_key="i", payload_hash=b"h")
    assert await store.accept([again], nonce("b"), T0) == [Accepted("r1", RunStatus.PENDING, replayed=True)]
    with pytest.raises(Refused):
        await store.accept([again], nonce("a", "another"), T0)
    other = new("r3", idempotency_key="i", payload_hash=b"other")
    assert await store.accept([other], nonce("c"), T0) == [KeyReused("r1")]
    assert await held(store) == 3, "what was refused used its nonce up too"


async def test_a_full_table_refuses_and_forgets_nothing_that_counts(store: ContractStore) -> None:
    for number in range(5):
        assert await reserve(store, nonce(str(number), nonces_max=5, at_ms=T0 + number)) is None
    full = nonce("more", nonces_max=5)
    assert await reserve(store, full, T0 + VALID_MS) is Reason.SECURITY_REPLAY_GUARD_UNAVAILABLE
    for number in range(5):
        replayed = await reserve(store, nonce(str(number), "another", nonces_max=5))
        assert replayed is Reason.SECURITY_REPLAY_DETECTED, "a full table still knows what it holds"
    assert await held(store) == 5
    with pytest.raises(Refused) as refused:
        await store.accept([new("r1")], full, T0)
    assert refused.value.reason is Reason.SECURITY_REPLAY_GUARD_UNAVAILABLE
    assert await store.status_counts() == {}


async def test_a_full_table_makes_room_of_what_expired(store: ContractStore) -> None:
    for number in range(5):
        await reserve(store, nonce(str(number), nonces_max=5, at_ms=T0 + number))
    assert await reserve(store, nonce("more", nonces_max=5), T0 + VALID_MS + 2) is None
    assert await held(store) == 4


async def test_rows_that_an_operator_deletes_are_counted(store: ContractStore) -> None:
    """Runbook 002's statement. A counter beside the table would have gone on saying that it is full."""
    for number in range(6):
        await reserve(store, nonce(str(number), at_ms=T0 + number))
    await store.sql(f"DELETE FROM replay_guards WHERE expires_at < {T0 + VALID_MS + 3}")
    assert await held(store) == 3
    assert await store.prune_guards(T0 + VALID_MS + 5, 100, apply=True) == 2
    assert await held(store) == 1


@pytest.mark.parametrize("store_kind", STORES[-1:], indirect=True)
async def test_two_proxies_take_one_nonce_once(open_store: Open) -> None:
    one, two = await open_store(), await open_store()
    outcomes: list[Reason | None] = []

    async def take(store: ContractStore, by: str, name: str) -> None:
        outcomes.append(await reserve(store, nonce(name, by)))

    for number in range(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take, one, "one", str(number))
            nursery.start_soon(take, two, "two", str(number))
    assert outcomes.count(None) == 20
    assert outcomes.count(Reason.SECURITY_REPLAY_DETECTED) == 20
    assert await held(one) == 20


@pytest.mark.parametrize("store_kind", STORES[-1:], indirect=True)
async def test_a_table_that_was_truncated_is_empty(store: ContractStore) -> None:
    await reserve(store, nonce("a"))
    await store.sql("TRUNCATE replay_guards")
    assert await held(store) == 0


async def test_ten_thousand_nonces_at_once_are_taken_once_each_within_the_bound(store: ContractStore) -> None:
    """Every fourth is somebody's a second time, and there is room for a third. Whoever finds none is refused; nothing
    is forgotten for it."""
    outcomes: Counter[Reason | None] = Counter()
    taken: Counter[str] = Counter()

    async def take(name: str, by: str) -> None:
        outcome = await reserve(store, nonce(name, by, nonces_max=3_000))
        outcomes[outcome] += 1
        taken[name] += outcome is None

    async with trio.open_nursery() as nursery:
        for number in range(10_000):
            nursery.start_soon(take, str(number - number % 4 if number % 4 == 3 else number), f"job {number}")
    assert max(taken.values()) == 1
    assert outcomes[None] == await held(store) == 3_000
    assert set(outcomes) == {None, Reason.SECURITY_REPLAY_DETECTED, Reason.SECURITY_REPLAY_GUARD_UNAVAILABLE}
    assert outcomes.total() == 10_000


async def test_who_asks_together_is_answered_each_for_its_own(store: ContractStore) -> None:
    """While one is under way the others gather: new ones, one that is known, and two of the same nonce."""
    await store.reserve_nonce(nonce("old"), T0)
    outcomes: dict[str, Reason | None] = {}

    async def take(name: str, by: str) -> None:
        outcomes[by] = await reserve(store, nonce(name, by))

    async with trio.open_nursery() as nursery:
        for by, name in {"1": "a", "2": "b", "3": "old", "4": "c"}.items():
            nursery.start_soon(take, name, by)
        for by in ("5", "6"):
            nursery.start_soon(take, "d", by)
    both = {outcomes.pop("5"), outcomes.pop("6")}
    assert both == {None, Reason.SECURITY_REPLAY_DETECTED}
    assert outcomes == {"1": None, "2": None, "3": Reason.SECURITY_REPLAY_DETECTED, "4": None}
    assert await held(store) == 5


async def test_whoever_gives_up_waiting_leaves_the_others_their_answers(store: ContractStore) -> None:
    answered: list[Reason | None] = []

    async def take(name: str, scope: trio.CancelScope) -> None:
        with scope:
            answered.append(await reserve(store, nonce(name)))

    scopes = [trio.CancelScope() for _ in range(20)]
    async with trio.open_nursery() as nursery:
        for number, scope in enumerate(scopes):
            nursery.start_soon(take, str(number), scope)
        await trio.sleep(0)
        for scope in scopes[::2]:
            scope.cancel()
    assert answered.count(None) >= 10
    assert await reserve(store, nonce("after")) is None
