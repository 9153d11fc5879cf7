"""Reading pairs of images and texts from files."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from clipmlu.arguments import as_path, check_fields
from clipmlu.data.containers.kinds import container_kind
from clipmlu.data.images import DEFAULT_MAX_PIXELS, ImageSource
from clipmlu.data.pairs.archives import read_archive
from clipmlu.data.pairs.pairs import PairRow, PairSet, collect_pairs
from clipmlu.data.pairs.records import read_document, read_lines
from clipmlu.data.pairs.tables import read_table
from clipmlu.data.textfile import decode_text
from clipmlu.data.url.location import is_url
from clipmlu.errors import InputError, OptionError
from clipmlu.file_names import name_from_path
from clipmlu.files.read import read_small_file
from clipmlu.specs import PositiveInt

_MOST_BYTES = 512 << 20
_TABLES = {".csv": False, ".txt": False, ".tsv": True, ".tab": True}
"""Suffixes of tables, and whether their cells are always separated by tabs."""
_EXPECTED = "Expected .csv, .tsv, .jsonl, .json (COCO, or Karpathy's splits), or .tar (WebDataset)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairChoice:
    """Files of pairs and how to read them; validated on construction.

    Attributes:
        paths: the files, which are read one after the other, such as the shards of a WebDataset.
        image_column: column or field of the image; None for the first usual name; see ``choose_fields``.
        text_column: column or field of the text.
        image_root: folder of relative paths; None for the folder of the file, and then the current folder.
        split: only rows whose column or field ``split`` has this value; None for all, if all have the same.
        max_pixels: largest width x height of an image that is decoded.
    """

    paths: tuple[str | os.PathLike[str], ...]
    image_column: str | None = None
    text_column: str | None = None
    image_root: str | os.PathLike[str] | None = None
    split: str | None = None
    max_pixels: PositiveInt = DEFAULT_MAX_PIXELS

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.paths:
            raise OptionError(f"pairs are missing. {_EXPECTED}")
        if self.image_root is not None and not os.path.isdir(self.image_root):
            raise InputError(f"The folder of the images '{name_from_path(self.image_root)}' does not exist.")

    def open(self) -> PairSet:
        """Read the files; the images are not opened.

        Raises:
            InputError: a file cannot be read, has no column for images or texts, or has no pair.
            OptionError: it has no such split, or several, of which none was chosen.
        """
        paths = [as_path(path, "the file of pairs") for path in self.paths]
        name = ", ".join(map(name_from_path, paths))
        rows = [row for path in paths for row in self._rows(path)]
        if not rows:
            raise InputError(f"'{name}' holds no pairs of images and texts.")
        split = self._split(rows, name)
        chosen = (row for row in rows if split is None or row.split == split)
        found = collect_pairs(chosen, name, split or "", self.max_pixels)
        if not found.images:
            raise InputError(
                f"'{name}' holds no texts: not one of the images in its {len(rows):,} rows has one. Expected a text in each row, or in "
                "an archive NAME.txt directly after or before NAME.jpg."
            )
        return found

    def _split(self, rows: Sequence[PairRow], name: str) -> str | None:
        """Return the split to read; None if the rows have none."""
        known = Counter(row.split for row in rows if row.split is not None)
        without = len(rows) - known.total()
        listed = ", ".join(f"'{split}'" for split in sorted(known))
        if self.split is not None and self.split not in known:
            raise OptionError(f"'{name}' has no split '{self.split}'; it has {listed or 'no column for splits'}")
        if self.split is None and len(known) > 1:
            raise OptionError(f"'{name}' has the splits {listed}, which must not be mixed; choose one with --split")
        if self.split is None and known and without:
            raise OptionError(
                f"{without:,} of the {len(rows):,} rows of '{name}' name no split, the others {listed}; choose one with --split, "
                "which leaves out the rows without"
            )
        return next(iter(known), None) if self.split is None else self.split

    def _rows(self, path: Path) -> Iterator[PairRow]:
        where = f"'{name_from_path(path)}'"
        if container_kind(path.name) == "tar":
            return read_archive(path, where, text=self.text_column)
        suffix = path.suffix.lower()
        read = _reader(suffix)
        if read is None:
            raise InputError(f"Cannot read pairs from {where}: {_reason(path)}. {_EXPECTED}.")
        locate = functools.partial(_located, path.parent, self.image_root)
        rows = read(_content(path, where), where, locate, image=self.image_column, text=self.text_column)
        base = "" if self.image_root is not None else os.path.realpath(path.parent)
        return (dataclasses.replace(row, base=base) for row in rows)


def _reader(suffix: str) -> Callable[..., Iterator[PairRow]] | None:
    if suffix in _TABLES:
        return functools.partial(read_table, tabs=_TABLES[suffix])
    return {".jsonl": read_lines, ".ndjson": read_lines, ".json": read_document}.get(suffix)


def _reason(path: Path) -> str:
    if path.is_dir():
        return "it is a folder; give the files in it"
    return f"its name ends with '{path.suffix}'" if path.suffix else "its name has no suffix"


def _content(path: Path, where: str) -> str:
    try:
        return decode_text(read_small_file(path, _MOST_BYTES), f"The file of pairs {where}")
    except FileNotFoundError:
        raise InputError(f"The file of pairs {where} does not exist.") from None
    except OSError as error:
        raise InputError(f"Cannot read the file of pairs {where}: {error.strerror}.") from error


def _located(folder: Path, root: str | os.PathLike[str] | None, text: str) -> Callable[[], ImageSource]:
    """Return how to load the image of a path in a file of pairs."""
    return functools.partial(_locate, folder, root, text)


def _locate(folder: Path, root: str | os.PathLike[str] | None, text: str) -> ImageSource:
    if is_url(text):
        raise InputError(
            f"Cannot read image '{name_from_path(text)}': it is a URL; expected a file, so download it first."
        )
    if "\0" in text:
        raise InputError(f"Cannot read image '{name_from_path(text)}': its path holds a null character.")
    if root is not None:
        return Path(root) / text
    beside = folder / text
    if os.path.lexists(beside):
        return beside
    if os.path.lexists(text):
        return Path(text)
    turned = text.replace("\\", "/")
    if turned != text and (os.path.lexists(folder / turned) or os.path.lexists(turned)):
        raise InputError(
            f"Cannot read image '{name_from_path(text)}': its path has '\\', as on Windows; write it with '/'."
        )
    places = f"'{name_from_path(beside)}'" + ("" if beside == Path(text) else f" or '{name_from_path(text)}'")
    raise InputError(
        f"Cannot read image '{name_from_path(text)}': there is no file {places}. Is it in another --image-root?"
    )
