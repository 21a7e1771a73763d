"""What a request's path may mean to whoever reads it after us.

Stands before the choice of a route by path. Pure.

Invariant: servers disagree about encoded slashes, dot segments, empty segments, backslashes, parameters after `;`
and doubled encoding. A path is therefore matched under every reading that some server is known to have; a path whose
readings lead to different routes is refused, so that nobody reaches past a route by an unusual spelling.
"""

from __future__ import annotations

import re
from typing import Final

UNUSUAL_BYTES_MAX: Final = 512  # a longer path of unusual spelling is refused unread: reading costs per byte

# One reading only: no escapes, empty segments, segments that begin with a dot, parameters or backslashes.
_PLAIN: Final = re.compile(rb"(?:/(?![./])[!$&-+\-.0-:=@-Z_a-z~,]*)+|/")
_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
_PARAMETER: Final = re.compile(rb";[^/]*")
# What makes servers differ, once escapes are gone; a % is an escape that was escaped.
_MARKS: Final = (b"//", b"/.", b"\\", b";", b"\0", b"%")
_SLASHES: Final = re.compile(rb"//+")


def path_of(target: bytes) -> bytes:
    """The path of a target in origin form."""
    return target.partition(b"?")[0]


def is_plain(path: bytes) -> bool:
    """Whether everybody reads `path` alike."""
    return _PLAIN.fullmatch(path) is not None


def readings(path: bytes) -> frozenset[bytes] | None:
    """Every path that some server may read in `path`; None where it is too long to tell."""
    if is_plain(path):
        return frozenset((path,))
    once = _decoded(path)
    if not any(mark in once for mark in _MARKS):
        return frozenset((path, once))
    if len(path) > UNUSUAL_BYTES_MAX:
        return None
    found = {path, once, _decoded(once)}
    for change in _CHANGES:  # each server makes some of them, in about this order
        found |= {change(each) for each in found}
    return frozenset(found)


def _decoded(path: bytes) -> bytes:
    if b"%" not in path:
        return path
    return _ESCAPE.sub(lambda matched: bytes((int(matched[1], 16),)), path)


def _resolved(path: bytes) -> bytes:
    """Without dot segments (RFC 3986, 5.2.4)."""
    out: list[bytes] = []
    segments = path.split(b"/")[1:]
    for segment in segments:
        if segment == b"..":
            if out:
                out.pop()
        elif segment != b".":
            out.append(segment)
    if segments and segments[-1] in (b".", b".."):
        out.append(b"")
    return b"/" + b"/".join(out)


_CHANGES: Final = (
    lambda path: path.replace(b"\\", b"/"),
    lambda path: _PARAMETER.sub(b"", path),
    lambda path: _SLASHES.sub(b"/", path),
    _resolved,
    lambda path: _decoded(path.partition(b"\0")[0]),
)
