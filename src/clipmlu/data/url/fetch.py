"""Fetching an image by URL: redirects, repeated attempts, and one line for everything that can go wrong."""

from __future__ import annotations

import http.client
import ssl
import zlib
from collections.abc import Callable
from http import HTTPStatus

from clipmlu.data.url.connection import CUT, Response, request
from clipmlu.data.url.errors import CutError, UrlError
from clipmlu.data.url.location import Location, parse_url, redact
from clipmlu.data.url.options import UrlOptions
from clipmlu.data.url.retry_after import parse_retry_after
from clipmlu.data.url.time_limit import TimeLimit
from clipmlu.errors import InputError, first_line, reason_of
from clipmlu.file_names import name_from_path

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_COMPLETE = frozenset({200, 203})
_PAUSES_S = (0.5, 1.5)
"""Pauses before the second and third attempt."""


def fetch_image(url: str, options: UrlOptions, limit: TimeLimit | None = None) -> bytes:
    """Return the content of an image file.

    The attempt is repeated up to two times if the server answers 429 or 5xx, after the pause that it asks for, or if it
    ends the connection too early.

    Args:
        url: an http or https URL.
        options: limits.
        limit: the time limit, begun already; None to begin it now.

    Raises:
        InputError: the file cannot be fetched within the limits; the message holds no secrets of the URL.
    """
    try:
        return _fetch(parse_url(url), options, limit or TimeLimit(options.timeout_s))
    except UrlError as error:
        raise InputError(f"Cannot read image '{redact(name_from_path(url))}': {error}") from error


def _fetch(location: Location, options: UrlOptions, limit: TimeLimit) -> bytes:
    """Follow redirects until a server sends the content."""
    for hop in range(options.max_redirects + 1):
        try:
            answer = _ask_repeatedly(location, options, limit)
            if isinstance(answer, bytes):
                return answer
            location = location.follow(answer)
        except UrlError as error:
            # The error is about the target; the URL that the user knows stands before it in the message.
            raise (
                error if not hop else UrlError(f"it redirects to '{redact(name_from_path(location.url))}': {error}")
            ) from error
    raise UrlError(
        f"it redirects more than {options.max_redirects} times, the last time to '{redact(name_from_path(location.url))}'."
    )


def _ask_repeatedly(location: Location, options: UrlOptions, limit: TimeLimit) -> bytes | str:
    """Return the content, or the target of a redirect; repeat what may succeed later.

    Raises:
        UrlError: it cannot be fetched.
    """
    for pause in (*_PAUSES_S, None):
        try:
            return _with_reasons(lambda: _ask(location, options, limit), options)
        except _BusyError as error:
            wait = error.retry_after_s if error.retry_after_s is not None else pause
            if pause is None or wait is None or not limit.sleep(wait):
                raise
        except CutError:
            if pause is None or not limit.sleep(pause):
                raise
    raise AssertionError("the last attempt returns or raises")


def _ask(location: Location, options: UrlOptions, limit: TimeLimit) -> bytes | str:
    """Send one request."""
    with request(location, limit, max_bytes=options.max_bytes, allow_private=options.allow_private) as response:
        if response.status in _COMPLETE:
            return response.read()
        if response.status in _REDIRECTS:
            target: str | None = response.headers.get("Location")
            if target is None:
                raise UrlError(f"its server answers {_status(response)} without a target.")
            return target
        if response.status == HTTPStatus.TOO_MANY_REQUESTS or response.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise _BusyError(response)
        raise UrlError(f"its server answers {_status(response)}.")


class _BusyError(UrlError):
    """The server cannot answer now.

    Attributes:
        retry_after_s: seconds after which it asks to try again, or None.
    """

    def __init__(self, response: Response) -> None:
        self.retry_after_s = parse_retry_after(response.headers.get("Retry-After"))
        asked = "" if self.retry_after_s is None else f", and to try again after {self.retry_after_s:.0f} s"
        super().__init__(f"its server answers {_status(response)}{asked}.")


def _status(response: Response) -> str:
    try:
        return f"{response.status} {HTTPStatus(response.status).phrase}"
    except ValueError:
        return f"with status {response.status}"


def _with_reasons(ask: Callable[[], bytes | str], options: UrlOptions) -> bytes | str:
    """Call ``ask`` and convert the errors of connections to ``UrlError``."""
    try:
        return ask()
    except TimeoutError as error:
        raise UrlError(
            f"it took longer than {options.timeout_s:g} s. Allow more with --url-timeout (timeout_s in Python)."
        ) from error
    except ssl.SSLCertVerificationError as error:
        raise UrlError(f"the certificate of its server is not valid: {error.verify_message}.") from error
    except (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError, http.client.IncompleteRead) as error:
        raise CutError(CUT) from error
    except ssl.SSLError as error:
        raise UrlError(
            f"no secure connection: {(error.reason or first_line(error)).replace('_', ' ').lower()}."
        ) from error
    except OSError as error:
        raise UrlError(f"the connection failed: {reason_of(error)}.") from error
    except (http.client.HTTPException, ValueError) as error:  # ValueError: a negative chunk size, in http.client
        raise UrlError("its server does not answer with valid HTTP.") from error
    except zlib.error as error:
        raise UrlError("its server compressed it, and the result is damaged.") from error
