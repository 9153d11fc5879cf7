"""Imports point one way, from `cli` at the top to `errors` at the bottom, and never in a circle."""

from __future__ import annotations

import ast
import functools
import graphlib
from pathlib import Path

import pytest

from conftest import REPOSITORY

PACKAGE = REPOSITORY / "src" / "clipmlu"
ORDER = (
    ("tracebacks",),
    ("errors", "_version", "keys", "file_names"),
    ("arguments", "display"),
    ("keywords",),
    ("specs", "files", "host", "clock", "lifetime", "steps"),
    ("bundle",),
    ("data",),
    ("graph",),
    ("backends",),
    ("magicmind",),
    ("export", "compile", "embed"),
    ("classify", "importing"),
    ("model",),
    ("measure",),
    ("tune", "jobs"),
    ("index",),
    ("report", "serve"),
    ("chain", "doctor"),
    ("api",),
    ("cli",),
    ("__main__",),
    ("",),
)
"""Parts of the package from the bottom up, "" being the package itself; a part imports what stands in earlier lines. Those of one
line do not import each other."""
LAYERS = {part: height for height, parts in enumerate(ORDER) for part in parts}

FILES = sorted(PACKAGE.rglob("*.py"))


def _part(dotted: str) -> str:
    names = dotted.split(".")
    return names[1] if len(names) > 1 else ""


def _module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module(path): path for path in FILES}


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def _imports(path: Path) -> set[str]:
    """Modules that are imported anywhere in a file: in functions and for the type checker too."""
    found = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = _source(node, path)
            for alias in node.names:
                module = f"{source}.{alias.name}"
                found.add(module if module in MODULES else source)
    return found


def _source(node: ast.ImportFrom, path: Path) -> str:
    """The module that a statement imports from; a relative one, which packages that become archives have, counts from its package."""
    if not node.level:
        return node.module or ""
    package = _module(path.parent / "__init__.py").split(".")
    return ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])


def test_imports_point_downwards() -> None:
    wrong = [
        f"{_module(path)} imports {module}"
        for path in FILES
        for module in _imports(path)
        if module.split(".")[0] == "clipmlu" and _part(module) != (part := _part(_module(path)))
        if LAYERS[_part(module)] >= LAYERS[part]
    ]
    assert wrong == []


def test_no_files_import_one_another_in_a_circle() -> None:
    graph = {module: _imports(path) & MODULES.keys() - {module} for module, path in MODULES.items()}
    list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the files of a circle


def test_relative_imports_count_like_others() -> None:
    path = PACKAGE / "magicmind" / "client" / "link.py"
    for text, module in (
        ("from clipmlu.errors import X", "clipmlu.errors"),
        ("from . import peer", "clipmlu.magicmind.client"),
        ("from .peer import X", "clipmlu.magicmind.client.peer"),
        ("from ..driver import X", "clipmlu.magicmind.driver"),
    ):
        assert _source(ast.parse(text).body[0], path) == module  # type: ignore[arg-type]


def test_every_part_has_a_place_in_the_order() -> None:
    assert {_part(module) for module in MODULES} == set(LAYERS)


def test_torch_and_open_clip_are_imported_in_the_export_stage_only() -> None:
    export_only = {"torch", "open_clip", "transformers", "torchvision"}
    others = [path for path in FILES if path.relative_to(PACKAGE).parts[0] != "export"]
    assert [path for path in others if {module.split(".")[0] for module in _imports(path)} & export_only] == []


def test_onnxruntime_is_imported_without_its_telemetry() -> None:
    """At run time through ``host.import_onnxruntime``; an import for the type checker is none."""
    assert [path for path in FILES if _names_onnxruntime(path) and _imports_onnxruntime(_tree(path))] == []


def _names_onnxruntime(path: Path) -> bool:
    return any(module.split(".")[0] == "onnxruntime" for module in _imports(path))


def _imports_onnxruntime(tree: ast.Module) -> bool:
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    imports = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom)) and id(node) not in for_types
    ]
    return any("import onnxruntime" in text or text.startswith("from onnxruntime") for text in imports)


def test_an_import_of_onnxruntime_is_found() -> None:
    assert _imports_onnxruntime(ast.parse("def f():\n    import onnxruntime"))
    assert _imports_onnxruntime(ast.parse("from onnxruntime import InferenceSession"))
    assert not _imports_onnxruntime(ast.parse("if TYPE_CHECKING:\n    import onnxruntime"))


def test_every_public_name_resolves_and_shadows_no_module() -> None:
    import clipmlu

    modules = {path.stem for path in PACKAGE.iterdir()}
    for name in clipmlu.__all__:
        assert getattr(clipmlu, name) is not None
        assert name not in modules - {"__version__"}
    assert dir(clipmlu) == sorted(clipmlu.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = clipmlu.nothing
