"""Images that are downloaded in the pipeline."""

from __future__ import annotations

import io
import socket
import threading

import clipmlu
import support
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.data.url.found import FoundUrl
from clipmlu.data.url.options import UrlOptions
from clipmlu.embed.images import embed_batches
from clipmlu.embed.items import ImageItem
from image_server import content, serving


def test_pipeline_that_is_closed_ends_its_downloads(compiled: CompiledBundle) -> None:
    """Else the process could not end before their time limit."""
    options = UrlOptions(allow_private=True, timeout_s=100)
    asked, left = threading.Event(), threading.Event()

    def mute(connection: socket.socket) -> None:
        asked.set()
        connection.settimeout(90)
        if connection.recv(1) == b"":
            left.set()

    stream = io.BytesIO()
    support.picture(0).save(stream, "png")
    with serving() as server, clipmlu.load(compiled.path) as model:
        server.answers |= {"/good": content(stream.getvalue()), "/mute": mute}
        found = [FoundUrl(server.url(path), options) for path in ("/good", "/good", "/mute")]  # two are in flight
        items = [ImageItem(each.name, each.source) for each in found]
        batches = embed_batches(model, items, batch_size=1, workers=2)
        assert len(next(batches).rows) == 1
        assert asked.wait(20)
        batches.close()
        assert left.wait(20)
