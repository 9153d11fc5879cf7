"""Image formats: which of Pillow's plugins reads a file, and messages about files that none reads."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO

from PIL import Image

# Raster formats with a signature. Not included: formats that start another program (EPS), that have no signature, so
# that any text can be mistaken for them (TGA), or that exist only as icons and textures.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")

HEIF_HINT = "HEIC and HEIF are read with pillow-heif: pip install 'clipmlu[heif]'."

# The first box of a HEIF file (ISO/IEC 23008-12, annex B): brands of still images that HEVC coded, and of any codec.
_HEIF_STARTS = tuple(
    b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
)


def open_with_plugin(stream: IO[bytes], prefix: bytes) -> tuple[Image.Image | None, str]:
    """Read the header with the first plugin that accepts the file.

    Same as ``Image.open(stream, formats=FORMATS)`` without its size check, which warns through Python's process-wide
    filters
    and reads its limit from a module global; a thread can set neither for itself.

    Returns:
        The unloaded image or None; and the messages of plugins without their codec.
    """
    if any(name not in Image.OPEN for name in FORMATS):
        Image.init()
    notes = []
    for name in FORMATS:
        factory, accepts = Image.OPEN.get(name, (None, None))
        if factory is None:  # AVIF is supported since Pillow 11.3
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
            except (SyntaxError, IndexError, TypeError, struct.error) as error:  # raised for other formats
                notes.append(f"it starts like {name}, but its header is damaged ({reason_of(error)})")
    if prefix[4:12] in _HEIF_STARTS:
        heif_factory = _heif_factory()
        if heif_factory is None:
            return None, f"it is HEIC or HEIF. {HEIF_HINT}".rstrip(".")
        stream.seek(0)
        return heif_factory(stream, ""), ""
    return None, "; ".join(notes)


@functools.cache
def _silence_libtiff() -> None:
    """Prevent libtiff from writing its errors to stderr; Pillow raises them as exceptions as well.

    Pillow itself disables libtiff's warnings only. The change applies to Pillow's own copy of the library.
    """
    with contextlib.suppress(OSError, AttributeError):  # not Linux, or the library is linked statically
        mapped = {line.split(maxsplit=5)[-1].strip() for line in Path("/proc/self/maps").read_text().splitlines()}
        for path in mapped:
            if "libtiff" in os.path.basename(path):
                ctypes.CDLL(path).TIFFSetErrorHandler(None)


def _heif_factory() -> Callable[[IO[bytes], str], Image.Image] | None:
    """Return Pillow's plugin for HEIF without registering it globally, or None if it is not installed."""
    try:
        return importlib.import_module("pillow_heif").HeifImageFile  # type: ignore[no-any-return]
    except ModuleNotFoundError:
        return None


def reason_of(error: BaseException) -> str:
    """Return the error's message as one line without a full stop."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()).rstrip(".") or type(error).__name__
