"""Help texts: their width, their sections, and examples that run as they stand."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

import foreign_onnx
import support
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.cli import cli, main
from clipmlu.cli._help import ExampleCommand
from clipmlu.files.publish import encode_json
from report_samples import accuracy, speed, sweep

Run = Callable[..., tuple[int, str, str]]

NOT_RUN = {
    "clipmlu export demo -o demo": "needs torch; tests/test_docs.py runs it",
    "clipmlu run demo": "exports with torch; tests/test_docs.py runs it",
    "clipmlu export ViT-B-32::openai -o b32": "downloads weights",
    "clipmlu export ViT-B-32 --pretrained weights.pt -o mine": "needs weights",
    "clipmlu export hf:OFA-Sys/chinese-clip-vit-base-patch16 -o chinese": "downloads weights",
    "clipmlu run ViT-B-32::openai --dataset cifar100 -o b32-run": "downloads weights",
    "clipmlu run ViT-B-32::openai --precision qint8_mixed_float32 --calib cifar100": "downloads weights",
    "clipmlu compile demo --target emulated-mlu --precision force_float16 -o mlu": "tests/mlu run such commands",
    "clipmlu compile demo --calib demo --max-drop 0.01 -o best": "tests/tune run searches",
    "clipmlu doctor --probe-sdk --emulated --output probe": "tests/magicmind run the probes",
    "clipmlu emulate -- mm_run --magicmind_model demo-mlu/image.mm --batch_size 32": "tests/mlu/emulator run the tool",
    "clipmlu emulate --compat -- python infer.py": "tests/mlu/emulator run such scripts",
    'clipmlu serve demo-cpu --labels "red circle,blue square"': "serves until it is stopped; tests/serve do",
    "clipmlu serve b32-cpu mine=other-cpu --port 9000": "serves until it is stopped; tests/serve do",
    "clipmlu models": "needs open_clip, which comes with torch; tests/export run it",
    "clipmlu models SigLIP2": "needs open_clip, which comes with torch; tests/export run it",
}
SHORTER = {
    "calibrate": ("--calib-samples", "8"),
    "compile demo --precision": ("--calib-samples", "8"),
    "lower demo --precision": ("--calib-samples", "8"),
    "eval demo-cpu --dataset demo": ("--samples", "8"),
    "compare": ("--samples", "4"),
    "bench": ("--duration", "1", "--warmup", "0", "--iterations", "1"),
    "sweep": ("--duration", "1", "--repetitions", "1"),
    "report": ("--no-thumbnails",),
}
"""Options added to the examples of a command, which would otherwise measure for many seconds."""


def _commands() -> Iterator[tuple[str, ExampleCommand]]:
    for name, command in {"": cli, **cli.commands}.items():
        assert isinstance(command, ExampleCommand)
        yield name, command


def _examples(*, run: bool) -> list[str]:
    lines = [line for _, command in _commands() for line in command.examples]
    return [line for line in dict.fromkeys(lines) if (line not in NOT_RUN) is run]


@pytest.fixture
def _place(tmp_path: Path, exported: ExportedBundle, compiled: CompiledBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with what the examples name; the tiny model stands for the demo model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    shutil.copytree(exported.path, "demo")
    for number in range(6):
        for folder in ("photos", f"shapes/{('red circle', 'blue square')[number % 2]}"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            support.picture(number).save(f"{folder}/{number}.png")
    Path("labels.txt").write_text("red circle\nblue square\n")
    Path("captions.csv").write_text("image,caption\nphotos/0.png,a red circle\nphotos/1.png,a blue square\n")
    Path("gen_model.py").write_text("import magicmind\n")
    for name in ("image.onnx", "text.onnx", "tokenizer.json"):
        shutil.copy(exported.path / name, name)
    foreign_onnx.write(Path(), clip=foreign_onnx.fused_of_the_sample())
    foreign_onnx.write(Path("clip-vit-base-patch32"), model=foreign_onnx.fused_of_the_sample())


def _made_before(line: str, compiled: CompiledBundle) -> None:
    """Make what an earlier command of the user made: bundles, and the job of ``embed``."""
    words = shlex.split(line)
    if "-o" not in words or words[words.index("-o") + 1] != "demo-cpu":
        shutil.copytree(compiled.path, "demo-cpu")
    if "int8" in words[:-1]:
        shutil.copytree(compiled.path, "int8")
    if words[1] == "report":
        Path("sweep").mkdir()
        for name, make in (("report", accuracy), ("speed", speed), ("sweep/sweep", sweep)):
            Path(f"{name}.json").write_bytes(encode_json(make()))
    if words[1] in ("job", "index", "search"):
        assert main(["embed", "demo-cpu", "photos/", "-o", "embeddings/"]) == 0
    if "more.npy" in words:
        assert main(["embed", "demo-cpu", "photos/", "-o", "more.npy"]) == 0
    if words[1] == "search":
        assert main(["index", "embeddings/"]) == 0


@pytest.mark.usefixtures("_place")
@pytest.mark.parametrize("line", _examples(run=True))
def test_example_runs(
    line: str, compiled: CompiledBundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _made_before(line, compiled)
    words = shlex.split(line)
    while "=" in words[0]:
        monkeypatch.setenv(*words.pop(0).split("="))
    assert words[0] == "clipmlu"
    extra = next((added for begin, added in SHORTER.items() if " ".join(words[1:]).startswith(begin)), ())
    assert main([*words[1:], *extra]) == 0, capsys.readouterr().err


def test_examples_that_are_not_run_have_valid_options_and_are_shown() -> None:
    top = cli.make_context("clipmlu", [], resilient_parsing=True)
    assert sorted(_examples(run=False)) == sorted(NOT_RUN)
    for line in NOT_RUN:
        program, name, *arguments = shlex.split(line)
        assert program == "clipmlu"
        cli.commands[name].make_context(name, arguments, parent=top)


def test_every_help_has_examples_and_fits_80_columns(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "get_terminal_size", lambda *_args, **_keywords: os.terminal_size((80, 24)))
    for name, command in _commands():
        shown = run(*name.split(), "--help")[1]
        body, _, examples = shown.partition("\nExamples:\n")
        assert [line.strip() for line in examples.splitlines()] == list(command.examples)
        assert [line for line in shown.splitlines() if len(line) > 80] == []
        assert "Options:\n" in body
        assert command.examples


def test_every_command_is_listed_once_under_a_heading(run: Run) -> None:
    shown = run("--help")[1]
    listed = [name for names in cli.sections.values() for name in names]
    assert sorted(listed) == sorted(cli.commands)
    heads = [line[:-1] for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert heads == ["Options", *cli.sections, "Examples"]
    for name in listed:
        assert [line for line in shown.splitlines() if line.startswith(f"  {name} ")], name
    assert "..." not in shown.partition("\n")[2]


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("compile", ["Options", "Gates", "Calibration", "Quantisation", "MLU cards", "Search", "General"]),
        ("classify", ["Options", "Images", "URLs", "Jobs", "Workers", "Running", "General"]),
        ("embed", ["Options", "Images", "URLs", "Jobs", "Workers", "Running", "General"]),
        ("eval", ["Options", "Dataset", "Running", "Workers", "Retrieval", "General"]),
        ("info", ["Options"]),
    ],
)
def test_options_of_long_commands_are_under_headings(run: Run, name: str, heads: list[str]) -> None:
    shown = run(name, "--help")[1].splitlines()
    found = [line[:-1] for line in shown if line.endswith(":") and not line.startswith(" ")]
    assert found == [*heads, "Examples"]
    options = [parameter for parameter in cli.commands[name].params if isinstance(parameter, click.Option)]
    for option in options:
        assert any(line.startswith("  ") and option.opts[-1] in line for line in shown), option.opts
