"""Calibration data: images of a train split through the model's preprocessing, and prompts of its classes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipmlu.backends.base import CalibrationData
from clipmlu.bundle import Bundle
from clipmlu.data.datasets import Dataset, open_dataset
from clipmlu.data.images import content_digest
from clipmlu.data.preprocess import Preprocessor
from clipmlu.data.prompts import fill_template, resolve_templates
from clipmlu.data.tokenizer import Tokenizer
from clipmlu.errors import CalibrationError, OptionError
from clipmlu.specs import CalibrationRecord, TowerName

DEFAULT_SAMPLES = 1000
Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """Which data to calibrate with; validated on construction.

    Attributes:
        dataset: ``cifar100``, ``cifar10``, ``demo``, or ``imagefolder:PATH`` of images that are not evaluated later.
        samples: number of images, drawn at random from the train split.
        seed: of the draw.
        data_dir: where the dataset's files are; see ``open_dataset``.
        download: fetch what is not on this machine.
    """

    dataset: str
    samples: int = DEFAULT_SAMPLES
    seed: int = 0
    data_dir: Path | None = None
    download: bool = True

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise OptionError(f"calibration samples are {self.samples}; expected 1 or more")
        if self.seed < 0:
            raise OptionError(f"calibration seed is {self.seed}; expected 0 or more")


class CalibrationSet:
    """Images and prompts to calibrate a bundle with.

    Args:
        bundle: the exported bundle: its preprocessing and tokenizer.
        options: which data.

    Attributes:
        record: what is kept in the manifest.
        digests: content digests of the images, sorted; see ``content_digest``.

    Raises:
        OptionError, UnknownNameError, InputError: as ``open_dataset``.
    """

    def __init__(self, bundle: Bundle, options: CalibrationOptions) -> None:
        self._bundle = bundle
        self._dataset = _open(options)
        if not len(self._dataset):
            raise CalibrationError(f"Calibration dataset '{options.dataset}' has no images.")
        count = min(options.samples, len(self._dataset))
        self._chosen = np.random.default_rng(options.seed).permutation(len(self._dataset))[:count]
        self._images: list[Array] = []
        self.digests = self._load_images()
        self._prompts = [fill_template(resolve_templates("simple")[0], name) for name in self._dataset.class_names]
        self.record = CalibrationRecord(
            dataset=options.dataset,
            split=self._dataset.split,
            samples=count,
            seed=options.seed,
            texts=len(self._prompts),
        )

    def feeds(self, tower: TowerName, batch_size: int, text_rows: int) -> dict[str, CalibrationData]:
        """Calibration data of one tower, by input name.

        All batches are full, as the vendor's sample gives them: the last one is filled up from the front. In the joint
        layout the same prompts go with every batch of images.

        Args:
            tower: which one.
            batch_size: rows of a batch.
            text_rows: texts of the joint layout.
        """
        if tower == "image":
            return {"pixel_values": CalibrationData(batches=self._image_batches(batch_size))}
        if tower == "text":
            return {"input_ids": CalibrationData(batches=_cut(self._tokens(), batch_size))}
        ids = _first_rows(self._tokens(), text_rows)
        return {
            "pixel_values": CalibrationData(batches=self._image_batches(batch_size)),
            "input_ids": CalibrationData(batches=[ids], repeat=True),
        }

    def _load_images(self) -> list[str]:
        """Preprocess the images, once for all towers; returns their digests."""
        preprocess = Preprocessor(self._bundle.manifest.preprocess)
        digests = []
        for index in self._chosen:
            image = self._dataset.image(int(index))
            digests.append(content_digest(image))
            self._images.append(preprocess(image))
        return sorted(digests)

    def _image_batches(self, batch_size: int) -> list[Array]:
        return _cut(np.stack(self._images), batch_size)

    def _tokens(self) -> Array:
        return Tokenizer.load(self._bundle.tokenizer_path, self._bundle.manifest.tokenizer)(self._prompts)


def _open(options: CalibrationOptions) -> Dataset:
    """The train split; of a folder, its sub-folder ``train`` if there is one."""
    return open_dataset(
        options.dataset,
        "train",
        data_dir=options.data_dir,
        download=options.download,
        size=options.samples,
        seed=options.seed,
    )


def _cut(rows: Array, batch_size: int) -> list[Array]:
    count = -(-len(rows) // batch_size) * batch_size
    filled = _first_rows(rows, count)
    return [filled[start : start + batch_size] for start in range(0, count, batch_size)]


def _first_rows(rows: Array, count: int) -> Array:
    """The first rows, begun again from the front when there are not enough."""
    return rows[np.arange(count) % len(rows)]
