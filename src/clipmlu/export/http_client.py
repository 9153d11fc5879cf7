"""GET requests to a hub, with proxies and certificates of the environment.

Python's own client: huggingface_hub changed its HTTP library twice (requests, httpx, httpx2), and a hub needs no more.
``data.url`` is for addresses that nobody trusts; it uses no proxy and no credentials.
"""

from __future__ import annotations

import contextlib
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from email.message import Message
from http import HTTPStatus
from http.client import HTTPMessage, HTTPResponse, IncompleteRead
from typing import IO
from urllib.parse import urlsplit

from clipmlu._version import __version__
from clipmlu.data.url.connection import tls_context
from clipmlu.data.url.location import redact

_CHUNK_BYTES = 1 << 16
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": f"clipmlu/{__version__}"}


class StatusError(Exception):
    """A server answers with another status than success.

    Attributes:
        status: HTTP status code.
        headers: of the answer.
    """

    def __init__(self, status: int, headers: Message) -> None:
        self.status = status
        self.headers = headers
        super().__init__(f"status {status}")


class AnswerError(Exception):
    """A server's answer cannot be used; the message is the reason, with the server as subject."""


class Answer:
    """The answer to a request, whose content is received in pieces.

    Attributes:
        status: HTTP status code, 200 to 299.
        headers: of the answer.
        length: announced bytes of the content, or None.
    """

    def __init__(self, response: HTTPResponse, end: float) -> None:
        self.status = response.status
        self.headers = response.headers
        self.length = response.length
        self._response = response
        self._end = end

    def pieces(self) -> Iterator[bytes]:
        """Yield the content until the server or the connection ends it.

        Raises:
            TimeoutError: the time limit of the request has passed.
            IncompleteRead: the content is shorter than announced.
            OSError, http.client.HTTPException: the connection failed.
        """
        # ``read`` would wait for all the bytes that it is asked for, however slowly they arrive.
        while piece := self._response.read1(_CHUNK_BYTES):
            yield piece
            if time.monotonic() > self._end:
                raise TimeoutError
        if self._response.length:
            raise IncompleteRead(b"", self._response.length)


class HttpClient:
    """Sends GET requests.

    Args:
        secrets: headers that only the server itself receives, never one that it redirects to.
        timeout_s: seconds for connecting, and for each wait for data.
    """

    def __init__(self, secrets: Mapping[str, str], timeout_s: float) -> None:
        self._secrets = secrets
        self._timeout_s = timeout_s

    @contextlib.contextmanager
    def get(self, url: str, headers: Mapping[str, str], *, limit_s: float) -> Iterator[Answer]:
        """Send a request and give the answer; the connection is closed at the end of the block.

        Args:
            url: an http or https URL.
            headers: of this request.
            limit_s: seconds for the request with all of its content.

        Raises:
            StatusError: the status is not one of success.
            AnswerError: the answer, or a redirect, cannot be used.
            OSError, http.client.HTTPException: the connection failed; the cause of a ``URLError`` says why.
        """
        request = urllib.request.Request(url, headers={**_HEADERS, **headers})  # noqa: S310 - BoundedRedirects checks it, too
        for name, value in self._secrets.items():
            request.add_unredirected_header(name, value)
        opener = urllib.request.build_opener(
            BoundedRedirects(url, self._secrets), urllib.request.HTTPSHandler(context=tls_context())
        )
        end = time.monotonic() + limit_s
        try:
            response = opener.open(request, timeout=self._timeout_s)
        except urllib.error.HTTPError as error:
            with contextlib.closing(error):
                raise StatusError(error.code, error.headers) from error  # its content may arrive endlessly
        with contextlib.closing(response):
            encoding = response.headers.get("Content-Encoding", "identity")
            if encoding.strip().lower() not in ("", "identity"):
                raise AnswerError(f"sends a file compressed with '{encoding[:20]}', although it was not asked to")
            yield Answer(response, end)


class BoundedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a few redirects, by http and https only, and never from https to http.

    Args:
        url: the first URL.
        secrets: headers for the server of the first URL.
    """

    max_redirections = 5

    def __init__(self, url: str, secrets: Mapping[str, str]) -> None:
        self._origin = urlsplit(url)[:2]
        self._secrets = secrets

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        """Return the request for the target of a redirect; called by urllib."""
        target = urlsplit(newurl)
        if target.scheme not in ("https", urlsplit(req.full_url).scheme):
            fp.close()
            raise AnswerError(f"redirects to '{redact(newurl)}'; expected an https address")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and target[:2] == self._origin:
            for name, value in self._secrets.items():
                request.add_unredirected_header(name, value)
        return request


def is_redirect(status: int) -> bool:
    """Return whether an error's status is that of a redirect, which was one too many or goes nowhere."""
    return HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST
