"""The node's second way to its proxy: finished results as signed HTTP callbacks, while no link is up.

Beside the link on the last leg of the command's journey. The link stays the first way: when one is back, whatever is
not acknowledged yet goes over it, and the callbacks rest. How often a result was tried is kept in the inbox's file.

Invariants: a result is acknowledged only where a proxy said that it has it, or that a newer attempt counts; an event
id stands for one attempt's end, so that a repetition is told for what it is; a result that was given up here is not
lost: it stays unacknowledged, and `POST /callbacks/replay` or the next link sends it again.
"""

from __future__ import annotations

import hmac
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec
import trio

from fairlead.backend.inbox import Inbox
from fairlead.protocol.messages import Result
from fairlead.protocol.reasons import Reason, Refused
from fairlead.runtime.http.message import Request, Response, json_response, problem
from fairlead.runtime.observer import Observer
from fairlead.runtime.posting import Answer, OutboundFailed, Post
from fairlead.runtime.signing import signed_headers
from fairlead.runtime.sqlite import Writer
from fairlead.runtime.world import World

# Before each attempt, counted from the one before it. Short first: the proxy is most often back within seconds.
LADDER_S: Final = (0, 1, 5, 30, 120, 600, 1_800, 7_200, 18_000, 36_000)
JITTER_SHARE: Final = 0.1
CHECK_S: Final = 0.25
BATCH_MAX: Final = 32
CONCURRENT_MAX: Final = 4
TIMEOUT_S: Final = 10.0
TIDY_S: Final = 5.0
DETAIL_CHARS_MAX: Final = 300
REPLAY_PATH: Final = "/callbacks/replay"

_TABLE: Final = """CREATE TABLE IF NOT EXISTS result_callbacks (
    run_id TEXT PRIMARY KEY, fence INTEGER NOT NULL, attempts INTEGER NOT NULL, next_at_ms INTEGER NOT NULL,
    is_dead INTEGER NOT NULL, detail TEXT NOT NULL
) WITHOUT ROWID"""
_COLUMNS: Final = (
    "i.run_id, i.fence, i.completed, i.value_json, i.reason, i.detail, i.started_at_ms, i.finished_at_ms"
)
# What a link would tell as an end: the tombstone of a run that was cancelled before it started is one too.
_UNACKED_ENDS: Final = (
    f"i.acked_at_ms IS NULL AND (i.state = 'finished' OR i.reason = '{Reason.RUN_CANCELLED.value}')"
)
# The proxy has judged, and would judge the same again.
_FINAL: Final = frozenset({
    Reason.RUN_UNKNOWN.value, Reason.FOREIGN_STATEMENT.value, Reason.CALLBACK_EVENT_CONFLICT.value,
    Reason.CALLBACK_EVENT_INVALID.value, Reason.BODY_TOO_LARGE.value,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class CallbackSettings:
    """What callbacks need of the configuration."""

    base_url: str
    node_id: str
    secret: bytes
    after_s: float
    token_file: str = ""  # whoever runs the node renews what is in it


@dataclass(frozen=True, slots=True)
class Due:
    """A result to be sent, and how often it was."""

    result: Result
    attempts: int


@dataclass(frozen=True, slots=True)
class Step:
    """What becomes of a result: it is the proxy's (`is_taken`), waits for `next_at_ms`, or is given up."""

    is_taken: bool
    is_dead: bool
    next_at_ms: int
    detail: str


def event_id(node_id: str, result: Result) -> str:
    """The same for the same end of the same attempt."""
    return f"{node_id}:{result.run_id}:{result.fence}"


def result_body(node_id: str, result: Result) -> bytes:
    """The body of POST /callbacks/runs/{run_id}; the same bytes every time."""
    told: dict[str, object] = {
        "eventId": event_id(node_id, result), "runId": result.run_id, "fence": result.fence, "nodeId": node_id,
        "status": "COMPLETED" if result.completed else "FAILED",
    }  # fmt: skip
    if result.completed:
        told["result"] = msgspec.Raw(result.value_json)
    else:
        told["reason"] = result.reason or Reason.UNKNOWN_REASON.value
        told["detail"] = result.detail
    told["startedAtMs"], told["finishedAtMs"] = result.started_at_ms, result.finished_at_ms
    return msgspec.json.encode(told)


def next_step(attempts: int, outcome: Answer | str, now_ms: int, unit: float) -> Step:
    """After an attempt that `attempts` others went before; a text says why nothing came back."""
    is_final = False
    if isinstance(outcome, Answer):
        reason = _reason_of(outcome)
        detail = f"answered {outcome.status} {reason}".rstrip()
        if 200 <= outcome.status <= 299 or reason == Reason.FENCE_STALE.value:
            return Step(True, False, 0, detail)
        is_final = reason in _FINAL
    else:
        detail = outcome
    rung = attempts + 1
    if is_final or rung >= len(LADDER_S):
        return Step(False, True, 0, detail)
    return Step(False, False, now_ms + round(LADDER_S[rung] * (1 + JITTER_SHARE * unit) * 1000), detail)


def _reason_of(answer: Answer) -> str:
    try:
        decoded = msgspec.json.decode(answer.body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return ""  # no proxy of ours, or one behind something that answers for it
    found = decoded.get("reason", "") if isinstance(decoded, dict) else ""
    return found if isinstance(found, str) else ""


class ResultCallbacks:
    """The loop. `run` it once; `replay` puts back what was given up."""

    def __init__(
        self,
        world: World,
        observer: Observer,
        settings: CallbackSettings,
        writer: Writer,
        inbox: Inbox,
        is_linked: Callable[[], bool],
        post: Post,
    ) -> None:
        """`writer` is the inbox's own: the state of callbacks lives in its file."""
        self._world, self._observer, self._settings = world, observer, settings
        self._writer, self._inbox, self._is_linked, self._post = writer, inbox, is_linked, post
        self.dead = 0
        metrics = observer.metrics
        self._outcomes = metrics.counter(
            "node_callbacks_total", "Results sent while no link was up, by outcome.", ("outcome",)
        )
        for outcome in ("taken", "retried", "dead"):
            self._outcomes.cell(outcome)
        metrics.computed("node_callbacks_dead", "Results given up as callbacks.", (), lambda: {(): self.dead})

    def rekey(self, secret: bytes) -> None:
        """Sign with another secret from now on."""
        self._settings = replace(self._settings, secret=secret)

    async def run(self) -> None:
        """Send what is due whenever no link has been up for long enough, until cancelled."""
        down_since_s = tidy_at_s = trio.current_time()
        is_prepared = False
        while True:
            await trio.sleep(CHECK_S)
            try:
                if not is_prepared:
                    self.dead = await self._writer.submit(_prepare)
                    is_prepared = True
                if self._is_linked():
                    down_since_s = trio.current_time()
                    if (
                        self.dead and down_since_s >= tidy_at_s
                    ):  # what was given up may have gone over the link
                        self.dead = await self._writer.submit(_tidy)
                        tidy_at_s = down_since_s + TIDY_S
                elif trio.current_time() - down_since_s >= self._settings.after_s:
                    await self._turn()
            except Exception as error:  # the next turn tries again
                self._observer.refused(
                    Reason.STORE_UNAVAILABLE, f"callbacks: {type(error).__name__}: {error}"
                )

    async def replay(self) -> int:
        """Make what was given up due again. Returns how many."""
        replayed = await self._writer.submit(_replay)
        self.dead = 0
        self._observer.log.info("callbacks_replayed", count=replayed)
        return replayed

    async def _turn(self) -> None:
        now_ms = self._world.wall_ms()
        due = await self._writer.submit(lambda db: _due(db, now_ms))
        places = trio.CapacityLimiter(CONCURRENT_MAX)
        async with trio.open_nursery() as nursery:
            for each in due:
                nursery.start_soon(self._deliver, each, places)

    async def _deliver(self, due: Due, places: trio.CapacityLimiter) -> None:
        async with places:
            if self._is_linked():
                return  # it goes over the link now
            try:
                step = next_step(
                    due.attempts,
                    await self._send(due.result),
                    self._world.wall_ms(),
                    self._world.random_unit(),
                )
                await self._settle(due, step)
            except Exception as error:  # a failing store: it stays due, and its event id the same
                self._observer.refused(
                    Reason.STORE_UNAVAILABLE, f"callback: {type(error).__name__}: {error}", run=due.result.run_id
                )  # fmt: skip

    async def _send(self, result: Result) -> Answer | str:
        settings = self._settings
        body = result_body(settings.node_id, result)
        identifier, now_ms = event_id(settings.node_id, result), self._world.wall_ms()
        url = f"{settings.base_url.rstrip('/')}/callbacks/runs/{quote(result.run_id, safe='')}"
        headers = signed_headers([settings.secret], identifier, now_ms, body)
        try:
            if settings.token_file:
                token = await self._world.run_in_thread(Path(settings.token_file).read_text)
                headers.append(("authorization", f"Bearer {token.strip()}"))
            return await self._post(url, headers, body, TIMEOUT_S)
        except OSError as error:
            return f"worker.callback_oidc_token_file: {error.strerror or error}"
        except (OutboundFailed, Refused) as error:
            return str(error)

    async def _settle(self, due: Due, step: Step) -> None:
        result = due.result
        if step.is_taken:
            await self._inbox.acked([(result.run_id, result.fence)], self._world.wall_ms())
            self._outcomes.inc("taken")
            self._observer.log.info("result_called_back", run=result.run_id, attempt=due.attempts + 1)
            return
        detail = step.detail[:DETAIL_CHARS_MAX]
        row = (result.run_id, result.fence, due.attempts + 1, step.next_at_ms, step.is_dead, detail)
        self.dead = await self._writer.submit(lambda db: _record(db, row))
        self._outcomes.inc("dead" if step.is_dead else "retried")
        self._observer.refused(
            Reason.CALLBACK_DEAD if step.is_dead else Reason.CALLBACK_NOT_DELIVERED, detail, run=result.run_id,
            attempt=due.attempts + 1, level="warning" if step.is_dead else "info",
        )  # fmt: skip


class ReplayEndpoint:
    """POST /callbacks/replay on the node's own port, for who holds the token."""

    def __init__(self, token: str | None, callbacks: ResultCallbacks | None) -> None:
        """Without a token the endpoint is closed; without callbacks there is nothing to put back."""
        self._token, self._callbacks = token, callbacks

    @property
    def dead(self) -> int:
        """Results that were given up and wait for a link, or for this endpoint."""
        return 0 if self._callbacks is None else self._callbacks.dead

    async def handle(self, request: Request) -> Response:
        if request.method != "POST":
            response = problem(Reason.METHOD_NOT_ALLOWED, request.method, request.correlation_id)
            response.headers.append(("allow", "POST"))
            return response
        if self._token is None:
            raise Refused(Reason.CALLBACK_TOKEN_INVALID, "worker.tasks_auth_token is not set")
        given = request.header_values("authorization")
        wanted = f"Bearer {self._token}".encode()
        if len(given) != 1 or not hmac.compare_digest(given[0].encode("latin-1"), wanted):
            raise Refused(Reason.CALLBACK_TOKEN_INVALID, "the bearer token is missing or another one")
        replayed = await self._callbacks.replay() if self._callbacks is not None else 0
        return json_response({"replayed": replayed})


# -- the table, inside the writer's transactions


def _prepare(db: sqlite3.Connection) -> int:
    db.execute(_TABLE)
    return _count_dead(db)


def _tidy(db: sqlite3.Connection) -> int:
    """Forget what was acknowledged meanwhile, or asked for again under a newer fence."""
    db.execute(
        "DELETE FROM result_callbacks WHERE NOT EXISTS (SELECT 1 FROM inbox i"
        f" WHERE i.run_id = result_callbacks.run_id AND i.fence = result_callbacks.fence AND {_UNACKED_ENDS})"
    )
    return _count_dead(db)


def _due(db: sqlite3.Connection, now_ms: int) -> list[Due]:
    """What is due, oldest first."""
    _tidy(db)
    rows = db.execute(
        f"SELECT {_COLUMNS}, coalesce(c.attempts, 0) FROM inbox i"
        " LEFT JOIN result_callbacks c ON c.run_id = i.run_id AND c.fence = i.fence"
        f" WHERE {_UNACKED_ENDS} AND (c.run_id IS NULL OR (c.is_dead = 0 AND c.next_at_ms <= ?))"
        " ORDER BY i.finished_at_ms, i.run_id LIMIT ?",
        (now_ms, BATCH_MAX),
    ).fetchall()
    return [Due(Result(row[0], row[1], bool(row[2]), *row[3:8]), row[8]) for row in rows]


def _record(db: sqlite3.Connection, row: tuple[str, int, int, int, bool, str]) -> int:
    db.execute(
        "INSERT OR REPLACE INTO result_callbacks (run_id, fence, attempts, next_at_ms, is_dead, detail)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        row,
    )
    return _count_dead(db)


def _replay(db: sqlite3.Connection) -> int:
    db.execute(_TABLE)
    return db.execute(
        "UPDATE result_callbacks SET is_dead = 0, attempts = 0, next_at_ms = 0 WHERE is_dead = 1"
    ).rowcount


def _count_dead(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT count(*) FROM result_callbacks WHERE is_dead = 1").fetchone()[0])
