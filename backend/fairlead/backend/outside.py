"""Commands that are carried out outside of this process: by a program, an HTTP server, a game server's console.

On the command's journey where a Python handler would stand: called by `execution` with the same context, interrupted
in the same way, and bounded by the same slots. How each of them ends is judged here, once.

Invariants: what the outside says is bounded before it is kept; where nobody can know whether the outside did it, a
`once` command ends as OUTCOME_UNKNOWN and an idempotent one as a failure that may pass; whatever is told of a failure
is the outside's own words, never a secret of this node.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

import msgspec

from fairlead.backend.console_line import ArgumentRefused, Piece, fill_line
from fairlead.backend.context import Context
from fairlead.backend.handlers import CommandEnded
from fairlead.backend.rcon import RconFailed, RconRefused, RconSettings, RconUnreached, ask
from fairlead.protocol.reasons import Reason, Refused
from fairlead.protocol.registry import Effect
from fairlead.runtime.posting import Answer, NotConnected, OutboundFailed, Post
from fairlead.runtime.program import Program, ProgramLeft
from fairlead.runtime.strict_json import json_problem
from fairlead.runtime.world import World

EX_TEMPFAIL: Final = 75  # sysexits.h: try again later
PROGRAM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TOLD_CHARS_MAX: Final = 1_500  # of what the outside says about its failure
LATER_S: Final = 5.0  # the run's own time ends before this and says how
_BUSY: Final = (429, 503)
# Why a program is not started now and may be later: this machine's or this user's resources, or it is being replaced.
_PASSING: Final = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETXTBSY)

Function = Callable[..., Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Outside:
    """What the three ways share."""

    command: str
    effect: str
    defaults: Mapping[str, Any] = field(repr=False)
    timeout_s: float
    value_bytes_max: int
    is_json: bool = True

    def unknown(self, detail: str) -> CommandEnded:
        """It may have taken effect, and nobody can know."""
        once = self.effect == Effect.ONCE
        return CommandEnded(Reason.OUTCOME_UNKNOWN if once else Reason.HANDLER_FAILED_TRANSIENT, detail)

    def value(self, raw: bytes, count: int, who: str) -> Any:
        """The result that these bytes are. Raises CommandEnded."""
        if count > self.value_bytes_max:
            raise CommandEnded(Reason.RESULT_TOO_LARGE, f"{who} said {count} bytes")
        if not raw.strip():
            return None if self.is_json else ""
        problem = json_problem(raw) if self.is_json else ""
        try:
            if not problem:
                return msgspec.json.decode(raw) if self.is_json else raw.decode().removesuffix("\n")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            problem = str(error)
        kind = "JSON" if self.is_json else "text"
        raise CommandEnded(Reason.RESULT_INVALID, f"what {who} said is no {kind}: {problem}")


def by_program(world: World, outside: Outside, arguments: tuple[str, ...]) -> Function:
    """Runs it, with the arguments as one line of JSON on its standard input."""

    async def run(context: Context, /, **given: Any) -> Any:
        program = Program(
            arguments,
            environment(context, outside.command),
            sent(outside, given) + b"\n",
            outside.value_bytes_max,
        )
        try:
            ended = await world.run_program(program)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            passes = isinstance(error, OSError) and error.errno in _PASSING
            reason = Reason.HANDLER_FAILED_TRANSIENT if passes else Reason.HANDLER_FAILED
            raise CommandEnded(reason, f"{arguments[0]} cannot be started: {why}") from error
        except ProgramLeft as error:
            raise CommandEnded(Reason.OUTCOME_UNKNOWN, str(error)) from error
        if ended.status == 0:
            return outside.value(ended.output, ended.output_bytes, "the program")
        reason = Reason.HANDLER_FAILED_TRANSIENT if ended.status == EX_TEMPFAIL else Reason.HANDLER_FAILED
        raise CommandEnded(reason, f"{ended.how}: {tail(ended.errors)}")

    return run


def by_post(post: Post, outside: Outside, url: str) -> Function:
    """Sends them to a server."""

    async def send(context: Context, /, **given: Any) -> Any:
        try:
            answer = await post(
                url, headers(context, outside.command), sent(outside, given), outside.timeout_s + LATER_S
            )
        except NotConnected as error:
            raise CommandEnded(Reason.HANDLER_FAILED_TRANSIENT, str(error)) from error
        except Refused as error:
            raise CommandEnded(Reason.HANDLER_FAILED, error.detail) from error
        except OutboundFailed as error:
            raise outside.unknown(str(error)) from error
        return judged(outside, answer)

    return send


def by_console(
    world: World, outside: Outside, settings: RconSettings, pieces: tuple[Piece, ...], chosen: Collection[str],
    expect: str,
) -> Function:  # fmt: skip
    """Says a line with them on a game server's console."""

    async def say(context: Context, /, **given: Any) -> Any:
        try:
            line = fill_line(pieces, {**outside.defaults, **given}, chosen)
        except ArgumentRefused as error:
            raise CommandEnded(Reason.ARGUMENTS_INVALID, str(error)) from error
        try:
            answer = await ask(world, settings, line)
        except RconUnreached as error:
            raise CommandEnded(Reason.HANDLER_FAILED_TRANSIENT, str(error)) from error
        except RconRefused as error:
            raise CommandEnded(Reason.HANDLER_FAILED, str(error)) from error
        except RconFailed as error:
            raise outside.unknown(str(error)) from error
        if expect and expect.lower() not in answer.lower():
            raise CommandEnded(Reason.HANDLER_FAILED, f"the console says: {answer.strip()[:TOLD_CHARS_MAX]}")
        return answer

    return say


def judged(outside: Outside, answer: Answer) -> Any:
    """The value of what a server answered. Raises CommandEnded."""
    status, said = answer.status, tail(answer.body[: 4 * TOLD_CHARS_MAX])
    if 200 <= status < 300:
        if not answer.is_whole:
            raise CommandEnded(Reason.RESULT_TOO_LARGE, "the answer was cut short: too long, or it broke off")
        return outside.value(answer.body, len(answer.body), "the server")
    if status in _BUSY:
        later = answer.header("retry-after")
        when = f", Retry-After: {later[:100]}" if later else ""
        raise CommandEnded(Reason.HANDLER_FAILED_TRANSIENT, f"HTTP {status}{when}: {said}")
    note = " (redirects are not followed)" if 300 <= status < 400 else ""
    raise CommandEnded(Reason.HANDLER_FAILED, f"HTTP {status}{note}: {said}")


def sent(outside: Outside, given: Mapping[str, Any]) -> bytes:
    """The arguments, with the defaults of those that nobody gave."""
    return msgspec.json.encode({**outside.defaults, **given})


def tail(said: bytes) -> str:
    """The end of what the outside says, on one line and without control characters."""
    text = said.decode("utf-8", "replace").strip()
    text = "".join(each if each.isprintable() else " " for each in text)
    return text[-TOLD_CHARS_MAX:] or "(nothing was said)"


def environment(context: Context, command: str) -> dict[str, str]:
    """All that a program's environment has: nothing of this node's own, which may hold secrets."""
    identity = context.identity
    return {
        "PATH": PROGRAM_PATH,
        "LANG": "C.UTF-8",
        "FAIRLEAD_COMMAND": command,
        "FAIRLEAD_NODE": context.node_id,
        "FAIRLEAD_RUN_ID": context.run_id,
        "FAIRLEAD_ATTEMPT": str(context.attempt),
        "FAIRLEAD_IDEMPOTENCY_KEY": context.idempotency_key,
        "FAIRLEAD_TENANT": context.tenant,
        "FAIRLEAD_PRINCIPAL": identity.principal,
        "FAIRLEAD_SUBJECT_TYPE": identity.subject_type,
        "FAIRLEAD_SESSION": identity.session,
        "FAIRLEAD_CORRELATION_ID": context.correlation_id,
        "FAIRLEAD_DEADLINE_AT_MS": str(context.deadline_at_ms),
    }


def headers(context: Context, command: str) -> list[tuple[str, str]]:
    """Who asks for what, as a server reads it. What HTTP cannot carry is percent-encoded."""
    found = [("idempotency-key", context.idempotency_key), ("x-correlation-id", context.correlation_id)]
    for name, value in environment(context, command).items():
        if name.startswith("FAIRLEAD_") and name not in (
            "FAIRLEAD_IDEMPOTENCY_KEY",
            "FAIRLEAD_CORRELATION_ID",
        ):
            found.append((f"x-{name.lower().replace('_', '-')}", value))
    return [(name, quote(value, safe="!#$&'()*+,/:;=?@[]~ ").strip()) for name, value in found]
