"""How an answer's body goes on."""

from __future__ import annotations

from fairlead.protocol.reasons import Reason, Reject
from fairlead.proxy.edge.body import ResponseBody
from fairlead.runtime.http.head import CHUNKED, UNTIL_CLOSE


def test_counted() -> None:
    body = ResponseBody(5, 1)
    assert (body.feed(b"abc"), body.is_done, body.counted_left) == (b"abc", False, 2)
    assert (body.feed(b"de"), body.is_done, body.has_surplus) == (b"de", True, False)
    body = ResponseBody(5, 1)
    assert (body.feed(b"abcdefg"), body.is_done, body.has_surplus) == (b"abcde", True, True)
    body = ResponseBody(5, 1)
    body.passed(5)
    assert body.is_done
    body = ResponseBody(5, 1)
    body.feed(b"abc")
    ended = body.end()
    assert isinstance(ended, Reject)
    assert ended.reason is Reason.BACKEND_CLOSED_EARLY
    assert ResponseBody(0, 1).is_done


def test_chunked_as_it_came_or_decoded() -> None:
    raw = b"3\r\nabc\r\n0\r\n\r\n"
    body = ResponseBody(CHUNKED, 1)
    assert (body.feed(raw), body.is_done, body.has_surplus) == (raw, True, False)
    body = ResponseBody(CHUNKED, 0)
    assert (body.feed(raw + b"x"), body.is_done, body.has_surplus) == (b"abc", True, True)
    assert isinstance(ResponseBody(CHUNKED, 1).end(), Reject)
    refused = ResponseBody(CHUNKED, 1).feed(b"zz\r\n")
    assert isinstance(refused, Reject)
    assert refused.reason is Reason.BACKEND_RESPONSE_MALFORMED


def test_until_close() -> None:
    body = ResponseBody(UNTIL_CLOSE, 1)
    assert body.feed(b"abc") == b"3\r\nabc\r\n"
    assert body.feed(b"") == b""  # an empty chunk would end the body
    assert (body.end(), body.is_done) == (b"0\r\n\r\n", True)
    body = ResponseBody(UNTIL_CLOSE, 0)
    assert (body.feed(b"abc"), body.end(), body.is_done) == (b"abc", b"", True)
