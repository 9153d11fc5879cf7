"""The page that people open in a browser: HTML, a stylesheet and modules of JavaScript, with the headers under which they are sent."""

from __future__ import annotations

import functools
import hashlib
from importlib import resources
from typing import NamedTuple

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # the browser refuses innerHTML and its kin: labels and messages are only ever text
        "trusted-types 'none'",
    )
)
"""Nothing comes from or goes to another place than the server itself, and no other site shows the page in a frame."""
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # it may be kept, and is asked for again with its ETag
}
INDEX = "index.html"
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class PageFile(NamedTuple):
    """A file of the page.

    Attributes:
        content: its bytes.
        media_type: its ``Content-Type``.
        etag: its ``ETag``, in quotes.
    """

    content: bytes
    media_type: str
    etag: str


@functools.cache
def page_files() -> dict[str, PageFile]:
    """Return all files of the page by their names; a request can have no others."""
    files = {}
    for entry in resources.files(__name__).iterdir():
        media_type = _MEDIA_TYPES.get("." + entry.name.rpartition(".")[2])
        if media_type is not None:
            content = entry.read_bytes()
            files[entry.name] = PageFile(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return files


def is_known(etag: str, if_none_match: str) -> bool:
    """Return whether the header ``If-None-Match`` of a request names an ETag; proxies may mark it as weak."""
    known = [each.strip().removeprefix("W/") for each in if_none_match.split(",")]
    return etag in known or "*" in known
