"""What gives a row of numbers for each preprocessed image: the image tower, or the fused graph with its texts.

What reads, prepares and sends images does not care which (``images.run_batches``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from clipmlu.embed.encoder import Encoder, PendingRows, PixelArray


class ImageGraph(Protocol):
    """What gives a row of numbers for each image."""

    @property
    def encoder(self) -> Encoder:
        """The bundle that it belongs to."""

    @property
    def width(self) -> int:
        """Elements of a row."""

    def submit(self, pixel_values: PixelArray) -> PendingRows:
        """Start one batch and return at once; see ``Encoder.submit_images``."""


class ImageTower:
    """The image tower: its rows are embeddings.

    Raises:
        BundleError: the bundle has none.
    """

    def __init__(self, encoder: Encoder) -> None:
        encoder.runnable.tower("image")
        self.encoder = encoder
        self.width = encoder.embedding_dim

    def submit(self, pixel_values: PixelArray) -> PendingRows:
        """Start one batch; see ``ImageGraph``."""
        return self.encoder.submit_images(pixel_values)
