"""Every option that a text of the source names exists: on the command that the text names, else on any command."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from clipmlu.cli import cli
from conftest import REPOSITORY

SOURCE = REPOSITORY / "src" / "clipmlu"
OPTION = re.compile(r"(?<![\w-])--([a-z][a-z0-9]*(?:[-_][a-z0-9]+)*)(?![\w-]|\.\w)")
PROGRAM = re.compile(
    rf"(?:\bclipmlu |')(?P<command>{'|'.join(cli.commands)})(?= )|\b(?P<other>ray start|pip install|docker run|python3\.7|mm_run|emulate --)"
)
END = re.compile(r"['`\n]|\.(?= |$)")  # of a command line in a sentence
OTHER_PROGRAMS = {
    "magicmind/driver": "the worker and the launcher are programs of their own",
    "magicmind/probe": "the probe is a program of its own",
    "magicmind/emulator": "options of the vendor's mm_run",
    "magicmind/mm_run.py": "options of the vendor's mm_run",
    "magicmind/client": "starts the worker with its options",
    "data/resize/build.py": "options of a compiler",
}
FOREIGN = {
    "device": "docker",
    "resources": "ray start",
    "opt_out": "openvino",
    "root": "the worker",
    "sparse": "tar",
}


def _options(command: click.Command) -> set[str]:
    return {name.lstrip("-") for each in command.params for name in (*each.opts, *each.secondary_opts)} | {"help"}


def _all_options() -> set[str]:
    return set().union(*map(_options, cli.commands.values()), _options(cli))


def _texts(path: Path) -> Iterator[tuple[int, str]]:
    """Each text of a file with its line; what an f-string inserts is ``{}``."""
    tree = ast.parse(path.read_text())
    inside = {id(value) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for value in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [str(each.value) if isinstance(each, ast.Constant) else "{}" for each in node.values]
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.lineno, node.value


def unknown_options(text: str, home: click.Command | None = None) -> list[str]:
    """The options in a text that do not exist.

    Args:
        text: it may name commands: an option after ``clipmlu NAME`` must be one of that command.
        home: the command whose file holds the text, and whose options stand before the first named command.
    """
    found = []
    for option in OPTION.finditer(text):
        before = list(PROGRAM.finditer(text, 0, option.start()))
        inside = before and not END.search(text, before[-1].end(), option.start())
        if option[1] in FOREIGN or (inside and before[-1]["other"]):
            continue
        if inside:
            known = _options(cli.commands[before[-1]["command"]])
        elif home is None:
            known = _all_options()
        else:  # a sentence about another command begins with its name
            known = _options(home).union(
                *(_options(cli.commands[word]) for word in cli.commands.keys() & set(text.split()))
            )
        if not {option[1], option[1].replace("_", "-")} & known:
            found.append(f"--{option[1]}")
    return found


def test_the_check_sees_what_is_wrong() -> None:
    assert unknown_options("add --allow-overlap") == []
    assert unknown_options("add --allow-overlap, or run clipmlu sweep X --allow-overlap") == ["--allow-overlap"]
    assert unknown_options("add --allow-overlap", cli.commands["sweep"]) == ["--allow-overlap"]
    assert unknown_options("'clipmlu sweep X' has no --allow-overlap") == []
    assert unknown_options("mm_run --any. Add --no-such-thing") == ["--no-such-thing"]
    assert unknown_options("add --no-such-thing") == ["--no-such-thing"]


@pytest.mark.parametrize("folder", sorted({path.relative_to(SOURCE).parts[0] for path in SOURCE.rglob("*.py")}))
def test_options_in_texts_exist(folder: str) -> None:
    place = SOURCE / folder
    commands = {command.callback.__module__: command for command in cli.commands.values() if command.callback}
    wrong = []
    for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if name.startswith(tuple(OTHER_PROGRAMS)):
            continue
        module = "clipmlu." + name.removesuffix(".py").replace("/", ".")
        for line, text in _texts(path):
            if not OPTION.fullmatch(text):  # which is a word of a command line, perhaps another program's
                wrong += [f"{name}:{line}: {option}" for option in unknown_options(text, commands.get(module))]
    assert not wrong
