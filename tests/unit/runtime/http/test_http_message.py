"""Requests, answers and problems as values and as bytes."""

from __future__ import annotations

import json

import pytest

from fairlead.protocol.reasons import Reason, Refused
from fairlead.runtime.http.answer import answer_bytes, answer_head
from fairlead.runtime.http.head import CHUNKED, UNTIL_CLOSE
from fairlead.runtime.http.message import Request, Response, json_response, problem, split_target


def request(query: str = "", headers: list[tuple[bytes, bytes]] | None = None) -> Request:
    return Request("GET", "/", query, headers or [], b"", "192.0.2.1", "c")


def test_params_are_decoded_and_strict() -> None:
    assert request("a=1&b=%C3%A9+x&c=").params() == {"a": "1", "b": "é x", "c": ""}
    assert request().params() == {}
    for query in ("a=1&a=2", "a=%ff", "&".join(f"a{n}=1" for n in range(101))):
        with pytest.raises(Refused) as caught:
            request(query).params()
        assert caught.value.reason is Reason.QUERY_INVALID


def test_headers_by_name_in_any_case() -> None:
    found = request(headers=[(b"x-a", b"1"), (b"x-a", b"2")])
    assert (found.header("X-A"), found.header_values("x-A"), found.header("x-b")) == ("1", ["1", "2"], None)


def test_problems_carry_what_the_table_says() -> None:
    response = problem(Reason.STORE_UNAVAILABLE, "disk full", "c-1", extra={"run_id": "r"})
    body = json.loads(response.body)
    assert response.status == body["status"] == 503
    assert body["type"] == "urn:fairlead:reason:STORE_UNAVAILABLE"
    assert (body["reason"], body["correlation_id"], body["run_id"]) == ("STORE_UNAVAILABLE", "c-1", "r")
    assert body["action"]
    assert ("retry-after", "1") in response.headers
    assert "retry_after" not in json.loads(problem(Reason.ROUTE_UNKNOWN, "", "c").body)
    assert json.loads(problem(Reason.QUEUE_FULL, "", "c", retry_after_s=2.1).body)["retry_after"] == 3


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/a/b?c=d?e", "/a/b", "c=d?e"),
        (b"/", "/", ""),
        (b"*", "*", ""),
        (b"http://h:1/a?b", "/a", "b"),
        (b"http://h", "/", ""),
        (b"http://h?b=/c", "/", "b=/c"),
        (b"//evil/a", "//evil/a", ""),
    ],
)
def test_split_target(target: bytes, path: str, query: str) -> None:
    assert split_target(target) == (path, query)


def test_answers_as_bytes() -> None:
    raw = answer_bytes(json_response([1], headers=[("x-a", "b")]), b"GET", True, "c-1", 0)
    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"HTTP/1.1 200 OK",
        b"content-type: application/json",
        b"x-a: b",
        b"content-length: 3",
        b"x-correlation-id: c-1",
        b"connection: keep-alive",
        b"date: Thu, 01 Jan 1970 00:00:00 GMT",
    ]
    assert body == b"[1]"
    assert answer_bytes(json_response([1]), b"HEAD", True, "c", 0).endswith(b"\r\n\r\n")
    assert b"content-length" not in answer_bytes(Response(204), b"GET", True, "c", 0)
    assert b"transfer-encoding: chunked" in answer_head(Response(200), CHUNKED, True, "c", 0)
    assert b"content-length" not in answer_head(Response(200), UNTIL_CLOSE, False, "c", 0)
    for value in ("a\r\nb", "a\nb", "a\0b"):
        with pytest.raises(ValueError):
            answer_head(Response(200, [("x", value)]), 0, True, "c", 0)
