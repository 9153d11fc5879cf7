"""The image that a name in a result stands for: a file, or one image of an archive or of a table."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

from clipmlu.data.containers.arrow import arrow_entries, read_arrow_counts
from clipmlu.data.containers.entry import Entry
from clipmlu.data.containers.kinds import container_kind
from clipmlu.data.containers.parquet import parquet_entries, read_parquet_footer
from clipmlu.data.containers.tar import GZIP_START, tar_entries
from clipmlu.data.finding import SkippedFiles
from clipmlu.data.images import ImageSource
from clipmlu.errors import InputError
from clipmlu.file_names import path_from_name
from clipmlu.files.read import open_regular

_MOST_IMAGES = 20_000  # of an archive that are compared: about a second
_MOST_BYTES = 256 << 20  # that are read to come to one image
_MARK = re.compile("::|#")


def find_by_name(name: str) -> ImageSource:
    """Return the image of a name: the path of a file, or the content of ``ARCHIVE::MEMBER`` or of row ``ROW`` of ``TABLE#ROW``.

    An archive is searched from its beginning, at most 20,000 images, and only up to 256 MiB if it is compressed. Of a table the image
    column is chosen as by a job without options.

    Args:
        name: an absolute path as a name; see ``name_from_path``.

    Raises:
        InputError: there is no such image, or to find it would take too long.
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
        entries = _archive(container) if kind == "tar" else _row(container, name[mark.end() :])
        found = next((entry for entry in entries if entry.name == name), None)
        if found is not None:
            return found.load()
        raise InputError(f"'{name}' is not among the images of its file that can be searched.")
    raise InputError("No such file: it was moved or removed, or lies in a table whose rows have ids.")


def _archive(path: Path) -> Iterator[Entry]:
    with open_regular(path) as stream:
        if stream.read(len(GZIP_START)) == GZIP_START and os.fstat(stream.fileno()).st_size > _MOST_BYTES:
            raise InputError(
                f"The archive is compressed and has more than {_MOST_BYTES >> 20} MiB; it is not searched."
            )
    yield from itertools.islice(tar_entries(path, SkippedFiles()), _MOST_IMAGES)


def _row(path: Path, number: str) -> Iterator[Entry]:
    if not (number.isascii() and number.isdigit() and len(number) < 19):
        return
    row, is_parquet = int(number), container_kind(path.name) == "parquet"
    columns, groups = (read_parquet_footer if is_parquet else read_arrow_counts)(path)
    rows = sum(groups.counts)
    if row >= rows:
        return
    first = max(start for start in itertools.accumulate(groups.counts, initial=0) if start <= row)
    if is_parquet and (row - first) * path.stat().st_size // rows > _MOST_BYTES:
        raise InputError(f"More than {_MOST_BYTES >> 20} MiB of its row group lie before it; it is not read.")
    yield from (parquet_entries if is_parquet else arrow_entries)(path, columns, row, 1)
