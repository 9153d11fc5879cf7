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
    suffix = _suffix(name)
    return None if suffix is None else _SUFFIXES[suffix]


def container_stem(name: str) -> str:
    """Return the name of such a file without its suffix, and other names unchanged."""
    suffix = _suffix(name)
    return name if suffix is None else name[: -len(suffix)]


def _suffix(name: str) -> str | None:
    lower = name.lower()
    return next((suffix for suffix in _SUFFIXES if lower.endswith(suffix)), None)
