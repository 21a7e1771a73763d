"""Pure. A handler's signature becomes its argument schema; its docstring the description."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin

import msgspec

from fairlead.protocol.schema import REDACTED, Parameter

_SIMPLE = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object", list: "array"}


class Secret:
    """Marks a parameter whose values nobody but the handler is shown: `password: Annotated[str, Secret]`."""


class HandlerInvalid(TypeError):
    """The function cannot be a handler; the message says what to change."""


def parameters_of(function: Callable[..., Any]) -> tuple[Parameter, ...]:
    """The schema of everything after the first parameter (`ctx`). Raises HandlerInvalid."""
    name = function.__name__
    declared = list(inspect.signature(function).parameters.values())
    if not declared:
        raise HandlerInvalid(f"{name}: a handler's first parameter is the context, e.g. `def {name}(ctx)`")
    try:
        hints = typing.get_type_hints(function)
        marked = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise HandlerInvalid(f"{name}: an annotation cannot be resolved: {error}") from error
    found = []
    for each in declared[1:]:
        if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD, each.POSITIONAL_ONLY):
            raise HandlerInvalid(
                f"{name}: parameter {each.name} must be nameable; *args and **kwargs are not"
            )
        kind, nullable, choices = _schema(name, each.name, hints.get(each.name, Any))
        required = each.default is each.empty
        default = "" if required else _json(name, each.name, each.default)
        secret = _is_secret(marked.get(each.name, Any))
        if secret and default not in ("", "null", '""'):
            default = f'"{REDACTED}"'
        found.append(Parameter(each.name, kind, required, nullable, choices, default, secret))
    return tuple(found)


def description_of(function: Callable[..., Any]) -> str:
    return inspect.getdoc(function) or ""


def _is_secret(hint: Any) -> bool:
    """Whether it is marked, itself or something in it: `Annotated[str, Secret] | None` is, too."""
    marks = getattr(hint, "__metadata__", ())
    return any(mark is Secret or isinstance(mark, Secret) for mark in marks) or any(
        _is_secret(each) for each in get_args(hint)
    )


def _schema(function: str, parameter: str, hint: Any) -> tuple[str, bool, tuple[str, ...]]:
    if hint is Any or hint is object:
        return "any", True, ()
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        members = [each for each in get_args(hint) if each is not type(None)]
        nullable = len(members) != len(get_args(hint))
        if len(members) == 1:
            kind, _, choices = _schema(function, parameter, members[0])
            return kind, nullable, choices
        if {*members} <= {int, float}:
            return "number", nullable, ()
        return "any", nullable, ()
    if origin is Literal:
        values = get_args(hint)
        kinds = {_SIMPLE.get(type(value), "any") for value in values}
        kind = kinds.pop() if len(kinds) == 1 else "any"
        return kind, False, tuple(_json(function, parameter, value) for value in values)
    if origin in (list, tuple, set, frozenset):
        if origin is not list:
            raise HandlerInvalid(
                f"{function}: parameter {parameter}: use list, JSON has no {origin.__name__}"
            )
        inner, _, _ = _schema(function, parameter, get_args(hint)[0])
        return f"array<{inner}>", False, ()
    if origin is dict:
        return "object", False, ()
    if hint in _SIMPLE:
        return _SIMPLE[hint], False, ()
    raise HandlerInvalid(
        f"{function}: parameter {parameter}: {hint!r} is not a JSON type; use str, int, float, bool, list, dict, "
        "Literal, Optional or leave it unannotated"
    )


def _json(function: str, parameter: str, value: Any) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except (TypeError, msgspec.MsgspecError) as error:
        raise HandlerInvalid(f"{function}: parameter {parameter}: default {value!r} is not JSON") from error
