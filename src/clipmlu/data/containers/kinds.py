"""Which files hold many images."""

from __future__ import annotations

from typing import Literal

ContainerKind = Literal["tar", "parquet", "arrow"]
"""A file that holds many images."""

_SUFFIXES: dict[str, ContainerKind] = {
    ".tar": "tar",
    ".tar.gz": "tar",
    ".tgz": "tar",
    ".parquet": "parquet",
    ".arrow": "arrow",
}


def container_kind(name: str) -> ContainerKind | None:
    """Return the kind of a file by its name, or None if it is not known to hold many images."""
    lower = name.lower()
    return next((kind for suffix, kind in _SUFFIXES.items() if lower.endswith(suffix)), None)
