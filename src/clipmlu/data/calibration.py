"""Selects calibration data: preprocessed images of a train split, and prompts."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from clipmlu.arguments import check_fields, is_there
from clipmlu.bundle.directory import Bundle
from clipmlu.bundle.manifest import MANIFEST_NAME
from clipmlu.data.calibration_set import HEADER_NAME, CalibrationSet, calibration_digest, load_calibration
from clipmlu.data.class_names import FolderNames
from clipmlu.data.class_prompts import find_chinese
from clipmlu.data.datasets import DATASETS, Dataset, open_folder, spread_over_classes
from clipmlu.data.datasets.choice import DatasetChoice
from clipmlu.data.images import DEFAULT_MAX_PIXELS, clipped_note, content_digest, is_clipped
from clipmlu.data.preprocess import Preprocessor
from clipmlu.data.prompts import fill_template, resolve_templates
from clipmlu.data.skipping import log_skipped
from clipmlu.errors import CalibrationError, InputError, UnknownNameError
from clipmlu.file_names import expand_home, name_from_path, prefer_known_name
from clipmlu.specs import CalibrationRecord, NaturalInt, PositiveInt
from clipmlu.steps import StartStep, no_steps

DEFAULT_SAMPLES = 1000
_TEXTS = 256
_EVALUATED_SETS = ("simple", "cifar", "chinese-simple")
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
"""Common nouns for the prompts of images without class names."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """Options for calibration data; validated on construction.

    Attributes:
        dataset: ``cifar100``, ``cifar10``, ``demo``, ``imagefolder:PATH`` or the path of a folder of images that are
            not evaluated later, or the path of a saved calibration set, which has its own samples and seed.
        samples: number of images, drawn from the train split and spread evenly over its classes.
        seed: random seed of the selection.
        data_dir: folder of the dataset's files; see ``open_dataset``.
        download: download missing files.
        class_names: other names for the classes; see ``open_dataset``.
        folder_names: use the names of class folders even if they look like ids or splits.
        max_pixels: largest width x height of an image; larger images are errors.
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


def obtain_calibration(bundle: Bundle, options: CalibrationOptions, on_step: StartStep = no_steps) -> CalibrationSet:
    """Select a calibration set, or open a saved one.

    An image that cannot be read is logged and replaced by another, if there is one.

    Args:
        bundle: its preprocessing resizes the images.
        options: options of the data.
        on_step: shows the images.

    Raises:
        OptionError, UnknownNameError, InputError: as for ``open_dataset``.
        CalibrationError: no image can be read, or a saved set does not fit the bundle.
    """
    folder = _own_folder(options.dataset)
    if folder is not None and (folder / HEADER_NAME).is_file():
        with on_step("reading the calibration set"):
            found = load_calibration(folder)
        found.check_fits(bundle)
        return found
    return _draw(bundle, options, on_step)


def open_train_split(options: CalibrationOptions) -> Dataset:
    """Open the dataset of the images: the train split, or for a folder its sub-folder ``train`` if it exists.

    Raises:
        OptionError: the dataset has no train split.
        UnknownNameError, InputError: as for ``open_dataset``.
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
    choice = DatasetChoice(
        name=name,
        class_names=options.class_names,
        folder_names=options.folder_names,
        data_dir=options.data_dir,
        download=options.download,
        size=options.samples,
        seed=options.seed,
        max_pixels=options.max_pixels,
    )
    return choice.open(default_split="train")


def _own_folder(name: str) -> Path | None:
    """Return the folder of a name, or None if it is not a folder; a dataset's name wins over a folder of that name."""
    if name in DATASETS and os.path.isfile(os.path.join(name, MANIFEST_NAME)):
        return None  # a bundle of that name has no images: nobody means it
    if prefer_known_name(name, DATASETS, "dataset", folder=True):
        return None
    folder = expand_home(name)
    return folder if is_there(folder, folder=True) else None


def _draw(bundle: Bundle, options: CalibrationOptions, on_step: StartStep) -> CalibrationSet:
    with on_step(f"opening {name_from_path(options.dataset)}"):
        dataset = open_train_split(options)
    if not len(dataset):
        raise CalibrationError(f"Calibration dataset '{options.dataset}' has no images.")
    spec = bundle.manifest.preprocess
    preprocess = Preprocessor(spec)
    pixels = np.empty((min(options.samples, len(dataset)), spec.height, spec.width, 3), np.uint8)
    images: list[str] = []
    clipped = set()
    with on_step("selecting calibration images", total=len(pixels), unit="images") as step:
        for index, image in readable_images(dataset, spread_over_classes(dataset, options.seed)):
            if len(images) == len(pixels):
                break
            try:
                pixels[len(images)] = preprocess.pixels(image)
            except InputError as error:
                log_skipped(f"'{dataset.key(index)}': {error}")
                continue
            images.append(content_digest(image))
            step.advance()
            if is_clipped(image):
                clipped.add(dataset.key(index))
    if not images:
        raise CalibrationError(f"Not one of the {len(dataset)} images of '{dataset.name}' could be read.")
    if clipped:
        _log.warning("%s", clipped_note(clipped))
    pixels = pixels[: len(images)]
    model = bundle.manifest.model.name
    if "chinese" in model.casefold() and find_chinese(dataset.class_names) is None:
        _log.warning(
            "The prompts for calibration are English, and '%s' is a Chinese model. Give Chinese class names: "
            "--calib-class-names FILE.",
            model,
        )
    prompts = draw_prompts(dataset.class_names, options.seed)
    record = CalibrationRecord(
        dataset=name_from_path(options.dataset),
        split=dataset.split,
        samples=len(images),
        seed=options.seed,
        texts=len(prompts),
        digest=calibration_digest(images, prompts, spec),
    )
    return CalibrationSet(preprocess=spec, pixels=pixels, images=tuple(images), prompts=tuple(prompts), record=record)


def readable_images(dataset: Dataset, indices: Iterable[int]) -> Iterator[tuple[int, Image.Image]]:
    """Yield positions and decoded images of a dataset; unreadable images are logged and skipped."""
    for index in map(int, indices):
        try:
            image = dataset.image(index)
        except InputError as error:
            log_skipped(str(error))
            continue
        yield index, image


def draw_prompts(class_names: Sequence[str], seed: int) -> list[str]:
    """Return prompts of all classes with templates that common evaluations do not use.

    Args:
        class_names: the dataset's class names; common English nouns are used if there are none. Chinese names get Chinese
            templates.
        seed: random seed of the choice of templates.

    Returns:
        At least one prompt per class and about 256 in all, each once.
    """
    names = list(dict.fromkeys(class_names)) or _NAMES_WITHOUT_CLASSES
    evaluated = {template for name in _EVALUATED_SETS for template in resolve_templates(name)}
    language = "openai-imagenet" if find_chinese(names) is None else "chinese"
    templates = [template for template in resolve_templates(language) if template not in evaluated]
    generator = np.random.default_rng(seed)
    rounds = min(-(-_TEXTS // len(names)), len(templates))
    chosen = [generator.permutation(len(templates))[:rounds] for _ in names]
    return [
        fill_template(templates[int(picks[turn])], name)
        for turn in range(rounds)
        for name, picks in zip(names, chosen, strict=True)
    ]
