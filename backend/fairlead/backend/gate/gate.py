"""The gate of a node: ports in front of local servers, which only proven connections get through.

Stands between the proxy's edge and an unmodified server: PROXY header (within a deadline) -> `ProofJudge` -> the
server -> relay, for HTTP with a look at each request (`requests`). Shell; what is believed, `protocol.proof` says.

Invariants: no byte of the connection's own protocol reaches the server before its proof held; who has proven nothing
takes a bounded number of places for a bounded time, and under a flood the longest silent makes way; a refused
connection is reset, counted by its cause and told to nobody but a plain HTTP client; the server never sees a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import trio

from fairlead.backend.gate.requests import CheckedRequests
from fairlead.backend.gate.settings import GatePort, GateSettings
from fairlead.protocol.proof import Cause, Proof, ProofJudge, ProofKey, ProofKind, Unproven
from fairlead.protocol.proxy_header import UNIQUE_ID, Endpoint, ProxyHeader, parse, recognise, write_v2
from fairlead.protocol.reasons import Reason, Reject
from fairlead.protocol.request_proof import RequestJudge
from fairlead.runtime.http.answer import answer_bytes
from fairlead.runtime.http.head import HeadReader
from fairlead.runtime.http.message import problem
from fairlead.runtime.http.server import serve_listener, turn_away
from fairlead.runtime.observer import Observer
from fairlead.runtime.relay import relay
from fairlead.runtime.streams import ByteStream
from fairlead.runtime.world import Listener, World

_READ_BYTES: Final = 4096
_QUIET_S: Final = 1.0  # a proven connection between requests that has been silent for so long may be ended
_KINDS: Final = {
    "tcp": (ProofKind.TCP, ProofKind.CHECK),
    "http": (ProofKind.HTTP, ProofKind.CHECK),
}


class _Passage:
    """One connection that was let through, for the relay's counts and for draining."""

    __slots__ = ("bytes_in", "bytes_out", "checked", "moved_at", "seen")

    def __init__(self, checked: CheckedRequests | None) -> None:
        self.bytes_in = self.bytes_out = 0
        self.checked = checked
        self.seen, self.moved_at = 0, trio.current_time()

    def is_busy(self, now: float) -> bool:
        """Whether it would be missed: every relayed connection, and HTTP unless it is quiet between requests."""
        moved = self.bytes_in + self.bytes_out
        if moved != self.seen:
            self.seen, self.moved_at = moved, now
        return self.checked is None or not self.checked.is_between_requests or now - self.moved_at < _QUIET_S


class Gate:
    """All ports of a node's gate."""

    def __init__(self, settings: GateSettings, judge: ProofJudge, world: World, observer: Observer) -> None:
        self._settings, self._judge, self._world, self._observer = settings, judge, world, observer
        self._heads = HeadReader(settings.head_count_max)
        self._bound: dict[str, Listener] = {}
        self._unproven: dict[object, trio.CancelScope] = {}  # the oldest first
        self._passages: dict[str, set[_Passage]] = {port.name: set() for port in settings.ports}
        metrics = observer.metrics
        self._accepted = metrics.counter(
            "gate_accepted_total", "Connections let through, by gate.", ("gate",)
        )
        self._requests = metrics.counter(
            "gate_requests_total", "HTTP requests let through, by gate.", ("gate",)
        )
        self._rejected = metrics.counter(
            "gate_rejected_total", "Connections and requests refused, by gate and cause.", ("gate", "cause")
        )
        for port in settings.ports:
            self._accepted.cell(port.name)
            if port.kind == "http":
                self._requests.cell(port.name)
            for cause in Cause:
                self._rejected.cell(port.name, cause.value)
        metrics.computed(
            "gate_live", "Connections through the gate now, by gate.", ("gate",),
            lambda: {(name,): len(live) for name, live in self._passages.items()},
        )  # fmt: skip
        metrics.computed("gate_tokens", "Used tokens that are remembered.", (), lambda: {(): judge.nonces})

    @property
    def boot(self) -> bytes:
        """Names this run of the gate."""
        return self._judge.boot

    def rekey(self, keys: Sequence[ProofKey], now_ms: int) -> None:
        """Believe these keys from now on, and those before for a while."""
        self._judge.rekey(keys, now_ms)

    def port(self, name: str) -> int:
        """The port that the gate of that name is bound to."""
        return self._bound[name].port

    @property
    def is_busy(self) -> bool:
        """Whether anybody would miss it if it ended now."""
        now = trio.current_time()
        busy = sum(passage.is_busy(now) for live in self._passages.values() for passage in live)
        return busy > 0

    def status(self) -> dict[str, Any]:
        """For /status."""
        return {
            "enforced": self._settings.enforce,
            "tokens_remembered": self._judge.nonces,
            "unproven": len(self._unproven),
            "gates": [
                {
                    "name": port.name,
                    "kind": port.kind,
                    "host": port.host,
                    "port": self._bound[port.name].port if port.name in self._bound else port.port,
                    "target": f"{port.target_host}:{port.target_port}",
                    "forward": port.forward,
                    "live": len(self._passages[port.name]),
                    "accepted": int(self._accepted.cell(port.name).value),
                    "rejected": {
                        cause.value: int(count)
                        for cause in Cause
                        if (count := self._rejected.cell(port.name, cause.value).value)
                    },
                }
                for port in self._settings.ports
            ],
        }

    # -- serving

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Bind every port (OSError if one cannot be), then serve until cancelled."""
        try:
            for port in self._settings.ports:
                try:
                    self._bound[port.name] = await self._world.listen_tcp(port.host, port.port)
                except OSError as error:
                    where = f"gate {port.name}: cannot listen on {port.host}:{port.port}"
                    raise OSError(error.errno, f"{where}: {error.strerror}") from error
            async with trio.open_nursery() as nursery:
                for port in self._settings.ports:
                    await nursery.start(self._serve_port, port)
                task_status.started()
        finally:
            for bound in self._bound.values():
                bound.close()

    async def _serve_port(self, port: GatePort, *, task_status: trio.TaskStatus[None]) -> None:
        async def serve(stream: ByteStream) -> None:
            await self._serve(port, stream)

        await serve_listener(
            self._bound[port.name], serve, self._observer, connections_max=self._settings.connections_max,
            name=f"gate {port.name}", task_status=task_status,
        )  # fmt: skip

    async def _serve(self, port: GatePort, stream: ByteStream) -> None:
        opened = await self._open(port, stream)
        if opened is None:
            return
        if isinstance(opened, Unproven):
            self._refuse(port, stream, opened)
            return stream.abort()
        proof, source, target, first = opened
        local = await self._connect(port, stream)
        if local is None:
            return stream.abort()
        try:
            if port.forward == "proxy_v2":
                await local.send_all(_header(proof, source, target))
            await self._pass(port, stream, local, proof, source, first)
        except trio.BrokenResourceError as error:
            self._observer.refused(Reason.BACKEND_UNREACHABLE, str(error), gate=port.name)
            stream.abort()
        finally:
            local.close()

    async def _open(
        self, port: GatePort, stream: ByteStream
    ) -> tuple[Proof | None, Endpoint | None, Endpoint | None, bytes] | Unproven | None:
        """What the connection proves, whose it is, and what was read beyond its header. None: nobody to be refused."""
        buffer = b""
        with trio.CancelScope() as scope:
            self._make_room()
            self._unproven[stream] = scope
            scope.deadline = trio.current_time() + self._settings.handshake_timeout_s
            try:
                while True:
                    found = parse(buffer) if buffer else None
                    if found is not None:
                        break
                    data = await stream.receive_some(_READ_BYTES)
                    if not data:
                        # Whoever looks only whether the port is open, sends nothing.
                        return Unproven(Cause.MISSING, "it ended within the PROXY header") if buffer else None
                    buffer += data
            except trio.BrokenResourceError:
                return None
            finally:
                self._unproven.pop(stream, None)
        if scope.cancelled_caught:
            return Unproven(Cause.MISSING, f"no whole PROXY header in time, after {len(buffer)} bytes")
        return self._judged(port, stream, buffer, found)

    def _judged(
        self,
        port: GatePort,
        stream: ByteStream,
        buffer: bytes,
        found: tuple[ProxyHeader, int] | Reject | None,
    ) -> tuple[Proof | None, Endpoint | None, Endpoint | None, bytes] | Unproven | None:
        assert found is not None
        if isinstance(found, Reject):
            if recognise(buffer) is not False:
                return Unproven(Cause.MALFORMED, found.detail)
            if not self._settings.enforce:
                return None, (stream.peer_host, stream.peer_port), None, buffer
            if port.kind == "http":
                self._tell(stream)
            return Unproven(Cause.MISSING, found.detail)
        header, size = found
        judged = self._judge.judge(header, buffer[:size], _KINDS[port.kind], self._world.wall_ms())
        if isinstance(judged, Unproven):
            if judged.cause is Cause.MISSING and not self._settings.enforce:
                source = header.source or (stream.peer_host, stream.peer_port)
                return None, source, header.target, buffer[size:]
            return judged
        return judged, judged.source, judged.target, buffer[size:]

    def _make_room(self) -> None:
        """Silence must not keep the proxy out: it proves itself at once, so whoever waits longest is nobody's proxy."""
        if len(self._unproven) >= self._settings.handshake_concurrent_max:
            oldest = next(iter(self._unproven))
            self._unproven.pop(oldest).cancel()

    async def _connect(self, port: GatePort, stream: ByteStream) -> ByteStream | None:
        where = f"{port.target_host}:{port.target_port}"
        detail = f"no connection to {where} within {self._settings.connect_timeout_s:g} s"
        with trio.move_on_after(self._settings.connect_timeout_s):
            try:
                return await self._world.connect_tcp(port.target_host, port.target_port)
            except OSError as error:
                detail = f"{where}: {error.strerror or error}"
        self._observer.refused(Reason.BACKEND_UNREACHABLE, detail, gate=port.name, peer=stream.peer_host)
        return None

    async def _pass(
        self, port: GatePort, stream: ByteStream, local: ByteStream, proof: Proof | None, source: Endpoint | None,
        first: bytes,
    ) -> None:  # fmt: skip
        self._accepted.inc(port.name)
        client: ByteStream = stream
        checked = None
        if port.kind == "http":
            judge = RequestJudge(proof.request_key) if proof is not None else None
            host = (source or (stream.peer_host, 0))[0]
            checked = client = CheckedRequests(
                stream, first, self._heads, self._settings.head_bytes_max, judge, host,
                self._requests.cell(port.name),
            )  # fmt: skip
            first = b""
        passage = _Passage(checked)
        live = self._passages[port.name]
        live.add(passage)
        ended: Reject | None = Reject(Reason.INTERNAL_ERROR)
        try:
            ended = await relay(client, local, passage, self._settings.idle_timeout_s, first=first)
        finally:
            live.discard(passage)
            if ended is not None:  # also where the node stops: a truncation cannot be taken for an end
                stream.abort()
                local.abort()
        if checked is not None and checked.refused is not None:
            self._refuse(port, stream, checked.refused)
        elif ended is not None:
            level = "debug" if ended.reason is Reason.CLIENT_GONE else "info"
            self._observer.refused(
                ended.reason, ended.detail, level=level, gate=port.name, peer=stream.peer_host
            )

    # -- refusing

    def _refuse(self, port: GatePort, stream: ByteStream, refused: Unproven | Reject) -> None:
        if isinstance(refused, Unproven):
            self._rejected.inc(port.name, refused.cause.value)
            refused = refused.reject
        self._observer.refused(refused.reason, refused.detail, gate=port.name, peer=stream.peer_host)

    def _tell(self, stream: ByteStream) -> None:
        """Whoever speaks plain HTTP to the gate is shown the way, as far as that goes without waiting."""
        told = problem(Reason.PROXY_TOKEN_REJECTED, "this port serves the proxy only", "", for_client=True)
        turn_away(stream, answer_bytes(told, b"GET", False, "", self._world.wall_ms()))


def _header(proof: Proof | None, source: Endpoint | None, target: Endpoint | None) -> bytes:
    """The PROXY header for the local server, which never sees a token."""
    if proof is not None and proof.kind is not ProofKind.TCP:
        return write_v2(None, None, is_local=True)
    tlvs = ((UNIQUE_ID, proof.session_id.encode()),) if proof is not None and proof.session_id else ()
    if source is not None and target is None:
        target = ("::" if ":" in source[0] else "0.0.0.0"), 0
    return write_v2(source, target, tlvs)
