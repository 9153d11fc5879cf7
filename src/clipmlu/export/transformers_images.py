"""Comparing the preprocessing with the image processor of the transformers library, of which the Pillow-based one is the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image

from clipmlu.data.preprocess import Preprocessor
from clipmlu.errors import ExportError, first_line
from clipmlu.export.options import PURPOSE
from clipmlu.export.quiet import quiet_libraries
from clipmlu.host import require
from clipmlu.specs import PreprocessSpec, RgbConversion

_ALLOWED = 1e-6  # the scaling of ALIGN is rounded once more; a level of 255 is some 0.004 or more
_SHAPES = ((61, 40), (33, 97), (300, 260), (7, 5))  # width and height
_SQUARES = ((64, 64), (30, 30), (301, 301))
_CONVERSIONS: tuple[RgbConversion, ...] = ("first", "white")


class LibraryPixels:
    """The pixels that the library's image processor on Pillow makes of an image.

    Args:
        folder: a directory of the library.

    Raises:
        ExportError: the library cannot load it.
    """

    def __init__(self, folder: Path) -> None:
        transformers = require("transformers", "export", PURPOSE)
        try:
            with quiet_libraries():  # use_fast=False: the processor on Pillow, in versions 4 and 5
                self._processor = transformers.AutoImageProcessor.from_pretrained(
                    str(folder), local_files_only=True, trust_remote_code=False, use_fast=False
                )
        except Exception as error:  # various errors for wrong settings
            raise ExportError(f"Cannot load the image processor in '{folder}': {first_line(error)}.") from error

    @property
    def square_only(self) -> bool:
        """Whether only square images get the fixed size."""
        return hasattr(self._processor, "max_num_patches")

    @property
    def takes_all_modes(self) -> bool:
        """Whether images of other modes than RGB are converted."""
        return bool(getattr(self._processor, "do_convert_rgb", False))

    def inputs(self, images: list[Image.Image]) -> Any:
        """Return what the library's model takes: a dictionary of tensors."""
        with quiet_libraries():
            return dict(self._processor(images, return_tensors="pt"))

    def pixels(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """Return float32 of shape (3, height, width)."""
        found = self.inputs([image])
        values = found["pixel_values"].numpy()[0]
        if "spatial_shapes" not in found:
            return np.asarray(values, np.float32)
        rows, columns = found["spatial_shapes"].tolist()[0]
        size = self._processor.patch_size
        patches = values[: rows * columns].reshape(rows, columns, size, size, 3)
        return np.asarray(patches.transpose(4, 0, 2, 1, 3).reshape(3, rows * size, columns * size), np.float32)


def transparency_of(folder: Path, spec: PreprocessSpec) -> RgbConversion:
    """Return what the installed version of the library makes of transparent images: it changed with version 5."""
    library, image = LibraryPixels(folder), _probe((40, 40), "RGBA")
    if not library.takes_all_modes:
        return spec.to_rgb
    expected = library.pixels(image)
    found = {
        each: float(np.abs(Preprocessor(msgspec.structs.replace(spec, to_rgb=each))(image) - expected).max())
        for each in _CONVERSIONS
    }
    return min(_CONVERSIONS, key=found.__getitem__)


def check_pixels(library: LibraryPixels, spec: PreprocessSpec) -> None:
    """Compare the pixels of images of several sizes and modes.

    Raises:
        ExportError: they differ.
    """
    ours = Preprocessor(spec)
    for mode in ("RGB", "L", "RGBA", "P") if library.takes_all_modes else ("RGB",):
        for shape in _SQUARES if library.square_only else _SHAPES:
            image = _probe(shape, mode)
            expected = library.pixels(image)
            found = ours(image)
            if found.shape != expected.shape or float(np.abs(found - expected).max()) > _ALLOWED:
                raise ExportError(
                    f"The preprocessing differs from that of transformers on an image of mode {mode} and size "
                    f"{shape[0]}x{shape[1]}. Please report the model."
                )


def probe_images(library: LibraryPixels, count: int) -> list[Image.Image]:
    """Return RGB images for a comparison of the whole image tower."""
    shapes = _SQUARES if library.square_only else _SHAPES
    return [_probe(shapes[index % len(shapes)], "RGB", seed=index) for index in range(count)]


def _probe(size: tuple[int, int], mode: str, seed: int = 0) -> Image.Image:
    """Return an image of coarse and fine noise."""
    width, height = size
    generator = np.random.default_rng([seed, width, height])
    coarse = Image.fromarray(generator.integers(0, 256, (5, 4, 4), np.uint8), "RGBA").resize(
        size, Image.Resampling.BICUBIC
    )
    fine = Image.fromarray(generator.integers(0, 256, (height, width, 4), np.uint8), "RGBA")
    return Image.blend(coarse, fine, 0.3).convert(mode)
