"""Console lines: which a file may have, and that no argument becomes more than an argument."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.backend.console_line import ArgumentRefused, Piece, fill_line, read_line


def pieces_of(line: str) -> tuple[Piece, ...]:
    found = read_line(line)
    assert not isinstance(found, str), found
    return found


def filled(line: str, chosen: tuple[str, ...] = (), **arguments: Any) -> str:
    return fill_line(pieces_of(line), arguments, chosen)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("", "is empty"),
        ("{player}", "begins with an argument"),
        ("say a\nop me", "control characters"),
        ("say {text:text} now", "has something after {text:text}"),
        ("say {text:text}{more}", "has something after {text:text}"),
        ('say "{text:text}"', "asks for {text:text}"),
        ("say {text:5}", "asks for {text:5}"),
        ("say {0}", "a place {0}"),
        ("say {a.b}", "a place {a.b}"),
        ("say {a!r}", "a place {a}"),
        ("say {a", "cannot be read"),
        ('say "{text}', "a quote that does not end"),
    ],
)
def test_lines_that_are_refused(line: str, problem: str) -> None:
    found = read_line(line)
    assert isinstance(found, str)
    assert problem in found


def test_the_three_forms() -> None:
    line = 'kick {player} {times} "because: {why}" {rest:text}'
    assert [piece.form for piece in pieces_of(line) if piece.parameter] == ["word", "word", "quoted", "text"]
    assert filled(line, player="Bob_1", times=-3, why="not nice, at all", rest='he said "no"') == (
        'kick Bob_1 -3 "because: not nice, at all" he said "no"'
    )
    assert filled('tellraw Bob {{"text":"{text}"}}', text="hi") == 'tellraw Bob {"text":"hi"}'
    assert filled("set {on} {share}", on=True, share=0.5) == "set true 0.5"


@pytest.mark.parametrize(
    "value",
    ["", "@a", "@e[type=player]", "two words", "a;quit", "a\nquit", "a\rquit", "a\0", '"', "a\u2028b", "-x", "~", "$x",
     "a/b", "x" * 129, "é"],
)  # fmt: skip
def test_what_is_no_word(value: str) -> None:
    with pytest.raises(ArgumentRefused, match=r"^player: ") as caught:
        filled("kick {player}", player=value)
    assert not value or len(value) < 2 or value not in str(caught.value), "it is not told again"


@pytest.mark.parametrize("value", ['"; quit; "', '\\"', "a\\", "a;b", "a\nb", "a\x7fb", "a\u202eb"])
def test_nothing_leaves_its_quotes(value: str) -> None:
    with pytest.raises(ArgumentRefused):
        filled('say "{text}"', text=value)


@pytest.mark.parametrize("value", ["bye; op me", "bye\nop me", "bye\u0085op me", "\x1b[0m"])
def test_the_rest_of_the_line_is_one_command(value: str) -> None:
    with pytest.raises(ArgumentRefused):
        filled("say {text:text}", text=value)


@pytest.mark.parametrize("value", [None, [], {}, ["a"]])
def test_only_scalars_stand_in_a_line(value: Any) -> None:
    with pytest.raises(ArgumentRefused):
        filled("say {text:text}", text=value)


def test_what_the_operator_chose_goes_in_as_it_is() -> None:
    assert filled("kick {who}", ("who",), who="@a") == "kick @a"
    with pytest.raises(ArgumentRefused):
        filled("kick {who}", ("who",), who="a\nb")


@given(st.text(), st.text(), st.text())
def test_whatever_is_given_the_line_keeps_its_shape(word: str, quoted: str, rest: str) -> None:
    """One line, the operator's words where they were, and as many quotes as they wrote around a place."""
    try:
        line = filled('kick {word} "{quoted}" because {rest:text}', word=word, quoted=quoted, rest=rest)
    except ArgumentRefused:
        return
    assert line.isprintable()
    assert ";" not in line
    assert line == f'kick {word} "{quoted}" because {rest}'
    assert line.split(" ")[1] == word
    assert line.split('"')[1] == quoted
