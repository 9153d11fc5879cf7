"""Directories that are no bundle: what they hold, by the names of their files, and the command that takes them."""

from __future__ import annotations

import os
from pathlib import Path

from clipmlu.bundle.manifest import GRAPH_SUFFIX, MANIFEST_NAME

LOWERED_NAME = "lowered.json"
"""The header of the folder that ``clipmlu lower`` writes."""
OPEN_CLIP_CONFIG = "open_clip_config.json"
TRANSFORMERS_CONFIG = "config.json"
GRAPH_FOLDER = "onnx"
"""The folder of graphs in the repositories that transformers.js uses, such as Xenova/clip-vit-base-patch32."""


def next_step(directory: Path) -> str:
    """Return a sentence about what a directory holds and the command that takes it, or an empty text if neither is known."""
    names = _names(directory)
    if MANIFEST_NAME in names:
        return f"It is a bundle already. Go on with it: clipmlu info {directory}, or clipmlu compile."
    if LOWERED_NAME in names:
        return "It holds graphs of 'clipmlu lower', for scripts of your own. Give the bundle that they were made of."
    if any(name.endswith(GRAPH_SUFFIX) for name in (*names, *_names(directory / GRAPH_FOLDER))):
        return f"It holds ONNX files. Make a bundle of them: clipmlu import {directory} -o DIR."
    if {OPEN_CLIP_CONFIG, TRANSFORMERS_CONFIG} & names:
        return f"It holds a model. Export it: clipmlu export local-dir:{directory} -o DIR."
    return ""


def _names(directory: Path) -> set[str]:
    try:
        return set(os.listdir(directory))
    except (OSError, ValueError):  # ValueError: a null character
        return set()
