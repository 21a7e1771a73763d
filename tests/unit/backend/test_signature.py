"""A handler's signature becomes its schema, or a message at import that says what to change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Optional, Union

import pytest

from fairlead.backend import Node
from fairlead.backend.signature import HandlerInvalid, description_of, parameters_of
from fairlead.protocol.registry import Flag
from fairlead.protocol.schema import Parameter, argument_problems


def test_every_type_has_one_spelling() -> None:
    def handler(  # type: ignore[no-untyped-def]
        ctx,
        text: str,
        count: int,
        share: float,
        yes: bool,
        thing: dict,  # type: ignore[type-arg]
        mapping: dict[str, int],
        items: list,  # type: ignore[type-arg]
        names: list[str],
        grid: list[list[int]],
        anything: Any,
        thing_too: object,
        bare,
    ): ...

    assert [(each.name, each.type, each.nullable) for each in parameters_of(handler)] == [
        ("text", "string", False),
        ("count", "integer", False),
        ("share", "number", False),
        ("yes", "boolean", False),
        ("thing", "object", False),
        ("mapping", "object", False),
        ("items", "array", False),
        ("names", "array<string>", False),
        ("grid", "array<array<integer>>", False),
        ("anything", "any", True),
        ("thing_too", "any", True),
        ("bare", "any", True),
    ]
    assert all(each.required for each in parameters_of(handler))


def test_unions_literals_and_defaults() -> None:
    def handler(  # type: ignore[no-untyped-def]
        ctx,
        a: str | None,
        b: Optional[int] = None,  # noqa: UP045 - what people write
        c: int | float = 1.5,
        d: Union[int, str] = 3,  # noqa: UP007
        e: Literal["x", "y"] = "x",
        f: Literal[1, "one"] = 1,
        g: Literal["x", "y"] | None = None,
        *,
        h: list[str] | None = None,
    ): ...

    assert parameters_of(handler) == (
        Parameter("a", "string", True, True),
        Parameter("b", "integer", False, True, (), "null"),
        Parameter("c", "number", False, False, (), "1.5"),
        Parameter("d", "any", False, False, (), "3"),
        Parameter("e", "string", False, False, ('"x"', '"y"'), '"x"'),
        Parameter("f", "any", False, False, ("1", '"one"'), "1"),
        Parameter("g", "string", False, True, ('"x"', '"y"'), "null"),
        Parameter("h", "array<string>", False, True, (), "null"),
    )


def test_the_schema_takes_what_the_handler_takes() -> None:
    def handler(
        ctx: object, names: list[str], mode: Literal["a", "b"] = "a", limit: int | None = None
    ) -> None: ...

    takes = parameters_of(handler)
    assert argument_problems(takes, {"names": ["x"], "mode": "b", "limit": None}) == []
    assert argument_problems(takes, {"names": []}) == []
    assert len(argument_problems(takes, {"names": [1], "mode": "c", "limit": "x"})) == 3


def no_context() -> None: ...
def star(ctx: object, *args: int) -> None: ...
def stars(ctx: object, **more: int) -> None: ...
def positional(ctx: object, a: int, /) -> None: ...
def a_tuple(ctx: object, a: tuple[int, ...]) -> None: ...
def a_set(ctx: object, a: set[int]) -> None: ...
def bytes_type(ctx: object, a: bytes) -> None: ...
def inner_bytes(ctx: object, a: list[bytes]) -> None: ...
def own_class(ctx: object, a: Parameter) -> None: ...
def bad_default(ctx: object, a: Any = object()) -> None: ...  # noqa: B008
def unresolvable(ctx: object, a: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    "function",
    [no_context, star, stars, positional, a_tuple, a_set, bytes_type, inner_bytes, own_class, bad_default,
     unresolvable],
)  # fmt: skip
def test_what_cannot_be_a_handler_says_so(function: Callable[..., Any]) -> None:
    with pytest.raises(HandlerInvalid) as caught:
        parameters_of(function)
    assert function.__name__ in str(caught.value)


def test_the_docstring_is_the_description() -> None:
    def handler(ctx: object) -> None:
        """Do it.

        Twice.
        """

    assert description_of(handler) == "Do it.\n\nTwice."
    assert description_of(no_context) == ""


# -- @node.command


def test_a_command_is_registered_with_all_it_says() -> None:
    node = Node()

    @node.command(
        "lobby:kick", effect="transactional", timeout_s=2.5, version=3, aliases=["boot"], permission="p",
        player_only=True, hidden=True, requires_approval=True,
    )  # fmt: skip
    def kick(ctx: object, player: str, why: str = "") -> None:
        """Remove."""

    found = node.handlers["lobby:kick"]
    assert found.function is kick
    assert not found.is_async
    descriptor = found.descriptor
    assert descriptor.timeout_ms == 2_500
    assert (descriptor.version, descriptor.aliases, descriptor.permission) == (3, ("boot",), "p")
    assert descriptor.flags == Flag.PLAYER_ONLY | Flag.HIDDEN | Flag.REQUIRES_APPROVAL
    assert descriptor.usage == "lobby:kick player= [why=]"
    assert descriptor.description == "Remove."
    assert descriptor.effect == "transactional"


def test_an_async_handler_is_known_as_such() -> None:
    node = Node()

    @node.command("a:b")
    async def handler(ctx: object) -> None: ...

    assert node.handlers["a:b"].is_async
    assert node.handlers["a:b"].descriptor.effect == "once"  # what is not declared is not repeated


@pytest.mark.parametrize(
    "options",
    [{"name": "kick"}, {"name": "A:b"}, {"name": "a:b", "effect": "maybe"}, {"name": "a:b", "timeout_s": 0},
     {"name": "a:b", "timeout_s": 4_000}, {"name": "a:b", "version": 0}, {"name": "a:b", "aliases": ["A"]}],
    ids=str,
)  # fmt: skip
def test_a_command_that_breaks_a_rule_is_refused_at_import(options: dict[str, Any]) -> None:
    node = Node()
    with pytest.raises(HandlerInvalid):
        node.command(**options)(lambda ctx: None)
    assert node.handlers == {}


def test_a_name_is_registered_once() -> None:
    node = Node()
    node.command("a:b")(lambda ctx: None)
    with pytest.raises(HandlerInvalid, match="twice"):
        node.command("a:b", version=2)(lambda ctx: None)
