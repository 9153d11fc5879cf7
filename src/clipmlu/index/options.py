"""Options of an index."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from clipmlu.arguments import as_path, check_fields
from clipmlu.jobs.rows import EmbeddingDtype


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """Options of ``build``.

    Attributes:
        bundle: the compiled bundle that embeds queries; None for the one that the job names.
        dtype: dtype of the rows; None for that of an existing index, else float32. float16 needs half the disk, and its search takes
            several times as long.
        overwrite: make the index anew, of the given sources only.
        verify: compute the digests of all files again, those of the shards and those of the index.
    """

    bundle: str | os.PathLike[str] | None = None
    dtype: EmbeddingDtype | None = None
    overwrite: bool = False
    verify: bool = False

    def __post_init__(self) -> None:
        """Check types and ranges."""
        check_fields(self)

    @property
    def bundle_path(self) -> Path | None:
        """Path of the bundle."""
        return None if self.bundle is None else as_path(self.bundle, "the bundle")
