"""The public functions that serve bundles over HTTP."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from clipmlu.api.bulk import UrlKeywords, url_options
from clipmlu.api.measure_keywords import RunningKeywords
from clipmlu.api.open_set_keywords import OpenSetKeywords
from clipmlu.arguments import as_path
from clipmlu.data.class_prompts import ClassLabels
from clipmlu.data.prompts import Templates
from clipmlu.errors import OptionError
from clipmlu.host import require
from clipmlu.keywords import check_keywords, with_keywords
from clipmlu.serve.options import Port, Seconds, ServeOptions
from clipmlu.specs import PositiveInt

if TYPE_CHECKING:
    from clipmlu.serve.http.edge import Edge

Bundles = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Mapping[str, str | os.PathLike[str]]
"""One bundle, several, which are named by their folders, or a map from names to bundles."""


class ServeKeywords(RunningKeywords, OpenSetKeywords, UrlKeywords, total=False):
    """Keywords of ``run_server`` and ``create_app``.

    Attributes:
        labels: classes of requests that give none; as for ``Model.classifier``.
        classifier: a classifier file instead of ``labels``.
        templates: templates of ``labels``.
        top_k: classes per image of requests that do not say.
        index: folder of the index of ``/v1/search``, or of its job; see ``build_index``.
        max_pixels: largest width x height of an image.
        max_queue: images that may wait or be computed at a time, for each bundle.
        max_images: images of one request.
        max_texts: texts of one request, or its labels times its templates.
        max_body: bytes of one request.
        timeout_s: seconds from the arrival of a request to its answer.
        stop_timeout_s: seconds to finish the requests in progress when the server is stopped.
    """

    labels: ClassLabels | None
    classifier: str | os.PathLike[str] | None
    templates: Templates | None
    top_k: PositiveInt
    index: str | os.PathLike[str] | None
    max_pixels: PositiveInt | None
    max_queue: PositiveInt
    max_images: PositiveInt
    max_texts: PositiveInt
    max_body: PositiveInt
    timeout_s: Seconds
    stop_timeout_s: Seconds


class HttpKeywords(TypedDict, total=False):
    """Keywords of the HTTP side.

    Attributes:
        host: address to listen on.
        port: port to listen on; 0 for any free one.
        api_key_file: file with the key that requests need; None for ``CLIPMLU_API_KEY``, or for no key.
        allow_host: names of this server in requests, besides those of the loopback.
        allow_origin: origins of other web pages that may ask, such as ``https://example.org``.
        max_connections: connections at a time.
    """

    host: str
    port: Port
    api_key_file: str | os.PathLike[str] | None
    allow_host: Sequence[str]
    allow_origin: Sequence[str]
    max_connections: PositiveInt


class RunServerKeywords(ServeKeywords, HttpKeywords, total=False):
    """Keywords of ``run_server``."""


@with_keywords(
    RunningKeywords, OpenSetKeywords, UrlKeywords, ServeKeywords, HttpKeywords, RunServerKeywords, defaults=ServeOptions
)
def run_server(
    bundles: Bundles,
    *,
    on_listen: Callable[[str], object] = lambda _url: None,
    write_log: Callable[[str], object] | None = None,
    **keywords: Unpack[RunServerKeywords],
) -> None:
    """Serve bundles over HTTP until SIGTERM or SIGINT, as ``clipmlu serve`` does.

    Args:
        bundles: compiled bundles: one, several, or a map from names to bundles.
        on_listen: called with the URL when the server accepts connections.
        write_log: writes a line of the access log, which is JSON; None for no log.

    Raises:
        OptionError: a keyword is wrong, the port is taken, or other machines can reach the server and there is no API key.
        BundleError, BackendUnavailableError: as for ``clipmlu.load``.
        MissingDependencyError: FastAPI or uvicorn is not installed.
    """
    _require_packages()
    from clipmlu.serve.http.options import HttpOptions
    from clipmlu.serve.loading import answering_while_loading
    from clipmlu.serve.run import bind, make_server
    from clipmlu.serve.service import open_service

    given = check_keywords(keywords, RunServerKeywords, "run_server")
    fields = {field.name for field in dataclasses.fields(HttpOptions)}
    http = HttpOptions(**{name: value for name, value in given.items() if name in fields})
    http.rules()  # refuses before a model is loaded
    options = _serve_options({name: value for name, value in given.items() if name not in fields})
    with bind(http) as socket:
        with answering_while_loading(socket):
            service = open_service(name_bundles(bundles), options)
        make_server(service, http, on_listen=on_listen, write_log=write_log).run([socket])


@with_keywords(RunningKeywords, OpenSetKeywords, UrlKeywords, ServeKeywords, defaults=ServeOptions)
def create_app(
    bundles: Bundles,
    *,
    api_key: str | None = None,
    allow_hosts: Sequence[str] | None = (),
    allow_origins: Sequence[str] = (),
    write_log: Callable[[str], object] | None = None,
    **keywords: Unpack[ServeKeywords],
) -> Edge:
    """Return the ASGI application of ``run_server``, for another server or for tests; it closes the bundles when it ends.

    Args:
        bundles: see ``run_server``.
        api_key: key that requests need; None for none.
        allow_hosts: names of the server in requests, besides those of the loopback; None allows any.
        allow_origins: see ``run_server``.
        write_log: see ``run_server``.

    Raises:
        OptionError, BundleError, BackendUnavailableError, MissingDependencyError: as for ``run_server``.
    """
    _require_packages()
    from clipmlu.serve.http.access import AccessRules
    from clipmlu.serve.http.app import make_app
    from clipmlu.serve.service import open_service

    options = _serve_options(check_keywords(keywords, ServeKeywords, "create_app"))
    hosts = None if allow_hosts is None else tuple(allow_hosts)
    rules = AccessRules(api_key=api_key, allow_hosts=hosts, allow_origins=tuple(allow_origins))
    return make_app(open_service(name_bundles(bundles), options), rules, write_log)


def _serve_options(given: Mapping[str, Any]) -> ServeOptions:
    chosen = {name: value for name, value in given.items() if name not in UrlKeywords.__annotations__}
    return ServeOptions(**chosen, urls=url_options(given))


def _require_packages() -> None:
    for package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
        require(package, "serve", "Serving over HTTP")


def name_bundles(bundles: Bundles) -> dict[str, Path]:
    """Return bundles by their names: given ones, or those of the folders.

    Raises:
        OptionError: two bundles have the same name.
    """
    if isinstance(bundles, Mapping):
        return {name: as_path(path, f"bundle '{name}'") for name, path in bundles.items()}
    given = [bundles] if isinstance(bundles, (str, os.PathLike)) else bundles
    named: dict[str, Path] = {}
    for each in given:
        path = as_path(each, "the bundle")
        name = path.resolve().name
        if name in named:
            raise OptionError(f"bundles '{named[name]}' and '{path}' have the same name '{name}'; name one: NAME=PATH")
        named[name] = path
    return named
