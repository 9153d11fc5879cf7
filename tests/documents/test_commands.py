"""The commands and programs of all pages run, or name what they need and have valid options."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import clipmlu
from clipmlu.bundle.directory import ExportedBundle
from clipmlu.cli import cli, main
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.host import cache_dir
from conftest import REPOSITORY
from pages import (
    DOCS,
    MARKS,
    NEEDS,
    TRANSLATIONS,
    Block,
    all_pages,
    blocks,
    indented_code,
    masked,
    name_of,
    start_of,
    without_code,
)
from support import keep_export, put_export, wait_until

README = REPOSITORY / "README.md"
TUTORIAL = DOCS / "tutorial.md"
ELSEWHERE = {
    "docs/python.md": "the blocks are written by tools/write_python_reference.py",
    "docs/cli.md": "the examples of the help are run by tests/cli",
    **{name_of(page): "the blocks are those of the English page, by test_translations.py" for page in TRANSLATIONS},
}
"""Pages whose commands another test runs."""
PROGRAMS = ("clipmlu", "curl", "mkdir", "python")
PORT = "8000"
"""Port of services in the pages; a test takes a free one."""
_SMALLER = {"--samples": "20", "--calib-samples": "8", "--duration": "20"}
"""Replaced in the quick runs."""
LEFT_OUT = ("demo-int8", "too-strict", "demo-mlu", "clipmlu bench", "clipmlu report", "clipmlu run")
"""Blocks with these are left out of the quick run of the tutorial: the compilations in 8 bits and what needs them, and what README has too."""


def _has_commands(page: Path) -> bool:
    return any(block.language in ("sh", "python") for block in blocks(page))


PAGES = [page for page in all_pages() if _has_commands(page) and name_of(page) not in ELSEWHERE]


@pytest.fixture
def start(demo_bundle: ExportedBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, the current one, and a cache that has the export of the demo model."""
    monkeypatch.chdir(tmp_path)
    put_export(demo_bundle, tmp_path / "clipmlu-run" / "demo")
    keep_export(demo_bundle, cache_dir())
    return tmp_path


def _prepare(page: Path, demo: ExportedBundle) -> None:
    """Make what a page begins with."""
    for name in start_of(page):
        if name == "demo":
            shutil.copytree(demo.path, name)
        elif name == "demo-cpu":
            compile_bundle(demo, Path(name), CompileOptions(target="cpu"))
        elif name == "examples":
            shutil.copytree(REPOSITORY / name, name)
        elif name == "photos":
            assert main(["datasets", "--write-samples", ".", "--quiet"]) == 0
        else:
            assert name == "labels.txt", f"{name_of(page)} begins with '{name}', which no test can make"
            assert "photos" in start_of(page)


@dataclasses.dataclass
class Run:
    """A run of the blocks of a page, in order.

    Attributes:
        page: the page.
        demo: the exported demo model.
        smaller: replace numbers of images by small ones.
        services: ends what still runs at the end of the page.
        port: the port of the page's services.
        names: what its Python has defined.
        out: what the last block printed; None if it was not run.
    """

    page: Path
    demo: ExportedBundle
    smaller: bool
    services: contextlib.ExitStack
    port: str
    names: dict[str, Any] = dataclasses.field(default_factory=dict)
    out: str | None = None

    def block(self, block: Block) -> bool:
        """Run a block, or compare it with the output of the one before; False if it is only shown."""
        where = f"{name_of(self.page)}:{block.line}"
        if block.language == "sh":
            lines = [line.replace(PORT, self.port) for line in block.commands]
            code = int(block.marks.get("exit", 0))
            self.out = "".join(self.line(line, code if line == lines[-1] else 0) for line in lines)
        elif block.language == "python" and "needs" not in block.marks:
            with contextlib.redirect_stdout(io.StringIO()) as caught:
                exec(compile(block.text, where, "exec"), self.names)
            self.out = caught.getvalue()
        elif "output" in block.marks and self.out is not None:
            _assert_part_of(masked(block.text), masked(self.out), where)
        else:
            self.out = None
            return False
        return True

    def line(self, line: str, expected: int) -> str:
        """Run a line of a shell; returns what it printed."""
        words = shlex.split(line)
        with pytest.MonkeyPatch.context() as patch:
            while re.fullmatch(r"[A-Z_]+=.*", words[0]):
                name, _, value = words.pop(0).partition("=")
                patch.setenv(name, value)
            if words[-1] == "&":
                return self.serve(words[1:-1])
            if words[0] != "clipmlu":
                command = [sys.executable if words[0] == "python" else words[0], *words[1:]]
                return subprocess.run(command, check=True, capture_output=True, text=True).stdout
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main(self.arguments(words[1:]))
        assert code == expected, f"{line}\n{err.getvalue()}"
        return out.getvalue()

    def arguments(self, given: list[str]) -> list[str]:
        """The arguments of clipmlu, with the session's export and fewer images."""
        if given == ["export", "demo", "-o", "demo"]:  # torch needs half a minute for another
            shutil.copytree(self.demo.path, "demo")
            return ["info", "demo"]
        if not self.smaller:
            return given
        given = [_SMALLER.get(before, word) for before, word in zip(["", *given], given, strict=False)]
        return [*given, "--warmup", "0", "--iterations", "2"] if given[0] == "bench" else given

    def serve(self, arguments: list[str]) -> str:
        """Start ``clipmlu serve`` and wait until it answers."""
        pytest.importorskip("fastapi", reason="needs the extra serve")
        assert arguments[0] == "serve"
        given = arguments if "--port" in arguments else [*arguments, "--port", self.port]
        process = self.services.enter_context(subprocess.Popen([sys.executable, "-m", "clipmlu", *given]))
        self.services.callback(process.terminate)  # before it is waited for
        wait_until(lambda: process.poll() is not None or _answers(f"http://127.0.0.1:{self.port}/ready"))
        assert process.poll() is None
        return ""


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def _run_page(page: Path, demo: ExportedBundle, *, smaller: bool, left_out: tuple[str, ...] = ()) -> int:
    """Run the blocks of a page in order; returns how many there were."""
    with contextlib.ExitStack() as services:
        run = Run(page, demo, smaller, services, _free_port())
        count = 0
        for block in blocks(page):
            if any(text in block.text for text in left_out):
                run.out = None  # so that the block of its output is left out, too
            else:
                count += run.block(block)
        return count


def _assert_part_of(shown: list[str], printed: list[str], where: str) -> None:
    """Each shown line was printed, in this order; others may be between."""
    place = 0
    for line in shown:
        assert line in printed[place:], (
            f"{where}: the commands above did not print this line:\n{line}\nbut:\n" + "\n".join(printed)
        )
        place = printed.index(line, place) + 1


@pytest.mark.torch
@pytest.mark.parametrize(("page", "left_out"), [(README, ()), (TUTORIAL, LEFT_OUT)], ids=["README", "tutorial"])
@pytest.mark.usefixtures("start")
def test_what_everybody_reads_first_runs_on_fewer_images(
    demo_bundle: ExportedBundle, page: Path, left_out: tuple[str, ...]
) -> None:
    pytest.importorskip("openvino", reason="README shows this target")
    assert _run_page(page, demo_bundle, smaller=True, left_out=left_out) >= 5


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=name_of)
@pytest.mark.usefixtures("start")
def test_the_commands_of_a_page_run_as_they_stand(page: Path, demo_bundle: ExportedBundle) -> None:
    for package in ("openvino", "pyarrow", *(["ray"] if "ray" in page.name else [])):
        pytest.importorskip(package)
    _prepare(page, demo_bundle)
    assert _run_page(page, demo_bundle, smaller=False) > 0


@pytest.mark.parametrize("page", all_pages(), ids=name_of)
def test_each_command_is_run_or_says_what_it_needs(page: Path) -> None:
    for block in blocks(page):
        where = f"{name_of(page)}:{block.line}"
        assert block.language in ("sh", "python", "console", "text", "yaml", "json", "ini"), (
            f"{where}: language '{block.language}'"
        )
        assert set(block.marks) <= set(MARKS), f"{where}: marks are {MARKS}"
        if block.language == "console" or "needs" in block.marks:
            assert block.marks.get("needs") in NEEDS, f"{where}: mark it with one of {NEEDS}, or make it sh"
            assert block.language != "sh", f"{where}: make it console"
        for line in block.commands if block.language in ("sh", "console") else ():
            if block.marks.get("exit") != "2":
                _check_line(line, where, run=block.language == "sh")
    started = (*PROGRAMS, "docker", "export", "git", "make", "pip", "ray")
    commands = [line for line in indented_code(page) if line.split()[0] in started]
    assert commands == [], "commands belong into a fence"


def _check_line(line: str, where: str, *, run: bool) -> None:
    """A line that is run starts a known program; the options of every command of clipmlu exist."""
    words = shlex.split(line)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    if run:
        assert words[0] in PROGRAMS, f"{where}: {line}"
    words = words[:-1] if words[-1] == "&" else words
    if words[0] == "clipmlu":
        top = cli.make_context("clipmlu", [], resilient_parsing=True)
        cli.commands[words[1]].make_context(words[1], words[2:], parent=top)


@pytest.mark.parametrize(
    "page", [page for page in all_pages() if page.name not in ("cli.md", "python.md")], ids=name_of
)
def test_commands_and_options_in_the_text_exist(page: Path) -> None:
    """``clipmlu NAME --option`` between backquotes; the values may be placeholders."""
    for command in re.findall(r"`(?:[A-Z_]+=\S+ )*clipmlu ([^`]+)`", without_code(page)):
        words = command.split()
        if words[0].startswith(("-", "NAME", "...")):
            continue
        assert words[0] in cli.commands, f"{name_of(page)}: clipmlu {command}"
        parameters = cli.commands[words[0]].params
        known = {name for each in parameters for name in (*each.opts, *each.secondary_opts)} | {"--help", "--version"}
        given = words[1 : words.index("--")] if "--" in words else words[1:]
        unknown = [word for word in given if re.fullmatch(r"--?[a-z][\w-]*", word) and word not in known]
        assert unknown == [], f"{name_of(page)}: clipmlu {command}"


@pytest.mark.parametrize("page", all_pages(), ids=name_of)
def test_blocks_of_output_follow_what_printed_them(page: Path) -> None:
    """Else the output would be compared with nothing, or with that of another block."""
    found = blocks(page)
    for before, block in zip([None, *found], found, strict=False):
        if "output" in block.marks:
            assert before is not None, f"{name_of(page)}:{block.line}"
            assert before.language in ("sh", "python"), f"{name_of(page)}:{block.line}"
            assert "needs" not in before.marks, f"{name_of(page)}:{block.line}"


@pytest.mark.parametrize("page", all_pages(), ids=name_of)
def test_names_in_the_text_exist(page: Path) -> None:
    """Extras, targets of make, variables, Python names and scripts, in the text and in the blocks."""
    text = page.read_text(encoding="utf-8")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name for group in re.findall(r"(?:clipmlu|'\.)\[([a-z,]+)\]", text) for name in group.split(",")}
    assert extras <= set(project["optional-dependencies"])
    targets = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, flags=re.MULTILINE))
    assert targets <= set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE))
    variables = set(re.findall(r"\bCLIPMLU_[A-Z0-9_]*[A-Z0-9]\b", text))
    assert variables <= set(re.findall(r"CLIPMLU_\w+", (DOCS / "reference" / "environment.md").read_text()))
    names = set(re.findall(r"\bclipmlu\.(\w+)\(|\bclipmlu\.([A-Z]\w+)", text))
    assert [name for name in names if not hasattr(clipmlu, "".join(name))] == []
    scripts = set(re.findall(r"(?:python |\(|`)((?:benchmarks|tools|examples)/\w+\.(?:py|ipynb))", text))
    assert [name for name in scripts if not (REPOSITORY / name).exists()] == []


def test_pages_whose_commands_run_elsewhere_exist() -> None:
    names = {name_of(page) for page in all_pages()}
    assert set(ELSEWHERE) <= names
