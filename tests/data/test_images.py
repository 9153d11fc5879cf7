"""Images from every kind of source, and one clear line for everything that is none."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from clipmlu.data.images import (
    DEFAULT_MAX_PIXELS,
    IMAGE_SUFFIXES,
    content_digest,
    cut_strips,
    is_clipped,
    load_image,
    load_picture,
    read_source,
)
from clipmlu.data.preprocess import Preprocessor
from clipmlu.errors import InputError, OptionError
from clipmlu.specs import PreprocessSpec

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (23, 31, 3), dtype=np.uint8)


def encode(image: Image.Image, name: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, name, **options)
    return stream.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header promises a size that its (nearly empty) data does not have."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def reference(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000"])
def test_each_format_decodes_as_pillow_does_from_bytes_and_from_a_path(name: str, tmp_path: Path) -> None:
    Image.init()
    if name not in Image.SAVE or (name == "AVIF" and not features.check("avif")):
        pytest.skip(f"this Pillow cannot write {name}")
    content = encode(Image.fromarray(PHOTO), name)
    path = tmp_path / "image.bin"  # the content decides, not the suffix
    path.write_bytes(content)
    expected = reference(content)
    for source in (content, bytearray(content), memoryview(content), path, str(path)):
        np.testing.assert_array_equal(np.asarray(load_image(source)), expected)


def test_loaded_image_does_not_need_its_file_any_more(tmp_path: Path) -> None:
    for name, suffix in (("PNG", "png"), ("TIFF", "tif"), ("GIF", "gif"), ("WEBP", "webp")):
        path = tmp_path / f"image.{suffix}"
        frames = [Image.fromarray(np.roll(PHOTO, shift, axis=0)) for shift in range(3)]
        path.write_bytes(encode(frames[0], name, save_all=True, append_images=frames[1:]))
        image = load_image(path)
        path.unlink()
        assert image.resize((5, 5)).convert("RGB").size == (5, 5)


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    for name in ("GIF", "PNG", "TIFF"):
        content = encode(frames[0], name, save_all=True, append_images=frames[1:])
        assert load_image(content).convert("RGB").getpixel((3, 3)) == (255, 0, 0), name


def test_cmyk_jpeg_keeps_its_mode() -> None:
    content = encode(Image.fromarray(PHOTO).convert("CMYK"), "JPEG")
    assert load_image(content).mode == "CMYK"


def test_sixteen_bit_png_keeps_its_depth() -> None:
    values = np.arange(0, 60000, 100, dtype="<u2").reshape(20, 30)
    content = encode(Image.frombytes("I;16", (30, 20), values.tobytes()), "PNG")
    np.testing.assert_array_equal(np.asarray(load_image(content)).astype(np.int64), values)


def test_exif_orientation_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to show
    content = encode(Image.fromarray(PHOTO), "JPEG", exif=exif)
    assert load_image(content).size == (31, 23)


def test_pillow_image_is_returned_itself_and_loaded() -> None:
    with Image.open(io.BytesIO(encode(Image.fromarray(PHOTO), "PNG"))) as lazy:
        assert load_image(lazy) is lazy
    np.testing.assert_array_equal(np.asarray(lazy), PHOTO)


@pytest.mark.parametrize(
    ("array", "mode"),
    [
        (PHOTO, "RGB"),
        (RNG.integers(0, 256, (5, 4, 4), dtype=np.uint8), "RGBA"),
        (PHOTO[:, :, 0], "L"),
        (PHOTO[:, :, :1], "L"),
        (PHOTO[::-1, ::2], "RGB"),
        (np.asfortranarray(PHOTO), "RGB"),
    ],
)
def test_uint8_array_becomes_the_image_that_it_shows(array: np.ndarray, mode: str) -> None:
    image = load_image(array)
    assert image.mode == mode
    np.testing.assert_array_equal(np.asarray(image), array[:, :, 0] if array.shape[2:] == (1,) else array)


@pytest.mark.parametrize("array", [PHOTO, np.asfortranarray(PHOTO), PHOTO[::2, ::-1]], ids=["C", "Fortran", "view"])
def test_rgb_array_is_a_picture_already(array: np.ndarray) -> None:
    assert load_picture(array) is array
    spec = PreprocessSpec(height=24, width=24, mean=(0.5,) * 3, std=(0.25,) * 3)
    preprocessor = Preprocessor(spec)
    np.testing.assert_array_equal(preprocessor(load_picture(array)), preprocessor(Image.fromarray(array)))


def test_array_that_is_no_picture_is_refused_as_before() -> None:
    with pytest.raises(InputError, match="more than the limit of 100"):
        load_picture(PHOTO, max_pixels=100)
    with pytest.raises(InputError, match="has no pixels"):
        load_picture(np.zeros((0, 5, 3), np.uint8))
    with pytest.raises(InputError, match="the range of floating-point pixels is not known"):
        load_picture(PHOTO / 255)
    assert isinstance(load_picture(PHOTO[:, :, 0]), Image.Image)


def test_later_writes_to_the_array_do_not_reach_the_image() -> None:
    array = PHOTO.copy()
    image = load_image(array)
    array[:] = 0
    np.testing.assert_array_equal(np.asarray(image), PHOTO)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (PHOTO.astype(np.float32) / 255, "range of floating-point pixels is not known"),
        (PHOTO.astype(np.int64), "Expected uint8"),
        (PHOTO > 5, "Expected uint8"),
        (PHOTO.transpose(2, 0, 1), r"shape \(3, 23, 31\).*Expected uint8"),
        (PHOTO[:, :, :2], "Expected uint8"),
        (PHOTO[None], "Expected uint8"),
        (np.zeros(5, np.uint8), "Expected uint8"),
        (np.zeros((), np.uint8), "Expected uint8"),
        (np.zeros((0, 5, 3), np.uint8), "5x0 and has no pixels"),
        (np.zeros((5, 0), np.uint8), "0x5 and has no pixels"),
    ],
)
def test_other_arrays_are_refused_with_what_was_expected(array: np.ndarray, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_image(array)


@pytest.mark.parametrize("source", [None, 3, [PHOTO], object()])
def test_other_types_are_refused_by_name(source: object) -> None:
    with pytest.raises(InputError, match=f"of type '{type(source).__name__}'.*Expected a path, bytes"):
        load_image(source)  # type: ignore[arg-type]


def test_missing_file_is_named() -> None:
    with pytest.raises(InputError, match=r"Cannot read image 'nowhere\.jpg': there is no such file"):
        load_image("nowhere.jpg")


def test_path_with_a_null_character_is_refused() -> None:
    with pytest.raises(InputError, match="Cannot read image"):
        load_image("a\0b.png")


def test_directory_is_named_as_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it is a directory"):
        load_image(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_named_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        load_image(tmp_path / "pipe")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read every file")
def test_unreadable_file_says_why(tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encode(Image.fromarray(PHOTO), "PNG"))
    path.chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        load_image(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"<html>not an image</html>", "not a supported image format"),
        (b"\x89PNG\r\n\x1a\n", "Expected an image file"),
        (b"\x89PNG\r\n\x1a\n" + b"\xff" * 100, "Expected an image file"),
        (b"GIF89a", "Expected an image file"),
        (b"P6\n-3 x\n", "Expected an image file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not a supported image format"),
        (png_claiming(0, 7), "Expected an image file|has no pixels"),
    ],
)
def test_content_that_is_no_image_is_one_clear_line(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "file.png"
    path.write_bytes(content)
    for source, where in ((path, "file.png"), (content, f"the {len(content)} bytes given")):
        with pytest.raises(InputError, match=words) as caught:
            load_image(source)
        assert where in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_truncated_or_damaged_files_never_raise_anything_else(name: str) -> None:
    content = encode(Image.fromarray(PHOTO), name)
    for length in range(1, len(content), 37):
        damaged = bytearray(content)
        damaged[length : length + 3] = b"\xff\x00\x7f"
        for broken in (content[:length], bytes(damaged)):
            with contextlib.suppress(InputError):  # some damage leaves an image behind
                load_image(broken)


def test_truncated_photograph_is_refused() -> None:
    content = encode(Image.fromarray(PHOTO).resize((300, 300)), "JPEG")
    with pytest.raises(InputError, match=r"Cannot decode the \d+ bytes given: .*truncated"):
        load_image(content[: len(content) // 2])


def test_pixel_limit_is_checked_on_the_header_before_decoding() -> None:
    content = png_claiming(20000, 20000)  # decoding it would fail: there is no such data
    with pytest.raises(InputError, match=f"20000x20000 is 400,000,000 pixels, .*{DEFAULT_MAX_PIXELS:,}.*--max-pixels"):
        load_image(content)
    with pytest.raises(InputError, match="Cannot decode"):
        load_image(png_claiming(20, 20))


def test_pixel_limit_can_be_lowered_and_raised() -> None:
    with pytest.raises(InputError, match="713 pixels, more than the limit of 712"):
        load_image(PHOTO, max_pixels=712)
    with pytest.raises(InputError, match="more than the limit of 712"):
        load_image(Image.fromarray(PHOTO), max_pixels=712)
    assert load_image(PHOTO, max_pixels=713).size == (31, 23)
    with pytest.raises(OptionError, match=r"^max pixels is 0; expected 1 or more"):
        load_image(PHOTO, max_pixels=0)


def test_raised_limit_beats_pillows_own_and_warns_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # 713 pixels would be refused by Image.open
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(encode(Image.fromarray(PHOTO), "PNG")).size == (31, 23)


def test_suffixes_are_lower_case_and_known_to_pillow() -> None:
    Image.init()
    known = Image.registered_extensions()
    assert {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tiff"} <= IMAGE_SUFFIXES
    for suffix in IMAGE_SUFFIXES - {".avif"}:
        assert known.get(suffix) in Image.OPEN, suffix


def test_file_is_read_whole_unless_it_is_large(tmp_path: Path) -> None:
    content = encode(Image.fromarray(PHOTO), "PNG")
    path = tmp_path / "image.png"
    path.write_bytes(content)
    assert read_source(str(path)) == content
    assert read_source(content) is content
    os.truncate(path, (64 << 20) + 1)  # sparse: it takes no space on the disk
    assert read_source(path) == path


def test_file_without_a_size_is_read_to_its_end() -> None:
    assert read_source(Path("/proc/self/cmdline")) == Path("/proc/self/cmdline").read_bytes()


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.png': there is no such file"):
        read_source(tmp_path / "absent.png")
    with pytest.raises(InputError, match="it is a directory"):
        read_source(tmp_path)


def test_bytes_are_called_by_their_name() -> None:
    with pytest.raises(InputError, match=r"Cannot read image 'cat\.jpg': its content is not a supported image format"):
        load_image(b"not an image at all", name="cat.jpg")


def test_limit_on_pixels_comes_before_a_reduced_scale() -> None:
    content = encode(Image.new("RGB", (640, 480)), "JPEG")
    with pytest.raises(InputError, match="640x480 is 307,200 pixels"):
        load_image(content, max_pixels=100_000, at_least=(64, 64))
    assert load_image(content, at_least=(64, 64)).size == (160, 120)


@pytest.mark.parametrize("rewound", [True, False])
def test_open_files_are_read_from_their_beginning(tmp_path: Path, rewound: bool) -> None:
    content = encode(Image.fromarray(PHOTO), "PNG")
    (tmp_path / "photo.png").write_bytes(content)
    with (tmp_path / "photo.png").open("rb") as file:
        for stream in (io.BytesIO(content), file):
            if not rewound:
                stream.seek(0, io.SEEK_END)
            np.testing.assert_array_equal(np.asarray(load_image(stream)), PHOTO)
            assert read_source(stream) == content


def test_open_files_that_give_no_image_are_named(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("photo.png\n")
    with (
        path.open() as text,
        pytest.raises(InputError, match=r"list\.txt': it was opened as text\. Open it with mode 'rb'"),
    ):
        load_image(text)  # type: ignore[arg-type]
    with (
        path.open("rb") as file,
        pytest.raises(InputError, match=r"list\.txt': its content is not a supported image format"),
    ):
        load_image(file)
    with pytest.raises(InputError, match="closed file"):
        load_image(file)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "LA", "RGBA", "CMYK", "1", "I;16"])
@pytest.mark.parametrize(("copies", "strips"), [(1, 1), (40, 2)])  # of 713 pixels; a strip has a million
def test_digest_is_that_of_the_whole_image_however_it_is_cut(mode: str, copies: int, strips: int) -> None:
    photo = Image.fromarray(np.tile(PHOTO, (copies, copies, 1)))
    image = photo.convert("L" if mode == "I;16" else mode).convert(mode)
    size = f"{31 * copies}x{23 * copies}\n".encode()
    assert content_digest(image) == hashlib.sha256(size + image.convert("RGB").tobytes()).hexdigest()
    assert len(list(cut_strips(image))) == strips


@pytest.mark.parametrize(
    ("array", "mode", "clipped"),
    [
        (np.array([[0, 65535]], np.uint16), "I;16", True),
        (np.array([[0, 255]], np.uint16), "I;16", False),
        (np.array([[0, 65535]], np.int32), "I", True),
        (np.array([[-1, 5]], np.int32), "I", True),
        (np.array([[0.0, 1.0]], np.float32), "F", True),
        (np.array([[0.0, 255.0]], np.float32), "F", False),
        (np.array([[0, 255]], np.uint8), "L", False),
    ],
)
def test_grey_values_that_do_not_fit_eight_bits_are_known(array: Any, mode: str, clipped: bool) -> None:
    image = Image.fromarray(array)
    assert image.mode == mode
    assert is_clipped(image) == clipped


def test_big_endian_grey_values_are_known_too() -> None:
    for top, clipped in ((0x0100, True), (0x00FF, False)):
        image = Image.frombytes("I;16B", (2, 1), struct.pack(">2H", 0, top))
        assert is_clipped(image) == clipped


@pytest.mark.parametrize("compression", ["tiff_deflate", "tiff_lzw", "jpeg"])
def test_damaged_tiff_prints_nothing(compression: str, capfd: pytest.CaptureFixture[str]) -> None:
    """libtiff would write to the process's stderr by itself."""
    stream = io.BytesIO()
    Image.fromarray(PHOTO).resize((90, 90)).save(stream, "TIFF", compression=compression)
    content = bytearray(stream.getvalue())
    content[len(content) // 3 : len(content) // 3 + 200] = b"\x55" * 200
    with contextlib.suppress(InputError):
        load_image(bytes(content))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("mode", "options", "bytes_per_pixel"),
    [
        ("RGB", {"progressive": True, "subsampling": 0}, 4 + 3 * 2),
        ("RGB", {"progressive": True, "subsampling": 1}, 4 + 2 * 2),
        ("RGB", {"progressive": True, "subsampling": 2}, 4 + 1.5 * 2),
        ("L", {"progressive": True}, 4 + 1 * 2),
        ("CMYK", {"progressive": True}, 4 + 4 * 2),
        ("RGB", {}, 4),
    ],
)
@pytest.mark.parametrize("at_least", [None, (40, 40)])
def test_coefficients_of_a_progressive_jpeg_are_counted(
    mode: str, options: dict[str, int], bytes_per_pixel: float, at_least: tuple[int, int] | None
) -> None:
    stream = io.BytesIO()
    Image.new(mode, (320, 320)).save(stream, "JPEG", **options)
    asked: list[int] = []
    image = load_image(stream.getvalue(), at_least=at_least, reserve=asked.append)
    held = 320 * 320 * (bytes_per_pixel - 4) / 4  # of the whole image, also where its pixels come at a reduced scale
    assert asked == [image.width * image.height + held]
