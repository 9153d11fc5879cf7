"""URLs among the inputs of a user."""

from __future__ import annotations

import dataclasses
import threading

from clipmlu.data.url.location import redact
from clipmlu.data.url.options import UrlOptions
from clipmlu.data.url.time_limit import TimeLimit
from clipmlu.errors import InputError
from clipmlu.file_names import name_from_path


@dataclasses.dataclass(frozen=True)
class FoundUrl:
    """An image that a URL names; see also ``Found``.

    Attributes:
        url: the URL.
        options: limits for fetching it; None if that is not allowed.
    """

    url: str
    options: UrlOptions | None

    @property
    def name(self) -> str:
        """The URL as text for results."""
        return name_from_path(self.url)

    @property
    def error(self) -> InputError | None:
        """Why it will not be fetched, or None."""
        if self.options is not None:
            return None
        return InputError(
            f"Cannot read image '{redact(self.name)}': URLs are not fetched unless that is allowed. Allow it with --allow-urls "
            "(allow_urls=True in Python), or download the file and give its path."
        )

    @property
    def source(self) -> Download:
        """Fetches the file when it is called."""
        return Download(self)


class Download:
    """Fetches the file of a URL when it is called, once; another thread may end that.

    Args:
        found: the URL.
    """

    def __init__(self, found: FoundUrl) -> None:
        self._found = found
        self._lock = threading.Lock()
        self._limit: TimeLimit | None = None
        self._cancelled = False

    def __call__(self) -> bytes:
        """Return the content of the file.

        Raises:
            InputError: it cannot be fetched, or that is not allowed, or it was cancelled.
        """
        if self._found.error is not None:
            raise self._found.error
        from clipmlu.data.url.fetch import fetch_image  # Python's modules for HTTP and TLS take a while to load

        options = self._found.options
        assert options is not None
        with self._lock:
            self._limit = TimeLimit(options.timeout_s)
            if self._cancelled:
                self._limit.cancel()
        return fetch_image(self._found.url, options, self._limit)

    def cancel(self) -> None:
        """End the download soon; the call raises ``InputError``."""
        with self._lock:
            self._cancelled = True
            if self._limit is not None:
                self._limit.cancel()
