"""``load`` and ``Model``: a compiled bundle that embeds images and texts and creates classifiers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol, overload

import numpy as np

from clipmlu.arguments import as_path, check_argument, is_there
from clipmlu.backends import SessionOptions
from clipmlu.bundle.directory import open_compiled
from clipmlu.classify.building import build_classifier, load_classifier
from clipmlu.classify.classifier import ZeroShotClassifier
from clipmlu.data.class_prompts import ClassLabels
from clipmlu.data.datasets.elements import LabelledImage
from clipmlu.data.images import ImageSource
from clipmlu.data.prompts import Templates
from clipmlu.data.url.options import UrlOptions
from clipmlu.display import Displayed, Summary
from clipmlu.embed.encoder import Encoder
from clipmlu.embed.images import embed_items
from clipmlu.embed.items import ImageEmbeddings, OnError, items_from_images
from clipmlu.embed.rows import FloatArray
from clipmlu.errors import BundleNotFoundError, OptionError
from clipmlu.export.catalog import is_model_name, with_tag
from clipmlu.keywords import refuse_device_name
from clipmlu.specs import TowerName
from clipmlu.steps import StartStep, no_steps


class RunningValues(Protocol):
    """What ``load_for_images`` reads from options that run a bundle on many images; see ``load`` for each."""

    @property
    def threads(self) -> int:
        """CPU threads for one batch."""

    @property
    def device(self) -> int | None:
        """Index of the card."""

    @property
    def devices(self) -> Sequence[int] | str | None:
        """Several cards."""

    @property
    def fast_preprocess(self) -> bool:
        """Decode large JPEGs at a reduced scale."""

    @property
    def max_pixels(self) -> int:
        """Largest width x height of an image."""


def load_for_images(bundle: str | os.PathLike[str], running: RunningValues, *, image_only: bool) -> Model:
    """Load a compiled bundle for many images: its threads wait passively, because images are prepared on the same CPUs.

    Args:
        bundle: directory of a compiled bundle.
        running: options with these values.
        image_only: see ``load``.

    Raises:
        OptionError, BundleError, BackendUnavailableError: as for ``load``.
    """
    return load(
        bundle,
        threads=running.threads,
        device=running.device,
        devices=running.devices,
        image_only=image_only,
        fast_preprocess=running.fast_preprocess,
        max_pixels=running.max_pixels,
        busy_wait=False,
    )


def load(
    path: str | os.PathLike[str],
    *,
    threads: int = 0,
    device: int | None = None,
    devices: Sequence[int] | str | None = None,
    verify: bool = True,
    image_only: bool = False,
    fast_preprocess: bool = False,
    busy_wait: bool = True,
    max_pixels: int | None = None,
) -> Model:
    """Open a compiled bundle for use.

    Args:
        path: directory of a compiled bundle.
        threads: CPU threads for one batch; 0 for the runtime's default.
        device: index of the MLU card, for bundles that run on one; None for the first card.
        devices: instead of ``device``, several cards that share the images: their indices, or ``"all"``. Texts are
            embedded on the first of them.
        verify: recompute the digests of the bundle's files.
        image_only: do not use the text tower, whose files may then be missing; for use with a classifier file.
        fast_preprocess: decode large JPEGs at a reduced scale, which is faster; the pixels then differ
            from those of open_clip.
        busy_wait: let the threads of a CPU runtime wait actively, for the lowest latency of single images. False gives
            more images per second if decoding and computing share the CPU.
        max_pixels: largest width x height of an image; larger ones are errors. None for 178,956,970.

    Raises:
        OptionError: an argument has another type or is out of range.
        BundleError: there is no bundle, it is not compiled, or its files differ from the manifest.
        BackendUnavailableError: its runtime cannot be used on this machine; raised on first use of a tower.
    """
    unused: tuple[TowerName, ...] = ("text",) if check_argument(image_only, bool, "image only") else ()
    if device is not None and devices is not None:
        raise OptionError("device and devices exclude each other; give one of them")
    refuse_device_name(device)
    options = SessionOptions(threads=threads, device=0 if device is None else device, busy_wait=busy_wait)
    _refuse_model_name(path)
    bundle = open_compiled(path, verify=verify, without=unused)
    return Model(
        bundle, options, devices=devices, fast_preprocess=fast_preprocess, without=unused, max_pixels=max_pixels
    )


def _refuse_model_name(path: object) -> None:
    """Raise if a path is the name of a model, and nothing else."""
    if isinstance(path, str) and is_model_name(path) and not is_there(as_path(path, "the bundle")):
        raise BundleNotFoundError(
            f"'{path}' is the name of a model; expected the folder of a compiled bundle. From a name to a model: "
            f"clipmlu.pipeline('{with_tag(path)}')."
        )


class Model(Displayed, Encoder):
    """A compiled bundle, ready for use; created by ``load``. See ``Encoder`` for closing and for preprocessed input."""

    def summary(self) -> Summary:
        """Return the facts that people see."""
        return self.bundle.summary()

    def to_dict(self) -> dict[str, Any]:
        """Return path, digest and manifest of the bundle as a dict for JSON."""
        return self.bundle.to_dict()

    @overload
    def embed_images(
        self,
        images: ImageSource | LabelledImage | Iterable[ImageSource | LabelledImage],
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        on_error: Literal["raise"] = "raise",
        allow_urls: bool | UrlOptions = False,
    ) -> FloatArray: ...

    @overload
    def embed_images(
        self,
        images: ImageSource | LabelledImage | Iterable[ImageSource | LabelledImage],
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        on_error: Literal["skip"],
        allow_urls: bool | UrlOptions = False,
    ) -> ImageEmbeddings: ...

    def embed_images(
        self,
        images: ImageSource | LabelledImage | Iterable[ImageSource | LabelledImage],
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        on_error: OnError = "raise",
        allow_urls: bool | UrlOptions = False,
    ) -> FloatArray | ImageEmbeddings:
        """Embed images.

        Args:
            images: one image or many; see ``ZeroShotClassifier.predict``.
            batch_size: images per batch; None for the bundle's own.
            workers: threads that read and prepare images; None for one per CPU that this process may use.
            on_error: what an image that cannot be read does: ``"raise"`` ends the call, ``"skip"`` gives a row of NaN
                and a reason.
            allow_urls: see ``ZeroShotClassifier.predict``.

        Returns:
            float32 embeddings of unit L2 norm: shape (D,) for one image, (N, D) for many. With ``on_error="skip"``
            ``ImageEmbeddings``: these rows, and the errors.

        Raises:
            InputError: an image cannot be read, and ``on_error`` is ``"raise"``.
        """
        check_argument(on_error, OnError, "on_error")
        items, single = items_from_images(images, allow_urls=allow_urls)
        rows: list[FloatArray] = []
        errors: dict[int, str] = {}
        for outcome in embed_items(self, items, batch_size=batch_size, workers=workers):
            if outcome.error is not None and on_error == "skip":
                errors[len(rows)] = str(outcome.error)
                rows.append(np.full(self.embedding_dim, np.nan, np.float32))
            else:
                rows.append(outcome.require_row())
        embeddings = np.stack(rows) if rows else np.zeros((0, self.embedding_dim), np.float32)
        found = embeddings[0] if single else embeddings
        return ImageEmbeddings(found, errors) if on_error == "skip" else found

    def classifier(
        self,
        class_names: ClassLabels,
        templates: Templates | None = None,
        *,
        cache: bool = True,
        none_label: str | None = None,
        background: str | Sequence[str] | None = None,
        reject_below: float | None = None,
        on_step: StartStep = no_steps,
    ) -> ZeroShotClassifier:
        """Create a zero-shot classifier.

        Args:
            class_names: one name per class: a list of names, or a value of ``--labels``: ``"cat,dog"`` or a file. A
                repeated name gives two classes with the same embedding. A dict gives each class prompts of its own, one text
                or a list, instead of templates: ``{"cat": ["a photo of a cat.", "a tabby."], "dog": "a puppy."}``.
            templates: one template, a function of the class name such as those of open_clip, the name of a set, a file or a
                sequence of these; see ``prompts.resolve_templates``. None for ``"simple"``.
            cache: store the class embeddings in the cache directory and read them from there the next time.
            none_label: an image may show none of the classes; a prediction is then called so, and its index is the number of
                classes. Background classes such as "person" and "landscape" compete with the classes: the probability of
                ``none_label`` is the sum of theirs.
            background: names of the background classes; None for ``classify.open_set.DEFAULT_BACKGROUND`` with a ``none_label``.
            reject_below: an image whose best class has a smaller probability shows none of the classes; with or without
                background classes. A model with a logit bias, such as SigLIP, takes this rule only.
            on_step: shows the prompts; see ``clipmlu.steps``.

        Raises:
            InputError: there are no class names, or the label file cannot be read or parsed.
            OptionError: a name is not a string, or a template has no ``{}``.
        """
        self.require_open()
        check_argument(cache, bool, "cache")
        return build_classifier(
            self,
            class_names,
            templates,
            cache=cache,
            none_label=none_label,
            background=background,
            reject_below=reject_below,
            on_step=on_step,
        )

    def load_classifier(self, path: str | os.PathLike[str]) -> ZeroShotClassifier:
        """Open a classifier file for this bundle's image tower; see ``ZeroShotClassifier.save``.

        Raises:
            InputError: the file is not a classifier file, is damaged, or belongs to another text tower.
        """
        self.require_open()
        return load_classifier(self, as_path(path, "the classifier file"))
