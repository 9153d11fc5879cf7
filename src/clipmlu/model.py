"""The model that people hold: a compiled bundle that embeds images and texts and makes classifiers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np

from clipmlu.arguments import as_path, check_argument
from clipmlu.backends import SessionOptions
from clipmlu.bundle.directory import open_compiled
from clipmlu.classify.classifier import ZeroShotClassifier, build_classifier, load_classifier
from clipmlu.data.class_names import ClassNames
from clipmlu.data.images import ImageSource
from clipmlu.embed.encoder import Encoder, FloatArray
from clipmlu.embed.images import embed_items, items_from_images
from clipmlu.specs import TowerName


def load(
    path: str | os.PathLike[str],
    *,
    threads: int = 0,
    device: int = 0,
    verify: bool = True,
    image_only: bool = False,
    fast_preprocess: bool = False,
    busy_wait: bool = True,
    max_pixels: int | None = None,
) -> Model:
    """Open a compiled bundle for use.

    Args:
        path: directory of a compiled bundle.
        threads: CPU threads for one batch; 0 leaves it to the runtime.
        device: index of the MLU card, for bundles that run on one.
        verify: recompute the digests of the bundle's files.
        image_only: do without the text tower, whose files may then be absent; for use with a classifier file.
        fast_preprocess: decode JPEGs at a reduced scale and shrink large images in two steps; the pixels are then not
            those of open_clip.
        busy_wait: threads of a CPU runtime may spin while they wait for one another: the lowest latency for one image at
            a time. Off, many images come through sooner where decoding and computing share the CPU.
        max_pixels: largest width x height of an image that is decoded; None for 178,956,970.

    Raises:
        OptionError: an argument is of another type or outside its range.
        BundleError: there is no such bundle, it is not compiled, or it is not what its manifest says.
        BackendUnavailableError: its runtime cannot be used here; raised when the first tower is needed.
    """
    unused: tuple[TowerName, ...] = ("text",) if check_argument(image_only, bool, "image only") else ()
    options = SessionOptions(threads=threads, device=device, busy_wait=busy_wait)
    bundle = open_compiled(path, verify=verify, without=unused)
    return Model(bundle, options, fast_preprocess=fast_preprocess, without=unused, max_pixels=max_pixels)


class Model(Encoder):
    """A compiled bundle, ready for use; made by ``load``. See ``Encoder`` for its lifetime and for preprocessed input."""

    def embed_images(self, images: ImageSource | Iterable[ImageSource], *, batch_size: int | None = None) -> FloatArray:
        """Embed images.

        Args:
            images: one image or many: path, PIL image, NumPy array (uint8, (H, W, 3)), bytes of an image file,
                open binary file.
            batch_size: images per batch; None for the bundle's own.

        Returns:
            float32 embeddings of unit L2 norm: shape (D,) for one image, (N, D) for many.

        Raises:
            InputError: an image cannot be read.
        """
        items, single = items_from_images(images)
        outcomes = embed_items(self, items, batch_size=batch_size)
        rows = [outcome.require_row() for outcome in outcomes]
        embeddings = np.stack(rows) if rows else np.zeros((0, self.embedding_dim), np.float32)
        return embeddings[0] if single else embeddings

    def classifier(
        self,
        class_names: ClassNames,
        templates: str | os.PathLike[str] | Sequence[str] = "simple",
        *,
        cache: bool = True,
    ) -> ZeroShotClassifier:
        """Make a zero-shot classifier.

        Args:
            class_names: one name per class: a list of names, or what ``--labels`` takes, ``"cat,dog"`` or a file. A name that
                occurs twice is two classes with one embedding.
            templates: one template, the name of a set, a file or a sequence; see ``prompts.resolve_templates``.
            cache: keep the class embeddings in the cache directory and take them from there the next time.

        Raises:
            InputError: no class names, or a label file that cannot be read or understood.
            OptionError: names that are no texts, or a template without ``{}``.
        """
        self.require_open()
        check_argument(cache, bool, "cache")
        return build_classifier(self, class_names, templates, cache=cache)

    def load_classifier(self, path: str | os.PathLike[str]) -> ZeroShotClassifier:
        """Open a classifier file for this bundle's image tower; see ``ZeroShotClassifier.save``.

        Raises:
            InputError: the file is not a classifier file, is damaged, or belongs to another text tower.
        """
        self.require_open()
        return load_classifier(self, as_path(path, "the classifier file"))
