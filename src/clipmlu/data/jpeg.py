"""Decoding of JPEGs with the package simplejpeg, where it gives exactly the pixels of the installed Pillow.

Pillow decodes all others, and reports what is wrong with a damaged file.
"""

from __future__ import annotations

import functools
import importlib
import io
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image, features

from clipmlu.data.jpeg_header import JpegHeader, Sampling, read_header

_SAMPLINGS: dict[Sampling, str] = {(1, 1): "444", (2, 1): "422", (2, 2): "420", (1, 2): "440", (4, 1): "411"}
"""Maps samplings to their names in simplejpeg; Pillow decodes files with others."""
_PROOF_SIZES = ((131, 97), (18, 5), (3, 2))  # odd; wider and narrower than the vectors of the decoders


def read_ordinary_header(content: bytes) -> JpegHeader | None:
    """Return the header of a JPEG that ``decode_jpeg`` decodes to Pillow's pixels if it is undamaged, else None."""
    header = read_header(content)
    return header if header is not None and header.sampling in proven_samplings() else None


def decode_jpeg(content: bytes, size: tuple[int, int]) -> npt.NDArray[np.uint8] | None:
    """Decode an ordinary JPEG, without the interpreter's lock.

    Args:
        content: a file for which ``read_ordinary_header`` gives a header.
        size: width and height of the result, one that ``JpegHeader.reduced_size`` gives.

    Returns:
        uint8, shape (height, width, 3), RGB in 0..255, owned by the caller; None if the file is damaged in any way, or
        memory is short.
    """
    width, height = size
    try:
        # By default it is strict: warnings about damage are errors too. Its options fastdct and fastupsample save 4 and
        # 3 % of the time, and change photographs by 0.9 and 0.2 of 255 in the mean.
        pixels: npt.NDArray[np.uint8] = _package().decode_jpeg(content, "RGB", min_width=width, min_height=height)
    except (ValueError, RuntimeError, MemoryError):
        return None
    return pixels


@functools.cache
def _package() -> Any:
    """Return the package simplejpeg, or None if it is not installed or does not work with the installed NumPy."""
    try:
        return importlib.import_module("simplejpeg")
    except (ImportError, ValueError):  # ValueError: compiled for another NumPy
        return None


@functools.cache
def proven_samplings() -> frozenset[Sampling]:
    """Return the samplings for which simplejpeg gives Pillow's pixels, by decoding small images with both once.

    Both contain libjpeg, but each a version of its own, with its own settings.
    """
    if _package() is None:
        return frozenset()
    return frozenset(each for each in _SAMPLINGS if all(_is_equal(each, *size) for size in _PROOF_SIZES))


def _is_equal(sampling: Sampling, width: int, height: int) -> bool:
    # Multiplicative hashing (Knuth): noise without a random generator, whose import takes longer than all else here.
    noise = np.arange(width * height * 3, dtype=np.uint32) * np.uint32(2654435761) >> np.uint32(15)
    picture = noise.astype(np.uint8).reshape(height, width, 3)
    content = _package().encode_jpeg(picture, quality=90, colorsubsampling=_SAMPLINGS[sampling])
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(image)
    pixels = decode_jpeg(content, (width, height))
    return pixels is not None and np.array_equal(pixels, expected)


def forget_proof() -> None:
    """Look for the package and compare with Pillow again at the next use."""
    _package.cache_clear()
    proven_samplings.cache_clear()


class Decoder(NamedTuple):
    """What decodes JPEGs here.

    Attributes:
        is_fast: whether simplejpeg is used.
        found: packages, versions and samplings.
        remedy: advice, or empty.
    """

    is_fast: bool
    found: str
    remedy: str = ""


def describe_decoder() -> Decoder:
    """Return what decodes JPEGs here."""
    turbo = features.version_feature("libjpeg_turbo")
    pillow = f"Pillow {PIL.__version__}, {f'libjpeg-turbo {turbo}' if turbo else 'without libjpeg-turbo'}"
    if _package() is None:
        return Decoder(False, f"{pillow}; simplejpeg is absent", "decode JPEGs faster: pip install 'clipmlu[jpeg]'")
    package = f"simplejpeg {getattr(_package(), '__version__', 'of unknown version')}"
    proven = [":".join(name) for sampling, name in _SAMPLINGS.items() if sampling in proven_samplings()]
    if not proven:
        remedy = "install current versions of both: pip install --upgrade pillow simplejpeg"
        return Decoder(False, f"{pillow}; {package} is not used, because its pixels differ", remedy)
    return Decoder(True, f"{package} for {', '.join(proven)}, with the pixels of {pillow}, which decodes all others")
