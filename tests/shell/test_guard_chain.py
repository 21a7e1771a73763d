"""The chain of guards in front of every call, on real stores: what is sent, and which reason refuses it."""

from __future__ import annotations

import itertools
import math
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from tests.support.config_text import strong
from tests.support.memory_world import EPOCH_MS, MemoryNetwork, MemoryWorld, quiet_observer
from tests.support.store_contract import STORES, ContractStore, Open, audit_event

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.guard.access import Openings
from fairlead.proxy.guard.call_rates import CallRates
from fairlead.proxy.guard.callers import Callers, SignedCallers
from fairlead.proxy.guard.chain import ANYBODY, Admitted, Chain, NonceLimits
from fairlead.proxy.guard.modes import Mode, Modes
from fairlead.proxy.guard.operator_keys import OperatorKeys, hash_of, new_key
from fairlead.proxy.ops.endpoints import ENDPOINTS
from fairlead.proxy.rollout.controls import RolloutControls
from fairlead.proxy.rollout.dispatch_rollout import DispatchRollout, RolloutMode
from fairlead.proxy.store.records import OperatorKey
from fairlead.runtime.gcra import Limit
from fairlead.runtime.http.message import Request
from fairlead.runtime.request_signing import sign, signing_keys

pytestmark = pytest.mark.parametrize("store_kind", STORES[1:], indirect=True)

KEY = strong("operator")
CURRENT, PREVIOUS, STRANGE = (
    signing_keys([bytes.fromhex(strong(name))])[0]
    for name in ("current hmac", "previous hmac", "strange hmac")
)
SKEW_MS, TTL_MS = 300_000, 600_000
BODY = b'{"command": "a:b", "tenant": "acme"}'
BY_NAME = {endpoint.name: endpoint for endpoint in ENDPOINTS}


class Now(MemoryWorld):
    """A world whose clock the test sets."""

    at_ms = EPOCH_MS

    def wall_ms(self) -> int:
        return self.at_ms


class Broken:
    """An engine whose database is gone."""

    shared = False

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def write(self, job: Any) -> Any:
        await trio.lowlevel.checkpoint()
        raise self._error

    read = write

    def waiting(self) -> int:
        return 0

    async def aclose(self) -> None: ...


@dataclass
class Gate:
    """A chain with what it stands on."""

    world: Now
    store: ContractStore
    observer: Any
    chain: Chain

    async def admit(
        self,
        name: str = "dispatch",
        headers: Mapping[str, str] | None = None,
        *,
        body: bytes = BODY,
        query: str = "",
        method: str = "",
        path: str = "",
        peer: str = "10.0.0.9",
        public: bool = False,
    ) -> Admitted:
        """One call, served at once: what is submitted uses its nonce up."""
        surface = BY_NAME[name]
        request = Request(
            method or surface.method, path or surface.path, query,
            [(key.encode(), value.encode("latin-1")) for key, value in (headers or {}).items()], body, peer, "c-1",
        )  # fmt: skip
        admitted = await self.chain.admit(surface, request, public=public)
        if admitted.nonce is not None:
            await self.chain.use_up(admitted.nonce)
        return admitted

    async def refusal(self, *arguments: Any, **more: Any) -> Reason | None:
        try:
            await self.admit(*arguments, **more)
        except Refused as refused:
            return refused.reason
        return None

    def signed(
        self,
        nonce: str,
        *,
        key: Any = CURRENT,
        method: str = "POST",
        target: str = "/api/dispatch",
        body: bytes = BODY,
        ts_ms: int | None = None,
    ) -> dict[str, str]:
        ts_ms = self.world.at_ms if ts_ms is None else ts_ms
        return {"x-signature": sign(key, method, target, body, ts_ms, nonce.ljust(16, "-"))}

    def observed(self) -> dict[str, int]:
        return {
            reason: count for family in self.chain.observed().values() for reason, count in family.items()
        }


Make = Callable[..., Any]


@pytest.fixture
def make(open_store: Open) -> Make:
    seeds = itertools.count(1)  # processes draw different ids

    async def make_gate(
        modes: Modes = Modes(Mode.ENFORCE, Mode.ENFORCE),  # noqa: B008 - frozen
        *,
        nonces_max: int = 1_000,
        limit: Limit = Limit(5, 60_000),  # noqa: B008 - frozen
        openings: Openings = Openings(reads=True),  # noqa: B008 - frozen
        store: Any = None,
        load: bool = True,
        rollout: RolloutControls | None = None,
    ) -> Gate:
        world = Now(MemoryNetwork(), next(seeds))
        observer = quiet_observer(world)
        store = store or await open_store()
        callers = Callers(
            world,
            observer,
            store,
            OperatorKeys([KEY]),
            openings,
            None,
            SignedCallers([CURRENT, PREVIOUS], SKEW_MS),
        )
        rates = CallRates(world, observer, store, limit)
        if load:
            await rates.load()
        limits = NonceLimits(TTL_MS, nonces_max)
        chain = Chain(world, observer, store, callers, rates, modes, limits, rollout)
        return Gate(world, store, observer, chain)

    return make_gate


@pytest.fixture
async def gate(make: Make) -> Gate:
    made: Gate = await make()
    return made


# -- authentication and integrity

UNSIGNED_CALL: dict[str, str] = {"x-ops-key": KEY}
ATTACKS: list[tuple[str, Callable[[Gate], tuple[dict[str, str], dict[str, Any]]], Reason]] = [
    ("nothing is sent", lambda gate: ({}, {}), Reason.UNAUTHENTICATED),
    ("a key that is not known", lambda gate: ({"x-ops-key": strong("other")}, {}), Reason.UNAUTHENTICATED),
    ("a key without a signature", lambda gate: (UNSIGNED_CALL, {}), Reason.SIGNATURE_MISSING),
    ("signed with another secret", lambda gate: (gate.signed("n", key=STRANGE), {}), Reason.SIGNATURE_KEY_UNKNOWN),
    ("another body", lambda gate: (gate.signed("n"), {"body": BODY + b" "}), Reason.SIGNATURE_INVALID),
    ("another tenant in the body", lambda gate: (gate.signed("n"), {"body": BODY.replace(b"acme", b"evil")}),
     Reason.SIGNATURE_INVALID),
    ("another query", lambda gate: (gate.signed("n"), {"query": "dry_run=true"}), Reason.SIGNATURE_INVALID),
    ("another path", lambda gate: (gate.signed("n"), {"name": "dispatch_batch"}), Reason.SIGNATURE_INVALID),
    ("another method", lambda gate: (gate.signed("n", method="PUT"), {}), Reason.SIGNATURE_INVALID),
    ("another spelling of the path", lambda gate: (gate.signed("n"), {"path": "/api/%64ispatch"}),
     Reason.SIGNATURE_INVALID),
    ("a good key beside a bad signature", lambda gate: ({**UNSIGNED_CALL, **gate.signed("n")}, {"body": b"{}"}),
     Reason.SIGNATURE_INVALID),
    ("signed too long ago", lambda gate: (gate.signed("n", ts_ms=gate.world.at_ms - SKEW_MS - 1), {}),
     Reason.SIGNATURE_TIMESTAMP_INVALID),
    ("signed ahead of time", lambda gate: (gate.signed("n", ts_ms=gate.world.at_ms + SKEW_MS + 1), {}),
     Reason.SIGNATURE_TIMESTAMP_INVALID),
    ("nonsense", lambda gate: ({"x-signature": "v1 sig=1"}, {}), Reason.SIGNATURE_MALFORMED),
    ("no signature at all", lambda gate: ({"x-signature": ""}, {}), Reason.SIGNATURE_MALFORMED),
    ("two names of the header", lambda gate: (
        {**gate.signed("n"), "x-transbot-signature": gate.signed("n")["x-signature"]}, {}),
     Reason.SIGNATURE_MALFORMED),
]  # fmt: skip


@pytest.mark.parametrize(
    ("attack", "reason"), [each[1:] for each in ATTACKS], ids=[each[0] for each in ATTACKS]
)
async def test_a_submission_that_is_not_as_it_should_be_is_refused(
    gate: Gate, attack: Callable[[Gate], tuple[dict[str, str], dict[str, Any]]], reason: Reason
) -> None:
    headers, more = attack(gate)
    assert await gate.refusal(more.pop("name", "dispatch"), headers, **more) is reason
    assert await gate.store.sql("SELECT count(*) FROM replay_guards") == [(0,)], (
        "what is not signed fills no table"
    )
    assert gate.observed() == {}


async def test_a_signature_proves_its_caller_and_the_key_before_the_last_rotation_still_does(
    gate: Gate,
) -> None:
    admitted = await gate.admit("dispatch", gate.signed("a"))
    assert (admitted.caller.principal, admitted.caller.reads) == (f"signature:{CURRENT.key_id}", "self")
    admitted = await gate.admit("dispatch", gate.signed("b", key=PREVIOUS))
    assert admitted.caller.principal == f"signature:{PREVIOUS.key_id}"
    admitted = await gate.admit("dispatch", {**UNSIGNED_CALL, **gate.signed("c")})
    assert admitted.caller.auth.startswith("key:"), "a key says who calls, the signature that it is whole"


# -- replay


async def test_a_signed_request_is_taken_once(gate: Gate) -> None:
    headers = gate.signed("once")
    assert await gate.refusal("dispatch", headers) is None
    assert await gate.refusal("dispatch", headers) is Reason.SECURITY_REPLAY_DETECTED
    again = gate.signed("once", body=b"{}")
    assert await gate.refusal("dispatch", again, body=b"{}") is Reason.SECURITY_REPLAY_DETECTED, (
        "nor for another body"
    )
    other = gate.signed("once", key=PREVIOUS)
    assert await gate.refusal("dispatch", other) is None, "a nonce is its key's"


async def test_a_signed_request_is_taken_once_in_the_whole_time_that_it_is_valid(make: Make) -> None:
    """The ancestor remembered for less time than it believed, so anything could be sent again later."""
    gate = await make()
    began_ms = gate.world.at_ms
    headers = gate.signed(
        "n", ts_ms=began_ms + SKEW_MS
    )  # signed with a clock that is ahead as far as it may be
    assert await gate.refusal("dispatch", headers) is None
    for at_ms in (began_ms + SKEW_MS, began_ms + 2 * SKEW_MS):
        another = await make(store=gate.store)  # without what the first process remembers by itself
        another.world.at_ms = at_ms
        await gate.store.prune_guards(at_ms, 1_000, apply=True)
        assert await another.refusal("dispatch", headers) is Reason.SECURITY_REPLAY_DETECTED
    another.world.at_ms += 1
    assert await another.refusal("dispatch", headers) is Reason.SIGNATURE_TIMESTAMP_INVALID


async def test_another_process_knows_what_was_taken(make: Make) -> None:
    one = await make()
    headers = one.signed("n")
    assert await one.refusal("dispatch", headers) is None
    two = await make(store=one.store)
    assert await two.refusal("dispatch", headers) is Reason.SECURITY_REPLAY_DETECTED


async def test_a_full_table_refuses_and_lets_nothing_old_pass(make: Make) -> None:
    """The ancestor forgot the oldest nonce to make room: flood it, and send the first request again."""
    gate = await make(nonces_max=100)
    first = gate.signed("0")
    assert await gate.refusal("dispatch", first) is None
    for number in range(1, 100):
        assert await gate.refusal("dispatch", gate.signed(str(number))) is None
    another = await make(store=gate.store, nonces_max=100)
    for number in range(100, 110):
        refused = await another.refusal("dispatch", another.signed(str(number)))
        assert refused is Reason.SECURITY_REPLAY_GUARD_UNAVAILABLE
    assert await another.refusal("dispatch", first) is Reason.SECURITY_REPLAY_DETECTED
    another.world.at_ms += TTL_MS + 1
    assert await another.refusal("dispatch", another.signed("later")) is None


@pytest.mark.parametrize(
    "error",
    [sqlite3.OperationalError("disk I/O error"), OSError("gone"), Refused(Reason.STORE_UNAVAILABLE, "down")],
)
async def test_a_store_that_cannot_tell_refuses(make: Make, error: Exception) -> None:
    gate = await make(store=ContractStore(Broken(error), "A"), load=False)
    assert await gate.refusal("dispatch", gate.signed("a")) is Reason.SECURITY_REPLAY_GUARD_UNAVAILABLE
    target = {"method": "POST", "target": "/api/runs/{id}/cancel"}
    headers = {**UNSIGNED_CALL, **gate.signed("b", **target)}
    assert await gate.refusal("run_cancel", headers) is Reason.SECURITY_REPLAY_GUARD_UNAVAILABLE


async def test_any_signed_call_is_taken_once_and_a_bad_signature_is_refused_anywhere(gate: Gate) -> None:
    headers = {**UNSIGNED_CALL, **gate.signed("n", target="/api/runs/{id}/cancel")}
    assert await gate.refusal("run_cancel", headers) is None
    assert await gate.refusal("run_cancel", headers) is Reason.SECURITY_REPLAY_DETECTED
    forged = {**UNSIGNED_CALL, **gate.signed("m")}
    assert await gate.refusal("run_cancel", forged) is Reason.SIGNATURE_INVALID
    assert await gate.refusal("run_cancel", UNSIGNED_CALL) is None, "only submissions have to be signed"


# -- modes


@pytest.mark.parametrize(
    ("headers", "reasons"),
    [
        ({}, ["UNAUTHENTICATED", "SIGNATURE_MISSING"]),
        ({"x-ops-key": "wrong"}, ["UNAUTHENTICATED", "SIGNATURE_MISSING"]),
        ({"x-signature": "v2 nonsense"}, ["SIGNATURE_MALFORMED"]),
        ({"x-ops-key": KEY}, ["SIGNATURE_MISSING"]),
    ],
)
async def test_what_is_observed_is_counted_and_passes(
    make: Make, headers: dict[str, str], reasons: list[str]
) -> None:
    gate = await make(Modes(Mode.OBSERVE, Mode.OBSERVE, EPOCH_MS + 1_000))
    admitted = await gate.admit("dispatch", headers)
    assert gate.observed() == dict.fromkeys(reasons, 1)
    assert (admitted.caller == ANYBODY) == (headers.get("x-ops-key") != KEY)
    assert gate.chain.observed_lately.within(300, trio.current_time()) == gate.chain.observed()
    gate.world.at_ms += 1_000
    assert await gate.refusal("dispatch", headers) is not None, "its time is over"


def canary(**more: Any) -> RolloutControls:
    return RolloutControls(DispatchRollout(**more), explains=True)


async def test_the_cohort_is_guarded_and_the_rest_observed(make: Make) -> None:
    """A caller counts by the principal that was proven, else by the address: a name alone is no way out."""
    known = OperatorKeys([KEY]).identify(KEY, EPOCH_MS, 0.0)
    assert isinstance(known, Identity)
    principal = known.principal
    gate = await make(rollout=canary(percent=0, allowlist={principal}))
    assert await gate.refusal("dispatch", UNSIGNED_CALL) is Reason.SIGNATURE_MISSING, "it is in the cohort"
    assert gate.observed() == {}
    admitted = await gate.admit("dispatch", {})
    assert admitted.caller == ANYBODY
    assert gate.observed() == {"UNAUTHENTICATED": 1, "SIGNATURE_MISSING": 1}
    assert ("x-rollout-decision", "observed; step=percent; bucket=") == (
        admitted.headers[0][0],
        admitted.headers[0][1].rstrip("0123456789"),
    )
    gate = await make(store=gate.store, rollout=canary(percent=0, allowlist={"address:10.0.0.9"}))
    assert await gate.refusal("dispatch", {}) is Reason.UNAUTHENTICATED


async def test_off_observes_everybody_and_nothing_but_submissions(make: Make) -> None:
    gate = await make(rollout=canary(mode=RolloutMode.OFF))
    assert (await gate.admit("dispatch", {})).caller == ANYBODY
    assert await gate.refusal("budgets_save", {}) is Reason.UNAUTHENTICATED


async def test_what_the_rollout_does_not_enforce_is_enforced_once_observing_ends(make: Make) -> None:
    gate = await make(
        Modes(Mode.ENFORCE, Mode.ENFORCE, EPOCH_MS + 1_000), rollout=canary(mode=RolloutMode.OFF)
    )
    assert await gate.refusal("dispatch", {}) is None
    gate.world.at_ms += 1_000
    assert await gate.refusal("dispatch", {}) is Reason.UNAUTHENTICATED


async def test_observing_counts_replays_and_a_full_table_too(make: Make) -> None:
    """Or to observe would be no way back where the guard itself is in trouble."""
    gate = await make(Modes(Mode.ENFORCE, Mode.OBSERVE), nonces_max=100)
    headers = {**UNSIGNED_CALL, **gate.signed("n")}
    assert await gate.refusal("dispatch", headers) is None
    assert await gate.refusal("dispatch", headers) is None
    assert gate.observed() == {"security_replay_detected": 1}
    for number in range(100):
        await gate.admit("dispatch", {**UNSIGNED_CALL, **gate.signed(str(number))})
    assert gate.observed() == {"security_replay_detected": 1, "security_replay_guard_unavailable": 1}


async def test_a_signature_that_proves_its_caller_is_never_only_observed(make: Make) -> None:
    gate = await make(Modes(Mode.ENFORCE, Mode.OBSERVE))
    headers = gate.signed("n")
    assert await gate.refusal("dispatch", headers) is None
    assert await gate.refusal("dispatch", headers) is Reason.SECURITY_REPLAY_DETECTED
    assert gate.observed() == {}


async def test_off_checks_nothing_of_submissions_and_everything_of_the_rest(make: Make) -> None:
    gate = await make(Modes(Mode.OFF, Mode.OFF))
    assert (await gate.admit("dispatch")).caller == ANYBODY
    assert (await gate.admit("dispatch", {"x-signature": "nonsense"})).caller == ANYBODY
    assert await gate.refusal("runs") is Reason.UNAUTHENTICATED
    assert await gate.refusal("run_cancel") is Reason.UNAUTHENTICATED
    assert gate.observed() == {}


# -- rates


async def test_operators_calls_are_limited_for_each_caller_and_address(gate: Gate) -> None:
    headers = UNSIGNED_CALL
    said = [dict((await gate.admit("runs", headers)).headers) for _ in range(5)]
    assert [each["ratelimit"] for each in said] == [
        f'"ops";r={left};t={60 - 12 * left}' for left in (4, 3, 2, 1, 0)
    ]
    assert said[0]["ratelimit-policy"] == '"ops";q=5;w=60'
    with pytest.raises(Refused) as refused:
        await gate.admit("runs", headers)
    assert (refused.value.reason, refused.value.retry_after_s) == (Reason.OPS_RATE_LIMITED, 12)
    assert dict(refused.value.headers)["ratelimit"] == '"ops";r=0;t=60'  # type: ignore[attr-defined]
    assert await gate.refusal("runs", headers, peer="10.0.0.10") is None
    assert await gate.refusal("status", {}, peer="127.0.0.1") is None, (
        "nobody in particular, from this machine"
    )
    gate.world.at_ms += 12_000
    assert await gate.refusal("runs", headers) is None


async def test_submissions_and_probes_are_not_operators_calls(gate: Gate) -> None:
    for number in range(20):
        assert await gate.refusal("dispatch", gate.signed(str(number))) is None
        assert await gate.refusal("run", UNSIGNED_CALL) is None
        assert await gate.refusal("health", {}) is None


async def test_nobody_unauthenticated_is_counted(gate: Gate) -> None:
    for number in range(20):
        assert await gate.refusal("runs", {}, peer=f"10.1.0.{number}") is Reason.UNAUTHENTICATED
    assert len(gate.chain.rates.table) == 0


async def test_who_may_not_is_counted_all_the_same(gate: Gate) -> None:
    headers = gate.signed("n", method="GET", target="/api/nodes", body=b"")
    assert await gate.refusal("nodes", headers, body=b"") is Reason.SECURITY_READ_TENANT_MISMATCH
    assert len(gate.chain.rates.table) == 1


async def test_reads_go_on_without_a_store_and_changes_do_not(make: Make) -> None:
    error = sqlite3.OperationalError("disk I/O error")
    gate = await make(store=ContractStore(Broken(error), "A"), load=False)
    assert await gate.refusal("status", UNSIGNED_CALL) is None
    with pytest.raises(sqlite3.OperationalError):
        await gate.admit("node_drain", UNSIGNED_CALL)
    for _ in range(3):
        await gate.admit("status", UNSIGNED_CALL)
    assert await gate.refusal("status", UNSIGNED_CALL) is Reason.OPS_RATE_LIMITED, (
        "reads are counted without it too"
    )


async def test_changes_are_counted_by_all_processes_together(make: Make) -> None:
    one = await make(limit=Limit(5, 3_600_000))
    two = await make(limit=Limit(5, 3_600_000), store=one.store)
    for gate in (one, two, one, two, one):
        assert await gate.refusal("node_drain", UNSIGNED_CALL) is None
    assert await two.refusal("node_drain", UNSIGNED_CALL) is Reason.OPS_RATE_LIMITED
    assert await one.refusal("node_drain", UNSIGNED_CALL) is Reason.OPS_RATE_LIMITED


async def test_what_was_counted_outlives_the_process(make: Make) -> None:
    one = await make(limit=Limit(5, 3_600_000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.chain.run)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(5):
            assert await one.refusal("status", UNSIGNED_CALL) is None
        nursery.cancel_scope.cancel()  # it tells the store once more
    two = await make(limit=Limit(5, 3_600_000), store=one.store)
    two.world.at_ms = one.world.at_ms
    assert await two.refusal("status", UNSIGNED_CALL) is Reason.OPS_RATE_LIMITED
    await two.store.clear_rate_limits("ops:", audit_event("rate_limits_cleared"))
    two.chain.rates.clear("ops:")
    assert await two.refusal("status", UNSIGNED_CALL) is None


# -- authorization


@pytest.mark.parametrize("name", [each.name for each in ENDPOINTS if each.fleet])
async def test_what_concerns_all_tenants_is_closed_to_a_caller_of_one(gate: Gate, name: str) -> None:
    key_id, key = new_key(bytes(8), bytes(32))
    row = OperatorKey(key_id, hash_of(key), "admin", EPOCH_MS, "me", tenant="acme")
    gate.chain.callers.keys.read([row], math.inf)
    reading = BY_NAME[name].method == "GET"
    expected = Reason.SECURITY_READ_TENANT_MISMATCH if reading else Reason.SECURITY_TENANT_MISMATCH
    assert await gate.refusal(name, {"x-ops-key": key}) is expected
