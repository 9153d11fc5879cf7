"""The image that a name in a result stands for: a file, or one image of an archive or of a table."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

from clipmlu.data.containers.arrow import arrow_entries, read_arrow_counts
from clipmlu.data.containers.entry import Entry
from clipmlu.data.containers.kinds import container_kind
from clipmlu.data.containers.parquet import parquet_entries, read_parquet_footer
from clipmlu.data.containers.tar import Reach, tar_entries
from clipmlu.data.finding import SkippedFiles
from clipmlu.data.images import ImageSource
from clipmlu.errors import InputError
from clipmlu.file_names import path_from_name

_MOST_IMAGES = 20_000  # of an archive that are compared: about a second
_MOST_MEMBERS = 100_000  # of an archive: its images, and texts beside them
_MOST_BYTES = 256 << 20  # that are read to come to one image
_MARK = re.compile("::|#")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Container:
    """What is known of an archive or a table.

    Attributes:
        size: its bytes when its images were listed; None if that is not known.
        image_column: column of the images; None to choose it as a job without options.
    """

    size: int | None = None
    image_column: str | None = None


_UNKNOWN = Container()


def find_by_name(name: str, known: Container = _UNKNOWN) -> ImageSource:
    """Return the image of a name: the path of a file, or the content of ``ARCHIVE::MEMBER`` or of row ``ROW`` of ``TABLE#ROW``.

    An archive is searched from its beginning, at most 20,000 images, and only up to 256 MiB if it is compressed.

    Args:
        name: an absolute path as a name; see ``name_from_path``.
        known: facts of the archive or table.

    Raises:
        InputError: there is no such image, to find it would take too long, or the archive or table has another size than before.
        MissingDependencyError: it lies in a table, and pyarrow is not installed.
    """
    path = path_from_name(name)
    if os.path.lexists(path):
        return path
    for mark in _MARK.finditer(name):
        container = path_from_name(name[: mark.start()])
        kind = container_kind(container.name)
        if kind is None or (kind == "tar") != (mark[0] == "::") or not container.is_file():
            continue
        if known.size is not None and (size := container.stat().st_size) != known.size:
            raise InputError(
                f"'{name[: mark.start()]}' was replaced since its images were embedded: it has {size:,} bytes, not {known.size:,}."
            )
        entries = _archive(container) if kind == "tar" else _row(container, name[mark.end() :], known.image_column)
        found = next((entry for entry in entries if entry.name == name), None)
        if found is not None:
            return found.load()
        raise InputError(f"'{name}' is not among the images of its file that can be searched.")
    raise InputError("No such file: it was moved or removed, or lies in a table whose rows have ids.")


def _archive(path: Path) -> Iterator[Entry]:
    reach = Reach(members=_MOST_MEMBERS, uncompressed_bytes=_MOST_BYTES)
    yield from itertools.islice(tar_entries(path, SkippedFiles(), reach=reach), _MOST_IMAGES)


def _row(path: Path, number: str, image_column: str | None) -> Iterator[Entry]:
    if not (number.isascii() and number.isdigit() and len(number) < 19):
        return
    row, is_parquet = int(number), container_kind(path.name) == "parquet"
    columns, groups = (read_parquet_footer if is_parquet else read_arrow_counts)(path, image_column)
    rows = sum(groups.counts)
    if row >= rows:
        return
    first = max(start for start in itertools.accumulate(groups.counts, initial=0) if start <= row)
    if is_parquet and (row - first) * path.stat().st_size // rows > _MOST_BYTES:
        raise InputError(f"More than {_MOST_BYTES >> 20} MiB of its row group lie before it; it is not read.")
    yield from (parquet_entries if is_parquet else arrow_entries)(path, columns, row, 1)
