"""Make an environment with the lowest versions that ``pyproject.toml`` allows: ``python tools/lowest_versions.py FOLDER [--python PYTHON]``.

Needs ``uv`` (the extra ``lint``) and a package index. The dependencies, and those of the extras, have their lowest versions there; what
they need themselves, and the tools of the tests, the newest that go with those. ``--newest`` takes the newest of all instead.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = "bulk,compile,dataframe,heif,jpeg,openvino,report,search,serve,tokenizers"
"""Those of ``all`` but ``export``, for which torch has 6 GB, and ``ray``; ``--extras all`` takes these too."""
MARKS = {"torch": "export", "ray": "ray"}
"""Marker of tests -> the extra that they need."""
QUIET = "-W ignore::DeprecationWarning "
"""Old packages use what newer ones that they need have given up: nothing that this package could change."""


def main() -> None:
    """Make the environment, and print how to run the tests in it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="of the new environment; must not exist")
    parser.add_argument("--python", default=sys.executable, help="its interpreter")
    parser.add_argument("--extras", default=EXTRAS, help="extras to install too (default: %(default)s)")
    parser.add_argument("--newest", action="store_true", help="the newest versions, not the lowest")
    given = parser.parse_args()
    if given.folder.exists():
        parser.error(f"'{given.folder}' exists; give the path of a new folder")
    uv = find_uv()
    folder = given.folder.absolute()
    python = folder / "bin" / "python"
    run(uv, "venv", "--quiet", "--python", given.python, folder)
    resolution = "highest" if given.newest else "lowest-direct"
    extras = [word for name in given.extras.split(",") if name for word in ("--extra", name)]
    with tempfile.TemporaryDirectory(prefix="clipmlu-versions-") as name:
        pins = Path(name) / "pins.txt"
        compiled = ("--python", python, "--resolution", resolution, "--output-file", pins, "--quiet")
        run(uv, "pip", "compile", *compiled, "--no-annotate", *extras, ROOT / "pyproject.toml")
        print(pins.read_text())
        chosen = ("--requirement", pins, "--constraint", pins, "--no-deps", "--editable", ROOT)
        run(uv, "pip", "install", "--quiet", "--python", python, *chosen)
        run(uv, "pip", "install", "--quiet", "--python", python, "--constraint", pins, *tools_of_tests())
    there = set(given.extras.split(","))
    absent = [] if "all" in there else [mark for mark, extra in MARKS.items() if extra not in there]
    marks = " and ".join(f"not {mark}" for mark in ("slow", "full_size", *absent))
    print(f"now run: {python} -m pytest {'' if given.newest else QUIET}-m '{marks}'")


def tools_of_tests() -> list[str]:
    """The requirements of the extra ``test`` that are no part of the package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [line for line in project["optional-dependencies"]["test"] if not line.startswith("clipmlu[")]


def find_uv() -> str:
    """Path of ``uv``: beside this interpreter, or on ``PATH``."""
    found = shutil.which("uv", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    return found or sys.exit("lowest_versions: 'uv' is missing; install the extra lint: pip install -e '.[lint]'")


def run(*command: object) -> None:
    """Run a command; if it fails, end with its status."""
    done = subprocess.run([str(word) for word in command], cwd=ROOT, check=False)  # noqa: S603
    if done.returncode:
        sys.exit(f"lowest_versions: '{command[0]}' failed with {done.returncode}; its lines are above")


if __name__ == "__main__":
    main()
