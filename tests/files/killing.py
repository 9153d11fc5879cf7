"""Publishes in a process of its own and kills it at every step: ``python killing.py CASE FOLDER`` prints what was found.

A step is anything that Python tells its audit hooks of: opening, renaming, linking, making and removing. Readers look at the
folder right after the kill; then a sweep comes, as the next command that writes there makes one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from clipmlu.files import workspace
from clipmlu.files.publish import DirectoryKind, stage_directory, write_files

State = dict[str, str]
KIND = DirectoryKind(name="bundle", marker="marker", files=("data",))


def write_one(folder: Path, *, overwrite: bool = True) -> None:
    """One file."""
    write_files({folder / "one": b"new"}, overwrite=overwrite)


def write_pair(folder: Path) -> None:
    """Two files that belong together."""
    write_files({folder / "rows": b"new", folder / "ids": b"new"}, overwrite=True)


def write_directory(folder: Path) -> None:
    """A directory of two files."""
    with stage_directory(folder / "bundle", KIND, overwrite=True) as made:
        (made / "data").write_text("new")
        (made / "marker").write_text("new")


def without_exchange(folder: Path) -> None:
    """The same on a system that cannot exchange two directories in one step."""
    workspace._renameat2 = lambda: None  # type: ignore[assignment]
    write_directory(folder)


CASES: dict[str, tuple[Callable[..., None], list[str]]] = {
    "one": (write_one, ["one"]),
    "pair": (write_pair, ["rows", "ids"]),
    "directory": (write_directory, ["bundle/data", "bundle/marker"]),
    "without_exchange": (without_exchange, ["bundle/data", "bundle/marker"]),
}


def look(folder: Path, names: list[str]) -> State:
    """What a reader sees: name -> content of what is there."""
    found = {}
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            found[name] = (folder / name).read_text()
    return found


def kill_at(step: int, action: Callable[[], Any]) -> bool:
    """Run in a child that dies at a step; whether it came to its end before."""
    child = os.fork()
    if child == 0:
        left = step

        def count(event: str, _arguments: object) -> None:
            nonlocal left
            if event == "open" or (event.startswith("os.") and event != "os.kill"):
                left -= 1
                if left == -1:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            action()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert status == 0 or os.WIFSIGNALED(status), "it failed without being killed"
    return status == 0


def try_every_step(folder: Path, publish: Callable[..., None], names: list[str]) -> Iterator[tuple[State, State, int]]:
    """For every step: what a reader finds after the kill, what he finds after a sweep, and how much is left lying about."""
    for step in range(1000):
        shutil.rmtree(folder, ignore_errors=True)
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("old")
        ended = kill_at(step, lambda: publish(folder))
        before = look(folder, names)
        workspace.sweep(folder)
        left = [path for path in folder.iterdir() if path.name not in {Path(name).parts[0] for name in names}]
        yield before, look(folder, names), len(left)
        if ended:
            return


if __name__ == "__main__":
    publish, names = CASES[sys.argv[1]]
    json.dump(list(try_every_step(Path(sys.argv[2]), publish, names)), sys.stdout)
