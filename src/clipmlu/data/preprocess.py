"""Preprocessing of images to input tensors with Pillow and NumPy, bit-identical to open_clip's evaluation transform.

The reference is ``open_clip.transform.image_transform(is_train=False)`` of open_clip 3.3 on torchvision's PIL
functions:
resize in the image's own mode, crop or pad the centre, convert to RGB, scale to 0..1, normalise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from clipmlu.data.images import DEFAULT_MAX_PIXELS, STRIP_PIXELS, ImageSource, cut_strips, load_picture
from clipmlu.data.picture import Picture, Size, check_picture, picture_size, pillow_image
from clipmlu.data.resize.geometry import centre, resized_size
from clipmlu.data.resize.kernel import Crop, load_kernel
from clipmlu.errors import InputError
from clipmlu.specs import PreprocessSpec

# The fast path shrinks to at least this multiple of the target size, and the exact filter does the rest. With 1 for JPEGs
# a model trained on CIFAR-100 gave 4 to 14 % of enlarged images another class, with 1.5 it gave 2 to 4 %.
_DECODED_MARGIN = 1.5
_REDUCING_GAP = 2.0
_PREMULTIPLIED = {"LA": "La", "RGBA": "RGBa"}
_LARGE_PIXELS = 1 << 24
_FULL_SCALE = np.float32(255)
_RESULT_TYPES = (np.dtype(np.float32), np.dtype(np.uint8))
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of OpenAI's models: open_clip.constants.OPENAI_DATASET_MEAN and OPENAI_DATASET_STD, its defaults."""

_OPEN_CLIP_KEYS = frozenset({"size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"})


class Preprocessor:
    """Converts decoded images to normalised input tensors as a ``PreprocessSpec`` defines.

    Instances have no mutable state, so threads may share one.

    Args:
        spec: size, resize mode, filter, mean and standard deviation.
        fast: decode JPEGs at a reduced scale, and without the compiled kernel shrink large images in two steps; this is
            faster, but gives other pixels. If False, the result is bit-identical to the reference.
        max_pixels: largest width x height for ``decode``.

    Raises:
        ValueError: a standard deviation is zero in float32.
    """

    def __init__(self, spec: PreprocessSpec, *, fast: bool = False, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
        self.spec = spec
        self.fast = fast
        self.max_pixels = max_pixels
        self._mean = np.asarray(spec.mean, dtype=np.float32)
        self._std = np.asarray(spec.std, dtype=np.float32)
        if not self._std.all():
            raise ValueError(f"The standard deviation must not be zero, but std is {spec.std}.")
        levels = np.arange(256, dtype=np.uint8)
        self._table = np.empty((3, 256), np.float32)
        for channel in range(3):
            self._normalise_channel(levels, channel, self._table[channel])
        load_kernel()  # here, not in several threads at once; instances do not hold it, so that they can be pickled

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one input tensor: (3, height, width)."""
        return (3, self.spec.height, self.spec.width)

    def __call__(self, image: Picture) -> npt.NDArray[np.float32]:
        """Preprocess one image.

        Args:
            image: a Pillow image of any mode, or a uint8 array of shape (H, W, 3), RGB in 0..255, with the result of
                the Pillow image of mode RGB that has these pixels; any size of at least one pixel; not changed.

        Returns:
            float32, shape (3, height, width), normalised; owned by the caller.

        Raises:
            InputError: Pillow cannot resize, pad or convert the image (open_clip fails on it as well), or its aspect
                ratio asks for a resized image of more than ``MAX_RESIZED_PIXELS``.
        """
        out = np.empty(self.shape, np.float32)
        self.write(image, out)
        return out

    def batch(self, images: Sequence[Picture], out: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
        """Preprocess several images into one array.

        Args:
            images: N images, N may be 0.
            out: float32, shape (N, 3, height, width), written in place and returned; None allocates it.

        Returns:
            float32, shape (N, 3, height, width), normalised.

        Raises:
            InputError: as for one image; the message gives the image's index. ``out`` is then partly written.
            ValueError: ``out`` has another shape or dtype, or is read-only.
        """
        shape = (len(images), *self.shape)
        if out is None:
            out = np.empty(shape, dtype=np.float32)
        elif out.shape != shape or out.dtype != np.float32:
            raise ValueError(f"out must be float32 of shape {shape}, not {out.dtype} of shape {out.shape}.")
        for index, image in enumerate(images):
            try:
                self.write(image, out[index])
            except InputError as error:
                raise InputError(f"Image {index} of the batch: {error}") from error
        return out

    def decode(
        self,
        source: ImageSource,
        *,
        name: str | None = None,
        max_pixels: int | None = None,
        reserve: Callable[[int], None] | None = None,
        on_size: Callable[[Size], None] | None = None,
    ) -> Picture:
        """Decode an image for this preprocessor; see ``load_picture``.

        Args:
            source: see ``load_image``.
            name: name of the image in messages.
            max_pixels: largest width x height; None for the preprocessor's own limit.
            reserve: called with the number of pixels before they are decoded.
            on_size: called with the size of an image file.

        Raises:
            InputError: the source cannot be read as an image.
        """
        at_least = None
        if self.fast:
            rows, columns = self.spec.resized
            at_least = (math.ceil(_DECODED_MARGIN * columns), math.ceil(_DECODED_MARGIN * rows))
        limit = self.max_pixels if max_pixels is None else max_pixels
        return load_picture(source, max_pixels=limit, name=name, at_least=at_least, reserve=reserve, on_size=on_size)

    def pixels(self, image: Picture) -> npt.NDArray[np.uint8]:
        """Resize, crop and convert one image to RGB, without normalising it.

        Args:
            image: as for calling the preprocessor.

        Returns:
            uint8, shape (height, width, 3), RGB in 0..255, read-only: it may be Pillow's own buffer.

        Raises:
            InputError: as for calling the preprocessor, or ``image`` is not a ``Picture``.
        """
        image = self._loaded(image)
        size = resized_size(picture_size(image), self.spec)
        out = np.empty((self.spec.height, self.spec.width, 3), np.uint8)
        if self._write_with_kernel(image, size, out.transpose(2, 0, 1)):
            return out
        return self._pixels_of_pillow(image, size)

    def _loaded(self, image: Picture) -> Picture:
        """Return the image with its pixels in memory, in RGB if the conversion comes before the resize."""
        _load(image)
        if self.spec.to_rgb == "last" or not isinstance(image, Image.Image):
            return image
        try:
            return _on_white(image) if self.spec.to_rgb == "white" else _to_rgb(image)
        except Exception as error:  # as for the resize
            raise _refusal(image, error) from error

    def _pixels_of_pillow(self, image: Picture, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        source = pillow_image(image)
        try:
            return np.asarray(_to_rgb(self._fit(source, size)))
        except Exception as error:  # Pillow raises ValueError, OSError, TypeError or KeyError for unsupported modes
            raise _refusal(source, error) from error

    def normalise(
        self, pixels: npt.NDArray[np.uint8], out: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """Normalise the result of ``pixels`` to an input tensor.

        Args:
            pixels: uint8, shape (height, width, 3), RGB in 0..255.
            out: float32, shape (3, height, width), written in place and returned; None allocates it.
        """
        if out is None:
            out = np.empty(self.shape, dtype=np.float32)
        for channel in range(3):
            self._normalise_channel(pixels[:, :, channel], channel, out[channel])
        return out

    def _normalise_channel(self, values: npt.NDArray[np.uint8], channel: int, out: npt.NDArray[np.float32]) -> None:
        """Apply the reference's float32 operations of ToTensor and Normalize, each correctly rounded (IEEE 754), in their order.

        They release the interpreter's lock, which a lookup in a table of 256 values does not.
        """
        np.copyto(out, values)
        np.divide(out, _FULL_SCALE, out=out)
        np.subtract(out, self._mean[channel], out=out)
        np.divide(out, self._std[channel], out=out)

    def normalise_batch(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Normalise uint8 pixels of shape (N, 3, height, width), as written by ``write``, to float32 of the same shape."""
        out = np.empty(pixels.shape, np.float32)
        for planes, place in zip(pixels, out, strict=True):
            self.normalise(planes.transpose(1, 2, 0), place)
        return out

    def write(self, image: Picture, out: npt.NDArray[np.float32] | npt.NDArray[np.uint8]) -> None:
        """Preprocess one image into its place in a batch.

        Args:
            image: as for calling the preprocessor.
            out: shape (3, height, width): float32 for a graph with normalised input, uint8 for one that normalises
                pixels
                itself. Writeable.

        Raises:
            InputError: as for calling the preprocessor.
            ValueError: ``out`` is another array.
        """
        _check_result(out, self.shape)
        image = self._loaded(image)
        size = resized_size(picture_size(image), self.spec)
        if self._write_with_kernel(image, size, out):
            return
        pixels = self._pixels_of_pillow(image, size)
        if out.dtype == np.uint8:
            np.copyto(out, pixels.transpose(2, 0, 1))
        else:
            self.normalise(pixels, out.view(np.float32))

    def _write_with_kernel(
        self, image: Picture, size: tuple[int, int], out: npt.NDArray[np.float32] | npt.NDArray[np.uint8]
    ) -> bool:
        """Preprocess an image with the compiled kernel, and return whether it took the image."""
        kernel = load_kernel()
        if isinstance(kernel, str):
            return False
        left, column, width = centre(size[0], self.spec.width, self.spec.crop_rounding)
        top, row, height = centre(size[1], self.spec.height, self.spec.crop_rounding)
        table = None if out.dtype == np.uint8 else self._table
        if (width, height) != (self.spec.width, self.spec.height):
            fill = _fill(self.spec)
            out[:] = fill if table is None else table[:, fill].reshape(3, 1, 1)
            out = out[:, row : row + height, column : column + width]
        return kernel.write(image, Crop(size, left, top), _filter(self.spec), out, table)

    def _fit(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        spec = self.spec
        if size != image.size:
            gap = _REDUCING_GAP if self.fast else None
            image = _resize(image, size, _filter(spec), gap)
        return _crop_centre(_pad_centre(image, spec, _fill(spec)), spec)


def spec_from_open_clip(config: Mapping[str, Any]) -> PreprocessSpec:
    """Convert open_clip's preprocessing configuration to a ``PreprocessSpec``.

    Args:
        config: ``model.visual.preprocess_cfg`` (open_clip's ``PreprocessCfg`` as a dict): size as an int or (height,
            width), mode, mean, std, interpolation, resize_mode, fill_color. Missing and None entries get open_clip's
            defaults; interpolation ``random`` means bicubic, as in open_clip's evaluation.

    Raises:
        ValueError: an entry is unknown, or open_clip's evaluation transform does not support its value.
    """
    unknown = sorted(set(config) - _OPEN_CLIP_KEYS)
    if unknown:
        raise ValueError(f"Unknown preprocessing entries {unknown}; expected {sorted(_OPEN_CLIP_KEYS)}.")
    given = {key: value for key, value in config.items() if value is not None}
    if given.get("mode", "RGB") != "RGB":
        raise ValueError(f"Preprocessing mode '{given['mode']}' is not supported; expected 'RGB'.")
    height, width = _pair(given.get("size", 224))
    interpolation = given.get("interpolation") or "bicubic"
    fields = {
        "height": height,
        "width": width,
        "mean": _triple(given.get("mean") or OPENAI_MEAN),
        "std": _triple(given.get("std") or OPENAI_STD),
        "resize_mode": given.get("resize_mode") or "shortest",
        "interpolation": "bicubic" if interpolation == "random" else interpolation,
        "fill_color": given.get("fill_color", 0),
    }
    try:
        return msgspec.convert(fields, PreprocessSpec)
    except msgspec.ValidationError as error:
        raise ValueError(f"Preprocessing that is not supported: {error}. Given: {dict(config)}.") from error


def _pair(size: object) -> tuple[object, object]:
    if isinstance(size, Sequence) and not isinstance(size, str):
        if len(size) != 2:
            raise ValueError(f"The preprocessing size must be an int or (height, width), not {size!r}.")
        return size[0], size[1]
    return size, size


def _triple(value: object) -> tuple[object, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,) * 3


def _resize(
    image: Image.Image,
    size: tuple[int, int],
    resample: Image.Resampling,
    gap: float | None,
    *,
    large: int = _LARGE_PIXELS,
    strip: int = STRIP_PIXELS,
) -> Image.Image:
    """Resize like ``Image.resize``, with less memory for large images with an alpha channel.

    Pillow resizes a copy of the image whose colours are multiplied by alpha, each channel separately. This function
    multiplies and resizes one channel at a time, which needs a quarter of the memory.

    Args:
        image: the image.
        size: width and height of the result.
        resample: the filter.
        gap: Pillow's ``reducing_gap`` for images that are not large.
        large: number of pixels from which on an image is large.
        strip: number of pixels that are multiplied at a time.
    """
    premultiplied = _PREMULTIPLIED.get(image.mode)
    if premultiplied is None or image.width * image.height < large:
        return image.resize(size, resample, reducing_gap=gap)
    channels = []
    for band in range(len(image.getbands())):
        channel = Image.new("L", image.size)
        top = 0
        for part in cut_strips(image, strip):
            channel.paste(part.convert(premultiplied).getchannel(band), (0, top))
            top += part.height
        channels.append(channel.resize(size, resample))
        del channel  # free it before the next channel is created
    return Image.merge(premultiplied, channels).convert(image.mode)


def _load(image: Picture) -> None:
    """Refuse what is not a ``Picture``, and load a Pillow image that is still in its file.

    Loading it twice would not do: Pillow takes an image whose decoder failed once for a loaded one.
    """
    check_picture(image)
    if isinstance(image, Image.Image):
        try:
            image.load()
        except Exception as error:
            raise _refusal(image, error) from error


def _check_result(out: npt.NDArray[Any], shape: tuple[int, int, int]) -> None:
    """Refuse an array that the kernel must not write to: it gets an address only."""
    if out.shape != shape or out.dtype not in _RESULT_TYPES or not out.flags.writeable:
        kind = "an array" if out.flags.writeable else "a read-only array"
        raise ValueError(
            f"out must be a writeable array of float32 or uint8 and shape {shape}, not {kind} of {out.dtype} and shape "
            f"{out.shape}."
        )


def _refusal(image: Image.Image, error: Exception) -> InputError:
    return InputError(
        f"Cannot preprocess an image of mode {image.mode} and size {image.width}x{image.height}: {error}. "
        "Convert it to RGB first."
    )


def _fill(spec: PreprocessSpec) -> int:
    return spec.fill_color if spec.resize_mode == "longest" else 0


def _filter(spec: PreprocessSpec) -> Image.Resampling:
    # image_transform passes no filter to ResizeKeepRatio in mode "shortest", so a non-square target is always bicubic.
    if spec.resize_mode == "shortest" and spec.resized[0] != spec.resized[1]:
        return Image.Resampling.BICUBIC
    return _FILTERS[spec.interpolation]


def _pad_centre(image: Image.Image, spec: PreprocessSpec, fill: int) -> Image.Image:
    """Pad to at least the target size; an odd pixel is added right and below (torchvision ``center_crop``)."""
    missing_width = max(spec.width - image.width, 0)
    missing_height = max(spec.height - image.height, 0)
    if not missing_width and not missing_height:
        return image
    border = (missing_width // 2, missing_height // 2, (missing_width + 1) // 2, (missing_height + 1) // 2)
    bands = len(image.getbands())
    padded = ImageOps.expand(image, border, fill if bands == 1 else (fill,) * bands)
    if image.mode == "P":  # as torchvision's _functional_pil.pad: the fill is an index into the unchanged palette
        palette = image.getpalette()
        assert palette is not None, "a palette image has a palette"
        padded.putpalette(palette)
    return padded


def _crop_centre(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    if image.size == (spec.width, spec.height):
        return image
    left, _, _ = centre(image.width, spec.width, spec.crop_rounding)
    top, _, _ = centre(image.height, spec.height, spec.crop_rounding)
    return image.crop((left, top, left + spec.width, top + spec.height))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if isinstance(image.info.get("transparency"), bytes):
        # Pillow warns that converting drops the alpha of each palette entry; the reference drops it too.
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Convert to RGB with a white background, as transformers 5 does (``image_transforms.convert_to_rgb``)."""
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return _to_rgb(image)
    image = image.convert("RGBA")
    background = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(background, image).convert("RGB")
