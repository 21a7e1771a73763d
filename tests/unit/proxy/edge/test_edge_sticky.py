"""Coming back to the same backend: cookies that say nothing, buckets that never move back, addresses that stay."""

from __future__ import annotations

import random
from base64 import urlsafe_b64decode

from hypothesis import given
from hypothesis import strategies as st

from fairlead.protocol.buckets import BUCKETS
from fairlead.proxy.edge.asked import Asked
from fairlead.proxy.edge.routing import Chance, Choice, Marks, NodeState, Router
from fairlead.proxy.edge.settings import Backend, Canary, RouteConfig, RoutingConfig
from fairlead.proxy.edge.sticky import COOKIE_NAME, Cookies, by_address, cookie_values, stands_at

BACKENDS = [Backend(name, "10.0.0.1", 1000 + place, f"node-{name}") for place, name in enumerate("abcd")]
KEY, OTHER = b"k" * 32, b"o" * 32


def chance(seed: int = 1) -> Chance:
    source = random.Random(seed)
    return Chance(source.random, source.randbytes)


def make(routing: RoutingConfig, states: dict[str, NodeState] | None = None, **options: object) -> Router:
    return Router(
        BACKENDS, "", lambda node: (states or {}).get(node, "ONLINE"), Marks(5.0), routing=routing, chance=chance(),
        **options,  # type: ignore[arg-type]
    )  # fmt: skip


def ask(router: Router, cookie: bytes = b"", now: float = 0.0, **asked: object) -> Choice:
    headers = {b"cookie": cookie.partition(b";")[0]} if cookie else {}
    return router.candidates(now, Asked(header=headers.get, **asked))  # type: ignore[arg-type]


STICKY = RoutingConfig(strategy="round-robin", sticky="cookie", sticky_keys=(KEY,))


def test_a_cookie_leads_back_and_is_not_set_again() -> None:
    router = make(STICKY)
    first = ask(router)
    cookie = first.cookie(first.backends[0])
    assert cookie.startswith(COOKIE_NAME + b"=")
    assert cookie.endswith(b"; Path=/; HttpOnly; SameSite=Lax")
    for _ in range(5):
        again = ask(router, cookie)
        assert again.backends[0] is first.backends[0]
        assert again.cookie(again.backends[0]) == b""
    secure = ask(router, is_tls=True)
    assert secure.cookie(secure.backends[0]).endswith(b"; SameSite=Lax; Secure")


def test_a_cookie_tells_nothing_of_its_backend() -> None:
    cookies = Cookies("r", BACKENDS, (KEY,), chance().random_bytes)
    value = next(iter(cookie_values(cookies.set_cookie(b"s" * 12, "a", False))))
    raw = urlsafe_b64decode(value)
    assert b"10.0.0.1" not in raw
    assert b"node" not in raw
    assert value != next(iter(cookie_values(cookies.set_cookie(b"s" * 12, "b", False))))


def test_a_cookie_that_somebody_made_or_of_another_route_counts_for_nothing() -> None:
    ours = Cookies("r", BACKENDS, (KEY,), chance().random_bytes)
    theirs = Cookies("r", BACKENDS, (OTHER,), chance().random_bytes)
    elsewhere = Cookies("q", BACKENDS, (KEY,), chance().random_bytes)
    for cookies in (theirs, elsewhere):
        assert ours.read(cookies.set_cookie(b"s" * 12, "a", False).partition(b";")[0]) == (b"", "")
    good = ours.set_cookie(b"s" * 12, "a", False).partition(b";")[0]
    assert ours.read(good) == (b"s" * 12, "a")
    rotated = Cookies("r", BACKENDS, (OTHER, KEY), chance().random_bytes)
    assert rotated.read(good) == (b"s" * 12, "a"), "the previous key is still believed"
    gone = Cookies("r", BACKENDS[1:], (KEY,), chance().random_bytes)
    assert gone.read(good) == (b"s" * 12, ""), "its backend is not one of the route any more"


@given(st.binary(max_size=80))
def test_no_cookie_breaks_the_reader(value: bytes) -> None:
    cookies = Cookies("r", BACKENDS, (KEY,), chance().random_bytes)
    assert cookies.read(b"a=b; " + COOKIE_NAME + b"=" + value) == (b"", "")


@given(st.integers(0, 43), st.integers(0, 63))
def test_no_bit_of_a_cookie_can_be_changed(at: int, to: int) -> None:
    cookies = Cookies("r", BACKENDS, (KEY,), chance().random_bytes)
    good = cookies.set_cookie(b"s" * 12, "a", False).partition(b";")[0]
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    at += len(COOKIE_NAME) + 1
    changed = good[:at] + alphabet[to : to + 1] + good[at + 1 :]
    assert changed == good or cookies.read(changed) == (b"", "")


def test_a_sticky_backend_that_is_down_falls_to_another_and_the_cookie_is_renewed() -> None:
    router = make(STICKY)
    first = ask(router)
    held = first.backends[0]
    cookie = first.cookie(held)
    router.marks.failed(held.id, "refused", 0.0)
    moved = ask(router, cookie)
    assert moved.backends[0] is not held
    renewed = moved.cookie(moved.backends[0])
    assert renewed
    assert moved.subject == first.subject, "it stays the same client"
    assert ask(router, renewed, now=99.0).backends[0] is moved.backends[0]


def test_clients_come_back_to_a_draining_node_only_until_its_deadline() -> None:
    states: dict[str, NodeState] = {}
    stays = {"node-a"}
    router = make(STICKY, states, stays=lambda node: node in stays)
    cookie = next(c.cookie(c.backends[0]) for c in iter(lambda: ask(router), None) if c.backends[0].id == "a")
    states["node-a"] = "DRAINING"
    assert ask(router, cookie).backends[0].id == "a"
    assert all(ask(router).backends[0].id != "a" for _ in range(8)), "nobody new"
    stays.clear()
    assert ask(router, cookie).backends[0].id != "a"


def test_a_transferred_client_is_led_where_it_was_moved() -> None:
    for routing in (STICKY, RoutingConfig(), RoutingConfig(sticky="address")):
        assert ask(make(routing), bound="c").backends[0].id == "c"
    assert "x" not in [each.id for each in ask(make(RoutingConfig()), bound="x").backends]


# -- shares


def canary(percent: float, sticky: str = "cookie") -> Router:
    route = RouteConfig("r", canary=Canary(("d",), percent), sticky=sticky, strategy="round-robin")  # type: ignore[arg-type]
    return make(RoutingConfig((route,), sticky_keys=(KEY,)))


@given(st.binary(max_size=20), st.binary(max_size=70))
def test_a_bucket_is_one_of_them_whatever_the_salt(subject: bytes, salt: bytes) -> None:
    assert 0 <= stands_at(subject, salt.hex()) < BUCKETS
    assert stands_at(subject, salt.hex()) == stands_at(subject, salt.hex())


@given(st.integers(0, 2**32), st.lists(st.integers(0, 100), min_size=2, max_size=5))
def test_widening_moves_nobody_back(number: int, percents: list[int]) -> None:
    peer = f"10.{number % 250}.{number // 250 % 250}.1"
    inside = [ask(canary(percent, "none"), peer=peer).backends[0].id == "d" for percent in sorted(percents)]
    assert inside == sorted(inside)


def test_a_share_is_as_large_as_it_says() -> None:
    router = canary(10)
    chosen = [ask(router).backends[0].id for _ in range(2000)]
    assert 150 <= chosen.count("d") <= 250
    assert ask(canary(0)).backends[0].id != "d"
    assert ask(canary(100)).backends[0].id == "d"


def test_a_client_of_a_share_stays_in_it_and_a_cookie_cannot_choose_it() -> None:
    router = canary(10)
    outside = next(c for c in iter(lambda: ask(router), None) if c.backends[0].id != "d")
    cookie = outside.cookie(outside.backends[0])
    forged = outside.cookie(BACKENDS[3])  # ours, for a client that is not of the share
    assert ask(router, cookie).backends[0] is outside.backends[0]
    assert ask(router, forged).backends[0].id != "d"
    wide = ask(canary(100), cookie)
    assert wide.backends[0].id == "d"
    assert wide.cookie(wide.backends[0]), "it remembers where it is now"


def test_where_no_backend_of_a_share_is_well_the_others_stand_in() -> None:
    router = canary(100)
    router.marks.failed("d", "refused", 0.0)
    assert ask(router, now=1.0).backends[0].id != "d"
    router = canary(0)
    for name in "abc":
        router.marks.failed(name, "refused", 0.0)
    assert ask(router, now=1.0).backends[0].id == "d"


def test_shares_can_be_given_while_it_runs() -> None:
    given_: dict[str, float] = {"b": 100.0}
    router = make(RoutingConfig((RouteConfig("r"),)), shares=lambda route: given_ if route == "r" else None)
    assert ask(router, peer="1").backends[0].id == "b"
    given_["b"] = 0.0
    assert ask(router, peer="1").backends[0].id == "a"


# -- by address


@given(st.ip_addresses(v=4).map(str), st.integers(0, 3))
def test_only_the_clients_of_a_backend_that_goes_move(peer: str, gone: int) -> None:
    before = by_address(peer, BACKENDS)
    after = by_address(peer, [each for place, each in enumerate(BACKENDS) if place != gone])
    assert after == [each for each in before if each is not BACKENDS[gone]]


def test_addresses_spread_by_weight() -> None:
    heavy = [Backend("x", "h", 1, weight=300), Backend("y", "h", 2, weight=100)]
    first = [by_address(f"10.0.{n // 250}.{n % 250}", heavy)[0].id for n in range(2000)]
    assert 1400 <= first.count("x") <= 1600


def test_an_address_keeps_its_backend_and_goes_back_to_it() -> None:
    router = make(RoutingConfig(sticky="address", strategy="round-robin"))
    held = ask(router, peer="192.0.2.7").backends[0]
    assert all(ask(router, peer="192.0.2.7").backends[0] is held for _ in range(5))
    router.marks.failed(held.id, "refused", 0.0)
    assert ask(router, peer="192.0.2.7", now=1.0).backends[0] is not held
    assert ask(router, peer="192.0.2.7", now=9.0).backends[0] is held
