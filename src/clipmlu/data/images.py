"""One decoded Pillow image out of whatever a caller has: a path, bytes, an open file, a Pillow image or a NumPy array."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib
import io
import os
import stat
import struct
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO, Any, TypeGuard, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipmlu.arguments import check_argument
from clipmlu.errors import InputError
from clipmlu.file_names import expand_home, name_from_path
from clipmlu.specs import PositiveInt

# Pillow refuses images above twice Image.MAX_IMAGE_PIXELS (a quarter of a gigabyte of RGB); this is that limit.
DEFAULT_MAX_PIXELS = 178_956_970

# Raster formats with a signature. Left out are those that start another program (EPS), have no signature so that any
# text may pass for them (TGA), or only exist as icons and textures.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k"}
)

HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
"""Read where the package pillow-heif is installed."""
HEIF_HINT = "HEIC and HEIF are read with pillow-heif: pip install 'clipmlu[heif]'."

ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | npt.NDArray[Any]

EXPECTED_IMAGE = "Expected a path, bytes, an open binary file, a Pillow image or a uint8 NumPy array."

_DEEP_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})  # grey of more than 8 bits
_STRIP_PIXELS = 1 << 20
_EXPECTED = f"Expected an image file ({', '.join(FORMATS)})."
_EXPECTED_ARRAY = (
    "Expected uint8, 0..255, of shape (H, W, 3) for RGB, (H, W, 4) for RGBA, (H, W) or (H, W, 1) for grey."
)
# The first box of a HEIF file (ISO/IEC 23008-12, annex B): brands of still images that HEVC coded, and of any codec.
_HEIF_STARTS = tuple(
    b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
)
_WHOLE_FILE_BYTES = 64 << 20  # larger files are read while they are decoded
_STREAM_BYTES = 256 << 20  # an open file is read into memory up to here
_PREFIX_BYTES = 16  # what Pillow's plugins are promised for recognising their format


_stream_lock = threading.Lock()  # one open file may stand for several images that different threads read


def is_stream(source: object) -> TypeGuard[IO[bytes]]:
    """Whether a source is an open file, or what behaves like one."""
    return hasattr(source, "read")


def read_source(source: ImageSource) -> ImageSource:
    """Read a file into memory; any other source is returned as it is, and so is the path of a file above 64 MiB.

    Raises:
        InputError: the file cannot be read.
    """
    if is_stream(source):
        return _read_stream(source)
    if not isinstance(source, (str, os.PathLike)):
        return source
    path = Path(source)
    with _open_file(path) as stream:
        try:
            if os.fstat(stream.fileno()).st_size > _WHOLE_FILE_BYTES:
                return path
            return stream.read()
        except OSError as error:
            raise InputError(f"Cannot read image '{name_from_path(path)}': {_reason(error)}. {_EXPECTED}") from error


def _read_stream(stream: IO[bytes]) -> bytes:
    """All bytes of an open file from its beginning, as Pillow takes them, wherever it stands."""
    where = f"image '{name_of_stream(stream) or type(stream).__name__}'"
    try:
        with _stream_lock:
            if hasattr(stream, "seekable") and stream.seekable():
                stream.seek(0)
            content = stream.read(_STREAM_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: it is closed
        raise InputError(f"Cannot read {where}: {_reason(error)}. {_EXPECTED}") from error
    if not isinstance(content, bytes):
        raise InputError(f"Cannot read {where}: it was opened as text. Open it with mode 'rb'.")
    if len(content) > _STREAM_BYTES:
        raise InputError(f"Cannot read {where}: it gives more than {_STREAM_BYTES:,} bytes. Give its path instead.")
    return content


def name_of_stream(stream: IO[bytes]) -> str | None:
    """The path that an open file was opened by, if it knows."""
    name = getattr(stream, "name", None)
    return name_from_path(name) if isinstance(name, str) else None


def load_image(
    source: ImageSource,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    name: str | None = None,
    at_least: tuple[int, int] | None = None,
    reserve: Callable[[int], None] | None = None,
) -> Image.Image:
    """Decode one image completely.

    An EXIF orientation is not applied, because open_clip's own transform does not apply it either. Of an animation
    the first frame is taken. The mode stays as stored (``P``, ``CMYK``, ``I;16``...): ``Preprocessor`` resizes in that
    mode, as open_clip does.

    Args:
        source: a path, the bytes of an image file, an open binary file, a Pillow image (returned itself, loaded), or a uint8 array of shape
            (H, W, 3) RGB, (H, W, 4) RGBA, (H, W) or (H, W, 1) grey, whose pixels are copied.
        max_pixels: largest width x height that is decoded; checked on the header, before any pixel is.
        name: what messages call the bytes of a file.
        at_least: (width, height): a JPEG may come scaled down by 2, 4 or 8 as long as it is no smaller than this, which
            is much faster and gives other pixels; None for the image as it is.
        reserve: called with the number of pixels when that is known and before they are decoded; it may wait. What else the
            decoder holds, a progressive JPEG's coefficients, is counted as pixels of four bytes.

    Returns:
        The loaded image, which no longer needs its file.

    Raises:
        InputError: the source cannot be read as an image, has no pixels or too many, or is of another type.
        OptionError: ``max_pixels`` is no number of 1 or more.
    """
    check_argument(max_pixels, PositiveInt, "max pixels")
    if isinstance(source, Image.Image):
        where = f"the Pillow image (mode {source.mode})"
        return _load_pixels(source, where, max_pixels, reserve, _coefficient_pixels(source))
    if isinstance(source, np.ndarray):
        return _image_from_array(source, max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        where = f"the {_byte_count(source)} bytes given" if name is None else f"image '{name}'"
        return _decode(io.BytesIO(source), where, max_pixels, at_least, reserve)
    if is_stream(source):
        content = _read_stream(source)
        return load_image(
            content, max_pixels=max_pixels, name=name or name_of_stream(source), at_least=at_least, reserve=reserve
        )
    if isinstance(source, (str, os.PathLike)):
        with _open_file(expand_home(source)) as stream:
            return _decode(stream, f"image '{name_from_path(source)}'", max_pixels, at_least, reserve)
    raise InputError(f"Cannot take an image from a value of type '{type(source).__name__}'. {EXPECTED_IMAGE}")


def content_digest(image: Image.Image) -> str:
    """SHA-256 in hex of an image's size and RGB pixels: the same picture in another file has the same one."""
    digest = hashlib.sha256(f"{image.width}x{image.height}\n".encode())
    for strip in cut_strips(image):
        digest.update(strip.convert("RGB").tobytes())
    return digest.hexdigest()


def cut_strips(image: Image.Image) -> Iterator[Image.Image]:
    """An image in strips of at most a million pixels, top to bottom, so that nothing of the whole one's size is made of it."""
    rows = max(1, _STRIP_PIXELS // image.width)
    if rows >= image.height:
        yield image
        return
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def is_clipped(image: Image.Image) -> bool:
    """Whether an image holds grey values that the conversion to 8 bits cuts off, as open_clip's transform does.

    16-bit and 32-bit grey images become white where a value is above 255; floating-point ones in 0..1 become black.
    """
    if image.mode not in _DEEP_MODES:
        return False
    if image.mode in ("I", "F", "I;16"):
        low, high = cast("tuple[float, float]", image.getextrema())
    else:  # of the others Pillow does not know
        pixels = np.asarray(image)
        low, high = pixels.min(), pixels.max()
    return bool(low < 0 or high > 255 or (image.mode == "F" and 0 < high <= 1))


def clipped_note(names: Collection[str]) -> str:
    """What to tell about images of which ``is_clipped`` is true, at least one, by their names."""
    return (
        f"{len(names)} image(s) hold grey values outside 0..255 (16-bit, 32-bit or floating point), such as "
        f"'{next(iter(names))}'. They are cut off there, as open_clip does: most of such an image is white or black. "
        "Scale them to 8 bits first."
    )


def _open_file(path: Path) -> IO[bytes]:
    where = f"image '{name_from_path(path)}'"
    try:
        kind = path.stat().st_mode
        # A pipe would block and cannot be rewound; a directory fails differently on each operating system.
        if stat.S_ISDIR(kind):
            raise InputError(f"Cannot read {where}: it is a directory. {_EXPECTED}")
        if not stat.S_ISREG(kind):
            raise InputError(f"Cannot read {where}: it is not a regular file. {_EXPECTED}")
        return path.open("rb")
    except FileNotFoundError as error:
        raise InputError(f"Cannot read {where}: {dangling_reason(path)}. {_EXPECTED}") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise InputError(f"Cannot read {where}: {_reason(error)}. {_EXPECTED}") from error


def dangling_reason(path: Path) -> str:
    """Why there is no file at a path: its link leads nowhere, or there is nothing at all."""
    try:
        return f"it is a link to '{name_from_path(os.readlink(path))}', which does not exist"
    except OSError:
        return "there is no such file"


def _decode(
    stream: IO[bytes],
    where: str,
    max_pixels: int,
    at_least: tuple[int, int] | None,
    reserve: Callable[[int], None] | None,
) -> Image.Image:
    prefix = stream.read(_PREFIX_BYTES)
    if not prefix:
        raise InputError(f"Cannot read {where}: it is empty. {_EXPECTED}")
    try:
        image, notes = _identify(stream, prefix)
    except Exception as error:  # a damaged header raises nearly anything in Pillow's parsers
        raise InputError(f"Cannot read {where}: {_reason(error)}. {_EXPECTED}") from error
    if image is None:
        raise InputError(f"Cannot read {where}: {notes or 'its content is no image that is known here'}. {_EXPECTED}")
    held = _coefficient_pixels(image)  # of the whole image, at whatever scale it is decoded
    if at_least is not None:
        _check_size(image.size, where, max_pixels)
        # Only the JPEG plugin knows how; it takes the smallest scale that is at least as large. The mode stays as it is.
        image.draft(None, at_least)
    return _load_pixels(image, where, max_pixels, reserve, held)


def _identify(stream: IO[bytes], prefix: bytes) -> tuple[Image.Image | None, str]:
    """Read the header with the first plugin that accepts the file.

    This is what ``Image.open(stream, formats=FORMATS)`` does, without its size check: that one warns through Python's
    process-wide filters and takes its limit from a module global, neither of which a thread can set for itself.

    Returns:
        The unloaded image, or None; and what plugins without their codec said.
    """
    if any(name not in Image.OPEN for name in FORMATS):
        Image.init()
    notes = []
    for name in FORMATS:
        factory, accepts = Image.OPEN.get(name, (None, None))
        if factory is None:  # AVIF came with Pillow 11.3
            continue
        verdict = not accepts or accepts(prefix)
        if name == "TIFF" and verdict is True:
            _silence_libtiff()
        if isinstance(verdict, str):
            notes.append(verdict)
        elif verdict:
            stream.seek(0)
            try:
                return factory(stream, ""), ""
            except (SyntaxError, IndexError, TypeError, struct.error) as error:  # how plugins say "not mine"
                notes.append(f"it starts like {name}, but its header is damaged ({_reason(error)})")
    if prefix[4:12] in _HEIF_STARTS:
        heif_factory = _heif_factory()
        if heif_factory is None:
            return None, f"it is HEIC or HEIF. {HEIF_HINT}".rstrip(".")
        stream.seek(0)
        return heif_factory(stream, ""), ""
    return None, "; ".join(notes)


@functools.cache
def _silence_libtiff() -> None:
    """Keep libtiff from writing to stderr, in pieces of lines and from any thread, what Pillow raises as an error too.

    Pillow switches off its warnings only. Its own copy of the library is meant, which nothing else uses.
    """
    with contextlib.suppress(OSError, AttributeError):  # not Linux, or a Pillow that hides the library
        mapped = {line.split(maxsplit=5)[-1].strip() for line in Path("/proc/self/maps").read_text().splitlines()}
        for path in mapped:
            if "libtiff" in os.path.basename(path):
                ctypes.CDLL(path).TIFFSetErrorHandler(None)


def _heif_factory() -> Callable[[IO[bytes], str], Image.Image] | None:
    """Pillow's plugin for HEIF, without registering it for the rest of the program; None where it is not installed."""
    try:
        return importlib.import_module("pillow_heif").HeifImageFile  # type: ignore[no-any-return]
    except ModuleNotFoundError:
        return None


def _coefficient_pixels(image: Image.Image) -> int:
    """Memory that libjpeg holds beside the pixels, in pixels of four bytes.

    A progressive JPEG comes in scans over the whole image, so that all coefficients are kept until the last one: 16 bits for
    each sample of each component (libjpeg.txt, "Progressive JPEG support"). Anything else holds a few rows.
    """
    layers = getattr(image, "layer", None)  # (component, horizontal, vertical sampling, table), as the header says
    if image.format != "JPEG" or not image.info.get("progressive") or not layers:
        return 0
    largest = max(layer[1] for layer in layers) * max(layer[2] for layer in layers)
    samples = image.width * image.height * sum(layer[1] * layer[2] for layer in layers)
    return int(samples * 2 // (4 * max(1, largest)))


def _load_pixels(
    image: Image.Image, where: str, max_pixels: int, reserve: Callable[[int], None] | None, held: int
) -> Image.Image:
    _check_size(image.size, where, max_pixels)
    if reserve is not None:
        reserve(image.width * image.height + held)
    try:
        image.load()
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
        raise InputError(f"Cannot decode {where}: {_reason(error)}. Expected a complete, undamaged image.") from error
    return image


def _check_size(size: tuple[int, int], where: str, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise InputError(f"Cannot use {where}: it is {width}x{height} and has no pixels.")
    if width * height > max_pixels:
        raise InputError(
            f"Cannot use {where}: {width}x{height} is {width * height:,} pixels, more than the limit of {max_pixels:,}. "
            "If the file is trusted, allow more with --max-pixels (max_pixels in Python)."
        )


def _image_from_array(array: npt.NDArray[Any], max_pixels: int) -> Image.Image:
    where = f"the array of {array.dtype} with shape {array.shape}"
    if array.dtype.kind == "f":
        raise InputError(
            f"Cannot use {where}: the range of floating-point pixels is not known. {_EXPECTED_ARRAY} "
            "For values in 0..1 pass (array * 255).round().astype('uint8')."
        )
    if array.dtype != np.uint8:
        raise InputError(f"Cannot use {where}. {_EXPECTED_ARRAY}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise InputError(f"Cannot use {where}. {_EXPECTED_ARRAY}")
    _check_size((array.shape[1], array.shape[0]), where, max_pixels)
    # Image.fromarray may share the caller's memory, and a later write would then change our image.
    return Image.fromarray(array).copy()


def _byte_count(source: bytes | bytearray | memoryview) -> int:
    return source.nbytes if isinstance(source, memoryview) else len(source)


def _reason(error: BaseException) -> str:
    """One line, without the full stop that the message adds."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()).rstrip(".") or type(error).__name__
