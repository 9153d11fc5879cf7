"""Forms of images that users have: each gives the embedding of its pixels, computed in NumPy."""

from __future__ import annotations

import collections
import gc
import io
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas
import polars
import pytest
from PIL import Image, ImageSequence

import image_server
import support
from clipmlu.data.datasets import open_dataset
from clipmlu.data.images import load_image
from clipmlu.data.url.options import UrlOptions
from clipmlu.errors import InputError
from clipmlu.model import Model, load

Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def model(compiled_once: Path) -> Iterator[Model]:
    with load(compiled_once) as opened:
        yield opened


def _pixels(seed: int) -> Pixels:
    return np.asarray(support.picture(seed))


def _expected(*seeds: int) -> support.FloatArray:
    return support.embed_images(np.stack([support.preprocess(support.picture(seed)) for seed in seeds]))


def _png(seed: int) -> bytes:
    buffer = io.BytesIO()
    support.picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    for seed in range(3):
        (tmp_path / f"{seed}.png").write_bytes(_png(seed))
    return [str(tmp_path / f"{seed}.png") for seed in range(3)]


class DType:
    """A dtype of torch, whose text has the module's name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __str__(self) -> str:
        return f"torch.{self._name}"


class Tensor:
    """A tensor with torch's methods, whose values can be read only after they were detached and copied to the CPU.

    Source: the errors of ``torch.Tensor.numpy`` for a tensor that needs a gradient or is on a card, torch 2.9.
    """

    def __init__(self, values: npt.NDArray[Any], device: str = "cuda:0", *, attached: bool = True) -> None:
        self._values = values
        self._device, self._attached = device, attached
        self.shape = values.shape
        self.dtype = DType(values.dtype.name)

    def detach(self) -> Tensor:
        return Tensor(self._values, self._device, attached=False)

    def cpu(self) -> Tensor:
        return Tensor(self._values, "cpu", attached=self._attached)

    def numpy(self) -> npt.NDArray[Any]:
        if self._attached:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")
        if self._device != "cpu":
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        return self._values

    def __array__(self, *_arguments: object, **_options: object) -> npt.NDArray[Any]:
        return self.numpy()

    def __iter__(self) -> Iterator[Tensor]:
        return iter(Tensor(each) for each in self._values)


class JaxArray:
    """What NumPy needs of an array of JAX: ``__array__``, with shape and dtype."""

    def __init__(self, values: npt.NDArray[Any]) -> None:
        self._values = values
        self.shape, self.dtype = values.shape, values.dtype

    def __array__(self, dtype: Any = None, copy: Any = None) -> npt.NDArray[Any]:
        return self._values


class DlpackArray:
    """An array that is exchanged through DLPack only."""

    def __init__(self, values: npt.NDArray[Any]) -> None:
        self._values = values
        self.shape, self.dtype = values.shape, values.dtype

    def __dlpack__(self, **options: Any) -> Any:
        return self._values.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._values.__dlpack_device__()


ONE: dict[str, Callable[[str], Any]] = {
    "path as text": lambda path: path,
    "path object": Path,
    "text of NumPy": np.str_,
    "bytes": lambda _path: _png(1),
    "bytearray": lambda _path: bytearray(_png(1)),
    "memoryview": lambda _path: memoryview(_png(1)),
    "file in memory": lambda _path: io.BytesIO(_png(1)),
    "Pillow image": lambda _path: support.picture(1),
    "Pillow image that is not loaded": Image.open,
    "array": lambda _path: _pixels(1),
    "array that is not contiguous": lambda _path: np.moveaxis(np.moveaxis(_pixels(1), -1, 0).copy(), 0, -1),
    "array with alpha": lambda _path: np.dstack([_pixels(1), np.full((support.SIDE, support.SIDE), 255, np.uint8)]),
    "tensor CHW": lambda _path: Tensor(_pixels(1).transpose(2, 0, 1)),
    "tensor HWC": lambda _path: Tensor(_pixels(1)),
    "JAX": lambda _path: JaxArray(_pixels(1)),
    "DLPack": lambda _path: DlpackArray(_pixels(1).copy()),
    "record with bytes": lambda _path: {"bytes": _png(1), "path": None},
    "record with bytes and a path elsewhere": lambda _path: {"bytes": _png(1), "path": "nowhere.png"},
    "record with a path": lambda path: {"bytes": None, "path": path},
}


@pytest.mark.parametrize("form", ONE)
def test_every_form_of_one_image_gives_its_embedding(model: Model, paths: list[str], form: str) -> None:
    image = ONE[form](paths[1])
    single = model.embed_images(image)
    assert single.shape == (support.DIM,)
    np.testing.assert_allclose(single, _expected(1)[0], atol=1e-6)
    np.testing.assert_allclose(model.embed_images([image, paths[0]]), _expected(1, 0), atol=1e-6)
    assert load_image(image).convert("RGB").tobytes() == support.picture(1).tobytes()


def test_an_array_of_one_text_is_one_path(model: Model, paths: list[str]) -> None:
    np.testing.assert_allclose(model.embed_images(np.array(paths[1])), _expected(1)[0], atol=1e-6)


STACK = np.stack([_pixels(seed) for seed in range(3)])

MANY: dict[str, Callable[[list[str]], Any]] = {
    "list": lambda paths: paths,
    "tuple": tuple,
    "iterator": iter,
    "generator": lambda paths: (path for path in paths),
    "keys of a dict": lambda paths: dict.fromkeys(paths).keys(),
    "deque": collections.deque,
    "mixed": lambda paths: [_pixels(0), paths[1], Tensor(_pixels(2).transpose(2, 0, 1))],
    "array": lambda _paths: STACK,
    "array of texts": np.array,
    "array of objects": lambda paths: np.array(list(map(Path, paths)), object),
    "tensor NCHW": lambda _paths: Tensor(STACK.transpose(0, 3, 1, 2)),
    "tensor NHWC": lambda _paths: Tensor(STACK),
    "JAX": lambda _paths: JaxArray(STACK),
    "pandas: paths": pandas.Series,
    "pandas: texts": lambda paths: pandas.Series(paths, dtype="str"),
    "pandas: categories": lambda paths: pandas.Series(paths, dtype="category"),
    "pandas: column with another index": lambda paths: pandas.DataFrame({"a": paths}, index=[7, 3, 5])["a"],
    "pandas: index": pandas.Index,
    "pandas: images": lambda _paths: pandas.Series([support.picture(seed) for seed in range(3)]),
    "pandas: records": lambda _paths: pandas.Series([{"bytes": _png(seed), "path": None} for seed in range(3)]),
    "polars: paths": polars.Series,
    "polars: categories": lambda paths: polars.Series(paths, dtype=polars.Categorical),
    "polars: column": lambda paths: polars.DataFrame({"a": paths})["a"],
    "polars: bytes": lambda _paths: polars.Series([_png(seed) for seed in range(3)]),
    "polars: images": lambda _paths: polars.Series([support.picture(seed) for seed in range(3)], dtype=polars.Object),
    "polars: records": lambda _paths: polars.Series([{"bytes": _png(seed), "path": None} for seed in range(3)]),
}
if hasattr(np.dtypes, "StringDType"):  # since NumPy 2
    MANY["array of texts of any length"] = lambda paths: np.array(paths, np.dtypes.StringDType())


@pytest.mark.parametrize("form", MANY)
def test_every_form_of_many_images_gives_their_embeddings_in_order(model: Model, paths: list[str], form: str) -> None:
    np.testing.assert_allclose(model.embed_images(MANY[form](paths)), _expected(0, 1, 2), atol=1e-6)


@pytest.mark.parametrize("count", [0, 1])
def test_a_batch_of_any_number_is_many(model: Model, count: int) -> None:
    for images in (STACK[:count], Tensor(STACK[:count].transpose(0, 3, 1, 2)), iter(STACK[:count])):
        assert model.embed_images(images).shape == (count, support.DIM)


@pytest.mark.parametrize("shape", [(5, 9), (5, 9, 1), (1, 5, 9)])
def test_grey_tensors_are_grey_images(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 256, (5, 9), np.uint8)
    image = load_image(Tensor(values.reshape(shape)))
    assert image.mode == "L"
    assert image.tobytes() == values.tobytes()


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("first", [True, False])
def test_the_channels_of_a_tensor_are_its_first_or_last_axis(channels: int, first: bool) -> None:
    values = np.random.default_rng(0).integers(0, 256, (5, 9, channels), np.uint8)
    image = load_image(Tensor(np.moveaxis(values, -1, 0) if first else values))
    assert image.size == (9, 5)
    np.testing.assert_array_equal(np.asarray(image), values)


@pytest.mark.parametrize("shape", [(3, 5, 3), (3, 5, 4), (1, 5, 1), (4, 4, 3)])
def test_a_tensor_whose_channels_may_be_two_axes_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"may be the first or the last axis of an image. Give a NumPy array"):
        load_image(Tensor(np.zeros(shape, np.uint8)))


def test_images_of_a_generator_are_taken_as_there_is_space(model: Model) -> None:
    """At no time are many of 300 images alive: a batch is forgotten when its rows are there."""
    alive: set[int] = set()
    most = 0

    def pictures() -> Iterator[Pixels]:
        nonlocal most
        for number in range(300):
            image = np.full((support.SIDE, support.SIDE, 3), number % 256, np.uint8)
            alive.add(number)
            weakref.finalize(image, alive.discard, number)
            most = max(most, len(alive))
            yield image

    gc.collect()
    classifier = model.classifier(["ant", "bee"])
    for call in (model.embed_images, classifier.predict):
        most = 0
        assert len(call(pictures(), workers=1)) == 300  # type: ignore[operator]
        assert most <= 60


def _in_one_array() -> Iterator[Pixels]:
    frame = np.empty((support.SIDE, support.SIDE, 3), np.uint8)
    for seed in range(40):
        frame[:] = _pixels(seed)
        yield frame


def _on_one_canvas() -> Iterator[Image.Image]:
    canvas = Image.new("RGB", (support.SIDE, support.SIDE))
    for seed in range(40):
        canvas.paste(support.picture(seed))
        yield canvas


def _in_one_file() -> Iterator[io.BytesIO]:
    file = io.BytesIO()
    for seed in range(40):
        file.seek(0)
        file.truncate()
        support.picture(seed).save(file, "PNG")
        yield file


def _in_files_closed_after_use() -> Iterator[io.BytesIO]:
    for seed in range(40):
        with io.BytesIO(_png(seed)) as file:
            yield file


def _in_one_bytearray() -> Iterator[bytearray]:
    content = bytearray()
    for seed in range(40):
        content[:] = _png(seed)
        yield content


def _frames() -> Iterator[Image.Image]:
    """What Pillow gives for the frames of a file: one image, which goes on to the next frame."""
    file = io.BytesIO()
    first, *others = (support.picture(seed) for seed in range(40))
    first.save(file, "TIFF", save_all=True, append_images=others)
    return iter(ImageSequence.Iterator(Image.open(file)))


@pytest.mark.parametrize(
    "images",
    [_in_one_array, _on_one_canvas, _in_one_file, _in_files_closed_after_use, _in_one_bytearray, _frames],
    ids=lambda images: images.__name__,
)
def test_an_iterator_may_use_the_memory_of_an_image_for_the_next_one(
    model: Model, images: Callable[[], Iterator[Any]]
) -> None:
    np.testing.assert_allclose(model.embed_images(images(), workers=1), _expected(*range(40)), atol=1e-6)


def test_images_of_an_iterator_that_cannot_be_read_are_reported_at_their_places(model: Model, tmp_path: Path) -> None:
    def files() -> Iterator[Any]:
        for name, content in (("good", _png(0)), ("text", b"no image"), ("other", _png(1))):
            (tmp_path / name).write_bytes(content)
            with (tmp_path / name).open("rb") as file:
                yield file
        yield io.StringIO("text")

    rows, errors = model.embed_images(files(), on_error="skip")
    np.testing.assert_allclose(rows[[0, 2]], _expected(0, 1), atol=1e-6)
    assert list(errors) == [1, 3]
    assert str(tmp_path / "text") in errors[1]
    assert "opened as text" in errors[3]


def test_datasets_and_their_elements_are_images(model: Model) -> None:
    dataset = open_dataset("demo", size=5)
    expected = model.embed_images([dataset.image(index) for index in range(5)])
    np.testing.assert_array_equal(model.embed_images(dataset), expected)
    np.testing.assert_array_equal(model.embed_images(dataset[1:3]), expected[1:3])
    np.testing.assert_array_equal(model.embed_images(dataset[4]), expected[4])
    np.testing.assert_array_equal(model.embed_images([dataset[3], dataset[0]]), expected[[3, 0]])
    found = model.classifier(["ant", "bee"])(dataset[:2])
    assert [each.source for each in found] == [dataset.key(0), dataset.key(1)]


def test_an_error_of_the_generator_itself_is_not_an_image_that_cannot_be_read(model: Model) -> None:
    def pictures() -> Iterator[Pixels]:
        yield _pixels(0)
        raise RuntimeError("the reader of the caller failed")

    with pytest.raises(RuntimeError, match="the reader of the caller failed"):
        model.embed_images(pictures(), on_error="skip")


def _modes() -> list[Image.Image]:
    generator = np.random.default_rng(5)
    rgb = Image.fromarray(generator.integers(0, 256, (11, 13, 3), np.uint8))
    rgba = Image.fromarray(generator.integers(0, 256, (11, 13, 4), np.uint8))
    deep = Image.fromarray(generator.integers(0, 256, (11, 13)).astype(np.uint16))
    found = [rgb.convert(mode) for mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "I", "F", "RGBX")]
    found += [rgba, rgba.convert("LA"), rgba.convert("RGBa"), rgba.convert("PA"), deep]
    return found


@pytest.mark.parametrize("image", _modes(), ids=lambda image: image.mode)
def test_pillow_images_of_any_mode_are_resized_in_their_mode_as_open_clip_does(
    model: Model, image: Image.Image
) -> None:
    side = support.SIDE
    width = int(side * 13 / 11)
    try:
        resized = image.resize((width, side), Image.Resampling.BICUBIC)
    except ValueError as error:
        with pytest.raises(InputError, match=str(error)):
            model.embed_images(image)
        return
    left = round((width - side) / 2)
    cropped = resized.crop((left, 0, left + side, side)).convert("RGB")
    expected = support.embed_images(support.preprocess(cropped)[None])
    np.testing.assert_allclose(model.embed_images(image), expected[0], atol=1e-6)


def test_urls_are_fetched_if_that_is_allowed(model: Model) -> None:
    with image_server.serving() as server:
        server.answers["/1.png"] = image_server.content(_png(1))
        url, missing = server.url("/1.png"), server.url("/none.png")
        limits = UrlOptions(allow_private=True)
        np.testing.assert_allclose(model.embed_images(url, allow_urls=limits), _expected(1)[0], atol=1e-6)
        record = {"bytes": None, "path": url}
        rows, errors = model.embed_images(
            [url, missing, _pixels(0), record], allow_urls=limits, on_error="skip", workers=1
        )
        np.testing.assert_allclose(rows[[0, 2, 3]], _expected(1, 0, 1), atol=1e-6)
        assert list(errors) == [1]
        assert "its server answers 404 Not Found" in errors[1]
        asked = server.asked.total()
        with pytest.raises(InputError, match="its host has no public address"):  # the limits of True
            model.embed_images(url, allow_urls=True)
        with pytest.raises(InputError, match=r"Allow it with --allow-urls \(allow_urls=True in Python\)"):
            model.classifier(["ant", "bee"]).predict([_pixels(0), url])
        assert server.asked.total() == asked


@pytest.mark.torch
def test_tensors_of_torch_give_the_embeddings_of_their_pixels(libraries: None, model: Model) -> None:
    import torch

    batch = torch.from_numpy(STACK)
    chw = batch.permute(0, 3, 1, 2)
    np.testing.assert_allclose(model.embed_images(chw), _expected(0, 1, 2), atol=1e-6)
    np.testing.assert_allclose(model.embed_images(chw.contiguous()), _expected(0, 1, 2), atol=1e-6)
    np.testing.assert_allclose(model.embed_images(batch), _expected(0, 1, 2), atol=1e-6)
    np.testing.assert_allclose(model.embed_images(list(chw)), _expected(0, 1, 2), atol=1e-6)
    np.testing.assert_allclose(model.embed_images(chw[1]), _expected(1)[0], atol=1e-6)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        with pytest.raises(InputError, match=r"of floating-point pixels is not known.*\(tensor \* 255\)"):
            model.embed_images((chw / 255).to(dtype))
    with pytest.raises(InputError, match="Cannot use the tensor of int64"):
        model.embed_images(chw.long())
    with pytest.raises(InputError, match="cannot be converted to NumPy"):
        model.embed_images(chw.to("meta"))
