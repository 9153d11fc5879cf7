"""The environment of a program on the emulated SDK: the package ``magicmind``, the tool ``mm_run``, names of old libraries."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from clipmlu.files.publish import scratch_directory
from clipmlu.host import require_graph_packages
from clipmlu.magicmind import MM_RUN_PATH
from clipmlu.magicmind.emulator import emulated_environment
from clipmlu.magicmind.emulator.settings import PREFIX

COMPAT_VARIABLE = f"{PREFIX}COMPAT"
"""Variable that ``compat/sitecustomize.py`` reads in every Python interpreter of the program."""

_TOOL = """\
#!/bin/sh
# The emulated mm_run of clipmlu. It ends with the program that it was written for.
PYTHONPATH={source}${{PYTHONPATH:+:$PYTHONPATH}} exec {python} -P -m clipmlu.magicmind.emulator.mm_run "$@"
"""


def compat_path() -> Path:
    """Return the directory of ``sitecustomize``, to be on PYTHONPATH."""
    return Path(__file__).resolve().parent / "compat"


@contextlib.contextmanager
def program_environment(
    base: Mapping[str, str] | None = None, *, compat: bool = False, **settings: object
) -> Iterator[dict[str, str]]:
    """Yield the environment of a program on the emulated SDK; its tools exist until the block ends.

    Args:
        base: the environment to start from; this process's if None.
        compat: add names that newer versions of NumPy, Pillow and Python lack; without, an error about one names the option.
        settings: as for ``emulated_environment``.

    Raises:
        ValueError: there is no such setting.
        MissingDependencyError: the packages that read graphs are not installed.
        OutputError: the tools cannot be written to the system's temporary folder.
    """
    require_graph_packages("The emulated SDK")
    environment = emulated_environment(base, **settings)
    with scratch_directory() as folder:
        _write_tool(folder / "mm_run")
        environment["PATH"] = os.pathsep.join(filter(None, [str(folder), environment.get("PATH", os.defpath)]))
        environment[MM_RUN_PATH] = str(folder)
        environment["PYTHONPATH"] = os.pathsep.join([str(compat_path()), environment["PYTHONPATH"]])
        environment[COMPAT_VARIABLE] = "1" if compat else "0"
        yield environment


def _write_tool(path: Path) -> None:
    source = Path(__file__).resolve().parents[3]
    path.write_text(_TOOL.format(python=shlex.quote(sys.executable), source=shlex.quote(str(source))))
    path.chmod(0o755)
