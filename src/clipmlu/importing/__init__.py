"""Imports ONNX files of other programs as exported bundles, without torch."""

from __future__ import annotations

from clipmlu.host import require_graph_packages, require_installed


def require_packages() -> None:
    """Check that the packages of an import are installed, without importing them.

    Raises:
        MissingDependencyError: one is not.
    """
    purpose, extras = "Importing ONNX files", "compile,tokenizers"
    require_graph_packages(purpose, extras)
    require_installed("tokenizers", extras, purpose)
