"""Run ``clipmlu`` commands as an install without extras would: all other packages are hidden from the imports.

``python only_base.py JSON`` with a list of commands, each a list of words, writes a JSON list of [exit code, stdout, stderr].
Hidden is what neither Python nor a package of ``dependencies`` in pyproject.toml brings, directly or through others.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from packaging.requirements import Requirement

_BUILD_FACTS = "_sysconfigdata_"  # Python's own, which its list of modules lacks


def base_packages() -> set[str]:
    """Return the names of the packages that an install without extras brings, as their metadata say."""
    pyproject = Path(__file__).resolve().parent.parent / "pyproject.toml"
    wanted = [*tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["dependencies"]]
    found: set[str] = set()
    while wanted:
        requirement = Requirement(wanted.pop())
        if requirement.name not in found and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            found.add(requirement.name)
            wanted += metadata.requires(requirement.name) or []
    return found


def modules_of(packages: set[str]) -> set[str]:
    """Return the names of the top-level modules that packages install."""
    files = [file for package in packages for file in metadata.files(package) or ()]
    return {file.parts[0].partition(".")[0] for file in files}


class Selective:
    """An importer that finds what another one finds, but of the known modules and packages only."""

    def __init__(self, finder: Any, known: set[str], packages: set[str]) -> None:
        self._finder = finder
        self._known = known
        self._packages = packages

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        is_known = name.partition(".")[0] in self._known or name.startswith(_BUILD_FACTS)
        return self._finder.find_spec(name, path, target) if is_known else None

    def find_distributions(self, context: metadata.DistributionFinder.Context) -> Iterator[metadata.Distribution]:
        if hasattr(self._finder, "find_distributions"):
            for found in self._finder.find_distributions(context):
                if found.name in self._packages:
                    yield found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)


def hide_others() -> None:
    """Hide all packages but those of the base install; what this program imported itself is forgotten."""
    known = (
        modules_of(base_packages()) | set(sys.stdlib_module_names) | {"clipmlu", "magicmind"}
    )  # the latter is the emulated SDK
    for name in [name for name in sys.modules if name.partition(".")[0] not in known | {"__main__"}]:
        del sys.modules[name]
    packages = {"clipmlu", *(metadata.distribution(name).name for name in base_packages())}
    sys.meta_path[:] = [Selective(finder, known, packages) for finder in sys.meta_path]


def run(command: list[str]) -> tuple[int, str, str]:
    """Run a command in this process; return its exit code, stdout and stderr."""
    from clipmlu.cli import main

    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(command)
    return code, out.getvalue(), err.getvalue()


if __name__ == "__main__":
    commands = json.loads(sys.argv[1])
    hide_others()
    print(json.dumps([run(command) for command in commands]))
