"""Our own answers as bytes: status line, headers, framing.

Stands at the end of a request that Fairlead answers itself, on any port. Pure.

Invariant: nothing a handler puts into a header can end the head early or begin another message.
"""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus
from typing import Final

from fairlead.runtime.http.head import CHUNKED, UNTIL_CLOSE
from fairlead.runtime.http.message import Response

_BODILESS: Final = (204, 304)
_status_lines: dict[int, str] = {}
_date: tuple[int, bytes] = (-1, b"")


def is_bodiless(method: bytes, status: int) -> bool:
    """Whether an answer to `method` with `status` has no body, whatever its headers say."""
    return method == b"HEAD" or status in _BODILESS


def answer_head(response: Response, length: int, keep: bool, correlation_id: str, wall_ms: int) -> bytes:
    """The head; `length` is a number, CHUNKED or UNTIL_CLOSE. ValueError where a header is malformed."""
    lines = [_status_line(response.status)]
    for name, value in response.headers:
        if "\r" in value or "\n" in value or "\0" in value:
            raise ValueError(f"a line break in the value of {name}")
        lines.append(f"{name}: {value}\r\n")
    if response.status not in _BODILESS:
        if length == CHUNKED:
            lines.append("transfer-encoding: chunked\r\n")
        elif length != UNTIL_CLOSE:
            lines.append(f"content-length: {length}\r\n")
    connection = "keep-alive" if keep else "close"
    lines.append(f"x-correlation-id: {correlation_id}\r\nconnection: {connection}\r\n")
    lines.append(_date_line(wall_ms // 1000))
    return "".join(lines).encode("latin-1", "replace")


def answer_bytes(response: Response, method: bytes, keep: bool, correlation_id: str, wall_ms: int) -> bytes:
    """Head and body of a whole (not streamed) answer to `method`."""
    head = answer_head(response, len(response.body), keep, correlation_id, wall_ms)
    return head if is_bodiless(method, response.status) else head + response.body


def _status_line(status: int) -> str:
    line = _status_lines.get(status)
    if line is None:
        try:
            phrase = HTTPStatus(status).phrase
        except ValueError:
            phrase = "Client Closed Request" if status == 499 else "Unassigned"
        line = _status_lines[status] = f"HTTP/1.1 {status} {phrase}\r\n"
    return line


def _date_line(second: int) -> str:
    """The Date header and the empty line, which all answers of one second share."""
    return date_line(second).decode("ascii") + "\r\n"


def date_line(second: int) -> bytes:
    """The Date header, which all answers of one second share."""
    global _date
    if _date[0] != second:
        _date = (second, f"date: {formatdate(second, usegmt=True)}\r\n".encode())
    return _date[1]
