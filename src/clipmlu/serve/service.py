"""The service: the bundles that are served, and the index. It is independent of HTTP."""

from __future__ import annotations

import os
from collections.abc import Mapping

from clipmlu.errors import OptionError, UnknownNameError
from clipmlu.model import load_for_images
from clipmlu.serve.options import ServeOptions
from clipmlu.serve.refusal import Refusal
from clipmlu.serve.searching import ServedIndex, open_served_index
from clipmlu.serve.served_model import ServedModel


class Service:
    """The bundles that are served.

    Attributes:
        options: options of the server.
        models: maps a name to its bundle; the first one is the default.
        index: the index of ``/v1/search``, or None.
        stopping: new requests are refused.
    """

    def __init__(
        self, models: Mapping[str, ServedModel], options: ServeOptions, index: ServedIndex | None = None
    ) -> None:
        if not models:
            raise OptionError("no bundles; expected one or more to serve")
        self.models = dict(models)
        self.options = options
        self.index = index
        self.stopping = False

    def model(self, name: str | None) -> ServedModel:
        """Return a bundle by its name; None for the first.

        Raises:
            Refusal: there is none with this name.
        """
        if name is None:
            return next(iter(self.models.values()))
        try:
            return self.models[name]
        except KeyError:
            raise Refusal("unknown_model", str(UnknownNameError("model", name, self.models))) from None

    def why_not_ready(self) -> str | None:
        """Return why requests cannot be answered now, or None."""
        if self.stopping:
            return "The server is stopping."
        return next(filter(None, (model.why_not_ready() for model in self.models.values())), None)

    def close(self) -> None:
        """Release all bundles; what waits fails."""
        self.stopping = True
        for model in self.models.values():
            model.close()


def open_service(bundles: Mapping[str, str | os.PathLike[str]], options: ServeOptions) -> Service:
    """Load bundles, compute an image and a text with each, and return the service.

    Args:
        bundles: maps a name to the directory of a compiled bundle.
        options: options of the server.

    Raises:
        OptionError, BundleError, BackendUnavailableError: as for ``clipmlu.load``.
        InputError: the index cannot be read, or no bundle is of its model.
    """
    models: dict[str, ServedModel] = {}
    try:
        for name, path in bundles.items():
            models[name] = _open_model(name, path, options)
            models[name].warm_up()
        return Service(models, options, _open_index(models, options))
    except BaseException:
        for model in models.values():
            model.close()
        raise


def _open_model(name: str, path: str | os.PathLike[str], options: ServeOptions) -> ServedModel:
    encoder = load_for_images(path, _Running(options), image_only=options.classifier is not None)
    try:
        return ServedModel(name, encoder, options)
    except BaseException:
        encoder.close()
        raise


def _open_index(models: Mapping[str, ServedModel], options: ServeOptions) -> ServedIndex | None:
    if options.index is None:
        return None
    return open_served_index(options.index, {name: model.encoder.runnable.facts for name, model in models.items()})


class _Running:
    """The options of a server as ``load_for_images`` reads them."""

    def __init__(self, options: ServeOptions) -> None:
        from clipmlu.data.images import DEFAULT_MAX_PIXELS

        self.threads = options.threads
        self.device = options.device
        self.devices = options.devices
        self.fast_preprocess = options.fast_preprocess
        self.max_pixels = options.max_pixels or DEFAULT_MAX_PIXELS
