"""The operators' HTTP surface: finds the endpoint, checks its scope, calls its method."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol
from urllib.parse import unquote

import trio

from fairlead.protocol.keys import Role
from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.control.control import Control
from fairlead.proxy.dispatch.circuit import CircuitState
from fairlead.proxy.dispatch.dispatcher import Dispatcher
from fairlead.proxy.dispatch.waiters import STORE_FAILURES
from fairlead.proxy.guard.access import NOBODY
from fairlead.proxy.guard.chain import Admitted, Chain
from fairlead.proxy.guard.nonces import Nonce
from fairlead.proxy.guard.rates import RateRefused, joined
from fairlead.proxy.ops import openapi, page
from fairlead.proxy.ops.approvals_api import ApprovalsApi
from fairlead.proxy.ops.audit import event_of
from fairlead.proxy.ops.callbacks_api import CallbacksApi
from fairlead.proxy.ops.controls_api import ControlsApi
from fairlead.proxy.ops.dead_letters_api import DeadLettersApi
from fairlead.proxy.ops.denials import Denials
from fairlead.proxy.ops.dispatch_api import DispatchApi
from fairlead.proxy.ops.endpoints import Found, find
from fairlead.proxy.ops.health import Health
from fairlead.proxy.ops.keys_api import KeysApi
from fairlead.proxy.ops.pins_api import PinsApi
from fairlead.proxy.ops.secrets_api import SecretsApi
from fairlead.proxy.ops.sessions_api import SessionsApi
from fairlead.proxy.ops.steering_api import SteeringApi
from fairlead.proxy.ops.telemetry_api import TelemetryApi
from fairlead.proxy.store.interface import Store
from fairlead.runtime.http.message import Request, Response, json_response, problem, text_response
from fairlead.runtime.observer import Observer
from fairlead.runtime.version import SOFTWARE, VERSION, artifact
from fairlead.runtime.world import World

PROBE_TIMEOUT_S = 5.0
DRAIN_DEADLINE_S_MAX = 86_400
REASON_WINDOWS_S = {"last_5_minutes": 300.0, "last_hour": 3_600.0}


@dataclass(frozen=True, slots=True)
class Apis:
    """What serves the endpoints of one subject each."""

    dispatch: DispatchApi
    dead_letters: DeadLettersApi
    controls: ControlsApi
    callbacks: CallbacksApi
    keys: KeysApi
    secrets: SecretsApi
    approvals: ApprovalsApi
    denials: Denials
    sessions: SessionsApi
    steering: SteeringApi
    telemetry: TelemetryApi

    def method(self, name: str) -> Any:
        """What serves an endpoint, of those subjects that serve theirs themselves."""
        return getattr(self.steering, name, None) or getattr(self.telemetry, name, None)


class Reloaded(Protocol):
    """What became of a reload."""

    @property
    def applied(self) -> Sequence[str]: ...
    @property
    def waiting(self) -> Sequence[str]: ...
    @property
    def problems(self) -> Sequence[str]: ...


class NodeClients(Protocol):
    """What the edge knows of the clients of a node, and does for a drain."""

    def drain_node(self, node: str, deadline_s: float | None = None) -> None: ...
    def undrain_node(self, node: str) -> None: ...
    def node_clients(self, node: str) -> dict[str, Any]: ...


class Ops:
    """Serves the endpoint table."""

    def __init__(
        self,
        world: World,
        observer: Observer,
        control: Control,
        dispatcher: Dispatcher,
        apis: Apis,
        store: Store,
        health: Health,
        chain: Chain,
        edge_status: Callable[[], dict[str, Any]],
        probe_disk: Callable[[], None],
        *,
        facts: dict[str, Any],
        node_clients: NodeClients,
        pins: PinsApi,
        reload: Callable[[], Reloaded],
    ) -> None:
        self._reload = reload
        self._pins = pins
        self._node_clients = node_clients
        self._world, self._observer, self._control, self._dispatcher = world, observer, control, dispatcher
        self._apis, self._store, self._health, self._chain = apis, store, health, chain
        self._edge_status, self._probe_disk = edge_status, probe_disk
        self._facts = facts
        self.in_flight = 0
        self._counted: dict[str, Any] = {
            "runs": {},
            "dead_letters": {},
            "callbacks": {},
            "approvals": {},
            "counted_at_ms": None,
        }
        self._started_s = trio.current_time()
        self._document = json_response(openapi.document(VERSION))
        self._requests = observer.metrics.counter(
            "ops_requests_total", "Operator calls.", ("endpoint", "status")
        )

    async def handle(self, request: Request) -> Response:
        """One request on the operators' port."""
        self.in_flight += 1
        began_s = trio.current_time()
        try:
            response = await self._handle(request, public_only=False)
        finally:
            self.in_flight -= 1
        if not request.path.startswith("/health"):  # which answers 503 on purpose
            asked = request.header("prefer") or ""
            waited = "wait=" in asked and "wait=0" not in asked
            self._apis.telemetry.answered(response.status, trio.current_time() - began_s, waited=waited)
        return response

    async def handle_public(self, request: Request) -> Response:
        """One request on the clients' port: only what the table marks as public, and only with a key."""
        return await self._handle(request, public_only=True)

    async def _handle(self, request: Request, public_only: bool) -> Response:
        found = find(request.method, request.path)
        if isinstance(found, Found) and not (public_only and not found.endpoint.public):
            admitted = Admitted(NOBODY)
            try:
                response = await self._serve(found, request, public_only, admitted)
            except STORE_FAILURES as error:
                refused = error if isinstance(error, Refused) else Refused(
                    Reason.STORE_UNAVAILABLE, str(error), retry_after_s=1
                )  # fmt: skip
                self._observer.refused(
                    refused.reason,
                    refused.detail,
                    correlation_id=request.correlation_id,
                    peer=request.peer_host,
                )
                known = None if admitted.caller is NOBODY else admitted.caller
                self._apis.denials.note(refused, request, found.endpoint.name, known)
                response = problem(
                    refused.reason,
                    refused.detail,
                    request.correlation_id,
                    retry_after_s=refused.retry_after_s,
                )
                if isinstance(refused, RateRefused):
                    response.headers.extend(refused.headers)
            if admitted.headers:
                response = replace(response, headers=joined(response.headers, admitted.headers))
            self._requests.inc(found.endpoint.name, str(response.status))
            return response
        if not public_only and request.method in ("GET", "HEAD"):
            if request.path == "/":
                return Response(302, [("location", "/status")])
            if request.path == "/favicon.ico":
                return Response(204)
        allowed = [] if isinstance(found, Found) else found
        reason = Reason.METHOD_NOT_ALLOWED if allowed else Reason.ROUTE_UNKNOWN
        detail = f"{request.method} {request.path}"
        self._observer.refused(reason, detail, correlation_id=request.correlation_id, peer=request.peer_host)
        response = problem(reason, detail, request.correlation_id)
        if allowed:
            response.headers.append(("allow", ", ".join(sorted(allowed))))
        return response

    async def _serve(self, found: Found, request: Request, public: bool, admitted: Admitted) -> Response:
        """The answer of an endpoint, once its caller passed every guard."""
        await self._chain.admit(found.endpoint, request, public=public, into=admitted)
        name = f"serve_{found.endpoint.name}"
        method = self._apis.method(name) or getattr(self, name)
        nonce = admitted.nonce
        response: Response
        if nonce is None:
            response = await method(request, admitted.caller, unquote(found.identifier))
            return response
        try:
            response = await method(request, admitted.caller, unquote(found.identifier), nonce)
        except STORE_FAILURES:
            await self._chain.use_up(nonce)  # or who recorded it could send it again when it would pass
            raise
        await self._chain.use_up(nonce)
        return response

    # -- health and what can be read

    async def serve_health(self, request: Request, caller: Identity, _: str) -> Response:
        report = self._health.report()
        return json_response(report, 200 if report["status"] in ("READY", "DEGRADED") else 503)

    async def serve_health_live(self, request: Request, caller: Identity, _: str) -> Response:
        return json_response({"status": "alive"})

    async def serve_health_ready(self, request: Request, caller: Identity, _: str) -> Response:
        status = self._health.report()["status"]
        return json_response({"status": status}, 200 if status in ("READY", "DEGRADED") else 503)

    async def serve_health_test(self, request: Request, caller: Identity, _: str) -> Response:
        store = await self._timed(lambda: self._store.check(self._world.wall_ms()))
        disk = await self._timed(lambda: self._world.run_in_thread(self._probe_disk))
        good = store["ok"] and disk["ok"]
        return json_response(
            {"status": "ok" if good else "failed", "store": store, "disk": disk}, 200 if good else 503
        )

    async def _timed(self, probe: Callable[[], Any]) -> dict[str, Any]:
        began = trio.current_time()
        try:
            with trio.fail_after(PROBE_TIMEOUT_S):
                await probe()
        except (Exception, trio.TooSlowError) as error:
            return {"ok": False, "ms": _ms(began), "detail": f"{type(error).__name__}: {error}"}
        return {"ok": True, "ms": _ms(began)}

    async def serve_metrics(self, request: Request, caller: Identity, _: str) -> Response:
        text = self._observer.metrics.exposition()
        return text_response(text, content_type="text/plain; version=0.0.4; charset=utf-8")

    async def serve_metrics_reasons(self, request: Request, caller: Identity, _: str) -> Response:
        now_s = trio.current_time()
        refused, observed = self._observer.lately, self._chain.observed_lately
        return json_response({
            "since_start": self._observer.rejects(),
            **{name: refused.within(window_s, now_s) for name, window_s in REASON_WINDOWS_S.items()},
            "observed": {
                "since_start": self._chain.observed(),
                **{name: observed.within(window_s, now_s) for name, window_s in REASON_WINDOWS_S.items()},
            },
            "recent": list(self._observer.recent),
        })  # fmt: skip

    async def serve_openapi(self, request: Request, caller: Identity, _: str) -> Response:
        return self._document

    async def serve_status(self, request: Request, caller: Identity, _: str) -> Response:
        status = await self.status()
        if _prefers_html(request.header("accept") or ""):
            return text_response(
                page.render(status), headers=[("vary", "accept")], content_type="text/html; charset=utf-8"
            )
        return json_response(status, headers=[("vary", "accept")])

    async def status(self) -> dict[str, Any]:
        """Everything at a glance. No secret is part of it: key ids and fingerprints at most."""
        registry = self._control.registry.registry
        edge = self._edge_status()
        return {
            "software": SOFTWARE,
            "artifact": artifact(),
            **self._facts,
            "uptime_s": round(trio.current_time() - self._started_s),
            "now_ms": self._world.wall_ms(),
            "health": self._health.report(),
            "listeners": edge["listeners"],
            "sessions": {
                "total": sum(each["sessions"] for each in edge["listeners"]),
                "by_listener": {each["name"]: each["sessions"] for each in edge["listeners"]},
                "routing": edge["routing"],
                "pool_idle": edge["pool_idle"],
                "by_state": edge["states"],
                "oldest": edge["sessions"],
                **self._apis.sessions.status(),
            },
            "registry": {
                "fleet_id": registry.position.fleet_id,
                "epoch": registry.position.epoch,
                "generation": registry.position.generation,
                "digest": registry.position.digest.hex(),
                "commands": len(registry.items),
            },
            "nodes": [self._node(node_id) for node_id in sorted(self._control.nodes.nodes)],
            "backends": edge["backends"],
            "certificates": edge["certificates"],
            "workers": edge["workers"],
            "clients": self._control.clients.describe(),
            "callers": self._chain.callers.status(),
            "guards": self._chain.status(),
            "dispatch": {
                **await self._counts(),
                "pending": self._dispatcher.outbox.due_total,
                "delayed": self._dispatcher.outbox.delayed,
                "pending_approval": self._dispatcher.outbox.for_approval,
                "lag": self._dispatcher.outbox.status(),
                "circuits": {
                    node: slot.circuit.state.value
                    for node, slot in self._dispatcher.fleet.slots.items()
                    if slot.circuit.state is not CircuitState.CLOSED
                },
                "paused_tenants": self._dispatcher.paused_tenants(),
                "retry_budget": self._dispatcher.budget.allowed,
                "outstanding": self._dispatcher.fleet.outstanding(),
                "store_waiting": self._store.waiting(),
            },
            "steering": self._apis.steering.status(),
            "alerts": self._apis.telemetry.status(),
            "secrets": self._apis.secrets.status(),
            "seals": {"distrusted": self._store.distrusted()},
            "rejects": self._observer.rejects(),
            "recent_rejects": list(self._observer.recent)[-20:],
        }

    async def _counts(self) -> dict[str, Any]:
        """What only the store knows; where it fails, as it was last heard: then the rest is needed most."""
        if self._dispatcher.store_failing_since_s is None:
            with contextlib.suppress(*STORE_FAILURES):  # the check of the store tells of it
                self._counted = {
                    "runs": await self._store.status_counts(),
                    "dead_letters": await self._store.dead_letter_counts(),
                    "callbacks": await self._store.callback_counts(),
                    "approvals": await self._store.approval_counts(),
                    "counted_at_ms": self._world.wall_ms(),
                }
        return self._counted

    # -- nodes and commands

    async def serve_nodes(self, request: Request, caller: Identity, _: str) -> Response:
        found = [self._node(node_id) for node_id in sorted(self._control.nodes.nodes)]
        return json_response({"nodes": found})

    async def serve_node(self, request: Request, caller: Identity, node_id: str) -> Response:
        if node_id not in self._control.nodes.nodes:
            raise Refused(Reason.NODE_UNKNOWN, node_id)
        return json_response(self._node(node_id))

    def _node(self, node_id: str) -> dict[str, Any]:
        """A node with its clients. "Draining" is what goes on; "drained" is how it stands, until something comes."""
        found, clients = self._control.describe(node_id), self._node_clients.node_clients(node_id)
        queue = found["queue"]
        is_drained = (
            found["draining"] and not clients["live"] and not queue["running"] and not queue["waiting"]
        )
        return {**found, "clients": clients, "drained": is_drained}

    async def serve_node_drain(self, request: Request, caller: Identity, node_id: str) -> Response:
        deadline_s = _deadline_s(request)
        event = event_of(
            self._world, request, caller, "node_drain", scope=node_id,
            detail={} if deadline_s is None else {"deadline_s": deadline_s},
        )  # fmt: skip
        await self._control.override(node_id, event, draining=True)
        self._node_clients.drain_node(node_id, deadline_s)
        return await self.serve_node(request, caller, node_id)

    async def serve_node_undrain(self, request: Request, caller: Identity, node_id: str) -> Response:
        event = event_of(self._world, request, caller, "node_undrain", scope=node_id)
        await self._control.override(node_id, event, draining=False)
        self._node_clients.undrain_node(node_id)
        return await self.serve_node(request, caller, node_id)

    async def serve_node_pause(self, request: Request, caller: Identity, node_id: str) -> Response:
        event = event_of(self._world, request, caller, "node_pause", scope=node_id)
        await self._control.override(node_id, event, paused=True)
        return await self.serve_node(request, caller, node_id)

    async def serve_node_resume(self, request: Request, caller: Identity, node_id: str) -> Response:
        event = event_of(self._world, request, caller, "node_resume", scope=node_id)
        await self._control.override(node_id, event, paused=False)
        return await self.serve_node(request, caller, node_id)

    async def serve_node_resync(self, request: Request, caller: Identity, node_id: str) -> Response:
        event = event_of(self._world, request, caller, "node_resync", scope=node_id)
        await self._control.resync(node_id, event)
        return json_response(self._node(node_id), 202)

    async def serve_node_restart_bridge(self, request: Request, caller: Identity, node_id: str) -> Response:
        event = event_of(self._world, request, caller, "node_restart_bridge", scope=node_id)
        await self._control.restart_bridge(node_id, event)
        return json_response(self._node(node_id), 202)

    async def serve_messaging_restart(self, request: Request, caller: Identity, proxy_id: str) -> Response:
        own = self._control.settings.proxy_id
        if proxy_id != own:  # of several behind one address, the one that is meant
            raise Refused(Reason.NODE_UNKNOWN, f"this is proxy {own}, not {proxy_id}")
        event = event_of(self._world, request, caller, "messaging_restart", scope=own)
        ended = await self._control.restart_messaging(event)
        return json_response({"proxy": own, **ended})

    async def serve_node_revoke(self, request: Request, caller: Identity, node_id: str) -> Response:
        if not self._control.keys.listed(Role.NODE, node_id):  # it need not have linked to this process
            raise Refused(Reason.NODE_UNKNOWN, node_id)
        event = event_of(self._world, request, caller, "node_revoke", scope=node_id)
        epoch = await self._control.revoke(node_id, event)
        return json_response({"id": node_id, "key_epoch": epoch})

    async def serve_clients(self, request: Request, caller: Identity, _: str) -> Response:
        return json_response({"clients": self._control.clients.describe()})

    async def serve_client_revoke(self, request: Request, caller: Identity, client_id: str) -> Response:
        if not self._control.keys.listed(Role.CLIENT, client_id):
            raise Refused(Reason.CLIENT_UNKNOWN, client_id)
        event = event_of(self._world, request, caller, "client_revoke", scope=client_id)
        epoch = await self._control.revoke_client(client_id, event)
        return json_response({"id": client_id, "key_epoch": epoch})

    async def serve_commands(self, request: Request, caller: Identity, _: str) -> Response:
        registry = self._control.registry.registry
        position = registry.position
        commands = []
        for name in sorted(registry.items):
            item = registry.items[name]
            each = item.descriptor
            commands.append({
                "name": name, "version": each.version, "aliases": each.aliases, "description": each.description,
                "usage": each.usage, "effect": each.effect, "timeout_ms": each.timeout_ms, "flags": each.flags,
                "permission": each.permission, "runs_on": each.runs_on, "digest": item.digest.hex(),
                "announced_by": self._control.registry.sources.get(name, ""),
                "nodes": self._dispatcher.fleet.offering(name),
                "parameters": [
                    {"name": one.name, "type": one.type, "required": one.required, "nullable": one.nullable,
                     "choices": one.choices_json, "default": one.default_json, "secret": one.secret}
                    for one in each.parameters
                ],
            })  # fmt: skip
        return json_response({
            "fleet_id": position.fleet_id, "epoch": position.epoch, "generation": position.generation,
            "digest": position.digest.hex(), "commands": commands,
        })  # fmt: skip

    async def serve_command_remove(self, request: Request, caller: Identity, name: str) -> Response:
        event = event_of(self._world, request, caller, "command_removed", scope=name)
        generation = await self._control.remove(name, event)
        self._observer.log.info("command_removed", command=name, by=caller.principal, generation=generation)
        return json_response({"removed": name, "generation": generation})

    async def serve_sessions(self, request: Request, caller: Identity, _: str) -> Response:
        return await self._apis.sessions.list(request.params())

    async def serve_session(self, request: Request, caller: Identity, session_id: str) -> Response:
        return await self._apis.sessions.one(session_id)

    async def serve_session_transfer(self, request: Request, caller: Identity, session_id: str) -> Response:
        return await self._apis.sessions.transfer(request, caller, session_id)

    # -- runs

    async def serve_dispatch(
        self, request: Request, caller: Identity, _: str, nonce: Nonce | None = None
    ) -> Response:
        return await self._apis.dispatch.one(request, caller, nonce)

    async def serve_dispatch_batch(
        self, request: Request, caller: Identity, _: str, nonce: Nonce | None = None
    ) -> Response:
        return await self._apis.dispatch.batch(request, caller, nonce)

    async def serve_runs(self, request: Request, caller: Identity, _: str) -> Response:
        return await self._apis.dispatch.runs(request.params(), caller)

    async def serve_run(self, request: Request, caller: Identity, run_id: str) -> Response:
        return await self._apis.dispatch.run(run_id, caller)

    async def serve_run_retry(self, request: Request, caller: Identity, run_id: str) -> Response:
        return await self._apis.dispatch.retry(request, run_id, caller)

    async def serve_run_cancel(self, request: Request, caller: Identity, run_id: str) -> Response:
        return await self._apis.dispatch.cancel(request, run_id, caller)

    # -- dead letters, controls, callbacks

    async def serve_dlq(self, request: Request, caller: Identity, _: str) -> Response:
        return await self._apis.dead_letters.list(request.params(), caller)

    async def serve_dlq_record(self, request: Request, caller: Identity, record_id: str) -> Response:
        return await self._apis.dead_letters.one(record_id, caller)

    async def serve_dlq_replay(self, request: Request, caller: Identity, _: str) -> Response:
        return await self._apis.dead_letters.replay(request, caller)

    async def serve_dlq_worker(self, request: Request, caller: Identity, _: str) -> Response:
        return await self._apis.dead_letters.worker()

    async def serve_audit(self, request: Request, caller: Identity, _: str) -> Response:
        return await self._apis.controls.audit(request.params(), caller)

    async def serve_audit_export(self, request: Request, caller: Identity, _: str) -> Response:
        return await self._apis.controls.audit_export(request.params(), caller)

    async def serve_budgets(self, request: Request, caller: Identity, _: str) -> Response:
        return await self._apis.controls.budgets(caller)

    async def serve_budgets_save(self, request: Request, caller: Identity, _: str) -> Response:
        return await self._apis.controls.save_budget(request, caller)

    async def serve_agents(self, request: Request, caller: Identity, _: str) -> Response:
        return await self._apis.controls.agents(caller)

    async def serve_agents_save(self, request: Request, caller: Identity, _: str) -> Response:
        return await self._apis.controls.save_agents(request, caller)

    async def serve_rate_limits_clear(self, request: Request, caller: Identity, _: str) -> Response:
        return await self._apis.controls.clear_rate_limits(request, caller)

    async def serve_replay_guards_prune(self, request: Request, caller: Identity, _: str) -> Response:
        return await self._apis.controls.prune_guards(request, caller)

    async def serve_approvals(self, request: Request, caller: Identity, _: str) -> Response:
        return await self._apis.approvals.list(request.params(), caller)

    async def serve_approval(self, request: Request, caller: Identity, approval_id: str) -> Response:
        return await self._apis.approvals.one(approval_id, caller)

    async def serve_approval_approve(self, request: Request, caller: Identity, approval_id: str) -> Response:
        return await self._apis.approvals.vote(request, approval_id, caller, "approve")

    async def serve_approval_reject(self, request: Request, caller: Identity, approval_id: str) -> Response:
        return await self._apis.approvals.vote(request, approval_id, caller, "reject")

    async def serve_operator_keys(self, request: Request, caller: Identity, _: str) -> Response:
        return await self._apis.keys.list(caller)

    async def serve_operator_key_create(self, request: Request, caller: Identity, _: str) -> Response:
        return await self._apis.keys.create(request, caller)

    async def serve_operator_key_revoke(self, request: Request, caller: Identity, key_id: str) -> Response:
        return await self._apis.keys.revoke(request, caller, key_id)

    async def serve_backend_pins(self, request: Request, caller: Identity, _: str) -> Response:
        return await self._pins.list()

    async def serve_backend_pin_accept(self, request: Request, caller: Identity, backend_id: str) -> Response:
        return await self._pins.accept(request, caller, backend_id)

    async def serve_reload(self, request: Request, caller: Identity, _: str) -> Response:
        await self._store.audit(event_of(self._world, request, caller, "configuration_reload_asked"))
        found = self._reload()
        if found.problems:
            raise Refused(Reason.CONFIGURATION_REFUSED, "; ".join(found.problems)[:4_000])
        return json_response({"applied": list(found.applied), "waiting": list(found.waiting)})

    async def serve_secrets(self, request: Request, caller: Identity, _: str) -> Response:
        return await self._apis.secrets.list(request.params())

    async def serve_secret_release(self, request: Request, caller: Identity, name: str) -> Response:
        return await self._apis.secrets.release(request, caller, name)

    async def serve_callback(self, request: Request, caller: Identity, run_id: str) -> Response:
        return await self._apis.callbacks.receive(request, run_id)

    async def serve_callbacks_replay(self, request: Request, caller: Identity, _: str) -> Response:
        return await self._apis.callbacks.replay(request, caller)


def _ms(began_s: float) -> float:
    return round((trio.current_time() - began_s) * 1000, 3)


def _prefers_html(accept: str) -> bool:
    """A browser asks for text/html first; curl and scripts do not."""
    quality = {"text/html": 0.0, "application/json": 0.0}
    for part in accept.split(","):
        kind, *parameters = (each.strip() for each in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    weight = float(parameter[2:])
                except ValueError:
                    weight = 0.0
        if kind in quality:
            quality[kind] = weight
    return quality["text/html"] > quality["application/json"]


def _deadline_s(request: Request) -> float | None:
    """How long the clients of a node may stay; None: as long as they want. Raises Refused."""
    text = request.params().get("deadline_s", "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 5 or int(text) > DRAIN_DEADLINE_S_MAX:
        raise Refused(Reason.QUERY_INVALID, f"deadline_s must be a number from 0 to {DRAIN_DEADLINE_S_MAX}")
    return float(text)
