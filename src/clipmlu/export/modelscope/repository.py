"""Names of repositories on ModelScope, and the address and token of the site."""

from __future__ import annotations

import dataclasses
import re
from urllib.parse import quote, urlencode

from clipmlu.data.url.errors import UrlError
from clipmlu.data.url.location import parse_url
from clipmlu.errors import DownloadError, OptionError
from clipmlu.host import MODELSCOPE_ENDPOINT_VARIABLE, modelscope_endpoint

PREFIX = "ms:"
DEFAULT_REVISION = "master"
"""The branch that ModelScope's own client takes (``DEFAULT_MODEL_REVISION`` of modelscope 1.40.2)."""

_NAME = re.compile(r"(?P<org>[\w-][\w.-]*)/(?P<name>[\w-][\w.-]*)(?:@(?P<revision>[\w-][\w./-]*))?")
_EXPECTED = f"expected {PREFIX}org/name, or {PREFIX}org/name@revision"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repository:
    """A repository with a revision.

    Attributes:
        org: the organisation or user.
        name: within the organisation.
        revision: a branch, tag or commit.
    """

    org: str
    name: str
    revision: str = DEFAULT_REVISION

    @property
    def id(self) -> str:
        """``org/name``."""
        return f"{self.org}/{self.name}"

    def url(self, what: str, **query: str) -> str:
        """Return the URL of a part of the site's interface.

        Args:
            what: path below the repository's own.
            query: parameters.

        Raises:
            DownloadError: the configured address of the site is malformed.
        """
        path = f"{checked_endpoint()}/api/v1/models/{quote(self.org)}/{quote(self.name)}/{what}"
        return f"{path}?{urlencode(query)}" if query else path


def parse_repository(model: str) -> Repository:
    """Return the repository of ``ms:org/name`` or ``ms:org/name@revision``.

    Raises:
        OptionError: the text is neither.
    """
    match = _NAME.fullmatch(model.removeprefix(PREFIX))
    if match is None or ".." in (match["revision"] or "").split("/"):
        raise OptionError(f"model is '{model}'; {_EXPECTED}")
    return Repository(org=match["org"], name=match["name"], revision=match["revision"] or DEFAULT_REVISION)


def checked_endpoint() -> str:
    """Return the site's address without a slash at its end.

    Raises:
        DownloadError: the configured address is malformed.
    """
    endpoint = modelscope_endpoint()
    try:
        parse_url(endpoint)
    except UrlError as error:
        raise DownloadError(
            f"'{endpoint}' is no address of ModelScope. Check {MODELSCOPE_ENDPOINT_VARIABLE}: expected https://..."
        ) from error
    return endpoint
