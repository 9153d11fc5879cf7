"""CIFAR-10 and CIFAR-100 in their python version, read from disk or downloaded from the official address.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html. The digests are those of the published files; torchvision uses the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.client
import io
import logging
import pickle
import shutil
import stat
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipmlu.data.datasets.elements import DatasetBase
from clipmlu.data.images import DEFAULT_MAX_PIXELS
from clipmlu.errors import InputError, OptionError, OutputError, first_line
from clipmlu.files.publish import DirectoryKind, scratch_directory, stage_directory
from clipmlu.files.read import read_small_file
from clipmlu.host import CIFAR100_VARIABLE, cache_dir, cifar100_dir

_SIDE = 32
_MOST_BYTES = 1 << 30  # the largest published file has 155 MB
_TIMEOUT_S = 20.0
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CifarSource:
    """Address and file names of one CIFAR dataset.

    Attributes:
        name: the dataset's name in clipmlu.
        folder: the folder inside the archive.
        url: the official address of the archive.
        archive_md5: MD5 of the archive.
        splits: maps a split to its file names.
        meta_file: the file with the class names.
        md5: maps a file name to its MD5.
        names_key: key of the class names in the meta file.
        labels_key: key of the labels in a batch file.
    """

    name: str
    folder: str
    url: str
    archive_md5: str
    splits: dict[str, tuple[str, ...]]
    meta_file: str
    md5: dict[str, str]
    names_key: str
    labels_key: str


CIFAR100 = CifarSource(
    name="cifar100",
    folder="cifar-100-python",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
    splits={"train": ("train",), "test": ("test",)},
    meta_file="meta",
    md5={
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
    names_key="fine_label_names",
    labels_key="fine_labels",
)

CIFAR10 = CifarSource(
    name="cifar10",
    folder="cifar-10-batches-py",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    archive_md5="c58f30108f718f92721af3b95e74349a",
    splits={"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)},
    meta_file="batches.meta",
    md5={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
    names_key="label_names",
    labels_key="labels",
)


class CifarDataset(DatasetBase):
    """One split of a CIFAR dataset; see ``Dataset``.

    Args:
        source: CIFAR10 or CIFAR100.
        split: ``train`` or ``test``.
        data_dir: the dataset's folder or its parent; None searches CIFAR100_DATASETS_PATH (for CIFAR-100) and the
            cache.
        download: download the archive into the cache if the dataset is not found.

    Raises:
        OptionError: there is no such split.
        InputError: the files are missing or altered, or cannot be downloaded.
    """

    max_pixels = DEFAULT_MAX_PIXELS

    def __init__(
        self, source: CifarSource, split: str = "test", *, data_dir: Path | None = None, download: bool = True
    ) -> None:
        if split not in source.splits:
            raise OptionError(f"Dataset '{source.name}' has no split '{split}'; it has {', '.join(source.splits)}.")
        self.name = source.name
        self.split = split
        with _obtain(source, data_dir, download=download) as folder:
            self.original_names = _read_names(source, folder / source.meta_file)
            self.class_names = tuple(name.replace("_", " ") for name in self.original_names)
            batches = [_read_batch(source, folder / name, len(self.class_names)) for name in source.splits[split]]
        self._pixels = np.concatenate([pixels for pixels, _labels in batches])
        self._labels = [label for _pixels, labels in batches for label in labels]

    def __len__(self) -> int:
        return len(self._labels)

    def label(self, index: int) -> int:
        """Return the fine label, 0..99 (CIFAR-100) or 0..9 (CIFAR-10)."""
        return self._labels[index]

    def image(self, index: int) -> Image.Image:
        """Return the image, RGB, 32 x 32 pixels."""
        return Image.fromarray(self.source(index))

    def source(self, index: int) -> npt.NDArray[np.uint8]:
        """Return the image's pixels, shape (32, 32, 3), RGB: a Pillow image of them would take longer than all else."""
        planes = self._pixels[index].reshape(3, _SIDE, _SIDE)
        return np.ascontiguousarray(planes.transpose(1, 2, 0))

    def key(self, index: int) -> str:
        """Return an identifier such as ``"cifar100/test/000017"``."""
        return f"{self.name}/{self.split}/{index:06d}"


def find_folder(source: CifarSource, data_dir: Path | None) -> Path | None:
    """Return the folder with the dataset's files, or None if no searched folder has them."""
    roots = [data_dir] if data_dir is not None else list(_default_roots(source))
    for root in roots:
        for folder in (root / source.folder, root):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                if stat.S_ISREG(
                    (folder / source.meta_file).stat().st_mode
                ):  # is_file() hides other errors in Python 3.14
                    return folder
    return None


def _default_roots(source: CifarSource) -> Iterator[Path]:
    if source is CIFAR100 and (configured := cifar100_dir()) is not None:
        yield configured
    yield _cache_root()


def _cache_root() -> Path:
    return cache_dir() / "datasets"


@contextlib.contextmanager
def _obtain(source: CifarSource, data_dir: Path | None, *, download: bool) -> Iterator[Path]:
    """Yield the folder with the files, found or downloaded into the cache, or a temporary one if that is read-only."""
    found = find_folder(source, data_dir)
    if found is not None:
        yield found
        return
    if data_dir is not None:
        raise InputError(
            f"No {source.name} in '{data_dir}': expected the folder '{source.folder}' with '{source.meta_file}' in it."
        )
    if not download:
        raise InputError(
            f"{source.name} is not on this machine, and downloading is switched off. {_manual_hint(source)}"
        )
    folder = _cache_root() / source.folder
    with scratch_directory() as scratch:
        _unpack(source, _download(source, scratch / "archive.tar.gz"), scratch)
        try:
            kind = DirectoryKind(name="dataset", marker=source.meta_file, files=tuple(source.md5))
            with stage_directory(folder, kind, overwrite=True) as staged:
                for name in source.md5:
                    shutil.copyfile(scratch / name, staged / name)
        except OutputError as error:
            _log.warning("%s is not kept in the cache: %s", source.name, error)
        yield scratch


def _manual_hint(source: CifarSource) -> str:
    variable = f" (or set {CIFAR100_VARIABLE})" if source is CIFAR100 else ""
    return f"Unpack {source.url} somewhere and pass that folder with --data-dir{variable}."


def _download(source: CifarSource, archive: Path) -> Path:
    """Download the archive.

    Raises:
        InputError: it cannot be downloaded, or its MD5 differs from the published one.
    """
    digest = hashlib.md5(usedforsecurity=False)  # the published digest is an MD5
    try:
        with urllib.request.urlopen(source.url, timeout=_TIMEOUT_S) as response, archive.open("wb") as stream:  # noqa: S310 - a constant https address
            while chunk := response.read(1 << 20):
                digest.update(chunk)
                stream.write(chunk)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or first_line(error)
        raise InputError(f"Cannot download {source.url}: {reason}. {_manual_hint(source)}") from error
    if digest.hexdigest() != source.archive_md5:
        raise InputError(
            f"{source.url} has MD5 {digest.hexdigest()}, expected {source.archive_md5}. {_manual_hint(source)}"
        )
    return archive


def _unpack(source: CifarSource, archive: Path, folder: Path) -> None:
    """Write the expected members to their expected names only; other paths inside the archive are ignored."""
    with tarfile.open(archive, "r:gz") as tar:
        for name in source.md5:
            member = tar.extractfile(f"{source.folder}/{name}")
            if member is None:
                raise InputError(f"Archive '{source.url}' has no file '{source.folder}/{name}'.")
            (folder / name).write_bytes(member.read())


def _read_names(source: CifarSource, path: Path) -> tuple[str, ...]:
    names = _read_pickle(source, path).get(source.names_key)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"File '{path}' has no list of names '{source.names_key}'. Get {source.name} again.")
    return tuple(names)


def _read_batch(source: CifarSource, path: Path, classes: int) -> tuple[npt.NDArray[np.uint8], list[int]]:
    """Return pixels, uint8, shape (N, 3072), and N labels, 0..``classes`` - 1."""
    batch = _read_pickle(source, path)
    pixels, labels = batch.get("data"), batch.get(source.labels_key)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3 * _SIDE * _SIDE,):
        raise InputError(f"File '{path}' has no pixels of {_SIDE} x {_SIDE} images as 'data'. Get {source.name} again.")
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < classes for label in labels):
        raise InputError(
            f"File '{path}' has no list of labels from 0 to {classes - 1} as '{source.labels_key}'. Get {source.name} again."
        )
    if len(labels) != len(pixels):
        raise InputError(f"File '{path}' has {len(pixels)} images and {len(labels)} labels. Get {source.name} again.")
    return pixels, labels


def _read_pickle(source: CifarSource, path: Path) -> dict[str, Any]:
    try:
        content = read_small_file(path, _MOST_BYTES)
    except OSError as error:
        raise InputError(f"Cannot read '{path}' of {source.name}: {error.strerror}.") from error
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != source.md5[path.name]:
        raise InputError(
            f"File '{path}' has MD5 {digest}; the published {source.name} has {source.md5[path.name]}. Get it again."
        )
    found = load_restricted(content)
    if not isinstance(found, dict):
        raise InputError(f"File '{path}' holds a {type(found).__name__}, not a table. Get {source.name} again.")
    return found


def load_restricted(content: bytes) -> Any:
    """Unpickle a CIFAR file: containers, numbers, strings and NumPy arrays; any other type is an error.

    Raises:
        InputError: the pickle holds another type, or is not a pickle.
    """
    try:
        return _RestrictedUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise InputError(f"The pickle cannot be read safely: {first_line(error)}.") from error


class _RestrictedUnpickler(pickle.Unpickler):
    """Unpickler that resolves only the three names that Python 2 pickles of NumPy arrays need."""

    _ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """Resolve a global name of the pickle, or raise."""
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for '{module}.{name}', which is not allowed")
        if name == "_reconstruct":
            return _reconstruct_array
        return getattr(np, name)


def _reconstruct_array(subtype: type, shape: tuple[int, ...], dtype: bytes | str) -> npt.NDArray[Any]:
    """Create a plain array like ``numpy.core.multiarray._reconstruct``; unpickling sets its state afterwards."""
    if subtype is not np.ndarray:
        raise pickle.UnpicklingError("it asks for an array subclass, which is not allowed")
    if shape != (0,):
        raise pickle.UnpicklingError(
            f"it asks for an array of shape {shape} before its state, which no pickle of NumPy does"
        )
    return np.ndarray(shape, np.dtype(dtype.decode() if isinstance(dtype, bytes) else dtype))
