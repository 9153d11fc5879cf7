"""Tables, facts and sentences at any width of the terminal: no number, unit, mark or path is cut."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipmlu.report.tables import Column, figures, optional, print_facts, print_sentences, print_table, words
from clipmlu.report.wrapping import Joined, Whole, wrap
from conftest import REPOSITORY
from screen import WIDTHS, Screen, missing, on_terminal, raw_on_terminal, width_of

RATES = [
    ("fp32 (emulated)", "1024.5", "12.345", "compiled for the card in 12.5 s"),
    ("int8 (emulated)", "98.1", "7.001", ""),
]
COLUMNS = (*words("precision"), *figures("images/s", "latency ms"), *words("what"))


def test_table_is_aligned_by_cells() -> None:
    lines = on_terminal(
        80, lambda: print_table((*words("class"), *figures("images")), [("猫と犬", "7"), ("cat", "1000")])
    )
    assert lines == ["class   images", "──────  ──────", "猫と犬       7", "cat       1000"]


def test_narrow_terminal_gets_a_block_for_each_row_with_numbers_below_each_other() -> None:
    lines = on_terminal(41, lambda: print_table(COLUMNS, RATES, title="rates"))
    assert lines == [
        *("", "rates", "fp32 (emulated)"),
        "  images/s: 1024.5   latency ms: 12.345",
        *("  what: compiled for the card in 12.5 s", "int8 (emulated)"),
        "  images/s:   98.1   latency ms:  7.001",
    ]


def test_optional_columns_are_left_out_with_a_line_that_names_them() -> None:
    columns = (*words("precision"), *figures("images/s", "latency ms"), *optional(words("what")))
    assert on_terminal(41, lambda: print_table(columns, RATES)) == [
        "precision        images/s  latency ms",
        "───────────────  ────────  ──────────",
        "fp32 (emulated)    1024.5      12.345",
        "int8 (emulated)      98.1       7.001",
        *("not shown at this width: what; --json", "  has all"),
    ]
    assert on_terminal(80, lambda: print_table(columns, RATES)) == on_terminal(80, lambda: print_table(COLUMNS, RATES))
    assert on_terminal(30, lambda: print_table(columns, RATES)) == on_terminal(30, lambda: print_table(COLUMNS, RATES))


def test_fact_without_a_name_below_a_wide_one_adds_no_empty_line() -> None:
    facts = [("a long name of a check", "found"), ("", "remedy: unconditionally-long-words")]
    shown = ["a long name of a check  found", "  remedy:", "  unconditionally-long-words"]
    assert on_terminal(30, lambda: print_facts(facts)) == shown


def test_row_is_named_by_all_its_keys() -> None:
    rows = [("image tower of a long name", "projection", "99.8 %"), ("", "qkv", "")]
    columns = (*words("tower", "role"), *figures("of multiply-accumulate operations"))
    assert on_terminal(50, lambda: print_table(columns, rows, keys=2)) == [
        "image tower of a long name  projection",
        "  of multiply-accumulate operations: 99.8 %",
        "qkv",
    ]


def test_texts_of_a_table_are_broken_at_spaces_and_headings_stand_above_the_rule() -> None:
    columns = (*words("check", "what was found there"), *figures("ms/image alone"))
    rows = [("cores", "2 CPUs with AVX2 and AVX512, of which the quota allows 1.5 CPUs", "12.5")]
    assert on_terminal(45, lambda: print_table(columns, rows)) == [
        "                                     ms/image",
        "check  what was found there             alone",
        "─────  ────────────────────────────  ────────",
        "cores  2 CPUs with AVX2 and AVX512,      12.5",
        "       of which the quota allows",
        "       1.5 CPUs",
    ]


def test_nothing_is_printed_without_rows() -> None:
    assert on_terminal(80, lambda: print_table(COLUMNS, [], title="rates")) == []


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("latency 12.345 ms of one batch", 14, ["latency", "12.345 ms of", "one batch"]),
        ("top-1 is 0.6123 (emulated), so far", 22, ["top-1 is", "0.6123 (emulated), so", "far"]),
        ("pictures of 224 x 224 pixels", 20, ["pictures of", "224 x 224 pixels"]),
        ("McNemar with p = 0.031", 18, ["McNemar with", "p = 0.031"]),
        ("1, 2, 3, 4, 5, 6", 8, ["1, 2, 3,", "4, 5, 6"]),
        ("95 %: 0.61 to 0.64", 12, ["95 %:", "0.61 to 0.64"]),
    ],
)
def test_number_stays_beside_its_unit(text: str, width: int, lines: list[str]) -> None:
    assert wrap(text, width) == lines


def test_path_is_whole_where_the_terminal_is_wide_enough() -> None:
    path = "/srv/my models/of the year 2026/ViT-B-32"  # 40 cells
    facts = [("bundle", Joined(Whole(path), "(compiled, 3.5 MB)")), ("a long name of a fact", "2")]
    assert on_terminal(80, lambda: print_facts(facts))[0] == f"bundle                 {path} (compiled,"
    assert on_terminal(60, lambda: print_facts(facts))[:3] == ["bundle", f"  {path} (compiled,", "  3.5 MB)"]
    assert on_terminal(40, lambda: print_facts(facts))[:3] == ["bundle", path, "(compiled, 3.5 MB)"]
    assert on_terminal(30, lambda: print_facts(facts))[:3] == ["bundle", path[:30], f"{path[30:]} (compiled, 3.5 MB)"]


def test_control_characters_of_a_text_do_not_reach_the_terminal() -> None:
    rows = [("\x1b[31mred\x07", "1")]
    assert on_terminal(80, lambda: print_table((*words("class"), *figures("images")), rows))[2:] == [
        r"\x1b[31mred\x07       1"
    ]
    assert on_terminal(80, lambda: print_facts([("a\nb", "c\td")])) == ["a b  c d"]


def test_without_a_terminal_a_fact_is_one_line_and_a_table_has_120_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    long = "word " * 60 + "end"
    print_facts([("name", long)])
    print_sentences([long])
    print_table(words("name", "text"), [("a", long)])
    fact, sentence, heading, rule, *rows = capsys.readouterr().out.splitlines()
    assert (fact, sentence, heading.split()) == (f"name  {long}", long, ["name", "text"])
    assert max(map(len, [rule, *rows])) <= 120 < len(long)
    assert len(rule) > 110
    assert " ".join(" ".join(rows).split()) == f"a {long}"
    path = Whole("/p" * 100)
    print_table(words("name", "path"), [("a", path)])
    assert capsys.readouterr().out.splitlines() == ["a", f"  path: {path}"]


@pytest.mark.parametrize(("variables", "bold"), [({}, True), ({"TERM": "dumb"}, False), ({"NO_COLOR": "1"}, True)])
def test_headings_are_bold_where_the_terminal_can_and_nothing_has_a_colour(
    variables: dict[str, str], bold: bool
) -> None:
    written = raw_on_terminal(80, lambda: print_facts([("name", "value")]), **variables)
    assert set(re.findall(r"\x1b\[([\d;]*)m", written)) == ({"1", "0"} if bold else set())


def test_encoding_without_line_drawing_gets_a_rule_of_hyphens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Screen, "encoding", "latin-1")
    assert on_terminal(80, lambda: print_table(words("name"), [("value",)])) == ["name", "-----", "value"]


_NUMBERS = st.from_regex(r"-?[0-9]{1,6}(\.[0-9]{1,4})?( (ms|images/s|%|MiB))?", fullmatch=True)
_WORDS = st.text(st.characters(codec="utf-8", categories=("L", "N", "P")) | st.sampled_from("猫犬🐈 "), max_size=50)


@st.composite
def _tables(draw: st.DrawFn) -> tuple[tuple[Column, ...], list[list[str]]]:
    columns = (*words(draw(_WORDS)), *draw(st.lists(st.builds(Column, _WORDS, st.booleans()), max_size=8)))
    row = st.tuples(*(_NUMBERS if column.figures else _WORDS for column in columns)).map(list)
    return columns, draw(st.lists(row, min_size=1, max_size=4))


@settings(max_examples=10, deadline=None)
@given(_tables(), st.sampled_from(WIDTHS))
def test_any_table_keeps_its_numbers_whole_and_fits(
    table: tuple[tuple[Column, ...], list[list[str]]], columns: int
) -> None:
    heads, rows = table
    lines = on_terminal(columns, lambda: print_table(heads, rows))
    numbers = [cell for row in rows for head, cell in zip(heads, row, strict=True) if head.figures]
    assert not missing(numbers, lines)
    everything = re.sub(r"\s|─", "", "".join(lines))
    for row in rows:
        for cell in row:
            assert width_of(cell) > 24 or re.sub(r"\s", "", cell) in everything


def test_tables_are_made_in_one_place() -> None:
    source = REPOSITORY / "src" / "clipmlu"
    assert not [path for path in source.rglob("*.py") if "rich.table" in path.read_text("utf-8")]
