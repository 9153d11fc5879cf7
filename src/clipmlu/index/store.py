"""The segments of an index on disk: taken over if the content of a shard is the same, else written, and removed when no longer used."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import msgspec

from clipmlu.errors import InputError
from clipmlu.files.publish import output_errors
from clipmlu.files.workspace import sweep
from clipmlu.index.manifest import SEGMENTS_FOLDER, FileTime, IndexManifest, Segment
from clipmlu.index.segments import adopt_rows, has_whole_files, record_files, write_segment
from clipmlu.index.sources import Shard
from clipmlu.jobs.rows import EmbeddingDtype
from clipmlu.keys import value_digest

_OWN_FILE = re.compile(r"[0-9a-f]{32}(\.npy|\.ids\.json)")
_NAME_DIGITS = 32


class SegmentStore:
    """Makes the segments of shards.

    Args:
        output: folder of the index.
        dim: elements of a row.
        dtype: dtype of the rows.
        counts: counts what was done; see ``Changes``.
        verify: compute the digests of all files again.
    """

    def __init__(self, output: Path, dim: int, dtype: EmbeddingDtype, counts: Counter[str], *, verify: bool) -> None:
        self._folder = output / SEGMENTS_FOLDER
        self._dim = dim
        self._dtype = dtype
        self._counts = counts
        self._verify = verify

    def take(self, shard: Shard, before: Segment | None) -> Segment:
        """Return the segment of a shard: the one before if the content is the same, else a new one.

        Args:
            shard: the shard.
            before: its segment in the index; None if it is new.

        Raises:
            InputError: the shard is damaged, or changes while it is read.
            OutputError: the segment cannot be written.
        """
        times = shard.times()
        if before is not None and times == before.times and not self._verify:
            recorded = before.key if shard.known is None else shard.key(shard.known)
            if recorded == before.key and self._is_intact(before):
                self._counts.update(kept=1, left_out=before.left_out)
                return before
        # Jobs record digests, which are compared when the shard is read.
        digests = shard.digests() if shard.known is None or before is not None else shard.known
        key = shard.key(digests)
        if before is not None and key == before.key and self._is_intact(before):
            self._counts.update(kept=1, left_out=before.left_out)
            return msgspec.structs.replace(before, times=times)
        segment = self._write(shard, key, times)
        self._counts.update(**{"added" if before is None else "changed": 1}, left_out=segment.left_out)
        return segment

    def _is_intact(self, segment: Segment) -> bool:
        path = self._path(segment.name)
        if not self._verify:
            return has_whole_files(path, segment)
        try:
            return record_files(path) == segment.files
        except OSError:
            return False

    def _write(self, shard: Shard, key: str, times: dict[str, FileTime]) -> Segment:
        """Write the segment of a shard, unless an earlier run that was killed has written it."""
        name = value_digest([key, self._dtype])[:_NAME_DIGITS]
        path = self._path(name)
        rows = None if self._verify else adopt_rows(path, self._dim, self._dtype)
        if rows is None:
            written = write_segment(path, shard.read(), self._dim, self._dtype)
            self._counts.update(normalised=written.normalised)
            rows = written.rows
        if shard.times() != times:
            raise InputError(f"'{shard.name}' was changed while it was read. Run the command again.")
        with output_errors(path):
            files = record_files(path)
        return Segment(
            name=name, shard=shard.name, key=key, rows=rows, left_out=shard.rows - rows, files=files, times=times
        )

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.npy"


def remove_unused(output: Path, manifest: IndexManifest) -> None:
    """Remove the files that are no longer in an index; a process that searches them keeps what it has opened.

    Args:
        output: folder of the index.
        manifest: its published manifest.

    Raises:
        OutputError: a file cannot be removed.
    """
    used, folder = {segment.name for segment in manifest.segments()}, output / SEGMENTS_FOLDER
    with output_errors(output):
        folder.mkdir(exist_ok=True)
        sweep(folder)
        for entry in list(os.scandir(folder)):
            if _OWN_FILE.fullmatch(entry.name) and entry.name.partition(".")[0] not in used:
                os.unlink(entry.path)
        for path in output.glob("approximate-*.faiss"):
            if manifest.approximate is None or path.name != manifest.approximate.name:
                path.unlink()
