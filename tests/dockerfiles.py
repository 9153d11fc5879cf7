"""Dockerfiles as data: their stages, and the instructions of each."""

from __future__ import annotations

import json
import re
from pathlib import Path

from conftest import REPOSITORY

FOLDER = REPOSITORY / "docker"
Stage = list[tuple[str, str]]


def stages(path: Path) -> list[Stage]:
    """Return the stages of a Dockerfile; a stage is a list of (instruction, its arguments), from its FROM on."""
    text = re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", path.read_text(encoding="utf-8")))
    found: list[Stage] = [[]]
    for line in filter(None, text.splitlines()):
        instruction, _, arguments = line.partition(" ")
        if instruction == "FROM":
            found.append([])
        found[-1].append((instruction, " ".join(arguments.split())))
    return found[1:]


def values(stage: Stage, instruction: str) -> list[str]:
    """Return the arguments of each instruction of a kind."""
    return [arguments for name, arguments in stage if name == instruction]


def words(stage: Stage, instruction: str) -> list[str]:
    """Return the words of the only instruction of a kind, which is a JSON list."""
    (arguments,) = values(stage, instruction)
    return json.loads(arguments[arguments.index("[") :])
