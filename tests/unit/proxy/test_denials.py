"""Which denials get a row in the audit trail."""

from __future__ import annotations

from fairlead.protocol.reasons import Reason
from fairlead.proxy.ops.denials import BUCKETS_MAX, ROWS_MAX, DenialSampler, matters


def test_one_row_a_minute_and_it_counts_what_was_left_out() -> None:
    sampler = DenialSampler()
    assert [sampler.take("r", "a", second) for second in (0, 1, 59.9)] == [0, None, None]
    assert sampler.take("r", "b", 1) == 0, "somebody else"
    assert sampler.take("other", "a", 1) == 0, "for something else"
    assert sampler.take("r", "a", 60) == 2
    assert sampler.take("r", "a", 121) == 0


def test_over_all_there_is_a_bound() -> None:
    sampler = DenialSampler()
    taken = [sampler.take("r", f"address-{number}", 0) for number in range(10_000)]
    assert sum(each is not None for each in taken) == ROWS_MAX


def test_a_flood_of_addresses_does_not_grow_it() -> None:
    sampler = DenialSampler()
    for number in range(3 * BUCKETS_MAX):
        sampler.take("r", f"address-{number}", number / 1_000)
    assert len(sampler._buckets) <= BUCKETS_MAX + 1
    told = [sampler.take("r", "nobody-knew-this-one", 500), sampler.take("r", "*", 500)]
    assert sum(each or 0 for each in told) > 2 * BUCKETS_MAX - 100, "those whose bucket went are counted"


def test_those_who_were_seen_long_ago_make_room() -> None:
    sampler = DenialSampler()
    for number in range(BUCKETS_MAX):
        sampler.take("r", f"address-{number}", number * 60)
    assert sampler.take("r", "new", BUCKETS_MAX * 60 + 60) == 0


def test_a_row_that_could_not_be_written_is_counted_with_the_others() -> None:
    sampler = DenialSampler()
    sampler.take("r", "a", 0)
    sampler.put_back("r", "a", 3)
    assert sampler.take("r", "a", 60) == 3


def test_what_matters_is_who_somebody_is_and_what_they_may() -> None:
    assert matters(Reason.UNAUTHENTICATED)
    assert matters(Reason.SECURITY_REPLAY_DETECTED)
    assert matters(Reason.PERMISSION_DENIED)
    assert not matters(Reason.BODY_MALFORMED)
    assert not matters(Reason.QUEUE_FULL)
