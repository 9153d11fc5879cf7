"""Files that cannot be had: one line, at once, with a way out."""

from __future__ import annotations

import errno
import hashlib
import http.server
import json
import socket
import ssl
import struct
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clipmlu.bundle.directory import ExportedBundle
from clipmlu.errors import DownloadError
from clipmlu.export.download_reasons import download_reason
from clipmlu.export.downloads import are_cached, checkpoint_names, fetch_file, is_hub_reachable, record_downloads
from clipmlu.export.exporter import ExportOptions, export_model, is_current
from clipmlu.export.retrying import RetryPolicy
from clipmlu.steps import StartStep, no_steps
from hub_cache import put_into_cache
from support import StepRecorder

pytest.importorskip("huggingface_hub", reason="needs the export extra (huggingface_hub)", exc_type=ImportError)
pytestmark = pytest.mark.torch

CLOSED_PORT = "http://127.0.0.1:9"


def fetch(
    cache: Path, *, offline: bool = False, pauses: list[float] | None = None, on_step: StartStep = no_steps
) -> Path:
    """Download without waiting; seconds that it would wait are added to ``pauses``."""
    policy = RetryPolicy(sleep=(pauses if pauses is not None else []).append)
    names = checkpoint_names("")
    hint = "Do this."
    return fetch_file("org/name", names, cache_dir=cache, offline=offline, hint=hint, on_step=on_step, policy=policy)


def test_cached_file_needs_no_network(tmp_path: Path) -> None:
    expected = put_into_cache(tmp_path, "org/name", "open_clip_pytorch_model.bin", b"x")
    assert fetch(tmp_path, offline=True) == fetch(tmp_path) == expected


def test_offline_says_which_file_and_which_cache(tmp_path: Path) -> None:
    message = rf"^'org/name/open_clip_model.safetensors' is not in the cache '{tmp_path}', and the network is off \(--offline\)\. .*Do this.$"
    with pytest.raises(DownloadError, match=message):
        fetch(tmp_path, offline=True)


def test_hubs_own_switch_keeps_off_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # HF_HUB_OFFLINE=1, read at import
    with pytest.raises(DownloadError, match=r"and the network is off \(HF_HUB_OFFLINE\)"):
        fetch(tmp_path)


@pytest.fixture
def closed_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub where nobody answers."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", CLOSED_PORT)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", CLOSED_PORT + "/{repo_id}/{filename}")


@pytest.mark.usefixtures("closed_port")
def test_refused_connection_is_reported_at_once(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(
        DownloadError,
        match=r"^Cannot download 'org/name/open_clip_model.safetensors': 'http://127\.0\.0\.1:9' cannot be reached: Connection refused\. .*HF_ENDPOINT.* Do this\.$",
    ):
        fetch(tmp_path)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ("ViT-B-32::openai", "timm/vit_base_patch32_clip_224.openai/open_clip_model.safetensors"),
        ("hf-hub:org/name", "org/name/open_clip_config.json"),
        ("roberta-ViT-B-32::laion2b_s12b_b32k", "roberta-base/config.json"),
    ],
)
def test_export_without_the_files_says_how_to_provide_them(model: str, wanted: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=f"'{wanted}' is not in the cache") as caught:
        export_model(model, tmp_path / "out", ExportOptions(offline=True, cache_dir=tmp_path / "cache"))
    message = str(caught.value)
    assert "\n" not in message
    assert {"HF_ENDPOINT", "ModelScope"} <= set(message.split())
    assert "Copy the file into that cache" in message or "copy it into that cache" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        ("", ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")),
        ("open_clip_pytorch_model.bin", ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")),
        ("weights.bin", ("weights.safetensors", "weights.bin")),
        ("weights.npz", ("weights.npz",)),
    ],
)
def test_safetensors_are_preferred(listed: str, names: tuple[str, ...]) -> None:
    assert checkpoint_names(listed) == names


@pytest.mark.usefixtures("closed_port")
def test_model_in_the_cache_is_exported_without_a_network(
    tiny_model: Callable[[str], Path], tiny_bundle: Callable[[str], ExportedBundle], tmp_path: Path
) -> None:
    folder = tiny_model("vit")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "org/words"
    cache = tmp_path / "cache"
    put_into_cache(cache, "org/name", "open_clip_config.json", json.dumps(config).encode())
    weights = (folder / "open_clip_model.safetensors").read_bytes()
    put_into_cache(cache, "org/name", "open_clip_model.safetensors", weights)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        put_into_cache(cache, "org/words", name, (folder / name).read_bytes())
    assert not is_hub_reachable("org/words", "tokenizer.json")
    start = time.monotonic()
    bundle = export_model("hf-hub:org/name", tmp_path / "out", ExportOptions(cache_dir=cache))
    assert time.monotonic() - start < 60, "retries would take half a minute for each file"
    assert str(bundle.manifest.model) == "hf-hub:org/name"
    assert not bundle.manifest.tokenizer.stand_in
    local = tiny_bundle("vit")
    assert bundle.manifest.export.weights_digest == local.manifest.export.weights_digest
    assert bundle.manifest.files == local.manifest.files
    options = ExportOptions(cache_dir=cache)
    assert is_current(bundle, options)
    assert is_current(bundle, ExportOptions(cache_dir=tmp_path / "empty")), "nothing is known there"
    # The repository moves on, and the cache with it.
    for repo, name, content in [
        ("org/name", "open_clip_model.safetensors", weights),
        ("org/words", "tokenizer.json", b"{}"),
    ]:
        put_into_cache(cache, repo, name, content, commit="1" * 40)
        assert not is_current(bundle, options), name
        put_into_cache(cache, repo, name, content)
        assert is_current(bundle, options)


def test_a_version_of_a_cached_file_is_its_digest(tmp_path: Path) -> None:
    """As huggingface_hub lays out its cache where links can be made: another commit may hold the same content."""

    def link(commit: str, content: str) -> None:
        blob = tmp_path / "models--org--name" / "blobs" / hashlib.sha256(content.encode()).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_text(content)
        file = put_into_cache(tmp_path, "org/name", "open_clip_model.safetensors", b"", commit=commit)
        file.unlink()
        file.symlink_to(blob)

    link("0" * 40, "weights")
    with record_downloads() as record:
        fetch(tmp_path)
    assert record == {"org/name::open_clip_model.safetensors": hashlib.sha256(b"weights").hexdigest()}
    link("1" * 40, "weights")
    assert are_cached(record, tmp_path)
    link("2" * 40, "other weights")
    assert not are_cached(record, tmp_path)


_CONTENT = b"weights of a model" * 1000
_SENT = {"ETag": f'"{hashlib.sha256(_CONTENT).hexdigest()}"', "X-Repo-Commit": "0" * 40}


class Hub:
    """A server on this machine that answers every question with one status, headers and content.

    Attributes:
        busy: status and headers of the first answers, in turn.
        cuts: number of bytes after which the first answers with content end, in turn; the last one by a reset.
        asked: method and header ``Range`` of each request.
    """

    def __init__(self) -> None:
        self.status, self.headers, self.length = 200, dict(_SENT), len(_CONTENT)
        self.busy: list[tuple[int, dict[str, str]]] = []
        self.cuts: list[int] = []
        self.asked: list[tuple[str, str | None]] = []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer()

            def answer(self) -> int:
                """Send the head, and return the number of the first byte that is wanted."""
                wanted = self.headers.get("Range")
                hub.asked.append((self.command, wanted))
                if not hub.status:
                    self.close_connection = True
                    return 0
                status, headers = hub.busy.pop(0) if hub.busy else (hub.status, hub.headers)
                first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and status == 200 else 0
                self.send_response(206 if first else status)
                for name, value in headers.items():
                    self.send_header(name, value.replace("HERE", self.path))
                self.send_header("Content-Length", str(hub.length - first))
                if first:
                    self.send_header("Content-Range", f"bytes {first}-{hub.length - 1}/{hub.length}")
                self.end_headers()
                return first

            def do_GET(self) -> None:
                first = self.answer()
                count = hub.cuts.pop(0) if hub.cuts else len(_CONTENT)
                self.wfile.write(_CONTENT[first : first + count])
                if count < len(_CONTENT):
                    self.close_connection = True
                    time.sleep(0.2)  # until the client has read what was sent
                    if not hub.cuts:
                        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        self.connection.close()

            def log_message(self, *_arguments: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    made = Hub()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", made.address)
    template = made.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (404, {"X-Error-Code": "RepoNotFound"}, "has no 'org/name', or requires a login for it"),
        (404, {"X-Error-Code": "EntryNotFound"}, "the repository has no open_clip_model.safetensors or open_clip"),
        (404, {"X-Error-Code": "RevisionNotFound"}, "has no branch 'main'"),
        (404, {}, "answers 404: there is no such file"),
        (401, {"X-Error-Code": "GatedRepo"}, "'org/name' is gated"),
        (403, {"X-Error-Code": "GatedRepo"}, "'org/name' is gated"),
        (403, {"X-Error-Message": "Access to this resource is disabled."}, "was disabled"),
        (401, {}, "answers 401: it requires a login"),
        (403, {"X-Error-Message": "you shall not pass"}, "answers 403: access is refused"),
        (429, {"Retry-After": "0"}, "answers 429: it received too many requests"),
        (400, {}, "answers 400"),
        (503, {}, "answers 503: it fails. Try again later. HF_ENDPOINT chooses a mirror"),
        (200, {}, "does not answer like a Hugging Face hub"),
        (302, {"Location": "HERE"}, "redirects in a loop"),
        (0, {}, "was cut"),
        (200, {**_SENT, "X-Linked-Size": "1000"}, "another size than announced"),
        (200, {**_SENT, "ETag": f'"{"a" * 64}"'}, "has the SHA-256 "),
    ],
)
def test_each_failure_of_a_hub_is_our_own_sentence(
    status: int, headers: dict[str, str], words: str, hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.status, hub.headers = status, headers
    with pytest.raises(DownloadError) as caught:
        fetch(tmp_path)
    message = str(caught.value)
    assert message.startswith("Cannot download 'org/name/open_clip_model.safetensors': ")
    assert message.endswith(". Do this.")
    assert words in message
    assert not [
        each for each in ("Client Error", "developer.mozilla", "shall not", "Consistency", "\n") if each in message
    ]
    assert not [record for record in caplog.records if record.name.startswith("huggingface_hub")]


def test_connection_that_is_cut_while_a_file_comes_is_said_once(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("time.sleep", lambda _seconds: None)  # between the attempts of huggingface_hub
    hub.length = 100_000
    with pytest.raises(
        DownloadError,
        match=r"the connection to 'http://127\.0\.0\.1:\d+' was cut\. Run again\. The cache .*HF_ENDPOINT .*ModelScope .*Do this\.$",
    ):
        fetch(tmp_path)
    assert not [record for record in caplog.records if record.name.startswith("huggingface_hub")]


def test_a_busy_hub_is_asked_again_when_it_says(hub: Hub, tmp_path: Path) -> None:
    hub.busy = [(429, {"Retry-After": "7"}), (503, {})]
    pauses: list[float] = []
    assert fetch(tmp_path, pauses=pauses).read_bytes() == _CONTENT
    assert pauses == [7.0, 4.0]


def test_a_pause_of_an_hour_is_an_error_at_once(hub: Hub, tmp_path: Path) -> None:
    hub.busy = [(429, {"Retry-After": "3600"})]
    with pytest.raises(DownloadError, match="answers 429"):
        fetch(tmp_path)


def test_a_cut_download_is_completed(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """huggingface_hub goes on after an early end; after a reset it fails, and what it received is lost (2.4)."""
    monkeypatch.setattr("huggingface_hub.file_download.time", types.SimpleNamespace(sleep=lambda _seconds: None))
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)  # it keeps whole chunks only
    hub.cuts = [4000, 3000]
    recorder, pauses = StepRecorder(), list[float]()
    assert fetch(tmp_path, pauses=pauses, on_step=recorder).read_bytes() == _CONTENT
    assert [method for method, _range in hub.asked if method == "GET"] == ["GET"] * 3
    assert pauses == [1.0]
    counts = [int(event[1:]) for event in recorder.events if event.startswith("+")]
    assert sum(counts) == len(_CONTENT)
    assert not [record for record in caplog.records if record.name.startswith("huggingface_hub")]


def test_file_of_another_digest_does_not_stay_in_the_cache(hub: Hub, tmp_path: Path) -> None:
    right = dict(hub.headers)
    hub.headers["ETag"] = f'"{"a" * 64}"'
    with pytest.raises(DownloadError, match="It was deleted; run again"):
        fetch(tmp_path)
    hub.headers = right
    assert fetch(tmp_path).read_bytes() == _CONTENT


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space"), "no space left for it in the cache '/cache'. Make some"),
        (PermissionError(errno.EACCES, "Permission denied"), "the cache '/cache' cannot be written: Permission denied"),
        (OSError(errno.EROFS, "Read-only file system"), "the cache '/cache' cannot be written: Read-only file system"),
        (socket.gaierror(-2, "Name or service not known"), "the name of 'https://huggingface.co' is not known"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), "cannot be reached: Network is unreachable"),
        (ssl.SSLCertVerificationError("bad"), "its certificate is not accepted"),
        (ssl.SSLError(errno.EPERM, "bad"), "its certificate is not accepted"),
        (TimeoutError("timed out"), "does not answer in time"),
        (RuntimeError("their own advice"), "huggingface_hub fails with RuntimeError"),
    ],
)
def test_each_failure_of_the_system_is_our_own_sentence(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://huggingface.co")
    outer = RuntimeError("foreign words")
    outer.__cause__ = error
    reason = download_reason(outer, "org/name", "/cache")
    assert words in reason
    assert "foreign" not in reason
    assert "their own" not in reason


def test_a_download_advances_by_its_bytes(hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recorder = StepRecorder()
    names = ["open_clip_model.safetensors"]
    fetch_file("org/name", names, cache_dir=tmp_path, offline=False, hint="Do this.", on_step=recorder)
    assert recorder.labels() == [
        "asking for org/name/open_clip_model.safetensors",
        f"downloading org/name/open_clip_model.safetensors ({len(_CONTENT)} B)",
    ]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "error",
    [
        socket.gaierror(-3, "Temporary failure in name resolution"),
        OSError(errno.ENETUNREACH, "Network is unreachable"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        TimeoutError("timed out"),
    ],
)
def test_without_a_network_the_cache_a_mirror_and_modelscope_are_named(error: Exception) -> None:
    reason = download_reason(error, "org/name", "/cache")
    for words in ("The cache '/cache' does not hold it", "HF_ENDPOINT chooses a mirror", "ModelScope", "'org/name'"):
        assert words in reason
    assert "\n" not in reason


def test_a_full_disk_is_no_matter_of_the_network() -> None:
    assert "HF_ENDPOINT" not in download_reason(OSError(errno.ENOSPC, "No space"), "org/name", "/cache")
