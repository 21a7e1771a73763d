"""Strict checks that h11 lacks: everything about which two readers of one head could disagree.

Stands between the bytes of a head and h11, on the client's journey and on the operators'. Pure.

Invariants: what is refused here is never forwarded and never served; nothing is mended. h11 itself lets
pass bare LF line ends, obs-fold, Content-Length beside Transfer-Encoding, repeated equal Content-Length
and most control bytes; each is how request smuggling begins.
"""

from __future__ import annotations

import re
from typing import Final

from fairlead.protocol.reasons import Reason, Reject

CONTENT_LENGTH_DIGITS_MAX: Final = 15  # up to a petabyte; no arithmetic anywhere gets near its limits

_BARE_LF = re.compile(rb"(?<!\r)\n")
_BARE_CR = re.compile(rb"\r(?!\n)")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_VERSION = re.compile(rb" HTTP/([0-9]+)\.([0-9]+)$")
_DIGITS = re.compile(rb"[0-9]{1,%d}" % CONTENT_LENGTH_DIGITS_MAX)
_ABSOLUTE = re.compile(
    rb"[Hh][Tt][Tt][Pp][Ss]?://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?(?:[/?]|$)"
)
# Stricter than the grammar of a URI: an empty host, escapes and `,` or `;` are read in more than one way.
_HOST = re.compile(rb"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_METHOD_LOWER = re.compile(rb"[a-z]")
_DEFAULT_PORTS: Final = {b"http": b":80", b"https": b":443"}


def split_head(buffer: bytes, bytes_max: int) -> tuple[bytes, bytes] | Reject | None:
    """A whole head (with its empty line) and what follows it; None while it is incomplete."""
    end = buffer.find(b"\r\n\r\n")
    if end > bytes_max or (end < 0 and len(buffer) > bytes_max):
        if buffer.find(b"\r\n", 0, bytes_max) < 0:
            return Reject(Reason.HTTP_TARGET_TOO_LONG, f"more than {bytes_max} bytes of first line")
        return Reject(Reason.HTTP_HEAD_TOO_LARGE, f"more than {bytes_max} bytes of head")
    if end >= 0:
        return buffer[: end + 4], buffer[end + 4 :]
    return check_incomplete(buffer)


def after_empty_line(buffer: bytes) -> bytes | Reject:
    """One empty line before a request is to be ignored (RFC 9112, 2.2). More are no request."""
    if not buffer.startswith(b"\r\n"):
        return buffer
    if buffer.startswith(b"\r\n", 2):
        return Reject(Reason.HTTP_HEAD_MALFORMED, "empty lines in place of a request")
    return buffer[2:]


def check_incomplete(received: bytes) -> Reject | None:
    """Whether a head that has not ended yet is already beyond hope: no need to wait for the rest."""
    if received and received[0] < 0x21 and not received.startswith(b"\r"):
        return Reject(Reason.HTTP_HEAD_MALFORMED, "these bytes are not HTTP")
    if _BARE_LF.search(received):
        return Reject(Reason.HTTP_FRAMING_AMBIGUOUS, "a line ends in LF without CR")
    return None


def check_bytes(head: bytes) -> Reject | None:
    """The head as bytes, with its final empty line: line ends, folding, control bytes."""
    if _BARE_LF.search(head):
        return Reject(Reason.HTTP_FRAMING_AMBIGUOUS, "a line ends in LF without CR")
    if _BARE_CR.search(head):
        return Reject(Reason.HTTP_FRAMING_AMBIGUOUS, "a CR stands without LF")
    if b"\r\n " in head or b"\r\n\t" in head:
        return Reject(Reason.HTTP_FRAMING_AMBIGUOUS, "a header is folded over lines (obs-fold)")
    if _CONTROL.search(head):
        return Reject(Reason.HTTP_HEAD_MALFORMED, "a control byte in the head")
    return None


def check_request_lines(lines: list[bytes]) -> Reject | None:
    """A request's lines (the request line first), before h11 sees them."""
    version = _VERSION.search(lines[0])
    if version is not None and version.groups() not in ((b"1", b"1"), (b"1", b"0")):
        return Reject(Reason.HTTP_VERSION_UNSUPPORTED, "the request names another version of HTTP")
    method, _, rest = lines[0].partition(b" ")
    if _METHOD_LOWER.search(method):
        return Reject(
            Reason.HTTP_METHOD_UNSUPPORTED, "methods are case-sensitive: lower case is none of ours"
        )
    target = rest.partition(b" ")[0]
    if b"#" in target or not (
        target.startswith(b"/")
        or (target == b"*" and method == b"OPTIONS")
        or method == b"CONNECT"
        or _ABSOLUTE.match(target)
    ):
        return Reject(Reason.HTTP_HEAD_MALFORMED, "the request target is malformed")
    is_http_11 = version is not None and version[2] == b"1"
    refused = _check_length_and_coding(lines, is_http_11)
    if refused is not None:
        return refused
    hosts = values_of(lines, b"host")
    if len(hosts) > 1 or (not hosts and is_http_11):
        return Reject(Reason.HTTP_HEAD_MALFORMED, f"{len(hosts)} Host headers instead of one")
    if hosts and not _HOST.fullmatch(hosts[0]):
        return Reject(Reason.HTTP_HEAD_MALFORMED, "the Host header is malformed")
    if hosts and method != b"CONNECT" and not _is_same_host(target, hosts[0]):
        return Reject(
            Reason.HTTP_HEAD_MALFORMED, "the request target names another host than the Host header"
        )
    if is_http_11 and any(value.lower() != b"100-continue" for value in values_of(lines, b"expect")):
        return Reject(Reason.HTTP_EXPECTATION_UNSUPPORTED, "an expectation other than 100-continue")
    return None


def check_response_lines(lines: list[bytes]) -> Reject | None:
    """A response's lines (the status line first), before h11 sees them."""
    return _check_length_and_coding(lines, lines[0].startswith(b"HTTP/1.1"))


def _is_same_host(target: bytes, host: bytes) -> bool:
    """Whether an absolute target and Host agree, as they must (RFC 9112, 3.2)."""
    scheme, separator, rest = target.partition(b"://")
    if target.startswith((b"/", b"*")) or not separator:
        return True
    port = _DEFAULT_PORTS.get(scheme.lower(), b"")
    authority = re.split(rb"[/?]", rest, maxsplit=1)[0]
    return _without_port(authority, port) == _without_port(host, port)


def _without_port(authority: bytes, port: bytes) -> bytes:
    return authority.lower().removesuffix(b":").removesuffix(port)


def _check_length_and_coding(lines: list[bytes], is_http_11: bool) -> Reject | None:
    lengths = values_of(lines, b"content-length")
    codings = values_of(lines, b"transfer-encoding")
    if lengths and codings:
        return Reject(Reason.HTTP_FRAMING_AMBIGUOUS, "Content-Length together with Transfer-Encoding")
    if len(lengths) > 1:
        return Reject(Reason.HTTP_FRAMING_AMBIGUOUS, "more than one Content-Length")
    if lengths and not _DIGITS.fullmatch(lengths[0]):
        return Reject(Reason.HTTP_FRAMING_AMBIGUOUS, "the Content-Length is not a number")
    if codings and (len(codings) > 1 or codings[0].lower() != b"chunked"):
        return Reject(Reason.HTTP_FRAMING_AMBIGUOUS, "a Transfer-Encoding other than exactly one `chunked`")
    if codings and not is_http_11:
        return Reject(Reason.HTTP_FRAMING_AMBIGUOUS, "Transfer-Encoding in a message that is not HTTP/1.1")
    return None


def values_of(lines: list[bytes], wanted: bytes) -> list[bytes]:
    """The values of every header line that any reader might take for `wanted` (a lower-case name).

    Blanks around the name count as well: h11 refuses such lines afterwards, whatever the order of checks.
    """
    found = []
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == wanted:
            found.append(value.strip(b" \t"))
    return found
