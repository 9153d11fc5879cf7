"""The Chinese pages say what the English ones say: commands, outputs, sections, links, names and numbers are the same."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from conftest import REPOSITORY
from pages import DOCS, TRANSLATIONS, Block, blocks, name_of, without_code

PAIRS = pytest.mark.parametrize(("chinese", "english"), TRANSLATIONS.items(), ids=map(name_of, TRANSLATIONS))
GLOSSARY = DOCS / "zh" / "glossary.md"
CHINESE = [*TRANSLATIONS, DOCS / "zh" / "index.md", GLOSSARY]
SERVED_WORDS = REPOSITORY / "src" / "clipmlu" / "serve" / "page" / "words.js"
_COMMENT = re.compile(r" +# .*$", flags=re.MULTILINE)
_HAN = r"[\u4e00-\u9fff]"


def _what_it_does(block: Block) -> tuple[str, str, dict[str, str]]:
    """Language, text and marks of a block; comments, which are translated, are left out."""
    return block.language, _COMMENT.sub("", block.text), block.marks


def _language_line(page: Path) -> str:
    """The line below the title, which links the other language."""
    return page.read_text(encoding="utf-8").splitlines()[2]


def _sections(page: Path) -> list[tuple[int, str]]:
    """Level and text of each section, without its code blocks and without the line of languages."""
    text = without_code(page).replace(_language_line(page), "")
    parts = re.split(r"^(#+) .*\n", text, flags=re.MULTILINE)[1:]
    return [(len(level), body) for level, body in zip(parts[::2], parts[1::2], strict=True)]


def _targets(text: str, page: Path) -> list[str]:
    """Links of a text, by what they lead to: a page that is translated counts as its English one."""
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        file = Path(os.path.normpath(page.parent / path)) if ":" not in link else None
        found.append(link if file is None else f"{name_of(TRANSLATIONS.get(file, file))}#{anchor}")
    return sorted(found)


def _prose(page: Path) -> str:
    """The Chinese text of a page, without code blocks and targets of links; of words.js its Chinese strings, with X for what is filled in."""
    if page == SERVED_WORDS:
        strings = re.findall(r'"([^"]*)"|`([^`]*)`', page.read_text(encoding="utf-8").partition("\n  zh: {")[2])
        filled = re.sub(r"\$\{[^}]*\}", "X", "\n".join(map("".join, strings)))
        return "\n".join(line for line in filled.replace(r"\u00a0", " ").splitlines() if re.search(_HAN, line))
    return re.sub(r"\]\([^)]*\)", "]", without_code(page))


def _choices_of_terms() -> list[tuple[list[str], list[str]]]:
    """The rows of the glossary's last table: the terms to use, and those that they replace."""
    rows = GLOSSARY.read_text(encoding="utf-8").partition("| 采用 | 不采用 | 理由 |\n|---|---|---|\n")[2].splitlines()
    cells = [[cell.strip().split("、") for cell in row.split("|")[1:3]] for row in rows]
    return [(used, avoided) for used, avoided in cells]


@PAIRS
def test_commands_and_outputs_are_equal(chinese: Path, english: Path) -> None:
    ours, theirs = ([_what_it_does(block) for block in blocks(page)] for page in (chinese, english))
    assert ours == theirs
    assert len(ours) == len(re.findall(r"^ *```", chinese.read_text(encoding="utf-8"), flags=re.MULTILINE)) / 2


@PAIRS
def test_sections_have_the_same_levels_links_names_and_numbers(chinese: Path, english: Path) -> None:
    ours, theirs = _sections(chinese), _sections(english)
    assert [level for level, _ in ours] == [level for level, _ in theirs]
    for (_, one), (_, other) in zip(ours, theirs, strict=True):
        assert _targets(one, chinese) == _targets(other, english), one
        for pattern in (r"`[^`]+`", r"(?<![\w.])\d[\d.,]*(?<![.,])", r"^\|", r"^- "):
            found, expected = (
                sorted(" ".join(name.split()) for name in re.findall(pattern, text, flags=re.MULTILINE))
                for text in (one, other)
            )
            assert found == expected, one


@PAIRS
def test_translated_pages_link_each_other_below_the_title(chinese: Path, english: Path) -> None:
    for page, other in ((chinese, english), (english, chinese)):
        relative = os.path.relpath(other, page.parent)
        assert f"]({relative})" in _language_line(page), name_of(page)


@PAIRS
def test_links_lead_to_chinese_pages_where_there_are_any(chinese: Path, english: Path) -> None:
    text = "".join(body for _, body in _sections(chinese))
    linked = {Path(os.path.normpath(chinese.parent / link)) for link in re.findall(r"\]\(([^)\s#:]+)\)", text)}
    assert linked & set(TRANSLATIONS.values()) == set()


@pytest.mark.parametrize("page", [*CHINESE, SERVED_WORDS], ids=name_of)
def test_chinese_text_is_set_as_chinese(page: Path) -> None:
    """Full-width marks beside Chinese, a space between Chinese and Latin words, whole paragraphs on one line, since a line break becomes a space.

    Chinese has no slanted type; and GitHub shows the stars of bold text that ends with a mark and is followed by a word.
    """
    text = _prose(page)
    assert re.findall(rf"(?<!\*)\*(?![*\s])[^*\n]*{_HAN}[^*\n]*(?<!\s)\*(?!\*)", text) == []
    assert re.findall(r"\*\*[^*\n]+[，。；：、？！）”]\*\*(?=\w)|(?<=\w)\*\*[（“][^*\n]+\*\*", text) == []
    assert re.findall(rf"{_HAN}(?:[,;:!?()\"']|\.(?![A-Za-z0-9]))", text) == []
    assert re.findall(rf"[,;:!?(\"']{_HAN}", text) == []
    assert re.findall(rf"(?:{_HAN}[A-Za-z0-9`]|[A-Za-z0-9`]{_HAN})[^\n]{{,20}}", text) == []
    if page != SERVED_WORDS:
        assert re.findall(rf"[{_HAN[1:-1]}，。；：、]\n(?!\d+\. )[^\n|#<-][^\n]*", text) == []


@pytest.mark.parametrize("page", [*CHINESE, SERVED_WORDS], ids=name_of)
def test_emulated_is_marked_in_both_languages(page: Path) -> None:
    assert re.findall("模拟(?!（emulated）).{,10}", _prose(page)) == []


@pytest.mark.parametrize("page", [*CHINESE, SERVED_WORDS], ids=name_of)
def test_terms_are_those_of_the_glossary(page: Path) -> None:
    text = _prose(page).partition("| 采用 | 不采用 | 理由 |")[0]
    for used, avoided in _choices_of_terms():
        assert [term for term in avoided if term in text] == [], f"{name_of(page)}: write {'、'.join(used)}"


def test_the_glossary_decides_between_terms_that_the_pages_use() -> None:
    choices = _choices_of_terms()
    text = "".join(_prose(page) for page in (*TRANSLATIONS, SERVED_WORDS))
    explained = GLOSSARY.read_text(encoding="utf-8").partition("| 采用 |")[0]
    assert len(choices) > 10
    for used, avoided in choices:
        assert [term for term in used if term not in text + explained] == []
        assert [term for term in avoided for other in used if term in other] == []


def test_every_chinese_page_is_compared_or_has_no_english_one() -> None:
    assert set(CHINESE) == {REPOSITORY / "README.zh-CN.md", *(DOCS / "zh").rglob("*.md")}


def test_the_chinese_overview_links_every_chinese_page() -> None:
    index = DOCS / "zh" / "index.md"
    linked = {name.partition("#")[0] for name in re.findall(r"\]\(([^)\s]+)\)", without_code(index))}
    assert {page.relative_to(DOCS / "zh").as_posix() for page in (DOCS / "zh").rglob("*.md")} - {"index.md"} <= linked
