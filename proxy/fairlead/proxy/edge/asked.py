"""What a client asks for, as far as routing goes by it. Plain data, pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final


def _no_header(name: bytes) -> bytes | None:
    return None


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client asks for, as far as routing goes by it."""

    host: str = ""  # of the Host header, the server name of TLS, or a game's handshake
    path: bytes = b""  # without the query
    header: Callable[[bytes], bytes | None] = _no_header  # by lower-case name, as the backend will read it
    peer: str = ""
    is_tls: bool = False
    bound: str = ""  # the backend that a transfer moved the client to: it stands before every other choice


ANYTHING: Final = Asked()
