"""The compiled resize kernel against the installed Pillow itself."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipmlu.data.preprocess import Preprocessor
from clipmlu.data.resize.build import BuildError, build, kernel_path
from clipmlu.data.resize.kernel import Crop, Kernel, KernelUnavailableError, checked_kernel, load_kernel
from clipmlu.data.resize.order import noise
from clipmlu.specs import PreprocessSpec
from conftest import REPOSITORY

FILTERS = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled library: the installed one, or one that is made for the tests."""
    if isinstance(load_kernel(), Kernel):
        return kernel_path()
    try:
        return build(tmp_path_factory.mktemp("kernel") / "kernel.so")
    except BuildError as error:
        pytest.skip(f"the kernel cannot be compiled here: {error}")


@pytest.fixture(scope="session")
def kernel(library: Path) -> Kernel:
    return checked_kernel(library)


def draw_size(rng: np.random.Generator, kind: int) -> tuple[int, int]:
    """Sizes that are tiny, small, photos, tall, wide, or a single line."""
    if kind == 0:
        width, height = rng.integers(1, 9, 2)
    elif kind == 1:
        width, height = rng.integers(1, 80, 2)
    elif kind == 2:
        width, height = rng.integers(100, 700, 2)
    elif kind == 3:
        width, height = rng.integers(1, 60), rng.integers(200, 1300)
    elif kind == 4:
        width, height = rng.integers(200, 1300), rng.integers(1, 60)
    else:
        width, height = rng.permutation([1, rng.integers(1, 3000)])
    return int(width), int(height)


def draw_pixels(rng: np.random.Generator, size: tuple[int, int], kind: int) -> np.ndarray:
    """Noise, only black and white (which overshoots), stripes, or one colour."""
    shape = (size[1], size[0], 3)
    if kind == 0:
        return rng.integers(0, 256, shape, np.uint8)
    if kind == 1:
        return (rng.integers(0, 2, shape) * 255).astype(np.uint8)
    if kind == 2:
        rows, columns, channels = np.ogrid[: shape[0], : shape[1], :3]
        return (rows * 7 + columns * 3 + channels * 50).astype(np.uint8)
    return np.full(shape, rng.integers(0, 256, 3, np.uint8))


def draw_source(pixels: np.ndarray, kind: int) -> np.ndarray | Image.Image:
    """The pixels as an array, a Pillow image, or an array with other strides."""
    if kind == 0:
        return pixels
    if kind == 1 and hasattr(Image.Image, "__arrow_c_array__"):  # Pillow 11.2 and newer
        return Image.fromarray(pixels)
    if kind == 2:
        return np.flipud(np.flipud(pixels).copy())
    return np.repeat(pixels, 2, axis=1)[:, ::2]


def compare_with_pillow(kernel: Kernel, seed: int) -> None:
    rng = np.random.default_rng(seed)
    size, resized = draw_size(rng, int(rng.integers(6))), draw_size(rng, int(rng.integers(3)))
    if rng.integers(6) == 0:  # one side keeps its length
        resized = (size[0], min(resized[1], 300)) if rng.integers(2) else (min(resized[0], 300), size[1])
    pixels = draw_pixels(rng, size, int(rng.integers(4)))
    source, resample = draw_source(pixels, seed % 4), FILTERS[seed % 2]
    left, top = int(rng.integers(resized[0])), int(rng.integers(resized[1]))
    width, height = int(rng.integers(1, resized[0] - left + 1)), int(rng.integers(1, resized[1] - top + 1))
    expected = np.asarray(Image.fromarray(pixels).resize(resized, resample))[top : top + height, left : left + width]
    kernel.variant = seed // 4 % len(kernel.variants)
    store = np.full((3, height + 1, width + 1), 77, np.uint8)
    assert kernel.write(source, Crop(resized, left, top), resample, store[:, :height, :width])
    label = f"seed {seed}, {size} to {resized}, {width}x{height} at {left}, {top}, {kernel.variants[kernel.variant]}"
    np.testing.assert_array_equal(store[:, :height, :width].transpose(1, 2, 0), expected, err_msg=label)
    assert (store[:, height] == 77).all()
    assert (store[:, :, width] == 77).all()


@pytest.fixture
def any_variant(kernel: Kernel) -> Kernel:
    """A kernel whose variant a test may choose."""
    copy = object.__new__(Kernel)
    copy.__dict__.update(kernel.__dict__)
    return copy


def test_random_images_sizes_and_crops_equal_pillow(any_variant: Kernel) -> None:
    for seed in range(300):
        compare_with_pillow(any_variant, seed)


@pytest.mark.slow
def test_ten_thousand_random_images_sizes_and_crops_equal_pillow(any_variant: Kernel) -> None:
    for seed in range(1000, 11_000):
        compare_with_pillow(any_variant, seed)


@pytest.mark.parametrize("size", [(500, 1200), (1200, 500), (760, 760), (224, 449), (448, 672), (448, 673), (32, 32)])
def test_photo_sizes_equal_pillow_in_every_variant(any_variant: Kernel, size: tuple[int, int]) -> None:
    pixels = draw_pixels(np.random.default_rng(size), size, 0)
    expected = np.asarray(Image.fromarray(pixels).resize((224, 224), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    for variant in range(len(any_variant.variants)):
        any_variant.variant = variant
        found = np.empty((3, 224, 224), np.uint8)
        assert any_variant.write(pixels, Crop((224, 224), 0, 0), Image.Resampling.BICUBIC, found)
        np.testing.assert_array_equal(found, expected)


def test_table_is_applied_by_channel_and_value(kernel: Kernel) -> None:
    pixels = draw_pixels(np.random.default_rng(1), (50, 40), 0)
    table = np.random.default_rng(2).random((3, 256), np.float32)
    expected = np.asarray(Image.fromarray(pixels).resize((20, 30), Image.Resampling.BICUBIC))
    found = np.empty((3, 30, 20), np.float32)
    assert kernel.write(pixels, Crop((20, 30), 0, 0), Image.Resampling.BICUBIC, found, table)
    for channel in range(3):
        np.testing.assert_array_equal(found[channel], table[channel][expected[:, :, channel]])


def test_part_outside_the_image_is_not_written(kernel: Kernel) -> None:
    pixels = np.zeros((9, 9, 3), np.uint8)
    for crop in (Crop((5, 5), 1, 0), Crop((5, 5), 0, 1), Crop((5, 5), -1, 0), Crop((4, 5), 0, 0)):
        assert not kernel.write(pixels, crop, Image.Resampling.BICUBIC, np.zeros((3, 5, 5), np.uint8))


def test_images_without_plain_rgb_pixels_are_left_to_pillow(kernel: Kernel) -> None:
    for image in (Image.new("L", (9, 9)), Image.new("RGBA", (9, 9)), Image.new("RGB", (2100, 2100))):
        assert not kernel.write(image, Crop((5, 5), 0, 0), Image.Resampling.BICUBIC, np.zeros((3, 5, 5), np.uint8))


class Growing(Image.Image):
    """An image that another thread makes larger while the kernel asks for its pixels."""

    reads = 0

    @property
    def size(self) -> tuple[int, int]:
        self.reads += 1
        return (9, 9) if self.reads <= 3 else (9, 10)


@pytest.mark.skipif(not hasattr(Image.Image, "__arrow_c_array__"), reason="the kernel reads images since Pillow 11.2")
def test_size_and_pixels_of_an_image_belong_together(kernel: Kernel) -> None:
    pixels = draw_pixels(np.random.default_rng(3), (9, 9), 0)
    expected = np.asarray(Image.fromarray(pixels).resize((5, 5), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    image, found = Image.fromarray(pixels), np.zeros((3, 5, 5), np.uint8)
    image.__class__ = Growing
    assert kernel.write(image, Crop((5, 5), 0, 0), Image.Resampling.BICUBIC, found)
    np.testing.assert_array_equal(found, expected)


def test_large_image_that_pillow_stores_in_blocks_is_preprocessed() -> None:
    image = Image.new("RGB", (2100, 2100), (10, 200, 30))
    preprocess = Preprocessor(PreprocessSpec(height=8, width=8, mean=MEAN, std=STD))
    np.testing.assert_array_equal(preprocess.pixels(image), np.full((8, 8, 3), (10, 200, 30)))


def compiled(source: str, target: Path) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc") or pytest.skip("no C compiler")
    subprocess.run([compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", target], input=source, text=True, check=True)
    return target


def test_library_of_another_source_is_not_used(tmp_path: Path) -> None:
    stale = compiled('const char *clipmlu_source_digest(void) { return "0123"; }', tmp_path / "stale.so")
    other = compiled("int nothing(void) { return 0; }", tmp_path / "other.so")
    for path in (stale, other):
        with pytest.raises(
            KernelUnavailableError, match=r"another version of its source; .*clipmlu\.data\.resize\.build"
        ):
            checked_kernel(path)


def test_file_that_is_no_library_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "kernel.so").write_bytes(b"no library")
    with pytest.raises(KernelUnavailableError, match="cannot be loaded"):
        checked_kernel(tmp_path / "kernel.so")
    with pytest.raises(KernelUnavailableError, match=r"not compiled; .*python -m clipmlu\.data\.resize\.build"):
        checked_kernel(tmp_path / "absent.so")


def test_pillow_with_other_pixels_is_not_replaced(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resize = Image.Image.resize

    def brighter(self: Image.Image, size: tuple[int, int], resample: int) -> Image.Image:
        """One value in the results of one filter differs by 1."""
        found = resize(self, size, resample)
        if resample == Image.Resampling.BILINEAR:
            red, *rest = found.getpixel((0, 0))  # type: ignore[misc]
            found.putpixel((0, 0), (red ^ 1, *rest))
        return found

    monkeypatch.setattr(Image.Image, "resize", brighter)
    with pytest.raises(KernelUnavailableError, match="differ from those of the installed Pillow"):
        checked_kernel(library)


def test_without_the_library_results_are_equal(tmp_path: Path) -> None:
    """A copy of the package without the compiled file stands for an install without a compiler."""
    shutil.copytree(
        REPOSITORY / "src" / "clipmlu", tmp_path / "clipmlu", ignore=shutil.ignore_patterns("kernel-*", "__pycache__")
    )
    images = [
        draw_pixels(np.random.default_rng(seed), draw_size(np.random.default_rng(seed), seed % 6), 0)
        for seed in range(12)
    ]
    specs = [
        PreprocessSpec(
            height=24, width=32, mean=MEAN, std=STD, resize_mode=mode, interpolation=interpolation, fill_color=99
        )
        for mode in ("shortest", "longest", "squash")
        for interpolation in ("bicubic", "bilinear")
    ]
    images = [image for image in images if 10 * min(image.shape[:2]) > max(image.shape[:2])]
    assert len(images) > 4
    (tmp_path / "given.pickle").write_bytes(pickle.dumps((images, specs)))
    script = """
import pickle, sys
from clipmlu.data.preprocess import Preprocessor
from clipmlu.data.resize.kernel import describe_kernel, load_kernel
images, specs = pickle.load(open(sys.argv[1], "rb"))
results = [Preprocessor(spec).batch(images) for spec in specs]
pickle.dump((describe_kernel(), load_kernel(), results), open(sys.argv[2], "wb"))
"""
    command = [sys.executable, "-c", script, str(tmp_path / "given.pickle"), str(tmp_path / "found.pickle")]
    subprocess.run(command, check=True, env={"PYTHONPATH": str(tmp_path), "PATH": ""})
    described, reason, results = pickle.loads((tmp_path / "found.pickle").read_bytes())
    assert "without the compiled kernel" in described
    assert "it is not compiled; with a C compiler:" in reason
    for spec, expected in zip(specs, results, strict=True):
        np.testing.assert_array_equal(Preprocessor(spec).batch(images), expected)


def test_preprocessor_can_be_pickled() -> None:
    preprocess = Preprocessor(PreprocessSpec(height=8, width=8, mean=MEAN, std=STD))
    pixels = draw_pixels(np.random.default_rng(3), (20, 10), 0)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(preprocess))(pixels), preprocess(pixels))


@pytest.mark.parametrize(("size", "releases"), [((32, 32), False), ((640, 480), True)])
def test_only_a_long_call_gives_the_interpreters_lock_to_another_thread(
    kernel: Kernel, size: tuple[int, int], releases: bool
) -> None:
    turns, stopped = 0, threading.Event()

    def take_turns() -> None:
        nonlocal turns
        while not stopped.is_set():
            turns += 1
            time.sleep(0)  # gives the lock away

    picture, out = noise(*size), np.empty((3, 32, 32), np.uint8)
    interval = sys.getswitchinterval()
    thread = threading.Thread(target=take_turns)
    thread.start()
    sys.setswitchinterval(1000)  # nobody is made to give it away
    try:
        before = turns
        for _ in range(50):
            assert kernel.write(picture, Crop((32, 32), 0, 0), Image.Resampling.BICUBIC, out)
        after = turns
    finally:
        sys.setswitchinterval(interval)
        stopped.set()
        thread.join()
    assert (after > before) is releases
    expected = np.asarray(Image.fromarray(picture).resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(out.transpose(1, 2, 0), expected)
