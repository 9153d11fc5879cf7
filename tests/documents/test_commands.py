"""The commands and programs of all pages run, or name what they need and have valid options."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clipmlu.bundle.directory import ExportedBundle
from clipmlu.cli import cli, main
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.host import cache_dir
from conftest import REPOSITORY
from pages import DOCS, NEEDS, Block, all_pages, blocks, indented_code, masked, name_of, start_of, without_code
from support import keep_export, put_export

README = REPOSITORY / "README.md"
TUTORIAL = DOCS / "tutorial.md"
ELSEWHERE = {
    "docs/python.md": "the blocks are written by tools/write_python_reference.py",
    "docs/cli.md": "the examples of the help are run by tests/cli",
}
"""Pages whose commands another test runs."""
PROGRAMS = ("clipmlu", "python", "mkdir")
_SMALLER = {"--samples": "20", "--calib-samples": "8", "--duration": "20"}
"""Replaced in the quick runs."""
LEFT_OUT = ("too-strict", "demo-mlu", "emulated-mlu", "clipmlu bench")
"""Blocks with these are left out of the quick run of the tutorial: a second compilation in 8 bits, and what README has too."""


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
        elif name == "photos":
            assert main(["datasets", "--write-samples", ".", "--quiet"]) == 0
        else:
            assert name == "labels.txt", f"{name_of(page)} begins with '{name}', which no test can make"
            assert "photos" in start_of(page)


def _run_page(page: Path, demo: ExportedBundle, *, smaller: bool, left_out: tuple[str, ...] = ()) -> int:
    """Run the blocks of a page in order; returns how many there were."""
    names: dict[str, Any] = {}
    out = ""
    count = 0
    for block in blocks(page):
        if any(text in block.text for text in left_out):
            continue
        if block.language == "sh":
            out = "".join(_run_line(line, block, line == block.commands[-1], demo, smaller) for line in block.commands)
        elif block.language == "python" and "needs" not in block.marks:
            with contextlib.redirect_stdout(io.StringIO()) as caught:
                exec(compile(block.text, f"{name_of(page)}:{block.line}", "exec"), names)
            out = caught.getvalue()
        elif "output" in block.marks and out:
            _assert_part_of(masked(block.text), masked(out), f"{name_of(page)}:{block.line}")
        else:
            continue
        count += 1
    return count


def _run_line(line: str, block: Block, last: bool, demo: ExportedBundle, smaller: bool) -> str:
    words = shlex.split(line)
    expected = int(block.marks.get("exit", 0)) if last else 0
    with pytest.MonkeyPatch.context() as patch:
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):
            name, _, value = words.pop(0).partition("=")
            patch.setenv(name, value)
        program, *arguments = words
        if program != "clipmlu":
            command = [sys.executable if program == "python" else program, *arguments]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout
        if arguments == ["export", "demo", "-o", "demo"]:  # the session's export: torch needs half a minute for another
            shutil.copytree(demo.path, "demo")
            arguments = ["info", "demo"]
        if smaller:
            arguments = [_SMALLER.get(before, word) for before, word in zip(["", *arguments], arguments, strict=False)]
            arguments += ["--warmup", "0", "--iterations", "2"] if arguments[0] == "bench" else []
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(arguments)
    assert code == expected, f"{line}\n{err.getvalue()}"
    return out.getvalue()


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
        assert block.language in ("sh", "python", "console", "text", "yaml", "json"), (
            f"{where}: language '{block.language}'"
        )
        if block.language == "console":
            assert block.marks.get("needs") in NEEDS, f"{where}: mark it with one of {NEEDS}, or make it sh"
        for line in block.commands if block.language in ("sh", "console") else ():
            if block.marks.get("exit") != "2":
                _check_line(line, where, run=block.language == "sh")
    commands = [line for line in indented_code(page) if line.split()[0] in ("clipmlu", "pip", "make", "docker")]
    assert commands == [], "commands belong into a fence"


def _check_line(line: str, where: str, *, run: bool) -> None:
    """A line that is run starts a known program; the options of every command of clipmlu exist."""
    words = shlex.split(line)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    if run:
        assert words[0] in PROGRAMS, f"{where}: {line}"
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


def test_pages_whose_commands_run_elsewhere_exist() -> None:
    names = {name_of(page) for page in all_pages()}
    assert set(ELSEWHERE) <= names
