"""Decoding of one Pillow image from a path, bytes, an open file, a Pillow image or a NumPy array."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import IO, Any, TypeGuard, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipmlu.arguments import check_argument
from clipmlu.data.formats import open_with_plugin, reason_of
from clipmlu.data.image_file import EXPECTED_FILE, open_image_file, read_image_file
from clipmlu.data.image_objects import EXPECTED_PIXELS, SupportsArray, float_pixels, in_brackets, source_from_object
from clipmlu.data.jpeg import decode_jpeg, read_ordinary_header
from clipmlu.data.jpeg_header import coefficient_pixels
from clipmlu.data.picture import Picture, Size
from clipmlu.errors import InputError
from clipmlu.file_names import expand_home, name_from_path
from clipmlu.specs import PositiveInt

# Pillow rejects images above twice Image.MAX_IMAGE_PIXELS (a quarter of a gigabyte of RGB); this is that limit.
DEFAULT_MAX_PIXELS = 178_956_970

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k"}
)

HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
"""Suffixes that are read if the package pillow-heif is installed."""
OneImage = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | Mapping[str, Any]
"""Accepted forms of one image that cannot be several."""

ImageSource = OneImage | npt.NDArray[Any] | SupportsArray
"""Accepted forms of one image; see ``load_image``."""

_DEEP_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})  # grey of more than 8 bits
STRIP_PIXELS = 1 << 20
_STREAM_BYTES = 256 << 20  # limit for reading an open file into memory
_PREFIX_BYTES = 16  # length of the prefix that Pillow's plugins receive to recognise their format


_stream_lock = threading.Lock()  # several images may come from one open file and be read by different threads


def is_stream(source: object) -> TypeGuard[IO[bytes]]:
    """Return whether a source is an open file or file-like object."""
    return hasattr(source, "read")


def read_source(source: ImageSource) -> ImageSource:
    """Read a file into memory; return other sources, and the path of a file above 64 MiB, unchanged.

    Raises:
        InputError: the file cannot be read.
    """
    if isinstance(source, (str, os.PathLike)):
        return read_image_file(source)
    return _read_stream(source) if is_stream(source) else source


def _read_stream(stream: IO[bytes]) -> bytes:
    """Return all bytes of an open file from its beginning, regardless of its current position, as Pillow does."""
    where = f"image '{name_of_stream(stream) or type(stream).__name__}'"
    try:
        with _stream_lock:
            if hasattr(stream, "seekable") and stream.seekable():
                stream.seek(0)
            content = stream.read(_STREAM_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: the file is closed
        raise InputError(f"Cannot read {where}: {reason_of(error)}. {EXPECTED_FILE}") from error
    if not isinstance(content, bytes):
        raise InputError(f"Cannot read {where}: it was opened as text. Open it with mode 'rb'.")
    if len(content) > _STREAM_BYTES:
        raise InputError(f"Cannot read {where}: it gives more than {_STREAM_BYTES:,} bytes. Give its path instead.")
    return content


def name_of_stream(stream: IO[bytes]) -> str | None:
    """Return the path of an open file, or None if it has none."""
    name = getattr(stream, "name", None)
    return name_from_path(name) if isinstance(name, str) else None


def load_image(
    source: ImageSource,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    name: str | None = None,
    at_least: tuple[int, int] | None = None,
    reserve: Callable[[int], None] | None = None,
    on_size: Callable[[Size], None] | None = None,
) -> Image.Image:
    """Decode one image completely.

    An EXIF orientation is not applied, because open_clip's transform does not apply it either. The first frame of an
    animation is used. The mode stays as stored (``P``, ``CMYK``, ``I;16``...): ``Preprocessor`` resizes in that mode,
    as
    open_clip does.

    Args:
        source: a path, the bytes of an image file, an open binary file, a Pillow image (loaded and returned itself), or
            a
            uint8 array of shape (H, W, 3) RGB, (H, W, 4) RGBA, (H, W) or (H, W, 1) grey, whose pixels are copied. Also a
            torch tensor of uint8, whose channels may be first, an array of JAX, or a record of Hugging Face datasets: see
            ``image_objects``.
        max_pixels: largest width x height; checked on the header, before any pixel is decoded.
        name: name of the image in messages, for a source of bytes.
        at_least: (width, height): a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size if that is not smaller than
            this,
            which is much faster and gives other pixels; None for the full size.
        reserve: called with the number of pixels before they are decoded; it may block. Other memory of the decoder,
            such as
            a progressive JPEG's coefficients, is included as pixels of four bytes.
        on_size: called with the width and height of an image file before it is decoded; they are those of the full size.

    Returns:
        The loaded image, which is independent of its file.

    Raises:
        InputError: the source cannot be read as an image, has no pixels or too many, or is of another type.
        OptionError: ``max_pixels`` is not an integer of 1 or more.
    """
    _check_limit(max_pixels)
    if isinstance(source, Image.Image):
        where = f"the Pillow image (mode {source.mode})"
        return _load_pixels(source, where, max_pixels, reserve, _coefficient_pixels(source))
    if isinstance(source, np.ndarray):
        return _image_from_array(source, max_pixels, name)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(source), _where(source, name), max_pixels, at_least, reserve, on_size)
    if is_stream(source):
        content = _read_stream(source)
        return load_image(
            content,
            max_pixels=max_pixels,
            name=name or name_of_stream(source),
            at_least=at_least,
            reserve=reserve,
            on_size=on_size,
        )
    if isinstance(source, (str, os.PathLike)):
        with open_image_file(expand_home(source)) as stream:
            return _decode(stream, f"image '{name_from_path(source)}'", max_pixels, at_least, reserve, on_size)
    return load_image(
        source_from_object(source, name),
        max_pixels=max_pixels,
        name=name,
        at_least=at_least,
        reserve=reserve,
        on_size=on_size,
    )


def load_picture(
    source: ImageSource,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    name: str | None = None,
    at_least: tuple[int, int] | None = None,
    reserve: Callable[[int], None] | None = None,
    on_size: Callable[[Size], None] | None = None,
) -> Picture:
    """Decode one image completely, by the fastest decoder that gives Pillow's pixels.

    Arguments and errors are those of ``load_image``.

    Returns:
        For an ordinary JPEG, if the package simplejpeg is installed: uint8, shape (height, width, 3), RGB, with the
        pixels of ``load_image``. For such an array, that array itself. Else the result of ``load_image``.
    """
    if isinstance(source, np.ndarray) and _is_rgb(source, max_pixels):
        return source
    name = _name_of_source(source, name)
    content = _content_of_source(source)
    if isinstance(content, bytes) and (header := read_ordinary_header(content)) is not None:
        _check_limit(max_pixels)
        _check_size((header.width, header.height), _where(content, name), max_pixels)
        if on_size is not None:
            on_size((header.width, header.height))
        width, height = header.reduced_size(at_least)
        if reserve is not None:
            reserve(width * height + header.coefficient_pixels)
            reserve = None
        pixels = decode_jpeg(content, (width, height))
        if pixels is not None:
            return pixels
    return load_image(content, max_pixels=max_pixels, name=name, at_least=at_least, reserve=reserve, on_size=on_size)


def _is_rgb(array: npt.NDArray[Any], max_pixels: int) -> bool:
    """Return whether an array is a ``Picture`` with at least one pixel and at most ``max_pixels``."""
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        return False
    _check_limit(max_pixels)
    return bool(0 < array.shape[0] * array.shape[1] <= max_pixels)


def _name_of_source(source: ImageSource, name: str | None) -> str | None:
    if isinstance(source, (str, os.PathLike)):
        return name_from_path(source)
    return name or (name_of_stream(source) if is_stream(source) else None)


def _content_of_source(source: ImageSource) -> ImageSource:
    """Return the bytes of a file, except of one above 64 MiB; and other sources unchanged."""
    if isinstance(source, (str, os.PathLike)):
        content = read_source(expand_home(source))
        return content if isinstance(content, bytes) else source
    return bytes(source) if isinstance(source, (bytearray, memoryview)) else read_source(source)


def content_digest(image: Image.Image) -> str:
    """Return the SHA-256 in hex of an image's size and RGB pixels; it is independent of the file format."""
    digest = hashlib.sha256(f"{image.width}x{image.height}\n".encode())
    for strip in cut_strips(image):
        digest.update(strip.convert("RGB").tobytes())
    return digest.hexdigest()


def cut_strips(image: Image.Image, pixels: int = STRIP_PIXELS) -> Iterator[Image.Image]:
    """Yield an image in horizontal strips of at most this number of pixels, to limit the memory of later steps."""
    rows = max(1, pixels // image.width)
    if rows >= image.height:
        yield image
        return
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def is_clipped(image: Picture) -> bool:
    """Return whether an image holds grey values that the conversion to 8 bits clips, as in open_clip's transform.

    In 16-bit and 32-bit grey images values above 255 become white; floating-point images in 0..1 become black.
    """
    if not isinstance(image, Image.Image) or image.mode not in _DEEP_MODES:
        return False
    if image.mode in ("I", "F", "I;16"):
        low, high = cast("tuple[float, float]", image.getextrema())
    else:  # Pillow's getextrema does not support the other modes
        pixels = np.asarray(image)
        low, high = pixels.min(), pixels.max()
    return bool(low < 0 or high > 255 or (image.mode == "F" and 0 < high <= 1))


def clipped_note(names: Collection[str]) -> str:
    """Return a note about images for which ``is_clipped`` is true, given at least one name."""
    return (
        f"{len(names)} image(s) hold grey values outside 0..255 (16-bit, 32-bit or floating point), such as "
        f"'{next(iter(names))}'. They are clipped, as in open_clip: most of such an image becomes white or black. "
        "Scale them to 8 bits first."
    )


def _decode(
    stream: IO[bytes],
    where: str,
    max_pixels: int,
    at_least: tuple[int, int] | None,
    reserve: Callable[[int], None] | None,
    on_size: Callable[[Size], None] | None,
) -> Image.Image:
    prefix = stream.read(_PREFIX_BYTES)
    if not prefix:
        raise InputError(f"Cannot read {where}: it is empty. {EXPECTED_FILE}")
    try:
        image, notes = open_with_plugin(stream, prefix)
    except Exception as error:  # a damaged header raises nearly anything in Pillow's parsers
        raise InputError(f"Cannot read {where}: {reason_of(error)}. {EXPECTED_FILE}") from error
    if image is None:
        raise InputError(
            f"Cannot read {where}: {notes or 'its content is not a supported image format'}. {EXPECTED_FILE}"
        )
    if on_size is not None:
        on_size(image.size)
    held = _coefficient_pixels(image)  # of the full-size image, independent of the decoding scale
    if at_least is not None:
        _check_size(image.size, where, max_pixels)
        # Only the JPEG plugin supports this; it chooses the smallest scale that is at least as large. The mode stays
        # unchanged.
        image.draft(None, at_least)
    return _load_pixels(image, where, max_pixels, reserve, held)


def _coefficient_pixels(image: Image.Image) -> int:
    """Return the memory that libjpeg needs in addition to the pixels, in pixels of four bytes; 0 for other formats."""
    layers = getattr(image, "layer", None)  # (component, horizontal, vertical sampling, table), from the header
    if image.format != "JPEG" or not image.info.get("progressive") or not layers:
        return 0
    return coefficient_pixels(image.width * image.height, tuple((across, down) for _, across, down, _ in layers))


def _load_pixels(
    image: Image.Image, where: str, max_pixels: int, reserve: Callable[[int], None] | None, held: int
) -> Image.Image:
    _check_size(image.size, where, max_pixels)
    if reserve is not None:
        reserve(image.width * image.height + held)
    try:
        image.load()
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
        raise InputError(f"Cannot decode {where}: {reason_of(error)}. Expected a complete, undamaged image.") from error
    return image


def _check_limit(max_pixels: int) -> None:
    if type(max_pixels) is not int or max_pixels < 1:  # the usual case takes no time of the interpreter
        check_argument(max_pixels, PositiveInt, "max pixels")


def _check_size(size: tuple[int, int], where: str, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise InputError(f"Cannot use {where}: it is {width}x{height} and has no pixels.")
    if width * height > max_pixels:
        raise InputError(
            f"Cannot use {where}: {width}x{height} is {width * height:,} pixels, more than the limit of {max_pixels:,}. "
            "If the file is trusted, allow more with --max-pixels (max_pixels in Python)."
        )


def _image_from_array(array: npt.NDArray[Any], max_pixels: int, name: str | None) -> Image.Image:
    where = f"the array of {array.dtype} with shape {array.shape}{in_brackets(name)}"
    if array.dtype.kind == "f":
        raise InputError(float_pixels(where, "(array * 255).round().astype('uint8')"))
    if array.dtype != np.uint8:
        raise InputError(f"Cannot use {where}. {EXPECTED_PIXELS}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise InputError(f"Cannot use {where}. {EXPECTED_PIXELS}{_advice_on_axes(array.shape)}")
    _check_size((array.shape[1], array.shape[0]), where, max_pixels)
    # Image.fromarray may share the caller's memory; without a copy later writes would change the image.
    return Image.fromarray(array).copy()


def _advice_on_axes(shape: tuple[int, ...]) -> str:
    if len(shape) == 3 and shape[0] in (1, 3, 4):
        return " Its channels are first: pass array.transpose(1, 2, 0)."
    return " Several images in an array are given without a list around it." if len(shape) == 4 else ""


def _where(content: bytes | bytearray | memoryview, name: str | None) -> str:
    count = content.nbytes if isinstance(content, memoryview) else len(content)
    return f"the {count} bytes given" if name is None else f"image '{name}'"
