"""URLs among the inputs of a user."""

from __future__ import annotations

import dataclasses

from clipmlu.data.url.location import redact
from clipmlu.data.url.options import UrlOptions
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
            f"Cannot read image '{redact(self.name)}': URLs are not fetched unless that is allowed. Allow it with --allow-urls, "
            "or download the file and give its path."
        )

    def source(self) -> bytes:
        """Fetch the file and return its content.

        Raises:
            InputError: it cannot be fetched, or that is not allowed.
        """
        if self.error is not None:
            raise self.error
        from clipmlu.data.url.fetch import fetch_image  # Python's modules for HTTP and TLS take a while to load

        assert self.options is not None
        return fetch_image(self.url, self.options)
