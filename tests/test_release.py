"""The checklist of a release refuses a checkout that is not ready, and never publishes."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from conftest import REPOSITORY


@pytest.fixture(scope="module")
def release() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", REPOSITORY / "tools" / "release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _git(root: Path, *words: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    subprocess.run(["git", *who, *words], cwd=root, check=True, capture_output=True)


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """A checkout of version 0.2.0, of which nothing is to be refused."""
    package = tmp_path / "src" / "clipmlu"
    package.mkdir(parents=True)
    (package / "_version.py").write_text('__version__ = "0.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 0.2.0 (2026-11-28)\n\n- new\n\n## 0.1.0 (2026-10-01)\n")
    _git(tmp_path, "init", "-b", "main")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-m", "all")
    _git(tmp_path, "tag", "v0.1.0")
    return tmp_path


def _add_file(root: Path) -> None:
    (root / "new").touch()


def _branch(root: Path) -> None:
    _git(root, "switch", "-c", "side")


def _tag(root: Path) -> None:
    _git(root, "tag", "v0.10.0")


def _unreleased(root: Path) -> None:
    (root / "CHANGELOG.md").write_text("# Changelog\n\n## 0.2.0 (unreleased)\n")
    _git(root, "commit", "-am", "text")


def _other_section(root: Path) -> None:
    (root / "CHANGELOG.md").write_text("# Changelog\n\n## 0.1.0 (2026-10-01)\n")
    _git(root, "commit", "-am", "text")


def _no_version(root: Path) -> None:
    (root / "src" / "clipmlu" / "_version.py").write_text('__version__ = "next"\n')
    _git(root, "commit", "-am", "version")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (_add_file, "not committed: ?? new"),
        (_branch, "the branch is 'side'"),
        (_tag, "0.2.0 of src/clipmlu/_version.py is not newer than the last tag, v0.10.0"),
        (_unreleased, "begins with '0.2.0 (unreleased)'"),
        (_other_section, "expected '0.2.0 (YYYY-MM-DD)'"),
        (_no_version, "the version 'next'"),
    ],
)
def test_a_checkout_that_is_not_ready_is_refused(
    release: ModuleType,
    ready: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    expected: str,
) -> None:
    spoil(ready)
    assert release.main(["--dry-run"], ready) == 1
    shown = capsys.readouterr()
    assert expected in shown.err
    assert len(shown.err.splitlines()) == 1
    assert shown.out == ""


def test_a_dry_run_shows_each_step_and_runs_none(
    release: ModuleType, ready: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert release.main(["--dry-run", "--ci", "run"], ready) == 0
    *steps, _nothing, tag, push, upload = capsys.readouterr().out.splitlines()
    assert [step.split()[0] for step in steps] == ["+"] * 5
    for step, part in zip(
        steps,
        (
            ".ci/run",
            "check_packages.py --extras all",
            "check_packages.py --output",
            "auditwheel repair",
            "twine check --strict",
        ),
        strict=True,
    ):
        assert part in step
    assert tag.strip().startswith("git tag -a v0.2.0")
    assert push.strip() == "git push origin v0.2.0"
    assert "twine upload" in upload
    assert not (ready / "dist").exists()


def test_without_a_word_about_the_checks_nothing_is_built(
    release: ModuleType, ready: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert release.main([], ready) == 1
    assert "--ci run" in capsys.readouterr().err
