"""The node's own port: GET /health with its queue, /metrics, /status; POST /callbacks/replay."""

from __future__ import annotations

from typing import Any

from fairlead.backend.callbacks import REPLAY_PATH, ReplayEndpoint
from fairlead.backend.config import NodeConfig
from fairlead.backend.executor import Executor
from fairlead.backend.gate.gate import Gate
from fairlead.backend.inbox import Inbox
from fairlead.backend.links import Links
from fairlead.backend.mirror import Mirror
from fairlead.backend.retention import Retention
from fairlead.protocol.reasons import Reason
from fairlead.runtime.http.message import Request, Response, json_response, problem, text_response
from fairlead.runtime.observer import Observer
from fairlead.runtime.version import SOFTWARE, artifact
from fairlead.runtime.world import World


class NodeHealth:
    """What a node says of itself."""

    def __init__(
        self,
        config: NodeConfig,
        world: World,
        observer: Observer,
        executor: Executor,
        inbox: Inbox,
        mirror: Mirror,
        retention: Retention,
        links: Links,
        incarnation: str,
        replay: ReplayEndpoint,
        gate: Gate | None = None,
    ) -> None:
        self._gate = gate
        self._config, self._world, self._observer = config, world, observer
        self._executor, self._inbox, self._mirror, self._links = executor, inbox, mirror, links
        self._incarnation, self._retention, self._replay = incarnation, retention, replay
        metrics = observer.metrics
        metrics.computed("node_running", "Runs executing.", (), lambda: {(): executor.running})
        metrics.computed("node_waiting", "Runs waiting for a worker.", (), lambda: {(): executor.waiting})
        metrics.computed("node_capacity", "Runs taken on at once.", (), lambda: {(): executor.capacity})
        metrics.computed(
            "node_links_connected", "Links to proxies.", (),
            lambda: {(): links.connected},
        )  # fmt: skip

    async def handle(self, request: Request) -> Response:
        if request.path == REPLAY_PATH:
            return await self._replay.handle(request)
        if request.method not in ("GET", "HEAD"):
            return problem(Reason.METHOD_NOT_ALLOWED, request.method, request.correlation_id)
        match request.path:
            case "/health" | "/health/ready":
                report = self.report()
                return json_response(report, 200 if report["status"] in ("READY", "DEGRADED") else 503)
            case "/health/live":
                return json_response({"status": "alive"})
            case "/metrics":
                text = self._observer.metrics.exposition()
                return text_response(text, content_type="text/plain; version=0.0.4; charset=utf-8")
            case "/status":
                return json_response(await self.status())
            case _:
                pass
        self._observer.refused(Reason.ROUTE_UNKNOWN, request.path, correlation_id=request.correlation_id)
        return problem(Reason.ROUTE_UNKNOWN, request.path, request.correlation_id)

    def report(self) -> dict[str, Any]:
        """A node without a link is DEGRADED, not dead: what it runs goes on, and it dials again by itself."""
        connected, abandoned = self._links.connected, self._executor.threads.abandoned
        checks = {
            "links": _check(connected > 0, Reason.NODE_NOT_CONNECTED, f"{connected} of {len(self._links)}"),
            "registry": _check(self._mirror.synchronized, Reason.REGISTRY_NOT_SYNCHRONIZED, ""),
            "threads": _check(
                not abandoned, Reason.HANDLER_TIMEOUT, f"{abandoned} still run though their runs have ended"
            ),
            "callbacks": _check(
                not self._replay.dead, Reason.CALLBACK_DEAD, f"{self._replay.dead} results were given up"
            ),
            "bridge": _check(not self._executor.switches.paused, Reason.BRIDGE_PAUSED, ""),
        }
        status = "READY" if all(check["state"] == "ok" for check in checks.values()) else "DEGRADED"
        if self._executor.switches.draining:
            status = "DRAINING"
        return {"status": status, "checks": checks, "queue": self._queue(), "threads": self._threads()}

    async def status(self) -> dict[str, Any]:
        position = self._mirror.position
        return {
            "software": SOFTWARE,
            "artifact": artifact(),
            "node": self._config.server_id,
            "incarnation": self._incarnation,
            "now_ms": self._world.wall_ms(),
            "health": self.report(),
            "links": [link.status() for link in self._links],
            "registry": {
                "fleet_id": position.fleet_id, "epoch": position.epoch, "generation": position.generation,
                "digest": position.digest.hex(), "commands": len(self._mirror.registry.items),
                "synchronized": self._mirror.synchronized,
            },
            "inbox": {**await self._inbox.counts(), "tombstones_kept_ms": self._retention.keep_ms},
            "gate": None if self._gate is None else self._gate.status(),
            "rejects": self._observer.rejects(),
        }  # fmt: skip

    def _threads(self) -> dict[str, int]:
        threads = self._executor.threads
        return {"abandoned": threads.abandoned, "abandoned_ever": threads.abandonments}

    def _queue(self) -> dict[str, int]:
        executor = self._executor
        return {"running": executor.running, "waiting": executor.waiting, "capacity": executor.capacity}


def _check(good: bool, reason: Reason, detail: str) -> dict[str, str]:
    return {"state": "ok" if good else "warn", "reason": "" if good else reason.value, "detail": detail}
