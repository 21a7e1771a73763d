"""The kill switch: any source that says on means on, and what its file says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fairlead.proxy.rollout.kill_switch import LINES_KEPT, KillSwitch, Line, Said, Source, read

ON, OFF = Said(True, 1, "op", "INC-7"), Said(False)


@given(st.lists(st.tuples(st.sampled_from(Source), st.booleans()), max_size=30))
def test_it_is_on_while_any_source_says_so_and_the_epoch_grows_with_every_change(
    steps: list[tuple[Source, bool]],
) -> None:
    switch, said, before = KillSwitch({}), dict[Source, bool](), False
    for number, (source, on) in enumerate(steps):
        epoch = switch.epoch
        changed = switch.say(source, ON if on else OFF, number)
        said[source] = on
        assert switch.is_on is any(said.values())
        assert changed is (switch.is_on is not before)
        assert (switch.epoch > epoch) is changed
        assert set(switch.sources) == {each for each, says in said.items() if says}
        before = switch.is_on


def test_no_file_is_off_and_one_that_is_merely_there_is_on() -> None:
    assert not read(None).said.on
    for content in (b"", b"\n \n"):
        assert read(content).said.on
        assert read(content).is_by_hand


def test_the_last_line_counts_and_one_that_cannot_be_read_is_on() -> None:
    assert not read(b'{"on": true}\n{"on": false}\n').said.on
    assert read(b'{"on": false}\n{"on": true, "by": "me"}\n').said == Said(True, 0, "me", "")
    for broken in (b"{", b'{"on": 1}', b"[]", b"off", b"\xff"):
        found = read(b'{"on": false}\n' + broken)
        assert found.said.on
        assert found.is_by_hand


def test_what_the_store_holds_the_file_does_not_say_by_itself() -> None:
    line = Line(True, 5, "op", "INC-7", "e-1")
    found = read(read(None).with_line(line).encoded())
    assert (found.said.on, found.waiting, found.is_by_hand) == (True, (line,), False)
    handed_over = read(found.imported(frozenset({"e-1"})).encoded())
    assert (handed_over.said.on, handed_over.waiting) == (False, ())


def test_the_file_does_not_grow_without_end() -> None:
    found = read(None)
    for number in range(2 * LINES_KEPT):
        found = found.with_line(Line(False, number))
    assert len(found.encoded().splitlines()) == LINES_KEPT
    assert len(read(found.encoded()).lines or ()) == LINES_KEPT


@given(st.binary(max_size=300))
def test_whatever_is_in_the_file_it_is_read_and_says_something(content: bytes) -> None:
    found = read(content)
    assert found.said.on or found.lines
