"""The chain of guards that every call passes, in one order: who calls, whether the request is whole, whether it is new,
how often, and what the caller may do.

    authentication -> integrity -> replay -> (rollout) -> rate -> authorization

On the journey of every HTTP call, between finding its endpoint and serving it. Each step that refuses has its own
reason. A client link passes none of this: its channel proves who speaks and that nothing is changed or repeated, its
credit bounds it, and what it may do is judged per link (`dispatch/desk`). A tenant's own rate of submissions has its
place between replay and rate, with the rollout.

The rollout (`rollout.dispatch_rollout`) says of each subject whether the modes are enforced for it or only observed.

Invariants: the modes soften authentication and integrity of submissions only, and never what is signed and replayed
where the signature is what proves the caller; an observed refusal is counted as one; a nonce is used up before the
answer leaves, whatever the answer is, so that a request that was refused cannot be replayed when it would pass; nothing
unauthenticated is counted in a table; where a step cannot be decided the call is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import trio

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason, Refused, Reject, traits
from fairlead.proxy.guard import access, credentials
from fairlead.proxy.guard.access import NOBODY, Scope
from fairlead.proxy.guard.call_rates import CallRates
from fairlead.proxy.guard.callers import Callers
from fairlead.proxy.guard.modes import Mode, Modes
from fairlead.proxy.guard.nonces import REPLAY_REASONS, Nonce, reservation
from fairlead.proxy.guard.nonces import Lately as NoncesLately
from fairlead.proxy.guard.tenants import check_fleet
from fairlead.proxy.store.interface import Store
from fairlead.runtime.http.message import Request
from fairlead.runtime.observer import Lately, Observer
from fairlead.runtime.request_signing import Signed
from fairlead.runtime.world import World

# Somebody who proved nothing and may submit all the same, because the mode of authentication says so. Permissions of
# commands have no mode: of those this one has none.
ANYBODY: Final = Identity(
    access.ANONYMOUS, access.ANONYMOUS, ("operator",), ("dispatch",), auth="open", reads="self"
)
SUSPECT_RETRY_S: Final = 1.0


class Surface(Protocol):
    """An endpoint, as far as guards know it."""

    @property
    def method(self) -> str: ...
    @property
    def scope(self) -> Scope: ...
    @property
    def open_read(self) -> bool: ...
    @property
    def public(self) -> bool: ...
    @property
    def fleet(self) -> bool: ...
    @property
    def urgent(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class NonceLimits:
    """How long nonces are remembered, and how many."""

    ttl_ms: int
    nonces_max: int


@dataclass(slots=True)
class Admitted:
    """What the guards found out about a call. `nonce`: what its acceptance has to use up, or the chain does before the
    answer leaves."""

    caller: Identity
    nonce: Nonce | None = None
    headers: Sequence[tuple[str, str]] = ()


class Rollout(Protocol):
    """For whom the modes are enforced."""

    @property
    def softens(self) -> bool:
        """Whether there is anybody for whom they are not."""

    def enforced_for(self, principal: str, address: str) -> bool: ...

    def told(self, principal: str, address: str) -> Sequence[tuple[str, str]]:
        """Headers that explain the decision, where they are wanted."""


class Chain:
    """Every guard, joined."""

    def __init__(
        self,
        world: World,
        observer: Observer,
        store: Store,
        callers: Callers,
        rates: CallRates,
        modes: Modes,
        nonces: NonceLimits,
        rollout: Rollout | None = None,
    ) -> None:
        self._world, self._observer, self._store = world, observer, store
        self._rollout = rollout
        self.callers, self.rates, self.modes, self._nonces = callers, rates, modes, nonces
        self._used = NoncesLately()
        self.observed_lately = Lately()
        self._observed = observer.metrics.counter(
            "guard_observed_total",
            "What guards that only observe would have refused, by reason.",
            ("reason",),
        )

    async def run(self) -> None:
        """What goes on beside the calls, until cancelled."""
        await self.rates.run()

    # -- before a call is served

    async def admit(
        self, surface: Surface, request: Request, *, public: bool, into: Admitted | None = None
    ) -> Admitted:
        """The call with its caller, or Refused. `public`: it came in on the clients' port; `into`: what is known of the
        call also where it is refused."""
        admitted = into or Admitted(NOBODY)
        if surface.scope in (
            Scope.OPEN,
            Scope.SIGNED,
        ):  # the latter's endpoint judges a signature of another kind
            return admitted
        submits = surface.public and surface.scope is Scope.DISPATCH
        now_ms = self._world.wall_ms()
        caller = await self._authenticate(surface, request, now_ms, public=public, submits=submits)
        if caller is NOBODY:  # refused before anything of theirs is looked at or counted
            access.require(caller, surface.scope)
        admitted.caller = caller
        integrity = self._softened(self.modes.integrity_at(now_ms), request, caller, now_ms, submits=submits)
        signed = self._integrity(request, caller, integrity, submits=submits)
        if signed is not None:
            admitted.nonce = await self._replay(request, caller, signed, integrity, submits=submits)
        if submits and self._rollout is not None:
            admitted.headers = self._rollout.told(_proven(caller), request.peer_host)
        reads = surface.method in ("GET", "HEAD")
        if not surface.public:
            in_store = not (reads or surface.urgent)
            admitted.headers = await self.rates.count(caller.principal, request.peer_host, in_store=in_store)
        access.require(caller, surface.scope)
        if surface.fleet:
            check_fleet(caller, reading=reads)
        return admitted

    async def _authenticate(
        self, surface: Surface, request: Request, now_ms: int, *, public: bool, submits: bool
    ) -> Identity:
        mode = self._softened(self.modes.authentication_at(now_ms), request, NOBODY, now_ms, submits=submits)
        try:
            caller = await self.callers.identify(request, signed=True)
        except Refused as refused:
            if mode is Mode.ENFORCE:
                raise
            caller, why = NOBODY, refused
        else:
            why = Refused(Reason.UNAUTHENTICATED, "no credentials were sent")
            if caller is NOBODY:
                caller = self.callers.openings.anonymous(
                    open_read=surface.open_read, peer_host=request.peer_host, public=public
                )
        if (
            mode is Mode.ENFORCE
            or access.may(caller, Scope.DISPATCH)
            or caller.subject_type != access.ANONYMOUS
        ):
            return caller
        judged_again = (
            why.reason.name.startswith("SIGNATURE_") and self.modes.integrity_at(now_ms) is not Mode.OFF
        )
        if mode is Mode.OBSERVE and not judged_again:
            self._observe(why, request)
        return ANYBODY

    def _softened(
        self, mode: Mode, request: Request, caller: Identity, now_ms: int, *, submits: bool
    ) -> Mode:
        """The mode of a check for this caller: what is no submission is always enforced, and what the rollout does not
        enforce for the caller is observed, until observing ends."""
        if not submits:
            return Mode.ENFORCE
        rollout = self._rollout
        if (
            mode is not Mode.ENFORCE
            or rollout is None
            or not rollout.softens
            or self.modes.is_over_at(now_ms)
        ):
            return mode
        return mode if rollout.enforced_for(_proven(caller), request.peer_host) else Mode.OBSERVE

    def _integrity(self, request: Request, caller: Identity, mode: Mode, *, submits: bool) -> Signed | None:
        """What the signature says, where there is one or has to be one. Raises Refused."""
        proves = _is_proof(caller)
        if mode is Mode.OFF and not proves:
            return None
        given = credentials.read(request.header_values)
        signatures = given.signatures if not isinstance(given, Reject) else ()
        if not signatures and not submits:
            return None
        judged = self.callers.judge_signature(request, signatures)
        if not isinstance(judged, Reject):
            return judged
        refused = Refused(judged.reason, judged.detail)
        if mode is Mode.OBSERVE and not proves:
            self._observe(refused, request)
            return None
        raise refused

    async def _replay(
        self, request: Request, caller: Identity, signed: Signed, integrity: Mode, *, submits: bool
    ) -> Nonce | None:
        """Use the nonce up now, or leave it to the acceptance of what is submitted. Raises Refused."""
        limits = self._nonces
        nonce = Nonce(reservation(signed, limits.ttl_ms, limits.nonces_max, self._world.new_id()))
        observes = submits and integrity is Mode.OBSERVE and not _is_proof(caller)
        if nonce.reservation.key in self._used and not observes:
            raise Refused(Reason.SECURITY_REPLAY_DETECTED, "a request with this nonce was taken before")
        if submits and not observes:
            return nonce
        try:
            await self.use_up(nonce)
        except Refused as refused:
            if not observes:
                raise
            self._observe(refused, request)
        return None

    # -- before its answer leaves

    async def use_up(self, nonce: Nonce) -> None:
        """Reserve a nonce that nothing reserved. Raises Refused where it was used before, or nobody can tell."""
        if not nonce.used:
            try:
                await self._store.reserve_nonce(nonce.reservation, self._world.wall_ms())
            except Exception as error:
                raise unavailable(error) from error
            nonce.used = True
        self._used.add(nonce.reservation.key)

    def _observe(self, refused: Refused, request: Request) -> None:
        reason = refused.reason
        self._observed.inc(reason.value)
        self.observed_lately.add(reason, trio.current_time())
        self._observer.sampled(
            "warning", "would_refuse", reason=reason.value, detail=refused.detail, peer=request.peer_host,
            correlation_id=request.correlation_id,
        )  # fmt: skip

    # -- for people

    def observed(self) -> dict[str, dict[str, int]]:
        """What would have been refused since the start, by family and reason."""
        found: dict[str, dict[str, int]] = {}
        for (reason,), cell in self._observed.cells.items():
            found.setdefault(traits(Reason(reason)).family.value, {})[reason] = int(cell.value)
        return found

    def status(self) -> dict[str, Any]:
        """For /status."""
        now_ms, modes = self._world.wall_ms(), self.modes
        return {
            "authentication": modes.authentication_at(now_ms).value,
            "integrity": modes.integrity_at(now_ms).value,
            "observe_until_ms": modes.observe_until_ms,
            "observed": self.observed(),
        }


def unavailable(error: Exception) -> Refused:
    """What a call hears whose nonce could not be reserved: a replay is one, anything else may have been one."""
    if isinstance(error, Refused) and error.reason in REPLAY_REASONS:
        return error
    return Refused(Reason.SECURITY_REPLAY_GUARD_UNAVAILABLE, str(error), retry_after_s=SUSPECT_RETRY_S)


def _is_proof(caller: Identity) -> bool:
    """Whether the request's signature is what proves its caller."""
    return caller.auth.startswith("signature:")


def _proven(caller: Identity) -> str:
    """The principal of a caller who proved to be one."""
    return "" if caller.subject_type == access.ANONYMOUS else caller.principal
