"""[[commands]] of `node.toml`: commands that need no Python, and which of them contradict themselves.

Owns the keys of one command and what is judged about them before a node starts. Invariants: a command is done in
exactly one way; it is never transactional; what it reaches over the network is loopback or was listed by the operator;
an argument reaches a console's line only by a parameter that always has a value.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec
from pydantic import AfterValidator, Field

from fairlead.backend.console_line import Piece, read_line
from fairlead.protocol.registry import (
    NAME_PATTERN,
    Descriptor,
    Effect,
    Flag,
    descriptor_problem,
)
from fairlead.protocol.schema import REDACTED, Parameter, argument_problems, parameter_problem
from fairlead.runtime.addresses import Destination, read_url
from fairlead.runtime.config_model import Finding, Lax, Section, Unfit, is_loopback
from fairlead.runtime.config_problems import Problem

TIMEOUT_S_MAX: Final = 3_600
PROGRAM_ARGUMENTS_MAX: Final = 64
SCALARS: Final = frozenset({"string", "integer", "number", "boolean"})
_PARAMETER_KEYS: Final = frozenset({"type", "required", "nullable", "choices", "default", "secret"})
_CONSOLE_KEYS: Final = {"line": str, "host": str, "port": int, "password_file": str, "expect": str}


@dataclass(frozen=True, slots=True)
class ConsoleTable:
    """`rcon = {...}` as read. What is empty is taken from [rcon]."""

    pieces: tuple[Piece, ...]
    host: str = ""
    port: int = 0
    password_file: str = ""
    expect: str = ""


def _check_name(text: str) -> str:
    if not NAME_PATTERN.fullmatch(text):
        raise Unfit("is not a command's name (allowed: namespace:name, of a-z 0-9 _ . -)", "rename it")
    if text.startswith("fairlead:"):
        raise Unfit("is in the proxy's own namespace, in which no node may announce", "rename it")
    return text


def _check_effect(text: str) -> str:
    if text == Effect.TRANSACTIONAL:
        raise Unfit(
            'cannot be "transactional": what a program or a server does is not in the transaction of the node\'s '
            'inbox, so nobody can promise it exactly once (allowed: "once" or "idempotent")',
            'write "once", or "idempotent" where doing it twice is the same as once',
        )
    if text not in (Effect.ONCE, Effect.IDEMPOTENT):
        raise Unfit('is not one of the choices (allowed: "once" or "idempotent")', "correct it")
    return text


def _check_run(arguments: tuple[str, ...]) -> tuple[str, ...]:
    if arguments and not arguments[0]:
        raise Unfit("names no program", 'write ["/path/of/program", "argument"]')
    if len(arguments) > PROGRAM_ARGUMENTS_MAX or any("\0" in each for each in arguments):
        raise Unfit(f"has a NUL or more than {PROGRAM_ARGUMENTS_MAX} elements", "correct it")
    return arguments


def _check_post(text: str) -> str:
    read = read_url(text) if text else ""
    if text and isinstance(read, str):
        raise Unfit(f"{read} (allowed: like http://127.0.0.1:8080/path)", "correct it")
    return text


def _check_parameters(table: dict[str, Any]) -> dict[str, Any]:
    read_parameters(table)
    return table


def _check_rcon(table: dict[str, Any]) -> dict[str, Any]:
    if table:
        read_rcon(table)
    return table


CommandName = Annotated[str, AfterValidator(_check_name)]
EffectName = Annotated[str, AfterValidator(_check_effect)]
ProgramArguments = Annotated[tuple[str, ...], Lax, AfterValidator(_check_run)]
PostUrl = Annotated[str, AfterValidator(_check_post)]
Parameters = Annotated[dict[str, Any], AfterValidator(_check_parameters)]
RconTable = Annotated[dict[str, Any], AfterValidator(_check_rcon)]


class CommandConfig(Section):
    """[[commands]]: a command that a program, a local HTTP server or a game server's console carries out."""

    name: CommandName = Field(examples=["lobby:echo"])
    """The command's name, namespace:name. The proxy must grant this node the namespace."""
    enabled: bool = Field(True, examples=[False])
    """Whether the node offers it."""
    description: str = Field("", max_length=1_024, examples=["Returns its arguments: the program is cat."])
    """What people read in lists of commands."""
    effect: EffectName = "once"
    """once: never run again by itself. idempotent: may run again. transactional is refused: see docs/commands.md."""
    timeout_s: int = Field(30, ge=1, le=TIMEOUT_S_MAX)
    """Time for it, after which it is stopped. At most worker.task_timeout_ms."""
    attempts: int = Field(0, ge=0, le=20)
    """Most attempts of one that is idempotent. 0: as the proxy is configured."""
    version: int = Field(1, ge=1, le=2**31)
    """Version of the command, for people."""
    aliases: Annotated[tuple[str, ...], Lax] = ()
    """Further names, without namespace."""
    permission: str = Field("", max_length=1_024)
    """Permission that whoever calls it needs. Empty: none."""
    player_only: bool = False
    """Whether only players may call it."""
    hidden: bool = False
    """Whether lists for people leave it out, and its short names."""
    requires_approval: bool = False
    """Whether somebody else has to approve each run first."""
    parameters: Parameters = Field(
        default_factory=dict, examples=[{"text": "string", "times": {"type": "integer", "default": 1}}]
    )
    """Its arguments: a type, or a table of type, required, nullable, choices, default, secret."""
    result: Literal["json", "text"] = "json"
    """What run and post answer with: JSON, or text as it is. Consoles answer with text."""
    run: ProgramArguments = Field((), examples=[["/bin/cat"]])
    """Program and arguments, without a shell. It gets the command's arguments as JSON on standard input."""
    post: PostUrl = ""
    """URL that the arguments are sent to. On loopback, or on a host of worker.command_allowed_hosts."""
    rcon: RconTable = Field(default_factory=dict)
    """A console's line, such as { line = "kick {player} {reason:text}" }; host, port, password_file as in [rcon]."""

    @property
    def ways(self) -> tuple[str, ...]:
        """The ways in which it is to be done; one, unless it is refused."""
        return tuple(way for way in ("run", "post", "rcon") if getattr(self, way))

    @property
    def takes(self) -> tuple[Parameter, ...]:
        """The parameters as the registry has them."""
        return read_parameters(self.parameters)[0]

    @property
    def defaults(self) -> dict[str, Any]:
        """The values of arguments that nobody gave."""
        return read_parameters(self.parameters)[1]

    @property
    def console(self) -> ConsoleTable:
        return read_rcon(self.rcon)

    @property
    def descriptor(self) -> Descriptor:
        """What the node announces."""
        flags = Flag(0)
        for wanted, flag in (
            (self.player_only, Flag.PLAYER_ONLY),
            (self.hidden, Flag.HIDDEN),
            (self.requires_approval, Flag.REQUIRES_APPROVAL),
        ):
            flags |= flag if wanted else Flag(0)
        shown = [f"{each.name}=" if each.required else f"[{each.name}=]" for each in self.takes]
        return Descriptor(
            name=self.name, version=self.version, aliases=self.aliases, description=self.description,
            usage=" ".join([self.name, *shown]), parameters=self.takes, permission=self.permission,
            flags=int(flags), effect=self.effect, timeout_ms=self.timeout_s * 1000, attempts_max=self.attempts,
        )  # fmt: skip


def read_parameters(table: Mapping[str, Any]) -> tuple[tuple[Parameter, ...], dict[str, Any]]:
    """The schema that `parameters` stands for, and the defaults. Raises Unfit."""
    found: list[Parameter] = []
    defaults: dict[str, Any] = {}
    for name, given in table.items():
        spec = {"type": given} if isinstance(given, str) else given
        if not isinstance(spec, dict) or not spec.keys() <= _PARAMETER_KEYS:
            allowed = ", ".join(sorted(_PARAMETER_KEYS))
            raise Unfit(f"{name} is neither a type nor a table of {allowed}", "correct it")
        flags = {key: spec.get(key, False) for key in ("required", "nullable", "secret")}
        flags["required"] = spec.get("required", "default" not in spec)
        choices = spec.get("choices", [])
        if not all(isinstance(each, bool) for each in flags.values()) or not isinstance(choices, list):
            raise Unfit(
                f"{name} has a flag that is not true or false, or choices that are no list", "correct it"
            )
        if flags["required"] and "default" in spec:
            raise Unfit(f"{name} is required and has a default", "remove one")
        kind = spec.get("type", "any")
        try:
            parameter = Parameter(
                name, kind if isinstance(kind, str) else "", flags["required"], flags["nullable"],
                tuple(_json(each) for each in choices), _json(spec["default"]) if "default" in spec else "",
                flags["secret"],
            )  # fmt: skip
        except (TypeError, msgspec.MsgspecError):
            raise Unfit(f"{name} has a default or a choice that JSON does not know", "correct it") from None
        problem = parameter_problem(parameter)
        if problem:
            raise Unfit(problem, "correct it")
        values = [spec["default"]] if "default" in spec else []
        for value in [*values, *choices]:
            if argument_problems((parameter,), {name: value}):
                raise Unfit(
                    f"{name} has a default or a choice that is not one of its own values", "correct it"
                )
        if "default" in spec:
            defaults[name] = spec["default"]
            if parameter.secret:
                parameter = msgspec.structs.replace(parameter, default_json=f'"{REDACTED}"')
        found.append(parameter)
    return tuple(found), defaults


def read_rcon(table: Mapping[str, Any]) -> ConsoleTable:
    """What `rcon` stands for. Raises Unfit."""
    for key, value in table.items():
        kind = _CONSOLE_KEYS.get(key)
        if kind is None:
            raise Unfit(f"has a key that is none (allowed: {', '.join(_CONSOLE_KEYS)})", "remove it")
        if not isinstance(value, kind) or isinstance(value, bool):
            raise Unfit(
                f"{key} must be {'an integer' if kind is int else 'a string in quotes'}", "correct it"
            )
    if not 0 <= table.get("port", 0) <= 65_535:
        raise Unfit("port is not one (allowed: 1 to 65535)", "correct it")
    pieces = read_line(table.get("line", ""))
    if isinstance(pieces, str):
        raise Unfit(f"line {pieces}", "see docs/commands.md")
    return ConsoleTable(pieces, **{key: value for key, value in table.items() if key != "line"})


def command_findings(
    commands: Sequence[CommandConfig],
    allowed_hosts: Collection[str],
    timeout_ms_max: int,
    rcon_port: int,
) -> Iterator[Finding]:
    """Which commands contradict themselves, each other, or the rest of the configuration."""
    for index, command in enumerate(commands):
        where = f"commands[{index}]"
        if any(command.name == other.name for other in commands[:index]):
            yield Finding((f"{where}.name",), command.name, "is the name of another command", "rename one")
        if len(command.ways) != 1:
            paths = (f"{where}.run", f"{where}.post", f"{where}.rcon")
            found = ", ".join(command.ways) or None
            yield Finding(paths, found, "or post or rcon: exactly one is required", "keep one of them")
        if command.timeout_s * 1000 > timeout_ms_max:
            yield Finding(
                (f"{where}.timeout_s", "worker.task_timeout_ms"), command.timeout_s,
                f"is longer than any handler may take (allowed: at most {timeout_ms_max} ms)",
                "lower it, or raise worker.task_timeout_ms",
            )  # fmt: skip
        problem = descriptor_problem(command.descriptor)
        if problem:
            keys = ("name", "aliases", "parameters")
            yield Finding(
                tuple(f"{where}.{key}" for key in keys), command.name, f"is refused: {problem}", "correct it"
            )
        destination = read_url(command.post) if command.post else ""
        if isinstance(destination, Destination):
            yield from _host(f"{where}.post", destination.host, allowed_hosts)
        if command.rcon:
            yield from _console(where, command, allowed_hosts, rcon_port)


def _console(
    where: str, command: CommandConfig, allowed_hosts: Collection[str], rcon_port: int
) -> Iterator[Finding]:
    console = command.console
    if console.host:
        yield from _host(f"{where}.rcon", console.host, allowed_hosts)
    if not console.port and not rcon_port:
        paths = (f"{where}.rcon", "rcon.port")
        yield Finding(paths, None, "names no port, and [rcon] has none", "add port, or set rcon.port")
    if console.port and not console.password_file:
        message = "names a port and no password_file"
        yield Finding((f"{where}.rcon",), console.port, message, "add it, or leave both to [rcon]")
    known = {each.name: each for each in command.takes}
    for piece in console.pieces:
        if not piece.parameter:
            continue
        paths = (f"{where}.rcon", f"{where}.parameters")
        parameter = known.get(piece.parameter)
        if parameter is None:
            yield Finding(paths, piece.parameter, "is in the line and no parameter", "add it to parameters")
        elif parameter.type not in SCALARS or parameter.nullable:
            message = "cannot stand in a line (allowed: string, integer, number or boolean, not nullable)"
            yield Finding(paths, piece.parameter, message, "change its type")
        elif not parameter.required and parameter.name not in command.defaults:
            message = "is in the line and may be missing"
            yield Finding(paths, piece.parameter, message, "make it required, or give it a default")


def _host(path: str, host: str, allowed_hosts: Collection[str]) -> Iterator[Finding]:
    if not is_loopback(host) and host not in allowed_hosts:
        yield Finding(
            (path, "worker.command_allowed_hosts"), host, "is neither loopback nor listed",
            "add the host to worker.command_allowed_hosts",
        )  # fmt: skip


def password_problems(commands: Sequence[CommandConfig], read_file: Callable[[str], str]) -> list[Problem]:
    """Which consoles' password files cannot be used."""
    found = []
    for index, command in enumerate(commands):
        if command.rcon and (path := command.console.password_file):
            try:
                read_file(path)
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else "it is not text"
                found.append(
                    Problem(
                        f"commands[{index}].rcon",
                        "password_file",
                        f"cannot be used: {why}",
                        "correct the file",
                    )
                )
    return found


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
