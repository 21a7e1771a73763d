"""Bounds on new connections."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.protocol.reasons import Reason
from fairlead.proxy.edge.admission import AddressWindows, Admission, address_key


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "20010db800010002/64"),
        ("2001:db8:1:2::9", "20010db800010002/64"),
        ("fe80::1%eth0", "fe80000000000000/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("not:an:address", "not:an:address"),
    ],
)
def test_what_counts_as_one_client(host: str, key: str) -> None:
    assert address_key(host) == key


def test_a_window_fills_and_opens_again() -> None:
    windows = AddressWindows(2, 10.0, 100)
    assert windows.admit("a", 0.0) is None
    assert windows.admit("a", 9.0) is None
    refused = windows.admit("a", 9.9)
    assert refused is not None
    assert refused.reason is Reason.CONNECTION_RATE_LIMIT
    assert windows.admit("b", 9.9) is None
    assert windows.admit("a", 10.0) is None


def test_a_full_table_refuses_new_addresses_and_forgets_only_what_expired() -> None:
    windows = AddressWindows(5, 10.0, 3)
    for host in ("a", "b", "c"):
        assert windows.admit(host, 0.0) is None
    assert windows.admit("d", 5.0) is not None
    assert windows.admit("a", 5.0) is None
    assert windows.admit("d", 10.0) is None
    assert len(windows) <= 3


@given(st.lists(st.tuples(st.integers(0, 30), st.floats(0, 3)), max_size=200))
def test_the_table_never_grows_beyond_its_bound(arrivals: list[tuple[int, float]]) -> None:
    windows, now = AddressWindows(3, 5.0, 8), 0.0
    admitted: dict[str, list[float]] = {}
    for number, pause in arrivals:
        now += pause
        host = f"h{number}"
        if windows.admit(host, now) is None:
            admitted.setdefault(host, []).append(now)
        assert len(windows) <= 8
    for times in admitted.values():  # a fixed window lets through at most twice its limit in any window
        assert all(sum(start <= at < start + 5.0 for at in times) <= 6 for start in times)


def test_all_connections_together_are_bounded() -> None:
    admission = Admission(1, AddressWindows(10, 10.0, 10))
    assert admission.enter("a", 0.0) is None
    refused = admission.enter("b", 0.0)
    assert refused is not None
    assert refused.reason is Reason.CONNECTION_LIMIT
    admission.leave()
    assert admission.enter("b", 0.0) is None
