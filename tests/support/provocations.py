"""How a reason is provoked and judged against real processes, and which test file owes the proof of which reason.

Each provocation is judged by the same marks: its counter in /metrics rises by exactly as much as was done, the log
names it, whoever did it is told, and others go on being served. Each test file keeps its own `Provocations`.

What neither table below names is owed by test_reject_reasons.py, so a reason that is added later is missed there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from tests.support.processes import PROXY, Answer, Fleet, metric_in, until

from fairlead.protocol.reasons import Family, Reason, traits

# What test_reject_reasons_of_runs.py provokes.
OF_RUNS: Final = frozenset({
    Reason.CALLBACK_DEAD, Reason.CALLBACK_EVENT_CONFLICT, Reason.CALLBACK_EVENT_INVALID,
    Reason.CALLBACK_NOT_DELIVERED, Reason.CALLBACK_SIGNATURE_INVALID, Reason.CALLBACK_TIMESTAMP_INVALID,
    Reason.CALLBACK_TOKEN_INVALID, Reason.CALLBACK_URL_REFUSED, Reason.CIRCUIT_OPEN, Reason.CLIENT_LINK_LIMIT,
    Reason.CLIENT_UNKNOWN, Reason.DLQ_BUDGET_DAILY, Reason.DLQ_BUDGET_MONTHLY, Reason.DLQ_MAX_REPLAYS,
    Reason.DLQ_NODE_PAUSED, Reason.DLQ_NOT_QUEUED, Reason.DLQ_NOT_TRANSIENT, Reason.DLQ_PLAN_CHANGED,
    Reason.DLQ_RECORD_UNKNOWN, Reason.DLQ_REPLAY_EMPTY, Reason.DLQ_REPLAY_OFF, Reason.DLQ_REPLAY_STOPPED,
    Reason.DLQ_TENANT_PAUSED, Reason.DLQ_TOO_SOON, Reason.DLQ_TOO_YOUNG, Reason.REPLAY_RATE_LIMITED,
    Reason.RUN_ALREADY_ENDED, Reason.RUN_CANCELLED, Reason.RUN_ID_TAKEN, Reason.RUN_NOT_FAILED,
    Reason.RUN_NOT_OWNED, Reason.SCHEDULE_INVALID, Reason.SCOPE_MISSING, Reason.TENANT_DRAINING,
})  # fmt: skip

# What test_callers.py provokes.
OF_CALLERS: Final = frozenset({
    Reason.CREDENTIALS_AMBIGUOUS, Reason.JWKS_UNAVAILABLE, Reason.JWT_ALGORITHM_REFUSED, Reason.JWT_AUDIENCE_WRONG,
    Reason.JWT_CLAIM_INVALID, Reason.JWT_CLAIM_MISSING, Reason.JWT_DUPLICATE_NAMES, Reason.JWT_EXPIRED,
    Reason.JWT_ISSUER_WRONG, Reason.JWT_KEY_UNKNOWN, Reason.JWT_MALFORMED, Reason.JWT_NOT_YET_VALID,
    Reason.JWT_SIGNATURE_INVALID, Reason.JWT_TOO_DEEP, Reason.JWT_TOO_LARGE, Reason.OPERATOR_KEY_EXPIRED,
    Reason.OPERATOR_KEY_REVOKED, Reason.OPERATOR_KEY_UNKNOWN, Reason.SIGNATURE_INVALID,
    Reason.SIGNATURE_KEY_UNKNOWN, Reason.SIGNATURE_MALFORMED, Reason.SIGNATURE_MISSING,
    Reason.SIGNATURE_TIMESTAMP_INVALID,
})  # fmt: skip

# What test_guards.py provokes.
OF_GUARDS: Final = frozenset({
    Reason.OPS_RATE_LIMITED, Reason.PERMISSION_DENIED, Reason.SECURITY_READ_TENANT_MISMATCH,
    Reason.SECURITY_REPLAY_DETECTED, Reason.SECURITY_REPLAY_GUARD_UNAVAILABLE, Reason.SECURITY_TENANT_MISMATCH,
})  # fmt: skip

# What test_approvals.py provokes.
OF_APPROVALS: Final = frozenset({
    Reason.APPROVAL_AGENT_FORBIDDEN, Reason.APPROVAL_ALREADY_VOTED, Reason.APPROVAL_OWN,
    Reason.APPROVAL_PLAN_CHANGED, Reason.APPROVAL_REJECTED, Reason.APPROVAL_UNKNOWN,
    Reason.HITL_TERMINAL_STATE_IMMUTABLE, Reason.HITL_TIMEOUT_FAIL_CLOSED,
})  # fmt: skip

# What test_reject_reasons_of_clients.py provokes.
OF_CLIENTS: Final = frozenset({
    Reason.ADDRESS_DENIED, Reason.DISPATCH_DISABLED, Reason.JOIN_RATE_LIMIT, Reason.PROXY_HEADER_MALFORMED,
    Reason.PROXY_HEADER_UNTRUSTED,
})  # fmt: skip

# What test_routing.py provokes.
OF_ROUTING: Final = frozenset({Reason.HTTP_PATH_AMBIGUOUS, Reason.NODE_DRAINED, Reason.ROUTE_DENIED})

# What test_tls.py provokes.
OF_TLS: Final = frozenset({
    Reason.BACKEND_CERTIFICATE_CHANGED, Reason.BACKEND_CERTIFICATE_REFUSED, Reason.BACKEND_TLS_FAILED,
    Reason.PIN_NOT_WAITING, Reason.TLS_CERTIFICATE_UNUSABLE, Reason.TLS_HANDSHAKE_FAILED,
    Reason.TLS_HANDSHAKE_TIMEOUT, Reason.TLS_HELLO_MALFORMED,
})  # fmt: skip

# What test_transfers.py provokes.
OF_TRANSFERS: Final = frozenset({
    Reason.ALREADY_CONNECTED, Reason.BACKEND_NOT_FOUND, Reason.BACKEND_STATUS_UNKNOWN, Reason.BACKEND_UNAVAILABLE,
    Reason.PLAYER_NOT_ON_NODE, Reason.PLAYER_NOT_READY, Reason.PLAYER_ONLY, Reason.PLAYER_RATE_LIMITED,
    Reason.REFERRAL_REJECTED, Reason.SESSION_UNKNOWN, Reason.TRANSFER_LIMIT, Reason.TRANSFER_TIMEOUT,
    Reason.TRANSFER_TOKEN_REJECTED, Reason.TRANSFER_UNSUPPORTED,
})  # fmt: skip

# What test_minecraft.py provokes.
OF_GAMES: Final = frozenset({
    Reason.GAME_ADDRESS_FORWARDED, Reason.GAME_OPENING_TIMEOUT, Reason.GAME_PACKET_MALFORMED,
    Reason.GAME_TOKEN_MALFORMED, Reason.GAME_VERSION_UNSUPPORTED, Reason.PLAYER_LIMIT, Reason.PLAYER_THROWN_OUT,
    Reason.WAITING_ROOM_FULL, Reason.WAITING_ROOM_TIMEOUT,
})  # fmt: skip

# What these fleets cannot provoke: the test file, under tests, that does, and why not here.
ELSEWHERE: Final[dict[Reason, tuple[str, str]]] = {
    Reason.CLIENT_HANDSHAKE_LIMIT: (
        "unit/proxy/edge/test_edge_admission.py",
        "needs hundreds of half-open clients",
    ),
    Reason.CLIENT_HANDSHAKE_RATE_LIMIT: ("unit/proxy/edge/test_edge_admission.py", "as its neighbour"),
    Reason.PROXY_TOKEN_REJECTED: ("e2e/test_gate_with_nginx.py", "needs a node with a gate"),
    Reason.EDGE_DRAINING: ("shell/test_edge_minecraft.py", "needs a player who waits while the proxy stops"),
    Reason.BACKEND_BUSY: ("shell/test_edge_upstreams.py", "needs a backend that may have one connection"),
    Reason.EDGE_WORKER_LOST: (
        "e2e/test_edge_workers.py",
        "needs a proxy with workers, one of which is killed",
    ),
    Reason.EDGE_WORKERS_BUSY: ("e2e/test_edge_workers.py", "needs a proxy whose workers are all gone"),
    Reason.EDGE_MAIN_SILENT: (
        "shell/test_edge_worker_asking.py",
        "needs a main process that answers nothing",
    ),
    Reason.CONFIGURATION_REFUSED: ("e2e/test_reload.py", "needs a file that is spoilt while the proxy runs"),
    Reason.HANDOVER_FAILED: ("e2e/test_handover.py", "needs a process that takes the sockets and dies"),
    Reason.CONTROL_PLANE_UNAVAILABLE: (
        "shell/test_transfers_in_memory.py",
        "needs a proxy without a control channel, which no node can be asked by",
    ),
    Reason.BACKEND_VERSION_MISMATCH: (
        "shell/test_transfers_in_memory.py",
        "needs nodes of two versions of the game",
    ),
    Reason.REQUEST_SEND_FAILED: (
        "shell/test_transfers_in_memory.py",
        "needs a node whose link is gone while its player still plays there",
    ),
    Reason.CALLBACK_ADDRESS_REFUSED: (
        "shell/test_callbacks.py",
        "needs a name that resolves to an inner address; an address in the URL is refused with the submission",
    ),
    Reason.DLQ_FORCE_FORBIDDEN: (
        "unit/proxy/test_dead_letters_api.py",
        "whoever holds a key that may replay may force it",
    ),
    Reason.OPERATOR_KEY_LIMIT: ("shell/test_store_contract_keys.py", "needs a thousand keys"),
    Reason.SECRET_IN_USE: ("e2e/test_rotation_under_load.py", "needs a rotation under way, in files"),
    Reason.OPERATOR_KEYS_UNAVAILABLE: (
        "unit/proxy/guard/test_operator_keys.py",
        "needs a shared store that is away for a minute",
    ),
    Reason.SECURITY_SEAL_INVALID: ("e2e/test_seals.py", "needs a database that somebody wrote to"),
    Reason.LEASE_TAKEN_OVER: ("e2e/test_two_proxies.py", "needs two proxies on one store"),
    Reason.SECURITY_AUDIT_CHAIN_BROKEN: (
        "shell/test_audit_trail.py",
        "needs the database of a running proxy changed",
    ),
    Reason.AUDIT_FILE_UNWRITABLE: ("shell/test_audit_trail.py", "needs a full disk"),
}


class Provocations:
    """What one test file has provoked so far, and which of its tests have run."""

    def __init__(self) -> None:
        self.reasons: set[Reason] = set()
        self.tests_run: set[str] = set()

    @contextmanager
    def provokes(
        self,
        fleet: Fleet,
        *reasons: Reason,
        times: int = 1,
        process: str = PROXY,
        logged: bool = True,
        serves: Callable[[], object] | None = None,
    ) -> Iterator[None]:
        """What is done inside raises the counter of each of `reasons` by exactly `times`, and harms nobody."""

        def counts() -> dict[Reason, int]:
            text = fleet.exposition(process)
            return {
                each: int(metric_in(text, _counter(each), reason=each.value))
                for each in (*reasons, Reason.INTERNAL_ERROR)
            }

        before = counts()
        yield
        until(
            lambda: all(count - before[each] >= times for each, count in counts().items() if each in reasons),
            f"{', '.join(reasons)} counted {times} times", more=fleet.tails,
        )  # fmt: skip
        (serves or fleet.serves)()
        after = counts()
        risen = {each.value: after[each] - before[each] for each in reasons}
        assert risen == dict.fromkeys((each.value for each in reasons), times), fleet.tails()
        assert after[Reason.INTERNAL_ERROR] == before[Reason.INTERNAL_ERROR], fleet.tails()
        if logged:
            for each in reasons:
                until(
                    lambda each=each: fleet.refusals_logged(each, process), f"a log line with {each}",
                    more=fleet.tails,
                )  # fmt: skip
        self.reasons.update(reasons)


def _counter(reason: Reason) -> str:
    return f"fairlead_{traits(reason).family.value}_reject_total"


def refused(answer: Answer, reason: Reason) -> Answer:
    """The answer is a problem+json that names `reason`, with all that goes with it."""
    assert answer.headers["content-type"] == "application/problem+json", answer
    body = answer.json()
    assert body["reason"] == reason, body
    assert (answer.status, body["status"]) == (traits(reason).status,) * 2
    assert body["type"] == f"urn:fairlead:reason:{reason.value}"
    assert body["correlation_id"] == answer.headers["x-correlation-id"]
    assert body["title"]
    assert ("action" in body) == (traits(reason).family is not Family.EDGE), "what to do is for operators"
    if answer.status in (429, 503):
        assert int(answer.headers["retry-after"]) == body["retry_after"] >= 1
    return answer
