"""Embedding the images and texts of a request without delaying other requests."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence

from clipmlu.embed.items import ImageEmbeddings
from clipmlu.serve.requests import ImageInput
from clipmlu.serve.served_model import ServedModel

_SHORT_TEXTS = 1 << 13  # characters that take a few milliseconds to tokenise


async def embed_request(
    model: ServedModel, images: Sequence[ImageInput], texts: Sequence[str], deadline: float
) -> ImageEmbeddings:
    """Embed images and texts; see ``ServedModel.embed``. Long texts are tokenised on another thread."""
    start = functools.partial(model.embed, images, texts, deadline)
    pending = start() if sum(map(len, texts)) <= _SHORT_TEXTS else await asyncio.to_thread(start)
    return await asyncio.wrap_future(pending)
