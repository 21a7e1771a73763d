"""Requests and responses as values, and how a refusal is told over HTTP (RFC 9457).

Stands where a handler of ours is called: on the operators' port, a node's health port, the sample app and
the clients' dispatch endpoints. Pure.

Invariants: names in `Request.headers` are lower-case; a path is as it was sent, not percent-decoded, so
that two readers cannot take it for different resources; every refusal names its reason, its correlation
id and the next step, all three from the one table of reasons.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec

from fairlead.protocol.reasons import Family, Reason, Refused, of_family, traits

QUERY_PARAMS_MAX: Final = 100
RETRY_AFTER_DEFAULT_S: Final = 1.0

# Their details name backends and limits, which are nobody's business outside.
_INSIDE: Final = frozenset(
    reason
    for reason in of_family(Family.EDGE)
    if reason.name.startswith(("BACKEND_", "ROUTING_", "ROUTE_", "CONNECTION_", "NODE_"))
)

_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Request:
    """A whole request, body included."""

    method: str
    path: str
    query: str
    headers: list[tuple[bytes, bytes]]
    body: bytes
    peer_host: str
    correlation_id: str

    def header(self, name: str) -> str | None:
        """The first value of `name` (in any case), or None."""
        wanted = name.lower().encode()
        for found, value in self.headers:
            if found == wanted:
                return value.decode("latin-1")
        return None

    def header_values(self, name: str) -> list[str]:
        """Every value of `name`, where giving it twice must not go unnoticed."""
        wanted = name.lower().encode()
        return [value.decode("latin-1") for found, value in self.headers if found == wanted]

    def params(self) -> dict[str, str]:
        """The query, percent-decoded. Raises Refused(QUERY_INVALID) if it is malformed or repeats a name."""
        if not self.query:
            return {}
        try:
            pairs = parse_qsl(
                self.query, keep_blank_values=True, errors="strict", max_num_fields=QUERY_PARAMS_MAX
            )
        except ValueError as error:  # UnicodeDecodeError included
            raise Refused(Reason.QUERY_INVALID, f"the query cannot be read: {error}") from error
        found = dict(pairs)
        if len(found) != len(pairs):
            raise Refused(Reason.QUERY_INVALID, "a query parameter is given twice")
        return found


@dataclass(frozen=True, slots=True)
class Response:
    """An answer: whole (`body`), or in pieces (`stream`, sent chunked). `headers` leave framing out."""

    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    stream: AsyncIterator[bytes] | None = None


def json_response(value: Any, status: int = 200, headers: Sequence[tuple[str, str]] = ()) -> Response:
    """`value` (anything msgspec encodes) as application/json. 429 and 503 always say when to come back."""
    given = [("content-type", "application/json"), *headers]
    if status in (429, 503) and not any(name == "retry-after" for name, _ in headers):
        given.append(("retry-after", str(math.ceil(RETRY_AFTER_DEFAULT_S))))
    return Response(status, given, _encoder.encode(value))


def text_response(
    text: str,
    status: int = 200,
    headers: Sequence[tuple[str, str]] = (),
    content_type: str = "text/plain; charset=utf-8",
) -> Response:
    """`text` in UTF-8."""
    return Response(status, [("content-type", content_type), *headers], text.encode())


def problem(
    reason: Reason,
    detail: str,
    correlation_id: str,
    *,
    retry_after_s: float | None = None,
    extra: dict[str, Any] | None = None,
    for_client: bool = False,
    status: int = 0,
) -> Response:
    """A refusal as application/problem+json. 429 and 503 always say when to come back.

    `status`: in the place of the reason's own. `for_client`: leave out what is for operators alone, the next step and
    what names our insides; the correlation id leads an operator to both."""
    row = traits(reason)
    status = status or row.status
    if retry_after_s is None and status in (429, 503):
        retry_after_s = RETRY_AFTER_DEFAULT_S
    body: dict[str, Any] = {
        "type": f"urn:fairlead:reason:{reason.value}",
        "title": row.title,
        "status": status,
        "detail": detail,
        "reason": reason.value,
        "correlation_id": correlation_id,
        "action": row.action,
    }
    if for_client:
        del body["action"]
        if reason in _INSIDE:
            body["detail"] = ""
    headers = [("content-type", "application/problem+json")]
    if retry_after_s is not None:
        whole_s = max(1, math.ceil(retry_after_s))
        body["retry_after"] = whole_s
        headers.append(("retry-after", str(whole_s)))
    if extra:
        body.update(extra)
    return Response(status, headers, _encoder.encode(body))


def split_target(target: bytes) -> tuple[str, str]:
    """Path and query of a request target: origin form, absolute form, or `*`."""
    text = target.decode("latin-1")
    if not text.startswith("/"):
        _, separator, rest = text.partition("://")
        if separator:
            slash = rest.find("/")
            mark = rest.find("?")
            if slash < 0 or 0 <= mark < slash:
                text = "/" + (rest[mark:] if mark >= 0 else "")
            else:
                text = rest[slash:]
    path, _, query = text.partition("?")
    return path, query
