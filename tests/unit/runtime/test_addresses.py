"""Which URLs and addresses may be called on somebody else's word: every spelling of inside that we know of."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.runtime.addresses import (
    Destination,
    address_problem,
    callback_url_problem,
    canonical_host,
    dialled_address_problem,
    read_url,
)


@pytest.mark.parametrize(
    ("url", "parts", "authority"),
    [
        ("https://example.com", ("https", "example.com", 443, "/"), "example.com"),
        ("HTTP://Example.COM/", ("http", "example.com", 80, "/"), "example.com"),
        ("https://example.com.:443/a?b=c", ("https", "example.com", 443, "/a?b=c"), "example.com"),
        ("http://example.com:8080?x=1", ("http", "example.com", 8080, "/?x=1"), "example.com:8080"),
        ("http://8.8.8.8:80/x", ("http", "8.8.8.8", 80, "/x"), "8.8.8.8"),
        ("http://[2606:4700::1111]:81/", ("http", "2606:4700::1111", 81, "/"), "[2606:4700::1111]:81"),
        ("http://[2606:4700:0:0:0:0:0:1111]/", ("http", "2606:4700::1111", 80, "/"), "[2606:4700::1111]"),
        ("https://xn--bcher-kva.example/%C3%BC", ("https", "xn--bcher-kva.example", 443, "/%C3%BC"),
         "xn--bcher-kva.example"),
        ("https://my_host.example/@x:y", ("https", "my_host.example", 443, "/@x:y"), "my_host.example"),
    ],
)  # fmt: skip
def test_a_url_has_one_reading(url: str, parts: tuple[str, str, int, str], authority: str) -> None:
    read = read_url(url)
    assert read == Destination(*parts)
    assert isinstance(read, Destination)
    assert read.authority == authority
    assert callback_url_problem(url, ()) is None


@pytest.mark.parametrize(
    "url",
    [
        "", "example.com", "//example.com", "ftp://example.com/", "file:///etc/passwd", "gopher://example.com",
        "javascript:alert(1)", "http:/example.com", "http:example.com", "http://", "http:///x", "http://:80/",
        "http://?x", "https://example.com:0/", "https://example.com:65536/", "https://example.com:/",
        "https://example.com:+80/", "https://example.com:80:80/", "https://example.com:8o/",
        "https://user@example.com/", "https://user:secret@example.com/", "https://@example.com/",
        "https://example.com@127.0.0.1/", "https://127.0.0.1#@example.com/", "https://example.com/#frag",
        "https://example.com\\@127.0.0.1/", "https://example.com\\.evil/", " https://example.com/",
        "https://example.com/ ", "https://exa mple.com/", "https://example.com/\r\nx: y", "https://example.com/\t",
        "https://example.com\x00.evil/", "https://b\u00fccher.example/", "https://\uff11\uff12\uff17.0.0.1/",
        "https://\u2460\u2461\u2466.0.0.1/", "https://example\u3002com/", "https://example.com/\u00fc",
        "https://ex%61mple.com/", "https://127.0.0.1%2f@example.com/", "https://[::1%25lo]/", "https://[fe80::1%eth0]/",
        "https://[::1/", "https://::1/", "https://[example.com]/", "https://[127.0.0.1]/", "https://[]/",
        "https://-a.example/", "https://a-.example/", "https://a..example/", "https://.example/", "https://./",
        "https://" + "a" * 64 + ".example/", "https://" + "a." * 127 + "example/",
        "https://example.com/" + "x" * 2_048,
    ],
)  # fmt: skip
def test_what_is_no_url_or_more_than_one_is_refused(url: str) -> None:
    assert isinstance(read_url(url), str)
    assert callback_url_problem(url, ()) is not None


# All of these are 127.0.0.1 (or another inside) to some resolver.
@pytest.mark.parametrize(
    "host",
    [
        "127.1", "127.0.1", "2130706433", "017700000001", "0177.0.0.1", "0177.0.0.01", "0x7f000001", "0x7f.0.0.1",
        "0X7F.1", "127.0.0.0x1", "0x", "127.0.0.01", "00127.0.0.1", "1.2.3", "1.2.3.4.5", "256.1.1.1", "1.1.1.256",
        "3232235777", "0xa9fea9fe", "169.254.43518", "example.127", "127.0.0.1..", "example.0x7f", "99999999999",
    ],
)  # fmt: skip
def test_numbers_that_are_read_as_different_addresses_are_no_host(host: str) -> None:
    assert canonical_host(host) is None
    assert callback_url_problem(f"http://{host}/", ()) is not None


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://127.0.0.1/", "a loopback address"), ("http://127.0.0.1./", "a loopback address"),
        ("http://127.255.255.254:8080/x", "a loopback address"), ("http://0.0.0.0/", "an unspecified address"),
        ("http://0.1.2.3/", "an unspecified address"), ("http://10.1.2.3/", "a private address"),
        ("http://172.16.0.1/", "a private address"), ("http://172.31.255.255/", "a private address"),
        ("http://192.168.1.1/", "a private address"), ("http://100.64.0.1/", "a carrier's shared address"),
        ("http://100.127.255.255/", "a carrier's shared address"),
        ("http://169.254.169.254/latest/meta-data", "a link-local address"),
        ("http://192.0.0.192/", "a reserved address"), ("http://198.18.0.1/", "a benchmarking address"),
        ("http://224.0.0.1/", "a multicast address"), ("http://239.255.255.250/", "a multicast address"),
        ("http://255.255.255.255/", "a reserved address"), ("http://240.0.0.1/", "a reserved address"),
        ("http://203.0.113.9/", "a documentation address"),
        ("http://[::]/", "an unspecified address"), ("http://[::1]/", "a loopback address"),
        ("http://[0:0:0:0:0:0:0:1]:80/", "a loopback address"), ("http://[::ffff:127.0.0.1]/", "a loopback address"),
        ("http://[::ffff:7f00:1]/", "a loopback address"), ("http://[::ffff:10.0.0.1]/", "a private address"),
        ("http://[::ffff:0.0.0.0]/", "an unspecified address"),
        ("http://[64:ff9b::127.0.0.1]/", "a loopback address"),
        ("http://[64:ff9b::a9fe:a9fe]/", "a link-local address"), ("http://[64:ff9b:1::1]/", "a private address"),
        ("http://[2002:7f00:1::]/", "a loopback address"), ("http://[2002:a00:1::1]/", "a private address"),
        ("http://[2001:0:53aa:64c::1]/", "a reserved address"), ("http://[2001:db8::1]/", "a documentation address"),
        ("http://[fc00::1]/", "a private address"), ("http://[fdff::1]/", "a private address"),
        ("http://[fe80::1]/", "a link-local address"), ("http://[fec0::1]/", "a private address"),
        ("http://[ff02::1]/", "a multicast address"), ("http://[::127.0.0.1]/", "a reserved address"),
        ("http://[2606:4700::5efe:10.0.0.1]/", "a private address"), ("http://[4000::1]/", "a reserved address"),
        ("http://localhost/", "a loopback address"), ("http://LOCALHOST.:9/", "a loopback address"),
        ("http://a.b.localhost/", "a loopback address"),
    ],
)  # fmt: skip
def test_inside_is_refused_in_every_spelling(url: str, why: str) -> None:
    assert callback_url_problem(url, ()) == f"leads to {why}"


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1", "8.8.8.8", "172.15.255.255", "172.32.0.0", "100.63.255.255", "100.128.0.0", "11.0.0.0",
        "126.255.255.255", "128.0.0.0", "169.253.0.1", "169.255.0.0", "192.167.255.255", "192.169.0.0",
        "223.255.255.255",
        "198.20.0.0", "2606:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1",
        "2606:4700::5efe:8.8.8.8", "2001:200::1",
    ],
)  # fmt: skip
def test_public_addresses_just_beside_are_not_refused(address: str) -> None:
    assert address_problem(address) == ""


@pytest.mark.parametrize(
    "address", ["", "localhost", "127.1", "fe80::1%eth0", "2606:4700::1%1", "1.2.3.4/32"]
)
def test_what_is_no_plain_address_is_refused(address: str) -> None:
    assert address_problem(address)


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://127.0.0.1:9000/x", ["127.0.0.1"]), ("http://[::1]/", ["::1"]), ("http://[::1]/", ["[0:0::1]"]),
        ("http://localhost/", ["LocalHost."]), ("http://hooks.internal/", ["hooks.internal"]),
        ("http://10.0.0.5/", ["10.0.0.4", "10.0.0.5"]),
    ],
)  # fmt: skip
def test_what_is_allowed_by_name_may_lie_inside(url: str, allowed: list[str]) -> None:
    assert callback_url_problem(url, allowed) is None


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://127.0.0.2/", ["127.0.0.1"]), ("http://[::ffff:127.0.0.1]/", ["127.0.0.1"]),
        ("http://127.1/", ["127.0.0.1", "127.1"]), ("http://localhost/", ["127.0.0.1"]),
        ("http://evil.localhost/", ["localhost"]), ("http://10.0.0.5/", ["10.0.0.0/8", "10.0.0."]),
        ("http://0.0.0.0/", ["0.0.0.0"]), ("http://[::]/", ["::"]), ("http://224.0.0.1/", ["224.0.0.1"]),
    ],
)  # fmt: skip
def test_a_name_allows_itself_and_nothing_like_it(url: str, allowed: list[str]) -> None:
    assert callback_url_problem(url, allowed) is not None


def test_when_dialling_the_allowed_host_may_be_inside_but_not_nowhere():
    assert dialled_address_problem("127.0.0.1", is_allowed=True) == ""
    assert dialled_address_problem("127.0.0.1", is_allowed=False) == "a loopback address"
    assert dialled_address_problem("0.0.0.0", is_allowed=True) == "an unspecified address"
    assert dialled_address_problem("::", is_allowed=True) == "an unspecified address"
    assert dialled_address_problem("ff02::1", is_allowed=True) == "a multicast address"


@given(st.ip_addresses())
def test_nothing_that_the_standard_library_calls_special_is_dialled(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    """The list here is our own; the standard library's, by others and from the same registries, is the check."""
    special = (
        address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified
        or address.is_reserved or address.is_private
    )  # fmt: skip
    known_outside = isinstance(address, ipaddress.IPv6Address) and (
        address in ipaddress.IPv6Network("64:ff9b::/96") or address.ipv4_mapped is not None
    )
    if special and not known_outside:
        assert address_problem(str(address))


@given(st.text(max_size=60))
def test_any_text_after_the_scheme_is_read_or_refused_and_never_loses_its_host(text: str) -> None:
    read = read_url(f"http://{text}")
    if isinstance(read, Destination):
        assert text.lower().startswith((read.host, f"[{text[1:].lower().partition(']')[0]}]"))
        assert canonical_host(read.host) == read.host
        assert read_url(f"{read.scheme}://{read.authority}{read.target}") == read
