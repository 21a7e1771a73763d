"""The composition root of a node.

    run
    └─ services     executor's intake and workers, upkeep, background functions of the handlers' author
       └─ links     one task for each configured proxy; the health port

A stop: tell the proxies that nothing new is taken, let what runs finish within the drain's time, close the links
with a reason, close the inbox.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec
import trio

from fairlead.backend.asks import Asks
from fairlead.backend.callbacks import CallbackSettings, ReplayEndpoint, ResultCallbacks
from fairlead.backend.commands import clashes, handlers_of
from fairlead.backend.config import NodeConfig
from fairlead.backend.executor import Executor
from fairlead.backend.gate.gate import Gate
from fairlead.backend.gate.settings import GatePort, GateSettings
from fairlead.backend.handlers import Background, Handler, Node
from fairlead.backend.health import NodeHealth
from fairlead.backend.inbox import Inbox
from fairlead.backend.inbox_schema import prepare
from fairlead.backend.isolation import Isolation
from fairlead.backend.link import LinkSettings, PlayerTraffic, ProxyLink
from fairlead.backend.links import Links
from fairlead.backend.mirror import Mirror
from fairlead.backend.rcon import RconSettings
from fairlead.backend.referral import Referrer, over_rcon
from fairlead.backend.retention import Retention
from fairlead.protocol.envelope import ChannelLimits
from fairlead.protocol.keys import IdentityKey, Role, derive, identity_key
from fairlead.protocol.limits import ENVELOPE_HEADER_BYTES_MAX
from fairlead.protocol.proof import BOOT_BYTES, ProofJudge, ProofKey, proof_key
from fairlead.protocol.reasons import Reason, Refused, Reject
from fairlead.protocol.registry import Position, Registry, build, decode_item
from fairlead.protocol.trust import TrustJudge, TrustKey, link_trust_key, shared_trust_key
from fairlead.runtime.addresses import Destination, read_url
from fairlead.runtime.config_model import is_loopback
from fairlead.runtime.http.server import HttpLimits, serve_connection, serve_listener
from fairlead.runtime.marks import Marks
from fairlead.runtime.observer import Observer
from fairlead.runtime.posting import Post
from fairlead.runtime.process import ServiceManager
from fairlead.runtime.streams import ByteStream
from fairlead.runtime.world import Listener, World

PRUNE_INTERVAL_S = 10.0
PRUNE_ROWS_MAX = 500  # in one commit: nobody's result waits long behind it
PRUNE_PAUSE_S = 0.02  # between commits where there is more
CRASHES_KEPT_MS = 86_400_000
HEALTH_CONNECTIONS_MAX = 256


class StartRefused(Exception):
    """The node cannot start; the message says why and what to do."""


class NodeProcess:
    """A whole node, built but not started. `run` it once."""

    def __init__(
        self,
        config: NodeConfig,
        handlers: Node,
        world: World,
        observer: Observer,
        environ: Mapping[str, str],
        *,
        forget_registry: bool = False,
    ) -> None:
        """`forget_registry`: start as if no registry had ever been held; the inbox keeps everything else."""
        self.config, self._handlers, self._world, self._observer = config, handlers, world, observer
        self._service = self.service = ServiceManager(world, environ)
        self._forget_registry = forget_registry
        self.links = Links()
        self._trust: TrustJudge | None = None
        self._callbacks: ResultCallbacks | None = None
        self.asks: Asks | None = None
        self._commands: dict[str, Handler] = {}
        self.gate: Gate | None = None

    def reload(self, config: NodeConfig) -> None:
        """Take over the keys of a configuration that was read again; what else differs waits for a restart."""
        if self._trust is None or config.sender_id != self.config.sender_id:
            problem = "the node is still starting" if self._trust is None else "the node's id is another one"
            self._observer.log.error("reload_refused", problems=problem, kept="the keys in force")
            return
        self._trust.rekey(_trust_keys(config), self._world.wall_ms())
        if self.gate is not None:
            self.gate.rekey(_proof_keys(config), self._world.wall_ms())
        for link in self.links:
            link.rekey(_keys(config), self._trust.key_ids)
        if self._callbacks is not None and config.worker.callback_secret is not None:
            self._callbacks.rekey(config.worker.callback_secret)
        self._observer.log.info(
            "secrets_reloaded", keys=",".join(key.key_id.hex() for key in _keys(config)),
            trust_keys=",".join(key_id.hex() for key_id in self._trust.key_ids),
        )  # fmt: skip

    async def run(
        self, stop: trio.Event, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until `stop` is set, then drain. Raises StartRefused."""
        inbox = self._open_inbox()
        try:
            await self._run(inbox, stop, task_status)
        finally:
            with trio.CancelScope(shield=True):
                await inbox.aclose()

    async def _run(self, inbox: Inbox, stop: trio.Event, task_status: trio.TaskStatus[None]) -> None:
        config, world, observer = self.config, self._world, self._observer
        marks = self._open_marks()
        try:
            incarnation = await inbox.incarnation(world.new_id())
            mirror = Mirror(None if self._forget_registry else await _load_registry(inbox))
            isolation = await self._isolate(inbox, marks)
            lease_ms = await inbox.lease_ms()
        except (sqlite3.Error, Refused) as error:
            raise StartRefused(f"the inbox failed at the start: {error}") from error
        trust = self._trust = _trust(config, incarnation)
        players = self._players = self._build_players()
        self.asks = players.asks
        value_bytes_max = config.control_max_payload - 2 * ENVELOPE_HEADER_BYTES_MAX
        commands = self._commands = self._build_commands(value_bytes_max)
        executor = Executor(
            world, inbox, commands, mirror, observer, self.links.report, isolation, trust,
            node_id=config.server_id, concurrent_max=config.worker.max_concurrent_tasks,
            queue_max=config.worker.max_queue_size, timeout_ms_max=config.worker.task_timeout_ms,
            value_bytes_max=value_bytes_max, asks=players.asks,
        )  # fmt: skip
        retention = Retention(config.control_ttl_millis, config.control_max_skew_millis, lease_ms)
        gate = self.gate = self._build_gate()
        self._build_links(incarnation, executor, inbox, mirror, retention, trust.key_ids)
        callbacks = self._callbacks = self._build_callbacks(inbox)
        health = NodeHealth(
            config, world, observer, executor, inbox, mirror, retention, self.links, incarnation,
            ReplayEndpoint(config.worker.auth_token, callbacks), gate,
        )  # fmt: skip
        async with trio.open_nursery() as services:
            await services.start(executor.run)
            services.start_soon(players.referrer.run)
            services.start_soon(self._upkeep, inbox, retention)
            services.start_soon(self._service.feed_watchdog)
            if callbacks is not None:
                services.start_soon(callbacks.run)
            for function in self._handlers.backgrounds:
                services.start_soon(function, Background(world, observer, config.server_id, players.asks))
            async with trio.open_nursery() as links:
                if config.health.enabled:
                    await links.start(self._serve_health, health)
                if gate is not None:
                    await links.start(self._serve_gate, gate)
                for link in self.links:
                    links.start_soon(link.run)
                observer.log.info(
                    "node_ready", node=config.server_id, incarnation=incarnation,
                    commands=len(commands), proxies=",".join(config.proxies),
                )  # fmt: skip
                self._service.say("READY=1")
                task_status.started()
                await stop.wait()
                await self._drain(executor)
                links.cancel_scope.cancel()
            services.cancel_scope.cancel()
        marks.close()

    def _open_marks(self) -> Marks:
        path = Path(self.config.data_dir) / f"{self.config.server_id}.running"
        try:
            return self._world.open_marks(path, self.config.worker.max_concurrent_tasks)
        except OSError as error:
            raise StartRefused(f"marks {path}: {error}") from error

    async def _isolate(self, inbox: Inbox, marks: Marks) -> Isolation:
        """Whoever was executing when the last process died is a suspect in this one."""
        now_ms = self._world.wall_ms()
        suspects = [mark.decode(errors="replace") for mark in marks.left_behind]
        crashes = await inbox.record_crashes(suspects, now_ms, now_ms - CRASHES_KEPT_MS)
        marks.forget()
        if suspects:
            self._observer.log.warning(
                "node_died_while_executing", runs=",".join(suspects[:20]), count=len(suspects),
                then="each executes alone; one that the node dies of again is given up",
            )  # fmt: skip
        return Isolation(marks, crashes)

    def _open_inbox(self) -> Inbox:
        folder = Path(self.config.data_dir)
        path = folder / f"{self.config.server_id}.inbox.db"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = self._world.open_writer(path, "inbox", prepare)
            return Inbox(self._writer)
        except (OSError, sqlite3.Error) as error:
            hint = (
                " (another process runs this node: one inbox, one process)" if "locked" in str(error) else ""
            )
            raise StartRefused(f"inbox {path}: {error}{hint}") from error

    def _build_links(
        self,
        incarnation: str,
        executor: Executor,
        inbox: Inbox,
        mirror: Mirror,
        retention: Retention,
        trust_key_ids: tuple[bytes, ...],
    ) -> None:
        config = self.config
        settings = LinkSettings(
            config.sender_id,
            config.control_expected_sender_id,
            _keys(config),
            ChannelLimits(
                config.control_max_payload, config.control_ttl_millis, config.control_max_skew_millis,
                config.control_max_inflight,
            ),
            config.connect_timeout_millis / 1000,
            config.reconnect_base_millis / 1000,
            config.reconnect_max_millis / 1000,
            dict(config.labels),
            trust_key_ids,
            gate_boot=b"" if self.gate is None else self.gate.boot,
            refers=self._players.referrer.can_refer,
        )  # fmt: skip
        offers = [self._commands[name].item.canonical for name in sorted(self._commands)]
        lock = trio.Lock()
        for host, port in config.proxy_addresses:
            self.links.add(
                ProxyLink(
                    self._world, settings, host, port, incarnation, offers, executor, inbox, mirror, lock, retention,
                    self.links, self._observer, self._players,
                )
            )  # fmt: skip

    def _build_commands(self, value_bytes_max: int) -> dict[str, Handler]:
        """What this node offers: its author's handlers, and the commands of its configuration."""
        if problems := clashes(self.config, self._handlers.handlers):
            raise StartRefused("; ".join(map(str, problems)))
        try:
            outside = handlers_of(self.config, self._world, value_bytes_max, self._post_through)
        except OSError as error:
            raise StartRefused(f"the password of a console: {error}") from error
        longest_ms = self.config.worker.task_timeout_ms
        for name, handler in self._handlers.handlers.items():
            if handler.descriptor.timeout_ms > longest_ms:
                self._observer.log.warning(
                    "timeout_cut", command=name, asks_ms=handler.descriptor.timeout_ms, gets_ms=longest_ms,
                    then="raise worker.task_timeout_ms, or lower the handler's timeout_s",
                )  # fmt: skip
        return {**self._handlers.handlers, **outside}

    def _post_through(self, hosts: Collection[str]) -> Post:
        try:
            from fairlead.runtime.outbound import Outbound
        except ImportError as error:  # a node's installation leaves it out
            raise StartRefused(
                "callback_url and commands that post need httpcore: pip install 'fairlead[proxy]', or remove them"
            ) from error
        return Outbound(self._world, hosts).post

    def _build_players(self) -> PlayerTraffic:
        """What this node asks for players, and how it sends them elsewhere: by its own handler, else over RCON."""
        rcon, handler = self.config.rcon, self._handlers.referring
        if handler is None and rcon.port and rcon.password is not None:
            settings = RconSettings(
                rcon.host, rcon.port, rcon.password.get_secret_value(), rcon.timeout_ms / 1000
            )
            handler = over_rcon(self._world, settings, rcon.transfer_command, rcon.transfer_answer)
        return PlayerTraffic(Asks(self._world, self.links), Referrer(self._world, self._observer, handler))

    def _build_gate(self) -> Gate | None:
        config, given, world = self.config, self.config.gate, self._world
        if not given.enabled or not config.gates:
            return None
        judge = ProofJudge(
            _proof_keys(config), config.sender_id, world.random_bytes(BOOT_BYTES), world.wall_ms(),
            ttl_ms_max=given.token_ttl_millis, skew_ms_max=given.max_skew_millis, nonces_max=given.tokens_max,
        )  # fmt: skip
        ports = tuple(
            GatePort(
                each.name, each.host, each.port, each.kind, each.target_host, each.target_port, each.forward
            )
            for each in config.gates
        )
        settings = GateSettings(
            ports, config.enforce_proxy, given.connections_max, given.handshake_concurrent_max,
            given.handshake_timeout_millis / 1000, given.connect_timeout_millis / 1000, given.idle_timeout_s,
            given.head_bytes_max, given.head_count_max,
        )  # fmt: skip
        for each in ports:
            if not is_loopback(each.target_host):
                self._observer.log.warning(
                    "gate_passed_by", gate=each.name, target=f"{each.target_host}:{each.target_port}",
                    then="whoever reaches the server there needs no proof: bind it to loopback, or keep others out",
                )  # fmt: skip
        return Gate(settings, judge, world, self._observer)

    async def _serve_gate(self, gate: Gate, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            await gate.run(task_status=task_status)
        except OSError as error:
            raise StartRefused(f"{error}; another process has the port (see `ss -ltnp`)") from error

    def _build_callbacks(self, inbox: Inbox) -> ResultCallbacks | None:
        worker = self.config.worker
        secret = worker.callback_secret
        if not worker.callback_url or secret is None:
            return None
        read = read_url(worker.callback_url)
        assert isinstance(read, Destination), "load refuses a configuration with another"
        settings = CallbackSettings(
            worker.callback_url,
            self.config.sender_id,
            secret,
            worker.callback_after_ms / 1000,
            worker.callback_oidc_token_file,
        )
        post = self._post_through([read.host])  # named by who operates the node: it may lie inside
        return ResultCallbacks(
            self._world, self._observer, settings, self._writer, inbox, lambda: self.links.connected > 0, post
        )

    async def _upkeep(self, inbox: Inbox, retention: Retention) -> None:
        """Forget what no message can name any more, a little at a time."""
        kept_lease_ms = retention.lease_ms
        while True:
            await trio.sleep(PRUNE_INTERVAL_S)
            before_ms = retention.acked_before_ms(trio.current_time(), self._world.wall_ms())
            try:
                if retention.lease_ms != kept_lease_ms:
                    kept_lease_ms = await inbox.lease_ms(retention.lease_ms)
                more = before_ms is not None
                while more and before_ms is not None:
                    more = await inbox.prune(before_ms, PRUNE_ROWS_MAX) == PRUNE_ROWS_MAX
                    await trio.sleep(PRUNE_PAUSE_S)
            except Exception as error:  # the next turn tries again
                self._observer.refused(Reason.STORE_UNAVAILABLE, f"inbox: {error}")

    async def _serve_health(self, health: NodeHealth, *, task_status: trio.TaskStatus[None]) -> None:
        listener = await self._bind()
        limits = HttpLimits(body_bytes_max=65_536)

        async def serve(stream: ByteStream) -> None:
            await serve_connection(
                stream, health.handle, limits, self._world, self._observer, server="health"
            )

        try:
            await serve_listener(
                listener, serve, self._observer, connections_max=HEALTH_CONNECTIONS_MAX, name="health",
                task_status=task_status,
            )  # fmt: skip
        finally:
            listener.close()

    async def _bind(self) -> Listener:
        options = self.config.health
        try:
            return await self._world.listen_tcp(options.host, options.port)
        except OSError as error:
            raise StartRefused(
                f"health: cannot listen on {options.host}:{options.port}: {error.strerror}; "
                "another process has the port (see `ss -ltnp`), or choose another one"
            ) from error

    async def _drain(self, executor: Executor) -> None:
        executor.switches.stopping = True
        self._observer.log.info("node_draining", running=executor.running, waiting=executor.waiting)
        self._service.say("STOPPING=1")
        for link in self.links:
            link.beat_now()
        with trio.move_on_after(self.config.drain.timeout_s):
            await executor.wait_idle()
            while self.gate is not None and self.gate.is_busy:  # noqa: ASYNC110 - clients end one by one
                await trio.sleep(0.05)
        for link in self.links:
            link.stop("the node stops")
        with trio.move_on_after(2.0):
            while any(link.connected for link in self.links):  # noqa: ASYNC110 - the links say goodbye
                await trio.sleep(0.02)
        self._observer.log.info("node_stopped", unfinished=len(executor.active))


def _keys(config: NodeConfig) -> tuple[IdentityKey, ...]:
    """Current first, then previous: the link tries the other where one is refused."""
    secrets = (config.secret, config.secret_previous)
    derived = [derive(secret, Role.NODE, config.sender_id, 0) for secret in secrets if secret is not None]
    given = [identity_key(key) for key in (config.key, config.key_previous) if key is not None]
    return (*derived, *given)


def _trust_keys(config: NodeConfig) -> list[TrustKey]:
    """Of the shared secrets, or where there are none of this node's own keys."""
    secrets = config.security.trust_secrets
    shared = [shared_trust_key(secret, config.sender_id) for secret in secrets]
    return shared or [link_trust_key(key.psk) for key in _keys(config)]


def _proof_keys(config: NodeConfig) -> list[ProofKey]:
    """Whose proofs of proxy are believed: who holds this node's key, the current or the previous."""
    return [proof_key(key.psk) for key in _keys(config)]


def _trust(config: NodeConfig, incarnation: str) -> TrustJudge:
    """Whom deliveries are believed: who holds the shared secret, or where there is none a key of this node."""
    return TrustJudge(
        _trust_keys(config), config.sender_id, incarnation, config.security.token_ttl_millis,
        config.control_max_skew_millis,
        needs_token=config.enforce_proxy,
    )  # fmt: skip


async def _load_registry(inbox: Inbox) -> Registry | None:
    """The registry that was in force when the node stopped; none where it cannot be trusted whole."""
    raw, canonicals = await inbox.load_registry()
    if raw is None:
        return None
    position = msgspec.msgpack.decode(raw, type=Position)
    items: dict[str, Any] = {}
    for canonical in canonicals:
        item = decode_item(canonical)
        if isinstance(item, Reject):
            return None  # written by another version: the proxy sends it anew
        items[item.descriptor.name] = item
    built = build(position.fleet_id, position.epoch, position.generation, items)
    return built if isinstance(built, Registry) and built.position == position else None
