"""The requests on one connection of an HTTP gate, each looked at before the local server sees it.

Stands in the relay in the place of the proxy's stream: what is read from it are requests whose proofs hold, with
what proves them taken out and the client's address put in. Answers pass as they are.

Invariants: nothing of a request passes before its whole head was judged, and its body ends where both readers see
its end; after a request that asks for another protocol nothing passes until the server has answered it; only after
its 101 do bytes pass unread.
"""

from __future__ import annotations

from typing import Final

import trio

from fairlead.protocol.proof import Cause, Unproven
from fairlead.protocol.reasons import Reject
from fairlead.protocol.request_proof import HEADER, RequestJudge
from fairlead.runtime.http.body import BodyReader, reader_for
from fairlead.runtime.http.framing import split_head
from fairlead.runtime.http.head import FORWARDED, HOP_BY_HOP, UPGRADE, HeadReader, RequestHead
from fairlead.runtime.metrics import Cell
from fairlead.runtime.streams import ByteStream

_READ_BYTES: Final = 64 * 1024
_ANSWER_HEAD_BYTES_MAX: Final = 64 * 1024
_OURS: Final = b"x-fairlead-"
_REAL_IP: Final = b"x-real-ip"


class CheckedRequests:
    """The proxy's stream as the local server may see it."""

    def __init__(
        self,
        stream: ByteStream,
        first: bytes,
        heads: HeadReader,
        head_bytes_max: int,
        judge: RequestJudge | None,
        client_host: str,
        counted: Cell,
    ) -> None:
        """`judge`: of the proofs of its requests; None where none are asked for, and then all are `client_host`'s.
        `counted`: of requests that passed."""
        self._counted = counted
        self._stream, self._buffer, self._heads, self._head_bytes_max = stream, first, heads, head_bytes_max
        self._judge, self._client_host = judge, client_host
        self._body: BodyReader | None = None
        self._is_raw = False
        self._verdict: trio.Event | None = None  # on a request for another protocol
        self._answer = b""  # as much of its head as has come
        self._is_answered = True  # something came back since the last request
        self.refused: Reject | Unproven | None = None

    @property
    def peer_host(self) -> str:
        return self._stream.peer_host

    @property
    def peer_port(self) -> int:
        return self._stream.peer_port

    @property
    def is_between_requests(self) -> bool:
        """Nothing of a request is here, and its answer has begun: if nothing moves, nothing is under way."""
        return not (self._is_raw or self._buffer or self._body) and self._is_answered

    # -- requests

    async def receive_some(self, max_bytes: int) -> bytes:
        """The next piece that may pass. Raises trio.BrokenResourceError where none may: `refused` says why."""
        while True:
            if self._is_raw:
                data, self._buffer = self._buffer, b""
                return data or await self._stream.receive_some(max_bytes)
            if self._verdict is not None and self._body is None:
                await self._verdict.wait()
                self._verdict = None
                continue
            if self._buffer:
                passed = self._pass(b"") if self._body is not None else self._head()
                if isinstance(passed, Reject | Unproven):
                    self.refused = passed
                    raise trio.BrokenResourceError("a request was refused")
                if passed:
                    return passed
            data = await self._stream.receive_some(_READ_BYTES)
            if not data:
                if self._buffer or self._body is not None:
                    raise trio.BrokenResourceError("the connection ended within a request")
                return b""
            self._buffer = self._buffer + data if self._buffer else data

    def _head(self) -> bytes | Reject | Unproven:
        found = split_head(self._buffer, self._head_bytes_max)
        if found is None:
            return b""
        if isinstance(found, Reject):
            return found
        raw, self._buffer = found
        head = self._heads.request(raw)
        if isinstance(head, Reject):
            return head
        wants_upgrade = b"upgrade" in head.nominated and any(kind == UPGRADE for kind, *_ in head.fields)
        if wants_upgrade and not self._is_answered:
            return Unproven(
                Cause.MALFORMED, "another protocol is asked for behind a request without an answer"
            )
        shown = self._shown(head, raw)
        if isinstance(shown, Unproven):
            return shown
        self._counted.inc()
        self._is_answered = False
        if wants_upgrade:
            self._verdict, self._answer = trio.Event(), b""
        if head.length == 0:
            return shown
        self._body = reader_for(head.length)
        return self._pass(shown)

    def _pass(self, before: bytes) -> bytes | Reject:
        """What of the buffer belongs to the body, behind what comes before it."""
        assert self._body is not None
        fed = self._body.feed(self._buffer)
        if isinstance(fed, Reject):
            return fed
        body, self._buffer = fed
        if self._body.is_done:
            self._body = None
        return before + body if before else body

    def _shown(self, head: RequestHead, raw: bytes) -> bytes | Unproven:
        """The head as the local server gets it: as it came, with the client's address and without the proof."""
        client_host, forwarded, values = self._client_host, [], []
        kept: list[bytes] = []
        for kind, name, value, line in head.fields:
            if name.startswith(_OURS):
                if name == HEADER:
                    values.append(value)
            elif kind == FORWARDED:
                forwarded.append(b"%b: %b\r\n" % (name, value))
                if name != _REAL_IP and self._judge is not None:
                    kept.append(line)
            elif kind != HOP_BY_HOP or b"_" not in name:  # with it, it could pass for another name's
                kept.append(line)
        if self._judge is not None:
            facts = self._judge.judge(values, head.method, head.target, b"".join(forwarded))
            if isinstance(facts, Unproven):
                return facts
            client_host = facts.client_host
        elif client_host:
            kept.append(b"x-forwarded-for: %b\r\n" % client_host.encode())
        if client_host:
            kept.append(b"x-real-ip: %b\r\n" % client_host.encode())
        start = raw[: raw.index(b"\r\n") + 2]
        return b"%b%b\r\n" % (start, b"".join(kept))

    # -- answers

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._note_answer(data)
        await self._stream.send_all(data)

    def send_nowait(self, data: bytes | memoryview) -> int:
        sent = self._stream.send_nowait(data)
        self._note_answer(data[:sent])
        return sent

    def _note_answer(self, data: bytes | bytearray | memoryview) -> None:
        self._is_answered = True
        if self._verdict is None or self._verdict.is_set():
            return
        self._answer += bytes(data)
        while (end := self._answer.find(b"\r\n\r\n")) >= 0:
            status = self._answer[9:12]
            if status[:1] != b"1" or status == b"101":
                self._is_raw = status == b"101"
                return self._decide()
            self._answer = self._answer[end + 4 :]
        if len(self._answer) > _ANSWER_HEAD_BYTES_MAX:
            self._decide()

    def _decide(self) -> None:
        self._answer = b""
        if self._verdict is not None:
            self._verdict.set()

    async def send_eof(self) -> None:
        self._decide()
        await self._stream.send_eof()

    def close(self) -> None:
        self._stream.close()

    def abort(self) -> None:
        self._stream.abort()
