"""Imports point one way: cli > pipeline, diagnostics > measure > classify > compile, export > backends > emulator, data > quantisation, bundle > specs, files, graph_file, reading > arguments, workspace > errors, file_names."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from conftest import REPOSITORY

PACKAGE = REPOSITORY / "src" / "clipmlu"
LAYERS: dict[str, int] = {
    "errors": -1,
    "_version": -1,
    "file_names": -1,
    "arguments": 0,
    "workspace": 0,
    "specs": 1,
    "_environment": 0,
    "_imports": 1,
    "_machine": 1,
    "stages": 1,
    "lifetime": 1,
    "files": 1,
    "reading": 1,
    "keys": 0,
    "graph_file": 0,
    "parity": 2,
    "bundle": 2,
    "quantisation": 2,
    "data": 3,
    "emulator": 3,
    "backends": 4,
    "export": 5,
    "compile": 5,
    "classify": 6,
    "model": 7,
    "measure": 7,
    "pipeline": 8,
    "search": 8,
    "diagnostics": 8,
    "cli": 9,
    "__main__": 10,
}
"""Part of the package -> its height; a part imports its own and lower ones. Equal heights are strangers to one another."""

FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def _part(dotted: str) -> str:
    names = dotted.split(".")
    return names[1] if len(names) > 1 else ""


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            module = node.module
            found |= {f"{module}.{alias.name}" for alias in node.names} if module == "clipmlu" else {module}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_downwards(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in _imports(path):
        if not module.startswith("clipmlu.") or _part(module) == part:
            continue
        assert LAYERS[_part(module)] < LAYERS[part], f"{part} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_torch_and_open_clip_are_imported_in_the_export_stage_only(path: Path) -> None:
    if path.relative_to(PACKAGE).parts[0] != "export":
        assert not {module.split(".")[0] for module in _imports(path)} & {
            "torch",
            "open_clip",
            "transformers",
            "torchvision",
        }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_onnxruntime_is_imported_without_its_telemetry(path: Path) -> None:
    """At run time through ``_imports.import_onnxruntime``; an import for the type checker is none."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and id(node) not in for_types:
            assert "import onnxruntime" not in ast.unparse(node)
            assert not ast.unparse(node).startswith("from onnxruntime")


def test_every_public_name_resolves_and_shadows_no_module() -> None:
    import clipmlu

    modules = {path.stem for path in PACKAGE.iterdir()}
    for name in clipmlu.__all__:
        assert getattr(clipmlu, name) is not None
        assert name not in modules - {"__version__"}
    assert dir(clipmlu) == sorted(clipmlu.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = clipmlu.nothing
