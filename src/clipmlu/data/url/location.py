"""URLs of images as text: recognising, parsing, joining, and showing them without secrets."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from urllib.parse import quote, urljoin, urlsplit

from clipmlu.data.url.errors import UrlError
from clipmlu.file_names import name_from_path

_URL = re.compile(r"https?://", re.IGNORECASE)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_USER = re.compile(r"(?<=//)[^/?#]*@")
_SECRET = re.compile(
    r"([?&;][^=&;#]*(?:auth|credential|key|passw|pwd|secret|session|sig|token)[^=&;#]*=)[^&;#]*", re.IGNORECASE
)
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}")
_UNQUOTED = "!#$%&'()*+,/:;=?@[]~"  # of RFC 3986, and the percent sign of what is quoted already
_SHOWN_CHARACTERS = 300
_EXPECTED = "Expected an address such as 'https://host/image.jpg'."


def is_url(text: str) -> bool:
    """Return whether a text is an http or https URL, not a path; ``./https://...`` is a path."""
    return _URL.match(text) is not None


def redact(text: str) -> str:
    """Return the name of an image for messages: a URL without user, password and query values that may be secrets.

    A value is replaced by ``***`` if the name of its parameter contains a word such as ``key``, ``token`` or ``sig``.
    Names that are not URLs are returned unchanged.
    """
    return _without_secrets(text) if is_url(text) else text


def _without_secrets(text: str) -> str:
    text = _SECRET.sub(r"\1***", _USER.sub("***@", text))
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


@dataclasses.dataclass(frozen=True)
class Location:
    """A parsed URL.

    Attributes:
        url: the URL as text.
        scheme: ``http`` or ``https``.
        host: name or IP address in ASCII, without brackets.
        port: of the server.
        target: path and query, percent-encoded.
    """

    url: str
    scheme: str
    host: str
    port: int
    target: str

    @property
    def host_header(self) -> str:
        """Value of the header ``Host``; the port only if it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def follow(self, target: str) -> Location:
        """Return the location of a redirect.

        Args:
            target: the header ``Location``, absolute or relative, as ``http.client`` decodes it.

        Raises:
            UrlError: as for ``parse_url``.
        """
        text = target.encode("latin-1", "replace").decode("utf-8", "surrogateescape")
        try:
            return parse_url(urljoin(self.url, text))
        except (ValueError, UrlError) as error:
            reason = str(error) if isinstance(error, UrlError) else "the URL is malformed."
            raise UrlError(f"it redirects to '{_without_secrets(name_from_path(text))}': {reason}") from error


def parse_url(text: str) -> Location:
    """Parse a URL.

    Raises:
        UrlError: it is malformed, is not http or https, or holds a user name or password.
    """
    text = text.strip()
    if not is_url(text):
        raise UrlError("only http and https are allowed.")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        quoted = quote(target, safe=_UNQUOTED, errors="surrogateescape")
    except ValueError as error:
        raise UrlError(f"the URL is malformed. {_EXPECTED}") from error
    if "@" in parts.netloc:
        raise UrlError("the URL holds a user name or password, which are not sent. Use a URL without them.")
    scheme = parts.scheme.lower()
    return Location(text, scheme, _ascii_host(host), _DEFAULT_PORTS[scheme] if port is None else port, quoted)


def _ascii_host(host: str | None) -> str:
    """Return a host in ASCII; international names as the domain name system has them.

    Raises:
        UrlError: it is neither a name nor an address.
    """
    try:
        if host is not None and ":" in host:
            return ipaddress.IPv6Address(host if "%" not in host else "").compressed
        name = "" if host is None else host if host.isascii() else host.encode("idna").decode("ascii")
    except ValueError as error:  # UnicodeError of idna included
        raise UrlError(f"the URL's host is malformed. {_EXPECTED}") from error
    if _HOST.fullmatch(name) is None:
        raise UrlError(f"the URL's host is malformed. {_EXPECTED}")
    return name
