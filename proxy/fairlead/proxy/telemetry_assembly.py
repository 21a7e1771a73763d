"""Builds what watches the proxy, and joins it to the parts that it watches: they know nothing of it.

Beside `assembly`. What happens in dispatch, callbacks and on the ops port is handed to the samples; alerts are told
through a client of their own, whose one destination is the operator's and may lie inside.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from fairlead.protocol.reasons import Reason
from fairlead.proxy.config import ProxyConfig
from fairlead.proxy.control.control import Control
from fairlead.proxy.dispatch.callback_ladder import Answered, Unanswered, next_step, read_retry_after
from fairlead.proxy.dispatch.callbacks import Callbacks
from fairlead.proxy.dispatch.dispatcher import Dispatcher
from fairlead.proxy.dispatch.replayer import Replayer
from fairlead.proxy.store.interface import Store
from fairlead.proxy.telemetry.alert_rules import Terms
from fairlead.proxy.telemetry.alerts import Alerts, AlertSettings, Step
from fairlead.proxy.telemetry.gathering import Gathering
from fairlead.proxy.telemetry.readings import DEAD_LETTERS, Facts
from fairlead.proxy.telemetry.recorder import Recorder, RecorderSettings
from fairlead.proxy.telemetry.samples import Samples
from fairlead.proxy.telemetry.slo import Objectives
from fairlead.runtime.addresses import Destination, read_url
from fairlead.runtime.observer import Observer
from fairlead.runtime.outbound import Outbound
from fairlead.runtime.world import World

STORE_QUEUE_MAX: Final = 2_000  # transactions that wait; so many are more than any writer keeps up with

Resources = Callable[[], Mapping[str, float]]


@dataclass(slots=True)
class Telemetry:
    """What watches. `checks` is set once there is health to ask."""

    samples: Samples
    recorder: Recorder
    alerts: Alerts
    objectives: Objectives
    checks: Callable[[], Mapping[str, tuple[str, str]]]

    async def load(self) -> None:
        """What the process before this one knew. Raises what the store raises."""
        await self.recorder.load()
        await self.alerts.load()

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.recorder.run)
            nursery.start_soon(self.alerts.run)

    def paging(self) -> list[str]:
        """Alerts that page somebody now."""
        return [str(each["name"]) for each in self.alerts.firing() if each["severity"] == "page"]

    def watch(self, report: Callable[[], Mapping[str, Any]]) -> None:
        """Go by these checks from now on. `report`: as /health answers."""
        self.checks = lambda: {
            name: (each["state"], each["detail"]) for name, each in report()["checks"].items()
        }


def watch(
    config: ProxyConfig,
    world: World,
    observer: Observer,
    store: Store,
    owner: str,
    control: Callable[[], Control],
    dispatcher: Dispatcher,
    replayer: Replayer,
    callbacks: Callbacks,
    resources: Resources | None = None,
) -> Telemetry:
    """Everything that watches, joined to what it watches. `resources`: of the machine, where there is one."""
    samples = Samples(world.wall_ms)
    objectives = objectives_of(config)
    made: dict[str, Telemetry] = {}

    def facts() -> Facts:
        gathering.counters()
        outbox = dispatcher.outbox
        used = {
            "outbox": outbox.waiting_total / config.dispatch.pending_max,
            "the store's queue": min(1.0, store.waiting() / STORE_QUEUE_MAX),
            **(resources() if resources is not None else {}),
        }
        return Facts(
            checks=made["telemetry"].checks(), oldest_due_s=outbox.oldest_due_ms() / 1000,
            replay_failing=replayer.failing, resources=used,
        )  # fmt: skip

    def online() -> float:
        return float(len(control().links))

    def dead_letters() -> float | None:
        return made["telemetry"].alerts.counts[0]

    gathering = Gathering(
        observer, samples,
        {
            "nodes_linked": online,
            "runs_pending": lambda: float(dispatcher.outbox.due_total),
            "runs_outstanding": lambda: float(dispatcher.fleet.outstanding()),
            DEAD_LETTERS: dead_letters,
        },
    )  # fmt: skip

    def each_turn() -> None:
        gathering.counters()
        gathering.numbers()

    recorder = Recorder(
        world, observer, store, samples, owner,
        RecorderSettings(config.slo.persistence_enabled, config.slo.max_persisted_samples),
        shared=store.shared, each_turn=each_turn,
    )  # fmt: skip
    settings = alert_settings(config, objectives)
    outbound = Outbound(world, _hosts(settings.url))
    alerts = Alerts(world, observer, store, samples, owner, settings, facts, outbound.post, ladder)
    made["telemetry"] = Telemetry(samples, recorder, alerts, objectives, dict)

    def ended(command: str, tenant: str, version: str, ok: bool, seconds: float, is_replay: bool) -> None:
        samples.ended(command, tenant, version, ok=ok, seconds=seconds, is_replay=is_replay)

    dispatcher.settler.on_end = ended
    dispatcher.outbox.on_lag = samples.lag
    callbacks.on_outcome = samples.callback
    return made["telemetry"]


def objectives_of(config: ProxyConfig) -> Objectives:
    slo = config.slo
    return Objectives(
        slo.max_error_rate, slo.max_p95_ms, slo.alert_min_samples, slo.availability_objective, slo.callback_objective,
        slo.completion_objective, slo.latency_p95_ms,
    )  # fmt: skip


def alert_settings(config: ProxyConfig, objectives: Objectives) -> AlertSettings:
    given, told = config.alerts, config.reliability
    return AlertSettings(
        told.alerts_enabled, told.alerts_console, told.alerts_webhook_url if told.alerts_enabled else "",
        told.alerts_webhook_timeout_ms, told.alerts_secret, told.alerts_webhook_format, given.interval_ms / 1000,
        {"proxy": config.messaging.control_sender_id, "environment": config.environment},
        Terms(objectives, given.max_denial_rate, given.max_tenant_mismatch_rate, config.slo.alert_cooldown_ms,
              given.repeat_ms, given.heartbeat_ms),
    )  # fmt: skip


def ladder(attempts: int, outcome: tuple[int, str | None] | str, now_ms: int, unit: float) -> Step:
    """The rungs that callbacks climb."""
    if isinstance(outcome, str):
        step = next_step(attempts, Unanswered(Reason.CALLBACK_NOT_DELIVERED, outcome), now_ms, unit)
    else:
        status, retry_after = outcome
        step = next_step(attempts, Answered(status, read_retry_after(retry_after, now_ms)), now_ms, unit)
    return step.state, step.next_at_ms, step.detail


def machine_resources(folder: Path) -> Resources:
    """The shares of this machine's disk (where `folder` is) and of this process's open files that are in use."""

    def shares() -> Mapping[str, float]:
        found: dict[str, float] = {}
        try:
            disk = os.statvfs(folder)
            found["disk"] = round(1 - disk.f_bavail / disk.f_blocks, 4) if disk.f_blocks else 0.0
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            found["files"] = round(len(os.listdir("/proc/self/fd")) / soft, 4)
        except OSError:  # what cannot be read is not known
            return found
        return found

    return shares


def _hosts(url: str) -> list[str]:
    destination = read_url(url) if url else ""
    return [destination.host] if isinstance(destination, Destination) else []
