"""Every environment variable that clipmlu itself reads, in one place.

``HF_HOME``, ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE`` are read by huggingface_hub, ``NO_COLOR`` by rich.
"""

from __future__ import annotations

import os
from pathlib import Path

from clipmlu.file_names import expand_home

CACHE_VARIABLE = "CLIPMLU_CACHE_DIR"
CIFAR100_VARIABLE = "CIFAR100_DATASETS_PATH"
"""Where the vendor's CLIP sample looks for CIFAR-100."""


def cache_dir() -> Path:
    """Where downloads and class embeddings are kept: CLIPMLU_CACHE_DIR, else XDG_CACHE_HOME/clipmlu, else ~/.cache/clipmlu."""
    if own := os.environ.get(CACHE_VARIABLE):
        return expand_home(own)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return expand_home(base) / "clipmlu"
    return Path.home() / ".cache" / "clipmlu"


def cifar100_dir() -> Path | None:
    """The folder named by CIFAR100_DATASETS_PATH, or None where it is not set."""
    value = os.environ.get(CIFAR100_VARIABLE)
    return expand_home(value) if value else None


def refuse_onnxruntime_telemetry() -> None:
    """Set ORT_DISABLE_TELEMETRY for this process and its children, unless it is set already; onnxruntime reads it once."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
