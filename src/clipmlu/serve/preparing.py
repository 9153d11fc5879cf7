"""Threads that decode and preprocess the images of requests."""

from __future__ import annotations

import functools
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from clipmlu.clock import StageClock, now
from clipmlu.data.url.errors import PrivateAddressError
from clipmlu.data.url.found import Download, FoundUrl
from clipmlu.data.url.location import redact
from clipmlu.data.url.options import UrlOptions
from clipmlu.embed.encoder import Encoder
from clipmlu.embed.pixel_budget import PixelBudget, PixelReservation
from clipmlu.errors import InputError
from clipmlu.serve.batching import Batcher, Graph, Row
from clipmlu.serve.refusal import Refusal
from clipmlu.serve.requests import ImageInput
from clipmlu.serve.tickets import RowGroup

_log = logging.getLogger(__name__)
_DOWNLOADS = 16  # threads; they wait for the network


class RowBuffers:
    """A limited number of reusable arrays for prepared images."""

    def __init__(self, count: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self._left = count
        self._shape = shape
        self._dtype = dtype
        self._free: list[npt.NDArray[Any]] = []
        self._changed = threading.Condition()
        self._closed = False

    def take(self) -> npt.NDArray[Any]:
        """Wait for a free array.

        Raises:
            Refusal: the server is stopping.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._left or self._closed)
            if self._closed:
                raise Refusal("stopping", "The server is stopping.")
            if self._free:
                return self._free.pop()
            self._left -= 1
        return np.empty(self._shape, self._dtype)

    def give_back(self, array: npt.NDArray[Any]) -> None:
        """Return an array, whose values are not needed."""
        with self._changed:
            self._free.append(array)
            self._changed.notify()

    def close(self) -> None:
        """Make all current and later calls of ``take`` fail."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class _Image:
    """One image of a request that waits to be prepared."""

    __slots__ = ("content", "graph", "group", "name", "position")

    def __init__(self, content: bytes, name: str, group: RowGroup, position: int, graph: Graph) -> None:
        self.content = content
        self.name = name
        self.group = group
        self.position = position
        self.graph = graph


class ImagePreparer:
    """Threads that turn image files into rows of a batcher.

    Few rows are prepared ahead of the device; other images wait as files. An image that cannot be read is a result.

    Args:
        encoder: the bundle, whose preprocessing is used.
        batcher: gets the rows.
        threads: number of threads.
        ahead: rows that are prepared, or being prepared, at a time.
        urls: limits for fetching images by URL; None refuses URLs.

    Attributes:
        clock: time of decoding and preprocessing.
    """

    def __init__(
        self, encoder: Encoder, batcher: Batcher, *, threads: int, ahead: int, urls: UrlOptions | None
    ) -> None:
        self.clock = StageClock()
        self._preprocess = encoder.preprocessor
        self._batcher = batcher
        self._urls = urls
        self._budget = PixelBudget(threads)
        self._buffers = RowBuffers(ahead, encoder.preprocessor.shape, encoder.pixel_dtype)
        self._waiting: deque[_Image] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._downloads = None if urls is None else ThreadPoolExecutor(_DOWNLOADS, "clipmlu-download")
        self._threads = [
            threading.Thread(target=self._work, name=f"clipmlu-prepare-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Images that no thread has taken."""
        return len(self._waiting)

    def add(self, images: Sequence[ImageInput], group: RowGroup, graph: Graph) -> None:
        """Prepare the images of a request for a graph; the group gets their results."""
        for position, image in enumerate(images):
            if image.content is not None:
                self._append(_Image(image.content, image.id, group, position, graph))
            else:
                assert self._downloads is not None, "URLs are refused before"
                download = Download(FoundUrl(str(image.url), self._urls))
                group.ticket.future.add_done_callback(functools.partial(_cancel, download))
                self._downloads.submit(self._fetch, download, image.id, group, position, graph)

    def close(self) -> None:
        """End the threads after their current images; those that wait fail."""
        with self._changed:
            self._closed = True
            waiting, self._waiting = self._waiting, deque()
            self._changed.notify_all()
        self._buffers.close()
        self._budget.close()
        for image in waiting:
            image.group.fail(Refusal("stopping", "The server is stopping."))
        if self._downloads is not None:
            self._downloads.shutdown(wait=False, cancel_futures=True)
        for thread in self._threads:
            thread.join()

    def _append(self, image: _Image) -> None:
        with self._changed:
            if not self._closed:
                self._waiting.append(image)
                self._changed.notify()
                return
        image.group.fail(Refusal("stopping", "The server is stopping."))

    def _fetch(self, download: Callable[[], bytes], name: str, group: RowGroup, position: int, graph: Graph) -> None:
        if group.ticket.useless:
            group.drop()
            return
        try:
            content = download()
        except InputError as error:
            _log.info("No download: %s", error)
            group.finish(position, _without_addresses(error, name))
        except Exception as error:
            group.fail(error)
        else:
            self._append(_Image(content, name, group, position, graph))

    def _work(self) -> None:
        reservation = PixelReservation(self._budget)
        while (image := self._next()) is not None:
            self._prepare(image, reservation)
            del image

    def _next(self) -> _Image | None:
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            return self._waiting.popleft() if self._waiting else None

    def _prepare(self, image: _Image, reservation: PixelReservation) -> None:
        group = image.group
        if group.ticket.useless:
            self._batcher.dropped += 1
            group.drop()
            return
        buffer = None
        try:
            buffer = self._buffers.take()
            start = now()
            picture = self._preprocess.decode(image.content, name=image.name, reserve=reservation.reserve)
            decoded = now()
            self._preprocess.write(picture, buffer)
            self.clock.add({"decode": decoded - start, "preprocess": now() - decoded}, 1)
        except InputError as error:
            self._give_back(buffer)
            group.finish(image.position, error)
            return
        except Exception as error:
            self._give_back(buffer)
            group.fail(error)
            return
        finally:
            reservation.end()
        values = buffer
        self._batcher.add(Row(group, image.position, image.graph, values, lambda: self._buffers.give_back(values)))

    def _give_back(self, buffer: npt.NDArray[Any] | None) -> None:
        if buffer is not None:
            self._buffers.give_back(buffer)


def _without_addresses(error: InputError, name: str) -> InputError:
    """Return the error of a download for a client, who must not learn what addresses the names of this network have."""
    cause = error.__cause__
    after_redirect = None if cause is None else cause.__cause__
    if not isinstance(cause, PrivateAddressError) and not isinstance(after_redirect, PrivateAddressError):
        return error
    return InputError(
        f"Cannot read image '{redact(name)}': its host, or that of a redirect, has no public address, and this server fetches from "
        "no other."
    )


def _cancel(download: Download, _future: object) -> None:
    download.cancel()
