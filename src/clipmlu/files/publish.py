"""Atomic output: results are written to a hidden folder beside their path and renamed when they are complete.

A path therefore holds either the complete new result or its previous content. Existing output is replaced only on
request:
the path is checked before the slow work begins, and checked again by the operating system when the result is renamed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import msgspec

from clipmlu.arguments import as_path
from clipmlu.errors import BundleExistsError, OutputError, OutputExistsError
from clipmlu.files.read import read_json
from clipmlu.files.workspace import Workspace, place_directory, place_file, sweep

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MARKER_BYTES = 256 << 20  # with a scale per channel, manifests of the largest models take some 50 MB
_UNWRITABLE = (*_NO_ROOM, errno.EROFS, errno.EIO)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectoryKind:
    """A kind of directory that is written as a whole.

    Attributes:
        name: the kind, for messages.
        marker: name of a file that identifies this kind; a directory without it is never replaced.
        files: paths of its other files; None if the marker is JSON and lists them under ``files``.
    """

    name: str
    marker: str
    files: tuple[str, ...] | None = None


class StagedFiles:
    """A context manager for files of one folder that are published together; on exit it removes unpublished files.

    Args:
        targets: final paths of the files.
        overwrite: replace existing files.

    Attributes:
        paths: temporary paths to write to, in the order of ``targets``.

    Raises:
        OutputExistsError: a target already exists.
        OutputError: the folder cannot be written.
    """

    def __init__(self, targets: Sequence[Path], *, overwrite: bool) -> None:
        self._targets = targets
        self._overwrite = overwrite
        for target in targets:
            check_file_free(target, overwrite=overwrite)
        with output_errors(targets[0]):
            parent = _staging_folder(targets[0])
            with contextlib.ExitStack() as stack:
                stack.enter_context(_folder_for_output(parent))
                self._workspace = Workspace(parent)
                self._folders = stack.pop_all()
        self.paths = [self._workspace.new(number) for number in range(len(targets))]

    def __enter__(self) -> StagedFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def discard(self) -> None:
        """Remove the files that were not published."""
        self._workspace.discard()
        self._folders.close()

    def publish(self, targets: Sequence[Path] | None = None) -> None:
        """Rename the files to their targets, in order; once the last target exists, all belong to the same result.

        Args:
            targets: other final paths in the same folder; None for those given on construction.

        Raises:
            OutputExistsError: a target was created by another process meanwhile.
            OutputError: a file cannot be renamed.
        """
        targets = self._targets if targets is None else targets
        with output_errors(targets[0]):
            if any(map(_is_special, targets)):
                for path, target in zip(self.paths, targets, strict=True):
                    _copy_into(path, target)
            elif self._overwrite:
                self._workspace.replace(targets)
            else:
                self._place(targets)

    def _place(self, targets: Sequence[Path]) -> None:
        placed: list[Path] = []
        try:
            for path, target in zip(self.paths, targets, strict=True):
                place_file(path, target)
                placed.append(target)
        except FileExistsError as error:
            for mine in placed:
                mine.unlink()
            raise OutputExistsError(_exists_message("File", target)) from error


def write_file(path: str | os.PathLike[str], content: bytes, *, overwrite: bool) -> None:
    """Write a file atomically; see ``write_files``."""
    write_files({as_path(path, "the output"): content}, overwrite=overwrite)


def write_files(contents: Mapping[Path, bytes], *, overwrite: bool) -> None:
    """Write files atomically; files of one folder are published together, see ``StagedFiles.publish``.

    Args:
        contents: maps each path to its content; missing folders are created.
        overwrite: replace existing files.

    Raises:
        OutputExistsError: a path already exists.
        OutputError: a file cannot be written.
    """
    check_files_free(contents, overwrite=overwrite)
    folders: dict[Path, list[Path]] = {}
    for target in contents:
        folders.setdefault(target.parent, []).append(target)
    with contextlib.ExitStack() as stack:
        staged = []
        for targets in folders.values():
            group = stack.enter_context(StagedFiles(targets, overwrite=overwrite))
            for path, target in zip(group.paths, targets, strict=True):
                with output_errors(target):
                    path.write_bytes(contents[target])
            staged.append(group)
        for group in staged:
            group.publish()


@contextlib.contextmanager
def stage_directory(target: Path, kind: DirectoryKind, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a hidden folder beside ``target`` and rename it to ``target`` when the block ends.

    On any exception, including an interrupt, the folder is removed and ``target`` stays unchanged.

    Args:
        target: final path of the directory.
        kind: the kind of directory.
        overwrite: replace an existing directory of this kind that holds no other files.

    Raises:
        BundleExistsError: ``target`` already exists, or holds files that clipmlu did not write.
        OutputError: the directory cannot be written, for instance because the disk is full.
    """
    check_directory_free(target, kind, overwrite=overwrite)
    with contextlib.ExitStack() as stack:
        with output_errors(target):
            stack.enter_context(_folder_for_output(target.parent))
            workspace = stack.enter_context(Workspace(target.parent))
        with output_errors(target):
            workspace.new().mkdir()
        with disk_full_errors(target):
            yield workspace.new()
        with output_errors(target):
            _put_directory(workspace, target, kind, overwrite=overwrite)


def _put_directory(workspace: Workspace, target: Path, kind: DirectoryKind, *, overwrite: bool) -> None:
    try:
        place_directory(workspace.new(), target)
    except FileExistsError:
        # Another process may have created the target meanwhile: check again.
        check_directory_free(target, kind, overwrite=overwrite)
        workspace.replace([target])


def check_directory_free(target: Path, kind: DirectoryKind, *, overwrite: bool) -> None:
    """Check, before slow work begins, that a directory can be written to a path; see ``stage_directory``.

    Raises:
        BundleExistsError: the path exists and must not be replaced, or holds files that clipmlu did not write.
        OutputError: the path cannot be written.
    """
    if os.path.ismount(target):
        raise OutputError(
            f"Cannot write '{target}': it is a mount point, which cannot be replaced as a whole. Give a folder in it."
        )
    sweep(target.parent)
    with output_errors(target):
        _check_parent(target)
        if not _exists(target) or (target.is_dir() and not any(target.iterdir())):
            return
    if not (target / kind.marker).is_file():
        raise BundleExistsError(
            f"Output '{target}' exists and is not a {kind.name}; it is not changed. Choose another path."
        )
    if not overwrite:
        raise BundleExistsError(_exists_message(f"{kind.name[0].upper()}{kind.name[1:]}", target))
    with output_errors(target):
        _check_only_ours(target, kind)


def _check_only_ours(target: Path, kind: DirectoryKind) -> None:
    """Check that replacing a directory loses no file of somebody else.

    Raises:
        BundleExistsError: it holds files that its marker does not name.
        OSError: it cannot be listed.
    """
    ours = kind.files
    if ours is None:
        try:
            ours = tuple(read_json(target / kind.marker, _Marker, _MARKER_BYTES).files)
        except (OSError, msgspec.DecodeError):
            raise BundleExistsError(
                f"'{target / kind.marker}' does not say which files belong to the {kind.name}; it is not changed. "
                "Remove the directory yourself, or choose another path."
            ) from None
    found = sorted(path.relative_to(target).as_posix() for path in _files_below(target))
    others = [name for name in found if name != kind.marker and name not in ours]
    if others:
        more = f" and {len(others) - 1} other files" if len(others) > 2 else f" and '{others[1]}'" if others[1:] else ""
        raise BundleExistsError(
            f"Output '{target}' also holds '{others[0]}'{more}, which clipmlu did not write there; it is not changed. "
            f"Move {'them' if more else 'it'} away, or choose another path."
        )


class _Entry(msgspec.Struct):
    sha256: str
    size: int


class _Marker(msgspec.Struct):
    """What all our markers have, of every version; other programs' files of the same name may list files, too."""

    schema_version: int
    files: dict[str, _Entry]


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files and links below a folder.

    Raises:
        OSError: a folder cannot be listed.
    """
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            yield from _files_below(path)
        else:
            yield path


def check_files_free(targets: Iterable[Path | None], *, overwrite: bool) -> None:
    """Apply ``check_file_free`` to several targets; None entries are skipped, and two equal paths are an error."""
    given = [target for target in targets if target is not None]
    for number, target in enumerate(given):
        check_file_free(target, overwrite=overwrite)
        if any(os.path.abspath(target) == os.path.abspath(other) for other in given[:number]):
            raise OutputError(f"Two outputs are to be written to '{target}'. Give each its own name.")


def check_file_free(target: Path, *, overwrite: bool) -> None:
    """Check, before slow work begins, that a file can be written to a path.

    A device or pipe always passes: it is written to, not replaced.

    Raises:
        OutputExistsError: the file exists and must not be replaced.
        OutputError: the path cannot be written.
    """
    with output_errors(target):
        if _is_special(target):
            return
        sweep(target.parent)
        _check_parent(target)
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a directory")
        taken = _exists(target)
    if taken and not overwrite:
        raise OutputExistsError(_exists_message("File", target))


@contextlib.contextmanager
def _folder_for_output(folder: Path) -> Iterator[None]:
    """Create a folder and its missing parents; on exit remove those that are still empty."""
    missing = missing_folders(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        remove_empty(missing)


def missing_folders(folder: Path) -> list[Path]:
    """Return those of a folder and its parents that do not exist, innermost first.

    Raises:
        OSError: existence cannot be determined.
    """
    return [each for each in (folder, *folder.parents) if not _exists(each)]


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove those of the folders that are empty, innermost first."""
    for each in folders:
        with contextlib.suppress(OSError):  # the folder is not empty
            each.rmdir()


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """Yield a folder for intermediate files in the system's temporary folder and remove it at the end.

    After a crash the next call removes it.

    Raises:
        OutputError: the folder cannot be created, or its disk is full.
    """
    try:
        root = Path(tempfile.gettempdir())
    except FileNotFoundError as error:  # as in a container whose root is read-only
        raise OutputError(
            f"Cannot write temporary files: {error.strerror}. Set TMPDIR to a folder for them."
        ) from error
    with output_errors(root):
        workspace = Workspace(root)
    with workspace, disk_full_errors(root):
        workspace.new().mkdir()
        yield workspace.new()


@contextlib.contextmanager
def output_errors(target: str | os.PathLike[str]) -> Iterator[None]:
    """Convert each OSError of the block to an ``OutputError`` of one line that names ``target``."""
    try:
        yield
    except OSError as error:
        raise OutputError(_refusal(target, error)) from error


@contextlib.contextmanager
def disk_full_errors(target: str | os.PathLike[str]) -> Iterator[None]:
    """Convert only the errors of a full or read-only disk to an ``OutputError``; other errors pass unchanged."""
    try:
        yield
    except OSError as error:
        if error.errno in _UNWRITABLE:
            raise OutputError(_refusal(target, error)) from error
        raise


def _refusal(target: str | os.PathLike[str], error: OSError) -> str:
    if error.errno in _NO_ROOM and error.errno != errno.EFBIG:
        return f"No space left on the disk of '{target}'; nothing was written. Free some and run again."
    if error.errno == errno.EFBIG:
        return f"'{target}' is larger than the file size limit; nothing was written. See 'ulimit -f'."
    return f"Cannot write '{target}': {error.strerror or error}. Choose a path that can be written."


def _exists_message(kind: str, target: Path) -> str:
    return f"{kind} '{target}' exists. Choose another path, or replace it with --overwrite."


def _exists(path: Path) -> bool:
    """Return whether the path exists; a dangling link counts as existing.

    Raises:
        OSError: existence cannot be determined, for instance because the name is too long.
    """
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _check_parent(target: Path) -> None:
    """Check that the nearest existing parent is a directory in which new entries can be created.

    Raises:
        OSError: it is not a directory, or not writable.
    """
    folder = Path(os.path.abspath(target)).parent
    while not _exists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"'{folder}' is no directory")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"'{folder}' does not let you write")


def _is_special(target: Path) -> bool:
    """Return whether the path is a device, pipe or socket, which is written to and not replaced."""
    try:
        mode = target.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _staging_folder(target: Path) -> Path:
    """Return the folder for temporary files: the target's own folder, or the system's for a special file."""
    return Path(tempfile.gettempdir()) if _is_special(target) else target.parent


def _copy_into(path: Path, target: Path) -> None:
    with path.open("rb") as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink)


def encode_json(value: object, indent: int = 2) -> bytes:
    """Encode a report, record or list as indented JSON that ends with a line feed.

    Raises:
        OutputError: the value holds NaN or infinity, which JSON does not support and msgspec would write as null.
    """
    place = _find_no_number(msgspec.to_builtins(value), "")
    if place is not None:
        raise OutputError(
            f"The result cannot be written as JSON: '{place[0]}' is {place[1]}, which JSON does not support."
        )
    return msgspec.json.format(msgspec.json.encode(value), indent=indent) + b"\n"


def _find_no_number(value: object, place: str) -> tuple[str, float] | None:
    """Return the place and value of the first float that is not finite, or None."""
    if isinstance(value, float):
        return None if math.isfinite(value) else (place, value)
    children: Iterable[tuple[str, object]] = ()
    if isinstance(value, dict):
        children = ((f"{place}.{key}" if place else str(key), child) for key, child in value.items())
    elif isinstance(value, (list, tuple)):
        children = ((f"{place}[{index}]", child) for index, child in enumerate(value))
    return next((found for name, child in children if (found := _find_no_number(child, name)) is not None), None)
