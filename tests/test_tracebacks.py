"""Errors in a notebook: a few lines in IPython; plain tracebacks in Python stay whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from clipmlu.errors import BundleNotFoundError, UnknownNameError

shells = pytest.importorskip("IPython.core.interactiveshell", reason="needs IPython")


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    found = shells.InteractiveShell()
    found.history_manager.enabled = False
    yield found
    found.history_manager.end_session()


def _shown(shell: object, cell: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    shell.run_cell(cell)  # type: ignore[attr-defined]
    return capsys.readouterr().out.splitlines()


def test_an_error_in_a_cell_is_its_message_and_the_users_line(
    shell: object, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = _shown(shell, "import clipmlu\n\nmodel = clipmlu.load('no-such-bundle')", capsys)
    assert lines[0].startswith("BundleNotFoundError: No bundle at 'no-such-bundle'")
    assert lines[1:] == ["", "this cell, line 3:", "    model = clipmlu.load('no-such-bundle')"]


def test_the_line_of_the_users_own_function_is_shown(
    shell: object, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    module = tmp_path / "helpers_of_the_user.py"
    module.write_text("import clipmlu\n\n\ndef opened():\n    return clipmlu.load('gone')\n")
    cell = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport helpers_of_the_user\nhelpers_of_the_user.opened()"
    )
    try:
        lines = _shown(shell, cell, capsys)
    finally:
        sys.path.remove(str(tmp_path))
    assert lines[-2:] == [f"{module}, line 5:", "    return clipmlu.load('gone')"]


def test_a_call_through_a_library_shows_the_users_line(shell: object, capsys: pytest.CaptureFixture[str]) -> None:
    """functools is in the standard library, and calls clipmlu."""
    cell = "import clipmlu, functools\nfunctools.reduce(lambda seen, path: clipmlu.load(path), ['a', 'gone'])"
    assert _shown(shell, cell, capsys)[-1].endswith("clipmlu.load(path), ['a', 'gone'])")


def test_a_subclass_and_an_error_without_traceback_are_shown(shell: object) -> None:
    assert UnknownNameError("model", "b32", ["a"])._render_traceback_() == [
        "UnknownNameError: Unknown model 'b32'. Known: a."
    ]
    error = BundleNotFoundError("gone")
    error.add_note("first look there")
    assert error._render_traceback_() == ["BundleNotFoundError: gone", "note: first look there"]


def test_plain_python_shows_every_frame() -> None:
    code = "import clipmlu\nclipmlu.load('no-such-bundle')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Traceback (most recent call last)" in result.stderr
    assert "in open_bundle" in result.stderr
