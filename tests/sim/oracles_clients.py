"""What must never happen to clients: answers, bytes, sessions, limits, transfers, gates.

Only in seeds with client traffic; elsewhere these oracles hear nothing, and cost nothing. What a proxy cannot help is
allowed for: one that was killed ends its connections as its kernel does, and a server that was killed may seem to have
ended in order.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from tests.sim.client_record import Asked, Calm, ClientRecord, Player, Talk, pattern
from tests.sim.oracle import Oracle
from tests.sim.record import Record
from tests.sim.workload_clients import TRANSFER_S, TRIES_MAX

from fairlead.protocol.reasons import Reason

GOES_WELL: Final = ("ok", "chunked", "close", "until_close", "surplus", "surplus_late", "interim")
# Answers of a proxy that say that a backend did not do what it should, or that the proxy did not.
BLAMES: Final = (
    Reason.BACKEND_UNREACHABLE, Reason.BACKEND_CLOSED_EARLY, Reason.BACKEND_TIMEOUT,
    Reason.BACKEND_RESPONSE_MALFORMED, Reason.INTERNAL_ERROR,
)  # fmt: skip
SURPLUS_S: Final = 0.1
SLOW_SURPLUS_S: Final = 2.0
LATE_S: Final = 1.0  # a transfer is ended so long after its deadline at the latest


class ClientOracle(Oracle):
    """With further hooks: whatever clients, servers and the witness tell the record."""

    def __init__(self, record: Record) -> None:
        super().__init__(record)
        self._clients = record.clients

    def hears(self, hook: str) -> bool:
        if self._clients is None or self.record.over:
            return False
        mine = getattr(type(self), hook, None)
        return mine is not None and mine is not getattr(Oracle, hook, None)

    @property
    def clients(self) -> ClientRecord:
        assert self._clients is not None
        return self._clients

    def was_calm(self, since: Calm, proxy: str) -> bool:
        """Nothing was broken since, nor is any connection in a pool that somebody broke before; and every node is
        there for the proxy."""
        if self.setup.has("half_open", "power_cut", "kill_switch") or not self.clients.was_calm(since):
            return False
        root = self.record.proxies().get(proxy)
        if root is None or root.control is None:
            return False
        now = self.cluster.now
        return all(
            root.control.nodes.state(node, now).value == "ONLINE" for node in self.cluster.options.node_names
        )

    @property
    def is_gated(self) -> bool:
        return "gates" in self.cluster.options.node


class AnswersBelong(ClientOracle):
    name = "an answer is of its request"
    guards = (
        "An answer belongs to the request that asked for it; requests reach a backend whole or not at all."
    )

    def on_answered(self, asked: Asked, answer: Any, life: Any) -> None:
        if not asked.by:
            return
        self.record.count("requests answered by a server")
        if answer.fields.get("x-id") == "nobody" and self._may_be_surplus(asked):
            return
        if answer.fields.get("x-id") != asked.id:
            self.violated(f"{asked.id} was answered with what was meant for {answer.fields.get('x-id')}")
            return
        if asked.by not in asked.executed and asked.mode != "early":
            self.violated(f"{asked.id} was answered by {asked.by}, which has not executed it")
        size = int(answer.fields["x-size"])
        wanted = b"" if asked.method == "HEAD" else pattern(f"{asked.id}$", size)
        if answer.body == wanted:
            return
        is_cut = answer.is_until_close and wanted.startswith(answer.body)
        died = life.world.dead or (asked.lives and self.cluster.processes[asked.by].life not in asked.lives)
        if not is_cut or not (died or asked.mode in ("cut", "abort")):
            self.violated(
                f"{asked.id} was answered by {len(answer.body)} bytes where {len(wanted)} were sent"
            )

    def _may_be_surplus(self, asked: Asked) -> bool:
        """A server said more than it was asked for, and it arrived when the next request was under way: nobody can
        tell that from an answer."""
        late_s = asked.at_s - self.clients.surplus_s
        is_slow = self.setup.has("slow_path", "small_window", "partition", "isolate")
        return late_s < (SLOW_SURPLUS_S if is_slow else SURPLUS_S) or not asked.calm.is_whole

    def on_surplus(self, token: str, held: bytes) -> None:
        if b"CONNECTION_LIMIT" in held or b"CONNECTION_RATE_LIMIT" in held:
            return  # said before its request was read: that was a HEAD
        self.violated(f"{token} was sent {held[:80]!r}, for which it had not asked")

    def on_wrong_body(self, node: str, asked: Asked, body: bytes) -> None:
        self.violated(f"{asked.id} reached {node} with another body ({len(body)} bytes for {asked.body})")

    def on_stranger(self, node: str, what: str, named: str) -> None:
        if named != "intruder":
            self.violated(f"{node} was asked by nobody: {what} {named}")

    def on_wrong_words(self, player: Player, found: Any) -> None:
        self.violated(f"{player.name} heard what it had not said: {found!r:.80}")


class UnsafeOnce(ClientOracle):
    name = "unsafe requests once"
    guards = "A request is repeated only if that cannot have an effect twice, and so often at most."

    def on_executed(self, asked: Asked, node: str) -> None:
        count = len(asked.executed)
        if count > 1 and not asked.is_safe:
            self.violated(f"{asked.method} {asked.id} was executed {count} times, by {asked.executed}")
        elif count > TRIES_MAX:
            self.violated(f"{asked.method} {asked.id} was tried {count} times")


class SafeAnswered(ClientOracle):
    name = "safe requests are answered"
    guards = "A safe request is lost only if no backend could be reached within its deadlines."

    def on_answered(self, asked: Asked, answer: Any, life: Any) -> None:
        if asked.by or asked.reason not in BLAMES:
            return
        if not self.was_calm(asked.calm, asked.proxy) or (self.is_gated and self.setup.clock_off_ms):
            return
        if asked.at_s - self.clients.surplus_s < SURPLUS_S:
            return  # a server ended a connection that nobody could know to be at its end
        away = self.clients.away
        nodes = len(self.cluster.options.node_names) - away
        if nodes < 1 or (away and self.is_gated):
            return
        is_fit = asked.mode in GOES_WELL or (asked.mode == "early" and not asked.body)
        if is_fit or (asked.mode == "close_first" and asked.is_safe and nodes > 1 and not away):
            self.violated(
                f"{asked.method} {asked.id} ({asked.mode}) was answered {asked.status} {asked.reason}, while {nodes}"
                " backends were well"
            )

    def on_lost(self, asked: Asked, how: str, life: Any) -> None:
        lives = not (life.world.dead or life.stop.is_set() or life.ended.is_set())
        if lives and asked.is_first and asked.mode in GOES_WELL and self.was_calm(asked.calm, asked.proxy):
            self.violated(
                f"{asked.method} {asked.id} ({asked.mode}) was not answered ({how}), and nothing was broken"
            )
        if how == "garbled":
            self.violated(f"what answered {asked.id} is not HTTP")
        is_broken = asked.mode in ("cut", "abort")
        if how == "eof" and is_broken and asked.executed and lives:
            # The head had gone out, for the framing says that more was to come.
            if asked.saw_head:
                self.violated(f"the answer to {asked.id} was cut off, and its connection ended in order")


class WholeBytes(ClientOracle):
    name = "bytes arrive whole or end in a reset"
    guards = "Bytes of a session arrive in order and whole, or end in a reset: never in an end that cuts."

    def __init__(self, record: Record) -> None:
        super().__init__(record)
        self._refused: Counter[str] = Counter()

    def on_entered(self, key: str, admission: Any, host: str, now: float, refused: Any) -> None:
        if refused is not None:
            self._refused[host] += 1

    def _prefixes(self, talk: Talk) -> bool:
        for heard, sent, who in (
            (talk.heard, talk.server_sent, "its client"), (talk.server_heard, talk.sent, talk.server),
        ):  # fmt: skip
            if not sent.startswith(heard):
                self.violated(f"{who} of session {talk.id} heard what the other side had not said")
                return False
        return True

    def on_server_end(self, talk: Talk) -> None:
        if not self._prefixes(talk) or talk.life.world.dead:
            return
        if len(talk.server_heard) != len(talk.sent) or not talk.stream.has_said_end:
            self.violated(
                f"{talk.server} was told that session {talk.id} has ended, after {len(talk.server_heard)} of"
                f" {len(talk.sent)} bytes"
            )

    def on_talk_end(self, talk: Talk) -> None:
        if talk.end != "gave up":
            self.record.count(f"sessions that {'ended in order' if talk.end == 'eof' else 'were reset'}")
        if not self._prefixes(talk) or talk.life.world.dead:
            return
        if talk.end == "eof":
            if talk.server_stream is None or not talk.server_stream.has_said_end:
                self.violated(
                    f"the client of session {talk.id} was told that it ended, and its server had not"
                )
            elif len(talk.heard) != len(talk.server_sent):
                self.violated(
                    f"the client of session {talk.id} was told that it ended, after {len(talk.heard)} of"
                    f" {len(talk.server_sent)} bytes"
                )
        elif talk.gives_up or talk.mode not in ("echo", "half"):
            return
        elif (
            not self.clients.away and self.was_calm(talk.calm, talk.proxy) and not self._refused[talk.address]
        ):
            self.violated(f"session {talk.id} ended as {talk.end}, and nothing was broken")


class Counted(ClientOracle):
    name = "sessions are counted right"
    guards = (
        "Bytes of a session are what its client sent and was sent; who plays is listed, who is gone is not."
    )

    def __init__(self, record: Record) -> None:
        super().__init__(record)
        self._seen: list[tuple[tuple[str, str, str, int, int], Any]] = []
        self._closed: Counter[tuple[str, str, str, int, int]] = Counter()
        self._calm: dict[str, Calm] = {}

    def on_counted(self, kind: str, address: str, player: str, sent: int, heard: int, life: Any) -> None:
        self._seen.append(((kind, address, player, sent, heard), life))

    def on_closed(self, key: str, session: Any) -> None:
        self._closed[
            session.kind, session.peer, session.player_name, session.bytes_in, session.bytes_out
        ] += 1

    def on_talk_end(self, talk: Talk) -> None:
        if talk.end == "eof" and talk.server_end == "eof":
            self._seen.append((("tcp", talk.address, "", len(talk.sent), len(talk.heard)), talk.life))

    def on_playing(self, player: Player) -> None:
        self._calm[player.name] = self.clients.calm()

    def on_tick(self) -> None:
        for player in self.clients.playing():
            proxy = self.record.proxies().get(player.proxy)
            if proxy is None or not self.was_calm(self._calm[player.name], player.proxy):
                continue
            rows = proxy.traffic.sessions.of_player(player.name)
            if not any(row.node == player.node and row.state in ("PLAYING", "TRANSFERRING") for row in rows):
                self.violated(f"{player.name} plays on {player.node} by {player.proxy}, which lists {rows}")

    def at_rest(self) -> None:
        for row, life in self._seen:
            if self._closed[row]:
                self._closed[row] -= 1
            elif not life.world.dead:
                near = [each for each, count in self._closed.items() if count and each[:3] == row[:3]][:4]
                self.violated(f"a client moved {row[3]} bytes in and {row[4]} out ({row}); there were {near}")
        for name, proxy in self.record.proxies().items():
            left = left_of(proxy)
            if left:
                self.violated(f"nobody is connected to {name}, which still has {left}")


def left_of(proxy: Any) -> dict[str, Any]:
    """What a proxy has of clients, that it should not have when none is there."""
    edge = proxy._edge
    status = edge.status()
    open_, idle = edge._pools.open(), edge._pools.sizes()
    found = {
        "sessions": len(proxy.traffic.sessions), "connections": status["admission"]["connections"],
        "handshakes": status["admission"]["handshakes"], "routing": status["routing"],
        "players": status["game"]["players"], "waiting": status["game"]["waiting"],
        "transfers": len(proxy.traffic.desk._transfers.pending), "arriving": len(proxy.traffic.desk._arriving),
        "live": sum(edge.roster.live_on(node) for node in proxy.control.nodes.nodes),
        "in use": sum(open_.values()) - sum(idle.values()),
    }  # fmt: skip
    return {what: count for what, count in found.items() if count}


class Limits(ClientOracle):
    name = "limits hold"
    guards = (
        "Limits are enforced before memory or work is spent: never more, and nobody is refused without cause."
    )

    def __init__(self, record: Record) -> None:
        super().__init__(record)
        self._live: Counter[str] = Counter()
        self._windows: dict[tuple[str, str], tuple[float, int]] = {}

    def on_entered(self, key: str, admission: Any, host: str, now: float, refused: Any) -> None:
        limits = self.cluster.options.proxy
        rates, most = limits["rate_limits"], limits["limits"]["connections_max"]
        start, count = self._windows.get((key, host), (now, 0))
        if now - start >= rates["connection_per_ip_window_millis"] / 1000:
            start, count = now, 0
        is_full, is_fast = self._live[key] >= most, count >= rates["connection_per_ip_max"]
        reason = refused.reason if refused is not None else None
        wanted = Reason.CONNECTION_LIMIT if is_full else Reason.CONNECTION_RATE_LIMIT if is_fast else None
        if reason is not wanted:
            self.violated(
                f"{host} came to {key} as number {self._live[key] + 1} of {most}, {count + 1} of"
                f" {rates['connection_per_ip_max']} in its window: {reason or 'let in'}"
            )
        if refused is None:
            self._live[key] += 1
            self._windows[key, host] = (start, count + 1)

    def on_left(self, key: str, admission: Any) -> None:
        self._live[key] -= 1
        if self._live[key] != admission.live:
            self.violated(f"{key} counts {admission.live} connections, and has {self._live[key]}")


class TransfersEnd(ClientOracle):
    name = "transfers end"
    guards = "A transfer's token opens one session, once; a transfer is completed, or fails with a reason and in time."

    def __init__(self, record: Record) -> None:
        super().__init__(record)
        self._redeemed: Counter[str] = Counter()
        self._logins: Counter[tuple[str, str]] = Counter()

    def on_redeemed(self, key: str, transfer_id: str, player: str) -> None:
        self._redeemed[transfer_id] += 1
        self.record.count("tokens redeemed")
        if self._redeemed[transfer_id] > 1:
            self.violated(f"the token of transfer {transfer_id} was redeemed again, at {key} by {player}")

    def on_login(self, player: Player, node: str) -> None:
        self._logins[player.name, node] += 1
        self.record.count("logins")

    def on_turned_away(self, player: Player | None, found: Any, intent: int) -> None:
        self.record.count("turned away")

    def on_transfer(self, player: Player, to: str, status: int, answer: Any) -> None:
        self.record.count(f"transfer {answer.get('state') or answer.get('reason')}")
        if status == 200 and answer["state"] == "COMPLETED":
            node = to.removeprefix("game-")
            if not self._logins[player.name, node]:
                self.violated(f"{player.name} counts as moved to {node}, which never saw it")
        elif status >= 400 and not answer.get("reason"):
            self.violated(f"a transfer of {player.name} failed without a reason: {answer}")

    def on_tick(self) -> None:
        for name, proxy in self.record.proxies().items():
            if self.cluster.processes[name].frozen or proxy.traffic is None:
                continue
            pending = proxy.traffic.desk._transfers.pending
            for session in proxy.traffic.sessions.live():
                if session.state.value == "TRANSFERRING" and session.transfer_id not in pending:
                    self.violated(f"session {session.id} on {name} is TRANSFERRING, and nobody transfers it")
            for transfer in pending.values():
                late_s = self.cluster.now - transfer.deadline_s
                # One whose process slept until just now is ended with its next step.
                if late_s > LATE_S + (0 if not self.setup.has("freeze") else 60):
                    self.violated(
                        f"transfer {transfer.id} on {name} goes on {late_s:.1f} s after its end ({TRANSFER_S} s)"
                    )


class GateHolds(ClientOracle):
    name = "nothing passes a gate unproven"
    guards = "Nothing reaches a gated backend without a valid proof."

    def on_stranger(self, node: str, what: str, named: str) -> None:
        if named == "intruder":
            self.violated(f"somebody who is no proxy reached the server behind the gate of {node}: {what}")


class ServedAgain(ClientOracle):
    name = "clients are served again"
    guards = "When faults end, clients are served again within a bound."

    def at_rest(self) -> None:
        if self.clients.unserved:
            self.violated(f"after all faults had ended nobody served {self.clients.unserved}")


CLIENT_ORACLES: Final = (
    AnswersBelong, UnsafeOnce, SafeAnswered, WholeBytes, Counted, Limits, TransfersEnd, GateHolds, ServedAgain,
)  # fmt: skip
