"""Calibration data: images of a train split as the model sees them, and prompts; drawn, kept on disk and used again."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, overload

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image

from clipmlu.arguments import as_path, check_fields, is_there
from clipmlu.bundle.directory import Bundle
from clipmlu.bundle.manifest import FileRecord
from clipmlu.bundle.verify import file_record
from clipmlu.data.class_names import FolderNames
from clipmlu.data.datasets import DATASETS, Dataset, open_dataset, open_folder, spread_over_classes
from clipmlu.data.feeds import CalibrationData
from clipmlu.data.images import DEFAULT_MAX_PIXELS, clipped_note, content_digest, is_clipped
from clipmlu.data.preprocess import Preprocessor
from clipmlu.data.prompts import fill_template, resolve_templates
from clipmlu.data.skipping import log_skipped
from clipmlu.data.tokenizer import Tokenizer
from clipmlu.errors import CalibrationError, InputError, UnknownNameError, first_line, reason_of
from clipmlu.file_names import expand_home, name_from_path, prefer_known_name
from clipmlu.files.publish import encode_json, stage_directory
from clipmlu.files.read import read_json
from clipmlu.specs import CalibrationRecord, NaturalInt, PositiveInt, PreprocessSpec, Spec, TowerName

DEFAULT_SAMPLES = 1000
SCHEMA_VERSION = 1
HEADER_NAME = "calibration-set.json"
_PIXELS_NAME = "pixels.npy"
_TEXTS = 256
_EVALUATED_SETS = ("simple", "cifar")
_NAMES_WITHOUT_CLASSES = [
    "airplane",
    "apple",
    "bicycle",
    "bird",
    "boat",
    "book",
    "bottle",
    "bridge",
    "bus",
    "car",
    "cat",
    "chair",
    "church",
    "clock",
    "cloud",
    "cow",
    "cup",
    "dog",
    "door",
    "elephant",
    "fish",
    "flower",
    "fruit",
    "guitar",
    "hand",
    "hat",
    "horse",
    "house",
    "insect",
    "lamp",
    "leaf",
    "lion",
    "man",
    "motorcycle",
    "mountain",
    "mushroom",
    "person",
    "phone",
    "piano",
    "plate",
    "river",
    "road",
    "rose",
    "sea",
    "shoe",
    "sign",
    "spoon",
    "street",
    "table",
    "tiger",
    "train",
    "tree",
    "truck",
    "umbrella",
    "window",
    "woman",
]
"""Everyday nouns, for the prompts of images that have no class names."""

_log = logging.getLogger(__name__)
Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """Which data to calibrate with; validated on construction.

    Attributes:
        dataset: ``cifar100``, ``cifar10``, ``demo``, ``imagefolder:PATH`` or the path of a folder of images that are not
            evaluated later, or the path of a calibration set that was saved; that one brings its own samples and seed.
        samples: number of images, drawn from the train split and spread over its classes.
        seed: of the draw.
        data_dir: where the dataset's files are; see ``open_dataset``.
        download: fetch what is not on this machine.
        class_names: other names for the classes; see ``open_dataset``.
        folder_names: take the names of class folders though they look like ids or splits.
        max_pixels: largest width x height of an image that is decoded.
    """

    dataset: str
    samples: PositiveInt = DEFAULT_SAMPLES
    seed: NaturalInt = 0
    data_dir: str | os.PathLike[str] | None = None
    download: bool = True
    class_names: FolderNames | None = None
    folder_names: bool = False
    max_pixels: PositiveInt = DEFAULT_MAX_PIXELS

    def __post_init__(self) -> None:
        check_fields(self)


class CalibrationHeader(Spec, frozen=True, kw_only=True):
    """What a saved calibration set says of itself, beside the file of its pixels.

    Attributes:
        schema_version: version of the layout.
        record: where the data come from, and their digest.
        preprocess: how the images were fitted; another mean or standard deviation does not matter.
        prompts: what the text tower is calibrated with.
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
        preprocess: how the images were fitted.
        pixels: uint8, shape (N, height, width, 3), not normalised; may be mapped from a file.
        images: content digests of the images, in order.
        prompts: for the text tower.
        record: what is kept in manifests.
    """

    preprocess: PreprocessSpec
    pixels: npt.NDArray[np.uint8]
    images: tuple[str, ...]
    prompts: tuple[str, ...]
    record: CalibrationRecord

    def save(self, output: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the set to a directory, whole or not at all.

        Raises:
            BundleExistsError: the path is taken.
            OutputError: it cannot be written.
        """
        with stage_directory(
            as_path(output, "the output"), "calibration set", HEADER_NAME, overwrite=overwrite
        ) as folder:
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
        """Refuse a bundle whose images are fitted otherwise.

        Raises:
            CalibrationError: says how.
        """
        for field in ("height", "width", "resize_mode", "interpolation", "fill_color"):
            ours, theirs = getattr(self.preprocess, field), getattr(bundle.manifest.preprocess, field)
            if ours != theirs:
                raise CalibrationError(
                    f"The calibration set was made for images with {field} {ours}; bundle '{bundle.path}' has {theirs}. "
                    f"Make one for it: clipmlu calibrate {bundle.path} --calib DATASET -o DIR"
                )

    def feeds(self, bundle: Bundle, tower: TowerName, batch_size: int, text_rows: int) -> dict[str, CalibrationData]:
        """Calibration data of one tower, by input name.

        All batches are full, as the vendor's sample gives them: the last one is filled up from the front. In the joint
        layout the same prompts go with every batch of images.

        Args:
            bundle: whose normalisation and tokenizer are used.
            tower: which tower of it.
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


def obtain_calibration(bundle: Bundle, options: CalibrationOptions) -> CalibrationSet:
    """Draw a calibration set, or open one that was saved.

    An image that cannot be read is logged, and another is taken for it, as long as there are some.

    Args:
        bundle: whose preprocessing fits the images.
        options: which data.

    Raises:
        OptionError, UnknownNameError, InputError: as ``open_dataset``.
        CalibrationError: there are no images that can be read, or a saved set does not fit the bundle.
    """
    folder = _own_folder(options.dataset)
    if folder is not None and (folder / HEADER_NAME).is_file():
        found = load_calibration(folder)
        found.check_fits(bundle)
        return found
    return _draw(bundle, options)


def load_calibration(path: str | os.PathLike[str]) -> CalibrationSet:
    """Open a saved calibration set and verify it.

    Raises:
        InputError: it is damaged, or of a newer version.
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
    except (OSError, ValueError) as error:  # msgspec's is a ValueError
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
    except Exception as error:  # NumPy raises nearly anything for a damaged header
        raise ValueError(f"'{path.name}' is no array: {first_line(error)}") from error
    return array


def _problem(header: CalibrationHeader, pixels: npt.NDArray[np.uint8]) -> str:
    """What does not fit together, or an empty text."""
    spec, record = header.preprocess, header.record
    expected = (len(header.images), spec.height, spec.width, 3)
    if not isinstance(pixels, np.ndarray) or pixels.shape != expected or pixels.dtype != np.uint8:
        found = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else "an archive"
        return f"its pixels are {found}; expected uint8 {expected}"
    if (record.samples, record.texts) != (len(header.images), len(header.prompts)):
        return f"it has {len(header.images)} images and {len(header.prompts)} prompts, but was made of {record.samples} and {record.texts}"
    if record.digest != _digest(header.images, header.prompts, spec):
        return "its images and prompts do not match their digest"
    return ""


def open_train_split(options: CalibrationOptions) -> Dataset:
    """Where the images of the options come from: the train split; of a folder, its sub-folder ``train`` if there is one.

    Raises:
        OptionError: the dataset has no train split.
        UnknownNameError, InputError: as ``open_dataset``.
    """
    name = options.dataset.removeprefix("folder:")
    folder = _own_folder(name)
    if folder is not None:
        return open_folder(
            folder,
            class_names=options.class_names,
            folder_names=options.folder_names,
            max_pixels=options.max_pixels,
        )
    if name not in DATASETS and ":" not in name:
        raise UnknownNameError(
            "dataset", name, DATASETS, "Or give a folder of images, or a set of 'clipmlu calibrate'."
        )
    return open_dataset(
        name,
        default_split="train",
        class_names=options.class_names,
        folder_names=options.folder_names,
        data_dir=options.data_dir,
        download=options.download,
        size=options.samples,
        seed=options.seed,
        max_pixels=options.max_pixels,
    )


def _own_folder(name: str) -> Path | None:
    """The folder that is meant, or None where no folder is; the name of a dataset wins over a folder of that name."""
    if prefer_known_name(name, DATASETS, "dataset"):
        return None
    folder = expand_home(name)
    return folder if is_there(folder, folder=True) else None


def cut_batches(rows: Array, batch_size: int) -> list[Array]:
    """Full batches of the rows, the last one filled up from the front."""
    count = -(-len(rows) // batch_size) * batch_size
    filled = _first_rows(rows, count)
    return [filled[start : start + batch_size] for start in range(0, count, batch_size)]


def _draw(bundle: Bundle, options: CalibrationOptions) -> CalibrationSet:
    dataset = open_train_split(options)
    if not len(dataset):
        raise CalibrationError(f"Calibration dataset '{options.dataset}' has no images.")
    spec = bundle.manifest.preprocess
    preprocess = Preprocessor(spec)
    pixels = np.empty((min(options.samples, len(dataset)), spec.height, spec.width, 3), np.uint8)
    images: list[str] = []
    clipped = set()
    for index, image in readable_images(dataset, spread_over_classes(dataset, options.seed)):
        if len(images) == len(pixels):
            break
        try:
            pixels[len(images)] = preprocess.pixels(image)
        except InputError as error:
            log_skipped(f"'{dataset.key(index)}': {error}")
            continue
        images.append(content_digest(image))
        if is_clipped(image):
            clipped.add(dataset.key(index))
    if not images:
        raise CalibrationError(f"Not one of the {len(dataset)} images of '{dataset.name}' could be read.")
    if clipped:
        _log.warning("%s", clipped_note(clipped))
    pixels = pixels[: len(images)]
    prompts = draw_prompts(dataset.class_names, options.seed)
    record = CalibrationRecord(
        dataset=name_from_path(options.dataset),
        split=dataset.split,
        samples=len(images),
        seed=options.seed,
        texts=len(prompts),
        digest=_digest(images, prompts, spec),
    )
    return CalibrationSet(preprocess=spec, pixels=pixels, images=tuple(images), prompts=tuple(prompts), record=record)


def readable_images(dataset: Dataset, indices: Iterable[int]) -> Iterator[tuple[int, Image.Image]]:
    """Images of a dataset with their positions, decoded one by one; those that cannot be read are logged and skipped."""
    for index in map(int, indices):
        try:
            image = dataset.image(index)
        except InputError as error:
            log_skipped(str(error))
            continue
        yield index, image


def draw_prompts(class_names: Sequence[str], seed: int) -> list[str]:
    """Prompts of all classes, none of which the usual evaluations use: their templates are left out.

    Args:
        class_names: of the dataset; everyday nouns stand in where there are none.
        seed: of the templates' choice.

    Returns:
        At least one prompt per class and about 256 in all, each once.
    """
    names = list(dict.fromkeys(class_names)) or _NAMES_WITHOUT_CLASSES
    evaluated = {template for name in _EVALUATED_SETS for template in resolve_templates(name)}
    templates = [template for template in resolve_templates("openai-imagenet") if template not in evaluated]
    generator = np.random.default_rng(seed)
    rounds = min(-(-_TEXTS // len(names)), len(templates))
    chosen = [generator.permutation(len(templates))[:rounds] for _ in names]
    return [
        fill_template(templates[int(picks[turn])], name)
        for turn in range(rounds)
        for name, picks in zip(names, chosen, strict=True)
    ]


def _digest(images: Sequence[str], prompts: Sequence[str], spec: PreprocessSpec) -> str:
    content = msgspec.json.encode([list(images), list(prompts), spec], order="sorted")
    return hashlib.sha256(content).hexdigest()


class _Writer:
    """A stream that NumPy does not take for a file: to those it writes by itself, and hides that the disk is full."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, content: bytes) -> int:
        return self._stream.write(content)


class _PixelBatches(Sequence[Array]):
    """Full batches of normalised images, made when they are asked for: a thousand images need no gigabyte."""

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
    """The first rows, begun again from the front when there are not enough."""
    return rows[np.arange(count) % len(rows)]
