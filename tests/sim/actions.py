"""What each kind of step does to the cluster. One method for each row of `workload.STEPS`.

Nothing here judges: what callers asked and heard goes into the record, and oracles look at that. A step whose victim is
not there does nothing, so that any step can be left out of a failing seed.
"""

from __future__ import annotations

import json
from typing import Any, Final

import trio
from tests.sim.clients import Clients
from tests.sim.oracles_trust import action_of
from tests.sim.plots import Plots
from tests.sim.record import Record, Told
from tests.sim.recorder import Recorder
from tests.sim.trust import Trust
from tests.sim.workload import PLOTS, TRUST, Arguments, Step
from tests.sim.workload_clients import CLIENT_PLOTS, CLIENT_STEPS

from fairlead.client import RunFailed
from fairlead.client.book import Submit
from fairlead.protocol.keys import fingerprint
from fairlead.protocol.reasons import Reason, Refused
from fairlead.testing import SimCluster

LOST: Final = (OSError, trio.BrokenResourceError, trio.TooSlowError, trio.ClosedResourceError)
PATIENCE_S: Final = 12.0
ROTATES_FOR_S: Final = 90.0
RELOADS_BELOW_S: Final = 0.5
PREVIOUS_FOR_MS: Final = 3_600_000
LOOKS_FOR_A_CLIENT_S: Final = 0.25
ABOUT_A_RUN: Final = ("pick",)
# Answers after which nobody can know whether it was accepted.
NOBODY_KNOWS: Final = (Reason.STORE_UNAVAILABLE, Reason.LINK_CLOSED)


class Actions:
    """Applications, operators and an attacker."""

    def __init__(self, cluster: SimCluster, record: Record, recorder: Recorder) -> None:
        self.cluster, self.record, self.recorder = cluster, record, recorder
        self.setup = record.setup
        self._again_later: list[Any] = []  # what operators undo when everything is over
        self._replays = 0
        self._busy: set[str] = set()
        self.plots, self.trust = Plots(self), Trust(self)
        self.clients = None if record.clients is None else Clients(self, record.clients)

    async def perform(self, step: Step, number: int) -> None:
        """Do it. What cannot be reached is no failure."""
        self.cluster.trace.add(f"> {step.kind} " + json.dumps(step.args))
        self.record.count(f"step {step.kind}")
        args = {**step.args, "token": f"s{number}"}
        with trio.move_on_after(120):
            try:
                if step.kind in PLOTS:
                    await self.plots.perform(getattr(self.plots, step.kind), args)
                elif step.kind in CLIENT_STEPS or step.kind in CLIENT_PLOTS:
                    if self.clients is not None:
                        await self.clients.perform(step.kind, args)
                else:
                    by = self.trust if step.kind in TRUST else self
                    await getattr(by, step.kind)(args)
            except LOST as error:
                self.cluster.trace.add(f"{step.kind} s{number}: {type(error).__name__}: {error}")

    async def undo(self) -> None:
        """Everything is over: operators come back to what they paused, unless they forget."""
        record = self.record
        self.plots.end()
        self._send_away("impostor")
        if record.kill_switch_since is not None:
            await self._kill_switch(False)
        if self.setup.forgetful:
            return
        for undo in self._again_later:
            await undo()

    # -- small things

    def proxy(self, number: int = 0) -> str:
        """A proxy that runs, else any."""
        names = self.cluster.names("proxy", running=True) or self.cluster.names("proxy")
        return names[number % len(names)]

    def node(self, number: int) -> str:
        names = self.cluster.options.node_names
        return names[number % len(names)]

    def target(self, args: Arguments) -> str:
        node = self.node(args["number"])
        return {
            "any": "any", "node": node, "all": "all", "is": f"name={node}", "is not": f"name!={node}",
            "nowhere": "node-99",
        }[args["target"]]  # fmt: skip

    def arguments(self, args: Arguments, token: str) -> Arguments:
        return {
            "token": token, "mode": args["mode"], "ms": args["ms"], "tail_ms": args["tail_ms"], "times": args["times"],
        }  # fmt: skip

    def run_of(self, pick: int, *statuses: str, roots: bool = False) -> Any:
        self.record.drain()
        runs = [
            each for each in self.record.runs.values()
            if (not statuses or each.status in statuses) and not (roots and each.is_parent)
        ]  # fmt: skip
        return runs[pick % len(runs)] if runs else None

    async def ops(
        self, method: str, path: str, body: Any = None, *, at: str = "", **more: Any
    ) -> tuple[int, Any]:
        status, answer = await self.cluster.ops(
            method, path, body, at=at or self.proxy(), within_s=PATIENCE_S, **more
        )
        audited = action_of(method, path)
        if audited and 200 <= status < 300:
            self.record.answered[audited] += 1
        return status, answer

    async def _insist(self, method: str, path: str, body: Any = None, *, tries: int = 20) -> None:
        """As an operator does who wants it done."""
        for number in range(tries):
            try:
                status, _ = await self.ops(method, path, body, at=self.proxy(number))
                if status < 500:
                    return
            except LOST:
                pass
            await trio.sleep(0.5)

    # -- HTTP

    def submission(self, args: Arguments, token: str) -> Arguments:
        body: Arguments = {
            "command": args["command"], "args": self.arguments(args, token), "target": self.target(args),
            "tenant": args["tenant"],
        }  # fmt: skip
        return body | {
            key: args[key] for key in ("ordering_key", "priority", "delay_ms", "deadline_ms") if key in args
        }

    async def http(self, args: Arguments) -> None:
        token = args["token"]
        body = self.submission(args, token)
        headers = {"idempotency-key": f"key-{token}"} if args["keyed"] else {}
        runs: set[str] = set()
        answered = 0
        for number in range(8 if args["keyed"] else 1):
            try:
                status, answer = await self.ops(
                    "POST",
                    "/api/dispatch",
                    body,
                    at=self.proxy(number),
                    wait_s=args["wait_s"],
                    headers=headers,
                )
            except LOST:
                await trio.sleep(0.3)
                continue
            if status in (200, 202):
                runs.add(answer["run_id"])
                self.record.was_accepted(answer["run_id"], token)
                if status == 200:
                    self._told(answer, "http")
                answered += 1
                if not args["again"] or answered > 1:
                    break
            elif status != 503:
                if not runs:  # said again after no answer: another proxy may be at the first one still
                    self.record.was_refused(token, f"{'again: ' if number else ''}{answer}")
                break
            elif not args["keyed"]:
                break
            await trio.sleep(0.3)
        if len(runs) > 1:
            self.record.violated("one key, one run", f"{token} was answered with {sorted(runs)}")
        if args["reused"] and runs:
            other = {**body, "priority": 9 if body.get("priority") != 9 else 8}
            status, answer = await self.ops("POST", "/api/dispatch", other, headers=headers)
            if status in (200, 202):
                self.record.violated("one key, one run", f"{token} was taken for another request: {answer}")

    def _told(self, answer: Arguments, by: str) -> None:
        self.record.was_told(
            Told(answer["run_id"], answer["status"], answer.get("reason", ""), answer.get("result"), by)
        )

    async def http_batch(self, args: Arguments) -> None:
        items = [self.submission(each, f"{args['token']}.{n}") for n, each in enumerate(args["items"])]
        status, answer = await self.ops("POST", "/api/dispatch/batch", items)
        if status not in (200, 202):
            if status != 503:
                for n in range(len(items)):
                    self.record.was_refused(f"{args['token']}.{n}", str(answer))
            return
        for n, item in enumerate(answer["items"]):
            if "run_id" in item:
                self.record.was_accepted(item["run_id"], f"{args['token']}.{n}")
            elif item["reason"] not in NOBODY_KNOWS:
                self.record.was_refused(f"{args['token']}.{n}", item["reason"])

    # -- client links

    def _client(self) -> tuple[Any, Any]:
        process = self.cluster.processes["app"]
        return (process.life, process.root) if process.ready else (None, None)

    def _options(self, args: Arguments) -> Arguments:
        found = {
            key: args[key] for key in ("ordering_key", "priority", "delay_ms", "deadline_ms") if key in args
        }
        return {**found, "target": self.target(args)}

    async def client(self, args: Arguments) -> None:
        life, client = self._client()
        if client is None:
            return
        token = args["token"]
        with trio.move_on_after(60):
            try:
                run = await client.submit(args["command"], self.arguments(args, token), **self._options(args))
            except Refused as refused:
                self._refused(token, refused)
                return
            self.record.was_accepted(run.run_id, token)
            self.record.open_client_runs.append((life, run))
            await self._wait(run)

    async def _wait(self, run: Any) -> None:
        try:
            value = await run.wait(90)
        except RunFailed as failed:
            self.record.was_told(Told(run.run_id, failed.status, failed.reason.value, None, "client"))
        except Refused as refused:
            if refused.reason is not Reason.LINK_CLOSED:
                self.record.violated("an accepted run is not refused", f"{run.run_id}: {refused}")
        else:
            self.record.was_told(Told(run.run_id, "COMPLETED", "", value, "client"))

    def _refused(self, token: str, refused: Refused) -> None:
        if refused.reason is not Reason.LINK_CLOSED:
            self.record.was_refused(token, f"client: {refused}")

    async def client_many(self, args: Arguments) -> None:
        life, client = self._client()
        if client is None:
            return
        items = [
            Submit(each["command"], self.arguments(each, f"{args['token']}.{n}"), **self._options(each))
            for n, each in enumerate(args["items"])
        ]
        with trio.move_on_after(60):
            for n, run in enumerate(await client.submit_many(items)):
                token = f"{args['token']}.{n}"
                if isinstance(run, Refused):
                    self._refused(token, run)
                else:
                    self.record.was_accepted(run.run_id, token)
                    self.record.open_client_runs.append((life, run))

    async def client_gives_up(self, args: Arguments) -> None:
        _, client = self._client()
        if client is not None:
            with trio.move_on_after(args["after_s"]):
                try:
                    await client.call(
                        args["command"], self.arguments(args, args["token"]), **self._options(args)
                    )
                except (RunFailed, Refused):
                    pass  # whatever came of it, this caller wanted to go

    async def cancel_client(self, args: Arguments) -> None:
        life, _ = self._client()
        runs = [run for of, run in self.record.open_client_runs if of is life and run.ended is None]
        if runs:
            await runs[args["pick"] % len(runs)].cancel()

    async def restart_client(self, args: Arguments) -> None:
        self.cluster.kill("app")
        self.cluster.start_later("app", args["for_s"])

    async def listen(self) -> None:
        """Takes every end that the application's client streams, in each of its lives."""
        life = None
        while True:
            process = self.cluster.processes["app"]
            if process.life is life or not process.ready:
                await trio.sleep(LOOKS_FOR_A_CLIENT_S)
                continue
            life = process.life
            self.cluster.beside(self._take, process.root)

    async def _take(self, client: Any) -> None:
        told: set[str] = set()
        async for ended in client.results():
            if ended.run_id in told:
                self.record.violated("each end is told once", f"{ended.run_id} was streamed twice")
            told.add(ended.run_id)
            value = ended.value() if ended.completed else None
            reason = ended.reason.value if ended.reason else ""
            self.record.was_told(Told(ended.run_id, ended.status, reason, value, "stream"))

    # -- runs

    async def cancel(self, args: Arguments) -> None:
        run = self.run_of(args["pick"])
        if run is not None:
            await self.ops("POST", f"/api/runs/{run.run_id}/cancel")

    async def retry(self, args: Arguments) -> None:
        run = self.run_of(args["pick"], "FAILED") or self.run_of(args["pick"])
        if run is not None:
            self.asked(run.root_id)
            await self.ops("POST", f"/api/runs/{run.run_id}/retry")

    def asked(self, root_id: str) -> None:
        self.record.asked_again[root_id] = self.record.asked_again.get(root_id, 0) + 1

    # -- dead letters

    async def replay_one(self, args: Arguments) -> None:
        run = self.run_of(args["pick"], "FAILED", "EXPIRED", roots=True) or self.run_of(
            args["pick"], roots=True
        )
        if run is not None:
            self.asked(run.root_id)
            await self.replay({"id": f"dlq-{run.root_id}", "force": args["force"]})

    async def replay_twice(self, args: Arguments) -> None:
        """Under one key: it happens once."""
        run = self.run_of(args["pick"], "FAILED", "EXPIRED", roots=True)
        if run is None:
            return
        self.asked(run.root_id)
        self._replays += 1
        body = {
            "id": f"dlq-{run.root_id}",
            "force": args["force"],
            "idempotency_key": f"replay-{self._replays}",
        }
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._quietly, body, 0)
            nursery.start_soon(self._quietly, body, 1)

    async def _quietly(self, body: Arguments, number: int) -> None:
        try:
            await self.replay(body, number)
        except LOST:
            pass  # asked, and not heard

    async def replay_filter(self, args: Arguments) -> None:
        if not args["dry"]:
            self.record.asked_for_all += 1
        await self.replay({"filter": args["filter"], "force": args["force"], "dry_run": args["dry"]})

    async def replay(self, body: Arguments, number: int = 0) -> None:
        await self.ops("POST", "/api/ops/reliability/dlq/replay", body, at=self.proxy(number))

    async def budget(self, args: Arguments) -> None:
        tenant, limit = args["tenant"], args["daily_limit"]
        self.record.limits[tenant] = max(limit, self.record.limits.get(tenant, 0))
        await self.ops(
            "PUT", "/api/budgets", {"tenant": tenant, "daily_limit": limit, "monthly_limit": 1_000}
        )

    async def clear_rate_limits(self, args: Arguments) -> None:
        await self.ops("POST", "/api/controls/rate-limits/clear", {"prefix": "replay:"})

    # -- operators

    async def _for_a_while(self, for_s: float, begin: Any, end: Any) -> None:
        self._again_later.append(end)
        await begin()
        await trio.sleep(for_s)
        await end()

    async def pause_node(self, args: Arguments) -> None:
        node = self.node(args["number"])
        await self._for_a_while(
            args["for_s"], lambda: self.ops("POST", f"/api/nodes/{node}/pause"),
            lambda: self._insist("POST", f"/api/nodes/{node}/resume"),
        )  # fmt: skip

    async def drain_node(self, args: Arguments) -> None:
        node = self.node(args["number"])
        await self._for_a_while(
            args["for_s"], lambda: self.ops("POST", f"/api/nodes/{node}/drain"),
            lambda: self._insist("POST", f"/api/nodes/{node}/undrain"),
        )  # fmt: skip

    async def pause_tenant(self, args: Arguments) -> None:
        tenant = args["tenant"]

        async def begin() -> None:
            status, _ = await self.ops("PUT", "/api/controls/agents", {"tenant": tenant, "paused": True})
            if status == 200:
                self.record.paused[tenant] = self.cluster.now

        async def end() -> None:
            self.record.paused.pop(tenant, None)
            await self._insist("PUT", "/api/controls/agents", {"tenant": tenant, "paused": False})

        await self._for_a_while(args["for_s"], begin, end)

    async def drain_tenant(self, args: Arguments) -> None:
        tenant = args["tenant"]

        async def set_(draining: bool) -> None:
            await self._insist("PUT", "/api/controls/agents", {"tenant": tenant, "draining": draining})

        await self._for_a_while(args["for_s"], lambda: set_(True), lambda: set_(False))

    async def pause_everything(self, args: Arguments) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(len(self.cluster.options.node_names)):
                nursery.start_soon(
                    self._quiet_step, self.pause_node, {"number": number, "for_s": args["for_s"]}
                )
            nursery.start_soon(self._quiet_step, self.pause_tenant, {"tenant": "*", "for_s": args["for_s"]})

    async def _quiet_step(self, method: Any, args: Arguments) -> None:
        try:
            await method(args)
        except LOST:
            pass  # this one could not be reached

    async def resync(self, args: Arguments) -> None:
        for _ in range(args["times"]):
            await self.ops("POST", f"/api/nodes/{self.node(args['number'])}/resync")

    async def remove_command(self, args: Arguments) -> None:
        await self.ops("DELETE", f"/api/commands/{args['command']}")

    async def look(self, args: Arguments) -> None:
        status, answer = await self.ops("GET", args["path"])
        if status >= 500 and status != 503:
            self.record.violated("operators are answered", f"GET {args['path']}: {status} {answer}")

    async def kill_switch(self, args: Arguments) -> None:
        if "kill_switch" in self._busy:
            return
        self._busy.add("kill_switch")
        try:
            await self._kill_switch(True)
            await trio.sleep(args["for_s"])
            if self.record.kill_switch_since is not None:
                await self._kill_switch(False)
        finally:
            self._busy.discard("kill_switch")

    async def _kill_switch(self, on: bool) -> None:
        """It is a setting: each proxy is started again with it."""
        cluster = self.cluster
        if not on:
            self.record.drain()
            self.record.kill_switch_since = None
        for name in cluster.names("proxy"):
            cluster.kill(name)
            cluster.add_proxy(name, config={"dispatch": {"kill_switch": on}})
        if on:
            self.record.drain()
            self.record.kill_switch_since = cluster.now
        for name in cluster.names("proxy"):
            cluster.start_later(name, 0.1)

    async def revoke_client(self, args: Arguments) -> None:
        """Its processes hold the fleet's secret, from which the revoked key follows: they stay out."""
        await self.ops("POST", "/api/clients/app/revoke")

    # -- processes and versions

    async def rotate(self, args: Arguments) -> None:
        """As far as it goes: every proxy has to have a step before the next one; what is left is for another time."""
        if "rotate" in self._busy:
            return
        self._busy.add("rotate")
        try:
            with trio.move_on_after(ROTATES_FOR_S):
                await self._rotate(args["pause_s"])
        finally:
            self._busy.discard("rotate")

    async def _rotate(self, pause_s: float) -> None:
        cluster = self.cluster
        if cluster.secrets.step == "prepare":
            await self._everywhere(cluster.secrets.prepared(cluster.now_ms() + PREVIOUS_FOR_MS), pause_s)
        if cluster.secrets.step == "switch":
            await self._everywhere(cluster.secrets, 0)  # whoever had not heard of it
            await self._everywhere(cluster.secrets.switched(), pause_s)
        await self._everywhere(cluster.secrets, 0)
        for name in (*cluster.options.node_names, "app"):
            await self._take_over(name, pause_s)
        for name in cluster.names("proxy"):
            await self._release(name)
        self.record.count("secrets rotated")
        await self._everywhere(cluster.secrets.finished(), pause_s)

    async def _everywhere(self, secrets: Any, pause_s: float) -> None:
        """Until every proxy says that it has these secrets. One that does not run reads them when it starts, and has
        to say so too: what it left in the store is sealed under the one before."""
        self.cluster.secrets = secrets
        wanted = [
            fingerprint(bytes.fromhex(each)) if each else "" for each in (secrets.current, secrets.previous)
        ]
        for name in self.cluster.names("proxy"):
            while True:
                try:
                    status, answer = await self.ops("GET", "/api/secrets", at=name)
                except LOST:
                    status = 503
                if status == 200:
                    held = next(each for each in answer["secrets"] if each["kind"] == "proxy")
                    if [held["current"], held["previous"]] == wanted:
                        break
                    await self._take_over(name, pause_s)
                await trio.sleep(0.5)

    async def _take_over(self, name: str, pause_s: float) -> None:
        """A running process is told; some operators rather start it again, and an application always is."""
        if name != "app" and pause_s < RELOADS_BELOW_S:
            self.cluster.reload(name)
            await trio.sleep(pause_s)
        else:
            await self._roll(name, pause_s)

    async def _release(self, name: str) -> None:
        """Until a proxy says that nobody needs the previous secret any more."""
        while True:
            try:
                status, _ = await self.ops("POST", "/api/secrets/proxy/release", {}, at=name)
                if status == 200:
                    return
            except LOST:
                pass
            await trio.sleep(1)

    async def _roll(self, name: str, pause_s: float) -> None:
        """Stop in order, then start again."""
        life = self.cluster.processes[name].life
        if life is not None:
            life.stop.set()
            with trio.move_on_after(15) as waiting:
                await life.ended.wait()
            if waiting.cancelled_caught and self.cluster.processes[name].life is life:
                self.cluster.kill(name)
        self.cluster.start_later(name, 0.05)
        await trio.sleep(pause_s)

    async def new_handlers(self, args: Arguments) -> None:
        node = self.node(args["number"])
        self.record.versions[node] = args["version"]
        await self._roll(node, 0)

    async def new_handlers_everywhere(self, args: Arguments) -> None:
        for node in self.cluster.options.node_names:
            self.record.versions[node] = args["version"]
            await self._roll(node, args["pause_s"])

    async def impostor(self, args: Arguments) -> None:
        """A second process under a node's id, beside it or instead of it."""
        cluster, node = self.cluster, self.node(args["number"])
        if "impostor" in cluster.processes:
            return
        cluster.add_node("impostor", node_id=node)
        if args["instead"]:
            cluster.kill(node)
            cluster.start_later(node, args["for_s"])
        cluster.start_later("impostor", 0.0)
        await trio.sleep(args["for_s"])
        self._send_away("impostor")

    def _send_away(self, name: str) -> None:
        """For good: whoever starts it again finds nothing to do."""
        process = self.cluster.processes.get(name)
        if process is not None:
            process.body = _nothing
            self.cluster.kill(name)

    async def replay_recorded(self, args: Arguments) -> None:
        """Somebody recorded what a node or an application said to a proxy, and says it again."""
        for _ in range(args["times"]):
            await self.recorder.say_again(args["pick"])


async def _nothing(life: Any) -> None:
    life.ready.started()
    await trio.lowlevel.checkpoint()
