"""Reads sources for the calls that they make over HTTP, and for the fields of the answers that they use.

Beside `sdk_drift`, which judges them by the OpenAPI document. Nothing is executed. What is put together at run time (an
id, an action) is a `{}` that may be anything; what cannot be read at all is told, so that it is not taken for judged.
Invariant: a field counts as used of an answer only where it is certain whose answer a name holds.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

Schemas = list[Mapping[str, Any]]
# Function -> where its method, path and body stand among the arguments. `fetch` only reads.
CALLERS: Final[Mapping[str, tuple[int | None, int, int | None]]] = {
    "call": (1, 2, 3), "fetch": (None, 1, None), "ask": (0, 1, 2),
}  # fmt: skip
METHODS: Final = frozenset({"GET", "POST", "PUT", "DELETE", "PATCH"})
ANY: Final = "{}"


@dataclass(frozen=True, slots=True)
class HttpCall:
    """A call as the source has it. `paths`: empty where it cannot be read; `body`: names of its keys."""

    where: str
    method: str
    paths: tuple[str, ...]
    query: tuple[str, ...] = ()
    body: tuple[str, ...] = ()


@dataclass(slots=True)
class Read:
    """What a source uses."""

    calls: list[HttpCall] = field(default_factory=list)
    fields: int = 0  # fields of answers that were judged
    unknown: list[str] = field(default_factory=list)  # fields that no answer has


class Document:
    """An OpenAPI document, as far as it says what is sent and answered."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._paths: Mapping[str, Any] = document["paths"]
        self._schemas: Mapping[str, Any] = document["components"]["schemas"]

    def operations(self, method: str, template: str) -> list[Mapping[str, Any]]:
        """Those that such a call may reach."""
        wanted = [_segment(each) for each in template.split("/")]
        found = []
        for path, methods in self._paths.items():
            have = path.split("/")
            fits = len(have) == len(wanted) and all(
                want is None or part == "{id}" or want.fullmatch(part)
                for want, part in zip(wanted, have, strict=True)
            )
            # What is put together reaches a path with an {id} only where nothing names it outright.
            if fits and method.lower() in methods:
                found.append((path.count("{id}"), methods[method.lower()]))
        if ANY not in template and found:
            fewest = min(ids for ids, _ in found)
            found = [each for each in found if each[0] == fewest]
        return [operation for _, operation in found]

    def body_fields(self, operation: Mapping[str, Any]) -> frozenset[str] | None:
        """The names that a body may hold; None: anything, or no body is described."""
        body = operation.get("requestBody")
        if body is None:
            return None
        schema = self._resolved(body["content"]["application/json"]["schema"])
        return frozenset(schema["properties"]) if "properties" in schema else None

    def answers(self, operation: Mapping[str, Any]) -> Schemas:
        """Of what is answered where nothing was refused."""
        found: Schemas = []
        for status, answer in operation["responses"].items():
            if status.startswith("2") and "application/json" in answer.get("content", {}):
                found.append(answer["content"]["application/json"]["schema"])
        return found

    def property_of(self, schemas: Schemas, name: str) -> Schemas | None:
        """What stands under a name; None where no answer has it. Nothing is known of `[{}]`."""
        found: Schemas = []
        for schema in self._alternatives(schemas):
            inside, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
            if name in inside:
                found.append(inside[name])
            elif schema.get("type") in ("object", None) and rest is not False:
                found.append(rest if isinstance(rest, Mapping) else {})
        return found or None

    def items_of(self, schemas: Schemas) -> Schemas:
        """What a list of it holds."""
        return [each.get("items", {}) for each in self._alternatives(schemas) if each.get("type") != "null"]

    def _alternatives(self, schemas: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        for schema in schemas:
            schema = self._resolved(schema)
            inner = [*schema.get("oneOf", ()), *schema.get("anyOf", ()), *schema.get("allOf", ())]
            if inner:
                yield from self._alternatives(inner)
            elif schema.get("type") != "null":
                yield schema

    def _resolved(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        while "$ref" in schema:
            schema = self._schemas[schema["$ref"].rpartition("/")[2]]
        return schema


def _segment(text: str) -> re.Pattern[str] | None:
    """What a segment may be; None: anything."""
    return None if text == ANY else re.compile("[^/]+".join(re.escape(part) for part in text.split(ANY)))


def read_source(name: str, text: str, document: Document) -> Read:
    """The calls of one source."""
    tree = ast.parse(text)
    found = Read()
    constants = {
        target.id: each.value
        for each in tree.body
        if isinstance(each, ast.Assign | ast.AnnAssign) and each.value is not None
        for target in (each.targets if isinstance(each, ast.Assign) else [each.target])
        if isinstance(target, ast.Name)
    }
    for each in ast.walk(tree):
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
            _Function(name, each, constants, document, found).read()
    return found


class _Function:
    """One function: what its names hold, and what is asked with them."""

    def __init__(
        self,
        source: str,
        node: ast.FunctionDef | ast.AsyncFunctionDef,
        constants: Mapping[str, ast.expr],
        document: Document,
        found: Read,
    ) -> None:
        self._source, self._node, self._document, self._found = source, node, document, found
        self._values: dict[str, list[ast.expr]] = {name: [value] for name, value in constants.items()}
        for each in ast.walk(node):
            if isinstance(each, ast.Assign | ast.AnnAssign) and each.value is not None:
                for target in each.targets if isinstance(each, ast.Assign) else [each.target]:
                    if isinstance(target, ast.Name):
                        self._values.setdefault(target.id, []).append(each.value)

    def read(self) -> None:
        holds: dict[str, Schemas] = {}
        others: set[str] = set()
        for each in ast.walk(self._node):
            if isinstance(each, ast.Call) and (asked := self._call(each)) is not None:
                self._found.calls.append(asked)
            if isinstance(each, ast.Assign):
                name, answers = self._answered(each)
                if name and answers is not None:
                    holds.setdefault(name, []).extend(answers)
                others |= {
                    inner.id
                    for target in each.targets
                    for inner in ast.walk(target)
                    if isinstance(inner, ast.Name) and (inner.id != name or answers is None)
                }
        # A name that holds something else as well proves nothing.
        self._visit(self._node, {name: found for name, found in holds.items() if name not in others})

    def _answered(self, node: ast.Assign) -> tuple[str, Schemas | None]:
        """`_, answer = call(...)`, or `answer = ask(...)`: the name, and what it then holds."""
        target = node.targets[0]
        if isinstance(target, ast.Tuple) and len(target.elts) == 2:
            target = target.elts[1]
        if not isinstance(target, ast.Name) or not isinstance(node.value, ast.Call):
            return "", None
        asked = self._call(node.value)
        if asked is None or not asked.paths or _called(node.value) == "fetch":
            return "", None
        return target.id, [
            schema
            for path in asked.paths
            for operation in self._document.operations(asked.method, path)
            for schema in self._document.answers(operation)
        ]

    # -- calls

    def _call(self, node: ast.Call) -> HttpCall | None:
        places = CALLERS.get(_called(node))
        if places is None or len(node.args) <= places[1]:
            return None
        method = "GET"
        if places[0] is not None:
            given = node.args[places[0]]
            if not isinstance(given, ast.Constant) or given.value not in METHODS:
                return None
            method = str(given.value)
        texts = self._texts(node.args[places[1]], 0)
        body: tuple[str, ...] = ()
        if places[2] is not None and len(node.args) > places[2]:
            body = tuple(sorted(self._keys(node.args[places[2]], 0)))
        query = {name for text in texts for name in re.findall(r"[?&]([a-z_]+)=?", text)}
        paths = tuple(sorted({text.partition("?")[0] for text in texts if text.startswith("/")}))
        return HttpCall(f"{self._source}:{node.lineno}", method, paths, tuple(sorted(query)), body)

    def _texts(self, node: ast.expr, depth: int) -> list[str]:
        """Every text that an expression may be, with {} for what is known only at run time. Empty: cannot be read."""
        if depth > 8:
            return []
        match node:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return _joined([self._texts(left, depth + 1), self._texts(right, depth + 1) or [ANY]])
            case ast.JoinedStr(values=values):
                return _joined(
                    [
                        self._texts(each.value, depth + 1) or [ANY]
                        if isinstance(each, ast.FormattedValue)
                        else self._texts(each, depth + 1)
                        for each in values
                    ]
                )
            case ast.IfExp(body=body, orelse=orelse):
                return [*self._texts(body, depth + 1), *self._texts(orelse, depth + 1)]
            case ast.Call(func=ast.Name(id="path_to"), args=parts):
                return _joined(
                    [
                        ["/" + (text or ANY) for text in self._texts(each, depth + 1) or [ANY]]
                        for each in parts
                    ]
                )
            case ast.Call(func=ast.Name(id="query"), args=[wanted]):
                return ["".join(f"?{name}=" for name in sorted(self._keys(wanted, depth + 1)))]
            case ast.Name(id=name) if name in self._values:
                return [text for value in self._values[name] for text in self._texts(value, depth + 1)]
            case _:
                return []

    def _keys(self, node: ast.expr, depth: int) -> set[str]:
        """The names that a dict written out here has, as far as they are written out."""
        match node:
            case ast.Dict(keys=keys, values=values):
                found = {
                    each.value
                    for each in keys
                    if isinstance(each, ast.Constant) and isinstance(each.value, str)
                }
                for key, value in zip(keys, values, strict=True):
                    if key is None:
                        found |= self._keys(value, depth + 1)
                return found
            case ast.Name(id=name) if name in self._values and depth < 8:
                return {key for value in self._values[name] for key in self._keys(value, depth + 1)}
            case _:
                return set()

    # -- fields of answers

    def _visit(self, node: ast.AST, holds: Mapping[str, Schemas]) -> None:
        inner = dict(holds)
        match node:
            case ast.For(target=ast.Name(id=name), iter=over):
                inner[name] = self._items(over, holds)
            case (
                ast.ListComp(generators=rows)
                | ast.GeneratorExp(generators=rows)
                | ast.SetComp(generators=rows)
                | ast.DictComp(generators=rows)
            ):
                for each in rows:
                    if isinstance(each.target, ast.Name):
                        inner[each.target.id] = self._items(each.iter, inner)
            case ast.Subscript() | ast.Call():
                self._judge(node, holds)
            case _:
                pass
        for child in ast.iter_child_nodes(node):
            self._visit(child, inner)

    def _items(self, node: ast.expr, holds: Mapping[str, Schemas]) -> Schemas:
        found = self._schemas(node, holds)
        return self._document.items_of(found) if found else []

    def _schemas(self, node: ast.expr, holds: Mapping[str, Schemas]) -> Schemas:
        """What an expression holds; empty: not known."""
        match node:
            case ast.Name(id=name):
                return holds.get(name, [])
            case ast.Subscript(value=value, slice=ast.Constant(value=str(name))):
                inside = self._schemas(value, holds)
                return (self._document.property_of(inside, name) or []) if inside else []
            case ast.Subscript(value=value, slice=ast.Constant(value=int())):
                return self._items(value, holds)
            case _:
                return []

    def _judge(self, node: ast.Subscript | ast.Call, holds: Mapping[str, Schemas]) -> None:
        match node:
            case ast.Subscript(value=value, slice=ast.Constant(value=str(name)), ctx=ast.Load()):
                pass
            case ast.Call(
                func=ast.Attribute(value=value, attr="get"), args=[ast.Constant(value=str(name)), *_]
            ):
                pass
            case _:
                return
        inside = self._schemas(value, holds)
        if not inside:
            return
        self._found.fields += 1
        if self._document.property_of(inside, name) is None:
            self._found.unknown.append(f"{self._source}:{node.lineno} reads {name!r}, which no answer has")


def _called(node: ast.Call) -> str:
    match node.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""


def _joined(parts: Sequence[Sequence[str]]) -> list[str]:
    """Every way to join one of each, as far as there are not too many."""
    found = [""]
    for each in parts:
        found = [f"{left}{right}" for left in found for right in each][:64]
    return found
