"""What a client has under way: whatever the link does and whatever is said twice, every submission ends once."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.client.book import (
    ACCEPTED,
    OVER,
    QUEUED,
    RUN_IDS_MAX,
    SENT,
    Book,
    Entry,
    Submit,
    encode,
    id_parts,
)
from fairlead.protocol import messages as m
from fairlead.protocol.envelope import encode_body
from fairlead.protocol.limits import ENVELOPE_HEADER_BYTES_MAX
from fairlead.protocol.reasons import Reason, Refused


def entry(number: int, size: int = 10) -> Entry:
    asked = Submit("t:add", {"text": "x" * size})
    return Entry(encode(f"00000000-0000-7000-8000-{number:012x}", asked, 100_000))


def book(count: int) -> tuple[Book[Entry], list[Entry]]:
    made: Book[Entry] = Book(1_000)
    entries = [entry(number) for number in range(count)]
    for each in entries:
        made.add(each)
    return made, entries


def accepted(each: Entry) -> m.SubmitOutcome:
    return m.SubmitOutcome(each.run_id, "RUNNING")


def refused(each: Entry, reason: Reason, retry_after_ms: int = 0) -> m.SubmitOutcome:
    return m.SubmitOutcome(each.run_id, "REFUSED", reason.value, "why", retry_after_ms)


def test_what_gathered_goes_as_one_message_in_its_order() -> None:
    made, entries = book(3)
    assert [item.run_id for item in made.take(10_000)] == [each.run_id for each in entries]
    assert made.take(10_000) == ()
    assert {each.stage for each in entries} == {SENT}


@settings(max_examples=60)
@given(st.lists(st.integers(0, 3_000), min_size=1, max_size=60), st.integers(4_000, 20_000))
def test_every_message_fits_the_payload_and_nothing_is_left_behind(sizes: list[int], payload: int) -> None:
    made: Book[Entry] = Book(1_000)
    for number, size in enumerate(sizes):
        made.add(entry(number, size))
    bytes_max, sent = payload - ENVELOPE_HEADER_BYTES_MAX, 0
    while items := made.take(bytes_max):
        assert len(encode_body(m.Submit(items))) <= bytes_max
        sent += len(items)
    assert sent == len(sizes)


def test_the_estimate_of_a_submissions_size_is_never_too_small() -> None:
    asked = Submit("ü" * 40, {"k": "\x00"}, "ä" * 60, "ö" * 100, 9, 2**50, 2**50, "https://" + "é" * 90)
    submission = encode("00000000-0000-7000-8000-000000000000", asked, 1_000)
    assert len(encode_body(m.Submit((submission,)))) <= Entry(submission).size + 3 * len(asked.command)


def test_what_was_sent_and_not_answered_is_sent_again_before_the_rest() -> None:
    made, entries = book(4)
    made.take(10_000)
    late = entry(99)
    made.add(late)
    made.submitted([accepted(entries[1])], elsewhere=False)
    made.lost()
    assert made.resume() == [m.Watch((entries[1].run_id,))]
    again = [item.run_id for item in made.take(10_000)]
    assert again == [entries[0].run_id, entries[2].run_id, entries[3].run_id, late.run_id]


def test_an_end_counts_as_the_acceptance_that_was_not_heard() -> None:
    made, (one,) = book(1)
    made.take(10_000)
    end = m.RunEnd(one.run_id, "COMPLETED", b"1")
    assert made.ended([end]) == [one]
    assert (one.stage, one.end) == (OVER, end)
    assert made.submitted([accepted(one)], elsewhere=False) == ([], [], 0), "too late to change anything"
    assert made.ended([end]) == []
    made.lost()
    assert made.resume() == []
    assert made.take(10_000) == ()


def test_a_refusal_is_final_except_where_a_proxy_drains_and_there_are_others() -> None:
    made, (one, two) = book(2)
    made.take(10_000)
    outcomes = [refused(one, Reason.DISPATCH_DRAINING, 5_000), refused(two, Reason.COMMAND_UNKNOWN)]
    assert made.submitted(outcomes, elsewhere=True)[0] == [two]
    assert isinstance(two.refused, Refused)
    assert two.refused.reason is Reason.COMMAND_UNKNOWN
    made.lost()
    assert [item.run_id for item in made.take(10_000)] == [one.run_id]
    answered, _, _ = made.submitted(outcomes[:1], elsewhere=False)
    assert answered == [one]
    assert one.refused is not None
    assert one.refused.retry_after_s == 5.0
    assert made.entries == {}


def test_an_answer_to_a_watch_is_asked_again_or_ends_the_run_as_unknown() -> None:
    made, (one, two) = book(2)
    made.take(10_000)
    made.submitted([accepted(one), accepted(two)], elsewhere=False)
    made.lost()
    outcomes = [refused(one, Reason.STORE_UNAVAILABLE, 500), refused(two, Reason.RUN_UNKNOWN)]
    answered, watch, pause_ms = made.submitted(outcomes, elsewhere=True)
    assert (answered, watch, pause_ms) == ([two], [one.run_id], 500)
    assert one.stage is ACCEPTED
    assert two.end is not None
    assert (two.end.status, two.end.reason) == ("UNKNOWN", "RUN_UNKNOWN")


def test_what_was_never_sent_can_be_taken_back_and_nothing_else() -> None:
    made, (one, two) = book(2)
    assert made.withdraw(one)
    assert not made.withdraw(one)
    assert [item.run_id for item in made.take(10_000)] == [two.run_id]
    assert not made.withdraw(two)
    assert two.stage is SENT


def test_a_cancellation_is_asked_again_on_the_next_link() -> None:
    made, (one, two) = book(2)
    made.take(10_000)
    made.submitted([accepted(one), accepted(two)], elsewhere=False)
    assert made.cancel(one)
    made.lost()
    assert made.resume() == [m.Watch((one.run_id, two.run_id)), m.CancelRuns((one.run_id,))]
    made.ended([m.RunEnd(one.run_id, "CANCELLED", b"", "RUN_CANCELLED")])
    assert not made.cancel(one)


def test_so_many_ids_fit_the_smallest_payload() -> None:
    ids = [f"00000000-0000-7000-8000-{number:012x}" for number in range(2 * RUN_IDS_MAX + 1)]
    parts = id_parts(ids)
    assert [len(part) for part in parts] == [RUN_IDS_MAX, RUN_IDS_MAX, 1]
    smallest = 33_792 - ENVELOPE_HEADER_BYTES_MAX  # what the configuration demands at least
    assert all(len(encode_body(m.Watch(part))) <= smallest for part in parts)


def test_arguments_that_json_cannot_carry_are_refused_before_anything_is_sent() -> None:
    for args, reason in (
        ({"a": object()}, Reason.ARGUMENTS_INVALID),
        ({"a": "x" * 99}, Reason.BODY_TOO_LARGE),
    ):
        with pytest.raises(Refused) as caught:
            encode("id", Submit("t:add", args), 50)
        assert caught.value.reason is reason
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(Refused):
        encode("id", Submit("t:add", {"deep": deep}), 50)


class Proxy:
    """What a proxy that never forgets would say, on a link that may lose any of it."""

    def __init__(self) -> None:
        self.runs: dict[str, int] = {}

    def submit(self, items: tuple[m.Submission, ...]) -> None:
        for item in items:
            self.runs[item.run_id] = self.runs.get(item.run_id, 0) + 1


@settings(max_examples=200)
@given(st.data())
def test_however_often_the_link_breaks_every_submission_ends_once(data: st.DataObject) -> None:
    made, entries = book(data.draw(st.integers(1, 12)))
    proxy, over = Proxy(), 0
    for _ in range(data.draw(st.integers(0, 12))):
        proxy.submit(made.take(data.draw(st.integers(1, 600))))
        known = st.sampled_from(entries)
        said = data.draw(st.lists(known, max_size=6))
        made.submitted([accepted(each) for each in said if each.run_id in proxy.runs], elsewhere=True)
        ended = [each for each in data.draw(st.lists(known, max_size=3)) if each.run_id in proxy.runs]
        over += len(made.ended([m.RunEnd(each.run_id, "COMPLETED", b"1") for each in ended]))
        if data.draw(st.booleans()):
            made.lost()
            for message in made.resume():
                assert isinstance(message, m.Watch)
                assert all(run_id in proxy.runs for run_id in message.run_ids), "only what was accepted"
    made.lost()
    watched = {run_id for message in made.resume() for run_id in msgspec.to_builtins(message)[0]}
    while items := made.take(10_000):
        proxy.submit(items)
    over += len(made.ended([m.RunEnd(each.run_id, "COMPLETED", b"1") for each in entries]))
    assert over == len(entries)
    assert made.entries == {}
    assert set(proxy.runs) == {each.run_id for each in entries}
    assert watched <= set(proxy.runs)
    assert {each.stage for each in entries} == {OVER}
    assert QUEUED not in {each.stage for each in entries}
