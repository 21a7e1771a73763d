"""Scripted servers on the nodes' hosts: web, echo and game. They live and die with the node's process.

What a web server does with a request is in the request's `x-do`; what an echo server does is the first line of the
session; a game server lets everybody in. Everything that they take in is noted before they answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio
from tests.sim.client_record import LOST, Asked, ClientRecord, Player, pattern
from tests.sim.wire_clients import Broken, Reader, frame, read_frame, read_login
from tests.sim.workload_clients import ECHO_PORT, GAME_PORT, WEB_PORT

from fairlead.backend.referral import Referral, ReferralRejected
from fairlead.testing import SimCluster
from fairlead.testing.network import SimListener, SimStream
from fairlead.testing.process import Life

SURPLUS: Final = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\nx-id: nobody\r\nx-by: nobody\r\n\r\nwrong!"
SERVER_PATIENCE_S: Final = 40.0


class Servers:
    """Those of all nodes. `beside` makes one life of a node's host."""

    def __init__(self, cluster: SimCluster, record: ClientRecord) -> None:
        self._cluster, self._record = cluster, record
        self._away: dict[str, float] = {}  # node -> until when its servers are not there
        self._listeners: dict[str, list[SimListener]] = {}
        self._streams: dict[str, list[SimStream]] = {}
        self.game: dict[str, dict[str, SimStream]] = {}  # node -> player -> its connection

    def join(self, node: str) -> None:
        """From its next life on the host of a node has servers."""
        process = self._cluster.processes[node]
        alone = process.body
        assert alone is not None

        async def both(life: Life) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._serve_all, node)
                await alone(life)
                nursery.cancel_scope.cancel()

        process.body = both

    async def refer(self, node: str, referral: Referral) -> None:
        """`on_refer` of a node: its game server tells the player, or does not."""
        player = self._record.players.get(referral.player_name)
        stream = self.game.get(node, {}).get(referral.player_name)
        if player is None or stream is None or player.refers == "reject":
            raise ReferralRejected("it is not sent")
        if player.refers == "ok":
            try:
                await stream.send_all(frame(0x0B, f"{referral.host} {referral.port}".encode()))
            except LOST as error:
                raise ReferralRejected(str(error)) from error

    def leave(self, node: str, for_s: float) -> None:
        """Its servers are gone for a while; the node is not."""
        self._record.disturb()
        self._away[node] = self._cluster.now + for_s
        self._record.away = len(self._away)
        for listener in self._listeners.pop(node, []):
            listener.close()
        for stream in self._streams.pop(node, []):
            stream.abort()

    def heal(self) -> None:
        self._away = dict.fromkeys(self._away, 0.0)

    async def _serve_all(self, node: str) -> None:
        kinds: tuple[tuple[int, Callable[[str, Any], Awaitable[None]]], ...] = (
            (WEB_PORT, self._web), (ECHO_PORT, self._echo), (GAME_PORT, self._game),
        )  # fmt: skip
        while True:
            while self._away.get(node, 0.0) > self._cluster.now:
                await trio.sleep(0.05)
            self._record.disturb()
            self._away.pop(node, None)
            self._record.away = len(self._away)
            network, host = self._cluster.network, self._cluster.network.host(node)
            bound = self._listeners[node] = [network.listen(host, "0.0.0.0", port, 64) for port, _ in kinds]
            self._streams[node] = []
            self.game[node] = {}
            async with trio.open_nursery() as nursery:
                for listener, (_, serve) in zip(bound, kinds, strict=True):
                    nursery.start_soon(self._accept, node, listener, serve, nursery)

    async def _accept(self, node: str, listener: SimListener, serve: Any, nursery: trio.Nursery) -> None:
        while True:
            try:
                stream = await listener.accept()
            except OSError:
                return
            nursery.start_soon(self._one, node, stream, serve)

    async def _one(self, node: str, stream: Any, serve: Any) -> None:
        streams = self._streams.setdefault(node, [])
        streams.append(stream)
        try:
            await serve(node, stream)
        except (*LOST, Broken):
            pass  # whoever was there is gone
        finally:
            stream.close()
            if stream in streams:
                streams.remove(stream)

    # -- web

    async def _web(self, node: str, stream: Any) -> None:
        reader = Reader(stream)
        while True:
            with trio.fail_after(SERVER_PATIENCE_S):
                head = await reader.head()
            if head is None:
                return
            if not await self._answer(node, stream, reader, *head):
                return

    async def _answer(
        self, node: str, stream: Any, reader: Reader, first: str, fields: dict[str, str]
    ) -> bool:
        """Whether the connection goes on."""
        request_id = fields.get("x-id", "")
        do = dict(each.split("=") for each in fields.get("x-do", "").split(";") if each)
        asked, mode, size = self._record.asked.get(request_id), do.get("mode", "ok"), int(do.get("size", "0"))
        if asked is None:
            self._record.tell("on_stranger", node, first, request_id)
            return False
        is_early = mode == "early" and asked.body > 0
        if is_early:
            await stream.send_all(
                self._head(node, asked, f"content-length: {size}", size) + self._body(asked, size)
            )
        body = await reader.body(fields)
        if body != pattern(f"{request_id}^", asked.body):
            self._record.tell("on_wrong_body", node, asked, body)
            return False
        asked.executed.append(node)
        asked.lives.append(self._cluster.processes[node].life)
        self._record.tell("on_executed", asked, node)
        await trio.sleep(int(do.get("ms", "0")) / 1000)
        if is_early:
            return True
        return await self._answer_as(mode, node, stream, asked, size, int(do.get("pieces", "1")))

    async def _answer_as(
        self, mode: str, node: str, stream: Any, asked: Asked, size: int, pieces: int
    ) -> bool:
        body = self._body(asked, size)
        whole = self._head(node, asked, f"content-length: {size}", size)
        if mode == "never":
            await trio.sleep(SERVER_PATIENCE_S)
            return False
        if mode == "silent_close" or (mode == "close_first" and len(asked.executed) == 1):
            return False
        if mode in ("cut", "abort"):
            await stream.send_all(self._head(node, asked, f"content-length: {size + 50}", size) + body)
            if mode == "abort":
                await trio.sleep(0.01)
                stream.abort()
            return False
        if mode == "chunked":
            await stream.send_all(self._head(node, asked, "transfer-encoding: chunked", size))
            step = max(1, len(body) // pieces)
            for at in range(0, len(body), step):
                piece = body[at : at + step]
                await stream.send_all(b"%x\r\n%b\r\n" % (len(piece), piece))
                await trio.sleep(0.02)
            await stream.send_all(b"0\r\n\r\n")
            return True
        if mode == "until_close":
            await stream.send_all(self._head(node, asked, "connection: close", size))
            for at in range(0, len(body), max(1, len(body) // pieces)):
                await stream.send_all(body[at : at + max(1, len(body) // pieces)])
                await trio.sleep(0.05)
            return False
        if mode == "interim":
            await stream.send_all(b"HTTP/1.1 103 Early Hints\r\nx-hint: 1\r\n\r\n")
        if mode == "close":
            await stream.send_all(whole[:-2] + b"connection: close\r\n\r\n" + body)
            return False
        if mode.startswith("surplus"):
            self._record.surplus_s = self._cluster.now + 0.01
        await stream.send_all(whole + body + (SURPLUS if mode == "surplus" else b""))
        if mode == "surplus_late":
            await trio.sleep(0.01)
            await stream.send_all(SURPLUS)
        # Whoever said too much ends: else every later answer would be the one before it.
        return not mode.startswith("surplus")

    def _head(self, node: str, asked: Asked, framing: str, size: int) -> bytes:
        return f"HTTP/1.1 200 OK\r\nx-id: {asked.id}\r\nx-by: {node}\r\nx-size: {size}\r\n{framing}\r\n\r\n".encode()

    def _body(self, asked: Asked, size: int) -> bytes:
        return b"" if asked.method == "HEAD" else pattern(f"{asked.id}$", size)

    # -- echo

    async def _echo(self, node: str, stream: Any) -> None:
        heard = b""
        while b"\n" not in heard:
            data = await stream.receive_some(4_096)
            if not data:
                return
            heard += data
        talk_id, mode, tail, size = heard.partition(b"\n")[0].decode().split()
        talk = self._record.talks[talk_id]
        if talk.server:
            self._record.tell("on_stranger", node, "a second connection", talk_id)
            return
        talk.server, talk.server_stream = node, stream
        self._record.tell("on_talk", talk)

        async def say(data: bytes) -> None:
            talk.server_sent += data
            await stream.send_all(data)

        try:
            if mode == "half":  # it says its last first, and goes on listening
                await say(pattern(f"{talk_id}.", int(tail)))
                await stream.send_eof()
            data = heard
            while data:
                talk.server_heard += data
                if mode in ("abort", "close") and len(talk.server_heard) > int(size):
                    return stream.abort() if mode == "abort" else stream.close()
                if mode in ("echo", "slow"):
                    await say(data)
                if mode == "slow":
                    await trio.sleep(0.2)
                data = await stream.receive_some(1_000 if mode == "slow" else 65_536)
            talk.server_end = "eof"
            self._record.tell("on_server_end", talk)
            if mode != "half":
                await trio.sleep(0.05)
                await say(pattern(f"{talk_id}.", int(tail)))
                await stream.send_eof()
            while await stream.receive_some(4_096):
                pass
        except LOST:
            talk.server_end = talk.server_end or "reset"
            raise

    # -- game

    async def _game(self, node: str, stream: Any) -> None:
        reader = Reader(stream)
        with trio.fail_after(SERVER_PATIENCE_S):
            name = await read_login(reader)
        player: Player | None = self._record.players.get(name)
        if player is None:
            self._record.tell("on_stranger", node, "a login", name)
            return
        self.game[node][name] = stream
        self._record.tell("on_login", player, node)
        try:
            await stream.send_all(frame(0x02, f"{name} {node}".encode()))
            while True:
                said = await read_frame(reader)
                if said is None:
                    return
                await stream.send_all(frame(*said))
        finally:
            if self.game[node].get(name) is stream:
                del self.game[node][name]
