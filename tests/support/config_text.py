"""Configurations as text, for tests: secrets that pass, a TOML writer, and every key of a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fairlead.runtime.config_model import element_table_of, keys, table_of


def strong(name: str) -> str:
    """A strong secret, the same at every run."""
    return hashlib.sha256(name.encode()).hexdigest()


SECRET, PREVIOUS, OPS_KEY = strong("current"), strong("previous"), strong("ops key")


def to_toml(data: Mapping[str, Any]) -> str:
    """TOML of scalars, lists, tables and arrays of tables."""
    lines = [f"{key} = {_value(value)}" for key, value in data.items() if not _is_table(value)]
    for name, value in data.items():
        if _is_table(value):
            for table in value if isinstance(value, list) else [value]:
                lines.append(f"[[{name}]]" if isinstance(value, list) else f"[{name}]")
                lines += [f"{key} = {_value(inner)}" for key, inner in table.items()]
    return "\n".join(lines)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(x, dict) for x in value))


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(inner) for inner in value) + "]"
    return json.dumps(value)


def all_keys(model: type[BaseModel]) -> Iterator[tuple[tuple[str, ...], FieldInfo, bool]]:
    """Every key with its path, and whether it stands in an array of tables."""
    for path, field in keys(model):
        yield path, field, False
    for name, field in model.model_fields.items():
        element = element_table_of(field)
        if element is not None:
            for key, inner in element.model_fields.items():
                assert table_of(inner) is None
                yield (name, key), inner, True


def with_key(base: Mapping[str, Any], path: tuple[str, ...], in_array: bool, value: Any) -> dict[str, Any]:
    """A copy of `base` with one key set; in an array of tables, in its first element."""
    data: dict[str, Any] = json.loads(json.dumps(base))
    table: Any = data
    for part in path[:-1]:
        table = table.setdefault(part, {})
        if in_array:
            table = table[0]
    table[path[-1]] = value
    return data
