"""The options that every command has: -q, -v, -h and --version, before and after the command's name."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.cli import cli

Run = Callable[..., tuple[int, str, str]]
COMMANDS = sorted(cli.commands)


def _placed(name: str, option: str, where: str) -> list[str]:
    return {"before": [option, name], "after": [name, option]}[where]


@pytest.mark.parametrize("where", ["before", "after"])
def test_version_is_printed(run: Run, where: str) -> None:
    for name in COMMANDS:
        assert run(*_placed(name, "--version", where)) == (0, f"clipmlu {metadata.version('clipmlu')}\n", "")


def test_the_short_option_of_help_is_help(run: Run) -> None:
    for name in COMMANDS:
        shown = run(name, "-h")
        assert shown == run(name, "--help")
        assert shown[1].startswith(f"Usage: clipmlu {name}")
    assert run("-h") == run("--help")


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("option", ["-q", "--quiet"])
def test_quiet_hides_facts_and_no_warning(
    run: Run, compiled: CompiledBundle, photos: Path, tmp_path: Path, where: str, option: str
) -> None:
    given = [compiled.path, photos, "-o", tmp_path / "loud.npy"]
    loud = run("embed", *given)
    assert "Wrote 5 embeddings" in loud[2]
    quiet = run(*_placed("embed", option, where), *given[:-1], tmp_path / "quiet.npy")
    assert quiet[:2] == loud[:2] == (1, "")
    expected = [line for line in loud[2].splitlines() if not line.startswith(("Wrote ", "Next: "))]
    assert quiet[2].splitlines() == expected
    assert [line.partition(" ")[0] for line in expected] == ["skipped:", "Left", "1"]
    assert (tmp_path / "quiet.npy").read_bytes() == (tmp_path / "loud.npy").read_bytes()


def test_quiet_does_not_change_results_and_ends_with_its_command(run: Run, compiled: CompiledBundle) -> None:
    arguments = ["classify", compiled.path, "--labels", "cat,dog", "--save-classifier", compiled.path.parent / "c.clf"]
    assert run("-q", *arguments)[1:] == ("", "")
    assert "Wrote classifier file" in run(*arguments, "--overwrite")[2]
    for option in ("-q", "-v"):
        assert run("info", compiled.path, "--json", option) == run("info", compiled.path, "--json")


@pytest.mark.parametrize("arguments", [("-q", "info", "x", "-v"), ("info", "x", "-v", "-q"), ("-v", "-q", "info", "x")])
def test_quiet_and_verbose_exclude_each_other(run: Run, arguments: tuple[str, ...]) -> None:
    message = "clipmlu: --quiet and --verbose exclude each other; leave out one of them\n"
    assert run(*arguments) == (2, "", message)
    assert run("datasets", "--json", "-v")[0] == 0


def test_options_after_an_emulated_program_are_its_own(run: Run) -> None:
    program = "import sys; sys.exit(sys.argv.index('--version') + 40)"
    assert run("emulate", "-q", "--", sys.executable, "-c", program, "-v", "-q", "--version")[0] == 43


def _facts(shown: str) -> dict[str, str]:
    pairs = (line.split("  ", 1) for line in shown.splitlines())
    return {name.strip(): value.strip() for name, value in pairs}


def test_few_facts_of_a_bundle_are_shown_and_all_with_verbose(
    run: Run, exported: ExportedBundle, compiled: CompiledBundle
) -> None:
    for bundle in (exported, compiled):
        few, every = _facts(run("info", bundle.path)[1]), _facts(run("info", bundle.path, "-v")[1])
        assert 5 <= len(few) <= 8
        assert few.items() <= every.items()
        assert {"digest", "logit scale", "made with", "image in"} <= set(every) - set(few)
    assert {"target", "precision", "batch", "agreement"} <= set(few)


def test_commands_that_are_suggested_run_when_pasted(
    run: Run, exported: ExportedBundle, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    exported.path.rename("my model")
    code, _, err = run("compile", "my model", "--target", "cpu", "-o", "it's fast")
    assert code == 0
    lines = err.partition("Next: ")[2].splitlines()
    commands = [shlex.split(line)[1:] for line in lines]
    assert [command[:2] for command in commands] == [[name, "it's fast"] for name in ("eval", "bench", "classify")]
    top = cli.make_context("clipmlu", [], resilient_parsing=True)
    for command in commands:
        cli.commands[command[0]].make_context(command[0], command[1:], parent=top)
    (photos / "broken.jpg").unlink()
    assert run(*commands[-1])[0] == 0
    calibrate = ("calibrate", "my model", "--calib", "demo", "--calib-samples", 4, "-o", "a set")
    following = shlex.split(run(*calibrate)[2].partition("Next: ")[2])[1:]
    assert run(*following, "--target", "cpu", "-q")[0] == 0
    assert Path("my model-int8").is_dir()
    assert "Next:" not in run("calibrate", "it's fast", "--calib", "demo", "--calib-samples", 4, "-o", "another")[2]
    assert run("compile", "my model", "--target", "cpu", "-q", "-o", "quiet")[2] == ""


def test_samples_lead_to_commands_that_run_when_pasted(
    run: Run, compiled: CompiledBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    compiled.path.rename("demo-cpu")
    for again in ((), ("--overwrite",)):
        code, _, err = run("datasets", "--write-samples", "it's here", *again)
        assert code == 0
        following = shlex.split(err.partition("Next: ")[2])[1:]
        assert following[2:] == ["it's here/photos", "--labels", "it's here/labels.txt"]
        assert run(*following)[0] == 0
    assert "replace it with --overwrite" in run("datasets", "--write-samples", "it's here")[2]


@pytest.mark.parametrize(
    "command", [("compile", "tiny", "--target", "cpu"), ("export", "demo")], ids=("compile", "export")
)
def test_bundle_that_holds_files_of_the_user_is_not_replaced(
    run: Run, compiled: CompiledBundle, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(compiled.path.parent)
    (compiled.path / "notes.txt").write_text("a week's work")
    before = {path: path.read_bytes() for path in compiled.path.rglob("*") if path.is_file()}
    code, _, said = run(*command, "-o", compiled.path, "--overwrite")
    assert code == 1
    assert "also holds 'notes.txt', which clipmlu did not write there; it is not changed." in said
    assert {path: path.read_bytes() for path in compiled.path.rglob("*") if path.is_file()} == before
