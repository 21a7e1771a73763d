"""Argument schemas: what a command takes, and whether given arguments fit.

A handler's signature becomes a tuple of `Parameter`s; the proxy checks submissions against it, the node
checks again before it executes. Types are few and have one spelling each:

    any  boolean  integer  number  string  object  array  array<T>
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from fairlead.protocol.limits import ARGUMENT_DEPTH_MAX

_SCALARS: Final = ("any", "boolean", "integer", "number", "string", "object", "array")
_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,63}")
PROBLEMS_MAX: Final = 20
REDACTED: Final = "[redacted]"
AUDITED_CHARS_MAX: Final = 200


class Parameter(msgspec.Struct, frozen=True, array_like=True):
    """One argument. `default_json` is shown to people; the handler itself supplies the value. `secret`: nobody but
    the handler is shown a value of it."""

    name: str
    type: str = "any"
    required: bool = True
    nullable: bool = False
    choices_json: tuple[str, ...] = ()
    default_json: str = ""
    secret: bool = False  # left out of the canonical encoding where false, as it came later


def type_is_known(name: str) -> bool:
    while name.startswith("array<") and name.endswith(">"):
        name = name[6:-1]
    return name in _SCALARS


def parameter_problem(parameter: Parameter) -> str | None:
    """What is wrong with a parameter's declaration, if anything."""
    if not _NAME.fullmatch(parameter.name):
        return f"parameter name {parameter.name!r} is not an identifier"
    if not type_is_known(parameter.type):
        return f"parameter {parameter.name}: unknown type {parameter.type!r}"
    return None


def argument_problems(parameters: Sequence[Parameter], arguments: Mapping[str, Any]) -> list[str]:
    """Every way in which the arguments do not fit, as sentences with paths. Empty if they fit."""
    problems: list[str] = []
    known = {parameter.name: parameter for parameter in parameters}
    for name in arguments:
        if name not in known:
            takes = ", ".join(known) or "no arguments"
            problems.append(f"{name}: unknown argument; the command takes {takes}")
    for parameter in parameters:
        if parameter.name not in arguments:
            if parameter.required:
                problems.append(f"{parameter.name}: missing, a value of type {parameter.type} is required")
            continue
        value = arguments[parameter.name]
        if value is None and parameter.nullable:
            continue
        before = len(problems)
        _check(parameter.name, parameter.type, value, 1, problems)
        if parameter.choices_json and len(problems) == before:
            encoded = msgspec.json.encode(value).decode()
            if encoded not in parameter.choices_json:
                problems.append(f"{parameter.name}: must be one of {', '.join(parameter.choices_json)}")
    return problems[:PROBLEMS_MAX]


def redacted(parameters: Sequence[Parameter] | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as people may see them. `None`: the schema is not known any more, and so nothing is shown."""
    open_ones = {each.name for each in parameters or () if not each.secret}
    return {name: value if name in open_ones else REDACTED for name, value in arguments.items()}


def audited(parameters: Sequence[Parameter], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as the audit trail keeps them: secrets redacted, and what the schema says nothing about as the
    hash of its JSON, which shows whether two were the same."""
    types = {each.name: each.type for each in parameters}
    kept: dict[str, Any] = {}
    for name, value in redacted(parameters, arguments).items():
        if value == REDACTED or types.get(name) in ("boolean", "integer", "number", "string"):
            kept[name] = value[:AUDITED_CHARS_MAX] if isinstance(value, str) else value
        else:
            encoded = msgspec.json.encode(value, order="deterministic")
            kept[name] = f"sha256:{hashlib.sha256(encoded).hexdigest()}"
    return kept


def _check(path: str, wanted: str, value: Any, depth: int, problems: list[str]) -> None:
    if depth > ARGUMENT_DEPTH_MAX:
        problems.append(f"{path}: nested deeper than {ARGUMENT_DEPTH_MAX}")
        return
    if not _fits(wanted, value):
        problems.append(f"{path}: must be {wanted}, found {_kind(value)}")
        return
    if isinstance(value, list):
        inner = wanted[6:-1] if wanted.startswith("array<") else "any"
        for index, item in enumerate(value):
            _check(f"{path}[{index}]", inner, item, depth + 1, problems)
            if len(problems) >= PROBLEMS_MAX:
                return
    elif isinstance(value, dict):
        for key, item in value.items():
            _check(f"{path}.{key}", "any", item, depth + 1, problems)
            if len(problems) >= PROBLEMS_MAX:
                return


def _fits(wanted: str, value: Any) -> bool:
    if wanted == "any":
        return True
    if wanted == "boolean":
        return isinstance(value, bool)
    if wanted == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    if wanted == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    if wanted == "string":
        return isinstance(value, str)
    if wanted == "object":
        return isinstance(value, dict)
    return isinstance(value, list)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    for name in ("boolean", "integer", "number", "string", "object", "array"):
        if _fits(name, value):
            return name
    return type(value).__name__
