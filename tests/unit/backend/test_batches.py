"""Results of one turn share envelopes that fit, and none is changed on the way."""

from __future__ import annotations

import msgpack
import msgspec
import pytest

from fairlead.backend.batches import result_batches
from fairlead.protocol.envelope import ChannelLimits, Guard, Stamper
from fairlead.protocol.keys import Role
from fairlead.protocol.messages import CATALOGUE, MessageType, Result, ResultMany

PAYLOAD_BYTES_MAX = 4_096
BOUNDS = ChannelLimits(payload_bytes_max=PAYLOAD_BYTES_MAX)
NOW_MS = 1_800_000_000_000


def result(number: int, size: int = 10, correlation_id: str = "c") -> Result:
    return Result(f"run-{number}", number, True, b"x" * size, "", "", 1, 2, correlation_id)


def opened(results: list[Result]) -> list[tuple[str, Result]]:
    """What a proxy reads: every batch through a stamper and a guard."""
    stamper = Stamper(version=1, sender="n1", audience="proxy", bounds=BOUNDS)
    guard = Guard(version=1, sender="n1", role=Role.NODE, audience="proxy", bounds=BOUNDS)
    found: list[tuple[str, Result]] = []
    for number, body, correlation_id in result_batches(results, PAYLOAD_BYTES_MAX):
        stamped = stamper.stamp_encoded(number, body, NOW_MS, correlation_id)
        assert isinstance(stamped, bytes), stamped
        checked = guard.check(stamped, NOW_MS)
        assert isinstance(checked, tuple), checked
        envelope, message = checked
        if isinstance(message, ResultMany):
            assert len(message.items) > 1
            found += [(item.correlation_id, item) for item in message.items]
        else:
            assert isinstance(message, Result)
            found.append((envelope.correlation_id, message))
    return found


@pytest.mark.parametrize("size", [0, 10, 100, 1_000, 3_000])
def test_batches_fit_the_payload_and_lose_nothing(size: int) -> None:
    sent = [result(number, size, f"c-{number}") for number in range(150)]
    came = opened(sent)
    assert [(correlation_id, item.run_id, item.value_json) for correlation_id, item in came] == [
        (item.correlation_id, item.run_id, item.value_json) for item in sent
    ]


def test_as_many_as_fit_go_together() -> None:
    sent = [result(number) for number in range(60)]
    assert [number for number, *_ in result_batches(sent, PAYLOAD_BYTES_MAX)] == [MessageType.RESULT_MANY]


def test_one_alone_goes_as_a_result_whose_envelope_carries_the_correlation_id() -> None:
    ((number, body, correlation_id),) = result_batches([result(1)], PAYLOAD_BYTES_MAX)
    assert (number, correlation_id) == (MessageType.RESULT, "c")
    message = msgspec.convert(msgpack.unpackb(body), CATALOGUE[number][0], strict=True)
    assert message == result(1, correlation_id="")


def test_a_result_as_large_as_a_node_may_make_it_still_goes_among_others() -> None:
    sent = [result(1), result(2, PAYLOAD_BYTES_MAX - 1_024), result(3)]
    assert [item.run_id for _, item in opened(sent)] == ["run-1", "run-2", "run-3"]


def test_nothing_is_sent_where_nothing_gathered() -> None:
    assert list(result_batches([], PAYLOAD_BYTES_MAX)) == []
