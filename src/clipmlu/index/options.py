"""Options of an index."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated

import msgspec

from clipmlu.arguments import as_path, check_fields
from clipmlu.errors import OptionError
from clipmlu.jobs.rows import EmbeddingDtype

Recall = Annotated[float, msgspec.Meta(gt=0, le=1)]
DEFAULT_RECALL = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """Options of ``build``.

    Attributes:
        bundle: the compiled bundle that embeds queries; None for the one that the job names.
        dtype: dtype of the rows; None for that of an existing index, else float32. float16 needs half the disk, and its search takes
            several times as long.
        approximate: make an approximate index beside the exact one, which searches of large indices use; an index that has one keeps
            it. Needs faiss-cpu.
        recall: share of the 10 best rows that the approximate index must find; None for that of an existing one, else 0.95.
        overwrite: make the index anew, of the given sources only.
        verify: compute the digests of all files again, those of the shards and those of the index.
    """

    bundle: str | os.PathLike[str] | None = None
    dtype: EmbeddingDtype | None = None
    approximate: bool = False
    recall: Recall | None = None
    overwrite: bool = False
    verify: bool = False

    def __post_init__(self) -> None:
        """Check types and ranges."""
        check_fields(self)
        if self.recall is not None and not self.approximate:
            raise OptionError("recall is for an approximate index; give approximate, too")

    @property
    def bundle_path(self) -> Path | None:
        """Path of the bundle."""
        return None if self.bundle is None else as_path(self.bundle, "the bundle")
