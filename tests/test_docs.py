"""What the documents say is run, parsed or compared with the program itself."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipmlu.bundle.directory import CompiledBundle
from clipmlu.cli import cli, main
from clipmlu.jobs.engines.cards import CARD_RESOURCE
from conftest import REPOSITORY
from pages import load_tool
from support import picture

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
DESIGN = (REPOSITORY / "docs" / "design.md").read_text(encoding="utf-8")
CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
PACKAGE = REPOSITORY / "src" / "clipmlu"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.usefixtures("libraries")
def test_readme_commands_and_python_run_as_they_stand(tmp_path: Path) -> None:
    scripts = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "PYTHONWARNINGS": "ignore"}
    (tmp_path / "clipmlu").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m clipmlu "$@"\n')
    (tmp_path / "clipmlu").chmod(0o755)
    environment["PATH"] = f"{tmp_path}{os.pathsep}{environment['PATH']}"
    for block in _blocks("sh"):
        subprocess.run(["sh", "-ec", block], cwd=tmp_path, env=environment, check=True)
    for block in _blocks("python"):
        result = subprocess.run(
            [sys.executable, "-c", block], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        )
        assert "Prediction(image 0: '" in result.stdout


SCALE = (REPOSITORY / "docs" / "scale.md").read_text(encoding="utf-8")


@pytest.mark.ray
@pytest.mark.slow
def test_commands_of_the_scale_document_run_and_write_the_same_files(
    compiled: CompiledBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(compiled.path, "demo-cpu")
    Path("photos").mkdir()
    for number in range(5):
        picture(number).save(f"photos/{number}.png")
    [block] = re.findall(r"```sh\n(.*?)```", SCALE, flags=re.DOTALL)
    outputs = []
    for line in block.splitlines():
        arguments = shlex.split(line)[1:]
        assert main(arguments) == 0, capsys.readouterr().err
        folder = Path(arguments[arguments.index("-o") + 1])
        outputs.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()})
    assert len(outputs) == 3
    assert len(outputs[0]) > 6
    assert outputs[0] == outputs[1] == outputs[2]


def test_commands_for_a_cluster_have_valid_options() -> None:
    """On a cluster they were not run; what Ray reads of them is parsed."""
    top = cli.make_context("clipmlu", [], resilient_parsing=True)
    entrypoints = re.findall(r"^(?:  entrypoint: )?(clipmlu .*--ray-address.*)$", SCALE, flags=re.MULTILINE)
    assert len(entrypoints) == 2
    for line in entrypoints:
        _, name, *arguments = shlex.split(line)
        cli.commands[name].make_context(name, arguments, parent=top)
    [started] = re.findall(r"^ray start .*--resources='(.*)'$", SCALE, flags=re.MULTILINE)
    [quoted] = re.findall(r"rayStartParams: {resources: '(.*)'}$", SCALE, flags=re.MULTILINE)
    assert json.loads(started) == json.loads(json.loads(quoted)) == {CARD_RESOURCE: 4}


def test_options_in_the_migration_table_exist() -> None:
    """Right column: ours; every option named there belongs to the command in the head of its table."""
    text = (REPOSITORY / "docs" / "migration.md").read_text(encoding="utf-8")
    checked = 0
    for command, table in re.findall(r"\| clipmlu (\w+)[^|\n]*\|\n\|[-|]+\|\n((?:\|.*\n)+)", text):
        known = {name for option in cli.commands[command].params for name in (*option.opts, *option.secondary_opts)}
        for row in table.splitlines():
            ours = row.strip("|").rpartition(" | ")[2]
            for option in re.findall(r"--[a-z0-9-]+", ours):
                assert option in known, f"{command} has no {option}"
                checked += 1
    assert checked > 30


def test_every_command_is_in_the_readme() -> None:
    for name in cli.commands:
        assert f"`clipmlu {name}" in README


@pytest.mark.parametrize("subject", ["cli", "python", "environment", "schema"])
def test_a_reference_is_what_the_source_says(subject: str) -> None:
    tool = load_tool(f"write_{subject}_reference")
    for path, text in tool.render_files().items():
        assert path.read_text(encoding="utf-8") == text, f"run: python tools/write_{subject}_reference.py"


def test_the_map_names_every_folder_and_module_of_the_package() -> None:
    rows = re.findall(r"^\| (`.*?) \| .* \|$", DESIGN, flags=re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    folders = {f"{path.name}/" for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert sorted(named) == sorted(folders | {path.name for path in PACKAGE.glob("[a-z]*.py")})


def test_folders_named_in_the_map_are_in_the_folder_of_their_row() -> None:
    rows = re.findall(r"^\| `([a-z]+)/` \| (.*) \|$", DESIGN, flags=re.MULTILINE)
    inner = [(room, name) for room, text in rows for name in re.findall(r"`([a-z_]+/|[a-z_]+\.py)`", text)]
    assert ("magicmind", "driver/") in inner
    assert [name for room, name in inner if not any((PACKAGE / top / name).exists() for top in (room, ""))] == []


@pytest.mark.parametrize("text", [DESIGN, CONTRIBUTING], ids=["design", "contributing"])
def test_files_and_modules_named_in_the_documents_exist(text: str) -> None:
    files = re.findall(r"`([a-z_]+/[a-z_/]+(?:\.py|/))`", text)
    assert files
    assert [name for name in files if not any((top / name).exists() for top in (PACKAGE, REPOSITORY))] == []
    dotted = re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`", text)
    modules = [name for name in dotted if not name.endswith((".py", ".toml", ".yml"))]
    assert modules
    assert [name for name in modules if not _is_defined(name)] == []


def _is_defined(name: str) -> bool:
    """Whether a dotted name is a module of the package, or something in one."""
    full = name if name.startswith("clipmlu.") else f"clipmlu.{name}"
    above, _, last = full.rpartition(".")
    return importlib.util.find_spec(above) is not None and (
        hasattr(importlib.import_module(above), last) or importlib.util.find_spec(full) is not None
    )


def test_the_python_of_the_page_on_jobs_reads_a_job(
    compiled: CompiledBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        picture(number).save(f"{number}.png")
    Path("2.png").write_bytes(b"no image")
    command = ["embed", str(compiled.path), *(f"{number}.png" for number in range(4)), "-o"]
    assert main([*command, "embeddings", "--shard-size", "3"]) == 1
    assert main([*command, "embeddings-npy", "--shard-size", "3", "--shard-format", "npy"]) == 1
    assert main([*command, "all.npy"]) == 1
    expected = np.load("all.npy")
    capsys.readouterr()
    text = (REPOSITORY / "docs" / "jobs.md").read_text(encoding="utf-8")
    with_pyarrow, with_numpy, with_clipmlu = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(with_pyarrow, "docs/jobs.md", "exec"), names)
    assert names["ids"] == ["0.png", "1.png", "3.png"]
    np.testing.assert_allclose(names["embeddings"], expected, atol=1e-6)
    for block in (with_pyarrow, with_numpy):  # the last block is the second shard, of one image
        exec(compile(block, "docs/jobs.md", "exec"), names)
        np.testing.assert_allclose(names["block"], expected[2:], atol=1e-6)
    exec(compile(with_clipmlu, "docs/jobs.md", "exec"), names)
    width = expected.shape[1]
    assert capsys.readouterr().out == f"2 (2, {width})\n1 (1, {width})\n"


def test_the_python_of_the_page_on_results_runs(
    compiled: CompiledBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pandas", reason="needs the extra dataframe")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(compiled.path, "demo-cpu")
    text = (REPOSITORY / "docs" / "results.md").read_text(encoding="utf-8")
    shown, open_set = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(shown, "docs/results.md", "exec"), names)
    out = capsys.readouterr().out
    assert "Predictions([\n  Prediction(image 0: '" in out
    assert "class_name_2" in out
    assert "AccuracyReport(" in out
    exec(compile(open_set, "docs/results.md", "exec"), names)
    assert names["found"].class_name in capsys.readouterr().out
