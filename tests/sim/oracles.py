"""What must never happen, whatever fails: one small class for each promise.

How one is added: see `oracle`. What has to do with nodes and fences is in `oracles_nodes`.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from typing import Any, ClassVar, Final

from tests.sim.oracle import Oracle
from tests.sim.oracles_clients import CLIENT_ORACLES
from tests.sim.oracles_nodes import DoneIsDone, GivenUp, NewestFence, SaidIsKept
from tests.sim.oracles_trust import Approved, AuditChain, NothingForged
from tests.sim.record import ENDED, Execution, Record, RunView, Told

from fairlead.proxy.dispatch.replay import STAGES
from fairlead.proxy.dispatch.retry import BUDGET_BURST

UNDECIDED: Final = ("hitl_timeout_fail_closed",)  # nobody said yes in time: nothing that failed


class AcceptedIsDurable(Oracle):
    name = "accepted is durable"
    guards = "Accepted means on disk."

    def on_accepted(self, run_id: str, token: str) -> None:
        if run_id not in self.record.runs:
            self.violated(f"{run_id} ({token}) was said to be accepted before it was durable")

    def at_rest(self) -> None:
        there = {row[0] for row in self.rows("SELECT run_id FROM runs")}
        for run_id, token in self.record.accepted.items():
            if run_id not in there:
                self.violated(f"{run_id} ({token}) was accepted and is not in the store")
        for run_id in self.record.runs:
            if run_id not in there:
                self.violated(f"{run_id} was durable and is not in the store")


class RefusedIsNothing(Oracle):
    SLEEPS: ClassVar[tuple[str, ...]] = ("freeze", "isolate", "partition", "slow_path", "small_window")
    name = "refused leaves nothing"
    guards = "Accepted means on disk. (And what was refused is not there.)"

    def at_rest(self) -> None:
        made: dict[str, list[str]] = {}
        for run in self.record.runs.values():
            # What somebody changed is not what was submitted, and not found where that is said again.
            if not run.parent_id and not run.retry_of and run.run_id not in self.record.forged:
                made.setdefault(run.token, []).append(run.run_id)
        # A proxy that slept while it was told finds it afterwards, when another one has long refused it.
        late = len(self.setup.options.proxy_names) > 1 and self.setup.has(*self.SLEEPS)
        for token, why in self.record.refused.items():
            if token in made and not (late and why.startswith(("client", "again"))):
                self.violated(f"{token} was refused ({why}), and is {made[token]}")
        for token, runs in made.items():
            if len(runs) > 1:
                self.violated(f"{token} was submitted once, and is {runs}")


class EndsOnce(Oracle):
    name = "ends once"
    guards = "Every accepted run ends exactly once. Terminal states are immutable."

    def on_run(self, run: RunView, before: tuple[str, int]) -> None:
        if before[0] in ENDED:
            self.violated(f"{run.run_id} was {before[0]} and is {run.status}")
        if run.fence < before[1]:
            self.violated(f"the fence of {run.run_id} went from {before[1]} to {run.fence}")
        # A node that died, or whose disk kept no result, has nothing to tell of what was not `once`.
        if (
            run.status == "EXPIRED"
            and any(each.life == self.record.lives[each.process] for each in run.executions)
            and not self.setup.has("disk_error", "disk_full")
        ):
            self.violated(f"{run.run_id} is EXPIRED, and was executed")

    def at_rest(self) -> None:
        for run_id, status, fence in self.rows("SELECT run_id, status, fence FROM runs"):
            if status not in ENDED:
                self.violated(f"{run_id} never ended: {status}, fence {fence}")


class Totals(Oracle):
    name = "counters equal events"
    guards = "Every accepted run ends exactly once. (Counted once, too.)"

    def at_rest(self) -> None:
        ended = Counter(dict(self.rows("SELECT status, count(*) FROM runs GROUP BY status")))
        counted: Counter[str] = Counter()
        for status, count in self.rows("SELECT status, sum(runs) FROM run_totals GROUP BY status"):
            counted[status] += count
        for status in ENDED:
            if ended[status] != counted[status]:
                self.violated(f"{ended[status]} runs are {status}, run_totals says {counted[status]}")
        if any(self.cluster.processes[name].lives != 1 for name in self.cluster.names("proxy")):
            return  # what a dead proxy counted is gone
        if self.setup.has("store_unknown", "kill_switch", "disk_error", "disk_full"):
            return  # a job that ran twice is counted where its second run found it done
        said: Counter[str] = Counter()
        for proxy in self.cluster.names("proxy"):
            life = self.cluster.processes[proxy].life
            assert life is not None
            family: Any = life.observer.metrics._families["fairlead_runs_ended_total"]
            for labels, cell in family.cells.items():
                said[labels[0]] += int(cell.value)
        for status in ENDED:
            if ended[status] != said[status]:
                self.violated(f"{ended[status]} runs are {status}, runs_ended_total says {said[status]}")


class OneEffect(Oracle):
    name = "one effect in the transaction's domain"
    guards = "Exactly-once effect where the effect shares our transaction."

    def __init__(self, record: Record) -> None:
        super().__init__(record)
        self._seen: dict[str, int] = {}
        self._apart = self.setup.has("inbox_lost", "impostor")

    def on_tick(self) -> None:
        nodes = self.record.nodes_with_inbox()
        changes = {node: self.record.changes(node) for node in nodes}
        if changes != self._seen:
            self._seen = changes
            self._look(nodes)

    def _look(self, nodes: list[str]) -> None:
        everywhere: dict[str, str] = {}
        apart = self._apart
        for node in nodes:
            for root, count in self.inbox(node, "SELECT root, count(*) FROM effects GROUP BY root"):
                if count > 1:
                    self.violated(f"{count} effects of lineage {root} on {node}")
                elif root in everywhere and not apart:
                    self.violated(f"lineage {root} had an effect on {everywhere[root]} and on {node}")
                everywhere[root] = node

    def at_rest(self) -> None:
        self._look(self.record.nodes_with_inbox())
        effects: set[str] = set()
        for node in self.record.nodes_with_inbox():
            mine = {row[0] for row in self.inbox(node, "SELECT root FROM effects WHERE 1 = 1")}
            kept = {
                row[0]
                for row in self.inbox(
                    node,
                    "SELECT coalesce(root_run_id, run_id) FROM inbox WHERE completed = 1 AND command = 'w:add'",
                )
            }
            if mine != kept:
                self.violated(f"on {node} effect and result differ for {sorted(mine ^ kept)}")
            effects |= mine
        if self.setup.has("inbox_lost", "impostor"):
            return
        for run in self.record.runs.values():
            if (
                run.command == "w:add"
                and run.status == "COMPLETED"
                and not run.is_parent
                and run.root_id not in effects
            ):
                self.violated(f"{run.run_id} completed without its effect")


class Fenced(Oracle):
    name = "nothing from a fenced attempt"
    guards = (
        "A lease and a fence for every delivery. A cancelled run is CANCELLED at once while it waits; one that waits"
        " again may be called late, if idempotent."
    )

    def on_effect(self, execution: Execution, run: RunView | None) -> None:
        if run is None:
            self.violated(f"{execution.run_id} has an effect, and was never durable")
        elif run.status in ("COMPLETED", "CANCELLED", "EXPIRED"):
            self.violated(f"{run.run_id} is {run.status}, and has an effect on {execution.process}")
        elif run.status == "RUNNING" and run.node_id != execution.node_id:
            self.violated(f"{run.run_id} is given to {run.node_id}, and has an effect on {execution.process}")

    def on_execution(self, execution: Execution, run: RunView | None) -> None:
        if run is None:
            self.violated(f"{execution.run_id} is executed on {execution.process} and was never durable")
            return
        if execution.fence > run.fence:
            self.violated(f"{run.run_id} is executed under fence {execution.fence}, durable is {run.fence}")
        again = run.effect == "idempotent" and self._is_late(execution, run)
        if run.ended and not again and run.status != "FAILED":
            self.violated(f"{run.run_id} is {run.status}, and is executed on {execution.process}")
        if run.status == "CANCELLED" and not run.fence:
            self.violated(f"{run.run_id} was cancelled before it was given to anybody, and is executed")
        if run.status == "PENDING" and run.effect != "idempotent" and not self.setup.has("impostor"):
            self.violated(
                f"{run.run_id} waits, and is executed on {execution.process} under {execution.fence}"
            )

    def _is_late(self, execution: Execution, run: RunView) -> bool:
        """Whether it was delivered under a lease that has run out since, or that its proxy gave up: it may be on its
        way for as long as that proxy sleeps, and nobody can call it back."""
        if execution.fence < run.fence:
            return True
        given_up = "SELECT 1 FROM attempts WHERE run_id = ? AND fence = ? AND outcome = 'abandoned'"
        return bool(self.cluster.query(run.store, given_up, run.run_id, execution.fence))

    def at_rest(self) -> None:
        """What counts came from the node that held the run."""
        calls = self.record.executions
        nodes = ("any", *self.cluster.options.node_names)
        for run_id, node_id, fence, value in self.rows(
            "SELECT run_id, node_id, fence, value_json FROM runs WHERE status = 'COMPLETED'"
        ):
            run = self.record.runs[run_id]
            if run.is_parent:
                continue
            said = json.loads(value)
            call = calls[said[2]]
            if call.root_id != run.root_id or (
                run.target in nodes and run.target not in ("any", call.node_id)
            ):
                self.violated(f"{run_id} has the result of {call.run_id} on {call.process}")
            if call.run_id == run_id and (call.node_id != node_id or call.fence > fence):
                self.violated(
                    f"{run_id} is {node_id}'s under {fence}, its result {call.process}'s under {call.fence}"
                )
            if call.run_id != run_id and run.effect == "idempotent" and call.node_id != node_id:
                self.violated(f"{run_id} is {node_id}'s, and its result that of {call.process}")


class OnceOnly(Oracle):
    name = "once is once"
    guards = "A `once` handler never runs twice; it is tried again only where somebody asks for that."

    def on_execution(self, execution: Execution, run: RunView | None) -> None:
        if run is not None and run.effect == "once" and run.executions:
            before = run.executions[-1]
            self.violated(
                f"{run.run_id} is called on {execution.process} under {execution.fence}, and was on"
                f" {before.process} under {before.fence}"
            )


class AskedFor(Oracle):
    name = "nothing is tried again unasked"
    guards = "It is replayed only within guards that count attempts. `once` is tried again only where somebody asks."

    def at_rest(self) -> None:
        for root, runs in self.record.by_root.items():
            again = [run for run in runs if run.retry_of]
            asked = self.record.asked_again.get(root, 0) + self.record.asked_for_all
            if len(again) > asked and self.setup.worker != "automatic":
                self.violated(f"lineage {root} was tried again {len(again)} times, asked for {asked} times")
            for first, second in pairwise(again):
                if first.seq > second.seq:
                    self.violated(f"lineage {root} has its retries out of order")


class OnePlace(Oracle):
    name = "every failed lineage is in one place"
    guards = "What ends without success is a dead letter: one record per lineage, whatever is tried again."

    def at_rest(self) -> None:
        records: dict[str, tuple[Any, ...]] = {}
        for row in self.rows(
            "SELECT root_id, state, outcome, replay_run_id, replay_id, run_id FROM dead_letters"
        ):
            if row[0] in records:
                self.violated(f"lineage {row[0]} has two records")
            records[row[0]] = row
        late = {row[0] for row in self.rows("SELECT run_id FROM attempts WHERE outcome = 'late completed'")}
        open_replays = {row[0] for row in self.rows("SELECT id FROM replay_runs WHERE status = 'running'")}
        for root, runs in self.record.by_root.items():
            if any(run.is_parent for run in runs):
                if root in records:
                    self.violated(f"{root} has targets of its own, and a record")
                continue
            record = records.pop(root, None)
            states = [run.status for run in runs]
            done = "COMPLETED" in states or any(run.run_id in late for run in runs)
            failed = any(run.status in ("FAILED", "EXPIRED") and run.reason not in UNDECIDED for run in runs)
            if not failed:
                if record is not None:
                    self.violated(f"lineage {root} never failed ({states}), and has a record")
                continue
            if record is None:
                self.violated(f"lineage {root} failed ({states}), and has no record")
                continue
            _, state, outcome, replay_run, replay, of = record
            if done != (state == "replayed"):
                self.violated(
                    f"lineage {root} is {states}, late {done}, and its record is {state} ({outcome})"
                )
            if replay_run and all(run.ended for run in runs):
                self.violated(f"the record of {root} waits for {replay_run}, which has ended")
            if state == "replay_requested" and not replay_run and replay not in open_replays:
                self.violated(f"the record of {root} waits for replay {replay}, which is over")
            if of not in {run.run_id for run in runs}:
                self.violated(f"the record of {root} is about {of}")
        if records:
            self.violated(f"records of no lineage: {sorted(records)}")


class Resolved(Oracle):
    name = "nobody repeats what has completed"
    guards = "A run that completes late resolves its record. A replay never doubles what had an effect."

    def at_rest(self) -> None:
        open_ = {row[0] for row in self.rows("SELECT root_id FROM dead_letters WHERE state <> 'replayed'")}
        if not open_ or self.setup.has("impostor"):
            return
        for node in self.cluster.options.node_names:
            if not self.cluster.disk(node).holds_database():
                continue
            for run_id, root in self.cluster.query(
                node,
                "SELECT run_id, coalesce(root_run_id, run_id) FROM inbox WHERE completed = 1"
                " AND acked_at_ms IS NOT NULL",
            ):
                if root in open_:
                    self.violated(f"{run_id} completed on {node}, and the record of {root} is open")


class Registries(Oracle):
    name = "registries agree and never go back"
    guards = "Losing a link clears nothing; an older registry generation is refused."

    def __init__(self, record: Record) -> None:
        super().__init__(record)
        self._held: dict[tuple[str, str], tuple[int, int]] = {}
        self._incarnations: dict[str, tuple[int, str]] = {}

    def on_tick(self) -> None:
        for name in self.cluster.names("node", running=True):
            mirror = _mirror(self.cluster.processes[name].root)
            if mirror is not None and mirror.position.fleet_id:
                self._not_older(name, self._incarnation(name), mirror.position)
        for name, proxy in self.record.proxies().items():
            if proxy.control is not None:
                self._not_older(name, "", proxy.control.registry.position)

    def _incarnation(self, node: str) -> str:
        """Which inbox a node has: a new one knows nothing, and may begin anywhere."""
        lives = self.cluster.processes[node].lives
        known = self._incarnations.get(node)
        if known is None or known[0] != lives:
            found = self.inbox(node, "SELECT value FROM node_meta WHERE key = 'incarnation'")
            known = self._incarnations[node] = (lives, str(found))
        return known[1]

    def _not_older(self, name: str, incarnation: str, position: Any) -> None:
        now = (position.epoch, position.generation)
        before = self._held.get((name, incarnation), now)
        if now < before:
            self.violated(f"{name} holds registry {now} after {before}")
        self._held[name, incarnation] = now

    def at_rest(self) -> None:
        self.on_tick()
        positions = {name: proxy.control.registry.position for name, proxy in self.record.proxies().items()}
        if self.cluster.store is not None and len(set(positions.values())) > 1:
            self.violated(f"proxies disagree: {positions}")
        stored = self.rows("SELECT count(*) FROM descriptors")[0][0]
        for name in self.cluster.options.node_names:
            mirror = _mirror(self.cluster.processes[name].root)
            if mirror is None:
                continue
            if mirror.position not in positions.values():
                self.violated(f"{name} holds {mirror.position}, the proxies {positions}")
            if len(mirror.registry.items) != stored:
                self.violated(f"{name} holds {len(mirror.registry.items)} commands, the store {stored}")


def _mirror(node: Any) -> Any:
    for link in getattr(node, "links", ()):
        return link._mirror
    return None


class Ordered(Oracle):
    name = "ordering keys"
    guards = "Runs with one ordering key execute one at a time, in the order of their acceptance."

    def __init__(self, record: Record) -> None:
        super().__init__(record)
        self._keys: dict[tuple[str, str, str], list[RunView]] = {}

    def on_run(self, run: RunView, before: tuple[str, int]) -> None:
        if not run.ordering_key:
            return
        same = self._keys.setdefault((run.store, run.tenant, run.ordering_key), [])
        if not before[0]:
            same.append(run)
        if run.status != "RUNNING" or before[0] == "RUNNING" or run.is_parent:
            return
        self._alone(run, same, "is given out")

    def _alone(self, run: RunView, same: list[RunView], what: str) -> None:
        for other in same:
            if (
                other.seq < run.seq and not other.ended and other.run_id != run.parent_id
                and other.run_id not in self.record.forged
                and not (run.parent_id and other.parent_id == run.parent_id)
            ):  # fmt: skip
                self.violated(
                    f"{run.run_id} {what} before {other.run_id} ({other.status}) of the same key has ended"
                )

    def on_execution(self, execution: Execution, run: RunView | None) -> None:
        if run is not None and run.ordering_key and run.status == "RUNNING" and execution.fence == run.fence:
            self._alone(run, self._keys[run.store, run.tenant, run.ordering_key], "is called")


class Times(Oracle):
    name = "never early, never after the deadline"
    guards = (
        "EXPIRED only if no node has a trace. (Schedules are never early; nothing starts after its deadline.)"
    )

    def on_execution(self, execution: Execution, run: RunView | None) -> None:
        wall_ms = self.cluster.walls[execution.process].now_ms()
        if wall_ms >= execution.deadline_at_ms:
            self.violated(
                f"{execution.run_id} is called on {execution.process}"
                f" {wall_ms - execution.deadline_at_ms} ms after its deadline, by that clock"
            )
        if run is not None and run.not_before_ms:
            early_ms = run.not_before_ms - self.cluster.now_ms()
            if early_ms > 2 * self.setup.clock_off_ms:
                self.violated(f"{run.run_id} is called {early_ms} ms before its time")


class Retries(Oracle):
    name = "retries are bounded"
    guards = "Retries are bounded: never of a `once` command, within the attempts, the deadline and a budget."

    def at_rest(self) -> None:
        failed: Counter[str] = Counter(
            dict(self.rows("SELECT run_id, count(*) FROM attempts WHERE outcome = 'failed' GROUP BY run_id"))
        )
        options = self.setup.options
        for run_id, count in failed.items():
            run = self.record.runs[run_id]
            most = (run.attempts_max or options.attempts_max) - 1 if options.retries else 0
            if run.effect == "once" or count > most:
                self.violated(f"{run_id} ({run.effect}) was retried {count} times, at most {most}")
        lives = sum(self.cluster.processes[name].lives for name in self.cluster.names("proxy"))
        share = self.setup.retry_percent / 100
        most = lives * BUDGET_BURST + share * len(self.record.runs)
        if sum(failed.values()) > most:
            self.violated(f"{sum(failed.values())} retries, the budget is {most:g}")


class Replays(Oracle):
    name = "replays keep to their guards"
    guards = "Guards count attempts: number, budgets per tenant. Stages of 1, 5, 25 and the rest."

    def __init__(self, record: Record) -> None:
        super().__init__(record)
        self._seen: dict[str, int] = {}

    def on_tick(self) -> None:
        changes = {store: self.record.changes(store) for store in self.record.stores()}
        if changes != self._seen:
            self._seen = changes
            self._look()

    def _look(self) -> None:
        for identifier, status, total, started, succeeded, failed, skipped, stage in self.rows(
            "SELECT id, status, total, started, succeeded, failed, skipped, stage FROM replay_runs"
        ):
            ended = succeeded + failed
            allowed = STAGES[stage] if stage < len(STAGES) else total
            if started > min(allowed, total):
                self.violated(
                    f"replay {identifier} started {started} in stage {stage} ({status}, {total} in all)"
                )
            if stage and ended < STAGES[stage - 1]:
                self.violated(f"replay {identifier} is in stage {stage}, and {ended} have ended")
            if ended > started or started + skipped > total:
                self.violated(
                    f"replay {identifier}: {ended} of {started} ended, {skipped} skipped, {total} in all"
                )
        for tenant, used in self.rows("SELECT company_id, daily_used FROM replay_budgets"):
            most = max(self.setup.daily_limit, self.record.limits.get(tenant, 0))
            if used > most:
                self.violated(f"{used} replays of {tenant} today, at most {most}")

    def at_rest(self) -> None:
        self._look()
        for root, count, forced, by in self.rows(
            "SELECT root_id, replay_count, forced, requested_by FROM dead_letters"
        ):
            runs = sum(1 for run in self.record.by_root.get(root, ()) if run.retry_of)
            asked = self.record.asked_again.get(root, 0) + self.record.asked_for_all
            if count != runs:
                self.violated(f"the record of {root} counts {count} replays, there are {runs}")
            if self.setup.worker == "automatic" and by == "replay-worker" and not forced:
                if count > self.setup.max_count + asked:
                    self.violated(
                        f"lineage {root} was replayed {count} times, at most {self.setup.max_count}"
                    )
        (spent,) = self.rows("SELECT coalesce(sum(daily_used), 0) FROM replay_budgets")[0]
        (started,) = self.rows("SELECT coalesce(sum(started), 0) FROM replay_runs")[0]
        if spent != started and len(self.record.stores()) == 1:
            self.violated(f"{started} replays were started, {spent} were paid for")


class KillSwitch(Oracle):
    name = "the kill switch"
    guards = "While it is on, nothing is accepted and nothing is delivered."

    def on_run(self, run: RunView, before: tuple[str, int]) -> None:
        if self.record.kill_switch_since is None:
            return
        if not before[0] and run.run_id not in self.record.forged:
            self.violated(f"{run.run_id} was accepted under the kill switch")
        elif before[0] == "PENDING" and run.status == "RUNNING":
            self.violated(f"{run.run_id} was given to {run.node_id} under the kill switch")


class Paused(Oracle):
    name = "paused tenants"
    guards = "A pause of a tenant: nothing of it is delivered."
    GRACE_S: ClassVar[float] = 4.0
    EXCUSES: ClassVar[tuple[str, ...]] = (
        "freeze", "store_down", "store_slow", "store_unknown", "disk_stall", "disk_slow", "disk_full", "disk_error",
    )  # fmt: skip

    def on_run(self, run: RunView, before: tuple[str, int]) -> None:
        if (
            run.is_parent
            or run.status != "RUNNING"
            or before[0] == "RUNNING"
            or self.setup.has(*self.EXCUSES)
        ):
            return  # a proxy that could not look at the store for a while knows only what it knew
        for name in (run.tenant, "*"):
            since = self.record.paused.get(name)
            if since is not None and self.cluster.now - since > self.GRACE_S:
                self.violated(
                    f"{run.run_id} of {run.tenant} was given out; {name} was paused at {since:.3f} s"
                )


class ToldIsTrue(Oracle):
    name = "what callers are told is so"
    guards = "A result is told only when it is durable."

    def on_told(self, told: Told) -> None:
        run = self.record.runs.get(told.run_id)
        if run is None:
            self.violated(f"{told.by} was told {told.status} of {told.run_id}, which was never durable")
            return
        if (run.status, run.reason) != (told.status, told.reason) and told.status in ENDED:
            self.violated(
                f"{told.by} was told {told.status} {told.reason} of {told.run_id}, durable is {run.status} {run.reason}"
            )
        if (
            told.status == "UNKNOWN" and told.run_id not in self.record.forged
        ):  # it may be of another tenant now
            self.violated(f"{told.by} was told that {told.run_id} ({run.status}) is unknown: {told.reason}")
        if told.status == "COMPLETED":
            ((value,),) = self.cluster.query(
                run.store, "SELECT value_json FROM runs WHERE run_id = ?", run.run_id
            )
            if json.loads(value) != told.value:
                self.violated(f"{told.by} was told {told.value} of {told.run_id}, stored is {value!r}")


class ClientsHear(Oracle):
    name = "clients hear of every end"
    guards = "A client's run id is its own choice, so that saying it again finds the first acceptance."

    def at_rest(self) -> None:
        process = self.cluster.processes["app"]
        if self.setup.has("revoke_client"):
            return  # it is kept out
        for life, run in self.record.open_client_runs:
            if life is process.life and run.ended is None and not run.closed and run.refused is None:
                self.violated(f"the application lives and was never told how {run.run_id} ended")


class NothingTwice(Oracle):
    name = "nothing is let in twice"
    guards = "A recorded handshake opens nothing. On a link the nonce is a counter."

    def on_tick(self) -> None:
        twice: list[str] = self.record.let_in_twice
        while twice:
            self.violated(twice.pop())


ORACLES: tuple[type[Oracle], ...] = (
    AcceptedIsDurable, RefusedIsNothing, EndsOnce, Totals, OneEffect, Fenced, OnceOnly, AskedFor, OnePlace, Resolved,
    Registries, Ordered, Times, Retries, Replays, KillSwitch, Paused, ToldIsTrue, ClientsHear, NothingTwice,
    NewestFence, SaidIsKept, DoneIsDone, GivenUp, AuditChain, NothingForged, Approved,
    *CLIENT_ORACLES,
)  # fmt: skip
