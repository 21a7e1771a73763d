"""Which trace a backend is told of, and how fast a body has to come."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from fairlead.proxy.edge.pace import Pace
from fairlead.proxy.edge.trace import trace_lines
from fairlead.runtime.http.head import TRACE, Field

PARENT = b"00-" + b"ab" * 16 + b"-" + b"cd" * 8 + b"-01"
LINES = re.compile(
    rb"traceparent: [0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}[^\r\n]*\r\n(tracestate: [^\r\n]+\r\n)?"
)


def fields(*pairs: tuple[bytes, bytes]) -> list[Field]:
    return [(TRACE, name, value, name + b": " + value + b"\r\n") for name, value in pairs]


def lines(came: list[Field] | None, correlation_id: str = "x") -> bytes:
    return trace_lines(came, correlation_id, lambda count: b"\x11" * count)


def test_a_whole_one_goes_on() -> None:
    assert lines(fields((b"traceparent", PARENT))) == b"traceparent: " + PARENT + b"\r\n"
    state = fields(
        (b"tracestate", b"a=1"), (b"traceparent", PARENT), (b"tracestate", b""), (b"tracestate", b"b=2")
    )
    assert lines(state).endswith(b"\r\ntracestate: a=1,b=2\r\n")
    assert b"tracestate" not in lines(fields((b"traceparent", PARENT), (b"tracestate", b"a=" + b"x" * 600)))
    later = b"cc" + PARENT[2:] + b"-more"
    assert lines(fields((b"traceparent", later))) == b"traceparent: " + later + b"\r\n"


def test_what_is_not_whole_is_replaced() -> None:
    made = b"traceparent: 00-" + b"11" * 16 + b"-" + b"11" * 8 + b"-00\r\n"
    for bad in (
        *(
            b"",
            b"ff" + PARENT[2:],
            PARENT.upper(),
            PARENT[:-1],
            PARENT + b"-x",
            b"00-" + b"0" * 32 + PARENT[35:],
        ),
        *(PARENT[:36] + b"0" * 16 + b"-01", PARENT + b" ", b"01" + PARENT[2:] + b"x"),
    ):
        assert lines(fields((b"traceparent", bad), (b"tracestate", b"a=1"))) == made, bad
    assert lines(fields((b"traceparent", PARENT), (b"traceparent", PARENT))) == made
    assert lines(None) == made


def test_a_correlation_id_that_is_a_uuid_is_the_trace_id() -> None:
    assert lines(None, "01890a5d-ac96-774b-bcce-b302099a8057") == (
        b"traceparent: 00-01890a5dac96774bbcceb302099a8057-bcceb302099a8057-00\r\n"
    )
    for odd in ("0" * 8 + "-0000-0000-0000-" + "0" * 12, "01890A5D-AC96-774B-BCCE-B302099A8057", "-" * 36):
        assert b"-" + b"11" * 8 + b"-00" in lines(None, odd)
    assert b"-" + b"11" * 8 + b"-00" in lines(None, "01890a5d-ac96-774b-0000-000000000000")


NAMES = st.sampled_from([b"traceparent", b"tracestate"])
VALUES = st.one_of(st.just(PARENT), st.binary(max_size=60).filter(lambda value: not set(value) & {10, 13}))


@given(st.lists(st.tuples(NAMES, VALUES)))
def test_there_is_always_exactly_one(pairs: list[tuple[bytes, bytes]]) -> None:
    assert LINES.fullmatch(lines(fields(*pairs)))


def test_only_time_spent_waiting_counts() -> None:
    pace = Pace(100, 10.0)
    pace.begin(0.0)
    assert pace.keeps_up(1, 9.0)  # within the grace
    pace.begin(1_000.0)  # somebody else was slow
    assert pace.keeps_up(1_200, 1_002.0)
    pace.begin(1_002.0)
    assert not pace.keeps_up(1, 1_004.0)
    assert Pace(0, 0.0).keeps_up(0, 1e9)
