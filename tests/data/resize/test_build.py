"""Compiling the kernel, and the hook that does it when the package is built."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from clipmlu.data.resize import build
from clipmlu.data.resize.kernel import checked_kernel
from conftest import REPOSITORY


def test_absent_or_failing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.BuildError, match=r"no C compiler \(cc, gcc, clang\)"):
        build.build(tmp_path / "kernel.so")
    monkeypatch.setenv("CC", "/no/compiler -m64")
    with pytest.raises(build.BuildError, match="'/no/compiler' cannot be run"):
        build.build(tmp_path / "kernel.so")
    monkeypatch.setenv("CC", f"{sys.executable} -c 'import sys; sys.exit(\"it is Python\")'")
    with pytest.raises(build.BuildError, match="failed: it is Python"):
        build.build(tmp_path / "kernel.so")
    monkeypatch.setenv("CC", 'gcc "-O2')
    with pytest.raises(build.BuildError, match="CC is 'gcc \"-O2', which is no command: No closing quotation"):
        build.build(tmp_path / "kernel.so")
    assert not list(tmp_path.iterdir())


def test_unfinished_library_stays_out_of_packages_and_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = shutil.which("git") or pytest.skip("no git")
    folder = tmp_path / build.SOURCE.parent.relative_to(REPOSITORY)
    folder.mkdir(parents=True)
    shutil.copy(REPOSITORY / ".gitignore", tmp_path)  # hatchling reads it too
    subprocess.run([git, "init", "-q", tmp_path], check=True)
    compiler = tmp_path / "compiler.py"
    compiler.write_text(
        "import pathlib, subprocess, sys\n"
        "made = pathlib.Path(sys.argv[sys.argv.index('-o') + 1])\n"
        "made.touch()\n"
        f"sys.exit(subprocess.run([{git!r}, 'status', '--short', '-uall'], cwd=made.parent, stdout=sys.stderr).returncode or 1)\n"
    )
    monkeypatch.setenv("CC", shlex.join([sys.executable, str(compiler)]))
    with pytest.raises(build.BuildError, match=r"failed: \?\? \S*\.gitignore \?\? \S*compiler\.py$"):
        build.build(folder / "kernel-any.so")


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The hook on a copy of the source, with a stand-in for hatchling's base class, whose interface is
    https://hatch.pypa.io/latest/plugins/build-hook/reference/."""
    interface = ModuleType("hatchling.builders.hooks.plugin.interface")
    interface.BuildHookInterface = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    spec = importlib.util.spec_from_file_location("hatch_build", REPOSITORY / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path / "src" / "clipmlu" / "data" / "resize"
    folder.mkdir(parents=True)
    for name in ("build.py", "kernel.c"):
        shutil.copy(build.SOURCE.with_name(name), folder)
    made = module.KernelBuildHook()
    made.root, made.said = str(tmp_path), []
    made.app = SimpleNamespace(display_info=made.said.append, display_warning=made.said.append)
    return made


@pytest.mark.skipif(not any(map(shutil.which, build.COMPILERS)), reason="no C compiler")
def test_wheel_with_the_kernel_is_for_this_platform(hook: Any) -> None:
    wheel: dict[str, Any] = {"force_include": {}}
    hook.initialize("standard", wheel)
    ((source, target),) = wheel["force_include"].items()
    assert target == build.kernel_path().relative_to(REPOSITORY / "src").as_posix()
    assert wheel["pure_python"] is False
    assert wheel["tag"].startswith("py3-none-")
    assert checked_kernel(Path(source)).variants[0] == "plain C"
    assert "compiled the resize kernel" in hook.said[0]


def test_without_a_compiler_the_wheel_is_pure(hook: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/no/compiler")
    wheel: dict[str, Any] = {"force_include": {}}
    hook.initialize("standard", wheel)
    assert wheel == {"force_include": {}}
    assert "no compiled resize kernel: '/no/compiler' cannot be run" in hook.said[0]
