"""JPEGs decoded by simplejpeg: pixels and messages are Pillow's for every file, ordinary, unusual or damaged."""

from __future__ import annotations

import io
import itertools
import random
import struct
import subprocess
import sys
import tracemalloc
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, JpegImagePlugin
from PIL.TiffImagePlugin import IFDRational

from clipmlu.data import jpeg
from clipmlu.data.images import content_digest, is_clipped, load_image, load_picture
from clipmlu.data.jpeg import read_ordinary_header
from clipmlu.data.picture import Picture, pillow_image
from clipmlu.data.preprocess import Preprocessor
from clipmlu.errors import InputError, OptionError
from clipmlu.specs import PreprocessSpec

simplejpeg = pytest.importorskip("simplejpeg", reason="needs the extra jpeg")

SAMPLINGS = {"444": (1, 1), "422": (2, 1), "420": (2, 2), "440": (1, 2), "411": (4, 1)}


def photo(width: int, height: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Smooth colours with edges and noise, shape (height, width, 3)."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    smooth[:, width // 3 : width // 2] += 90
    return np.clip(smooth + generator.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)


def encode(pixels: np.ndarray[Any, Any], mode: str = "RGB", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def insert(content: bytes, *segments: bytes) -> bytes:
    """The file with segments after its start."""
    return content[:2] + b"".join(segments) + content[2:]


def without(content: bytes, marker: int) -> bytes:
    """The file without its first segment of a marker."""
    at = content.index(bytes((0xFF, marker)))
    return content[:at] + content[at + 2 + int.from_bytes(content[at + 2 : at + 4], "big") :]


def outcome(picture: Picture) -> tuple[str, tuple[int, ...], bytes]:
    array = np.asarray(picture)
    mode = picture.mode if isinstance(picture, Image.Image) else "RGB"
    return mode, array.shape, array.tobytes()


def both(content: bytes) -> tuple[object, object, bool]:
    """What ``load_picture`` and Pillow make of a file, pixels or message; and whether simplejpeg was good enough."""
    results: list[object] = []
    taken = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about damaged EXIF data
        for load in (load_picture, load_image):
            try:
                picture = load(content)
                taken |= isinstance(picture, np.ndarray)
                results.append(outcome(picture))
            except InputError as error:
                results.append(str(error))
    return results[0], results[1], taken


def assert_taken(content: bytes) -> None:
    """The file gives Pillow's pixels, and Pillow did not decode it."""
    got, expected, taken = both(content)
    assert got == expected
    assert taken


def assert_left(content: bytes) -> None:
    """The file gives Pillow's outcome, and Pillow decided it."""
    got, expected, taken = both(content)
    assert got == expected
    assert not taken


SIZES = [(1, 1), (1, 40), (40, 1), (2, 3), (7, 8), (8, 8), (15, 17), (16, 16), (33, 31), (129, 65), (250, 167)]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("size", SIZES)
def test_pixels_of_a_sequential_file_are_pillows(size: tuple[int, int], sampling: str) -> None:
    for quality in (5, 50, 75, 90, 100):
        assert_taken(simplejpeg.encode_jpeg(photo(*size), quality, "RGB", sampling))


@pytest.mark.parametrize("size", SIZES)
def test_pixels_of_pillows_own_files_are_pillows(size: tuple[int, int]) -> None:
    for options in ({}, {"progressive": True}, {"optimize": True}, {"restart_marker_blocks": 2}):
        for subsampling in (0, 1, 2):
            for quality in (20, 92):
                assert_taken(encode(photo(*size), subsampling=subsampling, quality=quality, **options))


def test_pixels_of_a_large_file_are_pillows() -> None:
    pixels = photo(2500, 1700)
    for options in ({"subsampling": 2}, {"subsampling": 1, "progressive": True}, {"subsampling": 0, "quality": 98}):
        assert_taken(encode(pixels, **options))


def test_extreme_colours_are_pillows() -> None:
    pixels = np.random.default_rng(3).choice(np.array([0, 1, 254, 255], np.uint8), (61, 83, 3))
    for quality in (1, 30, 95, 100):
        for sampling in SAMPLINGS:
            assert_taken(simplejpeg.encode_jpeg(pixels, quality, "RGB", sampling))


EXIF = Image.Exif()
EXIF[0x0112], EXIF[0x011A], EXIF[0x0128], EXIF[0x010F] = 6, IFDRational(300), 2, "Maker"  # turned by a quarter to show


def described(pixels: np.ndarray[Any, Any], **options: Any) -> bytes:
    """A file with every kind of metadata that cameras and editors write."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    content = encode(pixels, exif=EXIF, icc_profile=profile, comment=b"a comment", dpi=(72, 72), **options)
    xmp = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='6'/>")
    photoshop = segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x10" + bytes(16))
    return insert(content, xmp, photoshop, segment(0xE5, b"of nobody"), segment(0xE0, b"AVI1\0"))


@pytest.mark.parametrize("progressive", [False, True])
def test_metadata_and_orientation_change_nothing(progressive: bool) -> None:
    content = described(photo(90, 70), progressive=progressive)
    assert_taken(content)
    assert_taken(without(content, 0xE0))
    picture = load_picture(content)
    assert isinstance(picture, np.ndarray)
    assert picture.shape == (70, 90, 3)


def test_adobes_segment_decides_the_colours() -> None:
    content = encode(photo(50, 40))
    bare = without(content, 0xE0)  # without JFIF, Adobe's transform counts
    for file in (content, bare):
        assert_taken(insert(file, segment(0xEE, b"Adobe\0\x64\0\0\0\0\x01")))
        for transform in (0, 2, 9):
            assert_left(insert(file, segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))))
        assert_left(insert(file, segment(0xEE, b"Adobe\0\x64")))


def test_files_that_are_not_ordinary_are_left_to_pillow() -> None:
    pixels = photo(64, 48)
    ordinary = encode(pixels)
    exif = segment(0xE1, EXIF.tobytes())
    assert struct.pack(">HHI", 0x011A, 5, 1) in exif  # a resolution that is one fraction
    odd = bytearray(ordinary)
    odd[ordinary.index(b"\xff\xc0") + 14] = 0x21  # the sampling of Cb
    numbered = bytearray(ordinary)
    frame, scan = ordinary.index(b"\xff\xc0"), ordinary.index(b"\xff\xda")
    for place, letter in zip(range(3), b"RGB", strict=True):
        numbered[frame + 10 + 3 * place] = numbered[scan + 5 + 2 * place] = letter
    for content in (
        encode(pixels, "L"),
        encode(pixels, "CMYK"),
        encode(pixels, keep_rgb=True),  # stored as RGB
        bytes(odd),
        without(bytes(numbered), 0xE0),  # components called R, G and B
        ordinary + b"trailing",
        ordinary[:-2],
        ordinary[:2] + ordinary,  # a second start
        ordinary[:2] + b"\xff" + ordinary[2:],  # padding before a marker
        ordinary[:2] + b"\0" + ordinary[2:],
        insert(ordinary, segment(0xE2, b"MPF\0" + EXIF.tobytes()[6:])),
        insert(ordinary, segment(0xE2, b"ICC_PROFILE\0\x01")),
        insert(ordinary, segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed")),
        insert(ordinary, segment(0xE0, b"JFIF")),
        insert(ordinary, segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0")),
        insert(without(ordinary, 0xE0), exif.replace(*(struct.pack(">HHI", 0x011A, kind, 1) for kind in (5, 2)))),
        insert(ordinary, segment(0xCC, b"\x10\x05")),  # arithmetic coding
        insert(ordinary, segment(0xDC, b"\0\x30")),  # the number of lines
        ordinary.replace(b"\xff\xc0", b"\xff\xc3", 1),  # lossless
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8\xff\xda\0\x02\xff\xd9",
    ):
        assert_left(content)


@pytest.mark.parametrize("progressive", [False, True])
def test_first_of_several_images_counts(progressive: bool) -> None:
    whole, other = encode(photo(64, 48), progressive=progressive), encode(photo(30, 20), progressive=progressive)
    for content in (whole + other, whole + b"between" + other, whole[: len(whole) // 2] + other):
        got, expected, _ = both(content)
        assert got == expected


def test_two_frames_are_left_to_pillow() -> None:
    content = encode(photo(64, 48))
    at = content.index(b"\xff\xc0")
    assert_left(content[:at] + content[at : at + 19] + content[at:])


def test_incomplete_progressive_file_is_left_to_pillow_for_libjpeg_smooths_it() -> None:
    content = encode(photo(120, 90), progressive=True)
    scans = [at for at in range(len(content)) if content[at : at + 2] == b"\xff\xda"]
    assert len(scans) > 4
    for at in scans[1:]:
        assert_left(content[:at] + b"\xff\xd9")


def test_each_scan_is_needed_for_a_whole_progressive_file() -> None:
    content = encode(photo(120, 90), progressive=True)
    scans = [at for at in range(len(content)) if content[at : at + 2] == b"\xff\xda"] + [len(content) - 2]
    for start, end in itertools.pairwise(scans):
        assert_left(content[:start] + content[end:])


@pytest.mark.parametrize("filling", [b"\xff\xda", b"\xff\xff", b"\xff\xda" + bytes(14)])
def test_file_of_markers_takes_little_memory(filling: bytes) -> None:
    whole = encode(photo(64, 48), progressive=True)
    content = whole[: whole.index(b"\xff\xda") + 14] + filling * ((1 << 20) // len(filling)) + b"\xff\xd9"
    tracemalloc.start()
    try:
        assert read_ordinary_header(content) is None
        assert tracemalloc.get_traced_memory()[1] < 3 * len(content)
    finally:
        tracemalloc.stop()


def test_truncated_files_have_pillows_outcome() -> None:
    for content in (described(photo(120, 90)), encode(photo(120, 90), progressive=True)):
        for length in range(0, len(content), max(1, len(content) // 150)):
            for tail in (b"", b"\xff\xd9"):
                got, expected, _ = both(content[:length] + tail)
                assert got == expected, (length, tail)


def mutations(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Files with one to three changed bytes, half of them in the header; the last two bytes stay."""
    source = random.Random(seed)
    header = content.index(b"\xff\xda") + 14
    for number in range(count):
        changed = bytearray(content)
        for _ in range(source.choice((1, 1, 1, 2, 3))):
            at = source.randrange(2, header if number % 2 else len(content) - 2)
            changed[at] = source.choice((source.randrange(256), 0, 1, 0xFF, changed[at] ^ (1 << source.randrange(8))))
        yield bytes(changed)


@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_have_pillows_outcome(seed: int) -> None:
    pixels = photo(40, 33, seed)
    refused = equal = 0
    for content in (
        encode(pixels),
        without(described(pixels, subsampling=1), 0xE0),
        described(pixels, progressive=True),
        encode(pixels, restart_marker_blocks=1, subsampling=0),
        encode(pixels, "CMYK"),
    ):
        for changed in mutations(content, 120, seed):
            got, expected, taken = both(changed)
            assert got == expected
            refused += isinstance(expected, str)
            equal += taken
    assert refused > 50  # the damage is real
    assert equal > 50  # and often only in the pixels


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("size", [(100, 80), (129, 65), (167, 250), (16, 400), (33, 31)])
def test_reduced_pixels_are_those_of_pillows_draft(size: tuple[int, int], sampling: str) -> None:
    content = simplejpeg.encode_jpeg(photo(*size), 90, "RGB", sampling)
    for at_least in ((1, 1), (8, 8), (16, 12), (30, 30), (200, 200)):
        asked: list[list[int]] = [[], []]
        picture = load_picture(content, at_least=at_least, reserve=asked[0].append)
        image = load_image(content, at_least=at_least, reserve=asked[1].append)
        assert isinstance(picture, np.ndarray)
        np.testing.assert_array_equal(picture, np.asarray(image))
        assert asked[0] == asked[1] == [image.width * image.height]


def test_limit_and_reservation_are_pillows() -> None:
    for options in ({}, {"progressive": True}, {"progressive": True, "subsampling": 0}):
        content = encode(photo(64, 48), **options)
        asked: list[list[int]] = [[], []]
        for load, reserved in zip((load_picture, load_image), asked, strict=True):
            load(content, reserve=reserved.append)
            with pytest.raises(
                InputError, match=r"Cannot use image 'a\.jpg': 64x48 is 3,072 pixels, more than the limit of 3,071"
            ):
                load(content, max_pixels=3071, name="a.jpg", reserve=reserved.append)
            with pytest.raises(OptionError, match=r"^max pixels is 0; expected 1 or more"):
                load(content, max_pixels=0)
        assert len(asked[0]) == 1  # nothing is reserved for a refused image
        assert asked[0] == asked[1]


def test_damaged_file_is_reserved_once() -> None:
    content = bytearray(encode(photo(64, 48)))
    content[-40:-2] = b"\xff\x01" * 19
    asked: list[int] = []
    load_picture(bytes(content), reserve=asked.append)
    assert asked == [64 * 48]


def test_every_source_gives_the_same(tmp_path: Path) -> None:
    pixels = photo(64, 48)
    content = encode(pixels)
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    expected = np.asarray(load_image(content))
    with path.open("rb") as file:
        for source in (content, bytearray(content), memoryview(content), path, str(path), file, io.BytesIO(content)):
            picture = load_picture(source)
            assert isinstance(picture, np.ndarray)
            np.testing.assert_array_equal(picture, expected)
        path.write_bytes(content[:-30])
        for source in (path, file):
            with pytest.raises(InputError, match=r"Cannot decode image '.*photo\.jpg': .*truncated"):
                load_picture(source)
    assert load_picture(Image.fromarray(pixels)).mode == "RGB"  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"Cannot read image 'nowhere\.jpg': there is no such file"):
        load_picture("nowhere.jpg")


def test_digest_and_tensors_are_those_of_pillows_image() -> None:
    content = encode(photo(300, 200))
    picture, image = load_picture(content), load_image(content)
    assert isinstance(picture, np.ndarray)
    assert content_digest(pillow_image(picture)) == content_digest(image)
    assert not is_clipped(picture)
    preprocess = Preprocessor(PreprocessSpec(height=32, width=32, mean=(0.5,) * 3, std=(0.5,) * 3))
    np.testing.assert_array_equal(preprocess(preprocess.decode(content)), preprocess(image))


@pytest.fixture
def other_package(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """A package that takes simplejpeg's place; the proof is made again for it, and afterwards again for the real one."""
    package = types.ModuleType("simplejpeg")
    package.encode_jpeg = simplejpeg.encode_jpeg  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "simplejpeg", package)
    jpeg.forget_proof()
    yield package
    jpeg.forget_proof()


@pytest.mark.parametrize(
    ("settings", "proven"),
    [({"fastdct": True}, set()), ({"fastupsample": True}, {(1, 1), (4, 1)}), ({}, set(SAMPLINGS.values()))],
)
def test_proof_finds_another_transform_and_another_upsampling(
    other_package: types.ModuleType, settings: dict[str, bool], proven: set[tuple[int, int]]
) -> None:
    other_package.decode_jpeg = lambda *content, **size: simplejpeg.decode_jpeg(*content, **size, **settings)  # type: ignore[attr-defined]
    assert jpeg.proven_samplings() == proven
    for name, sampling in SAMPLINGS.items():
        content = simplejpeg.encode_jpeg(photo(50, 40), 90, "RGB", name)
        (assert_taken if sampling in proven else assert_left)(content)


def test_broken_package_leaves_all_to_pillow(other_package: types.ModuleType) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise ValueError("cannot create a decoder")

    other_package.decode_jpeg = fail  # type: ignore[attr-defined]
    assert_left(encode(photo(50, 40)))
    decoder = jpeg.describe_decoder()
    assert not decoder.is_fast
    assert "pixels differ" in decoder.found


def test_without_the_package_pillow_decodes() -> None:
    script = (
        "import sys; sys.modules['simplejpeg'] = None\n"
        "from clipmlu.data.images import load_picture; from clipmlu.data.jpeg import describe_decoder\n"
        "print(type(load_picture(sys.stdin.buffer.read())).__name__, describe_decoder())"
    )
    done = subprocess.run([sys.executable, "-c", script], input=encode(photo(50, 40)), capture_output=True, check=True)
    words = done.stdout.decode()
    assert words.startswith("JpegImageFile Decoder(is_fast=False, found='Pillow ")
    assert "simplejpeg is absent" in words
    assert "pip install 'clipmlu[jpeg]'" in words


def test_parser_of_pillow_is_the_one_that_was_read() -> None:
    """The header's checks follow these handlers; a Pillow with others needs another look."""
    handlers = {marker: entry[2].__name__ for marker, entry in JpegImagePlugin.MARKER.items() if entry[2] is not None}
    assert {handlers[marker] for marker in range(0xFFE0, 0xFFF0)} == {"APP"}
    assert {handlers[marker] for marker in (0xFFC0, 0xFFC1, 0xFFC2)} == {"SOF"}
    assert (handlers[0xFFC4], handlers[0xFFDB], handlers[0xFFDD], handlers[0xFFFE]) == ("Skip", "DQT", "Skip", "COM")
