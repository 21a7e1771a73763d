"""Pure. The rotation of a secret: what stands, who still needs the older of two, and what may be done next.

A kind of secret is one that is used and at most one beside it that is believed too. A rotation is three changes of that
pair, each taken over by every process before the next:

    prepare    a new one beside the one in use  everybody believes both, nobody uses the new one yet
    switch     the two change places            the new one is used, the old one is still believed
    finish     the old one goes                 once nobody needs it

Between `switch` and `finish` nodes, applications and callers move over, one by one, and what is sealed is sealed anew.
A proxy that shares its store with no other may prepare and switch in one change.

Invariants: no change takes a secret away that somebody needs, unless an operator said so; one that is in use is never
taken away. Who needs one is asked of what was seen, and what was not seen long enough counts as needed.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from fairlead.protocol.keys import fingerprint

QUIET_S_DEFAULT: Final = 3_600  # so long nobody must have used a secret that says nothing of who holds it
CALLERS_MAX: Final = 200  # of a secret, of whom the last use is remembered
SHOWN_MAX: Final = 20


class Kind(enum.StrEnum):
    """Which secret."""

    PROXY = "proxy"  # the control channel, proofs of proxy, seals and the audit trail's checkpoints are derived from it
    TRUST = "trust"
    HMAC = "hmac"
    JWT = "jwt"
    CALLBACK = "callback"


class Step(enum.StrEnum):
    """What an operator does next."""

    NONE = "none"  # there is no such secret
    PREPARE = "prepare"
    SWITCH = "switch"
    MOVE = "move"  # whoever needs the previous one gets the current one
    FINISH = "finish"


@dataclass(frozen=True, slots=True)
class Pair:
    """The secret of a kind that is used, and the one that is believed beside it."""

    current: bytes | None = field(default=None, repr=False)
    previous: bytes | None = field(default=None, repr=False)
    previous_expires_at_ms: int = 0  # 0: never

    @property
    def believed(self) -> tuple[bytes, ...]:
        """All that are believed, the one in use first."""
        return tuple(each for each in (self.current, self.previous) if each is not None)


@dataclass(frozen=True, slots=True)
class Secrets:
    """All that a proxy takes over while it runs."""

    pairs: Mapping[Kind, Pair]
    operator_keys: tuple[str, ...] = field(default=(), repr=False)  # those of the configuration


@dataclass(frozen=True, slots=True)
class Standing:
    """How the rotation of one kind stands. `needed_by`: whom taking the previous one away would strand."""

    kind: Kind
    current: str
    previous: str
    previous_expires_at_ms: int
    step: Step
    why: str
    needed_by: tuple[str, ...] = ()


def print_of(secret: bytes | None) -> str:
    """Which secret it is; nothing where there is none."""
    return "" if secret is None else fingerprint(secret)


# -- what may be done


def standing(kind: Kind, pair: Pair, announced: bool, needed_by: Sequence[str]) -> Standing:
    """`announced`: the one beside has not been in use yet."""
    if pair.current is None:
        step, why = Step.NONE, "not configured"
    elif pair.previous is None:
        step, why = Step.PREPARE, "one secret alone is believed"
    elif announced:
        step, why = Step.SWITCH, "the new one is believed here; once every proxy and verifier has it, use it"
    elif needed_by:
        step, why = Step.MOVE, "give the current one to whoever still needs the previous one"
    else:
        step, why = Step.FINISH, "nobody needs the previous one"
    return Standing(
        kind, print_of(pair.current), print_of(pair.previous), pair.previous_expires_at_ms if pair.previous else 0,
        step, why, tuple(needed_by),
    )  # fmt: skip


def wants_restart(before: Pair, after: Pair) -> bool:
    """Whether a kind begins or ceases to exist: then more than a secret changes."""
    return (before.current is None) != (after.current is None)


def judge_change(
    kind: Kind, before: Pair, after: Pair, needed_by: Sequence[str], released: str, *, is_shared: bool
) -> str:
    """Why a change must not be made; nothing where it may. `needed_by`: of the previous one of `before`; `released`:
    the fingerprint of one that may go all the same; `is_shared`: other proxies read what this one seals."""
    kept = after.believed
    if before.current is not None and before.current not in kept:
        return f"{kind}: {print_of(before.current)} is in use; keep it as the previous one"
    gone = before.previous
    if gone is not None and gone not in kept and print_of(gone) != released and needed_by:
        return f"{kind}: {print_of(gone)} is still needed by {shown(needed_by)}"
    if kind is Kind.PROXY and is_shared and after.current not in before.believed:
        return (
            f"{kind}: {print_of(after.current)} is new; other proxies have to believe it before one uses it: set it as "
            "the previous one first, everywhere"
        )
    return ""


def is_announced(before: Pair, after: Pair, was_announced: bool) -> bool:
    """Whether what stands beside the secret in use has not been in use yet."""
    if after.previous is None or after.previous == before.current:
        return False
    if after.current == before.current and after.previous == before.previous:
        return was_announced
    return after.current == before.current


def shown(who: Sequence[str]) -> str:
    """Some of them, for one line."""
    more = len(who) - SHOWN_MAX
    return ", ".join(who[:SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")


# -- who used which


class KeyUses:
    """Who used a secret last, of those that are told by what they sign alone. In memory, and bounded: of a secret, the
    callers of longest ago are forgotten first."""

    def __init__(self, now_ms: int) -> None:
        self._since_ms: dict[Kind, int] = dict.fromkeys(Kind, now_ms)
        self._last: dict[tuple[Kind, str], dict[str, int]] = {}

    def note(self, kind: Kind, secret: str, who: str, now_ms: int) -> None:
        """`secret`: its fingerprint."""
        last = self._last.setdefault((kind, secret), {})
        last.pop(who, None)
        if len(last) >= CALLERS_MAX:
            del last[next(iter(last))]
        last[who] = now_ms

    def keep(self, kind: Kind, secrets: Sequence[str], now_ms: int) -> None:
        """These are believed from now on; the watch over them begins anew."""
        self._since_ms[kind] = now_ms
        for key in [key for key in self._last if key[0] is kind and key[1] not in secrets]:
            del self._last[key]

    def last(self, kind: Kind, secret: str) -> dict[str, int]:
        """When each caller used it last, the latest first."""
        return dict(reversed(self._last.get((kind, secret), {}).items()))

    def needed_by(self, kind: Kind, secret: str, quiet_ms: int, now_ms: int) -> list[str]:
        """Who used it within the quiet time; or that it was not watched for so long."""
        found = [
            f"{who} ({(now_ms - at_ms) / 1000:.0f} s ago)"
            for who, at_ms in self.last(kind, secret).items()
            if now_ms - at_ms < quiet_ms
        ]
        watched_ms = now_ms - self._since_ms[kind]
        if not found and watched_ms < quiet_ms:
            left = f"{watched_ms / 1000:.0f} of {quiet_ms / 1000:.0f} s"
            return [f"whoever has not called yet (watched for {left})"]
        return found
