"""Pure. What a node says of attempts, as the store is told it."""

from __future__ import annotations

import msgspec

from fairlead.protocol import messages as m
from fairlead.protocol.limits import DETAIL_CHARS_MAX
from fairlead.protocol.reasons import Reason
from fairlead.proxy.store.records import Report


def report_of(node_id: str, result: m.Result) -> Report:
    """What a node says of an attempt. A value that is not JSON would poison whoever reads it later."""
    if result.completed:
        try:
            msgspec.json.decode(result.value_json)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            return Report(
                result.run_id, result.fence, node_id, False, b"", Reason.RESULT_INVALID.value,
                f"the node's value is not JSON: {error}", result.started_at_ms, result.finished_at_ms,
            )  # fmt: skip
    return Report(
        result.run_id, result.fence, node_id, result.completed, result.value_json, result.reason[:64],
        result.detail[:DETAIL_CHARS_MAX], result.started_at_ms, result.finished_at_ms,
    )  # fmt: skip


def refusal_of(node_id: str, refused: m.DeliveryRefused) -> Report:
    detail = refused.detail[:DETAIL_CHARS_MAX]
    return Report(
        refused.run_id, refused.fence, node_id, False, b"", refused.reason[:64], detail, 0, 0, refused=True
    )  # fmt: skip
