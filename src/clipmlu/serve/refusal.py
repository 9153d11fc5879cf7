"""Refusals: errors that an answer of the server reports, with a code for programs and an HTTP status."""

from __future__ import annotations

from collections.abc import Mapping

from clipmlu.errors import ClipmluError

STATUS_OF: dict[str, int] = {
    "bad_request": 400,
    "bad_image": 400,
    "unauthorized": 401,
    "forbidden_host": 403,
    "forbidden_origin": 403,
    "urls_not_allowed": 403,
    "not_found": 404,
    "unknown_model": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "too_large": 413,
    "unsupported_media_type": 415,
    "overloaded": 429,
    "internal": 500,
    "stopping": 503,
    "not_ready": 503,
    "device_failed": 503,
    "deadline_exceeded": 504,
}
"""Maps the code of an error to its HTTP status."""


class Refusal(ClipmluError):  # noqa: N818 -- an answer, not a fault
    """A request is refused, or failed.

    Attributes:
        code: a key of ``STATUS_OF``.
        headers: further headers of the answer.
    """

    def __init__(self, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        self.code = code
        self.headers = dict(headers or {})
        super().__init__(message)

    @property
    def status(self) -> int:
        """The HTTP status."""
        return STATUS_OF[self.code]
