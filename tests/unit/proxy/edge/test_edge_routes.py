"""Which route a request takes, and which paths are refused because they can be read as another's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.protocol.reasons import Reason, Reject
from fairlead.proxy.edge.asked import Asked
from fairlead.proxy.edge.paths import UNUSUAL_BYTES_MAX, is_plain, path_of, readings
from fairlead.proxy.edge.routes import HOSTS_REMEMBERED_MAX, RouteTable, host_name
from fairlead.proxy.edge.settings import RouteConfig

ROUTES = (
    RouteConfig("admin", path="/admin"),
    RouteConfig("shop-v2", host="shop.example.com", header="x-version", header_value="2"),
    RouteConfig("shop", host="shop.example.com"),
    RouteConfig("play", host="*.play.example.com", listeners=("games",)),
    RouteConfig("beta", header="x-beta"),
    RouteConfig("api", path="/api/"),
)


def taken(
    path: str = "/", host: str = "", listener: str = "web", table: RouteTable | None = None, **headers: str
) -> str:
    found = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    route = (table or RouteTable(ROUTES, listener)).match(Asked(host, path.encode(), found.get))
    if isinstance(route, Reject):
        return route.reason.value
    return "" if route is None else route.config.id


def test_the_first_that_matches_counts() -> None:
    assert taken("/admin", "shop.example.com", x_version="2") == "admin"
    assert taken("/x", "shop.example.com", x_version="2") == "shop-v2"
    assert taken("/x", "shop.example.com", x_version="22") == "shop"
    assert taken("/x", "shop.example.com") == "shop"
    assert taken("/api/v1", "other", x_beta="") == "beta"
    assert taken("/api/v1") == "api"
    assert taken("/") == ""


@pytest.mark.parametrize(
    "host", ["shop.example.com", "SHOP.Example.COM", "shop.example.com:8080", "shop.example.com."]
)
def test_hosts_are_compared_without_case_port_and_final_dot(host: str) -> None:
    assert taken("/", host) == "shop"


@pytest.mark.parametrize(
    "host", ["xshop.example.com", "shop.example.com.evil", "shop.example", "[::1]:80", ""]
)
def test_other_hosts_are_others(host: str) -> None:
    assert taken("/", host) == ""


def test_a_suffix_takes_every_name_below_it_but_not_itself() -> None:
    for host, route in {
        "a.play.example.com": "play", "a.b.play.example.com:25565": "play", "play.example.com": "",
        "xplay.example.com": "", ".play.example.com": "",
    }.items():  # fmt: skip
        assert taken("/", host, "games") == route, host
    assert taken("/", "a.play.example.com", "web") == "", "a route of another listener"


@pytest.mark.parametrize(
    ("path", "route"),
    [("/admin", "admin"), ("/admin/", "admin"), ("/admin/x", "admin"), ("/administrator", ""), ("/Admin", ""),
     ("/api", "api"), ("/api/", "api"), ("/apis", ""), ("/x/admin", "")],
)  # fmt: skip
def test_a_prefix_ends_at_a_border_of_segments(path: str, route: str) -> None:
    assert taken(path) == route


@pytest.mark.parametrize(
    "path",
    ["/%61dmin", "/admin%2Fx", "/admin%2f..%2fx", "/x/../admin", "/x/%2e%2e/admin", "/x/%2E./admin", "//admin",
     "/./admin",
     "/x/..%2fadmin", "/%2561dmin", "/x/%252e%252e/admin", "/admin;v=1/x", "/;/admin", "/x/..;/admin", "/x\\..\\admin",
     "/x/..%5cadmin", "/admin%00.html", "/%2fadmin", "/admin/..", "/admin/../x", "/admin//../x", "/admin/%2e%2e/x"],
)  # fmt: skip
def test_what_can_be_read_as_another_routes_path_is_refused(path: str) -> None:
    # Readers that see through the spelling reach /admin, others do not: whichever we chose, somebody would differ.
    found = taken(path)
    assert found in ("HTTP_PATH_AMBIGUOUS", "admin"), path
    if found == "admin":
        possible = readings(path.encode())
        assert possible is not None
        assert all(each == b"/admin" or each.startswith(b"/admin/") for each in possible), possible


@pytest.mark.parametrize(
    "path",
    ["/shop/a%20b", "/shop//b", "/shop/./b", "/shop/a;b=c", "/.well-known/x", "/x/%D0%BF", "/p/http://h/"],
)
def test_unusual_paths_that_all_read_as_the_same_route_pass(path: str) -> None:
    assert taken(path) == ""


def test_a_long_path_of_unusual_spelling_is_refused_unread() -> None:
    assert taken("/x//" + "a" * UNUSUAL_BYTES_MAX) == "HTTP_PATH_AMBIGUOUS"
    assert taken("/" + "%D0%BF" * UNUSUAL_BYTES_MAX) == "", "escapes that mean nothing special are read alike"
    assert taken("/" + "a" * UNUSUAL_BYTES_MAX) == "", "a plain one has one reading, however long"


def test_where_no_route_goes_by_path_every_path_passes() -> None:
    table = RouteTable((RouteConfig("shop", host="shop"),), "web")
    assert taken("/x/../%2e%2e//\\" + "%41" * 1000, "shop", table=table) == "shop"


def test_hosts_that_clients_invent_do_not_fill_memory() -> None:
    table = RouteTable(ROUTES, "web")
    for number in range(HOSTS_REMEMBERED_MAX + 10):
        assert taken("/", f"h{number}", table=table) == ""
    assert len(table._by_host) <= HOSTS_REMEMBERED_MAX


def test_the_path_is_what_stands_before_the_query() -> None:
    assert path_of(b"/a/b?c=/admin") == b"/a/b"
    assert host_name("[2001:DB8::1]:443") == "2001:db8::1"


SEGMENTS = st.sampled_from(
    ["admin", "a", "..", ".", "", "%2e%2e", "%61dmin", "%2f", "\\", ";x", "%2e", "x%2fadmin", "%00", "%25"]
)


@given(st.lists(SEGMENTS, min_size=1, max_size=5))
def test_nobody_reads_admin_where_another_route_was_taken(segments: list[str]) -> None:
    path = ("/" + "/".join(segments)).encode()
    found = RouteTable(ROUTES[:1], "web").match(Asked("", path))
    if found is None:
        possible = readings(path)
        assert possible is not None
        assert not any(each == b"/admin" or each.startswith(b"/admin/") for each in possible)
    elif isinstance(found, Reject):
        assert found.reason is Reason.HTTP_PATH_AMBIGUOUS
        assert not is_plain(path)


@given(st.lists(st.text("abz09-_~", min_size=1, max_size=4), min_size=1, max_size=4))
def test_a_plain_path_has_one_reading(segments: list[str]) -> None:
    path = ("/" + "/".join(segments)).encode()
    assert is_plain(path)
    assert readings(path) == {path}
