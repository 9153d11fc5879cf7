"""Environment variables are defaults of options: the command line wins, and a wrong value is named with its variable."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest

import support
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.cli import cli

Run = Callable[..., tuple[int, str, str]]
OTHER_MEANINGS = ("CLIPMLU_CACHE_DIR", "CLIPMLU_MLU_", "CLIPMLU_EMULATOR_", "CLIPMLU_WORKER_", "CLIPMLU_TEST_")
"""Variables, or beginnings of them, that are not defaults of options."""


def _variables() -> set[str]:
    options = [each for command in cli.commands.values() for each in command.params if each.envvar]
    assert all(isinstance(each.envvar, str) and each.envvar.startswith("CLIPMLU_") for each in options)
    return {str(each.envvar) for each in options}


def test_variables_are_named_as_their_options_and_clash_with_no_other() -> None:
    assert not [name for name in _variables() if name.startswith(OTHER_MEANINGS)]
    for command in cli.commands.values():
        for option in command.params:
            if isinstance(option, click.Option) and option.envvar:
                names = [f"CLIPMLU_{name.lstrip('-').upper().replace('-', '_')}" for name in option.opts]
                assert option.envvar in names
                assert option.show_envvar


def test_same_option_has_the_same_variable_in_every_command() -> None:
    for command in cli.commands.values():
        for option in command.params:
            expected = {f"--{name[8:].lower().replace('_', '-')}" for name in _variables()}
            if expected.intersection(option.opts):
                assert option.envvar, f"{command.name} {option.opts}"


def test_variable_is_used_and_the_command_line_wins(
    run: Run, exported: ExportedBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPMLU_TARGET", "cpu")
    monkeypatch.setenv("CLIPMLU_PRECISION", "force_float16")
    monkeypatch.setenv("CLIPMLU_BATCH_SIZE", "5")
    facts = json.loads(run("compile", exported.path, "-o", tmp_path / "a", "--json")[1])["manifest"]["compilation"]
    assert (facts["target"], facts["precision"], facts["batch_size"]) == ("cpu", "force_float16", 5)
    given = ("--precision", "force_float32", "--batch-size", 6)
    facts = json.loads(run("compile", exported.path, "-o", tmp_path / "b", *given, "--json")[1])["manifest"]
    assert (facts["compilation"]["precision"], facts["compilation"]["batch_size"]) == ("force_float32", 6)
    # A recipe sets the precision; only an option that says otherwise is a contradiction.
    code, out, err = run("compile", exported.path, "-o", tmp_path / "c", "--recipe", tmp_path / "b", "--json")
    assert code == 0, err
    assert json.loads(out)["manifest"]["compilation"]["precision"] == "force_float32"


def test_templates_of_the_environment_are_none_of_a_graph_without_labels(
    run: Run, exported: ExportedBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPMLU_TEMPLATES", "cifar")
    assert run("lower", exported.path, "-o", tmp_path / "a")[0] == 0
    code, _out, err = run("lower", exported.path, "-o", tmp_path / "b", "--labels", "cat,dog")
    assert code == 2
    assert "templates are 18, but a graph takes one text for each label" in err


@pytest.mark.parametrize(
    ("variable", "value", "arguments", "pattern"),
    [
        ("BATCH_SIZE", "x", ("classify", "x", "--labels", "a"), "variable CLIPMLU_BATCH_SIZE: 'x' is not a valid integer"),
        ("THREADS", "-1", ("eval", "x", "--dataset", "demo"), "variable CLIPMLU_THREADS: -1 is not in the range"),
        ("OFFLINE", "maybe", ("export", "demo", "-o", "x"), "variable CLIPMLU_OFFLINE: 'maybe' is not a valid boolean"),
        ("TARGET", "gpu", ("compile", "x", "-o", "y"), "variable CLIPMLU_TARGET: 'gpu' is not one of"),
        ("TEMPLATES", "cifer", ("eval", "{bundle}", "--dataset", "demo"), "'cifer'.*environment variable CLIPMLU_TEMPLATES."),
        ("BATCH_SIZE", "900", ("eval", "{bundle}", "--dataset", "demo"), "of 900 .*environment variable CLIPMLU_BATCH_SIZE."),
        ("DEVICES", "zero", ("bench", "{bundle}"), "or 'all'. 'zero' is the value of the environment variable CLIPMLU_DEVICES."),
    ],
)  # fmt: skip
def test_wrong_value_is_named_with_its_variable(
    run: Run,
    compiled: CompiledBundle,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    arguments: tuple[str, ...],
    pattern: str,
) -> None:
    monkeypatch.setenv(f"CLIPMLU_{variable}", value)
    code, out, err = run(*(each.format(bundle=compiled.path) for each in arguments))
    assert (code, out) == (1 if value == "900" else 2, "")
    support.assert_one_line(err, pattern)


def test_variables_exclude_no_option_and_need_none(
    run: Run, compiled: CompiledBundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("embed", compiled.path, photos / "0.png", "-o")
    assert run(*given, tmp_path / "a.npy")[0] == 0
    for name, value in {"DATA_DIR": tmp_path, "OFFLINE": "1", "DEVICE": "0", "WORKERS": "2", "THREADS": "1"}.items():
        monkeypatch.setenv(f"CLIPMLU_{name}", str(value))
    assert run(*given, tmp_path / "b.npy")[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))
    code, _, err = run(*given, tmp_path / "c.npy", "--data-dir", tmp_path)
    assert (code, err) == (2, "clipmlu: --data-dir is about a --dataset; give one\n")
    monkeypatch.setenv("CLIPMLU_BATCH_SIZE", "")
    assert run(*given, tmp_path / "d.npy")[0] == 0
