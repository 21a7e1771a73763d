"""Pure. A game server's console line with arguments in it, so that an argument stays one.

Consoles read a line in different ways: some end a command at `;`, some take `@a` for everybody, some know no way to
write a quote inside quotes. So nothing is escaped here. An argument goes in as it stands or the run is refused, and the
operator says by the form which arguments a place takes:

    {name}        one word: letters, digits and _ . : + -, beginning with a letter, a digit or _
    "... {name} ..."   inside quotes: anything printable but " \\ ;
    {name:text}   the rest of the line, at its end only: anything printable but ;

Numbers and booleans go anywhere. A value that the parameter's `choices` list is the operator's own word and
goes in as it is, as long as it is printable. `{{` and `}}` are braces.

Invariants: a line has no control characters and no line breaks, whatever its arguments; it begins with the operator's
words, so that an argument never names the command.
"""

from __future__ import annotations

import re
import string
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

WORD: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:+-]{0,127}")
IN_QUOTES_REFUSED: Final = frozenset('";\\')
IN_TEXT_REFUSED: Final = frozenset(";")


class ArgumentRefused(ValueError):
    """The argument cannot stand in the line; the message names it and says what may, without its value."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Words of the operator, or the place of an argument."""

    words: str
    parameter: str = ""
    form: str = ""  # word, quoted, text


def read_line(line: str) -> tuple[Piece, ...] | str:
    """The pieces of a configured line, or what is wrong with it."""
    if not line.isprintable():
        return "has control characters or a line break"
    pieces: list[Piece] = []
    is_quoted = False
    try:
        parsed = list(string.Formatter().parse(line))
    except ValueError as error:
        return f"cannot be read: {error}"
    for words, name, spec, conversion in parsed:
        if pieces and pieces[-1].form == "text":
            return f"has something after {{{pieces[-1].parameter}:text}}, which takes the rest of the line"
        if words:
            pieces.append(Piece(words))
            is_quoted ^= words.count('"') % 2 == 1
        if name is None:
            continue
        if not name.isidentifier() or conversion:
            return f"has a place {{{name}}} that is none (write {{name}} or {{name:text}})"
        if spec not in ("", "text") or (spec and is_quoted):
            return f"asks for {{{name}:{spec}}} (write {{{name}}}, or at the line's end {{{name}:text}})"
        if not pieces:
            return "begins with an argument, which would name the command"
        pieces.append(Piece("", name, spec or ("quoted" if is_quoted else "word")))
    if not pieces:
        return "is empty"
    return "has a quote that does not end" if is_quoted else tuple(pieces)


def fill_line(pieces: tuple[Piece, ...], arguments: Mapping[str, Any], chosen: Collection[str] = ()) -> str:
    """The line with the arguments in it. `chosen`: the parameters whose values the operator listed. Raises
    ArgumentRefused."""
    return "".join(
        piece.words or _text_of(piece, arguments[piece.parameter], piece.parameter in chosen)
        for piece in pieces
    )


def _text_of(piece: Piece, value: Any, is_chosen: bool) -> str:
    name = piece.parameter
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str):
        raise ArgumentRefused(f"{name}: only text, numbers and booleans go into a console's line")
    if not value.isprintable():
        raise ArgumentRefused(f"{name}: has a line break or another character that is not printable")
    if is_chosen:
        return value
    if piece.form == "word":
        if not WORD.fullmatch(value):
            raise ArgumentRefused(f"{name}: must be one word of letters, digits and _ . : + -")
    else:
        refused = IN_QUOTES_REFUSED if piece.form == "quoted" else IN_TEXT_REFUSED
        if found := sorted(refused & set(value)):
            raise ArgumentRefused(f"{name}: must not have {' or '.join(found)} in it")
    return value
