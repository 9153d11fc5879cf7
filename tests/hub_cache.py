"""The cache of huggingface_hub, filled without a network."""

from __future__ import annotations

from pathlib import Path


def put_into_cache(cache: Path, repo: str, name: str, content: bytes, commit: str = "0" * 40) -> Path:
    """As huggingface_hub lays out its cache: refs/main names a snapshot."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    file = folder / "snapshots" / commit / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file
