"""The public names: their three lists, their keywords, and their documentation."""

from __future__ import annotations

import ast
import inspect
import re
from typing import Any

import click
import pytest

import clipmlu
from clipmlu.cli import cli
from conftest import REPOSITORY

FUNCTIONS = {
    "bench": "measure_speed",
    "calibrate": "calibrate_bundle",
    "classify": "classify_images",
    "compare": "compare_bundles",
    "compile": "compile_bundle",
    "datasets": "list_datasets",
    "doctor": "check_machine",
    "embed": "embed_images",
    "emulate": "run_emulated",
    "eval": "evaluate",
    "export": "export_model",
    "import": "import_onnx",
    "index": "build_index",
    "info": "open_bundle",
    "job": "open_job",
    "lower": "lower",
    "models": "list_models",
    "report": "write_report",
    "run": "pipeline",
    "search": "search_index",
    "serve": "run_server",
    "sweep": "run_sweep",
}
"""Command -> its function."""
OTHER_WORDS = {
    "as_json", "output", "show_all", "heatmap", "per_class", "sample_files", "format_name", "save_classifier",  # what is shown or written
    "tool", "probe_sdk", "emulated", "only", "timeout", "write_probe",  # the vendor's tool and the test of its SDK
    "verify", "repair", "bundle", "export", "partial", "overwrite_job",  # methods of Job
    "quiet", "verbose", "help", "version",
    "texts",  # embed_to_file
    "task",  # evaluate, or evaluate_retrieval
}  # fmt: skip
RENAMED = {
    "engine_name": "engine",
    "classifier_file": "classifier",
    "scenarios": "scenario",
    "precisions": "precision",
    "batch_sizes": "batch_size",
}


def test_the_lists_of_names_are_equal_and_sorted() -> None:
    tree = ast.parse((REPOSITORY / "src" / "clipmlu" / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported == clipmlu._HOMES
    assert sorted([*imported, "__version__"]) == sorted(clipmlu.__all__) == dir(clipmlu)
    assert list(clipmlu._HOMES) == sorted(clipmlu._HOMES)


def test_no_public_name_is_that_of_a_submodule() -> None:
    folder = REPOSITORY / "src" / "clipmlu"
    modules = {path.stem for path in folder.glob("*.py")} | {path.name for path in folder.iterdir() if path.is_dir()}
    assert not modules & set(clipmlu.__all__)


def test_every_command_has_a_function() -> None:
    assert set(cli.commands) == set(FUNCTIONS) | {"worker"}
    assert set(FUNCTIONS.values()) <= set(clipmlu.__all__)


@pytest.mark.parametrize(
    "command",
    [
        "bench",
        "calibrate",
        "classify",
        "compare",
        "compile",
        "embed",
        "eval",
        "export",
        "import",
        "index",
        "lower",
        "report",
        "search",
        "serve",
        "sweep",
    ],
)
def test_every_option_of_a_command_is_a_keyword_of_its_function(command: str) -> None:
    options = {str(each.name) for each in cli.commands[command].params if isinstance(each, click.Option)}
    named = {RENAMED.get(each, each) for each in options - OTHER_WORDS}
    functions = [FUNCTIONS[command], *(["evaluate_retrieval"] if command == "eval" else [])]
    known = {name for each in functions for name in inspect.signature(getattr(clipmlu, each)).parameters}
    written = {"overwrite"} if command in ("bench", "compare", "eval") else set()  # of a report's file
    assert named - known <= written, FUNCTIONS[command]


@pytest.mark.parametrize("name", [each for each in clipmlu.__all__ if inspect.isfunction(getattr(clipmlu, each))])
def test_every_argument_is_annotated_and_documented_once(name: str) -> None:
    function: Any = getattr(clipmlu, name)
    described = re.findall(r"^    (\*{0,2}\w+): ", inspect.getdoc(function) or "", re.MULTILINE)
    for parameter in inspect.signature(function).parameters.values():
        assert parameter.annotation is not parameter.empty, parameter
        assert described.count(parameter.name) == 1, (name, parameter.name)


@pytest.mark.parametrize("name", clipmlu.__all__)
def test_every_public_class_and_its_methods_have_docstrings(name: str) -> None:
    value = getattr(clipmlu, name)
    if inspect.isclass(value):
        assert value.__doc__
        for member, each in vars(value).items():
            if inspect.isfunction(each) and not member.startswith("_"):
                assert each.__doc__, f"{name}.{member}"


def test_the_program_of_the_type_checkers_uses_every_public_name() -> None:
    """``make lint`` checks it with mypy and pyright."""
    program = (REPOSITORY / "tests" / "typing" / "user_program.py").read_text(encoding="utf-8")
    used = {node.attr for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Attribute)}
    assert set(clipmlu.__all__) - used == set()
