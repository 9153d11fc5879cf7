"""Calibration sets: pixels and prompts, their directory on disk, and the batches for calibration."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, overload

import msgspec
import numpy as np
import numpy.typing as npt

from clipmlu.arguments import as_path
from clipmlu.bundle.directory import Bundle
from clipmlu.bundle.manifest import FileRecord
from clipmlu.bundle.verify import file_record
from clipmlu.data.feeds import CalibrationData
from clipmlu.data.preprocess import Preprocessor
from clipmlu.data.tokenizer import Tokenizer
from clipmlu.errors import CalibrationError, InputError, first_line, reason_of
from clipmlu.files.publish import DirectoryKind, encode_json, stage_directory
from clipmlu.files.read import read_json
from clipmlu.specs import CalibrationRecord, NaturalInt, PreprocessSpec, Spec, TowerName

SCHEMA_VERSION = 1
HEADER_NAME = "calibration-set.json"
_PIXELS_NAME = "pixels.npy"
_KIND = DirectoryKind(name="calibration set", marker=HEADER_NAME, files=(_PIXELS_NAME,))


Array = npt.NDArray[Any]


class CalibrationHeader(Spec, frozen=True, kw_only=True):
    """The header file of a saved calibration set.

    Attributes:
        schema_version: version of the layout.
        record: origin and digest of the data.
        preprocess: resizing of the images; mean and standard deviation are not used.
        prompts: prompts for the text tower.
        images: content digests of the images, in order; see ``content_digest``.
        pixels: the file of the pixels, uint8, shape (N, height, width, 3).
    """

    schema_version: NaturalInt = SCHEMA_VERSION
    record: CalibrationRecord
    preprocess: PreprocessSpec
    prompts: tuple[str, ...]
    images: tuple[str, ...]
    pixels: FileRecord


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationSet:
    """Images and prompts to calibrate bundles with.

    Attributes:
        preprocess: resizing of the images.
        pixels: uint8, shape (N, height, width, 3), not normalised; may be memory-mapped.
        images: content digests of the images, in order.
        prompts: prompts for the text tower.
        record: record for manifests.
    """

    preprocess: PreprocessSpec
    pixels: npt.NDArray[np.uint8]
    images: tuple[str, ...]
    prompts: tuple[str, ...]
    record: CalibrationRecord

    def save(self, output: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the set to a directory atomically.

        Raises:
            BundleExistsError: the path already exists.
            OutputError: the directory cannot be written.
        """
        with stage_directory(as_path(output, "the output"), _KIND, overwrite=overwrite) as folder:
            with (folder / _PIXELS_NAME).open("wb") as stream:
                np.lib.format.write_array(_Writer(stream), self.pixels, allow_pickle=False)
            header = CalibrationHeader(
                record=self.record,
                preprocess=self.preprocess,
                prompts=self.prompts,
                images=self.images,
                pixels=file_record(folder / _PIXELS_NAME),
            )
            (folder / HEADER_NAME).write_bytes(encode_json(header, indent=1))

    def check_fits(self, bundle: Bundle) -> None:
        """Check that a bundle resizes its images in the same way.

        Raises:
            CalibrationError: it does not; the message gives the difference.
        """
        for field in ("height", "width", "resize_mode", "interpolation", "fill_color"):
            ours, theirs = getattr(self.preprocess, field), getattr(bundle.manifest.preprocess, field)
            if ours != theirs:
                raise CalibrationError(
                    f"The calibration set was made for images with {field} {ours}; bundle '{bundle.path}' has {theirs}. "
                    f"Make one for it: clipmlu calibrate {bundle.path} --calib DATASET -o DIR"
                )

    def feeds(self, bundle: Bundle, tower: TowerName, batch_size: int, text_rows: int) -> dict[str, CalibrationData]:
        """Return the calibration data of one tower, by input name.

        All batches are full, as in the vendor's sample: the last one is filled with the first rows. In the joint layout
        every batch of images has the same prompts.

        Args:
            bundle: gives normalisation and tokenizer.
            tower: name of the tower.
            batch_size: rows of a batch.
            text_rows: texts of the joint layout.
        """
        images = CalibrationData(
            batches=_PixelBatches(self.pixels, Preprocessor(bundle.manifest.preprocess), batch_size)
        )
        if tower == "image":
            return {"pixel_values": images}
        ids = Tokenizer.load(bundle.tokenizer_path, bundle.manifest.tokenizer)(list(self.prompts))
        if tower == "text":
            return {"input_ids": CalibrationData(batches=cut_batches(ids, batch_size))}
        texts = CalibrationData(batches=[_first_rows(ids, text_rows)], repeat=True)
        return {"pixel_values": images, "input_ids": texts}


def load_calibration(path: str | os.PathLike[str]) -> CalibrationSet:
    """Open a saved calibration set and verify it.

    Raises:
        InputError: the set is damaged, or of a newer version.
    """
    folder = as_path(path, "the calibration set")
    try:
        header = read_json(folder / HEADER_NAME, CalibrationHeader)
        if header.schema_version > SCHEMA_VERSION:
            raise InputError(
                f"Calibration set '{path}' has schema {header.schema_version}; this clipmlu reads up to {SCHEMA_VERSION}."
            )
        pixels = folder / _PIXELS_NAME
        if file_record(pixels) != header.pixels:
            raise InputError(
                f"Calibration set '{path}' is damaged: '{_PIXELS_NAME}' does not match its digest. Make it again."
            )
        array = _map_pixels(pixels)
    except (OSError, ValueError) as error:  # msgspec's error is a ValueError
        raise InputError(f"Calibration set '{path}' cannot be read: {reason_of(error)}. Make it again.") from error
    problem = _problem(header, array)
    if problem:
        raise InputError(f"Calibration set '{path}' is damaged: {problem}. Make it again.")
    return CalibrationSet(
        preprocess=header.preprocess,
        pixels=array,
        images=header.images,
        prompts=header.prompts,
        record=header.record,
    )


def _map_pixels(path: Path) -> npt.NDArray[np.uint8]:
    try:
        array: npt.NDArray[np.uint8] = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # NumPy raises many types for damaged headers
        raise ValueError(f"'{path.name}' is no array: {first_line(error)}") from error
    return array


def _problem(header: CalibrationHeader, pixels: npt.NDArray[np.uint8]) -> str:
    """Return why the parts do not fit together, or an empty text."""
    spec, record = header.preprocess, header.record
    expected = (len(header.images), spec.height, spec.width, 3)
    if not isinstance(pixels, np.ndarray) or pixels.shape != expected or pixels.dtype != np.uint8:
        found = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else "an archive"
        return f"its pixels are {found}; expected uint8 {expected}"
    if (record.samples, record.texts) != (len(header.images), len(header.prompts)):
        return f"it has {len(header.images)} images and {len(header.prompts)} prompts, but was made of {record.samples} and {record.texts}"
    if record.digest != calibration_digest(header.images, header.prompts, spec):
        return "its images and prompts do not match their digest"
    return ""


def cut_batches(rows: Array, batch_size: int) -> list[Array]:
    """Return full batches of the rows; the last one is filled with the first rows."""
    count = -(-len(rows) // batch_size) * batch_size
    filled = _first_rows(rows, count)
    return [filled[start : start + batch_size] for start in range(0, count, batch_size)]


def calibration_digest(images: Sequence[str], prompts: Sequence[str], spec: PreprocessSpec) -> str:
    """Digest of the content of a calibration set: SHA-256 in hex of the images' digests, the prompts and the preprocessing."""
    content = msgspec.json.encode([list(images), list(prompts), spec], order="sorted")
    return hashlib.sha256(content).hexdigest()


class _Writer:
    """A stream that NumPy does not treat as a file; it writes to files directly, without detecting a full disk."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, content: bytes) -> int:
        return self._stream.write(content)


class _PixelBatches(Sequence[Array]):
    """Full batches of normalised images, computed on access to save memory."""

    def __init__(self, pixels: npt.NDArray[np.uint8], preprocess: Preprocessor, batch_size: int) -> None:
        self._pixels = pixels
        self._preprocess = preprocess
        self._batch_size = batch_size

    def __len__(self) -> int:
        return (len(self._pixels) + self._batch_size - 1) // self._batch_size

    @overload
    def __getitem__(self, index: int) -> Array: ...

    @overload
    def __getitem__(self, index: slice) -> list[Array]: ...

    def __getitem__(self, index: int | slice) -> Array | list[Array]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        first = index * self._batch_size
        rows = np.arange(first, first + self._batch_size) % len(self._pixels)
        return np.stack([self._preprocess.normalise(self._pixels[row]) for row in rows])


def _first_rows(rows: Array, count: int) -> Array:
    """Return the first rows, repeated from the beginning if there are not enough."""
    return rows[np.arange(count) % len(rows)]
