"""Where bodies end."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.protocol.reasons import Reason, Reject
from fairlead.runtime.http.body import ChunkedReader, CountedReader, WholeBody, as_chunk
from fairlead.runtime.http.head import CHUNKED


def feed_all(reader: ChunkedReader, pieces: list[bytes]) -> tuple[bytes, bytes] | Reject:
    out, rest = b"", b""
    for piece in pieces:
        if reader.is_done:
            rest += piece
            continue
        fed = reader.feed(piece)
        if isinstance(fed, Reject):
            return fed
        out += fed[0]
        rest += fed[1]
    return out, rest


def split_at(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


BODIES = st.lists(st.binary(min_size=1, max_size=40), max_size=5)
EXTENSIONS = st.sampled_from([b"", b";a", b';a="b c"', b"; x=\xff"])
TRAILERS = st.sampled_from([b"", b"X: y\r\n", b"A:\r\nB: c\r\n"])


@settings(max_examples=300, deadline=None)
@given(BODIES, EXTENSIONS, TRAILERS, st.lists(st.integers(0, 500), max_size=8), st.binary(max_size=9))
def test_pieces_make_no_difference(
    parts: list[bytes], extension: bytes, trailers: bytes, cuts: list[int], after: bytes
) -> None:
    chunks = b"".join(b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts)
    plain = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    raw = chunks + b"0" + extension + b"\r\n" + trailers + b"\r\n" + after
    bytewise = [raw[at : at + 1] for at in range(len(raw))]
    for pieces in ([raw], bytewise, split_at(raw, cuts)):
        assert feed_all(ChunkedReader(decode=True), pieces) == (b"".join(parts), after)
        assert feed_all(ChunkedReader(), pieces) == (plain + b"0\r\n\r\n", after)
        kept = feed_all(ChunkedReader(trailers=True), pieces)
        assert kept == (plain + b"0\r\n" + trailers + b"\r\n", after)


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.sampled_from([b"0", b"3", b"a", b"\r\n", b"\n", b"abc", b";", b" ", b"X: y", b"-"])),
    st.data(),
)
def test_pieces_make_no_difference_to_nonsense_either(tokens: list[bytes], data: st.DataObject) -> None:
    raw = b"".join(tokens)
    whole = feed_all(ChunkedReader(decode=True), [raw])
    cuts = data.draw(st.lists(st.integers(0, 100), max_size=5))
    pieces = feed_all(ChunkedReader(decode=True), split_at(raw, cuts))
    assert isinstance(whole, Reject) == isinstance(pieces, Reject)
    if isinstance(whole, tuple) and isinstance(pieces, tuple):
        assert whole == pieces


@pytest.mark.parametrize(
    "raw",
    [
        b"+3\r\nabc",
        b"-3\r\nabc",
        b"0x3\r\nabc",
        b" 3\r\nabc",
        b"3 \r\nabc",
        b"\r\nabc",
        b"g\r\nabc",
        b"3\nabc",
        b"3;a\nb\r\nabc",
        b"3;\x00\r\nabc",
        b"3;a\rb\r\nabc",
        b"1" * 16 + b"\r\n",
        b"3;" + b"x" * 300,
        b"3\r\nabcd",
        b"3\r\nabc\n",
        b"3\r\nabc0\r\n",
        b"0\r\nnot a trailer\r\n\r\n",
        b"0\r\n X: y\r\n\r\n",
        b"0\r\n" + b"X: y\r\n" * 1000,
        b"0\r\nX: " + b"y" * 5000,
    ],
)
def test_chunks_that_two_readers_could_read_differently_are_refused(raw: bytes) -> None:
    for pieces in ([raw], [raw[at : at + 1] for at in range(len(raw))]):
        found = feed_all(ChunkedReader(), pieces)
        assert isinstance(found, Reject)
        assert found.reason is Reason.HTTP_BODY_MALFORMED


def test_an_unfinished_line_is_not_passed_on() -> None:
    reader = ChunkedReader()
    assert reader.feed(b"5\r\nab") == (b"5\r\nab", b"")
    assert reader.feed(b"cde\r\n3;x") == (b"cde\r\n", b"")
    assert reader.feed(b"\r\nxyz\r") == (b"3\r\nxyz", b"")
    assert reader.feed(b"\n0\r\n\r\nnext") == (b"\r\n0\r\n\r\n", b"next")
    assert reader.is_done


def test_counted_bodies() -> None:
    reader = CountedReader(5)
    assert reader.feed(b"abc") == (b"abc", b"")
    assert not reader.is_done
    assert reader.feed(b"defg") == (b"de", b"fg")
    assert reader.is_done


def test_whole_bodies_are_bounded() -> None:
    whole = WholeBody(3, 10)
    assert whole.feed(b"ab") is None
    assert not whole.is_done
    assert whole.feed(b"cd") is None
    assert (whole.is_done, whole.take(), whole.rest) == (True, b"abc", b"d")
    for length, data in ((11, b""), (CHUNKED, b"b\r\nxxxxxxxxxxx")):
        found = WholeBody(length, 10).feed(data)
        assert isinstance(found, Reject)
        assert found.reason is Reason.HTTP_BODY_TOO_LARGE


def test_as_chunk() -> None:
    assert as_chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"


def test_chunk_headers_go_on_in_one_spelling() -> None:
    raw = b"0003\r\nabc\r\nA;a=b\r\n0123456789\r\n000;x\r\nX: y\r\n\r\n"
    for pieces in ([raw], [raw[at : at + 1] for at in range(len(raw))]):
        assert feed_all(ChunkedReader(), pieces) == (b"3\r\nabc\r\na\r\n0123456789\r\n0\r\n\r\n", b"")


def test_trailers_that_mean_something_on_the_way_do_not_go_on() -> None:
    meant = (
        b"Authorization: a\r\nCookie: a\r\nX-Forwarded-For: a\r\nX_Real_IP: a\r\nTraceparent: a\r\nVia: a\r\n"
        b"X-Fairlead-Client: a\r\nContent-Type: a\r\nTE: a\r\nUpgrade: a\r\nIf-Match: a\r\nSet-Cookie: a\r\n"
    )
    found = feed_all(ChunkedReader(trailers=True), [b"0\r\n" + meant + b"X-Checksum: 1\r\n\r\n"])
    assert found == (b"0\r\nX-Checksum: 1\r\n\r\n", b"")
    for name in (b"Content-Length", b"Transfer-Encoding", b"Host", b"Connection", b"content_length"):
        for reader in (ChunkedReader(), ChunkedReader(trailers=True), ChunkedReader(decode=True)):
            assert isinstance(reader.feed(b"0\r\n" + name + b": 1\r\n\r\n"), Reject)


def test_chunk_extensions_are_bounded_in_sum() -> None:
    reader = ChunkedReader()
    found = [reader.feed(b"1;" + b"x" * 250 + b"\r\na\r\n") for _ in range(70)]
    assert not isinstance(found[0], Reject)
    refused = next(each for each in found if isinstance(each, Reject))
    assert refused.reason is Reason.HTTP_BODY_MALFORMED
