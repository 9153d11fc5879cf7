"""Embedding spaces: which embeddings can be compared with each other."""

from __future__ import annotations

from clipmlu.bundle.manifest import Manifest
from clipmlu.keys import value_digest
from clipmlu.specs import ModelId, PositiveInt, Spec


class EmbeddingSpace(Spec, frozen=True, kw_only=True):
    """What embeddings must have in common to be compared: all bundles that are compiled from one exported model have the same space.

    Attributes:
        model: the model.
        text_id: digest of the text tower; see ``Manifest.text_id``.
        weights_digest: digest of the weights of both towers; see ``Export.weights_digest``.
        preprocess_digest: digest of the preprocessing of images.
        embedding_dim: elements of an embedding.
    """

    model: ModelId
    text_id: str
    weights_digest: str
    preprocess_digest: str
    embedding_dim: PositiveInt


def space_of(manifest: Manifest) -> EmbeddingSpace:
    """Return the space of a bundle's embeddings."""
    return EmbeddingSpace(
        model=manifest.model,
        text_id=manifest.text_id,
        weights_digest=manifest.export.weights_digest,
        preprocess_digest=value_digest(manifest.preprocess),
        embedding_dim=manifest.embedding_dim,
    )
