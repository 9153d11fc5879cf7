"""The headers of ordinary JPEGs: files that every decoder based on libjpeg reads alike, and that Pillow accepts.

Pillow's plugin spends hundreds of microseconds per file in Python, which threads cannot share. This reader takes some
ten, and returns None for everything that Pillow, or libjpeg with its settings, might read differently or refuse.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_START, _END = b"\xff\xd8\xff", b"\xff\xd9"
_SOF_PROGRESSIVE, _SOS, _EOI = 0xC2, 0xDA, 0xD9  # markers: start of a frame and of a scan, end of the image
_FRAMES = (0xC0, 0xC1, _SOF_PROGRESSIVE)
_PLAIN = frozenset({0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)} - {0xE0, 0xE1, 0xE2, 0xED, 0xEE})
"""Segments that libjpeg checks: tables of codes and of quantisation, restart interval; and comment, other APPn."""
_SEGMENT = struct.Struct(">BBH")  # 0xFF, marker, length including its own two bytes
_FRAME = struct.Struct(">BHHB3s3s3s")  # bits, height, width, components; each with its number, samplings and table
_COMPONENTS = 3
_ALL_COEFFICIENTS = (1 << 64) - 1
_MAX_SCANS = 1000  # encoders write some ten
_MAX_MARKER_SHARE = 8  # at most every eighth byte may be 0xFF; in coded data it is every 256th

Sampling = tuple[int, int]
"""Horizontal and vertical samples of Y for each sample of Cb and Cr."""


class JpegHeader(NamedTuple):
    """Header of an ordinary JPEG: three components of 8 bits, YCbCr, Huffman coding.

    Attributes:
        width: of the image, in pixels.
        height: of the image, in pixels.
        sampling: see ``Sampling``.
        progressive: whether it is stored as several scans.
    """

    width: int
    height: int
    sampling: Sampling
    progressive: bool

    @property
    def coefficient_pixels(self) -> int:
        """Memory for the coefficients; see the function of this name."""
        return coefficient_pixels(self.width * self.height, (self.sampling, (1, 1), (1, 1))) if self.progressive else 0

    def reduced_size(self, at_least: tuple[int, int] | None) -> tuple[int, int]:
        """Return the width and height at 1/8, 1/4, 1/2 or the full scale: the smallest that is not below ``at_least``.

        This is the choice of Pillow's ``draft``. libjpeg has other scales, but no vector instructions for them.
        """
        if at_least is None:
            return self.width, self.height
        ratio = min(self.width // at_least[0], self.height // at_least[1])
        scale = next((each for each in (8, 4, 2) if ratio >= each), 1)
        return -(-self.width // scale), -(-self.height // scale)


def coefficient_pixels(pixels: int, samplings: tuple[Sampling, ...]) -> int:
    """Return the memory of a progressive JPEG's coefficients, in pixels of four bytes.

    It consists of scans over the whole image, so libjpeg keeps all coefficients until the last scan: 16 bits for each
    sample of each component (libjpeg.txt, "Progressive JPEG support"). Other JPEGs need a few rows only.

    Args:
        pixels: width x height.
        samplings: horizontal and vertical sampling factor of each component.
    """
    largest = max(each[0] for each in samplings) * max(each[1] for each in samplings)
    samples = pixels * sum(across * down for across, down in samplings)
    return int(samples * 2 // (4 * max(1, largest)))


def read_header(content: bytes) -> JpegHeader | None:
    """Return the header of an ordinary JPEG, or None for any other content."""
    if not (content.startswith(_START) and content.endswith(_END)):
        return None
    try:
        header, scan = _read_segments(content)
        if header is None:
            return None
        whole = _is_complete(content, scan) if header.progressive else content[scan + 4] == _COMPONENTS
    except (struct.error, IndexError, ValueError):  # it ends too early, or a scan's header is damaged
        return None
    return header if whole else None


def _read_segments(content: bytes) -> tuple[JpegHeader | None, int]:
    """Return the header of an ordinary JPEG or None, and the position of its first scan."""
    header, at = None, len(_START) - 1
    while True:
        start, marker, length = _SEGMENT.unpack_from(content, at)
        end = at + 2 + length
        if start != 0xFF or length < 2 or end > len(content):
            return None, 0
        if marker == _SOS:
            return header, at
        if marker in _FRAMES and header is None:
            header = _read_frame(content[at + 4 : end], marker == _SOF_PROGRESSIVE)
            accepted = header is not None
        else:
            accepted = marker in _PLAIN or (marker in _CHECKS and _CHECKS[marker](content[at + 4 : end]))
        if not accepted:
            return None, 0
        at = end


def _read_frame(body: bytes, progressive: bool) -> JpegHeader | None:
    if len(body) != _FRAME.size:
        return None
    bits, height, width, components, first, second, third = _FRAME.unpack(body)
    # Components called 1, 2 and 3 are YCbCr with every combination of the other segments that is accepted here.
    if (bits, components) != (8, _COMPONENTS) or not (height and width):
        return None
    if (first[0], second[:2], third[:2]) != (1, b"\x02\x11", b"\x03\x11"):
        return None
    return JpegHeader(width, height, (first[1] >> 4, first[1] & 15), progressive)


def _is_complete(content: bytes, scan: int) -> bool:
    """Return whether the scans give all coefficients in full.

    libjpeg smooths the blocks of other images, and its versions do so differently. A file with more scans or marker
    bytes than any encoder writes is not examined, since that could take seconds and gigabytes.

    Args:
        content: a progressive JPEG.
        scan: position of its first scan.

    Raises:
        IndexError, ValueError: the header of a scan is damaged.
    """
    values = np.frombuffer(content, np.uint8)
    starts = values[scan:-1] == 0xFF
    if np.count_nonzero(starts) * _MAX_MARKER_SHARE > len(starts):
        return False
    marks = np.flatnonzero(starts) + scan
    markers = values[marks + 1]
    scans = marks[markers == _SOS]
    if np.count_nonzero(markers == _EOI) != 1 or len(scans) > _MAX_SCANS:  # after the end another image may follow
        return False
    given = [0] * _COMPONENTS  # a bit for each coefficient
    for at in scans.tolist():
        numbers_end = at + 5 + 2 * content[at + 4]
        first, last, precision = content[numbers_end : numbers_end + 3]
        if precision & 15 == 0:  # no lower bits are missing
            for number in content[at + 5 : numbers_end : 2]:
                given[number - 1] |= (1 << (last + 1)) - (1 << first)
    return given == [_ALL_COEFFICIENTS] * _COMPONENTS


def _is_plain_app0(body: bytes) -> bool:
    return not body.startswith(b"JFIF") or (body[4:5] == b"\0" and len(body) >= 14)


def _is_plain_app1(body: bytes) -> bool:
    """Return whether Pillow can read the resolution from the EXIF data, if it is EXIF; otherwise it refuses the file."""
    if not body.startswith(b"Exif\0\0"):
        return True
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(body[6:10])
    if order is None:
        return False
    try:
        (offset,) = struct.unpack_from(order + "I", body, 10)
        (count,) = struct.unpack_from(order + "H", body, 6 + offset)
    except struct.error:
        return False
    start = 8 + offset
    resolution = struct.pack(order + "H", 0x011A)
    one_rational = struct.pack(order + "HI", 5, 1)
    return start + 12 * count <= len(body) and all(
        body[at : at + 2] != resolution or body[at + 2 : at + 8] == one_rational
        for at in range(start, start + 12 * count, 12)
    )


def _is_plain_app2(body: bytes) -> bool:
    """Return False for several pictures in one file, and for a colour profile without its number."""
    return not body.startswith(b"MPF\0") and (len(body) >= 14 or not body.startswith(b"ICC_PROFILE\0"))


def _is_plain_app13(body: bytes) -> bool:
    """Return False if Photoshop's resources end inside the header of one, for which Pillow refuses the file."""
    return body[-6:-2] != b"8BIM"


def _is_plain_app14(body: bytes) -> bool:
    """Return whether Adobe's segment says YCbCr."""
    return not body.startswith(b"Adobe") or (len(body) >= 12 and body[11] == 1)


_CHECKS: dict[int, Callable[[bytes], bool]] = {
    0xE0: _is_plain_app0,
    0xE1: _is_plain_app1,
    0xE2: _is_plain_app2,
    0xED: _is_plain_app13,
    0xEE: _is_plain_app14,
}
"""Segments of which libjpeg takes the colour space, or that Pillow parses and may refuse."""
