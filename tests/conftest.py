"""Fixtures that several test modules share."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import browser
import support
import tiny_models
from browser import Chromium
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle, open_compiled, open_exported
from clipmlu.cli import cli, main
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.export.exporter import ExportOptions, export_model

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
"""The tests start hundreds of interpreters; without bytecode on disk each compiles all that it imports, NumPy and torch too."""

LONG_FILES = (
    "test_towers.py",
    "test_ray.py",
    "test_docs.py",
    "test_worker.py",
    "test_serving.py",
    "test_compare.py",
    "test_cli.py",
    "test_downloads.py",
    "test_probe_runs.py",
    "test_probe_answers.py",
    "test_notebooks.py",
    "test_places.py",
    "test_chain.py",
    "test_reference_models.py",
)
"""Begun first, so that processes that share the files of tests end at about the same time."""
OPTION_VARIABLES = {
    str(option.envvar) for command in cli.commands.values() for option in command.params if option.envvar
}
REPOSITORY = Path(__file__).resolve().parent.parent
LONG_EXPORTS = ("convnext", "hf-text", "resnet", "siglip")
"""Kinds of tiny models whose two towers take 15 to 20 s to export. Tests that are repeated for kinds try these with ``make test-all``;
``vit``, ``quick-gelu`` and the joint layout of ``siglip`` stay.
"""


@pytest.hookimpl(tryfirst=True)  # before tests are selected by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of ``LONG_FILES`` first, and mark those of ``LONG_EXPORTS``; all others keep their order."""
    for item in items:
        given: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
        joint = given.get("kind") == "siglip" and "joint" in (given.get("layout"), given.get("tower"))
        if given.get("kind") in LONG_EXPORTS and not joint:
            item.add_marker(pytest.mark.slow)
    order = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONG_FILES)))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real test data (CIFAR-100, golden CLIP tensors); its README lists what is in it."""
    given = os.environ.get("CLIPMLU_TEST_DATA")
    folder = Path(given) if given else REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no test data at '{folder}'; set CLIPMLU_TEST_DATA to the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def cache_names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Paths of cache directories that do not exist yet."""
    base = tmp_path_factory.mktemp("caches")
    return (str(base / str(number)) for number in itertools.count())


@pytest.fixture(autouse=True)
def _private_surroundings(cache_names: Iterator[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache, nor finds a dataset that the developer's shell points to."""
    monkeypatch.setenv("CLIPMLU_CACHE_DIR", next(cache_names))
    monkeypatch.delenv("CIFAR100_DATASETS_PATH", raising=False)


@pytest.fixture
def exported(tmp_path: Path) -> ExportedBundle:
    """The tiny model of ``support``, exported."""
    return support.write_exported(tmp_path / "tiny")


@pytest.fixture
def compiled(tmp_path: Path, exported: ExportedBundle, compiled_once: Path) -> CompiledBundle:
    """A copy of the tiny model of ``exported``, compiled for the CPU with any batch of 1..8 rows."""
    bundle = open_compiled(shutil.copytree(compiled_once, tmp_path / "tiny-cpu"))
    assert bundle.manifest.compilation is not None
    assert bundle.manifest.compilation.source_digest == exported.digest
    return bundle


@pytest.fixture(scope="session")
def libraries() -> None:
    """Skips without torch and open_clip."""
    for name in ("torch", "open_clip", "onnxscript"):
        pytest.importorskip(name, reason=f"needs the export extra ({name})", exc_type=ImportError)


@pytest.fixture(scope="module")
def _chromium() -> Iterator[Chromium]:
    """Chromium runs while the tests of a module do: longer, and its event loop would stop other modules' ``asyncio.run``."""
    with browser.start() as started:
        yield started


@pytest.fixture
def chromium(_chromium: Chromium) -> Iterator[Chromium]:
    """Headless Chromium; the test's pages are closed after it."""
    yield _chromium
    _chromium.close_pages()


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this run have in common."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


@pytest.fixture(scope="session")
def compiled_once(shared_folder: Path) -> Path:
    """What ``compiled`` copies: compiling and its checks take 300 times as long."""
    folder = shared_folder / "tiny-cpu"
    with _alone(folder):
        if not folder.exists():
            exported = support.write_exported(shared_folder / "tiny")
            compile_bundle(exported, folder, CompileOptions(target="cpu", batch_size=4, max_batch=8))
    return folder


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One worker at a time makes what ``folder`` holds."""
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def tiny_model(libraries: None, shared_folder: Path) -> Callable[[str], Path]:
    """``tiny_model(kind)``: the directory of a model with weights, one of ``tiny_models.CONFIGS``; not to be changed."""

    def build(kind: str) -> Path:
        folder = shared_folder / f"tiny-model-{kind}"
        with _alone(folder):
            if not folder.exists():
                made = tiny_models.write_model(folder.with_name(f"{folder.name}.part"), tiny_models.CONFIGS[kind])
                made.rename(folder)
        return folder

    return build


@pytest.fixture(scope="session")
def demo_bundle(libraries: None, shared_folder: Path) -> ExportedBundle:
    """The demo model exported by the command, once; not to be changed."""
    folder = shared_folder / "demo-bundle"
    with _alone(folder):
        if not folder.exists():
            assert main(["export", "demo", "-o", str(folder)]) == 0
    return open_exported(folder)


@pytest.fixture(scope="session")
def tiny_bundle(tiny_model: Callable[[str], Path], shared_folder: Path) -> Callable[..., ExportedBundle]:
    """``tiny_bundle(kind, opset=20, layout="towers")``: that model exported, once; not to be changed."""

    def export(kind: str, opset: int = 20, layout: Any = "towers") -> ExportedBundle:
        folder = shared_folder / f"tiny-bundle-{kind}-{opset}-{layout}"
        model = tiny_model(kind)
        with _alone(folder):
            if not folder.exists():
                export_model(f"local-dir:{model}", folder, ExportOptions(opset=opset, layout=layout))
        return open_exported(folder)

    return export
