"""What the documents say is run, parsed or compared with the program itself."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from clipmlu.cli import cli
from conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.torch
def test_readme_commands_and_python_run_as_they_stand(tmp_path: Path) -> None:
    pytest.importorskip("open_clip", reason="needs the export extra")
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


def test_readme_commands_that_need_a_download_have_valid_options() -> None:
    commands = [line for block in _blocks("console") for line in block.splitlines()]
    top = cli.make_context("clipmlu", [], resilient_parsing=True)
    assert len(commands) == 4
    for line in commands:
        program, name, *arguments = shlex.split(line)
        assert program == "clipmlu"
        cli.commands[name].make_context(name, arguments, parent=top)


def test_every_command_is_in_the_readme() -> None:
    for name in cli.commands:
        assert f"`clipmlu {name}" in README


def test_cli_reference_is_what_the_commands_say() -> None:
    specification = importlib.util.spec_from_file_location(
        "write_cli_reference", REPOSITORY / "tools" / "write_cli_reference.py"
    )
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    written = (REPOSITORY / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == module.render_reference(), "run: python tools/write_cli_reference.py"
