"""Image graphs: compute a row of numbers for each preprocessed image, by the image tower or by the fused graph.

Code that reads, prepares and submits images works with either (``images.run_batches``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from clipmlu.embed.encoder import Encoder
    from clipmlu.embed.rows import PendingRows, PixelArray


class ImageGraph(Protocol):
    """A graph that computes a row of numbers for each image."""

    @property
    def encoder(self) -> Encoder:
        """The encoder of the graph."""

    @property
    def width(self) -> int:
        """Number of elements of a row."""

    def submit(self, pixel_values: PixelArray) -> PendingRows:
        """Start one batch and return at once; see ``Encoder.submit_images``."""


class ImageTower:
    """The image tower; its rows are embeddings.

    Raises:
        BundleError: the bundle has no image tower.
    """

    def __init__(self, encoder: Encoder) -> None:
        encoder.runnable.tower("image")
        self.encoder = encoder
        self.width = encoder.embedding_dim

    def submit(self, pixel_values: PixelArray) -> PendingRows:
        """Start one batch; see ``ImageGraph``."""
        return self.encoder.submit_images(pixel_values)
