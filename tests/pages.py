"""The pages of the documentation as data: their code blocks, marks and links.

A block of a page is a fence. Its language says what it is:

    sh       commands that a test runs, one on each line, in the order of the page; a service that ends in & runs until the page ends
    python   a program that a test runs, after the commands above it and with the names of the earlier ones
    console  commands that no test can run; a mark says what they need, and their options are checked
    text, yaml, json, ini   shown only

A mark is an HTML comment before the block, which readers do not see:

    <!-- starts with: demo demo-cpu photos labels.txt -->   what is in the folder when the first block of the page begins
    <!-- needs: card -->      why the next block is not run: a network, a card, a cluster, a container, files or another package
    <!-- exit: 3 -->          exit code of the last line of the next block
    <!-- output -->           the next block is part of the output of the block before it; numbers may differ
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import unicodedata
from pathlib import Path
from types import ModuleType

from conftest import REPOSITORY

DOCS = REPOSITORY / "docs"
NEEDS = ("card", "cluster", "container", "files", "network", "package")
MARKS = ("starts with", "needs", "exit", "output")
TRANSLATIONS = {REPOSITORY / "README.zh-CN.md": REPOSITORY / "README.md"} | {
    page: DOCS / page.relative_to(DOCS / "zh")
    for page in sorted((DOCS / "zh").rglob("*.md"))
    if page.name not in ("index.md", "glossary.md")  # these are Chinese pages of their own
}
"""Chinese pages, and the English ones whose commands they repeat."""
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w-]*)\n(?P<text>.*?)^(?P=indent)```$", flags=re.MULTILINE | re.DOTALL
)
_MARKS = re.compile(r"((?:<!-- [^\n]* -->\n+)+)\Z")
_NUMBER = re.compile(r"[-+]?\d[\d.]*(e[-+]?\d+)?")


@dataclasses.dataclass(frozen=True)
class Block:
    """A code block of a page: its language, its text, the line where it begins, and its marks."""

    language: str
    text: str
    line: int
    marks: dict[str, str]

    @property
    def commands(self) -> list[str]:
        """The lines, without empty ones."""
        return [line for line in self.text.splitlines() if line.strip()]


def all_pages() -> list[Path]:
    """The README files, CONTRIBUTING and the like, and all pages of the site; the CHANGELOG tells of the past."""
    top = [path for path in sorted(REPOSITORY.glob("*.md")) if path.name != "CHANGELOG.md"]
    folders = [REPOSITORY / name / "README.md" for name in ("benchmarks", "examples")]
    return [*top, *folders, *sorted(DOCS.rglob("*.md"))]


def name_of(page: Path) -> str:
    """The page's path in the repository."""
    return page.relative_to(REPOSITORY).as_posix()


def blocks(page: Path) -> list[Block]:
    """The code blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        before = _MARKS.search(text[: match.start()])
        marks = {}
        for mark in re.findall(r"<!-- (.*?) -->", before.group(1)) if before else ():
            key, _, value = mark.partition(":")
            marks[key.strip()] = value.strip()
        found.append(Block(match["language"], match["text"], text.count("\n", 0, match.start()) + 1, marks))
    return found


def start_of(page: Path) -> list[str]:
    """What must be in the folder before the first command of the page."""
    return [
        name
        for given in re.findall(r"<!-- starts with: (.*?) -->", page.read_text(encoding="utf-8"))
        for name in given.split()
    ]


def without_code(page: Path) -> str:
    """The text of a page without its code blocks, those by indentation too."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return re.sub(r"(?<=\n\n)(?: {4}.*\n+)+", "", text)


def indented_code(page: Path) -> list[str]:
    """The lines of code blocks that are made by indentation."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    found = re.findall(r"(?<=\n\n)((?: {4}\S.*\n)(?: {4}.*\n|\n(?= {4}))*)", text)
    return [line.strip() for block in found for line in block.splitlines() if line.strip()]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the site (``slugify`` in mkdocs.yml) and GitHub make them."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", _FENCE.sub("", page.read_text(encoding="utf-8")), flags=re.MULTILINE):
        plain = unicodedata.normalize("NFC", re.sub(r"[`*]", "", heading))
        found.add(re.sub(r"[^\w -]", "", plain).strip().lower().replace(" ", "-"))
    return found


def load_tool(name: str) -> ModuleType:
    """The program of that name in ``tools/``, as a module."""
    specification = importlib.util.spec_from_file_location(name, REPOSITORY / "tools" / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def masked(output: str) -> list[str]:
    """The lines of an output with numbers replaced and columns joined, to be compared with those of another run."""
    return [" ".join(_NUMBER.sub("#", line).split()) for line in output.splitlines()]
