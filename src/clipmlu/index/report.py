"""What a run of ``clipmlu index`` did."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from clipmlu.display import Displayed
from clipmlu.file_names import name_from_path
from clipmlu.index.manifest import ApproximateRecord, IndexManifest
from clipmlu.jobs.rows import EmbeddingDtype
from clipmlu.specs import NaturalInt, PositiveInt, Spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Changes:
    """What an update did with the shards of its sources.

    Attributes:
        added: shards that are new.
        changed: shards whose content is another than before, or whose segment was damaged.
        removed: shards that are no longer there.
        kept: shards that were in the index already.
        left_out: rows of the sources without an embedding: images that could not be read, NaN or a zero vector.
        normalised: rows written now that were not of unit norm, and were divided by it.
    """

    added: int = 0
    changed: int = 0
    removed: int = 0
    kept: int = 0
    left_out: int = 0
    normalised: int = 0


class IndexReport(Displayed, Spec, frozen=True, kw_only=True):
    """What ``build_index`` did.

    Attributes:
        path: folder of the index.
        rows: rows of the index.
        embedding_dim: elements of a row.
        dtype: dtype of the rows.
        sources: number of jobs and files in the index.
        added, changed, removed, kept, left_out, normalised: see ``Changes``; of the sources of this call.
        approximate: the approximate index and its measured recall; None without one.
        emulated: the emulated vendor SDK computed some of the rows.
    """

    path: str
    rows: NaturalInt
    embedding_dim: PositiveInt
    dtype: EmbeddingDtype
    sources: NaturalInt
    added: NaturalInt
    changed: NaturalInt
    removed: NaturalInt
    kept: NaturalInt
    left_out: NaturalInt
    normalised: NaturalInt
    approximate: ApproximateRecord | None
    emulated: bool

    @classmethod
    def of(cls, path: Path, manifest: IndexManifest, changes: Changes) -> IndexReport:
        """Return the report of an index as it is now."""
        return cls(
            path=name_from_path(path),
            rows=manifest.rows,
            embedding_dim=manifest.embedding_dim,
            dtype=manifest.dtype,
            sources=len(manifest.sources),
            approximate=manifest.approximate,
            emulated=manifest.emulated,
            **dataclasses.asdict(changes),
        )
