"""The notebooks in ``examples/`` run from top to bottom without a network, and show what is stored in them."""

from __future__ import annotations

import ast
import inspect
import os
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import clipmlu
import support
from clipmlu.bundle.directory import ExportedBundle
from conftest import REPOSITORY

nbformat = pytest.importorskip("nbformat", reason="needs nbformat, nbclient and ipykernel, of the extra test")
nbclient = pytest.importorskip("nbclient", reason="needs nbformat, nbclient and ipykernel, of the extra test")
pytest.importorskip("ipykernel", reason="needs nbformat, nbclient and ipykernel, of the extra test")

pytestmark = pytest.mark.torch
NOTEBOOKS = sorted((REPOSITORY / "examples").glob("*.ipynb"))
QUICK = ("quick_start",)
"""Run each time. The others export and compile several models, half a minute each; their calls are bound to the functions."""
_VARIES = "varies"  # tag of cells whose output holds times, or notes of a first run
_PICTURE = re.compile(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]+")
_SECONDS = 300


def _shown(output: Any, folder: Path) -> tuple[str, ...]:
    """What a reader sees of an output, without pictures and names of temporary folders, which differ between runs."""
    kind = output["output_type"]
    if kind == "stream":
        texts = [output["name"], output["text"]]
    elif kind == "error":
        texts = [output["ename"], output["evalue"]]
    else:
        texts = [output["data"].get("text/plain", ""), output["data"].get("text/html", "")]
    return tuple(re.sub(rf"{re.escape(str(folder))}(/tmp\w+)?", "...", _PICTURE.sub("data:", text)) for text in texts)


def _execute(notebook: Any, folder: Path) -> Any:
    client = nbclient.NotebookClient(
        notebook, timeout=_SECONDS, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    return client.execute()


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=() if path.stem in QUICK else pytest.mark.slow, id=path.stem) for path in NOTEBOOKS],
)
@pytest.mark.filterwarnings("default")
def test_a_notebook_shows_what_is_stored_in_it(
    path: Path, demo_bundle: ExportedBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``pipeline`` finds the demo model exported."""
    support.keep_export(demo_bundle, tmp_path / "cache")
    monkeypatch.setenv("CLIPMLU_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    stored = nbformat.read(path, as_version=4)
    found = _execute(nbformat.read(path, as_version=4), tmp_path)
    code = [(want, have) for want, have in zip(stored.cells, found.cells, strict=True) if want.cell_type == "code"]
    assert code
    for want, have in code:
        assert bool(have.outputs) == bool(want.outputs), have.source
        if _VARIES not in want.metadata.get("tags", ()):
            found_texts, stored_texts = ([_shown(output, tmp_path) for output in cell.outputs] for cell in (have, want))
            assert found_texts == stored_texts, have.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_names_no_place_of_the_machine_that_ran_it(path: Path) -> None:
    content = path.read_text(encoding="utf-8")
    assert len(content) < 200_000
    assert os.fspath(REPOSITORY) not in content
    assert os.path.expanduser("~") + "/" not in content
    assert any(output for cell in nbformat.reads(content, as_version=4).cells for output in cell.get("outputs", ()))


def calls_of_the_package(path: Path) -> list[ast.Call]:
    """Calls of ``clipmlu.NAME`` in the cells of a notebook."""
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    nodes = [node for source in cells for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [node for node in nodes if ast.unparse(node.func).rpartition(".")[0] == "clipmlu"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_calls_in_a_notebook_fit_their_functions(path: Path) -> None:
    calls = calls_of_the_package(path)
    assert len(calls) > 4
    for call in calls:
        function = getattr(clipmlu, ast.unparse(call.func).rpartition(".")[2])
        given = {keyword.arg: None for keyword in call.keywords if keyword.arg}
        bound = inspect.signature(function).bind(*call.args, **given)
        more = get_args(get_type_hints(function).get("keywords"))
        assert bound.arguments.get("keywords", {}).keys() <= (more[0].__annotations__.keys() if more else set())


def test_there_are_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} == {"choosing_a_precision", "from_the_vendor_sample", "quick_start"}
