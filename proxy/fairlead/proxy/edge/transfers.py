"""Pure. Transfers of clients between backends: which may begin, where each stands, and how it ends.

    ASKED      the node that has the player was asked to refer it
    REFERRED   it did; the client is on its way back to the proxy
    ARRIVING   the client came with its token, and is being led to the target
    COMPLETED  it plays there
    FAILED     with a reason; a session that is still there plays on where it was

Nothing is assumed: a session counts as moved once its client plays on the target, never before. Invariants: every
transfer has a deadline, and at most `pending_max` are under way; a token opens one session, once, and only while its
transfer is under way; the memory of used tokens holds each for as long as it is good and refuses when it is full.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from fairlead.protocol.reasons import Reason, Reject
from fairlead.proxy.edge.routing import NodeState
from fairlead.proxy.edge.sessions import SessionRow, SessionState
from fairlead.proxy.edge.transfer_token import TransferToken

HISTORY_MAX: Final = 50


class TransferState(StrEnum):
    """Where a transfer stands."""

    ASKED = "ASKED"
    REFERRED = "REFERRED"
    ARRIVING = "ARRIVING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class TransferSettings:
    """`[transfer]`. `host`, `port`: where a client reaches this proxy again; `host_suffix`: a domain whose every name
    leads there, so that a token can be part of the name."""

    timeout_s: float = 30.0
    pending_max: int = 1_000
    host: str = ""
    port: int = 0
    host_suffix: str = ""


@dataclass(frozen=True, slots=True)
class BackendFacts:
    """A backend that the client's listener may use, as far as a transfer goes by it."""

    id: str
    node: str
    state: NodeState
    game_protocol: int = 0  # that its node serves, where it says so


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What counts for a transfer beside the session."""

    control: bool  # the proxy has a control channel
    backends: Mapping[str, BackendFacts]  # by id
    node_linked: bool = True  # the node that has the client
    node_refers: bool = True  # and can refer it


@dataclass(slots=True)
class Transfer:
    """One of them. Times are wall-clock milliseconds, deadlines the loop's seconds."""

    id: str
    session: str
    kind: str
    player: str
    peer: str
    from_backend: str
    from_node: str
    to_backend: str
    by: str
    why: str
    began_at_ms: int
    expires_at_ms: int
    deadline_s: float
    state: TransferState = TransferState.ASKED
    new_session: str = ""
    reason: str = ""
    detail: str = ""
    marks_ms: dict[str, int] = field(default_factory=dict)  # after how long it came to a state

    @property
    def is_over(self) -> bool:
        return self.state in (TransferState.COMPLETED, TransferState.FAILED)

    def row(self) -> dict[str, Any]:
        """As /status and the API show it."""
        return {
            "transfer_id": self.id, "session": self.session, "kind": self.kind, "player": self.player,
            "from": self.from_backend, "to": self.to_backend, "by": self.by, "why": self.why,
            "state": self.state.value, "new_session": self.new_session, "reason": self.reason,
            "detail": self.detail, "began_at_ms": self.began_at_ms, "ms": dict(self.marks_ms),
        }  # fmt: skip


def refusal(row: SessionRow, to: str, around: Surroundings) -> Reject | None:
    """Why a session cannot be transferred now, if so: the first of the reasons, in their order."""
    if not around.control:
        return Reject(Reason.CONTROL_PLANE_UNAVAILABLE, "messaging.enabled is false")
    # An HTTP client between two requests is moved as well as within one.
    ready = (
        (SessionState.PLAYING, SessionState.AUTHENTICATED) if row.kind == "http" else (SessionState.PLAYING,)
    )
    if row.state not in ready or not row.backend:
        under_way = f", transfer {row.transfer_id}" if row.transfer_id else ""
        return Reject(Reason.PLAYER_NOT_READY, f"it is {row.state}{under_way}")
    target = around.backends.get(to)
    if target is None:
        known = ", ".join(sorted(around.backends)[:20]) or "none"
        return Reject(Reason.BACKEND_NOT_FOUND, f"{to[:64]!r}; listener {row.listener} has: {known}")
    if target.id == (
        row.bound or row.backend
    ):  # an HTTP client that was moved goes there with its next request
        return Reject(Reason.ALREADY_CONNECTED, target.id)
    if target.state in ("OFFLINE", "DRAINING"):
        return Reject(Reason.BACKEND_UNAVAILABLE, f"node {target.node} is {target.state}")
    if target.state != "ONLINE":
        return Reject(Reason.BACKEND_STATUS_UNKNOWN, f"node {target.node or '(none)'} was never linked")
    if row.protocol and target.game_protocol and row.protocol != target.game_protocol:
        detail = f"the client speaks {row.protocol}, node {target.node} serves {target.game_protocol}"
        return Reject(Reason.BACKEND_VERSION_MISMATCH, detail)
    return _refusal_of_kind(row, around)


def _refusal_of_kind(row: SessionRow, around: Surroundings) -> Reject | None:
    if row.kind == "http":
        return None
    if row.kind != "minecraft":
        detail = f"a {row.kind} client cannot be told to connect again: the proxy does not read its protocol"
        return Reject(Reason.TRANSFER_UNSUPPORTED, detail)
    if not row.player_name:
        return Reject(Reason.TRANSFER_UNSUPPORTED, "the client named no player, so none could be recognised")
    if not around.node_linked:
        return Reject(Reason.REQUEST_SEND_FAILED, f"node {row.node or '(none)'} has no link here")
    if not around.node_refers:
        detail = f"node {row.node} has neither @node.on_refer nor [rcon]"
        return Reject(Reason.TRANSFER_UNSUPPORTED, detail)
    return None


class Transfers:
    """All that are under way, the last that are not, and the tokens that were used."""

    def __init__(self, settings: TransferSettings, tag: str) -> None:
        self.settings, self._tag = settings, tag
        self.pending: dict[str, Transfer] = {}
        self.history: deque[Transfer] = deque(maxlen=HISTORY_MAX)
        self._used: OrderedDict[str, int] = OrderedDict()  # transfer id -> until when its token is good

    def begin(
        self, transfer_id: str, row: SessionRow, to: str, by: str, why: str, now_s: float, now_ms: int
    ) -> Transfer | Reject:
        """A transfer whose refusal was asked for already."""
        settings = self.settings
        if len(self.pending) >= settings.pending_max:
            return Reject(Reason.TRANSFER_LIMIT, f"{len(self.pending)} are under way")
        made = self.pending[transfer_id] = Transfer(
            transfer_id, row.id, row.kind, row.player_name, row.peer, row.backend, row.node, to, by, why, now_ms,
            now_ms + round(settings.timeout_s * 1000), now_s + settings.timeout_s,
        )  # fmt: skip
        return made

    def token_of(self, transfer: Transfer) -> TransferToken:
        return TransferToken(transfer.id, transfer.session, transfer.to_backend, transfer.expires_at_ms)

    def referred(self, transfer_id: str, node: str, ok: bool, detail: str, now_ms: int) -> Transfer | Reject:
        """What the node says of it. Ends it where the node did not refer."""
        transfer = self.pending.get(transfer_id)
        if transfer is None or transfer.from_node != node:
            return Reject(Reason.FOREIGN_STATEMENT, f"transfer {transfer_id[:64]} is not under way there")
        if not ok:
            if transfer.state is TransferState.ASKED:
                self.fail(transfer, Reason.REFERRAL_REJECTED, detail, now_ms)
            return transfer
        if transfer.state is TransferState.ASKED:  # the client may have been faster than the node's answer
            self._mark(transfer, TransferState.REFERRED, now_ms)
        return transfer

    def redeem(self, token: TransferToken, now_ms: int) -> Transfer | Reject | None:
        """A client brought a good token. The transfer that it belongs to; None: another proxy's, which is used up here
        from now on."""
        transfer = self.pending.get(token.transfer_id)
        if transfer is not None and transfer.state is not TransferState.ARRIVING:
            self._mark(transfer, TransferState.ARRIVING, now_ms)
            return transfer
        if transfer is not None or token.transfer_id in self._used:
            return Reject(Reason.TRANSFER_TOKEN_REJECTED, "it was used already")
        if token.tag == self._tag:
            detail = "its transfer is over, or began before this proxy was started"
            return Reject(Reason.TRANSFER_TOKEN_REJECTED, detail)
        return self._use_up(token, now_ms)

    def _use_up(self, token: TransferToken, now_ms: int) -> Reject | None:
        for transfer_id, until_ms in list(self._used.items()):
            if until_ms >= now_ms:
                break  # about in the order of their ends: what is left a little longer harms nobody
            del self._used[transfer_id]
        if len(self._used) >= self.settings.pending_max:
            return Reject(Reason.TRANSFER_LIMIT, "the memory of used tokens is full")
        self._used[token.transfer_id] = token.expires_at_ms
        return None

    def remembered(self, player: str, peer: str, now_ms: int) -> Transfer | None:
        """A client that can bring nothing along came back: the same name from the same address."""
        for transfer in self.pending.values():
            if (
                transfer.state in (TransferState.ASKED, TransferState.REFERRED)
                and transfer.kind == "minecraft"
                and transfer.player.lower() == player.lower()
                and transfer.peer == peer
            ):
                self._mark(transfer, TransferState.ARRIVING, now_ms)
                return transfer
        return None

    def complete(self, transfer: Transfer, new_session: str, now_ms: int) -> None:
        if transfer.is_over:
            return
        transfer.new_session = new_session
        self._mark(transfer, TransferState.COMPLETED, now_ms)
        self._end(transfer)

    def fail(self, transfer: Transfer, reason: Reason, detail: str, now_ms: int) -> None:
        if transfer.is_over:
            return
        transfer.reason, transfer.detail = reason.value, detail[:500]
        self._mark(transfer, TransferState.FAILED, now_ms)
        self._end(transfer)

    def expire(self, now_s: float, now_ms: int) -> list[Transfer]:
        """End those whose time is over."""
        late = [each for each in self.pending.values() if now_s >= each.deadline_s]
        for each in late:
            where = {
                TransferState.ASKED: "the node did not answer",
                TransferState.REFERRED: "the client did not come back",
            }.get(each.state, "the client came back and did not reach the target")
            self.fail(each, Reason.TRANSFER_TIMEOUT, f"{where} in {self.settings.timeout_s:g} s", now_ms)
        return late

    @property
    def next_deadline_s(self) -> float:
        return min((each.deadline_s for each in self.pending.values()), default=float("inf"))

    def find(self, transfer_id: str) -> Transfer | None:
        found = self.pending.get(transfer_id)
        return found or next((each for each in reversed(self.history) if each.id == transfer_id), None)

    def of_session(self, session: str) -> Transfer | None:
        """The last one that began or ended with a session."""
        known = (*self.history, *self.pending.values())
        return next((each for each in reversed(known) if session in (each.session, each.new_session)), None)

    def _mark(self, transfer: Transfer, state: TransferState, now_ms: int) -> None:
        transfer.state = state
        transfer.marks_ms[state.value.lower()] = max(0, now_ms - transfer.began_at_ms)

    def _end(self, transfer: Transfer) -> None:
        self.pending.pop(transfer.id, None)
        self.history.append(transfer)
