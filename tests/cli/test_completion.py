"""Completion by the shell."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec

import click
import pytest
from click.shell_completion import ShellComplete

from clipmlu.cli import cli
from clipmlu.export import catalog

LARGE = (
    "torch",
    "open_clip",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "openvino",
    "pyarrow",
    "ray",
    "magicmind",
    "tokenizers",
)


def _completed(words: Sequence[str], incomplete: str) -> list[str]:
    items = ShellComplete(cli, {}, "clipmlu", "_CLIPMLU_COMPLETE").get_completions(list(words), incomplete)
    return [item.value if item.type == "plain" else item.type for item in items]


@pytest.fixture
def _models(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of open_clip, which is not installed everywhere."""
    models = {"demo": (), "ViT-B-32": ("openai", "laion2b_e16"), "ViT-B-16": ("openai",), "RN50": ("cc12m",)}
    monkeypatch.setattr(catalog, "list_models", lambda: models)


@pytest.mark.usefixtures("_models")
@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        ([], "co", ["compare", "compile"]),
        (["compile", "b", "--target"], "em", ["emulated-mlu"]),
        (["compile", "b", "--precision"], "fp", ["fp32", "fp16"]),
        (["export"], "ViT", ["ViT-B-32", "ViT-B-16"]),
        (["run"], "ViT-B-32::", ["ViT-B-32::openai", "ViT-B-32::laion2b_e16"]),
        (["export", "ViT-B-32", "--pretrained"], "l", ["laion2b_e16"]),
        (["export", "ViT-B-32", "--pretrained"], "./w", ["file"]),
        (["eval", "b", "--dataset"], "cif", ["cifar100", "cifar10"]),
        (["eval", "b", "--dataset"], "im", ["imagefolder:"]),
        (["embed", "b", "--dataset"], "d", ["demo"]),
        (["compile", "b", "--calib"], "photos", ["file"]),
        (["classify", "b", "--templates"], "op", ["openai-imagenet"]),
        (["info"], "x", ["file"]),
        (["-q"], "mod", ["models"]),
    ],
)
def test_shell_completes(words: list[str], incomplete: str, expected: list[str]) -> None:
    assert _completed(words, incomplete) == expected


def test_completion_that_fails_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise click.ClickException("no open_clip")

    monkeypatch.setattr(catalog, "list_models", fail)
    assert _completed(["export"], "ViT") == []


@pytest.mark.parametrize("words", ["clipmlu export Vi", "clipmlu eval b --dataset c", "clipmlu eval b --templates o"])
def test_completion_loads_no_runtime(words: str) -> None:
    code = (
        "import sys\nfrom clipmlu.cli import main\n"
        f"try: main()\nfinally: print([name for name in {LARGE!r} if name in sys.modules], file=sys.stderr)"
    )
    variables = {"_CLIPMLU_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **variables}
    )
    assert (result.returncode, result.stderr) == (0, "[]\n")
    assert "plain," in result.stdout or (" export " in words and find_spec("open_clip") is None)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_of_a_shell_is_printed(shell: str) -> None:
    variables = {"_CLIPMLU_COMPLETE": f"{shell}_source", "SHELL": "/bin/sh"}
    result = subprocess.run(
        [sys.executable, "-m", "clipmlu"], capture_output=True, text=True, check=False, env={**os.environ, **variables}
    )
    assert (result.returncode, f"_CLIPMLU_COMPLETE={shell}_complete" in result.stdout) == (0, True), result.stderr
