"""Who asks for approval and who gives it, and somebody who can write to the database.

One method for each row of `workload.TRUST`. What was forged is in the record, as the value that was written where: the
crash of a proxy may take back what nobody had been answered, and then a run is what it was.
"""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING, Any, Final

import trio
from tests.sim.record import Forged
from tests.sim.workload import APPROVERS, Arguments

from fairlead.proxy.guard.operator_keys import hash_of, new_key

if TYPE_CHECKING:
    from tests.sim.actions import Actions

WAITS_FOR_A_RUN_S: Final = 4.0
LOOKS_EVERY_S: Final = 0.05
LATER_MS: Final = 30_000
USES_AFTER_S: Final = 3.0
WAITING: Final = (
    "SELECT run_id, tenant, target_node, deadline_at_ms, args_json FROM runs"
    " WHERE status = 'PENDING' AND fence = 0 AND children_open = 0 AND deadline_at_ms > ? ORDER BY seq"
)
# Rows that take authority away, and would give it back if they were gone.
TAKEN_AWAY: Final = {"tenants": "agent_controls", "nodes": "node_overrides", "epochs": "key_epochs"}


class Trust:
    """Approvers and an attacker."""

    def __init__(self, actions: Actions) -> None:
        self._actions, self._cluster, self._record = actions, actions.cluster, actions.record
        self._asked: list[Arguments] = []

    # -- approvals

    async def ask(self, args: Arguments) -> None:
        """A run that executes only once others say so."""
        token = args["token"]
        status, answer = await self._actions.ops(
            "POST",
            "/api/dispatch",
            self._actions.submission(args, token),
            at=self._actions.proxy(args["number"]),
        )
        if status in (200, 202):
            self._record.was_accepted(answer["run_id"], token)
            self._asked.append(answer)
        elif status != 503:
            self._record.was_refused(token, str(answer))

    async def approve(self, args: Arguments) -> None:
        await self._vote("approve", args)

    async def reject(self, args: Arguments) -> None:
        await self._vote("reject", args)

    async def _vote(self, decision: str, args: Arguments) -> None:
        """Of one of those that asked last. `by`: 0 is who asked."""
        if not self._asked:
            return
        asked = self._asked[-1 - args["pick"] % min(len(self._asked), 3)]
        headers = {"x-ops-key": APPROVERS[args["by"] - 1]} if args["by"] else {}
        body = {"plan_hash": asked["plan_hash"] if args["quotes"] else "0" * 32}
        path = f"/api/approvals/{asked['approval_id']}/{decision}"
        status, _ = await self._actions.ops(
            "POST", path, body, at=self._actions.proxy(args["pick"]), headers=headers
        )
        self._record.count(f"{decision}: {status}")

    # -- who writes to the database

    async def forge(self, args: Arguments) -> None:
        stores = self._record.stores()
        store, what = stores[args["pick"] % len(stores)], args["what"]
        try:
            if what == "key":
                await self._key(store, args)
            elif what == "budgets":
                self._write(store, "UPDATE replay_budgets SET daily_limit = 1000000, monthly_limit = 1000000")
            elif what in TAKEN_AWAY:
                self._write(store, f"DELETE FROM {TAKEN_AWAY[what]}")
            elif what == "approved":
                await self._approved(store, args)
            elif what == "votes":
                await self._votes(store, args)
            else:
                await self._run(store, args)
        except sqlite3.Error as error:
            self._cluster.trace.add(f"forge {what}: {error}")

    def _write(self, store: str, sql: str, *parameters: Any) -> int:
        self._record.drain()  # what was there before is known as it was
        changed = self._cluster.write_by_hand(store, sql, *parameters)
        if changed:
            self._record.count("rows forged")
        return changed

    async def _waiting(self, store: str, sql: str, args: Arguments) -> tuple[Any, ...] | None:
        """A run that waits now, or soon."""
        with trio.move_on_after(WAITS_FOR_A_RUN_S):
            while True:
                if store == "database" or self._cluster.processes[store].ready:
                    rows = self._cluster.query(store, sql, self._cluster.now_ms())
                    if rows:
                        return rows[args["pick"] % len(rows)]
                await trio.sleep(LOOKS_EVERY_S)
        return None

    async def _run(self, store: str, args: Arguments) -> None:
        """Other arguments, another tenant, node or deadline; or a copy of it with other arguments."""
        row = await self._waiting(store, WAITING, args)
        if row is None:
            return
        run_id, tenant, target_node, deadline_at_ms, args_json = row
        if run_id in self._record.forged:
            return  # a second change might put back what was there
        changed = json.dumps({**json.loads(args_json), "ms": 7, "mode": "ok"}).encode()
        if args["what"] == "copy":
            self._copy(store, run_id, args)
            return
        node = self._actions.node(args["pick"])
        column, value = {
            "args": ("args_json", changed),
            "tenant": ("tenant", "t2" if tenant != "t2" else "default"),
            "target": ("target_node", node if target_node != node else ""),
            "deadline": ("deadline_at_ms", deadline_at_ms + LATER_MS),
        }[args["what"]]
        if self._cluster.query(store, f"SELECT 1 FROM runs WHERE run_id = ? AND {column} = ?", run_id, value):
            return
        if self._write(store, f"UPDATE runs SET {column} = ? WHERE run_id = ?", value, run_id):
            self._record.forged[run_id] = Forged(store, column, value)

    def _copy(self, store: str, run_id: str, args: Arguments) -> None:
        other = f"forged-{args['token']}"
        instead: Arguments = {
            "run_id": other, "root_id": other, "retry_of_run_id": "", "parent_id": "", "idempotency_key": "",
            "args_json": json.dumps({"token": other, "mode": "ok", "ms": 1, "tail_ms": 0, "times": 1}).encode(),
        }  # fmt: skip
        columns = [row[1] for row in self._cluster.query(store, "PRAGMA table_info(runs)") if row[1] != "seq"]
        chosen = ", ".join("?" if name in instead else name for name in columns)
        self._record.forged[other] = Forged(store, "run_id", other)
        self._write(
            store, f"INSERT INTO runs ({', '.join(columns)}) SELECT {chosen} FROM runs WHERE run_id = ?",
            *(instead[name] for name in columns if name in instead), run_id,
        )  # fmt: skip

    async def _approved(self, store: str, args: Arguments) -> None:
        """As if others had said yes."""
        row = await self._waiting(
            store, "SELECT run_id, approval_id FROM runs WHERE status = 'PENDING_APPROVAL' AND children_open = 0"
            " AND deadline_at_ms > ? ORDER BY seq", args,
        )  # fmt: skip
        if row is None:
            return
        run_id, approval_id = row
        if args["pick"] % 2:
            self._write(
                store, "UPDATE approvals SET status = 'APPROVED', decided_at_ms = 5 WHERE id = ?", approval_id
            )
        self._record.forged_approvals.add(approval_id)
        self._write(store, "UPDATE runs SET status = 'PENDING', ready = 1 WHERE run_id = ?", run_id)

    async def _votes(self, store: str, args: Arguments) -> None:
        """A run that was approved, and waits for a node, loses its votes."""
        row = await self._waiting(
            store, "SELECT approval_id FROM runs WHERE status = 'PENDING' AND fence = 0 AND approval_id <> ''"
            " AND deadline_at_ms > ? ORDER BY seq", args,
        )  # fmt: skip
        if row is not None:
            self._write(
                store, "DELETE FROM approval_votes WHERE approval_id = ? AND NOT EXISTS (SELECT 1 FROM runs"
                " WHERE approval_id = ? AND children_open = 0 AND (status <> 'PENDING' OR fence > 0))", row[0], row[0],
            )  # fmt: skip

    async def _key(self, store: str, args: Arguments) -> None:
        """A key of their own, and what it opens."""
        key_id, key = new_key(args["pick"].to_bytes(8, "big"), args["pick"].to_bytes(32, "big"))
        self._write(
            store, "INSERT OR IGNORE INTO operator_keys (id, hash, role, created_at_ms, created_by) VALUES"
            " (?, ?, 'admin', 1, 'somebody')", key_id, hash_of(key),
        )  # fmt: skip
        await trio.sleep(USES_AFTER_S)
        status, answer = await self._actions.ops(
            "GET",
            "/api/ops/reliability/audit",
            at=self._actions.proxy(args["pick"]),
            headers={"x-ops-key": key},
        )
        if status < 400:
            self._record.violated("nothing forged executes", f"a forged operator key was believed: {answer}")
