"""The public functions that serve bundles over HTTP."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from clipmlu.api.measure_keywords import RunningKeywords
from clipmlu.api.open_set_keywords import OpenSetKeywords
from clipmlu.arguments import as_path
from clipmlu.data.class_prompts import ClassLabels
from clipmlu.data.prompts import Templates
from clipmlu.errors import OptionError
from clipmlu.host import require
from clipmlu.keywords import check_keywords, with_keywords
from clipmlu.serve.options import ServeOptions
from clipmlu.specs import PositiveInt

if TYPE_CHECKING:
    from fastapi import FastAPI

    from clipmlu.serve.service import Service

Bundles = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Mapping[str, str | os.PathLike[str]]
"""One bundle, several, which are named by their folders, or a map from names to bundles."""


class ServeKeywords(RunningKeywords, OpenSetKeywords, total=False):
    """Keywords of ``run_server`` and ``create_app``.

    Attributes:
        labels: classes of requests that give none; as for ``Model.classifier``.
        classifier: a classifier file instead of ``labels``.
        templates: templates of requests that give none.
        top_k: classes per image of requests that do not say.
        index: folder of the index of ``/v1/search``, or of its job; see ``build_index``.
        max_pixels: largest width x height of an image.
    """

    labels: ClassLabels | None
    classifier: str | os.PathLike[str] | None
    templates: Templates | None
    top_k: PositiveInt
    index: str | os.PathLike[str] | None
    max_pixels: PositiveInt | None


@with_keywords(RunningKeywords, OpenSetKeywords, ServeKeywords, defaults=ServeOptions)
def run_server(
    bundles: Bundles,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    on_listen: Callable[[str], object] = lambda _url: None,
    **keywords: Unpack[ServeKeywords],
) -> None:
    """Serve bundles over HTTP until SIGTERM or SIGINT, as ``clipmlu serve`` does.

    Args:
        bundles: compiled bundles: one, several, or a map from names to bundles.
        host: address to listen on.
        port: port to listen on; 0 for any free one.
        on_listen: called with the URL when the server accepts connections.

    Raises:
        OptionError, BundleError, BackendUnavailableError: as for ``clipmlu.load``.
        MissingDependencyError: FastAPI or uvicorn is not installed.
    """
    service = _open(bundles, keywords, "run_server")
    from clipmlu.serve.run import serve

    serve(service, host=host, port=port, on_listen=on_listen)


@with_keywords(RunningKeywords, OpenSetKeywords, ServeKeywords, defaults=ServeOptions)
def create_app(bundles: Bundles, **keywords: Unpack[ServeKeywords]) -> FastAPI:
    """Return the application of ``run_server``, for another ASGI server or for tests; it closes the bundles when it ends.

    Args:
        bundles: see ``run_server``.

    Raises:
        OptionError, BundleError, BackendUnavailableError, MissingDependencyError: as for ``run_server``.
    """
    service = _open(bundles, keywords, "create_app")
    from clipmlu.serve.http.app import make_app

    return make_app(service)


def _open(bundles: Bundles, keywords: Any, function: str) -> Service:
    for package in ("fastapi", "uvicorn"):
        require(package, "serve", "Serving over HTTP")
    from clipmlu.serve.service import open_service

    return open_service(name_bundles(bundles), ServeOptions(**check_keywords(keywords, ServeKeywords, function)))


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
