"""Takes over other secrets while the proxy runs, and knows who would be stranded if one went.

What a signal or an operator asks for goes through here: the configuration was read and is valid as a whole; of it the
secrets are taken, and nothing else. Each change is judged by `guard/rotation` (pure), audited, and then made in every
part that holds key material, without waiting in between: no call sees half of it. What is refused changes nothing.

Links that stand are not asked again: whoever dials next proves a key that is believed then. A link under a secret whose
time is over, or that was taken away, ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

import trio

from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.audit_trail import AuditTrail
from fairlead.proxy.control.control import Control
from fairlead.proxy.dispatch.callbacks import Callbacks
from fairlead.proxy.guard.callers import Callers
from fairlead.proxy.guard.rotation import (
    QUIET_S_DEFAULT,
    KeyUses,
    Kind,
    Pair,
    Secrets,
    Standing,
    is_announced,
    judge_change,
    print_of,
    standing,
    wants_restart,
)
from fairlead.proxy.guard.tokens import shared_key
from fairlead.proxy.ops.callbacks_api import CallbacksApi
from fairlead.proxy.store.interface import Store
from fairlead.proxy.store.records import AuditEvent
from fairlead.runtime.audit_chain import Signer
from fairlead.runtime.observer import Observer
from fairlead.runtime.request_signing import signing_keys
from fairlead.runtime.world import World

WATCH_EVERY_S: Final = 1.0
COUNT_EVERY_S: Final = 30.0  # while no row is behind; whoever asks has them counted then
RENEWED_AT_ONCE: Final = 500
_NOTHING: Final = Pair()


class SecretReload:
    """The secrets in force. `run` it beside what uses them."""

    def __init__(
        self,
        world: World,
        observer: Observer,
        secrets: Secrets,
        control: Control,
        store: Store,
        callers: Callers,
        callbacks: Callbacks,
        callbacks_api: CallbacksApi,
        trail: AuditTrail,
        uses: KeyUses,
    ) -> None:
        self._world, self._observer, self._secrets = world, observer, secrets
        self._control, self._store, self._callers = control, store, callers
        self._callbacks, self._callbacks_api, self._trail, self._uses = callbacks, callbacks_api, trail, uses
        self._announced: set[Kind] = set()
        self._released: dict[Kind, str] = {}
        self._seals_behind: dict[str, int] = {}
        self._count_at_s = 0.0
        self._asked: Secrets | None = None
        self._wake = trio.Event()
        self._changing = trio.Lock()
        self._ended_for: str = ""  # the previous secret whose links were ended, because its time was over
        observer.metrics.computed(
            "secret_previous_seconds_left", "Until the previous fleet secret ends, while somebody still needs it.", (),
            self._seconds_left,
        )  # fmt: skip
        observer.metrics.computed(
            "secret_previous_needed_by", "Who needs a previous secret, by its kind; rows of a kind count as one.",
            ("kind",), self._count_needed,
        )  # fmt: skip

    # -- who needs what

    def _pair(self, kind: Kind) -> Pair:
        return self._secrets.pairs.get(kind, _NOTHING)

    def needed_by(self, kind: Kind, quiet_s: float = QUIET_S_DEFAULT) -> list[str]:
        """Whom it would strand if the previous secret of a kind went."""
        pair = self._pair(kind)
        if pair.previous is None:
            return []
        now_ms = self._world.wall_ms()
        if kind is Kind.PROXY:
            return [*self._peers_on_previous(now_ms), *self._seals_on_previous()]
        if kind is Kind.TRUST:
            return self._trust_on_previous()
        return self._uses.needed_by(kind, print_of(pair.previous), round(quiet_s * 1000), now_ms)

    def _peers_on_previous(self, now_ms: int) -> list[str]:
        if now_ms >= self._pair(Kind.PROXY).previous_expires_at_ms:
            return []  # it opens nothing any more, whoever holds it
        found, keys = [], self._control.keys
        announced = Kind.PROXY in self._announced
        for node_id, record in sorted(self._control.nodes.nodes.items()):
            if not record.key_id:
                if not announced:  # nobody can be on what was never the one in use
                    found.append(f"node {node_id}, perhaps: not linked since this proxy started")
            elif keys.needs_previous(bytes.fromhex(record.key_id), node_id):
                found.append(f"node {node_id}{'' if record.connected else ', when it was last linked'}")
        for client_id, is_linked in self._control.clients.on_previous().items():
            found.append(f"client {client_id}{'' if is_linked else ', when it was last linked'}")
        return found

    def _seals_on_previous(self) -> list[str]:
        return [f"{count} sealed rows ({kind})" for kind, count in sorted(self._seals_behind.items())]

    def _trust_on_previous(self) -> list[str]:
        records = sorted(self._control.nodes.nodes.items())
        return [
            f"node {node_id}{'' if record.connected else ', when it was last linked'}"
            for node_id, record in records
            if record.trust_key == "previous"
        ]

    async def standings(self, quiet_s: float = QUIET_S_DEFAULT) -> list[Standing]:
        """How each kind stands, as of now. Raises what the store raises."""
        await self._count_seals()
        return [self._standing(kind, quiet_s) for kind in Kind]

    def _standing(self, kind: Kind, quiet_s: float) -> Standing:
        return standing(kind, self._pair(kind), kind in self._announced, self.needed_by(kind, quiet_s))

    def status(self) -> dict[str, Any]:
        """For /status, as it was last counted. Fingerprints; no secret is part of it."""
        return {kind.value: asdict(self._standing(kind, QUIET_S_DEFAULT)) for kind in Kind}

    def last_uses(self, kind: Kind) -> Mapping[str, Mapping[str, int]]:
        """When who used each secret of a kind last, of those that are told by what they sign."""
        return {print_of(each): self._uses.last(kind, print_of(each)) for each in self._pair(kind).believed}

    async def _count_seals(self) -> None:
        has_previous = self._pair(Kind.PROXY).previous is not None
        self._seals_behind = await self._store.seals_on_previous() if has_previous else {}

    def _seconds_left(self) -> dict[tuple[str, ...], float]:
        pair = self._pair(Kind.PROXY)
        if pair.previous is None or Kind.PROXY in self._announced or not self.needed_by(Kind.PROXY):
            return {}
        return {(): max(0.0, (pair.previous_expires_at_ms - self._world.wall_ms()) / 1000)}

    def _count_needed(self) -> dict[tuple[str, ...], float]:
        return {(kind.value,): len(self.needed_by(kind)) for kind in Kind}

    # -- taking one away

    async def release(self, kind: Kind, quiet_s: float, event: AuditEvent, *, force: bool) -> Standing:
        """The previous secret of a kind may go with the next reload. Raises Refused."""
        await self._count_seals()
        found = self._standing(kind, quiet_s)
        if not found.previous:
            raise Refused(Reason.QUERY_INVALID, f"{kind}: there is no previous secret")
        if found.needed_by and not force:
            who = ", ".join(found.needed_by[:20])
            raise Refused(Reason.SECRET_IN_USE, f"{kind}: {found.previous} is still needed by {who}")
        await self._store.audit(event)
        self._released[kind] = found.previous
        self._observer.log.warning(
            "secret_released", kind=kind.value, secret=found.previous, by=event.principal, forced=force,
            stranded=", ".join(found.needed_by[:20]),
        )  # fmt: skip
        return found

    # -- taking over

    def ask(self, secrets: Secrets) -> None:
        """Take over these soon. A question that was not answered yet is forgotten."""
        self._asked = secrets
        self._wake.set()

    async def run(self) -> None:
        """Answer what is asked, and watch what is to go, until cancelled."""
        while True:
            watching = any(pair.previous is not None for pair in self._secrets.pairs.values())
            with trio.move_on_after(WATCH_EVERY_S if watching else math.inf):
                await self._wake.wait()
            self._wake = trio.Event()
            asked, self._asked = self._asked, None
            try:
                if asked is not None:
                    await self.apply(asked)
                await self._watch()
            except Exception as error:  # the next turn tries again; who asked is told
                self._observer.refused(Reason.STORE_UNAVAILABLE, f"secrets: {error}", level="error")

    async def apply(self, wanted: Secrets) -> bool:
        """Take over what differs. False, and nothing has changed, where that was refused."""
        async with self._changing:
            await self._count_seals()
            changes: dict[Kind, Pair] = {}
            problems: list[str] = []
            for kind in Kind:
                before, after = self._pair(kind), wanted.pairs.get(kind, _NOTHING)
                if wants_restart(before, after):
                    self._observer.log.warning(
                        "reload_needs_restart", kind=kind.value, detail="a kind of secret begins or ends"
                    )
                elif before != after:
                    changes[kind] = after
                    why = judge_change(
                        kind, before, after, self.needed_by(kind), self._released.get(kind, ""),
                        is_shared=self._store.shared,
                    )  # fmt: skip
                    problems += [why] if why else []
            if problems:
                self._observer.refused(Reason.SECRET_IN_USE, "; ".join(problems), level="error")
                self._observer.log.error(
                    "reload_refused", problems="; ".join(problems), kept="the secrets in force"
                )
                return False
            if not changes and wanted.operator_keys == self._secrets.operator_keys:
                self._observer.log.info("secrets_unchanged")
                return True
            await self._store.audit(self._event(changes, wanted))  # no audit, no change
            self._swap(changes, wanted)
        await self._watch()
        if Kind.PROXY in changes:
            await self._trail.checkpoint_now()  # so that the newest one is under the key in force
        return True

    def _swap(self, changes: Mapping[Kind, Pair], wanted: Secrets) -> None:
        """In every part at once: nothing here waits."""
        now_ms = self._world.wall_ms()
        for kind, after in changes.items():
            announced = is_announced(self._pair(kind), after, kind in self._announced)
            (self._announced.add if announced else self._announced.discard)(kind)
            self._released.pop(kind, None)
            self._uses.keep(kind, [print_of(each) for each in after.believed], now_ms)
        self._secrets = Secrets({**self._secrets.pairs, **changes}, wanted.operator_keys)
        fleet, trust = self._pair(Kind.PROXY), self._pair(Kind.TRUST)
        assert fleet.current is not None, "load refuses a configuration without a secret"
        if Kind.PROXY in changes or Kind.TRUST in changes:
            self._control.keys.rekey(
                fleet.current, fleet.previous, fleet.previous_expires_at_ms, trust.believed
            )
            self._control.rekeyed()
        if Kind.PROXY in changes:
            self._store.rekey(fleet.current, fleet.previous)
            self._count_at_s = 0.0
            self._trail.rekey(Signer(fleet.current), [Signer(each).public_key for each in fleet.believed])
            if fleet.previous is None:
                self._control.end_outdated(Reason.PREVIOUS_KEY_EXPIRED, "its secret was taken away")
        if Kind.CALLBACK in changes:
            self._callbacks.rekey(self._pair(Kind.CALLBACK).believed)
            self._callbacks_api.rekey(self._pair(Kind.CALLBACK).believed)
        self._callers.rekey(
            signing_keys(self._pair(Kind.HMAC).believed),
            [shared_key(each) for each in self._pair(Kind.JWT).believed],
            self._secrets.operator_keys,
        )
        said = {
            kind.value: f"{print_of(pair.current)}/{print_of(pair.previous)}"
            for kind, pair in changes.items()
        }
        self._observer.log.info("secrets_reloaded", operator_keys=len(wanted.operator_keys), **said)

    def _event(self, changes: Mapping[Kind, Pair], wanted: Secrets) -> AuditEvent:
        name = self._control.settings.proxy_id
        detail: dict[str, Any] = {
            kind.value: {
                "current": print_of(pair.current), "previous": print_of(pair.previous),
                "previous_expires_at_ms": pair.previous_expires_at_ms,
            }
            for kind, pair in changes.items()
        }  # fmt: skip
        if wanted.operator_keys != self._secrets.operator_keys:
            detail["operator_keys"] = len(wanted.operator_keys)
        return AuditEvent(
            "secrets_changed", self._world.wall_ms(), f"proxy:{name}", "", name, len(detail), len(detail), 0, detail,
            auth="process", id=self._world.new_id(),
        )  # fmt: skip

    # -- what is to go

    async def _watch(self) -> None:
        """Seal anew what the previous secret sealed, and end its links when its time is over."""
        pair = self._pair(Kind.PROXY)
        if pair.previous is None:
            self._seals_behind = {}
            return
        gone = print_of(pair.previous)
        if self._world.wall_ms() >= pair.previous_expires_at_ms and self._ended_for != gone:
            self._ended_for = gone
            self._control.end_outdated(Reason.PREVIOUS_KEY_EXPIRED, "the overlap has ended")
        if not self._seals_behind and trio.current_time() < self._count_at_s:
            return  # counting looks at every open record
        await self._count_seals()
        if self._seals_behind and Kind.PROXY not in self._announced:
            await self._store.renew_seals(RENEWED_AT_ONCE, self._world.wall_ms())
            await self._count_seals()
        self._count_at_s = trio.current_time() + COUNT_EVERY_S
