"""Images inside tar archives, such as the shards of WebDataset: ``.tar``, ``.tar.gz`` and ``.tgz``.

The standard library's ``tarfile`` reads them. The package ``webdataset`` imports torch wherever it is installed, reads members of any
size into memory, and, as ``tarfile`` itself does, takes a damaged header for the end of the archive.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import itertools
import os
import posixpath
import tarfile
import weakref
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, cast

from clipmlu.data.containers.entry import Entry, unreadable
from clipmlu.data.finding import SkippedFiles, is_image_name, is_of_macos
from clipmlu.data.image_file import dangling_reason
from clipmlu.errors import InputError, first_line, reason_of
from clipmlu.file_names import name_from_path
from clipmlu.files.read import open_regular

if TYPE_CHECKING:
    from typing import Self

LARGEST_MEMBER = 256 << 20
"""Size limit of an image in an archive, in bytes."""

LARGEST_TEXT = 1 << 20
"""Size limit of a text in an archive, in bytes."""

_LARGEST_NAME = 1 << 20  # bytes of the headers that hold a long name or PAX records
_GZIP_START = b"\x1f\x8b"
_NAME_TYPES = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_CHUNK_BYTES = 1 << 16
_READ_ERRORS = (tarfile.TarError, OSError, EOFError, zlib.error)
_CUT = "the archive ends inside it."
_LOST = "the images after it are lost, and their number is not known"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reach:
    """How far an archive is read.

    Attributes:
        members: number of members.
        uncompressed_bytes: bytes to decompress, if it is compressed.
    """

    members: int
    uncompressed_bytes: int


class _DamagedError(Exception):
    """The archive cannot be read further; the message is the reason."""


def tar_entries(
    path: Path, skipped_files: SkippedFiles, *, largest: int = LARGEST_MEMBER, reach: Reach | None = None
) -> Iterator[Entry]:
    """Yield the images of an archive in its order, lazily.

    An image's name is ``<archive>::<member>``. WebDataset's key is the member up to the first dot of its last part; consecutive members
    with the same key are a sample. Samples without an image are counted in ``skipped_files``; what else belongs to an image, such as its
    caption, is not. If a member occurs again, its name ends with ``#2``, ``#3``...

    A link or a device that is named like an image, a sparse file and an image above ``largest`` bytes are entries that cannot be read.
    Nothing is extracted to the disk, and links are not followed.

    After damage inside the archive the images before it are used, and one more entry, named like the archive, has the reason. An
    archive that ends without its end mark is damaged: it was cut between two members.

    Args:
        path: the archive; whether it is compressed is read from its content.
        skipped_files: counts skipped members while the result is consumed.
        largest: size limit of an image in bytes.
        reach: where to stop; None for the end.
    """
    archive_name = name_from_path(path)
    seen: Counter[str] = Counter()
    try:
        for _, sample in itertools.groupby(_files(path, skipped_files, reach), lambda member: member.key):
            others: Counter[str] = Counter()
            images = 0
            for member in sample:
                if not is_image_name(member.base):
                    others[posixpath.splitext(member.base)[1].lower()] += 1
                    continue
                images += 1
                yield member.entry(_image_name(member, archive_name, seen), largest)
            if not images:
                skipped_files.suffixes.update(others)
    except _DamagedError as error:
        yield unreadable(archive_name, f"{error}.")
        return
    if not seen:
        yield unreadable(archive_name, "it holds no images.")


def _image_name(member: _Member, archive_name: str, seen: Counter[str]) -> str:
    """Return the name of an image, and count it in ``seen``: a member that occurs again is another image."""
    name = f"{archive_name}::{name_from_path(member.info.name)}"
    seen[name] += 1
    return name if seen[name] == 1 else f"{name}#{seen[name]}"


class TarSample(NamedTuple):
    """Consecutive members of an archive with the same key.

    Attributes:
        key: WebDataset's key.
        images: its images.
        members: (name, content) of its members with one of the wanted suffixes, in order.
    """

    key: str
    images: list[Entry]
    members: list[tuple[str, bytes]]


def tar_samples(path: Path, suffixes: Sequence[str]) -> Iterator[TarSample]:
    """Yield the samples of an uncompressed archive in its order, lazily; see ``tar_entries``.

    Args:
        path: the archive.
        suffixes: last parts of the names of members whose content is wanted, in lower case, such as ``"txt"``.

    Raises:
        InputError: the archive is compressed, damaged or holds no images, or a wanted member cannot be read.
    """
    archive_name = name_from_path(path)
    seen: Counter[str] = Counter()
    try:
        for (folder, base), members in itertools.groupby(_files(path, SkippedFiles()), lambda member: member.key):
            sample = TarSample(posixpath.join(folder, base), [], [])
            for member in members:
                _refuse_compressed(member.archive, archive_name)
                if is_image_name(member.base):
                    sample.images.append(member.entry(_image_name(member, archive_name, seen), LARGEST_MEMBER))
                elif member.base.rpartition(".")[2].lower() in suffixes:
                    name = f"{archive_name}::{name_from_path(member.info.name)}"
                    content = member.entry(name, LARGEST_TEXT).load()
                    assert isinstance(content, bytes), "an archive that is not compressed gives bytes"
                    sample.members.append((member.info.name, content))
            yield sample
    except _DamagedError as error:
        raise InputError(f"Cannot read '{archive_name}': {error}. Repack it, or leave it out.") from error
    if not seen:
        raise InputError(f"Cannot read '{archive_name}': it holds no images.")


def _refuse_compressed(archive: _Archive, name: str) -> None:
    """Check that any part of an archive can be read again."""
    if archive.is_compressed:
        raise InputError(
            f"Cannot read '{name}': it is compressed, so that its images cannot be read one by one. Decompress it: gunzip."
        )


def _files(path: Path, skipped_files: SkippedFiles, reach: Reach | None = None) -> Iterator[_Member]:
    """Yield the members of an archive up to a limit, except folders and what macOS adds.

    Raises:
        _DamagedError: see ``_Archive``.
    """
    for number, member in enumerate(_Archive(path).members()):
        if reach is not None and (
            number >= reach.members
            or (member.archive.is_compressed and member.info.offset_data + member.info.size > reach.uncompressed_bytes)
        ):
            return
        if any(map(is_of_macos, member.info.name.split("/"))):
            skipped_files.macos += 1
        elif not member.info.isdir():
            yield member


class _Header(tarfile.TarInfo):
    """A member's header, of which every error is a ``ReadError``; ``TarFile`` takes most of them for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in _NAME_TYPES and header.size > _LARGEST_NAME):
            raise tarfile.ReadError(f"a header gives a size of {header.size:,} bytes")
        return header

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        start = tarfile_.offset
        try:
            header = super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            raise tarfile.ReadError("it ends without an end mark" if start else "it is empty") from None
        except (tarfile.ReadError, OSError, EOFError, zlib.error):
            raise
        except Exception as error:  # a damaged header raises nearly anything in the parser
            raise tarfile.ReadError(first_line(error)) from error
        if header.size < 0 or tarfile_.offset <= start:
            raise tarfile.ReadError(f"a header gives a size of {header.size:,} bytes")
        return header


@dataclasses.dataclass(frozen=True)
class _Member:
    """A member of an archive.

    Attributes:
        archive: where its content is.
        info: its header.
    """

    archive: _Archive
    info: tarfile.TarInfo

    @functools.cached_property
    def base(self) -> str:
        """The last part of its name."""
        return posixpath.basename(self.info.name)

    @property
    def key(self) -> tuple[str, str]:
        """WebDataset's key: its folder, and the last part of its name up to the first dot."""
        return posixpath.dirname(self.info.name), self.base.partition(".")[0]

    def entry(self, name: str, largest: int) -> Entry:
        """Return the entry of an image; see ``tar_entries``."""
        info = self.info
        if info.issym() or info.islnk():
            return unreadable(
                name, f"it is a link to '{name_from_path(info.linkname)}', and links in archives are not followed."
            )
        if not info.isreg():
            return unreadable(name, "it is a device or a pipe.")
        if info.issparse():
            return unreadable(name, "it is stored as a sparse file. Write the archive without --sparse.")
        if info.size > largest:
            return unreadable(
                name, f"it has {info.size:,} bytes, more than the limit of {largest:,} for an image in an archive."
            )
        return self.archive.entry(name, info)


class _Archive:
    """An open archive; its file is closed when neither the archive nor an entry of it is in use."""

    def __init__(self, path: Path) -> None:
        """Open an archive.

        Raises:
            _DamagedError: it is no regular file, or cannot be opened.
        """
        try:
            self._file = open_regular(path)
        except FileNotFoundError:
            raise _DamagedError(dangling_reason(path)) from None
        except OSError as error:
            raise _DamagedError(reason_of(error)) from error
        weakref.finalize(self, self._file.close)
        self._compressed: gzip.GzipFile | None = None

    @property
    def is_compressed(self) -> bool:
        """Whether the archive, whose members were begun, is compressed."""
        return self._compressed is not None

    def members(self) -> Iterator[_Member]:
        """Yield all members.

        Raises:
            _DamagedError: the archive is damaged or ends early.
        """
        after = 0
        try:
            stream = self._open_stream()
            with tarfile.TarFile(
                fileobj=stream, mode="r", tarinfo=_Header, encoding="utf-8", errors="surrogateescape"
            ) as tar:
                while (info := tar.next()) is not None:
                    yield _Member(self, info)
                    after = tar.offset
                    tar.members.clear()  # type: ignore[attr-defined] # else it keeps every header
                _check_end(stream)
        except _READ_ERRORS as error:
            raise _DamagedError(f"it is damaged at byte {after:,}: {reason_of(error)}; {_LOST}") from error

    def _open_stream(self) -> IO[bytes]:
        start = self._file.read(2)
        self._file.seek(0)
        if start != _GZIP_START:
            return self._file
        self._compressed = gzip.GzipFile(fileobj=self._file)
        return cast("IO[bytes]", self._compressed)

    def entry(self, name: str, info: tarfile.TarInfo) -> Entry:
        """Return the entry of the current member, which is read now if the archive is compressed."""
        if self._compressed is None:
            return Entry(name, lambda: self._read(name, info.offset_data, info.size))
        try:
            content = self._compressed.read(info.size)
        except _READ_ERRORS as error:
            return unreadable(name, f"the archive is damaged inside it: {reason_of(error)}.")
        return Entry(name, lambda: content) if len(content) == info.size else unreadable(name, _CUT)

    def _read(self, name: str, offset: int, size: int) -> bytes:
        """Return a part of an uncompressed archive, in any thread."""
        try:
            content = os.pread(self._file.fileno(), size, offset)
        except OSError as error:
            raise InputError(f"Cannot read '{name}': {reason_of(error)}.") from error
        if len(content) != size:
            raise InputError(f"Cannot read '{name}': {_CUT}")
        return content


def _check_end(stream: IO[bytes]) -> None:
    """Check that only zeros follow the end mark, a block of zeros, which damage can write over a header too."""
    while chunk := stream.read(_CHUNK_BYTES):
        if chunk.strip(b"\0"):
            raise tarfile.ReadError(
                "more data follow a block of zeros, the end mark. Repack archives that were concatenated"
            )
