"""The table of live sessions."""

from __future__ import annotations

from fairlead.proxy.edge.sessions import SHOWN_MAX, Sessions


def test_sessions_are_counted_by_listener_and_shown_up_to_a_bound() -> None:
    table = Sessions()
    web = [table.open(f"w{n}", "web", "http", "192.0.2.1", 5) for n in range(SHOWN_MAX + 5)]
    raw = table.open("r0", "raw", "tcp", "192.0.2.2", 6)
    assert table.counts() == {("web",): SHOWN_MAX + 5, ("raw",): 1}
    assert len(table.rows()) == SHOWN_MAX
    assert table.rows()[0].peer == "192.0.2.1"
    for session in [*web, raw, raw]:
        table.close(session)
    assert table.counts() == {("web",): 0, ("raw",): 0}
    assert len(table) == 0
