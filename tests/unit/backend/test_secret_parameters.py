"""Parameters that are secret: how they are spelled, what others are shown, and that nothing else changes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgpack
import msgspec

from fairlead.backend import Secret
from fairlead.backend.signature import parameters_of
from fairlead.protocol.registry import Descriptor, Item, canonical_item, decode_item
from fairlead.protocol.schema import Parameter, argument_problems, audited, redacted


def test_a_parameter_is_marked_by_its_annotation() -> None:
    def handler(
        ctx: Any,
        plain: str,
        one: Annotated[str, Secret],
        two: Annotated[str, Secret()] | None = None,
        three: Annotated[Literal["a", "b"], "doc", Secret] = "a",
        four: Annotated[int, "doc"] = 1,
    ) -> None: ...

    found = {each.name: each for each in parameters_of(handler)}
    assert {name for name, each in found.items() if each.secret} == {"one", "two", "three"}
    assert (found["one"].type, found["two"].type, found["two"].nullable) == ("string", "string", True)
    assert found["three"].choices_json == ('"a"', '"b"')
    assert (found["three"].default_json, found["two"].default_json) == ('"[redacted]"', "null")
    assert argument_problems(tuple(found.values()), {"plain": "x", "one": "y"}) == []


def test_a_command_without_secrets_is_known_by_the_bytes_it_always_had() -> None:
    """Else a fleet that is upgraded node by node would hold two commands of one name."""
    parameter = Parameter("a", "integer")
    item = canonical_item(Descriptor("t:x", parameters=(parameter,)))
    assert msgpack.unpackb(item.canonical)[5] == [["a", "integer", True, False, [], ""]]
    assert isinstance(decode_item(item.canonical), Item)


def test_a_secret_changes_the_digest_and_survives_the_wire() -> None:
    plain = canonical_item(Descriptor("t:x", parameters=(Parameter("a"), Parameter("b"))))
    secret = canonical_item(Descriptor("t:x", parameters=(Parameter("a"), Parameter("b", secret=True))))
    assert plain.digest != secret.digest
    decoded = decode_item(secret.canonical)
    assert isinstance(decoded, Item)
    assert [each.secret for each in decoded.descriptor.parameters] == [False, True]


def test_an_encoding_that_says_what_is_left_out_is_refused() -> None:
    """One command, one encoding."""
    fields = msgspec.to_builtins(Descriptor("t:x", parameters=(Parameter("a"),)))
    assert not isinstance(decode_item(msgpack.packb(fields, use_bin_type=True)), Item)


PARAMETERS = (
    Parameter("user", "string"), Parameter("password", "string", secret=True), Parameter("n", "integer"),
    Parameter("any", "any"), Parameter("list", "array<integer>"),
)  # fmt: skip


def test_nobody_is_shown_a_secret_nor_what_no_schema_speaks_of() -> None:
    given = {"user": "ann", "password": "p", "other": 1}
    assert redacted(PARAMETERS, given) == {"user": "ann", "password": "[redacted]", "other": "[redacted]"}
    assert redacted(None, given) == dict.fromkeys(given, "[redacted]")


def test_the_audit_trail_keeps_plain_values_and_hashes_of_free_ones() -> None:
    kept = audited(
        PARAMETERS, {"user": "a" * 300, "password": "p", "n": 3, "any": {"b": 1, "a": 2}, "list": [1]}
    )
    assert (kept["user"], kept["password"], kept["n"]) == ("a" * 200, "[redacted]", 3)
    assert kept["any"] == audited(PARAMETERS, {"any": {"a": 2, "b": 1}})["any"]
    assert kept["any"].startswith("sha256:")
    assert kept["list"] != audited(PARAMETERS, {"list": [2]})["list"]
