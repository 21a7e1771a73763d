"""Who may pass over the guards of a replay, and which requests are none."""

from __future__ import annotations

import sqlite3
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.ops.dead_letters_api import DeadLettersApi
from fairlead.proxy.store.records import DeadLetter
from fairlead.runtime.gcra import Cell, Limit
from fairlead.runtime.http.message import Request

# Whatever is asked of it fails the test: these requests are refused before anything is looked at.
NOTHING = cast("Any", None)
API = DeadLettersApi(NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, Limit(3, 300_000))
VIEWER = Identity("viewer-1", "user", ("viewer",), ())
OPERATOR = Identity("operator-1", "user", ("operator",), ())


def request(body: bytes) -> Request:
    return Request("POST", "/api/ops/reliability/dlq/replay", "", [], body, "127.0.0.1", "c-1")


async def refusal(body: bytes, caller: Identity) -> Refused:
    with pytest.raises(Refused) as refused:
        await API.replay(request(body), caller)
    return refused.value


@pytest.mark.parametrize("more", ["", ', "dryRun": true', ', "plan_hash": "x"'])
async def test_force_is_for_the_operator_role(more: str) -> None:
    refused = await refusal(b'{"id": "dlq-1", "force": true%s}' % more.encode(), VIEWER)
    assert refused.reason is Reason.DLQ_FORCE_FORBIDDEN
    assert "viewer" in refused.detail


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{}", b'{"dryRun": true}', b'{"id": 1}', b'{"id": "a", "ids": ["b"]}', b'{"id": "a", "other": 1}',
        b'{"ids": ["a"], "filter": {}}', b'{"id": "a", "fingerprint": "f"}', b'{"filter": {"other": 1}}',
        b'{"max": 5}', b"[" * 5_000,
    ],
)  # fmt: skip
async def test_a_request_that_names_no_records_or_names_them_twice_is_malformed(body: bytes) -> None:
    assert (await refusal(body, OPERATOR)).reason is Reason.BODY_MALFORMED


class _Uncounting:
    """A store that reads and cannot count."""

    def bound_to(self, tenant: str) -> _Uncounting:
        return self

    async def dead_letters(self, wanted: object) -> list[DeadLetter]:
        return []

    async def rate_limit(self, key: str, limit: Limit, now_ms: int) -> Cell:
        raise sqlite3.OperationalError("disk I/O error")


class _Replayer:
    controls = SimpleNamespace(items_max=100)

    def around(self) -> object:
        return None


async def test_a_rate_limit_that_cannot_be_counted_lets_nothing_pass() -> None:
    world = SimpleNamespace(wall_ms=lambda: 1_000_000)
    api = DeadLettersApi(
        cast("Any", world),
        NOTHING,
        cast("Any", _Uncounting()),
        NOTHING,
        cast("Any", _Replayer()),
        lambda: NOTHING,
        NOTHING,
        Limit(3, 300_000),
    )
    with pytest.raises(sqlite3.OperationalError):
        await api.replay(request(b'{"tenant": "a"}'), OPERATOR)


async def test_a_key_out_of_bounds_is_refused() -> None:
    for key in ("", "x" * 201):
        refused = await refusal(b'{"id": "a", "idempotency_key": "%s"}' % key.encode(), OPERATOR)
        assert refused.reason is Reason.IDEMPOTENCY_KEY_INVALID
