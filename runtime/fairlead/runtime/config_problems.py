"""How a refused configuration is told: the key, what is wrong, what is allowed, what was found, what to do.

Pure. Invariants: a problem is one line; no value that is or may be a secret is ever shown, which holds for
mistyped names too: of what stands under an unknown key, only the size is told.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from fairlead.runtime.config_model import Unfit, core_type, element_table_of, is_secret, keys, table_of

FOUND_CHARS_MAX: Final = 80
REDACTED: Final = "<redacted>"
_SECRET_WORDS: Final = ("secret", "key", "token")
_TYPES: Final = {
    "tuple_type": "must be a list",
    "dict_type": "must be a table",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "bool_type": "must be a boolean",
    "string_type": "must be a string in quotes",
    "greater_than_equal": "is too small",
    "less_than_equal": "is too large",
    "literal_error": "is not one of the choices",
    "string_too_short": "is empty",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `path` is the key, or the environment variable that set it."""

    path: str
    found: str  # fit to print: never a secret
    message: str  # what is wrong, with what would be allowed
    action: str = ""

    def __str__(self) -> str:
        line = f"{self.path}: {self.message}, found: {self.found}"
        return f"{line}, {self.action}" if self.action else line


class ConfigError(Exception):
    """The configuration is refused. `str` has one line for each problem."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def describe(model: type[BaseModel], details: ErrorDetails, path: str) -> Problem:
    """The problem that a pydantic error stands for, in our words, told at `path`."""
    location, kind, value = details["loc"], details["type"], details["input"]
    owner, field = _field_at(model, location)
    name = str(location[-1])
    if kind == "extra_forbidden":
        action = did_you_mean(name, owner.model_fields) or _belongs_to(model, name) or "remove it"
        return Problem(path, size(value), "unknown key", action)
    if field is None:
        return Problem(path, size(value), details["msg"], "correct it")
    if kind == "missing":
        example = json.dumps(field.examples[0]) if field.examples else "..."
        return Problem(path, "nothing", "is required", f"add it, for example: {name} = {example}")
    if element_table_of(field) is not None:
        table = next(part for part in reversed(location) if isinstance(part, str))
        return Problem(
            path, size(value), "must be an array of tables", f"write [[{table}]] and the keys below"
        )
    if table_of(field) is not None:
        return Problem(path, size(value), "must be a table", f"write [{name}] and the keys below")
    found = shown(value, secret=is_secret(field) or is_secret_name(dotted(location)))
    error = details.get("ctx", {}).get("error")
    if isinstance(error, Unfit):
        return Problem(path, found, str(error), error.action)
    allowed = _allowed(field)
    message = _TYPES.get(kind, details["msg"])
    return Problem(path, found, f"{message} (allowed: {allowed})" if allowed else message, "correct it")


def dotted(location: Iterable[str | int]) -> str:
    """A key's path as people write it: `listeners[0].port`."""
    parts = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return parts.removeprefix(".")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question with the nearest known name; empty if none is near."""
    close = difflib.get_close_matches(name, list(known), 1, 0.7)
    return f"did you mean {close[0]}?" if close else ""


def shown(value: object, *, secret: bool) -> str:
    """A value as a person would write it, on one line; of secrets, only how long they are."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if secret:
        return f"{REDACTED} ({size(value)})"
    if isinstance(value, dict | list | tuple):
        return size(value)
    if isinstance(value, str):
        value = re.sub(r"://.*@", f"://{REDACTED}@", value, flags=re.DOTALL)  # a URL may carry a password
    text = json.dumps(value, default=str)
    return text if len(text) <= FOUND_CHARS_MAX else f"{text[:FOUND_CHARS_MAX]}... ({size(value)})"


def size(value: object) -> str:
    """What can be said of a value that may be a secret under a mistyped name."""
    match value:
        case str():
            return f"{len(value)} characters"
        case list() | tuple():
            return f"a list of {len(value)}"
        case dict():
            return f"a table of {len(value)}"
        case _:
            return f"a value of type {type(value).__name__}"


def is_secret_name(key: str) -> bool:
    """Whether what stands under this key is taken for a secret, whatever the model says."""
    return any(word in key.lower() for word in _SECRET_WORDS)


def _field_at(
    model: type[BaseModel], location: Sequence[str | int]
) -> tuple[type[BaseModel], FieldInfo | None]:
    """The innermost table on the way, and the key in it unless the way ends at an unknown one."""
    owner: type[BaseModel] = model
    field: FieldInfo | None = None
    for part in location:
        if isinstance(part, int):
            continue
        if field is not None:
            inner = table_of(field) or element_table_of(field)
            if inner is None:
                return owner, field  # inside a value: a label's name
            owner = inner
        field = owner.model_fields.get(part)
    return owner, field


def _allowed(field: FieldInfo) -> str:
    """What a key accepts, in words; empty where its validator says it."""
    core = core_type(field.annotation)
    if core is bool:
        return "true or false"
    if get_origin(core) is Literal:
        return " or ".join(json.dumps(choice) for choice in get_args(core))
    low, high = bound(field, "ge"), bound(field, "le")
    if low is None or high is None:
        return ""
    return str(low) if low == high else f"{low} to {high}"


def bound(field: FieldInfo, name: Literal["ge", "le"]) -> Any:
    """The lower or upper end of a key's range; None if it has none."""
    return next((getattr(part, name) for part in field.metadata if hasattr(part, name)), None)


def _belongs_to(model: type[BaseModel], name: str) -> str:
    """For a right key in a wrong table: in TOML, every key after a [table] line is in that table."""
    for path, _ in keys(model):
        if path[-1] == name:
            return f"it belongs under [{path[0]}]" if len(path) > 1 else "it belongs above the first [table]"
    return ""
