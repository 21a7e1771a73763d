"""Log lines: one line each, whatever is in them, and never a secret."""

from __future__ import annotations

import io
import json
import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.runtime import log as subject
from fairlead.runtime.log import ListSink, Log, StderrSink, redact

AT_MS = 1_700_000_000_123


def make(level: str = "debug", as_json: bool = False) -> tuple[Log, ListSink]:
    sink = ListSink()
    return Log(sink, lambda: AT_MS, "proxy", level, as_json), sink


def text_of(**fields: object) -> str:
    log, sink = make()
    log.info("happened", **fields)
    return sink.lines[0].partition("happened")[2].strip()


def test_a_line_is_time_level_process_event_and_pairs() -> None:
    log, sink = make()
    log.warning("node_linked", node="n1", count=3, share=0.5, yes=True)
    assert sink.lines == [
        "2023-11-14T22:13:20.123Z WARNING proxy node_linked node=n1 count=3 share=0.5 yes=True"
    ]


def test_nothing_is_said_of_what_is_nothing() -> None:
    assert text_of(a=None, b="", c=0, d=False) == "c=0 d=False"


def test_levels_are_a_threshold_that_can_move() -> None:
    log, sink = make("warning")
    for speak in (log.debug, log.info, log.warning, log.error):
        speak("x")
    assert len(sink.lines) == 2
    log.set_level("debug")
    log.debug("x")
    assert len(sink.lines) == 3


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("two words", '"two words"'),
        ('a"b', '"a\\"b"'),
        ("a=b", '"a=b"'),
        ("line\nbreak", '"line\\nbreak"'),
        ("\x1b[31mred", '"\\u001b[31mred"'),
        ("é", '"\\u00e9"'),
        ("\u2028", '"\\u2028"'),
        ("a\\b", "a\\b"),
        (["a", 1], "\"['a', 1]\""),
    ],
)
def test_what_is_not_plain_is_quoted(value: object, text: str) -> None:
    assert text_of(k=value) == f"k={text}"


@settings(max_examples=80)
@given(st.text())
def test_no_value_makes_a_second_line_or_a_second_field(value: str) -> None:
    """Whatever a stranger sends: an id, a header, a detail."""
    log, sink = make()
    log.info("happened", before="x", value=value, after="y")
    (line,) = sink.lines
    assert len(line.splitlines()) == 1
    assert line.isascii()
    assert all(ord(char) >= 32 for char in line)
    fields = re.findall(r' (\w+)=("(?:[^"\\]|\\.)*"|[^ "=]+)', line.partition("happened")[2])
    assert "".join(f" {key}={text}" for key, text in fields) == line.partition("happened")[2]
    assert [key for key, _ in fields] == (["before", "value", "after"] if value else ["before", "after"])
    if value and fields[1][1].startswith('"'):
        assert json.loads(fields[1][1]) == value


@settings(max_examples=80)
@given(st.text())
def test_a_json_line_is_one_line_and_gives_the_value_back(value: str) -> None:
    log, sink = make(as_json=True)
    log.info("happened", value=value, count=3)
    (line,) = sink.lines
    assert "\n" not in line
    assert "\r" not in line
    found = json.loads(line)
    assert found["event"] == "happened"
    assert found["count"] == 3
    assert found.get("value", "") == value


def test_a_json_line_says_the_same() -> None:
    log, sink = make(as_json=True)
    log.error("broke", detail='say "it"', what={1, 2}, psk=b"123")
    assert json.loads(sink.lines[0]) == {
        "time": "2023-11-14T22:13:20.123Z", "level": "error", "process": "proxy", "event": "broke",
        "detail": 'say "it"', "what": "{1, 2}", "psk": "<redacted>",
    }  # fmt: skip


SECRET = "5f4dcc3b5aa765d61d8327deb882cf99"


@pytest.mark.parametrize(
    "key",
    ["secret", "proxy_secret", "PROXY_SECRET", "proxy_secret_previous", "token", "x_token", "password", "psk",
     "ops_key", "x_ops_key", "node_key", "node_key_previous", "authorization", "Authorization", "signature"],
)  # fmt: skip
@pytest.mark.parametrize("as_json", [True, False])
def test_a_value_whose_key_names_a_secret_is_never_written(key: str, as_json: bool) -> None:
    log, sink = make(as_json=as_json)
    log.info("x", **{key: SECRET})
    log.bind(**{key: SECRET}).error("y")
    assert not any(SECRET in line for line in sink.lines)
    assert all("<redacted>" in line for line in sink.lines)


@pytest.mark.parametrize("as_json", [True, False])
def test_a_secret_within_a_value_is_not_written_either(as_json: bool) -> None:
    """Configurations and headers are logged as mappings; their keys count as well."""
    log, sink = make(as_json=as_json)
    log.info("x", config={"proxy_secret": SECRET, "port": 1}, headers=[{"authorization": SECRET}])
    assert SECRET not in sink.lines[0]


@pytest.mark.parametrize("key", ["key_id", "token_ids", "secret_path", "key", "node", "keys"])
def test_public_things_are_shown(key: str) -> None:
    assert redact(key, "abc") == "abc"


def test_a_bound_log_adds_its_fields_and_a_line_may_override_them() -> None:
    log, sink = make()
    bound = log.bind(run="r1", command="a:b")
    for speak in (bound.debug, bound.info, bound.warning, bound.error):
        speak("step", command="c:d")
    assert len(sink.lines) == 4
    assert all(line.endswith("step run=r1 command=c:d") for line in sink.lines)


def test_a_field_may_be_called_like_our_own_arguments() -> None:
    """Handlers choose their fields: `event` and `level` must not collide."""
    log, sink = make()
    log.info("x", event="y", level="z", self="me")
    log.bind(event="y").info("x", level="z")
    assert len(sink.lines) == 2


# -- the thread that writes


def test_lines_arrive_whole_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    sink = StderrSink()
    for number in range(100):
        sink.write(f"line {number}")
    sink.close()
    assert out.getvalue().splitlines() == [f"line {number}" for number in range(100)]


def test_what_does_not_fit_is_counted_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "LINES_WAITING_MAX", 0)
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    sink = StderrSink()
    for _ in range(3):
        sink.write("lost")
    assert sink.dropped == 3
    monkeypatch.setattr(subject, "LINES_WAITING_MAX", 10)
    sink.write("kept")
    sink.write("next")
    sink.close()
    assert out.getvalue() == "kept log_lines_dropped=3\nnext\n"


def test_a_standard_error_that_is_gone_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    out.close()
    monkeypatch.setattr(sys, "stderr", out)
    sink = StderrSink()
    sink.write("into the void")
    sink.write("again")
    sink.close()
