"""What the edge makes of bytes, without sockets, and how two independent readers (h11, llhttp) read the result."""

from __future__ import annotations

from dataclasses import dataclass, field

import h11
import httptools

from fairlead.protocol.reasons import Reject
from fairlead.proxy.edge.body import ResponseBody
from fairlead.proxy.edge.forward_headers import max_forwards, request_bytes, response_bytes
from fairlead.proxy.edge.upgrade import HOPS, asked_key
from fairlead.runtime.http.body import reader_for
from fairlead.runtime.http.framing import split_head
from fairlead.runtime.http.head import HeadReader

HEAD_BYTES_MAX = 16_384


@dataclass
class Read:
    """One message, as a reader understood it."""

    first: tuple[bytes, ...]  # method and target, or the status
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""

    def values(self, name: bytes) -> list[bytes]:
        return [value.strip() for found, value in self.headers if found.lower() == name]


class Disagreement(AssertionError):
    """Two readers of the same bytes."""


def forwarded_request(raw: bytes) -> bytes | None:
    """The bytes for the backend, once the request is whole; None where it is refused, ours to answer, or not whole."""
    found = split_head(raw, HEAD_BYTES_MAX)
    if not isinstance(found, tuple):
        return None
    head = HeadReader().request(found[0])
    if isinstance(head, Reject) or head.method in (b"CONNECT", b"TRACE"):
        return None
    if head.method == b"OPTIONS" and (isinstance(left := max_forwards(head), Reject) or left == 0):
        return None
    key = asked_key(head) if head.upgrade else None
    if isinstance(key, Reject):
        return None
    body = b""
    if head.length:
        reader = reader_for(head.length, trailers=True)
        fed = reader.feed(found[1])
        if isinstance(fed, Reject) or not reader.is_done:
            return None
        body = fed[0]
    hops = HOPS if key else b""
    return request_bytes(head, "192.0.2.7", b"http", "cid", False, "backend:80", hops=hops) + body


def by_h11(raw: bytes) -> Read:
    """The one message that `raw` is, to h11."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(raw)
    connection.receive_data(b"")
    read: Read | None = None
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            assert read is None
            read = Read((event.method, event.target), list(event.headers))
        elif isinstance(event, h11.Data):
            assert read is not None
            read.body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert read is not None
            rest = connection.trailing_data[0]
            if rest:
                raise Disagreement(f"h11 sees more behind the message: {rest!r}")
            return read
        else:
            raise Disagreement(f"h11 sees no whole request in {raw!r}")


class _Events:
    def __init__(self) -> None:
        self.began = self.ended = 0
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""

    def on_message_begin(self) -> None:
        self.began += 1

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.ended:
            self.headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.ended += 1


def by_llhttp(raw: bytes) -> Read:
    """The one message that `raw` is, to llhttp."""
    events = _Events()
    parser = httptools.HttpRequestParser(events)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade as upgrade:
        if upgrade.args[0] != len(raw):
            raise Disagreement(f"llhttp sees more behind the upgrade: {raw!r}") from upgrade
    if (events.began, events.ended) != (1, 1):
        raise Disagreement(f"llhttp sees {events.began} requests begun and {events.ended} ended in {raw!r}")
    return Read((parser.get_method(), events.url), events.headers, events.body)


def check_request(raw: bytes) -> bytes | None:
    """What is forwarded of `raw` is one request to both readers. Returns it."""
    sent = forwarded_request(raw)
    if sent is None:
        return None
    one = by_h11(sent)
    try:
        other = by_llhttp(sent)
    except httptools.HttpParserInvalidMethodError:
        return sent  # It knows the registered methods only, and reads no other request at all.
    if one.first != other.first or one.body != other.body:
        raise Disagreement(f"{one} is not {other}")
    for name in (b"host", b"content-length", b"transfer-encoding", b"connection", b"x-forwarded-for"):
        if one.values(name) != other.values(name):
            raise Disagreement(f"{name!r}: {one.values(name)} is not {other.values(name)}")
    if len(one.values(b"host")) != 1 or one.values(b"x-forwarded-for") != [b"192.0.2.7"]:
        raise Disagreement(f"whose request is it? {sent!r}")
    if len(one.values(b"content-length")) + len(one.values(b"transfer-encoding")) > 1:
        raise Disagreement(f"framed twice: {sent!r}")
    return sent


def forwarded_answer(raw: bytes, method: bytes, trailers: bool = False) -> tuple[int, bytes] | None:
    """Status and bytes for an HTTP/1.1 client; None where the answer is refused or not whole."""
    found = split_head(raw, HEAD_BYTES_MAX)
    if not isinstance(found, tuple):
        return None
    head = HeadReader().response(found[0])
    if isinstance(head, Reject) or head.status < 200:
        return None
    length = head.body_length(method)
    body = ResponseBody(length, 1, trailers)
    out = response_bytes(head, length, 1, True, "cid", trailers=trailers)
    if not body.is_done:
        fed = body.feed(found[1])
        if isinstance(fed, Reject):
            return None
        out += fed
    if not body.is_done:
        ended = body.end()
        if isinstance(ended, Reject):
            return None
        out += ended
    return head.status, out


def check_answer(raw: bytes, method: bytes, trailers: bool = False) -> bytes | None:
    """What the client gets of `raw` is one answer to both readers. Returns it."""
    made = forwarded_answer(raw, method, trailers)
    if made is None:
        return None
    status, sent = made
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    connection.send(h11.Request(method=method, target="/", headers=[("Host", "h")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(sent)
    body, ended = b"", False
    while not ended:
        event = connection.next_event()
        if isinstance(event, h11.Response):
            if event.status_code != status:
                raise Disagreement(f"h11 reads {event.status_code} in {sent!r}")
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            ended = True
        else:
            raise Disagreement(f"h11 sees no whole answer in {sent!r}")
    if connection.trailing_data[0]:
        raise Disagreement(f"h11 sees more behind the answer: {sent!r}")
    if method == b"HEAD":
        return sent  # llhttp has to be told, and httptools cannot
    events = _Events()
    parser = httptools.HttpResponseParser(events)
    parser.feed_data(sent)
    if (events.began, events.ended, parser.get_status_code(), events.body) != (1, 1, status, body):
        raise Disagreement(f"llhttp reads {events.__dict__} in {sent!r}")
    return sent
