"""Clients of a simulated run: browsers, tcp sessions, players, crowds, somebody at a gate; and operators who move them.

One method for each row of `workload_clients.CLIENT_STEPS` and `CLIENT_PLOTS`. Nothing here judges: what clients asked
and heard goes into the record. A client has patience of its own, and ends by itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import trio
from tests.sim.client_record import LOST, PROXIES_OWN, Asked, ClientRecord, Player, Talk, pattern
from tests.sim.client_servers import Servers
from tests.sim.wire_clients import (
    LOGIN,
    TRANSFER,
    Answer,
    Broken,
    Reader,
    frame,
    login,
    read_answer,
    read_frame,
    request,
    until_ended,
)
from tests.sim.workload_clients import ECHO_PORT, GAME_PORT, GATE_PORT, USERS, WEB_PORT, Arguments

from fairlead.testing import Fault
from fairlead.testing.faults import apply

if TYPE_CHECKING:
    from tests.sim.actions import Actions

PATIENCE_S: Final = 20.0  # of a client with one answer; more than all deadlines of a proxy together
SERVED_WITHIN_S: Final = 30.0  # after everything is healed
LOOK_S: Final = 0.005
RECORDED_MAX: Final = 20
_BROKEN: Final = (*LOST, Broken)


class Clients:
    """All of them, with the servers that they are led to."""

    def __init__(self, actions: Actions, record: ClientRecord) -> None:
        self._actions, self._cluster, self.record = actions, actions.cluster, record
        self.servers = Servers(self._cluster, record)
        self._scopes: list[trio.CancelScope] = []
        if any("gates" in each for each in (self._cluster.options.node,)):
            self._tap_gates()

    async def perform(self, kind: str, args: Arguments) -> None:
        """One step or plot."""
        self.record.under_way += 1
        try:
            await getattr(self, kind)(args)
        except Broken as broken:
            self._cluster.trace.add(f"{kind} {args['token']}: {broken}")
        finally:
            self.record.under_way -= 1

    def _host(self, user: str) -> Any:
        return self._cluster.network.host(user)

    def _proxy(self, args: Arguments) -> str:
        """The one that is named, else one that runs."""
        return str(args.get("at") or self._actions.proxy(args["number"]))

    async def _connect(self, user: str, proxy: str, port: int) -> Any:
        with trio.fail_after(PATIENCE_S):
            return await self._cluster.network.connect(self._host(user), proxy, port)

    def _life(self, proxy: str) -> Any:
        return self._cluster.processes[proxy].life

    # -- the web

    async def browse(self, args: Arguments) -> None:
        """Requests one after another, over one connection as long as it lasts."""
        proxy = self._proxy(args)
        left = [(f"{args['token']}.{number}", each) for number, each in enumerate(args["requests"])]
        while left:
            life = self._life(proxy)
            stream = await self._connect(args["user"], proxy, WEB_PORT)
            if life is not self._life(proxy):
                stream.close()
                return
            try:
                left = await self._visit(stream, proxy, life, args, left)
            finally:
                stream.close()

    async def _visit(self, stream: Any, proxy: str, life: Any, args: Arguments, left: list[Any]) -> list[Any]:
        """What is left when the connection has ended."""
        reader, sent, is_clean, minor = Reader(stream), 0, True, args["minor"]
        while left:
            request_id, given = left[0]
            await trio.sleep(given["gap_ms"] / 1000)
            asked = Asked(
                request_id, given["method"], given["body"], given["mode"], proxy, self._cluster.now, self.record.calm(),
                is_first=not sent,
            )  # fmt: skip
            self.record.asked[request_id] = asked
            raw = request(
                asked.method, request_id, minor,
                ";".join(f"{key}={given[key]}" for key in ("mode", "size", "ms", "pieces")),
                pattern(f"{request_id}^", asked.body), chunked=given["chunked"],
            )  # fmt: skip
            left = left[1:]
            answer = await self._ask(stream, reader, asked, raw, life, given["pieces"])
            sent += len(raw)
            if answer is None:
                return left if asked.status == 0 and given["mode"] != "never" else []
            is_clean = is_clean and asked.by in asked.executed and asked.mode != "early"
            if answer.is_until_close or answer.fields.get("connection") == "close" or not minor:
                break
        if reader.held:
            self.record.tell("on_surplus", args["token"], bytes(reader.held))
        with trio.move_on_after(PATIENCE_S):
            await stream.send_eof()
            ended = await until_ended(stream)
            if ended == "eof" and is_clean:
                self.record.tell(
                    "on_counted", "http", self._host(args["user"]).address, "", sent, reader.count, life
                )
        return left

    async def _ask(
        self, stream: Any, reader: Reader, asked: Asked, raw: bytes, life: Any, pieces: int
    ) -> Answer | None:
        how, before = "timeout", reader.heads
        with trio.move_on_after(PATIENCE_S):
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send, stream, raw, pieces)
                    answer = await read_answer(reader, asked.method)
                    nursery.cancel_scope.cancel()
                self._answered(asked, answer)
                self.record.tell("on_answered", asked, answer, life)
                return answer
            except* Broken as broken:
                how = (
                    "eof" if all(getattr(each, "is_end", False) for each in broken.exceptions) else "garbled"
                )
            except* LOST:
                how = "reset"
        asked.saw_head = reader.heads > before
        self.record.tell("on_lost", asked, how, life)
        return None

    async def _send(self, stream: Any, raw: bytes, pieces: int) -> None:
        step = max(1, -(-len(raw) // pieces))
        for at in range(0, len(raw), step):
            if at:
                await trio.sleep(0.02)
            try:
                await stream.send_all(raw[at : at + step])
            except trio.BrokenResourceError:
                return  # whoever reads will see

    @staticmethod
    def _answered(asked: Asked, answer: Answer) -> None:
        asked.status = answer.status
        asked.by = answer.fields.get("x-by", "")
        if answer.fields.get("content-type", "").encode() == PROXIES_OWN:
            asked.reason = answer.fields.get("x-reason", "") or _reason(answer.body)

    # -- tcp

    async def talk(self, args: Arguments) -> None:
        """A session that says all, ends its direction, and listens to the end."""
        proxy = self._proxy(args)
        life, calm = self._life(proxy), self.record.calm()
        stream = await self._connect(args["user"], proxy, ECHO_PORT)
        talk = Talk(
            args["token"], proxy, self._host(args["user"]).address, args["mode"], args["gives_up_s"] > 0, life, calm,
            stream=stream,
        )  # fmt: skip
        if life is not self._life(proxy):
            stream.close()
            return
        self.record.talks[talk.id] = talk
        try:
            with trio.move_on_after(args["gives_up_s"] or 1.5 * PATIENCE_S):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._speak, talk, args)
                    await self._hear(talk, args)
                    if talk.end == "reset":
                        nursery.cancel_scope.cancel()
        finally:
            talk.end = talk.end or "gave up"
            if talk.end == "gave up":
                stream.abort()
            stream.close()
        self.record.tell("on_talk_end", talk)

    async def _speak(self, talk: Talk, args: Arguments) -> None:
        size = args["size"]
        parts = [f"{talk.id} {args['mode']} {args['tail']} {size}\n".encode()]
        parts += [pattern(f"{talk.id}+{number}", size) for number in range(args["pieces"])]
        try:
            for part in parts:
                talk.sent += part
                await talk.stream.send_all(part)
                await trio.sleep(args["gap_ms"] / 1000)
            await talk.stream.send_eof()
        except trio.BrokenResourceError:
            pass  # whoever listens will see

    async def _hear(self, talk: Talk, args: Arguments) -> None:
        try:
            while data := await talk.stream.receive_some(1_000 if args["slow_ms"] else 65_536):
                talk.heard += data
                if args["slow_ms"]:
                    await trio.sleep(args["slow_ms"] / 1000)
            talk.end = "eof"
        except trio.BrokenResourceError:
            talk.end = "reset"

    # -- the game

    async def play(self, args: Arguments) -> None:
        """A player who says something now and then, and goes where it is sent."""
        proxy = self._proxy(args)
        name = f"P{args['token']}"
        player = Player(name, proxy, self._life(proxy), args["refers"])
        self.record.players[name] = player
        until_s = self._cluster.now + args["for_s"]
        host, intent = "play.sim", LOGIN
        try:
            for _ in range(4):
                sent = await self._join(player, args, host, intent, until_s)
                if sent is None:
                    return
                host, intent = sent, TRANSFER
                player.token_host = sent
                await trio.sleep(player.late_ms / 1000)
                proxy = self._other(player.proxy) if player.goes_elsewhere else player.proxy
                player.proxy, player.life = proxy, self._life(proxy)
        finally:
            player.is_over, player.playing_since = True, None

    async def _join(
        self, player: Player, args: Arguments, host: str, intent: int, until_s: float
    ) -> str | None:
        """Log in and play. Where it was sent to, or None when it is over."""
        life = self._life(player.proxy)
        stream = await self._connect(args["user"], player.proxy, GAME_PORT)
        reader, said, sent_to = Reader(stream), 0, None
        player.life = life
        try:
            await stream.send_all(login(player.name, host, GAME_PORT, intent))
            with trio.fail_after(PATIENCE_S):
                found = await read_frame(reader)
            if found is None or found[0] != 0x02:
                self.record.tell("on_turned_away", player, found, intent)
                return None
            player.node = found[1].decode().split()[1]
            player.playing_since = self._cluster.now
            self.record.tell("on_playing", player)
            for number in range(args["says"]):
                words = pattern(f"{player.name}{number}", 200)
                packet = frame(0x20, words)
                await stream.send_all(packet)
                said += len(packet)
                while (found := await self._next(reader, PATIENCE_S)) is not None and found[0] == 0x0B:
                    sent_to = found[1].decode().split()[0]
                if found is None:
                    return None
                if found != (0x20, words):
                    self.record.tell("on_wrong_words", player, found)
                if sent_to:
                    break
            while sent_to is None and self._cluster.now < until_s:
                found = await self._next(reader, until_s - self._cluster.now)
                if found is None:
                    break
                if found[0] == 0x0B:
                    sent_to = found[1].decode().split()[0]
            player.playing_since = None
            with trio.move_on_after(PATIENCE_S):
                await stream.send_eof()
                if await until_ended(_Counted(stream, reader)) == "eof":
                    address = self._host(args["user"]).address
                    self.record.tell(
                        "on_counted", "minecraft", address, player.name, said, reader.count, life
                    )
            return sent_to
        finally:
            player.playing_since = None
            stream.close()

    async def _next(self, reader: Reader, within_s: float) -> tuple[int, bytes] | None:
        """None at its end, or when there was nothing in that time."""
        with trio.move_on_after(max(0.0, within_s)):
            return await read_frame(reader)
        return None

    def _other(self, proxy: str) -> str:
        names = self._cluster.names("proxy", running=True)
        return next((each for each in names if each != proxy), proxy)

    # -- operators

    async def transfer(self, args: Arguments) -> None:
        """Have somebody who plays moved to another node; its token may be tried again by somebody."""
        playing = self.record.playing()
        if not playing:
            return
        await self._move(playing[args["pick"] % len(playing)], args)

    async def _move(self, player: Player, args: Arguments) -> None:
        nodes = self._cluster.options.node_names
        to = f"game-{nodes[args['to'] % len(nodes)]}"
        player.late_ms, player.goes_elsewhere = args["late_ms"], args["elsewhere"]
        status, found = await self._actions.ops("GET", f"/api/sessions?player={player.name}", at=player.proxy)
        if status != 200 or not found["sessions"]:
            return
        session = found["sessions"][0]["id"]
        status, answer = await self._actions.ops(
            "POST", f"/api/sessions/{session}/transfer", {"to": to}, at=player.proxy, wait_s=args["wait_s"]
        )
        self.record.tell("on_transfer", player, to, status, answer)
        if args["again"] and await self._until(lambda: bool(player.token_host), 1.0):
            for number in range(args["again"]):
                at = self._actions.proxy(number)
                await self._use_again(player, at)

    async def _use_again(self, player: Player, proxy: str) -> None:
        """Somebody says the same token, under the same name."""
        stream = await self._connect(USERS[0], proxy, GAME_PORT)
        try:
            await stream.send_all(login(player.name, player.token_host, GAME_PORT, TRANSFER))
            with trio.move_on_after(5):
                found = await read_frame(Reader(stream))
                if found is None or found[0] != 0x02:
                    self.record.tell("on_turned_away", player, found, TRANSFER)
        finally:
            stream.close()

    # -- others

    async def crowd(self, args: Arguments) -> None:
        """Many connections from one address."""
        proxy = self._actions.proxy(args["number"])

        async def one() -> None:
            try:
                stream = await self._connect(args["user"], proxy, WEB_PORT)
            except LOST:
                return
            with trio.move_on_after(args["hold_ms"] / 1000):
                await until_ended(stream)
            stream.close()

        async with trio.open_nursery() as nursery:
            for _ in range(args["count"]):
                nursery.start_soon(one)
                await trio.sleep(args["gap_ms"] / 1000)

    async def intrude(self, args: Arguments) -> None:
        """Somebody at a node's gate: with nothing, or with what a proxy said to it before."""
        if "gates" not in self._cluster.options.node:
            return
        node, spoken = self._actions.node(args["node"]), self.record.gate_spoken
        proof = bytes(spoken[args["pick"] % len(spoken)]) if spoken and args["replays"] else b""
        stream = await self._connect(USERS[0], node, GATE_PORT)
        try:
            await stream.send_all(proof + request("POST", "intruder", 1, "", b"", chunked=False))
            with trio.move_on_after(5):
                await until_ended(stream)
        finally:
            stream.close()

    async def server_away(self, args: Arguments) -> None:
        """The servers beside a node go away for a while."""
        self.servers.leave(self._actions.node(args["node"]), args["for_s"])
        await trio.sleep(args["for_s"])

    def _tap_gates(self) -> None:
        original = self._cluster.network.connect
        proxies = self._cluster.options.proxy_names

        async def connect(source: Any, host: str, port: int) -> Any:
            stream = await original(source, host, port)
            if port == GATE_PORT and source.name in proxies and len(self.record.gate_spoken) < RECORDED_MAX:
                spoken = bytearray()
                self.record.gate_spoken.append(spoken)
                return _Overheard(stream, spoken)
            return stream

        self._cluster.network.connect = connect  # type: ignore[method-assign]

    # -- plots

    def _apply(self, kind: str, **args: Any) -> None:
        apply(self._cluster, Fault(self._cluster.now, kind, args))

    async def _until(self, condition: Callable[[], bool], within_s: float = 5.0) -> bool:
        with trio.move_on_after(within_s):
            while not condition():  # virtual time, and what is waited for is in many places
                await trio.sleep(LOOK_S)
            return True
        return False

    async def die_before_answer(self, args: Arguments) -> None:
        """A node, or the proxy, dies between a request and its answer."""
        first = f"{args['token']}.0"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._quietly, self.browse, args)
            if await self._until(
                lambda: bool(first in self.record.asked and self.record.asked[first].executed)
            ):
                await trio.sleep(args["after_ms"] / 1000)
                asked = self.record.asked[first]
                victim = asked.executed[0] if args["dies"] == "node" else asked.proxy
                self._apply("kill", process=victim, for_s=args["for_s"], tail="kept")

    async def sleep_in_relay(self, args: Arguments) -> None:
        """A proxy, or a node with its server, falls asleep while bytes are on their way through it."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._quietly, self.talk, args)
            talks = self.record.talks
            if await self._until(lambda: args["token"] in talks and len(talks[args["token"]].heard) > 0):
                talk = talks[args["token"]]
                self._apply(
                    "freeze",
                    process=talk.proxy if args["sleeps"] == "proxy" else talk.server,
                    for_s=args["for_s"],
                )

    async def transfer_apart(self, args: Arguments) -> None:
        """A player is moved while its proxy and its node do not hear each other."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._quietly, self.play, args)
            name = f"P{args['token']}"
            if await self._until(
                lambda: name in self.record.players and self.record.players[name].playing_since is not None
            ):
                player = self.record.players[name]
                nursery.start_soon(self._quietly, self._move_one, player, args)
                await trio.sleep(args["after_ms"] / 1000)
                ends = [player.proxy, player.node]
                source, target = ends if args["from_proxy"] else reversed(ends)
                self._apply(
                    "partition", source=source, target=target, for_s=args["apart_s"], one_way=args["one_way"]
                )

    async def _move_one(self, player: Player, args: Arguments) -> None:
        await self._move(player, args)

    async def drain_under_way(self, args: Arguments) -> None:
        """A node drains, or the proxy stops, while a request is under way."""
        first = f"{args['token']}.0"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._quietly, self.browse, args)
            if await self._until(
                lambda: bool(first in self.record.asked and self.record.asked[first].executed)
            ):
                asked = self.record.asked[first]
                if args["what"] == "proxy":
                    self._apply("stop", process=asked.proxy, for_s=args["for_s"])
                else:
                    number = self._cluster.options.node_names.index(asked.executed[0])
                    nursery.start_soon(
                        self._quietly, self._actions.drain_node, {"number": number, "for_s": args["for_s"]}
                    )

    async def _quietly(self, method: Any, *arguments: Any) -> None:
        try:
            await method(*arguments)
        except _BROKEN:
            pass  # asked, and not heard

    # -- when everything is healed

    async def serve_again(self) -> None:
        """Each kind of client is served at each proxy, within a bound."""
        record = self.record
        for proxy in self._cluster.options.proxy_names:
            for kind in ("browse", "talk", "play"):
                until_s, number = self._cluster.now + SERVED_WITHIN_S, 0
                while not await self._is_served(kind, proxy, f"z{kind[0]}{proxy[-1]}{number}"):
                    number += 1
                    if self._cluster.now > until_s:
                        record.unserved.append(f"{kind} at {proxy}")
                        break
                    await trio.sleep(1.0)

    async def _is_served(self, kind: str, proxy: str, token: str) -> bool:
        common = {"token": token, "user": f"late-{token}", "at": proxy}
        args: Arguments = {
            "browse": {"minor": 1, "requests": [{
                "method": "GET", "body": 0, "chunked": False, "mode": "ok", "size": 100, "ms": 0, "gap_ms": 0,
                "pieces": 1,
            }]},
            "talk": {"pieces": 1, "size": 10, "gap_ms": 0, "tail": 10, "mode": "echo", "slow_ms": 0, "gives_up_s": 10},
            "play": {"for_s": 0.05, "says": 1, "refers": "ok"},
        }[kind]  # fmt: skip
        await self._quietly(getattr(self, kind), {**args, **common})
        if kind == "browse":
            asked = self.record.asked.get(f"{token}.0")
            return asked is not None and asked.status == 200
        if kind == "talk":
            talk = self.record.talks.get(token)
            return talk is not None and talk.end == "eof"
        player = self.record.players.get(f"P{token}")
        return player is not None and bool(player.node)


class _Counted:
    """What a reader still reads counts for it."""

    def __init__(self, stream: Any, reader: Reader) -> None:
        self._stream, self._reader = stream, reader

    async def receive_some(self, max_bytes: int) -> bytes:
        data: bytes = await self._stream.receive_some(max_bytes)
        self._reader.count += len(data)
        return data


class _Overheard:
    """A stream whose sender is overheard."""

    def __init__(self, stream: Any, spoken: bytearray) -> None:
        self._stream, self._spoken = stream, spoken

    async def send_all(self, data: Any) -> None:
        self._spoken += data
        await self._stream.send_all(data)

    def send_nowait(self, data: Any) -> int:
        count: int = self._stream.send_nowait(data)
        self._spoken += data[:count]
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body).get("reason", ""))
    except ValueError:
        return ""
