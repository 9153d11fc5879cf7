"""Repositories that become directories, from a small hub on loopback: what is asked for, in which order, and what is refused."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipmlu.errors import DownloadError, ExportError
from clipmlu.export.downloads import record_downloads
from clipmlu.export.exporter import ExportOptions
from clipmlu.export.repositories import fetch_directory, files_to_fetch
from clipmlu.export.source import Source, resolve_source

pytest.importorskip("huggingface_hub", reason="needs the export extra (huggingface_hub)", exc_type=ImportError)
pytestmark = pytest.mark.torch

REPO = "org/name"
COMMIT = "c" * 40


class Hub:
    """A hub with one repository; ``asked`` has the requests for files' bytes and for their list, in order."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.asked: list[str] = []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                name = self.path.partition("/resolve/main/")[2]
                content = hub.files.get(name)
                if self.path.startswith(f"/api/models/{REPO}"):
                    hub.asked.append("list")
                    listed = {"id": REPO, "sha": COMMIT, "siblings": [{"rfilename": each} for each in hub.files]}
                    content = json.dumps(listed).encode()
                elif body and name:  # huggingface_hub asks for other addresses, too
                    hub.asked.append(name)
                self.send_response(404 if content is None else 200)
                self.send_header("X-Repo-Commit", COMMIT)
                if content is None:
                    self.send_header("X-Error-Code", "EntryNotFound")
                else:
                    self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                if body:
                    self.wfile.write(content or b"")

            def log_message(self, *_arguments: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    made = Hub({"README.md": b"x", "config.json": json.dumps({"model_type": "clip"}).encode()})
    threading.Thread(target=made.server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", made.address)
    template = made.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield made
    made.server.shutdown()
    made.server.server_close()


def fetch(cache: Path) -> Source:
    options = ExportOptions(cache_dir=cache)
    return fetch_directory(resolve_source(f"hf:{REPO}", options), options)


def test_needed_files_are_fetched_once_and_the_weights_last(hub: Hub, tmp_path: Path) -> None:
    hub.files |= {
        "tf_model.h5": b"x",
        "pytorch_model.bin": b"x",
        "model.safetensors": b"\x02\0\0\0\0\0\0\0{}",
        "vocab.txt": b"a",
        "preprocessor_config.json": b"{}",
    }
    with record_downloads() as record:
        source = fetch(tmp_path)
    assert hub.asked == ["list", "config.json", "preprocessor_config.json", "vocab.txt", "model.safetensors"]
    assert (source.format, source.random) == ("transformers", False)
    assert source.directory is not None
    assert {path.name for path in source.directory.iterdir()} == set(hub.asked[1:])
    assert record.keys() == {f"{REPO}::{name}" for name in hub.asked[1:]}
    assert fetch(tmp_path).directory == source.directory
    assert len(hub.asked) == 5, "a complete directory in the cache is used as it is"


def test_a_model_that_cannot_be_exported_is_refused_before_its_weights(hub: Hub, tmp_path: Path) -> None:
    hub.files |= {
        "config.json": json.dumps({"model_type": "jina_clip", "auto_map": {}}).encode(),
        "model.safetensors": b"x" * 100,
        "tokenizer.json": b"{}",
    }
    with pytest.raises(ExportError, match=r"model_type 'jina_clip'; expected one of clip, .*which clipmlu never runs"):
        fetch(tmp_path)
    assert hub.asked == ["list", "config.json"]


def test_a_repository_of_something_else_is_named(hub: Hub, tmp_path: Path) -> None:
    del hub.files["config.json"]
    with pytest.raises(DownloadError, match=r"'org/name' has neither open_clip_config\.json nor config\.json"):
        fetch(tmp_path)


def test_one_form_of_the_weights_is_fetched() -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    names = ["config.json", "model.safetensors.index.json", *shards, "pytorch_model.bin", "flax_model.msgpack"]
    assert files_to_fetch(names) == ["config.json", "model.safetensors.index.json", *shards]
    assert files_to_fetch(names, weights=False) == ["config.json"]
    both = ["config.json", "open_clip_config.json", "open_clip_model.safetensors", "model.safetensors"]
    assert files_to_fetch(both) == ["config.json", "model.safetensors"]
    assert files_to_fetch(["open_clip_config.json", "open_clip_model.safetensors"]) == [
        "open_clip_config.json",
        "open_clip_model.safetensors",
    ]
