"""Structured log lines, written by a thread so that a stuck terminal never stops the proxy.

A line is `time level event key=value ...`, or one JSON object. Values of keys that name secrets are never
written. The queue is bounded; what does not fit is counted and said in the next line that does.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Protocol

LINES_WAITING_MAX: Final = 10_000
_SECRET_KEYS: Final = (
    "secret",
    "token",
    "password",
    "psk",
    "ops_key",
    "node_key",
    "authorization",
    "signature",
)
LEVELS: Final = ("debug", "info", "warning", "error")


class Sink(Protocol):
    """Where finished lines go."""

    def write(self, line: str) -> None: ...
    def close(self) -> None: ...


class StderrSink:
    """Writes lines to standard error from a daemon thread."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        if self._queue.qsize() >= LINES_WAITING_MAX:
            self.dropped += 1
            return
        if self.dropped:
            line = f"{line} log_lines_dropped={self.dropped}"
            self.dropped = 0
        self._queue.put(line)

    def close(self) -> None:
        """Write what waits, for at most two seconds."""
        self._queue.put(None)
        self._thread.join(timeout=2)

    def _run(self) -> None:
        while True:
            line = self._queue.get()
            if line is None:
                return
            try:
                sys.stderr.write(line + "\n")
                sys.stderr.flush()
            except (OSError, ValueError):
                return  # Standard error is gone; there is nowhere left to say so.


class ListSink:
    """Keeps lines, for tests and simulation."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, line: str) -> None:
        self.lines.append(line)

    def close(self) -> None:
        return None


class Log:
    """Formats events and hands them to a sink."""

    def __init__(
        self, sink: Sink, wall_ms: Callable[[], int], process: str, level: str = "info", as_json: bool = False
    ) -> None:
        self._sink, self._wall_ms, self._process, self._as_json = sink, wall_ms, process, as_json
        self._threshold = LEVELS.index(level)

    def bind(self, **fields: Any) -> BoundLog:
        """A view that adds the same fields to every line."""
        return BoundLog(self, fields)

    def set_level(self, level: str) -> None:
        self._threshold = LEVELS.index(level)

    def event(self, level: str, event: str, /, **fields: Any) -> None:
        """One line. `event` is a fixed phrase in snake case; everything that varies is a field."""
        if LEVELS.index(level) < self._threshold:
            return
        stamp = datetime.fromtimestamp(self._wall_ms() / 1000, UTC).isoformat(timespec="milliseconds")
        stamp = stamp.replace("+00:00", "Z")
        clean = {
            key: redact(key, value) for key, value in fields.items() if value is not None and value != ""
        }
        if self._as_json:
            line = json.dumps(
                {**clean, "time": stamp, "level": level, "process": self._process, "event": event},
                default=str,
                ensure_ascii=False,
            )
        else:
            pairs = " ".join(f"{key}={_text(value)}" for key, value in clean.items())
            line = f"{stamp} {level.upper():7} {self._process} {event} {pairs}".rstrip()
        self._sink.write(line)

    def debug(self, event: str, /, **fields: Any) -> None:
        self.event("debug", event, **fields)

    def info(self, event: str, /, **fields: Any) -> None:
        self.event("info", event, **fields)

    def warning(self, event: str, /, **fields: Any) -> None:
        self.event("warning", event, **fields)

    def error(self, event: str, /, **fields: Any) -> None:
        self.event("error", event, **fields)

    def close(self) -> None:
        self._sink.close()


class BoundLog:
    """A log with fields of its own: what a handler is given, so that its lines carry the run."""

    def __init__(self, log: Log, fields: dict[str, Any]) -> None:
        self._log, self._fields = log, fields

    def debug(self, event: str, /, **fields: Any) -> None:
        self._log.event("debug", event, **{**self._fields, **fields})

    def info(self, event: str, /, **fields: Any) -> None:
        self._log.event("info", event, **{**self._fields, **fields})

    def warning(self, event: str, /, **fields: Any) -> None:
        self._log.event("warning", event, **{**self._fields, **fields})

    def error(self, event: str, /, **fields: Any) -> None:
        self._log.event("error", event, **{**self._fields, **fields})


def redact(key: str, value: Any) -> Any:
    """The value, or a placeholder where the key names a secret. Key *ids* are public."""
    if isinstance(value, Mapping):
        return {inner: redact(str(inner), each) for inner, each in value.items()}
    if isinstance(value, list | tuple):
        return [redact(key, each) for each in value]
    lowered = key.lower()
    if any(word in lowered for word in _SECRET_KEYS) and not lowered.endswith(("_id", "_ids", "_path")):
        return "<redacted>"
    return value


def _text(value: Any) -> str:
    text = str(value)
    if text and all(32 < ord(char) < 127 and char not in '"=' for char in text):
        return text
    return json.dumps(text, ensure_ascii=True)
