"""Pure. What a drill proves, row by row, and whether what was seen proves it.

Invariants: a row that was not proven is not passed; a refusal counts only with its own reason, for a guard that
refuses for another cause proves nothing about itself; of what was sent and seen only what is no secret is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fairlead.protocol.reasons import Reason, traits

LIVE: Final = "live"
TWIN: Final = "twin"
PASSED: Final = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One proof. `statuses` empty: there is no HTTP status; `reason` empty: nothing may be refused."""

    name: str
    proves: str
    statuses: tuple[int, ...] = ()
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Seen:
    """What came back: evidence. `wrong`: what else does not fit, in the words of whoever looked."""

    where: str = LIVE
    status: int = 0
    reason: str = ""
    detail: str = ""
    request_id: str = ""
    wrong: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """A row with what was seen, and what is wrong with it ("": it is proven)."""

    row: Row
    seen: Seen
    problem: str

    @property
    def passed(self) -> bool:
        return not self.problem


def _row(name: str, proves: str, *reasons: Reason) -> Row:
    return Row(
        name,
        proves,
        tuple(sorted({traits(each).status for each in reasons})),
        tuple(each.value for each in reasons),
    )


def _link(name: str, proves: str, *reasons: Reason) -> Row:
    return Row(name, proves, (), tuple(each.value for each in reasons))


HTTP_ROWS: Final = (
    _row("no-credentials", "who proves nothing gets nothing", Reason.UNAUTHENTICATED),
    _row("bad-token", "a made-up token is refused", Reason.JWT_MALFORMED, Reason.UNAUTHENTICATED),
    _row(
        "bad-signature",
        "a signature of another body is refused, whoever else vouches",
        Reason.SIGNATURE_INVALID,
    ),
    _row("bad-signature-submits", "a wrong signature alone submits nothing", Reason.SIGNATURE_INVALID),
    _row("unsigned-submits", "an administrator's submission needs a signature too", Reason.SIGNATURE_MISSING),
    _row("stale-signature", "what was signed a day ago is refused", Reason.SIGNATURE_TIMESTAMP_INVALID),
    Row("good-signature", "an administrator's signed dry run is answered", (200,)),
    Row("good-submission", "a signed submission is accepted", (202,)),
    _row("nonce-replay", "the same signed request again is refused", Reason.SECURITY_REPLAY_DETECTED),
    _row("nonce-replay-submits", "a signed submission again is refused", Reason.SECURITY_REPLAY_DETECTED),
    _row("role-guard", "who may only look replays nothing", Reason.SCOPE_MISSING),
    _row(
        "tenant-guard",
        "an operator of one tenant replays nothing of another",
        Reason.SECURITY_TENANT_MISMATCH,
    ),
    _row(
        "fourth-replay",
        "three replays of a tenant pass the limit, the fourth does not",
        Reason.REPLAY_RATE_LIMITED,
    ),
    Row("duplicate-key", "the same idempotency key is answered by the first run", (202,)),
    _row("key-reused", "another request under that key is refused", Reason.IDEMPOTENCY_KEY_REUSED),
    _row("oversized-replay", "a replay of a million is refused", Reason.BATCH_TOO_LARGE),
    _row(
        "oversized-body",
        "arguments of a mebibyte are refused",
        Reason.BODY_TOO_LARGE,
        Reason.HTTP_BODY_TOO_LARGE,
    ),
)
CONTROL_ROWS: Final = (
    Row("good-link", "an application with its key is linked and answered"),
    _link("wrong-key", "who holds no key of the fleet is told nothing", Reason.HANDSHAKE_CLOSED),
    _link("recorded-handshake", "a recorded handshake opens nothing", Reason.HANDSHAKE_CLOSED),
    _link("wrong-version", "no common version, no link", Reason.VERSION_MISMATCH),
    _link("wrong-version-envelope", "an envelope of another version is refused", Reason.VERSION_MISMATCH),
    _link("wrong-sender", "an envelope in another's name is refused", Reason.UNEXPECTED_SENDER),
    _link("stale-timestamp", "an envelope of an hour ago is refused", Reason.INVALID_TIMESTAMP),
    _link("replayed-envelope", "the same envelope again is refused", Reason.REPLAYED_ENVELOPE),
)
TWIN_ROWS: Final = (
    Row("unsynchronized-registry", "a node gets its first run when it holds the registry, not before"),
    _row("guard-down", "with a store that cannot write, a signed call is refused",
         Reason.SECURITY_REPLAY_GUARD_UNAVAILABLE),
)  # fmt: skip
ROWS: Final = (*HTTP_ROWS, *CONTROL_ROWS, *TWIN_ROWS)


def judge(row: Row, seen: Seen | None) -> Judged:
    """Whether it is proven."""
    if seen is None:
        return Judged(row, Seen(where="-"), "was not proven")
    if seen.wrong:
        return Judged(row, seen, seen.wrong)
    if row.statuses and seen.status not in row.statuses:
        return Judged(row, seen, f"{_told(seen)} instead of {' or '.join(map(str, row.statuses))}")
    if row.reasons and seen.reason not in row.reasons:
        return Judged(row, seen, f"{_told(seen)} instead of {' or '.join(row.reasons)}")
    if not row.reasons and seen.reason:
        return Judged(row, seen, f"was refused: {seen.reason} {seen.detail}".strip())
    return Judged(row, seen, PASSED)


def judge_all(seen: Mapping[str, Seen], rows: Sequence[Row] = ROWS) -> list[Judged]:
    """Every row, in the order of the table."""
    return [judge(row, seen.get(row.name)) for row in rows]


def _told(seen: Seen) -> str:
    return " ".join(filter(None, (str(seen.status or ""), seen.reason))) or "nothing was refused,"


# A value for each type of parameter; it is never executed, so any that is valid will do.
_VALUES: Final[Mapping[str, Any]] = {
    "string": "drill", "integer": 1, "number": 1, "boolean": False, "array": [], "object": {}, "any": "drill",
}  # fmt: skip


def harmless(commands: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, Any]] | None:
    """A command that anybody may have executed on a node as often as they like, with arguments that its schema takes.
    What is made of it is scheduled for later and cancelled: it executes only where nobody was left to cancel it."""
    for command in commands:
        if command["permission"] or command["flags"] or command["effect"] != "idempotent":
            continue
        if command["runs_on"] != "node" or not command["nodes"]:
            continue
        needed = [each for each in command["parameters"] if each["required"]]
        if all(not each["choices"] and each["type"] in _VALUES for each in needed):
            return str(command["name"]), {each["name"]: _VALUES[each["type"]] for each in needed}
    return None
