"""Preprocessing against two references: CLIP's own golden tensors and open_clip's transform."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipmlu.data import preprocess
from clipmlu.data.images import load_image
from clipmlu.data.picture import picture_size
from clipmlu.data.preprocess import Preprocessor, spec_from_open_clip
from clipmlu.errors import InputError
from clipmlu.specs import PreprocessSpec

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
MODES = [
    "1",
    "L",
    "P",
    "LA",
    "PA",
    "La",
    "RGB",
    "RGBA",
    "RGBX",
    "RGBa",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "I;16",
]
MODES += ["I;16L", "I;16B", "P+bytes", "P+index", "P+rgba", "L+index", "RGB+colour", "1+index"]
SIZES = [
    (40, 30),
    (30, 40),
    (33, 33),
    (32, 32),
    (32, 48),
    (1, 1),
    (1, 37),
    (41, 1),
    (5, 9),
    (31, 32),
    (97, 13),
    (13, 99),
]
SIZES += [(24, 40), (40, 24), (300, 7), (3, 200), (63, 65), (64, 64), (31, 47), (23, 39), (250, 251)]
TARGETS = [(32, 32), (31, 31), (24, 40), (40, 24), (7, 64)]


def spec(size: tuple[int, int] = (32, 32), **fields: object) -> PreprocessSpec:
    return PreprocessSpec(height=size[0], width=size[1], mean=MEAN, std=STD, **fields)  # type: ignore[arg-type]


def make_image(mode: str, size: tuple[int, int]) -> Image.Image:
    """A seeded image of any mode; ``+x`` names a kind of transparency in its info."""
    rng = np.random.default_rng(size[0] * 1000 + size[1])
    width, height = size
    base, _, transparency = mode.partition("+")
    rgb = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    alpha = Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8))
    if base == "F":
        return Image.fromarray((rng.random((height, width)) * 400 - 50).astype(np.float32))
    if base == "I":
        return Image.fromarray(rng.integers(-300, 70000, (height, width), dtype=np.int32))
    if base.startswith("I;16"):
        return Image.frombytes(base, size, rng.integers(0, 600, (height, width)).astype("<u2").tobytes())
    if base in ("RGBa", "RGBX", "La", "RGBA", "LA"):
        raw = rng.integers(0, 256, (height, width, 2 if base.upper() == "LA" else 4), dtype=np.uint8)
        return Image.frombytes(base, size, raw.tobytes())
    if base in ("P", "PA"):
        image = rgb.quantize(64)
        if base == "PA":
            return Image.merge("PA", (image, alpha))
        if transparency == "rgba":
            image.putpalette(rng.integers(0, 256, 64 * 4, dtype=np.uint8).tobytes(), "RGBA")
        elif transparency:
            image.info["transparency"] = bytes(range(64)) if transparency == "bytes" else 7
        return image
    image = rgb.convert("RGB").convert(base)
    if transparency:
        image.info["transparency"] = (1, 2, 3) if transparency == "colour" else 1
    return image


def gradient(size: tuple[int, int]) -> Image.Image:
    rows, columns = np.mgrid[: size[1], : size[0]]
    return Image.fromarray(np.stack([rows * 3, columns * 5, rows + columns], axis=2).astype(np.uint8))


@pytest.fixture(scope="session")
def open_clip_transform() -> Callable[..., Callable[[Image.Image], object]]:
    pytest.importorskip("open_clip", reason="needs the export extra", exc_type=ImportError)
    from open_clip.transform import PreprocessCfg, image_transform_v2

    return lambda **config: image_transform_v2(PreprocessCfg(**config), is_train=False)


def reference_result(transform: Callable[[Image.Image], object], image: Image.Image) -> np.ndarray | None:
    """What the reference makes of the image, None where it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # palette images with transparency
        try:
            return transform(image).numpy()  # type: ignore[attr-defined]
        except Exception:
            return None


def assert_equal_or_both_refuse(
    transform: Callable[[Image.Image], object], preprocess: Preprocessor, image: Image.Image, label: object
) -> bool:
    expected = reference_result(transform, image.copy())
    if expected is None:
        with pytest.raises(InputError, match="Cannot preprocess"):
            preprocess(image)
        return False
    np.testing.assert_array_equal(preprocess(image), expected, err_msg=str(label), strict=True)
    return True


@pytest.mark.data
def test_golden_clip_tensors_are_met_exactly(data_dir: Path) -> None:
    folder = data_dir / "clip-golden"
    if not folder.is_dir():
        pytest.skip(f"no 'clip-golden' in '{data_dir}' (CLIPMLU_TEST_DATA)")
    names = json.loads((folder / "names.json").read_text())
    expected = np.load(folder / "tensors_f32.npy")
    images = [load_image(next((folder / "images").glob(f"{name}.*"))) for name in names]
    result = Preprocessor(spec((224, 224))).batch(images)
    assert result.shape == expected.shape == (7, 3, 224, 224)
    assert float(np.abs(result - expected).max()) == 0.0


@pytest.mark.torch
@pytest.mark.parametrize(
    ("interpolation", "resize_mode"),
    [
        ("bicubic", "shortest"),
        ("bilinear", "squash"),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in (
                ("bicubic", "longest"),
                ("bicubic", "squash"),
                ("bilinear", "shortest"),
                ("bilinear", "longest"),
            )
        ),
    ],
)
def test_every_mode_and_size_equals_open_clip(
    resize_mode: str, interpolation: str, open_clip_transform: Callable[..., Callable[[Image.Image], object]]
) -> None:
    config = {"resize_mode": resize_mode, "interpolation": interpolation, "fill_color": 77, "mean": MEAN, "std": STD}
    compared = set()
    sizes = SIZES if (interpolation, resize_mode) == ("bicubic", "shortest") else SIZES[::4]
    for index, target in enumerate(TARGETS):
        transform = open_clip_transform(size=target, **config)
        preprocess = Preprocessor(spec_from_open_clip({"size": target, **config}))
        for mode in MODES:
            for size in sizes if index == 0 else sizes[index % 7 :: 7]:
                label = (target, mode, size)
                if assert_equal_or_both_refuse(transform, preprocess, make_image(mode, size), label):
                    compared.add(mode)
    assert compared >= {"1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "P+bytes", "P+index"}


@pytest.mark.torch
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
def test_rounding_equals_open_clip_for_many_odd_sizes(
    resize_mode: str, open_clip_transform: Callable[..., Callable[[Image.Image], object]]
) -> None:
    rng = np.random.default_rng(7)
    for target in ((8, 8), (9, 9), (5, 11), (12, 7), (10, 6)):
        config = {"size": target, "resize_mode": resize_mode, "fill_color": 255, "mean": MEAN, "std": STD}
        transform = open_clip_transform(**config)
        preprocess = Preprocessor(spec_from_open_clip(config))
        for size in rng.integers(1, 70, (120, 2)).tolist():
            assert_equal_or_both_refuse(transform, preprocess, gradient((size[0], size[1])), (target, size))


@pytest.mark.torch
def test_realistic_sizes_equal_open_clip(open_clip_transform: Callable[..., Callable[[Image.Image], object]]) -> None:
    for target in (224, 336):
        transform = open_clip_transform(size=target)
        preprocess = Preprocessor(spec_from_open_clip({"size": target}))
        for size in ((640, 480), (375, 500), (1023, 767), (224, 224), (32, 32), (2000, 11), (1, 500)):
            assert assert_equal_or_both_refuse(transform, preprocess, make_image("RGB", size), (target, size))


@pytest.mark.torch
def test_other_means_and_deviations_equal_open_clip_on_all_256_levels(
    open_clip_transform: Callable[..., Callable[[Image.Image], object]],
) -> None:
    levels = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    rng = np.random.default_rng(3)
    statistics = [((0.5,) * 3, (0.5,) * 3), ((0.0,) * 3, (1.0,) * 3), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    statistics += [(tuple(rng.random(3).tolist()), tuple((rng.random(3) + 0.01).tolist())) for _ in range(200)]
    for mean, std in statistics:
        config = {"size": 16, "mean": mean, "std": std}
        expected = reference_result(open_clip_transform(**config), levels)
        np.testing.assert_array_equal(Preprocessor(spec_from_open_clip(config))(levels), expected, strict=True)


@pytest.mark.torch
def test_spec_from_open_clip_takes_what_a_model_carries() -> None:
    open_clip = pytest.importorskip("open_clip", reason="needs the export extra", exc_type=ImportError)
    from dataclasses import asdict

    from open_clip.transform import PreprocessCfg

    assert open_clip is not None
    assert spec_from_open_clip(asdict(PreprocessCfg())) == spec((224, 224))
    config = PreprocessCfg(size=(384, 128), interpolation="random", resize_mode="longest", fill_color=3)
    assert spec_from_open_clip(asdict(config)) == spec((384, 128), resize_mode="longest", fill_color=3)


def test_spec_from_open_clip_fills_in_open_clips_defaults() -> None:
    assert spec_from_open_clip({}) == spec((224, 224))
    assert spec_from_open_clip({"size": [64, 32], "mean": 0.5, "std": None}) == PreprocessSpec(
        height=64, width=32, mean=(0.5,) * 3, std=STD
    )


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"mode": "L"}, "mode 'L' is not supported"),
        ({"size": (1, 2, 3)}, r"int or \(height, width\)"),
        ({"size": "224"}, "not supported"),
        ({"size": 0}, "not supported"),
        ({"interpolation": "lanczos"}, "lanczos"),
        ({"resize_mode": "crop"}, "crop"),
        ({"mean": (0.5, 0.5)}, "not supported"),
        ({"fill_color": 256}, "not supported"),
        ({"fill_color": (1, 2, 3)}, "not supported"),
        ({"augment": True}, r"Unknown preprocessing entries \['augment'\]"),
    ],
)
def test_spec_from_open_clip_refuses_what_it_cannot_do(config: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        spec_from_open_clip(config)


def test_zero_deviation_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"standard deviation is \[1\.0, 0\.0, 1\.0\]; expected numbers between 1e-06 and 1e\+06"
    ):
        Preprocessor(PreprocessSpec(height=8, width=8, mean=MEAN, std=(1.0, 0.0, 1.0)))


def test_batch_fills_the_array_it_is_given() -> None:
    preprocess = Preprocessor(spec((16, 24), resize_mode="longest"))
    images = [gradient((40, 30)), make_image("L", (9, 9)), make_image("P+bytes", (30, 31))]
    store = np.full((5, 3, 16, 24), np.nan, dtype=np.float32)
    result = preprocess.batch(images, store[1:4])
    assert np.shares_memory(result, store)
    np.testing.assert_array_equal(result, preprocess.batch(images))
    np.testing.assert_array_equal(result, np.stack([preprocess(image) for image in images]))
    assert np.isnan(store[0]).all()
    assert np.isnan(store[4]).all()


def test_empty_batch_has_no_rows() -> None:
    assert Preprocessor(spec()).batch([]).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("out", [np.empty((1, 3, 32, 32), np.float32), np.empty((2, 3, 32, 32), np.float64)])
def test_batch_refuses_an_array_that_does_not_fit(out: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"out must be float32 of shape \(2, 3, 32, 32\)"):
        Preprocessor(spec()).batch([gradient((8, 8))] * 2, out)


@pytest.mark.parametrize("shape", [(3, 10, 10), (3, 40, 40), (32, 32, 3)])
def test_place_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"out must be a writeable array .* and shape \(3, 32, 32\), not an array"):
        Preprocessor(spec()).write(gradient((40, 30)), np.zeros(shape, np.float32))


def test_place_of_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match="not an array of float64"):
        Preprocessor(spec()).write(gradient((40, 30)), np.zeros((3, 32, 32)))  # type: ignore[arg-type]


def test_read_only_array_is_not_written() -> None:
    out = np.zeros((1, 3, 32, 32), np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="not a read-only array"):
        Preprocessor(spec()).batch([gradient((40, 30))], out)
    assert not out.any()


@pytest.mark.parametrize("resize_mode", ["shortest", "longest"])
def test_batch_fills_the_field_of_packed_records(resize_mode: str) -> None:
    preprocess = Preprocessor(spec(resize_mode=resize_mode))
    records = np.zeros((1, 3, 32, 32), [("other", np.uint8), ("value", np.float32)])  # values are five bytes apart
    preprocess.batch([gradient((40, 30))], records["value"])
    np.testing.assert_array_equal(records["value"][0], preprocess(gradient((40, 30))))
    assert not records["other"].any()


def open_damaged(kind: str) -> Image.Image:
    stream = io.BytesIO()
    make_image("RGB", (90, 70)).save(stream, "PNG")
    content, middle = stream.getvalue(), stream.tell() // 2
    return Image.open(io.BytesIO(content[:middle] + (b"" if kind == "cut" else bytes(40) + content[middle + 40 :])))


@pytest.mark.parametrize("kind", ["cut", "overwritten"])
def test_damaged_image_that_is_still_in_its_file_is_refused(kind: str) -> None:
    preprocess = Preprocessor(spec())
    for use in (preprocess, preprocess.pixels):
        with pytest.raises(InputError, match="Cannot preprocess an image of mode RGB and size 90x70: "):
            use(open_damaged(kind))


def test_pixels_are_what_is_normalised() -> None:
    preprocess = Preprocessor(spec())
    pixels = preprocess.pixels(gradient((50, 41)))
    assert (pixels.dtype, pixels.shape) == (np.uint8, (32, 32, 3))
    scaled = pixels.astype(np.float32) / np.float32(255)
    expected = (scaled - np.float32(MEAN)) / np.float32(STD)
    np.testing.assert_array_equal(preprocess(gradient((50, 41))), expected.transpose(2, 0, 1))


def test_image_is_not_changed() -> None:
    for mode in ("RGB", "P+bytes", "P+index", "RGBA"):
        image = make_image(mode, (32, 32))
        before, info = image.copy(), dict(image.info)
        Preprocessor(spec())(image)
        assert (image, image.info) == (before, info)


def test_palette_transparency_raises_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Preprocessor(spec())(make_image("P+bytes", (32, 32)))


def test_sliver_that_would_need_gigabytes_is_refused() -> None:
    with pytest.raises(InputError, match=r"size 1x100000: scaled to 224x22400000 .* less extreme aspect ratio"):
        Preprocessor(spec((224, 224)))(Image.new("L", (1, 100_000)))


def test_sliver_that_vanishes_is_refused() -> None:
    with pytest.raises(InputError, match="less than a pixel thin"):
        Preprocessor(spec(resize_mode="longest"))(Image.new("RGB", (1, 1000)))


def test_image_without_pixels_is_refused() -> None:
    with pytest.raises(InputError, match=r"Image 1 of the batch: .*size 0x5: it has no pixels"):
        Preprocessor(spec()).batch([Image.new("RGB", (5, 5)), Image.new("RGB", (0, 5))])


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("cat.jpg", "not 'str'"),
        (np.zeros((5, 5, 3), np.float32), r"not an array of float32 and shape \(5, 5, 3\)"),
        (np.zeros((5, 5, 4), np.uint8), r"not an array of uint8 and shape \(5, 5, 4\)"),
        (np.zeros((5, 5), np.uint8), r"not an array of uint8 and shape \(5, 5\)"),
    ],
)
def test_what_is_no_decoded_image_is_refused(source: object, words: str) -> None:
    with pytest.raises(InputError, match=r"Expected a Pillow image or a uint8 array of shape .*" + words):
        Preprocessor(spec())(source)  # type: ignore[arg-type]


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(1, 1), (50, 41), (32, 32), (31, 90), (300, 200)])
def test_array_of_pixels_counts_as_the_image_with_these_pixels(resize_mode: str, size: tuple[int, int]) -> None:
    preprocess = Preprocessor(spec((24, 32), resize_mode=resize_mode))
    image = make_image("RGB", size)
    array = np.asarray(image)
    expected = preprocess(image)
    np.testing.assert_array_equal(preprocess(array), expected)
    np.testing.assert_array_equal(preprocess(np.asfortranarray(array)), expected)
    np.testing.assert_array_equal(preprocess(np.repeat(array, 2, axis=1)[:, ::2]), expected)


def test_array_without_pixels_is_refused() -> None:
    with pytest.raises(InputError, match="size 0x5: it has no pixels"):
        Preprocessor(spec())(np.zeros((5, 0, 3), np.uint8))


def _photo_like(width: int, height: int) -> Image.Image:
    """Smooth colours with some detail."""
    noise = np.random.default_rng(5).integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def test_fast_preprocessing_decodes_less_and_stays_near(tmp_path: Path) -> None:
    _photo_like(640, 480).save(tmp_path / "photo.jpg", quality=95)
    exact, fast = Preprocessor(spec()), Preprocessor(spec(), fast=True)
    # An eighth of each side is the smallest of libjpeg's scales that is at least 48 pixels, 1.5 times the size.
    assert picture_size(exact.decode(tmp_path / "photo.jpg")) == (640, 480)
    assert picture_size(fast.decode(tmp_path / "photo.jpg")) == (80, 60)
    true, near = (each.pixels(each.decode(tmp_path / "photo.jpg")).astype(np.int16) for each in (exact, fast))
    assert not np.array_equal(true, near)
    assert np.abs(true - near).mean() < 2


@pytest.mark.parametrize(("size", "suffix"), [((640, 480), "png"), ((60, 60), "jpg")])
def test_fast_preprocessing_decodes_all_where_there_is_nothing_to_save(
    size: tuple[int, int], suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"photo.{suffix}"
    _photo_like(*size).save(path)
    assert picture_size(Preprocessor(spec(), fast=True).decode(path)) == size


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_image_is_written_into_its_place_of_a_batch(dtype: type) -> None:
    preprocess = Preprocessor(spec((24, 40)))
    image = _photo_like(97, 61)
    batch = np.zeros((3, 3, 24, 40), dtype)
    preprocess.write(image, batch[1])
    pixels = preprocess.pixels(image).transpose(2, 0, 1)
    assert not batch[0].any()
    assert not batch[2].any()
    if dtype is np.uint8:
        np.testing.assert_array_equal(batch[1], pixels)
    else:
        expected = (pixels / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
        np.testing.assert_allclose(batch[1], expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("size", [(64, 48), (97, 31), (17, 200), (5, 4), (300, 1000)])
def test_large_images_with_alpha_are_shrunk_in_strips_to_the_same_pixels(mode: str, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 4), np.uint8)
    image = Image.fromarray(pixels, "RGBA").convert(mode)
    wanted = (13, 9)
    expected = image.resize(wanted, Image.Resampling.BICUBIC)
    found = preprocess._resize(image, wanted, Image.Resampling.BICUBIC, None, large=1, strip=300)
    assert found.mode == expected.mode
    assert found.tobytes() == expected.tobytes()


def test_pixel_limit_of_a_preprocessor_is_its_own(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "photo.png")
    assert Preprocessor(spec(), max_pixels=600).decode(tmp_path / "photo.png").size == (30, 20)
    with pytest.raises(InputError, match="600 pixels, more than the limit of 599"):
        Preprocessor(spec(), max_pixels=599).decode(tmp_path / "photo.png")
    assert Preprocessor(spec(), max_pixels=599).decode(tmp_path / "photo.png", max_pixels=600).size == (30, 20)
