"""Joins what steers dispatch: the kill switch, the rollout of its hardening, feature flags, rollouts.

With `app` and `assembly` the composition root; of what is joined here nothing knows the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import trio

from fairlead.protocol.buckets import is_within
from fairlead.proxy.config import ProxyConfig
from fairlead.proxy.control.control import Control
from fairlead.proxy.dispatch.dispatcher import Dispatcher
from fairlead.proxy.dispatch.fleet import VersionShare
from fairlead.proxy.edge.listen import Edge
from fairlead.proxy.rollout.controls import RolloutControls
from fairlead.proxy.rollout.dispatch_rollout import DispatchRollout, RolloutMode
from fairlead.proxy.rollout.engine import Engine
from fairlead.proxy.rollout.flags import FeatureFlags
from fairlead.proxy.rollout.halting import Halting
from fairlead.proxy.rollout.plan import Plan
from fairlead.proxy.rollout.record import Rollout
from fairlead.proxy.store.interface import Store
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World


class Steering:
    """What steers, joined. `load` before anything is served; `run` beside everything."""

    def __init__(
        self,
        config: ProxyConfig,
        world: World,
        observer: Observer,
        store: Store,
        control: Control,
        dispatcher: Dispatcher,
        controls: RolloutControls,
        flags: FeatureFlags,
        variants: Variants,
        owner: str,
    ) -> None:
        self._store, self._dispatcher, self._variants = store, dispatcher, variants
        self._report: Callable[[], Mapping[str, Any]] = dict
        self._firing: Callable[[], Iterable[str]] = tuple
        self.controls, self.flags = controls, flags
        self.halting = Halting(
            world, observer, store, world.open_whole(kill_switch_file(config)), control.halt, dispatcher.halt,
            configured=config.dispatch.kill_switch, principal=config.messaging.control_sender_id,
        )  # fmt: skip

        self.engine = Engine(
            world, observer, store, owner,
            {"health": self._ill, "alerts": self._alarmed, "nodes": self._without_nodes}, self._apply,
            lambda: self.halting.switch.is_on, config.messaging.control_sender_id,
        )  # fmt: skip
        dispatcher.settler.on_attempt = self.engine.ended

    async def load(self) -> None:
        """Raises what the store raises."""
        await self.halting.load()
        await self.controls.refresh(self._store)
        await self.engine.load()

    def watch(self, report: Callable[[], Mapping[str, Any]], firing: Callable[[], Iterable[str]]) -> None:
        """What the gates of rollouts look at: health as /health answers, and pages that fire."""
        self._report, self._firing = report, firing

    def lead(self, edge: Edge) -> None:
        """Have clients follow the shares of versions too."""
        edge.shares = lambda route: self._shares(edge)

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.halting.run)
            nursery.start_soon(self.engine.run)

    async def catch_up(self) -> None:
        """Another proxy changed something of it, or may have. Raises what the store raises."""
        await self.halting.refresh()
        await self.controls.refresh(self._store)
        await self._dispatcher.refresh_controls()
        await self.engine.refresh()

    def configure(self, config: ProxyConfig) -> None:
        """The configuration was read again."""
        self.controls.configure(dispatch_rollout(config))
        self.halting.configure(config.dispatch.kill_switch)

    # -- what rollouts steer

    def _apply(self, newest: Iterable[Rollout]) -> None:
        fleet, version, staged = self._dispatcher.fleet, None, None
        variants: dict[str, tuple[str, int, bytes]] = {}
        for each in newest:
            plan, percent = each.plan, each.percent
            if plan.kind == "node_version":
                version = plan
                known = fleet.share
                wanted = (plan.version, percent, plan.control)
                if known is None or (known.version, known.percent, known.control) != wanted:
                    fleet.share = VersionShare(*wanted)  # what was given before says nothing of another share
            elif plan.kind == "command":
                variants[plan.command] = (plan.candidate, percent, f"rollout:{each.stored.id}".encode())
            elif not self._is_overruled(each):
                staged = percent
        if version is None:
            fleet.share = None
        self._variants.held = variants
        self.controls.stage(staged)
        self._dispatcher.outbox.changed()

    def _is_overruled(self, each: Rollout) -> bool:
        """An operator set the hardening by hand after this rollout had ended."""
        said = self.controls.stated
        return said is not None and not each.is_open and said.changed_at_ms > each.stored.changed_at_ms

    def _shares(self, edge: Edge) -> Mapping[str, float] | None:
        share = self._dispatcher.fleet.share
        if share is None:
            return None
        labels = self._dispatcher.fleet.labels
        new = [each.id for each in edge.config.backends if labels(each.node).get("version") == share.version]
        return {backend: share.percent / len(new) for backend in new} or None

    # -- gates

    def _ill(self, plan: Plan) -> str:
        report = self._report()
        if report.get("status") != "FAILED":
            return ""
        failed = [name for name, each in report.get("checks", {}).items() if each.get("state") == "fail"]
        return f"health is FAILED: {', '.join(failed)}"

    def _alarmed(self, plan: Plan) -> str:
        return ", ".join(sorted(self._firing()))

    def _without_nodes(self, plan: Plan) -> str:
        if plan.kind != "node_version":
            return ""
        slots = self._dispatcher.fleet.slots.values()
        there = any(each.labels.get("version") == plan.version and each.takes_new for each in slots)
        return "" if there else f"no node of version {plan.version} is linked and takes runs"


class Variants:
    """What executes in the place of a command, where a rollout gives a share of it to another one."""

    def __init__(self) -> None:
        self.held: Mapping[str, tuple[str, int, bytes]] = {}

    def __call__(self, command: str, tenant: str) -> str:
        if not self.held or (found := self.held.get(command)) is None:
            return command
        candidate, percent, salt = found
        return candidate if is_within(salt, tenant, percent) else command


def dispatch_rollout(config: ProxyConfig) -> DispatchRollout:
    """For whom the configuration enforces the hardening of dispatch."""
    dispatch = config.dispatch
    return DispatchRollout(
        RolloutMode(dispatch.rollout_mode), dispatch.canary_percent,
        frozenset(dispatch.canary_allowlist), frozenset(dispatch.canary_denylist),
    )  # fmt: skip


def kill_switch_file(config: ProxyConfig) -> Path:
    """Where this proxy keeps what was said of the switch: as configured, else beside its own database."""
    if config.dispatch.kill_switch_file:
        return Path(config.dispatch.kill_switch_file)
    if config.store.is_postgres:
        return Path("data") / f"kill-switch-{config.messaging.control_sender_id}.jsonl"
    return Path(config.store.path).with_name("kill-switch.jsonl")
