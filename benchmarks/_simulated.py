"""Simulated cores: native calls become sleeps of the same length, so that few cores show what the lock allows on many.

A native call that releases the interpreter's lock keeps a core busy and lets other threads run Python; so does
``time.sleep``, without the core. What is left is real: all Python, the lock, its hand-over, and the wake-up of threads.
Not simulated: memory bandwidth, page faults, caches and clock rates of many busy cores.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, cast
from unittest import mock

import numpy as np
from PIL import Image

from clipmlu.data.resize.kernel import load_kernel

_END_OF_JPEG = b"\xff\xd9"
_SET_TIMER_SLACK = 29  # prctl: without it each sleep lasts some 50 us longer


class NativeCall:
    """The length of one native function's calls: seconds per unit of work.

    Attributes:
        name: name for people.
        calls: number of calls that were recorded.
        seconds: their time of a core.
        instant: whether simulated calls take no time.
        shapes: maps the length of a file to the shape of its pixels.
        contents: maps the length of a file to its bytes.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls = 0
        self.instant = False
        self.seconds = 0.0
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.contents: dict[int, bytes] = {}
        self._units = 0.0

    def record(self, units: float, action: Callable[[], Any]) -> Any:
        """Call it, and store its length for this amount of work."""
        start = time.thread_time()
        result = action()
        self.seconds += time.thread_time() - start
        self.calls += 1
        self._units += units
        return result

    def sleep(self, units: float) -> None:
        """Sleep for the length of a call with this amount of work, unless calls are instant."""
        if not self.instant:
            time.sleep(units * self.seconds / self._units)


class _Decoder:
    """Pillow's decoder of JPEGs, which takes a file in blocks."""

    def __init__(self, call: NativeCall, decoder: Any, record: bool) -> None:
        self._call = call
        self._decoder = decoder
        self._record = record

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def decode(self, block: bytes) -> Any:
        """Decode a block, or sleep; return how much of it was decoded, -1 after the last, and no error."""
        if self._record:
            return self._call.record(len(block), lambda: self._decoder.decode(block))
        self._call.sleep(len(block))
        return -1 if block.endswith(_END_OF_JPEG) else len(block), 0


def _pillow_decoder(call: NativeCall, record: bool) -> Any:
    real = Image._getdecoder

    def get(mode: str, name: str, *arguments: Any) -> Any:
        decoder = real(mode, name, *arguments)
        return _Decoder(call, decoder, record) if name == "jpeg" else decoder

    return mock.patch.object(Image, "_getdecoder", get)


def _pillow_resize(call: NativeCall, record: bool) -> Any:
    real = Image.Image.resize

    def resize(image: Image.Image, size: tuple[int, int], *arguments: Any, **options: Any) -> Image.Image:
        pixels = image.width * image.height
        if record:
            return cast("Image.Image", call.record(pixels, lambda: real(image, size, *arguments, **options)))
        call.sleep(pixels)
        return Image.new(image.mode, size)

    return mock.patch.object(Image.Image, "resize", resize)


def _simplejpeg(call: NativeCall, record: bool) -> Any:
    try:
        import simplejpeg
    except ImportError:
        return nullcontext()
    real = simplejpeg.decode_jpeg

    def decode(content: bytes, *arguments: Any, **options: Any) -> Any:
        if record:
            pixels = call.record(len(content), lambda: real(content, *arguments, **options))
            call.shapes[len(content)] = pixels.shape
            return pixels
        call.sleep(len(content))
        return np.empty(call.shapes[len(content)], np.uint8)

    return mock.patch.object(simplejpeg, "decode_jpeg", decode)


def _kernel(call: NativeCall, record: bool) -> Any:
    kernel = load_kernel()
    if isinstance(kernel, str):
        return nullcontext()
    real = kernel._resize

    def resize(*arguments: Any) -> Any:
        _, width, height, *_ = arguments
        if record:
            return call.record(width * height, lambda: real(*arguments))
        call.sleep(width * height)
        return 0

    return mock.patch.object(kernel, "_resize", resize)


def _read(call: NativeCall, record: bool) -> Any:
    real = os.read
    contents: dict[int, bytes] = call.contents

    def read(descriptor: int, size: int) -> bytes:
        if record:
            contents[size] = call.record(size, lambda: real(descriptor, size))
        else:
            call.sleep(size)
        return contents[size]

    return mock.patch.object(os, "read", read)


_EDGES: dict[str, Callable[[NativeCall, bool], Any]] = {
    "read": _read,
    "simplejpeg": _simplejpeg,
    "Pillow's JPEG decoder": _pillow_decoder,
    "the compiled kernel": _kernel,
    "Pillow's resize": _pillow_resize,
}


@contextmanager
def simulated_cores(work: Callable[[], object]) -> Iterator[list[NativeCall]]:
    """Record the native calls of ``work`` on one thread; inside, they sleep for as long instead.

    Yields:
        The native calls that were found.
    """
    calls = {name: NativeCall(name) for name in _EDGES}
    work()  # the first call of a library loads it
    with ExitStack() as stack:
        for name, edge in _EDGES.items():
            stack.enter_context(edge(calls[name], True))
        work()
    ctypes.CDLL(None).prctl(_SET_TIMER_SLACK, 1, 0, 0, 0)
    with ExitStack() as stack:
        for name, edge in _EDGES.items():
            if calls[name].calls:
                stack.enter_context(edge(calls[name], False))
        yield [call for call in calls.values() if call.calls]
