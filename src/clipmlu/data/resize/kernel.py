"""The compiled kernel that resizes, crops and normalises an image in one call, with the pixels of the installed Pillow."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipmlu.data.picture import Picture, picture_size
from clipmlu.data.resize.build import digest_of, kernel_path, source_digest
from clipmlu.data.resize.order import PassOrder, describe_pillow, noise, pass_order, vertical_first

_BUILD = "python -m clipmlu.data.resize.build"
_DONE, _OUT_OF_MEMORY = 0, 1
_FILTERS = {Image.Resampling.BILINEAR: 0, Image.Resampling.BICUBIC: 1}
_RGB_BYTES = 3
_SMALL_PIXELS = 1 << 12  # resized in some 20 us: releasing the interpreter's lock and taking it again would take longer
# (width, height) of the image and of the result, in which each direction and each order of the passes occurs.
_PROBES = (
    ((61, 40), (29, 19)),
    ((40, 61), (19, 29)),
    ((23, 90), (12, 31)),
    ((90, 23), (31, 12)),
    ((7, 5), (33, 24)),
    ((30, 41), (40, 30)),
    ((41, 30), (30, 40)),
    ((20, 33), (20, 17)),
    ((33, 20), (17, 20)),
    ((1, 9), (3, 4)),
    ((200, 160), (16, 13)),
    ((3, 301), (7, 40)),
    ((301, 3), (40, 7)),
)


class KernelUnavailableError(Exception):
    """The compiled kernel cannot be used; the message is the reason."""


class Crop(NamedTuple):
    """A part of a resized image.

    Attributes:
        resized: width and height of the whole resized image.
        left: first column of the part.
        top: first row of the part.
    """

    resized: tuple[int, int]
    left: int
    top: int


class Kernel:
    """The functions of the compiled library.

    Args:
        path: the library.
        order: the order of Pillow's passes.

    Raises:
        KernelUnavailableError: there is no library, or it was compiled from another source.
    """

    def __init__(self, path: Path, order: PassOrder) -> None:
        if not path.exists():
            raise KernelUnavailableError(f"it is not compiled; with a C compiler: {_BUILD}")
        try:
            library, locked = ctypes.CDLL(str(path)), ctypes.PyDLL(str(path))
            if digest_of(library) != source_digest():
                raise KernelUnavailableError(
                    f"it was compiled from another version of its source; compile it again: {_BUILD}"
                )
        except OSError as error:
            raise KernelUnavailableError(f"it cannot be loaded: {' '.join(str(error).split())}") from error
        self._order = order
        self._resize = _declare_resize(library)
        self._resize_small = _declare_resize(locked)
        self._arrow_pixels = locked.clipmlu_arrow_pixels
        self._arrow_pixels.restype = ctypes.c_void_p
        self._arrow_pixels.argtypes = (ctypes.c_void_p, ctypes.c_int64)
        library.clipmlu_variant_name.restype = ctypes.c_char_p
        self.variants = [library.clipmlu_variant_name(index).decode() for index in range(library.clipmlu_variants())]
        self.variant = len(self.variants) - 1

    def write(
        self,
        picture: Picture,
        crop: Crop,
        resample: Image.Resampling,
        out: npt.NDArray[np.float32] | npt.NDArray[np.uint8],
        table: npt.NDArray[np.float32] | None = None,
    ) -> bool:
        """Resize a picture and write a part of the result, without the interpreter's lock unless all is small.

        Args:
            picture: a Pillow image, or an array.
            crop: the part; its size is that of ``out``.
            resample: bicubic or bilinear.
            out: shape (3, height, width), any strides, writeable; float32 with a table, else uint8.
            table: contiguous float32 of shape (3, 256), by channel and value.

        Returns:
            False if the kernel does not take this picture, and nothing useful was written: Pillow must resize it.

        Raises:
            MemoryError: there is not enough memory.
        """
        width, height = picture_size(picture)  # once: another thread may change the image
        source = self._pixels_of(picture, width, height) if out.flags.aligned else None
        if source is None:
            return False
        address, row_bytes, pixel_bytes, _owner = source
        itemsize = out.itemsize
        channel_stride, row_stride, column_stride = (stride // itemsize for stride in out.strides)
        small = max(width * height, out.shape[1] * out.shape[2]) <= _SMALL_PIXELS
        status = (self._resize_small if small else self._resize)(
            address,
            width,
            height,
            row_bytes,
            pixel_bytes,
            *crop.resized,
            crop.left,
            crop.top,
            out.shape[2],
            out.shape[1],
            _FILTERS[resample],
            vertical_first(self._order, (width, height), crop.resized),
            self.variant,
            None if table is None else _address(table),
            _address(out),
            channel_stride,
            row_stride,
            column_stride,
        )
        if status == _OUT_OF_MEMORY:
            raise MemoryError(f"not enough memory to resize an image of {width}x{height} pixels")
        return bool(status == _DONE)

    def _pixels_of(self, picture: Picture, width: int, height: int) -> tuple[int, int, int, object] | None:
        """Return address, bytes of a row, bytes of a pixel, and the object that keeps them; None if Pillow has no such pixels.

        Args:
            picture: the picture.
            width: its width; an image that meanwhile has another number of pixels is not taken.
            height: its height.
        """
        if isinstance(picture, np.ndarray):
            if picture.strides[1:] != (_RGB_BYTES, 1):
                picture = np.ascontiguousarray(picture)
            return _address(picture), picture.strides[0], _RGB_BYTES, picture
        if picture.mode != "RGB" or not _exports_pixels():
            return None
        try:
            capsules = picture.__arrow_c_array__()  # holds the image's memory while it lives
        except ValueError:  # above 16 MiB Pillow stores an image in several blocks
            return None
        address = self._arrow_pixels(_capsule_address(capsules[1], b"arrow_array"), width * height)
        return None if address is None else (address, width * 4, 4, capsules)


@functools.cache
def load_kernel() -> Kernel | str:
    """Return the kernel, or the reason why Pillow resizes instead.

    The first call compares the kernel with the installed Pillow on some images, which takes a few milliseconds.
    """
    try:
        return checked_kernel(kernel_path())
    except KernelUnavailableError as error:
        return str(error)


def checked_kernel(path: Path) -> Kernel:
    """Return the kernel of a library whose results equal the installed Pillow's.

    Raises:
        KernelUnavailableError: it cannot be loaded, or its results differ.
    """
    order = pass_order()
    if order == "unknown":
        raise KernelUnavailableError(f"the installed Pillow {describe_pillow()} resizes in another way")
    kernel = Kernel(path, order)
    for size, resized in _PROBES:
        pixels = noise(*size)
        image = Image.fromarray(pixels)
        for resample in _FILTERS:
            expected = np.asarray(image.resize(resized, resample)).transpose(2, 0, 1)
            for source in (image, pixels):
                found = np.zeros(expected.shape, np.uint8)
                taken = kernel.write(source, Crop(resized, 0, 0), resample, found)
                if taken and not np.array_equal(found, expected):
                    raise KernelUnavailableError(
                        f"its results differ from those of the installed Pillow {describe_pillow()}"
                    )
    return kernel


def describe_kernel() -> str:
    """Return what resizes RGB images here, and the order of Pillow's passes, in one line."""
    kernel = load_kernel()
    if isinstance(kernel, Kernel):
        return f"compiled kernel ({kernel.variants[kernel.variant]}), pixels of Pillow {describe_pillow()}"
    return f"Pillow {describe_pillow()}, without the compiled kernel"


@functools.cache
def _exports_pixels() -> bool:
    """Return whether Pillow gives access to its pixels as an Arrow array (11.2 and newer), without gaps between rows."""
    return hasattr(Image.Image, "__arrow_c_array__") and Image.core.get_alignment() == 1  # type: ignore[attr-defined]


def _address(array: npt.NDArray[np.float32] | npt.NDArray[np.uint8]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _capsule_address(capsule: object, name: bytes) -> int:
    address: int = _get_pointer()(capsule, name)
    return address


@functools.cache
def _get_pointer() -> ctypes._NamedFuncPointer:
    function = ctypes.pythonapi.PyCapsule_GetPointer
    function.restype = ctypes.c_void_p
    function.argtypes = (ctypes.py_object, ctypes.c_char_p)
    return function


def _declare_resize(library: ctypes.CDLL) -> ctypes._NamedFuncPointer:
    pointer, number, wide = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    function = library.clipmlu_resize
    function.restype = number
    function.argtypes = (pointer, number, number, wide, *[number] * 10, pointer, pointer, wide, wide, wide)
    return function
