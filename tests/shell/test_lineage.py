"""Runs of one lineage on one node: what has completed is not done again by a replay; and inbox files of before."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import trio
from tests.shell.test_inbox import add, command, total
from tests.support.engine import running_engine

from fairlead.backend import Context, TransientFailure
from fairlead.backend.decisions import Execute
from fairlead.backend.inbox import Finished, Inbox
from fairlead.backend.inbox_schema import prepare
from fairlead.protocol.messages import Deliver, Result
from fairlead.runtime.sqlite import InlineWriter, ThreadWriter, Writer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "inbox.db"


@pytest.fixture(params=[ThreadWriter, InlineWriter], ids=["thread", "inline"])
def make(request: pytest.FixtureRequest) -> Callable[..., Writer]:
    found: Callable[..., Writer] = request.param
    return found


@pytest.mark.parametrize("effect", ["idempotent", "transactional", "once"])
@pytest.mark.parametrize("restart", [False, True])
async def test_a_replay_of_what_completed_here_answers_the_stored_value(
    path: Path, make: Callable[..., Writer], effect: str, restart: bool
) -> None:
    """The proxy gave the first run up, for instance because its lease ran out; the node knows better."""
    calls: list[str] = []

    async def handler(ctx: Context) -> str:
        calls.append(ctx.run_id)
        if effect == "transactional":
            await ctx.transaction(add)
        return "first"

    node = command(handler, effect)
    async with running_engine(path, node, make) as engine:
        first = await engine.result(run_id="root")
        if not restart:
            again = await engine.result(run_id="replay", root_run_id="root", fence=7)
    if restart:
        async with running_engine(path, node, make) as engine:
            again = await engine.result(run_id="replay", root_run_id="root", fence=7)
            assert (again, False) in await engine.inbox.unacked()
    assert calls == ["root"]
    assert (again.run_id, again.fence, again.completed) == ("replay", 7, True)
    assert (again.value_json, again.started_at_ms) == (first.value_json, first.started_at_ms)


async def test_a_second_replay_finds_the_first_one(path: Path) -> None:
    """The root itself failed; another of its lineage completed."""
    calls: list[str] = []

    async def handler(ctx: Context) -> str:
        calls.append(ctx.run_id)
        if ctx.run_id == "root":
            raise LookupError
        return ctx.run_id

    async with running_engine(path, command(handler)) as engine:
        assert not (await engine.result(run_id="root")).completed
        assert (await engine.result(run_id="replay-1", root_run_id="root")).value_json == b'"replay-1"'
        assert (await engine.result(run_id="replay-2", root_run_id="root")).value_json == b'"replay-1"'
        assert (await engine.result(run_id="other", root_run_id="elsewhere")).value_json == b'"other"'
        assert calls == ["root", "replay-1", "other"]


async def test_a_failed_ancestor_answers_nothing(path: Path) -> None:
    failures = [True, False]

    async def handler(ctx: Context) -> str:
        if failures.pop(0):
            raise TransientFailure
        return ctx.idempotency_key

    async with running_engine(path, command(handler, "idempotent")) as engine:
        assert not (await engine.result(run_id="root")).completed
        assert (await engine.result(run_id="replay", root_run_id="root")).value_json == b'"root"'


async def test_two_runs_of_a_lineage_that_execute_side_by_side_take_effect_once(path: Path) -> None:
    """A replay is delivered while the first run, which everybody gave up, still executes."""
    go = trio.Event()

    async def handler(ctx: Context) -> int:
        await go.wait()
        return await ctx.transaction(add)

    async with running_engine(path, command(handler, "transactional")) as engine:
        engine.offer(run_id="root")
        engine.offer(run_id="replay", root_run_id="root")
        with trio.fail_after(5):
            while engine.executor.running < 2:
                await trio.sleep(0.001)
        go.set()
        answers = [await engine.next_report() for _ in range(2)]
        assert all(isinstance(each, Result) and each.completed for each in answers)
        assert {each.value_json for each in answers if isinstance(each, Result)} == {b"1"}
        assert await total(engine) == 1


async def test_a_retry_that_an_ancestor_answers_replaces_the_failure(path: Path) -> None:
    inbox = Inbox(InlineWriter(path, "inbox", prepare))
    delivery = Deliver("r2", "root", 2, "t:do", b"", b"{}", None, "t", 0, 0, 0, True)
    await inbox.finish([Finished(Result("r2", 1, False, b"", "HANDLER_TIMEOUT", "", 1, 2), "t:do", "root")])
    await inbox.finish([Finished(Result("root", 1, True, b"5", "", "", 3, 4), "t:do")])
    (decision,) = await inbox.admit([delivery], 9)
    assert decision.result == Result("r2", 2, True, b"5", "", "", 3, 4)  # type: ignore[union-attr]
    assert (decision.result, False) in await inbox.unacked()  # type: ignore[union-attr]
    await inbox.aclose()


async def test_a_thread_of_an_attempt_that_was_given_up_takes_no_effect_beside_the_next_one(
    path: Path,
) -> None:
    """Its time was up, the proxy settled that failure, and the retry is admitted: the older fence is used up."""
    inbox = Inbox(InlineWriter(path, "inbox", prepare))
    older = Deliver("r1", "r1", 1, "t:do", b"", b"{}", None, "t", 0, 0, 0)
    newer = Deliver("r1", "r1", 2, "t:do", b"", b"{}", None, "t", 0, 0, 0, True)
    await inbox.finish([Finished(Result("r1", 1, False, b"", "HANDLER_TIMEOUT", "", 1, 2), "t:do")])
    assert await inbox.admit([newer], 5) == [Execute()]
    called: list[int] = []
    with pytest.raises(Exception, match="fence 1 after 1"):
        await inbox.transact(older, lambda: 1, lambda db: called.append(1), 1, 2, 100)
    _, result = await inbox.transact(newer, lambda: 2, lambda db: called.append(2), 1, 2, 100)
    assert (called, result.fence) == ([2], 2)
    await inbox.aclose()


SCHEMA_OF_BEFORE = """
CREATE TABLE node_meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE inbox (
    run_id         TEXT PRIMARY KEY,
    fence          INTEGER NOT NULL,
    command        TEXT NOT NULL,
    state          TEXT NOT NULL CHECK (state IN ('started', 'finished', 'refused')),
    completed      INTEGER NOT NULL DEFAULT 0,
    value_json     BLOB NOT NULL DEFAULT x'',
    reason         TEXT NOT NULL DEFAULT '',
    detail         TEXT NOT NULL DEFAULT '',
    started_at_ms  INTEGER NOT NULL DEFAULT 0,
    finished_at_ms INTEGER NOT NULL DEFAULT 0,
    acked_at_ms    INTEGER
) WITHOUT ROWID;
CREATE INDEX inbox_unacked ON inbox (finished_at_ms) WHERE acked_at_ms IS NULL;
CREATE INDEX inbox_acked ON inbox (acked_at_ms) WHERE acked_at_ms IS NOT NULL;
INSERT INTO node_meta VALUES ('incarnation', 'the one');
INSERT INTO inbox VALUES ('old', 3, 't:do', 'finished', 1, x'37', '', '', 10, 20, NULL);
"""


async def test_an_inbox_of_before_is_upgraded_and_keeps_everything(
    path: Path, make: Callable[..., Writer]
) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(SCHEMA_OF_BEFORE)
    for _ in range(2):  # and once upgraded it opens again
        inbox = Inbox(make(path, "inbox", prepare))
        assert await inbox.incarnation("another") == "the one"
        assert await inbox.unacked() == [(Result("old", 3, True, b"7", "", "", 10, 20), False)]
        await inbox.aclose()
    async with running_engine(path, command(lambda ctx: 1, "idempotent"), make) as engine:
        assert (await engine.result(run_id="new", root_run_id="old")).value_json == b"7"
