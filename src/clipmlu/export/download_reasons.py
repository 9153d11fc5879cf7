"""Reasons for failed downloads in clipmlu's own words, since the libraries' messages differ between versions."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator
from typing import Any

from clipmlu.host import require

PURPOSE = "Downloading a model"
_STATUSES = {
    401: "it requires a login, or rejects the token. Set {token} to a valid one, or unset it",
    403: "access is refused. The account or token lacks the permission",
    404: "there is no such file. Check the name",
    407: "a proxy requires a login. Check HTTPS_PROXY",
    429: "it received too many requests. Wait a few minutes, or log in for a higher limit",
}
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_UNWRITABLE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}
)
_OF_CONNECTIONS = (socket.gaierror, ssl.SSLError, ConnectionError, TimeoutError)  # with numbers that files have, too
_BAD_ADDRESSES = frozenset(
    {"UnsupportedProtocol", "InvalidURL", "LocalProtocolError", "InvalidSchema", "MissingSchema"}
)
_CUT = frozenset({"RemoteProtocolError", "ReadError", "WriteError", "IncompleteRead", "ChunkedEncodingError"})


def download_reason(error: BaseException, repo: str, cache: str) -> str:
    """Return why a file of a repository could not be downloaded, and what to do: sentences without the last full stop.

    Args:
        error: the exception of huggingface_hub.
        repo: ``org/name``.
        cache: its cache directory.
    """
    endpoint = str(require("huggingface_hub.constants", "export", PURPOSE).ENDPOINT)
    for each in causes(error):
        found = _of_the_hub(each, repo, endpoint) or cache_reason(each, cache)
        if found is not None:
            return found
        found = network_reason(each, endpoint, "HF_ENDPOINT")
        if found is not None:
            end = "" if found.endswith("?") else "."
            return f"{found}{end} The cache '{cache}' does not hold it. {ways_out(repo)}"
    if type(error) is OSError:  # the hub's size check, which raises no specific class
        return f"the file from '{endpoint}' has another size than announced. Run again"
    return f"huggingface_hub fails with {type(error).__name__} at '{endpoint}'. Is it a Hugging Face hub (HF_ENDPOINT)?"


def ways_out(repo: str) -> str:
    """Return how to get a repository's files without a connection to the hub, without the last full stop."""
    return f"HF_ENDPOINT chooses a mirror, such as https://hf-mirror.com, and ModelScope may have '{repo}' (ms:{repo})"


def _of_the_hub(error: BaseException, repo: str, endpoint: str) -> str | None:
    errors = require("huggingface_hub.errors", "export", PURPOSE)
    if isinstance(error, errors.GatedRepoError):
        return f"'{repo}' is gated. Ask for access at {endpoint}/{repo}, and set HF_TOKEN to your token"
    if isinstance(error, errors.DisabledRepoError):
        return f"'{repo}' was disabled at '{endpoint}'"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"'{endpoint}' has no '{repo}', or requires a login for it. Check the name; for a private one set HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"'{repo}' has no branch 'main' at '{endpoint}'"
    if isinstance(error, errors.FileMetadataError):
        return f"'{endpoint}' does not answer like a Hugging Face hub: a proxy's page, or a wrong HF_ENDPOINT"
    if isinstance(error, errors.HFValidationError):
        return f"'{repo}' is no name of a repository; expected org/name"
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        status = int(error.response.status_code)
        reason = status_reason(status, endpoint, "HF_TOKEN")
        return f"{reason}. {ways_out(repo)}" if status >= 500 else reason
    return None


def status_reason(status: int, endpoint: str, token: str) -> str:
    """Return what the status of an answer means, and what to do, without the last full stop.

    Args:
        status: HTTP status code.
        endpoint: address of the server.
        token: the variable that holds its token.
    """
    other = "it fails. Try again later" if status >= 500 else "an unexpected status"
    return f"'{endpoint}' answers {status}: {_STATUSES.get(status, other).format(token=token)}"


def cache_reason(error: BaseException, cache: str) -> str | None:
    """Return why a file cannot be written to a cache, without the last full stop; None for other errors."""
    if not isinstance(error, OSError) or isinstance(error, _OF_CONNECTIONS):
        return None
    if error.errno in _FULL:
        return (
            f"there is no space left for it in the cache '{cache}'. Make some, or choose another place with --cache-dir"
        )
    if error.errno in _UNWRITABLE:
        return f"the cache '{cache}' cannot be written: {error.strerror}. Choose another place with --cache-dir"
    return None


def network_reason(error: BaseException, endpoint: str, variable: str) -> str | None:
    """Return why a connection failed, without the last full stop; None for other errors.

    Args:
        error: an exception of the system, or of an HTTP library.
        endpoint: address of the server.
        variable: the variable that holds the address.
    """
    return _of_the_network(error, endpoint) or _of_http(error, endpoint, variable)


def _of_the_network(error: BaseException, endpoint: str) -> str | None:
    if isinstance(error, socket.gaierror):
        return f"the name of '{endpoint}' is not known. Is there a network?"
    if isinstance(error, ssl.SSLError):
        return f"the connection to '{endpoint}' is not secure: its certificate is not accepted. SSL_CERT_FILE adds that of a proxy"
    if isinstance(error, TimeoutError):
        return f"'{endpoint}' does not answer in time. Try again later"
    if isinstance(error, ConnectionResetError | ConnectionAbortedError | BrokenPipeError):
        return f"the connection to '{endpoint}' was cut. Run again"
    if not isinstance(error, OSError) or error.errno is None:
        return None
    return f"'{endpoint}' cannot be reached: {error.strerror}. Is there a network?"


def _of_http(error: BaseException, endpoint: str, variable: str) -> str | None:
    """Return the reason for an HTTP error by its class name; huggingface_hub versions use different HTTP libraries."""
    names = {each.__name__ for each in type(error).__mro__}
    if names & _CUT:
        return f"the connection to '{endpoint}' was cut. Run again"
    if "TimeoutException" in names or "Timeout" in names:
        return f"'{endpoint}' does not answer in time. Try again later"
    if "ProxyError" in names:
        return "the proxy blocks it. Check HTTPS_PROXY"
    if "TooManyRedirects" in names:
        return f"'{endpoint}' redirects in a loop. Check {variable}"
    if names & _BAD_ADDRESSES:
        return f"'{endpoint}' is no address of a hub. Check {variable}: expected https://..."
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Return an error and its causes, the innermost first, since the operating system's error is the most specific."""
    found: list[BaseException] = []
    while error is not None and len(found) < 20:
        found.append(error)
        error = error.__cause__ or error.__context__
    return reversed(found)


def digest_of(metadata: Any) -> str | None:
    """Return the SHA-256 that the hub announces for a large file, or None for a small one, which has another digest."""
    etag = str(metadata.etag or "")
    return etag if len(etag) == 64 and set(etag) <= set("0123456789abcdef") else None
