"""From a request's body to a run that may be accepted, or every reason why not."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason, Refused
from fairlead.protocol.registry import Descriptor, Registry, build, canonical_item
from fairlead.protocol.schema import Parameter
from fairlead.proxy.dispatch.submit import (
    Planned,
    Submission,
    SubmitLimits,
    parse_batch,
    parse_one,
    plan,
)

NOW_MS = 1_000_000
BOUNDS = SubmitLimits(1_000, 5, 30_000, 600_000, True)
IDENTITY = Identity("ops", "operator", ("admin",), ("dispatch",), "default")


def registry() -> Registry:
    items = [
        canonical_item(Descriptor("a:add", 1, ("plus",), parameters=(Parameter("n", "integer"),), effect="idempotent",
                                  timeout_ms=7_000)),
        canonical_item(Descriptor("a:ping")),
        canonical_item(Descriptor("b:ping")),
    ]  # fmt: skip
    found = build("fleet", 1, 1, {each.descriptor.name: each for each in items})
    assert isinstance(found, Registry)
    return found


class Nodes:
    """Three nodes, two of them with the command, in two regions."""

    def node_ids(self) -> tuple[str, ...]:
        return ("n1", "n2", "n3")

    def offering(self, command: str) -> list[str]:
        return {"a:add": ["n1", "n2"]}.get(command, [])

    def labels(self, node_id: str) -> dict[str, str]:
        return {"n1": {"region": "eu", "tier": "1"}, "n2": {"region": "us"}}.get(node_id, {})


def planned(header_key: str | None = None, bounds: SubmitLimits = BOUNDS, **asked: Any) -> Planned:
    ids = (f"id-{number}" for number in itertools.count(1))
    return plan(
        Submission(**{"command": "a:add", "args": {"n": 1}, **asked}), header_key, registry(), Nodes(), IDENTITY,
        "corr", bounds, lambda: next(ids), NOW_MS,
    )  # fmt: skip


def refusal(**asked: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        planned(**asked)
    return caught.value


# -- bodies


def test_a_body_says_what_it_wants_and_the_rest_has_defaults() -> None:
    assert parse_one(b'{"command": "a:b"}') == Submission("a:b", {}, "any", None, None, None)
    whole = (
        b'{"command":"a:b","args":{"x":[1]},"target":"n1","tenant":"t","idempotency_key":"k","deadline_ms":5}'
    )
    assert parse_one(whole) == Submission("a:b", {"x": [1]}, "n1", "t", "k", 5)


_BAD_BODIES = [
    b"", b"null", b"[]", b"{}", b'"a:b"', b'{"command": 1}', b'{"command": null}', b'{"command": "a:b", "args": []}',
    b'{"command": "a:b", "args": null}', b'{"command": "a:b", "target": 1}', b'{"command": "a:b", "arg": {}}',
    b'{"command": "a:b", "deadline_ms": 1.5}', b'{"command": "a:b", "deadline_ms": true}',
    b'{"command": "a:b", "deadline_ms": "5"}', b'{"command": "a:b"} {}', b'{"command": "a:b"', b"\xff\xfe",
    b'{"command": "\xff"}', b'{"command": "\\ud800"}', b'{"command": "a:b", "args": {"x": NaN}}',
    b'{"command": "a:b", "args": ' + b'{"x":' * 5_000 + b"1" + b"}" * 5_001,
]  # fmt: skip


@pytest.mark.parametrize("body", _BAD_BODIES, ids=lambda body: repr(body[:40]))
def test_any_other_body_is_malformed_and_says_where(body: bytes) -> None:
    with pytest.raises(Refused) as caught:
        parse_one(body)
    assert caught.value.reason is Reason.BODY_MALFORMED
    assert caught.value.detail


@pytest.mark.parametrize(
    "body", [b'[{"command":"a:b"},{"command":"a:c"}]', b'{"items":[{"command":"a:b"},{"command":"a:c"}]}']
)
def test_a_batch_is_an_array_or_an_object_with_items(body: bytes) -> None:
    assert parse_batch(body, BOUNDS) == [Submission("a:b"), Submission("a:c")]


def test_each_item_of_a_batch_is_judged_by_itself() -> None:
    found = parse_batch(b'[{"command":"a:b"}, {"command":1}, 7, {"command":"a:c"}]', BOUNDS)
    assert [type(each).__name__ for each in found] == ["Submission", "Refused", "Refused", "Submission"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"[]", Reason.BODY_MALFORMED),
        (b'{"items":[]}', Reason.BODY_MALFORMED),
        (b'{"items":[{"command":"a:b"}],"more":[]}', Reason.BODY_MALFORMED),
        (b'{"item":[{"command":"a:b"}]}', Reason.BODY_MALFORMED),
        (b"7", Reason.BODY_MALFORMED),
        (b"", Reason.BODY_MALFORMED),
        (b"\xff", Reason.BODY_MALFORMED),
        (b"[" + b",".join([b'{"command":"a:b"}'] * 6) + b"]", Reason.BATCH_TOO_LARGE),
    ],
)
def test_a_batch_refused_as_a_whole(body: bytes, reason: Reason) -> None:
    with pytest.raises(Refused) as caught:
        parse_batch(body, BOUNDS)
    assert caught.value.reason is reason


# -- plans


def test_a_plan_for_anybody() -> None:
    run = planned().run
    assert (run.run_id, run.command, run.effect, run.timeout_ms) == ("id-1", "a:add", "idempotent", 7_000)
    assert (run.target, run.target_node, run.children, run.parent_id) == ("any", "", (), "")
    assert (run.accepted_at_ms, run.deadline_at_ms) == (NOW_MS, NOW_MS + 30_000)
    assert (run.tenant, run.correlation_id, run.idempotency_key) == ("default", "corr", "")
    assert msgspec.json.decode(run.args_json) == {"n": 1}
    assert msgspec.json.decode(run.identity_json, type=Identity) == IDENTITY


def test_a_plan_for_a_node() -> None:
    run = planned(target="n3").run
    assert (run.target, run.target_node) == ("n3", "n3")


def test_a_plan_for_all_has_one_child_for_each_node_that_offers_it() -> None:
    run = planned(target="all", idempotency_key="k").run
    assert (run.target, run.target_node, run.idempotency_key) == ("all", "", "k")
    assert [(each.run_id, each.parent_id, each.target_node) for each in run.children] == [
        ("id-2", "id-1", "n1"),
        ("id-3", "id-1", "n2"),
    ]
    assert all(each.idempotency_key == "" for each in run.children)
    assert all(each.deadline_at_ms == run.deadline_at_ms for each in run.children)


def test_short_names_and_aliases_are_resolved_to_the_full_name() -> None:
    for name in ("add", "plus", "a:add"):
        assert planned(command=name).run.command == "a:add"


@pytest.mark.parametrize(
    ("asked", "reason", "says"),
    [
        ({"command": "a:nothing"}, Reason.COMMAND_UNKNOWN, "a:nothing"),
        ({"command": ""}, Reason.COMMAND_UNKNOWN, ""),
        ({"command": "ping", "args": {}}, Reason.COMMAND_UNKNOWN, "a:ping, b:ping"),
        ({"args": {}}, Reason.ARGUMENTS_INVALID, "n: missing"),
        ({"args": {"n": "1", "m": 2}}, Reason.ARGUMENTS_INVALID, "m: unknown"),
        ({"args": {"n": 1.0}}, Reason.ARGUMENTS_INVALID, "integer"),
        ({"args": {"n": 1, "pad": "x" * 2_000}}, Reason.BODY_TOO_LARGE, "at most 1000"),
        ({"target": "n9"}, Reason.TARGET_UNKNOWN, "n9"),
        ({"target": ""}, Reason.TARGET_INVALID, "any"),
        ({"target": "session:7"}, Reason.SESSION_UNKNOWN, "7"),
        ({"target": "zone=a"}, Reason.TARGET_UNKNOWN, "zone=a"),
        ({"target": "all", "command": "b:ping", "args": {}}, Reason.TARGET_UNKNOWN, "b:ping"),
        ({"deadline_ms": 0}, Reason.DEADLINE_INVALID, "600000"),
        ({"deadline_ms": -1}, Reason.DEADLINE_INVALID, "600000"),
        ({"deadline_ms": 600_001}, Reason.DEADLINE_INVALID, "600000"),
        ({"tenant": ""}, Reason.BODY_MALFORMED, "tenant"),
        ({"tenant": "a b"}, Reason.BODY_MALFORMED, "tenant"),
        ({"tenant": "x" * 65}, Reason.BODY_MALFORMED, "tenant"),
        ({"idempotency_key": ""}, Reason.IDEMPOTENCY_KEY_INVALID, "200"),
        ({"idempotency_key": "x" * 201}, Reason.IDEMPOTENCY_KEY_INVALID, "200"),
        ({"idempotency_key": "a b"}, Reason.IDEMPOTENCY_KEY_INVALID, "visible"),
        ({"idempotency_key": "é"}, Reason.IDEMPOTENCY_KEY_INVALID, "ASCII"),
        ({"idempotency_key": "k\n"}, Reason.IDEMPOTENCY_KEY_INVALID, "visible"),
        ({"idempotency_key": "a", "header_key": "b"}, Reason.IDEMPOTENCY_KEY_INVALID, "different"),
        ({"header_key": ""}, Reason.IDEMPOTENCY_KEY_INVALID, "200"),
        ({"header_key": '""'}, Reason.IDEMPOTENCY_KEY_INVALID, "200"),
    ],
    ids=str,
)
def test_each_refusal_has_its_reason_and_says_what_to_change(
    asked: dict[str, Any], reason: Reason, says: str
) -> None:
    refused = refusal(**asked)
    assert refused.reason is reason
    assert says in refused.detail


def test_idempotency_may_be_turned_off() -> None:
    off = SubmitLimits(1_000, 5, 30_000, 600_000, False)
    assert refusal(idempotency_key="k", bounds=off).reason is Reason.IDEMPOTENCY_KEY_INVALID
    assert planned(bounds=off).run.idempotency_key == ""


@pytest.mark.parametrize(
    ("header", "body"), [("k-1", None), (None, "k-1"), ("k-1", "k-1"), ('"k-1"', None), ('"k-1"', "k-1")]
)
def test_a_key_from_the_header_or_the_body(header: str | None, body: str | None) -> None:
    assert planned(header, idempotency_key=body).run.idempotency_key == "k-1"


def test_the_payload_hash_is_of_what_was_asked_and_of_nothing_else() -> None:
    """A retry under the same key must be recognised, whatever differs between two sendings of one request."""

    def digest(**asked: Any) -> bytes:
        return planned(**{"idempotency_key": "k", **asked}).run.payload_hash

    assert digest() == digest()
    different = [digest(), digest(args={"n": 2}), digest(target="n1"), digest(deadline_ms=5_000)]
    assert len(set(different)) == 4
    assert planned().run.payload_hash == b""


def test_the_order_of_arguments_is_no_difference() -> None:
    takes = (Parameter("x", "any"), Parameter("y", "any"))
    item = canonical_item(Descriptor("a:two", parameters=takes))
    whole = build("fleet", 1, 1, {"a:two": item})
    assert isinstance(whole, Registry)

    def digest(args: dict[str, Any]) -> bytes:
        asked = Submission("a:two", args, idempotency_key="k")
        return plan(
            asked, None, whole, Nodes(), IDENTITY, "", BOUNDS, lambda: "id", NOW_MS
        ).run.payload_hash  # fmt: skip

    assert digest({"x": 1, "y": {"a": 1, "b": 2}}) == digest({"y": {"b": 2, "a": 1}, "x": 1})


# -- labels, order, time, callbacks


@pytest.mark.parametrize(
    ("target", "nodes"),
    [("region=eu", ["n1"]), ("region!=eu", ["n2"]), ("region=us, tier!=1", ["n2"]), ("tier=1,region=eu", ["n1"]),
     ("tier!=9", ["n1", "n2"])],
)  # fmt: skip
def test_labels_choose_among_linked_nodes_that_offer_the_command(target: str, nodes: list[str]) -> None:
    run = planned(target=target).run
    assert [child.target_node for child in run.children] == nodes
    assert {child.parent_id for child in run.children} == {run.run_id}
    assert len({child.run_id for child in (run, *run.children)}) == len(nodes) + 1


def test_labels_that_no_node_has_are_an_unknown_target() -> None:
    assert refusal(target="region=mars").reason is Reason.TARGET_UNKNOWN


@pytest.mark.parametrize(
    "target", ["=", "a=", "=b", "a==b", "region=eu,", "region=eu;tier=1", "a=b=c", "A=b"]
)
def test_a_malformed_selector_is_told(target: str) -> None:
    if target == "a=":  # an empty value is one
        assert refusal(target=target).reason is Reason.TARGET_UNKNOWN
    else:
        assert refusal(target=target).reason is Reason.TARGET_INVALID


def test_only_the_parent_carries_what_belongs_to_the_request() -> None:
    run = planned("key", target="all", callback_url="https://example.com/hook").run
    assert (run.idempotency_key, run.callback_url) == ("key", "https://example.com/hook")
    assert {(child.idempotency_key, child.callback_url) for child in run.children} == {("", "")}


def test_a_scheduled_run_has_its_deadline_from_when_it_is_due() -> None:
    run = planned(delay_ms=5_000, deadline_ms=1_000).run
    assert (run.not_before_ms, run.deadline_at_ms) == (NOW_MS + 5_000, NOW_MS + 6_000)
    run = planned(schedule_at="1970-01-01T00:20:00Z", deadline_ms=1_000).run
    assert (run.not_before_ms, run.deadline_at_ms) == (1_200_000, 1_201_000)
    assert planned(schedule_at="1970-01-01T00:00:01+00:00").run.not_before_ms == 0, (
        "what is past is due at once"
    )


@pytest.mark.parametrize(
    "asked",
    [{"delay_ms": -1}, {"delay_ms": 31 * 86_400_000}, {"schedule_at": "tomorrow"},
     {"schedule_at": "2030-01-01T00:00:00"}, {"schedule_at": "2999-01-01T00:00:00Z"},
     {"schedule_at": "1970-01-01T00:20:00Z", "delay_ms": 5}],
)  # fmt: skip
def test_a_schedule_that_cannot_be_kept_is_refused(asked: dict[str, Any]) -> None:
    assert refusal(**asked).reason is Reason.SCHEDULE_INVALID


@pytest.mark.parametrize(
    "asked", [{"priority": -1}, {"priority": 10}, {"ordering_key": "with space"}, {"ordering_key": "x" * 201}]
)
def test_priorities_and_ordering_keys_have_bounds(asked: dict[str, Any]) -> None:
    assert refusal(**asked).reason is Reason.BODY_MALFORMED


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/x", "ftp://example.com", "https://user@example.com/", "not a url"]
)
def test_a_callback_may_not_lead_inside(url: str) -> None:
    assert refusal(callback_url=url).reason is Reason.CALLBACK_URL_REFUSED


def test_a_callback_needs_a_secret_to_be_signed_with() -> None:
    unsigned = SubmitLimits(1_000, 5, 30_000, 600_000, True, callbacks_signed=False)
    assert BOUNDS.callbacks_signed
    with pytest.raises(Refused) as caught:
        planned(bounds=unsigned, callback_url="https://example.com/hook")
    assert caught.value.reason is Reason.CALLBACK_URL_REFUSED


def test_two_requests_under_one_key_are_the_same_only_if_everything_is() -> None:
    first = planned("k").run.payload_hash
    for more in (
        {"priority": 6},
        {"ordering_key": "o"},
        {"delay_ms": 1},
        {"callback_url": "https://example.com/"},
    ):
        assert planned("k", **more).run.payload_hash != first
