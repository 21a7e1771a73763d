"""Who calls: from a request's headers to an identity, or Refused.

The first guard of every HTTP call, on the operators' port and the clients'. Joins what decides (`credentials`,
`operator_keys`, `tokens`, `access`) with what waits: the issuer's keys (`jwks`) and the operator keys of the store.

Invariants: without credentials a caller is nobody, and that is no error; with credentials that do not hold they are
refused, and never fall back to being nobody. Reading the store again and writing down uses happens beside the requests,
not in them. A signature is a caller's proof only where whoever asks also asks the replay guard.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import trio

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason, Refused, Reject
from fairlead.proxy.guard import credentials, tokens
from fairlead.proxy.guard.access import NOBODY, Openings
from fairlead.proxy.guard.jwks import Jwks
from fairlead.proxy.guard.operator_keys import OperatorKeys
from fairlead.proxy.guard.rotation import KeyUses, Kind, print_of
from fairlead.proxy.store.interface import Store
from fairlead.runtime import request_signing
from fairlead.runtime.http.message import Request
from fairlead.runtime.observer import Observer
from fairlead.runtime.request_signing import Signed, SigningKey
from fairlead.runtime.world import World

USES_WRITTEN_EVERY_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class TokenIssuer:
    """Whose tokens are believed: `[jwt]`. Either kind of key may be missing."""

    rules: tokens.TokenRules
    shared: tuple[tokens.TokenKey, ...] = ()
    jwks: Jwks | None = None


@dataclass(frozen=True, slots=True)
class WorkerTokens:
    """What an ID token that comes with a callback must say (runbook 004's OIDC): for whom, and of whom ("": of anybody
    that the issuer knows)."""

    audience: str
    email: str = ""


@dataclass(frozen=True, slots=True)
class SignedCallers:
    """Whose signatures are believed: the secrets of the dispatch surface, and how far their clocks may be off; and what
    somebody may do who has such a secret and nothing else: on what they submitted themselves, and never more than an
    operator."""

    keys: Sequence[SigningKey] = ()
    skew_ms_max: int = 0
    scopes: tuple[str, ...] = ("dispatch", "read", "replay")


class Callers:
    """Knows every caller. `run` it beside what asks; call `refresh` before the first question."""

    def __init__(
        self,
        world: World,
        observer: Observer,
        store: Store,
        keys: OperatorKeys,
        openings: Openings,
        issuer: TokenIssuer | None = None,
        signed: SignedCallers | None = None,
        uses: KeyUses | None = None,
    ) -> None:
        """`uses`: who signed with which secret is told there."""
        self._world, self._observer, self._store = world, observer, store
        self.keys, self.openings = keys, openings
        self._issuer, self._signed = issuer, signed or SignedCallers()
        self._uses = uses or KeyUses(world.wall_ms())

    def rekey(
        self, signing: Sequence[SigningKey], shared: Sequence[tokens.TokenKey], operator_keys: Sequence[str]
    ) -> None:
        """Believe other secrets from now on."""
        self._signed = replace(self._signed, keys=signing)
        if self._issuer is not None:
            self._issuer = replace(self._issuer, shared=tuple(shared))
        self.keys.configure(operator_keys)

    async def run(self) -> None:
        """Fetch the issuer's keys and write down when keys were used, until cancelled."""
        async with trio.open_nursery() as nursery:
            if self._issuer is not None and self._issuer.jwks is not None:
                nursery.start_soon(self._issuer.jwks.run)
            nursery.start_soon(self._write_uses)

    async def identify(self, request: Request, *, signed: bool = False) -> Identity:
        """Whose call this is; `NOBODY` where it says nothing about that. Raises Refused.

        `signed`: the request's signature may say it, because the caller also asks the replay guard."""
        given = credentials.read(request.header_values)
        if isinstance(given, Reject):
            raise Refused(given.reason, given.detail)
        found: Identity | Reject
        if given.key is not None:
            found = self.keys.identify(given.key, self._world.wall_ms(), trio.current_time())
        elif given.token is not None:
            found = await self._of_token(given.token)
        elif given.signatures and signed:
            found = self._of_signature(request, given.signatures)
        else:
            found = NOBODY
        if isinstance(found, Reject):
            raise Refused(found.reason, found.detail)
        return found

    async def identify_worker(self, request: Request, terms: WorkerTokens) -> Identity:
        """Whose ID token comes with a callback. It speaks for whoever runs the worker, and allows nothing by itself.
        Raises Refused."""
        given = credentials.read(request.header_values)
        if isinstance(given, Reject):
            raise Refused(given.reason, given.detail)
        if given.token is None:
            raise Refused(
                Reason.UNAUTHENTICATED, "worker.callback_oidc_audience asks for an ID token (bearer)"
            )
        found = await self._of_token(given.token, terms.audience)
        if isinstance(found, Reject):
            raise Refused(found.reason, found.detail)
        if terms.email and found.email != terms.email:
            raise Refused(Reason.JWT_CLAIM_INVALID, "the token is of another caller than callback_oidc_email")
        return found

    async def _of_token(self, token: str, audience: str = "") -> Identity | Reject:
        """`audience`: of an ID token that is made out for something else than operators' calls."""
        issuer = self._issuer
        if issuer is None:
            return Reject(Reason.UNAUTHENTICATED, "no issuer of tokens is configured (jwt.issuer)")
        unverified = tokens.read(token)
        if isinstance(unverified, Reject):
            return unverified
        keys = [each for each in issuer.shared if each.algorithm == unverified.algorithm]
        if not keys:
            if issuer.jwks is None or unverified.algorithm not in issuer.jwks.algorithms:
                return Reject(Reason.JWT_ALGORITHM_REFUSED, f"alg {unverified.algorithm!r}")
            keys = [await issuer.jwks.key(unverified.algorithm, unverified.key_id)]
        claims = tokens.verify(unverified, keys)
        if isinstance(claims, Reject):
            return claims
        now_ms = self._world.wall_ms()
        rules = replace(issuer.rules, audience=audience, default_role="viewer") if audience else issuer.rules
        found = tokens.identity_of(claims, rules, now_ms)
        if isinstance(found, Identity) and unverified.algorithm == tokens.SHARED_ALGORITHM:
            for key in keys:
                if len(keys) == 1 or not isinstance(tokens.verify(unverified, [key]), Reject):
                    self._uses.note(Kind.JWT, print_of(key.key), found.principal, now_ms)
        return found

    def _of_signature(self, request: Request, signatures: Sequence[str]) -> Identity | Reject:
        judged = self.judge_signature(request, signatures)
        if isinstance(judged, Reject):
            return judged
        name = f"signature:{judged.key_id}"
        return Identity(name, "service", ("operator",), self._signed.scopes, auth=name, reads="self")

    def judge_signature(self, request: Request, signatures: Sequence[str]) -> Signed | Reject:
        """What the signature of a request says, or why it is not believed."""
        now_ms = self._world.wall_ms()
        judged = request_signing.judge(
            self._signed.keys,
            signatures,
            request.method,
            request_signing.target_of(request.path, request.query),
            request.body,
            now_ms,
            self._signed.skew_ms_max,
        )
        if isinstance(judged, Signed):
            self._uses.note(Kind.HMAC, judged.key_id, request.peer_host, now_ms)
        return judged

    # -- operator keys of the store

    async def refresh(self) -> None:
        """Read the operator keys again: at the start, after a change, and regularly where others may change them."""
        asked_at_s = trio.current_time()
        rows = await self._store.operator_keys()
        # Where nobody else writes to the store, what was read stays true.
        self.keys.read(rows, asked_at_s if self._store.shared else math.inf)

    async def _write_uses(self) -> None:
        """Regularly, and in one transaction: a call never waits for it, and a use that is lost costs nothing."""
        while True:
            await trio.sleep(USES_WRITTEN_EVERY_S)
            uses = self.keys.take_uses()
            if uses:
                try:
                    await self._store.note_operator_key_uses(uses)
                except Exception as error:  # the next use tells again
                    self._observer.refused(Reason.STORE_UNAVAILABLE, f"uses of operator keys: {error}")

    def status(self) -> dict[str, Any]:
        """For /status. No key is part of it."""
        jwks = self._issuer.jwks if self._issuer else None
        return {"operator_keys": len(self.keys.all()), "jwks": jwks.status() if jwks else None}
