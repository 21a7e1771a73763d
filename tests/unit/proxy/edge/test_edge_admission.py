"""Bounds on new connections."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.protocol.reasons import Reason
from fairlead.proxy.edge.address_sets import AddressSet, read_address
from fairlead.proxy.edge.admission import Admission, AdmissionLimits, Windows, address_key, network_key


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


@pytest.mark.parametrize(
    ("host", "same", "other"),
    [
        ("192.0.2.1", "192.0.2.250", "192.0.3.1"),
        ("::ffff:192.0.2.1", "192.0.2.9", "192.0.1.9"),
        ("2001:db8:1:2::1", "2001:db8:1:ffff::1", "2001:db8:2:2::1"),
    ],
)
def test_what_counts_as_one_network(host: str, same: str, other: str) -> None:
    assert network_key(host) == network_key(same) != network_key(other)


def test_a_window_fills_and_opens_again() -> None:
    windows = Windows(2, 10.0, 100, "new connections")
    assert windows.admit("a", 0.0) is None
    assert windows.admit("a", 9.0) is None
    assert windows.admit("a", 9.9) == "2 new connections in 10 s"
    assert windows.admit("b", 9.9) is None
    assert windows.admit("a", 10.0) is None


def test_a_full_table_refuses_new_addresses_and_forgets_only_what_expired() -> None:
    windows = Windows(5, 10.0, 3, "new connections")
    for host in ("a", "b", "c"):
        assert windows.admit(host, 0.0) is None
    assert windows.admit("d", 5.0) is not None
    assert windows.admit("a", 5.0) is None
    assert windows.admit("d", 10.0) is None
    assert len(windows) <= 3


@given(st.lists(st.tuples(st.integers(0, 30), st.floats(0, 3)), max_size=200))
def test_the_table_never_grows_beyond_its_bound(arrivals: list[tuple[int, float]]) -> None:
    windows, now = Windows(3, 5.0, 8, "new connections"), 0.0
    admitted: dict[str, list[float]] = {}
    for number, pause in arrivals:
        now += pause
        host = f"h{number}"
        if windows.admit(host, now) is None:
            admitted.setdefault(host, []).append(now)
        assert len(windows) <= 8
    for times in admitted.values():  # a fixed window lets through at most twice its limit in any window
        assert all(sum(start <= at < start + 5.0 for at in times) <= 6 for start in times)


def limits(**changed: object) -> AdmissionLimits:
    given_ = {"connections_max": 100, "window_s": 10.0, "connection_per_ip_max": 1_000, **changed}
    return AdmissionLimits(**given_)  # type: ignore[arg-type]


def test_all_connections_have_one_bound() -> None:
    admission = Admission(limits(connections_max=2), 0.0)
    assert admission.enter("a", 0.0) is None
    assert admission.enter_forwarded() is None
    for refused in (admission.enter("c", 0.0), admission.enter_forwarded()):
        assert refused is not None
        assert refused.reason is Reason.CONNECTION_LIMIT
    admission.leave()
    assert admission.enter("d", 0.0) is None
    assert admission.live == 2


def test_who_is_refused_takes_no_place() -> None:
    admission = Admission(limits(connection_per_ip_max=1), 0.0)
    assert admission.enter("a", 0.0) is None
    assert admission.enter("a", 0.0) is not None
    assert admission.live == 1


def test_a_network_is_held_to_its_own_rate() -> None:
    admission = Admission(limits(connection_per_network_max=3), 0.0)
    assert [admission.enter(f"192.0.2.{last}", 0.0) is None for last in range(5)] == [True] * 3 + [False] * 2
    assert admission.enter("192.0.3.1", 0.0) is None
    assert admission.enter("192.0.2.77", 10.0) is None


def test_lists_say_who_may_come_and_who_is_not_counted() -> None:
    admission = Admission(
        limits(
            connection_per_ip_max=1,
            allow=[ip_network("10.0.0.0/8"), ip_network("2001:db8::/32")],
            deny=[ip_network("10.6.6.0/24")],
            uncounted=[ip_network("10.1.0.0/16")],
        ),
        0.0,
    )
    refused = admission.enter("10.6.6.6", 0.0)
    assert refused is not None
    assert refused.reason is Reason.ADDRESS_DENIED
    assert admission.enter("192.0.2.1", 0.0) is not None
    assert admission.enter("2001:db8::7", 0.0) is None
    assert [admission.enter("10.1.2.3", 0.0) for _ in range(5)] == [None] * 5
    assert [admission.enter("::ffff:10.2.2.3", 0.0) is None for _ in range(2)] == [True, False]


def test_everybody_together_is_limited_only_after_the_grace_of_a_start() -> None:
    admission = Admission(limits(joins_per_s=10, joins_burst=5, joins_grace_s=60.0), 100.0)
    assert all(admission.judge(f"h{number}", 159.9) is None for number in range(50))
    outcomes = [admission.judge(f"h{number}", 160.0) for number in range(8)]
    assert [outcome is None for outcome in outcomes] == [True] * 5 + [False] * 3
    assert outcomes[-1] is not None
    assert outcomes[-1].reason is Reason.JOIN_RATE_LIMIT
    assert admission.judge("later", 160.1) is None, "one each tenth of a second"
    assert admission.judge("too soon", 160.1) is not None


def test_handshakes_are_bounded_at_once_and_for_each_address() -> None:
    admission = Admission(limits(handshake_per_ip_max=2, handshake_concurrent_max=3), 0.0)
    assert admission.begin_handshake("a", 0.0) is None
    assert admission.begin_handshake("a", 0.0) is None
    refused = admission.begin_handshake("a", 0.0)
    assert refused is not None
    assert refused.reason is Reason.CLIENT_HANDSHAKE_RATE_LIMIT
    assert admission.begin_handshake("b", 0.0) is None
    refused = admission.begin_handshake("c", 0.0)
    assert refused is not None
    assert refused.reason is Reason.CLIENT_HANDSHAKE_LIMIT
    admission.end_handshake()
    assert admission.begin_handshake("c", 0.0) is None


def test_other_limits_at_run_time_keep_who_is_here_and_clearing_forgets_who_was_counted() -> None:
    admission = Admission(limits(connection_per_ip_max=1), 0.0)
    assert admission.enter("a", 0.0) is None
    assert admission.clear() == 1
    assert admission.enter("a", 0.0) is None
    admission.change(limits(connection_per_ip_max=2, deny=[ip_network("192.0.2.0/24")]))
    assert admission.live == 2
    assert admission.enter("192.0.2.5", 0.0) is not None
    assert admission.enter("a", 0.0) is None


_ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)


@given(st.lists(st.tuples(_ADDRESSES, st.integers(0, 128)), max_size=8), _ADDRESSES)
def test_a_set_of_networks_holds_what_its_networks_hold(
    networks: list[tuple[str, int]], address: str
) -> None:
    made = [
        ip_network(f"{host}/{min(bits, ip_address(host).max_prefixlen)}", strict=False)
        for host, bits in networks
    ]
    found = read_address(address)
    assert found is not None
    held = any(found.version == network.version and found in network for network in made)
    assert (found in AddressSet(made)) == held
    assert (None in AddressSet(made)) is False
