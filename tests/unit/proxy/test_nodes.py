"""What can be said of a node at a moment: the table of states, over time."""

from __future__ import annotations

import pytest

from fairlead.protocol.messages import Heartbeat, Hello
from fairlead.protocol.reasons import Reason
from fairlead.protocol.registry import Position
from fairlead.proxy.control.nodes import NodeRecord, NodeState, NodeTable

TIMEOUT_S, GRACE_S = 10.0, 3.0
HELLO = Hello("inc-1", "fairlead 0.1", 0, 8, Position(), {"zone": "a"}, False)
BEAT = Heartbeat(1, 2, 3, 16, Position(), -20, 4)


def linked(at_s: float = 100.0, hello: Hello = HELLO) -> NodeRecord:
    record = NodeRecord("n1")
    record.linked(hello, at_s)
    return record


def state(record: NodeRecord, now_s: float) -> str:
    return record.state(now_s, TIMEOUT_S, GRACE_S).value


def test_a_node_never_heard_of_is_unknown() -> None:
    assert state(NodeRecord("n1"), 0.0) == "UNKNOWN"
    assert state(NodeRecord("n1"), 1e9) == "UNKNOWN"


@pytest.mark.parametrize(("after_s", "expected"), [(0, "ONLINE"), (10.0, "ONLINE"), (10.1, "OFFLINE")])
def test_a_linked_node_is_online_while_it_is_heard(after_s: float, expected: str) -> None:
    record = linked()
    assert state(record, 100.0 + after_s) == expected
    record.beat(BEAT, 100.0 + after_s)
    assert state(record, 100.0 + after_s) == "ONLINE"  # heard again, on the same link


@pytest.mark.parametrize(
    ("goodbye", "after_s", "expected"),
    [
        (False, 0.0, "ONLINE"),
        (False, 3.0, "ONLINE"),
        (False, 3.1, "OFFLINE"),
        (True, 0.0, "OFFLINE"),
    ],
)
def test_a_lost_link_is_forgiven_for_a_moment_and_a_goodbye_is_not(
    goodbye: bool, after_s: float, expected: str
) -> None:
    record = linked()
    record.lost(Reason.LINK_TRUNCATED, "", goodbye, 105.0)
    assert state(record, 105.0 + after_s) == expected


def test_a_node_that_comes_back_is_online_and_its_goodbye_forgotten() -> None:
    record = linked()
    record.lost(Reason.LINK_CLOSED, "bye", True, 105.0)
    record.linked(HELLO, 110.0)
    assert state(record, 110.0) == "ONLINE"
    record.lost(Reason.LINK_TRUNCATED, "", False, 111.0)
    assert state(record, 112.0) == "ONLINE"
    assert record.links == 2


@pytest.mark.parametrize("by_operator", [True, False])
def test_draining_is_said_by_the_node_or_decided_by_an_operator(by_operator: bool) -> None:
    record = linked()
    if by_operator:
        record.drained_by_operator = True
    else:
        record.beat(Heartbeat(1, 0, 0, 8, Position(), draining=True), 101.0)
    assert state(record, 101.0) == "DRAINING"
    assert state(record, 120.0) == "OFFLINE"
    record.lost(Reason.LINK_TRUNCATED, "", False, 121.0)
    assert state(record, 122.0) == "DRAINING"
    assert state(record, 125.0) == "OFFLINE"


def test_what_an_operator_decided_survives_a_new_link_and_what_the_node_said_does_not() -> None:
    record = linked(hello=Hello("i", "s", 0, 8, Position(), {}, True))
    record.paused = record.drained_by_operator = True
    record.linked(HELLO, 200.0)
    assert record.paused
    assert record.drained_by_operator
    assert not record.says_draining


def test_a_beat_carries_load_clock_and_credit() -> None:
    record = linked()
    record.beat(BEAT, 101.0)
    assert (record.running, record.waiting, record.capacity) == (2, 3, 16)
    assert (record.skew_ms, record.round_trip_ms) == (-20, 4)


def test_losing_a_link_clears_nothing_but_the_load() -> None:
    record = linked()
    record.beat(BEAT, 101.0)
    record.offers = {"a:b": b"digest"}
    record.lost(Reason.LINK_IDLE_TIMEOUT, "nothing for 10 s", False, 102.0)
    assert not record.connected
    assert (record.running, record.waiting) == (0, 0)
    assert (record.capacity, record.incarnation, record.labels) == (16, "inc-1", {"zone": "a"})
    assert record.offers == {"a:b": b"digest"}
    assert record.last_end == (Reason.LINK_IDLE_TIMEOUT, "nothing for 10 s")


def test_a_new_link_starts_with_no_offers_and_no_sync() -> None:
    record = linked()
    record.offers = {"a:b": b"digest"}
    record.sync.confirmed = True
    record.linked(HELLO, 200.0)
    assert record.offers == {}
    assert not record.sync.confirmed
    assert record.sync.held is None


def test_the_table_knows_configured_nodes_from_the_start_and_others_once_they_came() -> None:
    table = NodeTable(["n1", "n2"], TIMEOUT_S, GRACE_S)
    assert table.counts(0.0) == {
        NodeState.ONLINE: 0,
        NodeState.OFFLINE: 0,
        NodeState.UNKNOWN: 2,
        NodeState.DRAINING: 0,
    }
    assert table.state("n9", 0.0) is NodeState.UNKNOWN
    assert "n9" not in table.nodes  # asking makes nothing
    table.record("n9").linked(HELLO, 1.0)
    table.record("n1").linked(HELLO, 1.0)
    table.record("n1").drained_by_operator = True
    assert table.record("n9") is table.record("n9")
    assert table.counts(2.0) == {
        NodeState.ONLINE: 1,
        NodeState.OFFLINE: 0,
        NodeState.UNKNOWN: 1,
        NodeState.DRAINING: 1,
    }
