"""Run the notebooks of ``examples/`` and store their outputs: ``python tools/run_notebooks.py [NAME...]``."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat

FOLDER = Path(__file__).resolve().parent.parent / "examples"


def run(path: Path) -> None:
    """Execute a notebook in an empty folder and write it back, without times and with ... for temporary folders."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(TMPDIR=folder, CLIPMLU_CACHE_DIR=f"{folder}/cache", HF_HUB_OFFLINE="1")
        nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute()
        text = nbformat.writes(notebook)
        text = re.sub(rf"{re.escape(folder)}(/tmp\w+)?", "...", text)
    stored = nbformat.reads(text, as_version=4)
    for cell in stored.cells:
        cell.metadata.pop("execution", None)
    nbformat.write(stored, path)


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.ipynb")):
        run(FOLDER / f"{name}.ipynb")
