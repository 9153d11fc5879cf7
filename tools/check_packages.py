"""Build the wheel and the sdist, and check them: ``python tools/check_packages.py [--output DIR] [--python PYTHON]``.

Needs ``build``, ``twine`` and ``uv`` (the extra ``lint``) and a package index. Checks that the sdist builds the wheel again
without git, byte for byte; that the wheel holds every file of the package and nothing else; and that an install of the wheel
alone, in a new environment, is small and classifies images outside the checkout with a model that was compiled elsewhere.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

from use_extras import ALL, WORK, Install, use_extras

ROOT = Path(__file__).resolve().parent.parent
MOST_MEGABYTES = 250
"""Of an install without extras, and of one with ``serve`` alone, with the bytecode of all modules, as ``pip`` leaves it."""
KERNEL = re.compile(r"clipmlu/data/resize/kernel-[\w.-]+\.so")
SDIST_ONLY = {
    "CHANGELOG.md",
    "LICENSE",
    "PKG-INFO",
    "README.md",
    "README.zh-CN.md",
    ".gitignore",
    "hatch_build.py",
    "pyproject.toml",
}


def main() -> None:
    """Run all checks; the first that fails ends the program with a line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, help="folder for the wheel and the sdist")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the new environment")
    parser.add_argument("--extras", default="", help="extras to install too, such as compile,openvino")
    given = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="clipmlu-packages-") as name:
        folder = Path(name)
        sdist, wheel = build(folder / "dist")
        check_sdist(sdist)
        check_wheel(wheel)
        check_again(wheel, folder / "again")
        run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)
        check_install(wheel, folder / "install", given.python, given.extras)
        if given.output is not None:
            given.output.mkdir(parents=True, exist_ok=True)
            for path in (sdist, wheel):
                shutil.copy(path, given.output)
    print(f"check_packages: all is well, {time.monotonic() - start:.0f} s")


def run(*command: object, cwd: Path = ROOT, **environment: str) -> str:
    """Run a command and return its output; if it fails, end with its last lines."""
    words = [str(word) for word in command]
    done = subprocess.run(  # noqa: S603
        words, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        text = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
        sys.exit(f"check_packages: '{' '.join(words)}' failed with {done.returncode}:\n{text}")
    return done.stdout


def build(target: Path) -> tuple[Path, Path]:
    """Build the sdist from the checkout and the wheel from the sdist, which knows no git."""
    run(sys.executable, "-m", "build", "--installer", "uv", "--outdir", target, ROOT)
    (sdist,), (wheel,) = target.glob("*.tar.gz"), target.glob("*.whl")
    print(f"built {sdist.name} ({megabytes(sdist)}) and {wheel.name} ({megabytes(wheel)})")
    return sdist, wheel


def megabytes(path: Path) -> str:
    """Return the size of a file or of all files below a folder, in words."""
    return f"{bytes_of(path) / 1e6:.1f} MB"


def bytes_of(path: Path) -> int:
    """Return the size of a file, or of all files below a folder."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(each.stat().st_size for each in files)


def package_files() -> set[str]:
    """Return the files of the package that git tracks, below ``src``."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "src").splitlines()
    return {name.removeprefix("src/") for name in listed if (ROOT / name).is_file()}


def check_sdist(path: Path) -> None:
    """Check that the sdist holds the package and what builds it, and nothing else."""
    with tarfile.open(path) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    expect_same("the sdist", names, {f"src/{name}" for name in package_files()} | SDIST_ONLY)


def check_wheel(path: Path) -> None:
    """Check that the wheel holds the package, its kernel where the tag is for a platform, and the licence."""
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
    own = {name for name in names if ".dist-info/" not in name}
    kernels = {name for name in own if KERNEL.fullmatch(name)}
    if len(kernels) != (0 if path.stem.endswith("-any") else 1):
        sys.exit(f"check_packages: {path.name} holds {len(kernels)} compiled kernels")
    expect_same("the wheel", own - kernels, package_files())
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in names) or "clipmlu/py.typed" not in names:
        sys.exit(f"check_packages: {path.name} lacks its licence or py.typed")


def expect_same(what: str, found: set[str], expected: set[str]) -> None:
    """End the program unless two sets of names are equal."""
    if found != expected:
        missing, extra = sorted(expected - found), sorted(found - expected)
        sys.exit(f"check_packages: {what} lacks {missing} and has {extra} too much")


def check_again(wheel: Path, target: Path) -> None:
    """Check that a wheel from the checkout equals the one from the sdist, byte for byte."""
    run(sys.executable, "-m", "build", "--installer", "uv", "--wheel", "--outdir", target, ROOT)
    (second,) = target.glob("*.whl")
    first, again = (hashlib.sha256(path.read_bytes()).hexdigest() for path in (wheel, second))
    if (wheel.name, first) != (second.name, again):
        sys.exit(f"check_packages: two builds differ: {wheel.name} {first[:12]}, {second.name} {again[:12]}")


def check_install(wheel: Path, folder: Path, python: str, extras: str) -> None:
    """Install the wheel alone into a new environment, and use it in an empty folder."""
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or "uv"
    folder.mkdir()
    environment, work = folder / "environment", folder / "work"
    work.mkdir()
    run(uv, "venv", "--python", python, environment)
    wanted = f"{wheel}[{extras}]" if extras else wheel
    install = (uv, "pip", "install", "--compile-bytecode", "--python", environment / "bin" / "python")
    run(*install, wanted)
    check_size(environment, f"{wheel.name}[{extras}]" if extras else wheel.name, limited=not extras)
    make_model(work)
    use_install(environment / "bin", work)
    names = set(extras.split(",")) - {""}
    use_extras(
        Install(
            environment / "bin",
            work,
            set(ALL) if "all" in names else names | ({"compile", "tokenizers"} if "export" in names else set()),
        )
    )
    if not extras:
        shutil.rmtree(environment)
        run(uv, "venv", "--python", python, environment)
        run(*install, f"{wheel}[serve]")
        check_size(environment, f"{wheel.name}[serve]", limited=True)
        WORK["serve"](Install(environment / "bin", work, {"serve"}))


def check_size(environment: Path, what: str, *, limited: bool) -> None:
    """Print the size of what is installed; end the program if it is limited and too large."""
    size = bytes_of(environment / "lib") / 1e6
    print(f"installed {what}: {size:.0f} MB")
    if limited and size > MOST_MEGABYTES:
        sys.exit(f"check_packages: the install of {what} has {size:.0f} MB; at most {MOST_MEGABYTES} are allowed")


def make_model(work: Path) -> None:
    """Make tiny models with ``tests/support.py`` and compile them, with this interpreter.

    It has the extras ``compile`` and ``tokenizers``, which the tokenizer of the second model needs.
    """
    search = {"PYTHONPATH": os.pathsep.join((str(ROOT / "tests"), str(ROOT / "src")))}
    for name, options in (("tiny", ""), ("words", ", needs_tokenizers=True")):
        make = f"import pathlib, support; support.write_exported(pathlib.Path('{name}'){options})"
        run(sys.executable, "-c", make, cwd=work, **search)
        compiling = ("compile", name, "--target", "cpu", "-o", f"{name}-cpu")
        run(sys.executable, "-m", "clipmlu", *compiling, cwd=work, **search)


def use_install(programs: Path, work: Path) -> None:
    """Classify drawn pictures with the installed package and the compiled model."""
    isolated = {"CLIPMLU_CACHE_DIR": str(work / "cache")}
    where = run(programs / "python", "-c", "import clipmlu; print(clipmlu.__file__)", cwd=work).strip()
    if not where.startswith(str(programs.parent)):
        sys.exit(f"check_packages: '{where}' was imported instead of the installed package")
    command = programs / "clipmlu"
    run(command, "datasets", "--write-samples", ".", cwd=work)
    table = run(command, "classify", "tiny-cpu", "photos", "--labels", "labels.txt", cwd=work, **isolated)
    photos = len(list((work / "photos").iterdir()))
    if table.count("%") < photos:
        sys.exit(f"check_packages: {photos} photos were classified as:\n{table}")
    report = run(command, "doctor", cwd=work, **isolated)
    print(f"classified {photos} photos; {next(line for line in report.splitlines() if 'image resize' in line)}")


if __name__ == "__main__":
    main()
