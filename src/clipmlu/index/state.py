"""An index as it was at one time: its segments in memory maps."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from clipmlu.errors import InputError
from clipmlu.file_names import name_from_path
from clipmlu.files.read import open_regular
from clipmlu.index.filters import NameFilter
from clipmlu.index.manifest import INDEX_FILE, SEGMENTS_FOLDER, IndexManifest, Source
from clipmlu.index.segments import OpenSegment

_KEPT_MASKS = 8


class Mark(NamedTuple):
    """What tells two states of ``index.json`` apart."""

    inode: int
    size: int
    mtime_ns: int


def mark_of(folder: Path) -> Mark | None:
    """Return the mark of an index; None if it cannot be read."""
    try:
        facts = (folder / INDEX_FILE).stat()
    except OSError:
        return None
    return Mark(facts.st_ino, facts.st_size, facts.st_mtime_ns)


class IndexState:
    """An index as it was at one time; threads may share it.

    Args:
        folder: folder of the index.
        manifest: content of its ``index.json``.

    Attributes:
        manifest: the same.
        parts: the rows of each segment that has some; row numbers go on from one to the next.
        rows: number of rows.
        approximate_file: bytes of the approximate index; None without one.

    Raises:
        FileNotFoundError: a segment is missing.
        InputError: a segment is damaged.
    """

    def __init__(self, folder: Path, manifest: IndexManifest) -> None:
        self.manifest = manifest
        place, dim, dtype = folder / SEGMENTS_FOLDER, manifest.embedding_dim, manifest.dtype
        records = [(source, each) for source in manifest.sources for each in source.segments if each.rows]
        self._segments = [OpenSegment(place / f"{each.name}.npy", each, dim, dtype) for _, each in records]
        self._records = records
        self.parts = [segment.vectors for segment in self._segments]
        self._firsts: list[int] = np.cumsum([0, *map(len, self.parts)]).tolist()
        self.rows: int = self._firsts[-1]
        self._places: defaultdict[str, list[int]] = defaultdict(list)
        for (_, each), first in zip(records, self._firsts, strict=False):
            self._places[each.name].append(first)
        self.approximate_file = _map_approximate(folder, manifest)
        self._masks: OrderedDict[tuple[tuple[str, ...], ...], npt.NDArray[np.bool_]] = OrderedDict()
        self._masks_lock = threading.Lock()

    def mask(self, names: NameFilter) -> npt.NDArray[np.bool_]:
        """Return which rows pass a filter; the last few are kept."""
        key = (names.include, names.exclude)
        with self._masks_lock:
            if key in self._masks:
                self._masks.move_to_end(key)
                return self._masks[key]
        passes = names.compile()
        mask = np.fromiter((passes(name) for each in self._segments for name in each.ids), bool, self.rows)
        with self._masks_lock:
            self._masks[key] = mask
            while len(self._masks) > _KEPT_MASKS:
                self._masks.popitem(last=False)
        return mask

    def segments(self) -> dict[str, npt.NDArray[np.floating]]:
        """Return the rows of each segment by its name."""
        numbers = {name: self._firsts.index(firsts[0]) for name, firsts in self._places.items()}
        return {name: self.parts[number] for name, number in numbers.items()}

    def places_of(self, name: str) -> Sequence[int]:
        """Return the first rows of a segment, which may be in the index several times."""
        return self._places.get(name, ())

    def id_of(self, row: int) -> str:
        """Return the name of an image.

        Raises:
            InputError: the file of the names is damaged.
        """
        place = self._place(row)
        return self._segments[place].ids[row - self._firsts[place]]

    def source_of(self, row: int) -> Source:
        """Return where a row comes from."""
        return self._records[self._place(row)][0]

    def shard_of(self, row: int) -> str:
        """Return the name of the shard of a row in its source."""
        return self._records[self._place(row)][1].shard

    def _place(self, row: int) -> int:
        return bisect_right(self._firsts, row) - 1


def _map_approximate(folder: Path, manifest: IndexManifest) -> npt.NDArray[np.uint8] | None:
    record = manifest.approximate
    if record is None:
        return None
    path = folder / record.name
    if path.stat().st_size != record.file.size:
        raise InputError(
            f"'{name_from_path(path)}' was changed: its size is not the recorded one. The same 'clipmlu index' that made the index "
            "mends it."
        )
    with open_regular(path) as stream:
        return np.memmap(stream, np.uint8, "r")
