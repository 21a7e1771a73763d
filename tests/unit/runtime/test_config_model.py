"""Hosts, endpoints and instants as configurations spell them."""

from __future__ import annotations

import pytest

from fairlead.runtime.config_model import Unfit, instant_ms, may_clash, split_endpoint


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("127.0.0.1", "localhost", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("127.0.0.1", "0.0.0.0", True),
        ("::", "::1", True),
        ("::1", "0:0:0:0:0:0:0:1", True),
        ("::", "0.0.0.0", False),
        ("::", "127.0.0.1", False),
        ("edge.example", "edge.example", True),
        ("edge.example", "0.0.0.0", True),
        ("edge.example", "127.0.0.1", False),
    ],
)
def test_which_hosts_clash_on_one_port(one, other, clash):
    assert may_clash(one, other) is clash
    assert may_clash(other, one) is clash


def test_endpoints():
    assert split_endpoint("proxy.example:25570") == ("proxy.example", 25570)
    assert split_endpoint("[::1]:1") == ("::1", 1)
    for text in (
        "",
        "host",
        ":1",
        "host:",
        "host:0",
        "host:65536",
        "::1:5",
        "http://a:1",
        "a b:1",
        "0.0.0.0:1",
        "[a]:1x",
    ):
        with pytest.raises(Unfit):
            split_endpoint(text)


def test_instants():
    assert instant_ms("1970-01-01T00:00:01Z") == 1000
    assert instant_ms("1970-01-01T01:00:00.5+01:00") == 500
    for text in (
        "",
        "2030-01-01",
        "2030-01-01T00:00:00",
        "2030-13-01T00:00:00Z",
        "20300101T000000Z",
        "2030-W01-1",
    ):
        with pytest.raises(Unfit):
            instant_ms(text)
