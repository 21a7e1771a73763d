"""The order of candidates."""

from __future__ import annotations

from fairlead.proxy.edge.routing import ANYTHING, Marks, NodeState, Router
from fairlead.proxy.edge.settings import Backend

BACKENDS = [Backend(name, "127.0.0.1", 1000, f"node-{name}") for name in ("a", "b", "c", "d")]


def make(states: dict[str, NodeState] | None = None, default: str = "") -> Router:
    return Router(BACKENDS, default, lambda node: (states or {}).get(node, "ONLINE"), Marks(5.0))


def order(router: Router, now: float = 0.0) -> str:
    return "".join(backend.id for backend in router.candidates(now, ANYTHING).backends)


def test_the_default_comes_first_then_the_configured_order() -> None:
    assert order(make()) == "abcd"
    assert order(make(default="c")) == "cabd"
    assert order(make(default="gone")) == "abcd"


def test_doubtful_backends_come_later_and_draining_ones_last() -> None:
    states: dict[str, NodeState] = {"node-a": "DRAINING", "node-b": "OFFLINE", "node-c": "UNKNOWN"}
    router = make(states)
    assert order(router) == "cdba"
    router.marks.failed("c", "refused", 0.0)
    assert order(router) == "dbca"


def test_a_mark_expires_and_a_connection_clears_it() -> None:
    router = make()
    router.marks.failed("a", "refused", 10.0)
    assert order(router, 14.9) == "bcda"
    assert order(router, 15.0) == "abcd"
    router.marks.failed("a", "refused", 20.0)
    router.marks.connected("a")
    assert order(router, 20.0) == "abcd"


def test_no_backend_is_ever_dropped() -> None:
    router = make({f"node-{name}": "DRAINING" for name in "abcd"})
    assert order(router) == "abcd"
    for name in "abcd":
        router.marks.failed(name, "refused", 0.0)
    assert order(router, 1.0) == "abcd"


def test_a_backend_without_a_node_has_no_state() -> None:
    router = Router([Backend("x", "h", 1)], "", lambda _: "OFFLINE", Marks(5.0))
    assert router.explain(0.0)[0]["in"]


def test_why_each_is_out_is_told() -> None:
    router = make({"node-a": "DRAINING", "node-b": "OFFLINE"})
    router.marks.failed("c", "connection refused", 0.0)
    rows = {row["backend"]: (row["in"], row["why"]) for row in router.explain(1.0)}
    assert rows == {
        "d": (True, ""),
        "b": (False, "its node is offline"),
        "c": (False, "connecting failed lately: connection refused"),
        "a": (False, "its node is draining"),
    }
