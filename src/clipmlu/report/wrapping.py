"""Texts in lines of a limited width, measured in cells of a terminal, with every number beside its unit."""

from __future__ import annotations

import re

from clipmlu.file_names import printable

NARROWEST = 20
"""Lines are not made shorter than this, whatever the terminal's width."""

_NUMBER = re.compile(r"[^\w\s]*\d(?:[\d.,:/e+-]*\d)?")
_UNIT = re.compile(r"%|[^\W\d]")
_SIGN = re.compile(r"x|=|±|p\d\d")
_MARK = "(emulated)"
_LONGEST_UNIT = 16


class Whole(str):
    """A text that is not broken at its spaces, such as a path."""

    __slots__ = ()


class Joined(str):
    """Texts with a space between them, of which some may be ``Whole``."""

    parts: tuple[str, ...]

    def __new__(cls, *parts: str) -> Joined:
        """Join the parts."""
        text = super().__new__(cls, " ".join(parts))
        text.parts = parts
        return text


def shown(text: str) -> str:
    r"""Return a text as one line of visible characters: control characters as ``\xNN``, line breaks and tabs as spaces."""
    if isinstance(text, Joined):
        return Joined(*map(shown, text.parts))
    plain = printable(re.sub(r"[\n\t]", " ", text))
    return Whole(plain) if isinstance(text, Whole) else plain


def cells(text: str) -> int:
    """Return the number of a terminal's cells that a text takes: two for a Chinese character or an emoji."""
    from rich.cells import cell_len

    return cell_len(text)


def pieces(text: str) -> list[str]:
    """Split a text where a line may end: at spaces, but not between a number and its unit or before ``(emulated)``."""
    if isinstance(text, Whole):
        return [text]
    if isinstance(text, Joined):
        return [piece for part in text.parts for piece in pieces(part)]
    found: list[str] = []
    last = ""
    for word in text.split(" "):
        if found and _belong_together(last, word):
            found[-1] += f" {word}"
        else:
            found.append(word)
        last = word
    return found


def longest_piece(text: str) -> int:
    """Return the width in which no piece of a text has to be broken, in cells."""
    return max(map(cells, pieces(text)))


def wrap(text: str, width: int | None, *, fold: bool = True) -> list[str]:
    """Break a text into lines.

    Args:
        text: one line.
        width: cells of a line; None breaks nothing.
        fold: break a word that is wider than a line, anywhere; otherwise its line is too wide.

    Returns:
        One line at least. A piece is broken, at its spaces, only if it is wider than a line.
    """
    if width is None or cells(text) <= width:
        return [text]
    lines: list[str] = []
    for piece in pieces(text):
        for part in _fitting(piece, width, fold=fold):
            if lines and cells(lines[-1]) + 1 + cells(part) <= width:
                lines[-1] += f" {part}"
            else:
                lines.append(part)
    return lines


def pad(text: str, width: int, *, right: bool = False) -> str:
    """Fill a text up to a width in cells; with ``right`` the text is at the right end."""
    space = " " * (width - cells(text))
    return space + text if right else text + space


def _belong_together(first: str, second: str) -> bool:
    """Whether two words are a number with its unit, a sign or a percentile, or a word with the mark of emulated figures."""
    if second.startswith(_MARK) or _SIGN.fullmatch(first):
        return True
    if not _NUMBER.fullmatch(first):
        return bool(second == "=")
    return bool(_UNIT.match(second) and cells(second) <= _LONGEST_UNIT) or bool(_SIGN.fullmatch(second))


def _fitting(piece: str, width: int, *, fold: bool) -> list[str]:
    """Break a piece that is wider than a line."""
    from rich.cells import chop_cells

    if cells(piece) <= width:
        return [piece]
    words = [piece] if isinstance(piece, Whole) else piece.split(" ")
    return [part for word in words for part in (chop_cells(word, width) if fold and word else [word])]
