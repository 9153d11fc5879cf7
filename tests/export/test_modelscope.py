"""Models of ModelScope, from a server on loopback that cuts connections, sends wrong files and asks to wait."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import resource
import socket
import threading
from collections.abc import Callable, Collection, Iterator
from http.client import HTTPMessage
from pathlib import Path
from urllib.request import Request

import pytest

from clipmlu.errors import DownloadError, ExportError, OptionError
from clipmlu.export.downloads import record_downloads
from clipmlu.export.exporter import ExportOptions, export_model, is_current
from clipmlu.export.http_client import AnswerError, BoundedRedirects
from clipmlu.export.modelscope.repository import Repository, parse_repository
from clipmlu.export.modelscope.snapshot import Snapshot, fetch_repository, is_snapshot_current
from clipmlu.export.repositories import are_current, fetch_directory
from clipmlu.export.retrying import RetryPolicy
from clipmlu.export.source import demo_folder, resolve_source
from clipmlu.specs import ModelId
from image_server import content, running
from modelscope_server import COMMIT, Fault, ModelScopeServer, cut_after, failure, reset, status, success
from support import StepRecorder

pytest.importorskip("huggingface_hub", reason="needs the export extra (huggingface_hub)", exc_type=ImportError)

WEIGHTS = bytes(range(256)) * 40
FILES = {"config.json": b'{"a": 1}', "model.bin": WEIGHTS, "README.md": b"# model"}
DEMO_WEIGHTS = "open_clip_model.safetensors"
Fetch = Callable[..., Snapshot]


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelScopeServer]:
    with running(ModelScopeServer(dict(FILES))) as server:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url(""))
        monkeypatch.delenv("MODELSCOPE_API_TOKEN", raising=False)
        yield server


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def fetch(tmp_path: Path, pauses: list[float]) -> Fetch:
    """Downloads ``org/name`` without waiting; seconds that it would wait are added to ``pauses``."""

    def run(model: str = "ms:org/name", *, offline: bool = False, attempts: int = 3) -> Snapshot:
        policy = RetryPolicy(pauses_s=(1.0, 4.0, 15.0)[:attempts], sleep=pauses.append)
        return fetch_repository(parse_repository(model), needed, cache=tmp_path, offline=offline, policy=policy)

    return run


def needed(names: Collection[str]) -> list[str]:
    return [name for name in ("config.json", "model.bin") if name in names]


def folder_of(cache: Path, revision: str = "master") -> Path:
    return cache / "modelscope" / "org" / "name" / revision


def test_a_model_is_named_by_its_organisation_its_name_and_a_revision() -> None:
    assert parse_repository("ms:org/name") == Repository(org="org", name="name", revision="master")
    assert parse_repository("ms:a_b/c.d-1@v1/x") == Repository(org="a_b", name="c.d-1", revision="v1/x")
    for wrong in ("ms:foo", "ms:", "ms:a/b/c", "ms:../b", "ms:a/..", "ms:a/b@", "ms:a/b@../x", "ms:a b/c", "ms:/etc"):
        with pytest.raises(OptionError, match=rf"^model is '{wrong}'; expected ms:org/name, or ms:org/name@revision$"):
            parse_repository(wrong)


def test_needed_files_are_downloaded_once(site: ModelScopeServer, fetch: Fetch, tmp_path: Path) -> None:
    found = fetch()
    assert found.folder == folder_of(tmp_path)
    assert found.commit == COMMIT
    assert found.digests == {name: hashlib.sha256(FILES[name]).hexdigest() for name in ("config.json", "model.bin")}
    assert {path.name: path.read_bytes() for path in found.folder.iterdir() if not path.name.startswith(".")} == {
        name: FILES[name] for name in found.digests
    }
    count = len(site.heads)
    assert fetch() == fetch(offline=True) == found
    assert len(site.heads) == count


def test_a_revision_has_a_folder_of_its_own(site: ModelScopeServer, fetch: Fetch, tmp_path: Path) -> None:
    site.revisions.append("v1/x")
    assert fetch("ms:org/name@v1/x").folder == folder_of(tmp_path, "v1%2Fx")
    assert "Revision=v1%2Fx" in site.heads[0]


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_cut_download_is_continued(
    site: ModelScopeServer, fetch: Fetch, pauses: list[float], knows_ranges: bool
) -> None:
    site.knows_ranges = knows_ranges
    site.faults["model.bin"] = [cut_after(4000), reset]
    assert (fetch().folder / "model.bin").read_bytes() == WEIGHTS
    assert site.requested("model.bin") == [None, "bytes=4000-", "bytes=4000-"]
    assert pauses == [1.0, 4.0]


def test_the_next_run_continues_where_the_last_one_ended(site: ModelScopeServer, fetch: Fetch, tmp_path: Path) -> None:
    site.faults["model.bin"] = [cut_after(5000)]
    with pytest.raises(
        DownloadError, match=r"'http://[\d.:]+' cut the connection\. Run again: what was received is kept\.$"
    ):
        fetch(attempts=0)
    assert not (folder_of(tmp_path) / "model.bin").exists()
    with pytest.raises(DownloadError, match="is not in the cache"):
        fetch(offline=True)
    assert (fetch(attempts=0).folder / "model.bin").read_bytes() == WEIGHTS
    assert site.requested("model.bin") == [None, "bytes=5000-"]


def test_a_rest_of_other_content_is_not_taken(site: ModelScopeServer, fetch: Fetch) -> None:
    part = content(
        WEIGHTS[7000:], status="206 Partial Content", Content_Range=f"bytes 7000-{len(WEIGHTS) - 1}/{len(WEIGHTS)}"
    )
    site.faults["model.bin"] = [cut_after(5000), lambda _answer: part]
    assert (fetch().folder / "model.bin").read_bytes() == WEIGHTS
    assert site.requested("model.bin") == [None, "bytes=5000-", None]


def test_attempts_are_counted_anew_after_progress(site: ModelScopeServer, fetch: Fetch, pauses: list[float]) -> None:
    site.files["model.bin"] = WEIGHTS * 600
    site.faults["model.bin"] = [cut_after(1_500_000)] * 4
    assert (fetch(attempts=1).folder / "model.bin").read_bytes() == WEIGHTS * 600
    assert pauses == [1.0] * 4


@pytest.mark.parametrize("place", ["listing", "model.bin"])
def test_a_busy_site_is_asked_again_when_it_says(
    site: ModelScopeServer, fetch: Fetch, pauses: list[float], place: str
) -> None:
    site.faults[place] = [status(429, Retry_After="7"), status(503), status(429)]
    assert fetch().digests.keys() == {"config.json", "model.bin"}
    assert pauses == [7.0, 4.0, 15.0]


@pytest.mark.parametrize(
    ("fault", "asked", "words"),
    [
        (status(429), 4, "answers 429: it received too many requests. Wait a few minutes"),
        (status(502), 4, "answers 502: it fails. Try again later"),
        (status(429, Retry_After="3600"), 1, "answers 429: it received too many requests"),
        (
            status(404),
            1,
            "has no 'org/name', or it is private. Check the name; for a private one set MODELSCOPE_API_TOKEN to",
        ),
        (status(401), 1, "or it is private"),
        (
            status(302, Location="/api/v1/models/org/name/repo/files?Revision=master&Recursive=False"),
            0,
            "redirects in a loop",
        ),
        (status(302, Location="ftp://127.0.0.1/x"), 1, "redirects to 'ftp://127.0.0.1/x'; expected an https address"),
        (reset, 4, "the connection to 'http://127.0.0.1:"),
        (cut_after(50), 4, "was cut. Run again"),
        (
            lambda _: content(b"<html>Log in</html>"),
            1,
            "does not answer like ModelScope: a proxy's page, or a wrong address",
        ),
        (lambda _: success([]), 1, "does not answer like ModelScope"),
        (lambda _: b"SSH-2.0\r\n\r\n", 1, "does not answer with valid HTTP"),
        (lambda _: content(b"x", Content_Encoding="br"), 1, "sends a file compressed with 'br'"),
        (lambda _: failure(200, 10990, "bad\n\x1b[31m luck"), 1, "answers with the code 10990: 'bad  [31m luck'"),
        (lambda _: success({"Files": [{"Path": "config.json"}]}), 1, "lists 'config.json' without its size"),
    ],
)
def test_each_failure_is_one_line(
    site: ModelScopeServer, fetch: Fetch, tmp_path: Path, fault: Fault, asked: int, words: str
) -> None:
    site.faults["listing"] = [fault] * 20
    with pytest.raises(DownloadError) as caught:
        fetch()
    message = str(caught.value)
    assert message.startswith("Cannot download 'org/name' from ModelScope: ")
    assert words in message
    assert message.isprintable()
    assert len(site.heads) == asked or not asked
    assert not list(tmp_path.rglob("*.*"))


def test_the_content_of_an_error_is_not_waited_for(site: ModelScopeServer, fetch: Fetch) -> None:
    """It may arrive byte by byte for ever, and says nothing that the status does not."""
    given_up = threading.Event()

    def drip(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 404 No\r\nContent-Length: 60000\r\n\r\n")
        while not given_up.wait(0.05):
            connection.sendall(b"x")

    site.faults["listing"] = [lambda _: drip]
    timer = threading.Timer(10, given_up.set)
    timer.start()
    with pytest.raises(DownloadError, match="has no 'org/name', or it is private"):
        fetch()
    assert not given_up.is_set()
    timer.cancel()


def test_an_unknown_revision_names_those_that_exist(site: ModelScopeServer, fetch: Fetch) -> None:
    site.revisions.append("v1.0")
    with pytest.raises(DownloadError, match=r"'org/name' has no revision 'main'; it has master, v1\.0\.$"):
        fetch("ms:org/name@main")


def test_an_empty_repository_is_not_an_unknown_revision(site: ModelScopeServer, fetch: Fetch) -> None:
    site.faults["listing"] = [lambda _answer: success({"Files": []})]
    with pytest.raises(DownloadError, match="'org/name' has no files"):
        fetch()


def test_the_token_goes_to_the_site_alone(
    site: ModelScopeServer, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.token = "secret-1"
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "wrong-2")
    with pytest.raises(DownloadError, match="the token in MODELSCOPE_API_TOKEN may be wrong") as caught:
        fetch()
    assert "wrong-2" not in str(caught.value)
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "secret-1")
    site.redirected.add("model.bin")
    fetch()
    elsewhere = [head for head in site.heads if "Host: localhost" in head]
    assert len(elsewhere) == 1
    assert "secret" not in elsewhere[0]
    assert all("m_session_id=secret-1" in head for head in site.heads[2:] if head not in elsewhere)
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "sec\nret")
    with pytest.raises(DownloadError, match=r"^MODELSCOPE_API_TOKEN holds no token"):
        fetch("ms:org/other")


def test_a_redirect_never_leaves_encryption() -> None:
    redirects = BoundedRedirects("https://hub/a", {"Authorization": "secret"})
    request = Request("https://hub/a", headers={"Range": "bytes=5-"})
    following = functools.partial(redirects.redirect_request, request, io.BytesIO(), 302, "Found", HTTPMessage())
    with pytest.raises(AnswerError, match=r"redirects to 'http://hub/b'; expected an https address"):
        following("http://hub/b")
    for target, secrets in (
        ("https://hub/b", {"Authorization": "secret"}),
        ("https://cdn/b", {}),
        ("https://hub:8/b", {}),
    ):
        followed = following(target)
        assert followed is not None
        assert followed.unredirected_hdrs == secrets
        assert followed.get_header("Range") == "bytes=5-"


def test_a_file_of_another_digest_is_deleted(site: ModelScopeServer, fetch: Fetch, tmp_path: Path) -> None:
    site.listed["model.bin"] = {"Sha256": "a" * 64}
    with pytest.raises(
        DownloadError,
        match=r"'org/name/model\.bin' .*has the SHA-256 .*expected was aaaaaaaaaaaa\.\.\.\. It was deleted; run again",
    ):
        fetch()
    assert sorted(path.name for path in folder_of(tmp_path).iterdir()) == ["config.json"]
    site.listed.clear()
    assert (fetch().folder / "model.bin").read_bytes() == WEIGHTS
    assert len(site.requested("config.json")) == 1


@pytest.mark.parametrize("size", [100, len(WEIGHTS) + 1])
def test_a_file_has_its_listed_size(site: ModelScopeServer, fetch: Fetch, tmp_path: Path, size: int) -> None:
    site.listed["model.bin"] = {"Size": size}
    with pytest.raises(DownloadError, match=f"sends {len(WEIGHTS):,} bytes instead of the announced {size:,}"):
        fetch()
    site.faults["model.bin"] = [lambda _answer: b"HTTP/1.1 200 OK\r\n\r\n" + WEIGHTS + b"123"] * 4
    with pytest.raises(DownloadError, match=f"sends more than the announced {size:,} bytes"):
        fetch()
    assert sum(path.stat().st_size for path in folder_of(tmp_path).glob("model.bin*")) == 0


def test_a_file_without_a_digest_is_taken_with_a_warning(
    site: ModelScopeServer, fetch: Fetch, caplog: pytest.LogCaptureFixture
) -> None:
    site.listed["model.bin"] = {"Sha256": ""}
    site.faults["model.bin"] = [cut_after(10)]
    with pytest.raises(DownloadError):
        fetch(attempts=0)
    assert fetch().digests["model.bin"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert site.requested("model.bin") == [None, None], "a part may be of another version"
    assert caplog.messages == ["ModelScope lists no digest of 'org/name/model.bin': only its size was checked"]


def test_only_files_of_the_top_folder_are_offered(site: ModelScopeServer, tmp_path: Path) -> None:
    site.files |= {
        "../evil": b"",
        "/tmp/evil": b"",
        "a\\b": b"",
        "a/b": b"",
        ".": b"",
        "": b"",
        "C:x": b"",
        "good.txt": b"",
    }
    offered: list[str] = []

    def choose(names: Collection[str]) -> list[str]:
        offered.extend(names)
        return []

    fetch_repository(parse_repository("ms:org/name"), choose, cache=tmp_path, offline=False)
    assert sorted(offered) == sorted([*FILES, "good.txt"])


def test_a_newer_listing_replaces_what_is_not_complete(site: ModelScopeServer, fetch: Fetch) -> None:
    site.faults["model.bin"] = [status(404)]
    with pytest.raises(DownloadError, match=r"'org/name/model\.bin' .*answers 404: there is no such file"):
        fetch()
    site.files["config.json"] = b'{"a": 2}'
    assert (fetch().folder / "config.json").read_bytes() == b'{"a": 2}'


def test_a_shortened_file_in_the_cache_is_downloaded_again(site: ModelScopeServer, fetch: Fetch) -> None:
    path = fetch().folder / "model.bin"
    path.write_bytes(WEIGHTS[:-1])
    assert (fetch().folder / "model.bin").read_bytes() == WEIGHTS
    (path.parent / ".clipmlu-download.json").write_text("{")
    fetch()
    assert len(site.requested("model.bin")) == 2


def test_offline_says_what_to_copy(
    site: ModelScopeServer, fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        DownloadError,
        match=rf"^'ms:org/name@master' is not in the cache '{folder_of(tmp_path)}', and the network is off \(--offline\)\. Copy that folder .*local-dir:PATH\.$",
    ):
        fetch(offline=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # HF_HUB_OFFLINE=1, read at import
    with pytest.raises(DownloadError, match=r"the network is off \(HF_HUB_OFFLINE\)"):
        fetch()
    assert site.heads == []


def test_a_refused_connection_is_said_at_once(
    fetch: Fetch, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        DownloadError,
        match=r"'http://127\.0\.0\.1:9' cannot be reached: Connection refused\. Is there a network\? The cache '.*local-dir:PATH\.$",
    ):
        fetch()
    assert pauses == []
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://a b")
    with pytest.raises(DownloadError, match=r"^'http://a b' is no address of ModelScope\. Check MODELSCOPE_ENDPOINT"):
        fetch()


def test_a_disk_that_is_too_small_is_said_before_the_download(
    site: ModelScopeServer, fetch: Fetch, tmp_path: Path
) -> None:
    site.listed["model.bin"] = {"Size": 10**18}
    with pytest.raises(
        DownloadError,
        match=rf"^'org/name' needs 1000000000\.0 GB in the cache '{folder_of(tmp_path)}', whose disk has .*--cache-dir\.$",
    ):
        fetch()
    assert len(site.heads) == 1


def test_a_disk_that_becomes_full_is_one_line(site: ModelScopeServer, fetch: Fetch, tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk; the system refuses both while writing."""
    site.files["model.bin"] = WEIGHTS * 600
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, limits[1]))
    try:
        with pytest.raises(
            DownloadError, match=rf"there is no space left for it in the cache '{folder_of(tmp_path)}'. Make some"
        ):
            fetch()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (fetch().folder / "model.bin").read_bytes() == WEIGHTS * 600
    assert site.requested("model.bin")[1] is not None, "it continues"


def test_two_at_once_download_once(site: ModelScopeServer, fetch: Fetch) -> None:
    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert site.requested("model.bin") == [None]
    assert fetch().digests.keys() == {"config.json", "model.bin"}


def test_a_download_advances_by_its_bytes(site: ModelScopeServer, tmp_path: Path) -> None:
    recorder = StepRecorder()
    fetch_repository(parse_repository("ms:org/name"), needed, cache=tmp_path, offline=False, on_step=recorder)
    assert recorder.labels() == [
        "asking ModelScope for org/name",
        f"downloading org/name/config.json ({len(FILES['config.json'])} B)",
        f"downloading org/name/model.bin ({len(WEIGHTS)} B)",
    ]


def test_a_file_that_the_cache_holds_in_another_version_is_noticed(
    site: ModelScopeServer, fetch: Fetch, tmp_path: Path
) -> None:
    digest = fetch().digests["model.bin"]
    assert is_snapshot_current("ms:org/name::model.bin", digest, tmp_path)
    assert is_snapshot_current("ms:org/name::model.bin", digest, tmp_path / "empty"), "nothing is known there"
    assert not is_snapshot_current("ms:org/name::model.bin", "0" * 64, tmp_path)


@pytest.fixture
def demo(site: ModelScopeServer) -> dict[str, bytes]:
    """The files of the demo model, which the site has among others, and sends after some failures."""
    files = {path.name: path.read_bytes() for path in demo_folder().iterdir() if path.suffix != ".md"}
    site.files = {**files, "pytorch_model.bin": b"other weights", "onnx/model.onnx": b"", "README.md": b""}
    site.redirected.add(DEMO_WEIGHTS)
    site.faults = {"listing": [status(429, Retry_After="0")], DEMO_WEIGHTS: [status(503, Retry_After="0")]}
    return files


def test_a_repository_becomes_a_directory(site: ModelScopeServer, demo: dict[str, bytes], tmp_path: Path) -> None:
    options = ExportOptions(cache_dir=tmp_path)
    with record_downloads() as versions:
        found = fetch_directory(resolve_source("ms:org/name@master", options), options)
    folder = folder_of(tmp_path)
    local = resolve_source(f"local-dir:{folder}", options)
    assert found == dataclasses.replace(local, identity=ModelId(name="ms:org/name@master"))
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."} == demo
    digests = {f"ms:org/name@master::{name}": hashlib.sha256(body).hexdigest() for name, body in demo.items()}
    assert versions == {"ms:org/name@master": COMMIT, **digests}
    assert are_current(versions, tmp_path)
    record = folder / ".clipmlu-download.json"
    record.write_text(record.read_text().replace(COMMIT, "0" * 40))
    assert not are_current(versions, tmp_path)


def test_random_weights_need_no_download_of_weights(
    site: ModelScopeServer, demo: dict[str, bytes], tmp_path: Path
) -> None:
    untrained, trained = ExportOptions(cache_dir=tmp_path, random_weights=True), ExportOptions(cache_dir=tmp_path)
    assert fetch_directory(resolve_source("ms:org/name", untrained), untrained).checkpoint is None
    assert site.requested(DEMO_WEIGHTS) == []
    found = fetch_directory(resolve_source("ms:org/name", trained), trained)
    assert found.checkpoint == folder_of(tmp_path) / DEMO_WEIGHTS
    assert len(site.requested("tokenizer.json")) == 1


@pytest.mark.torch
@pytest.mark.slow
def test_the_demo_model_is_exported_from_the_site(demo: dict[str, bytes], tmp_path: Path) -> None:
    pytest.importorskip("open_clip", reason="needs the export extra (open_clip)", exc_type=ImportError)
    options = ExportOptions(cache_dir=tmp_path / "cache")
    bundle = export_model("ms:org/name", tmp_path / "bundle", options)
    local = export_model("demo", tmp_path / "local")
    assert str(bundle.manifest.model) == "ms:org/name"
    assert bundle.manifest.files == local.manifest.files
    assert bundle.manifest.export.weights_digest == local.manifest.export.weights_digest
    assert bundle.manifest.export.source_files == {}
    assert bundle.manifest.export.hub_files["ms:org/name"] == COMMIT
    assert is_current(bundle, options)


@pytest.mark.torch
def test_a_model_that_cannot_be_exported_is_refused_before_its_weights(site: ModelScopeServer, tmp_path: Path) -> None:
    options = ExportOptions(cache_dir=tmp_path / "cache")
    for name, config, words in (
        ("config.json", b'{"model_type": "bert"}', "has the model_type 'bert'; expected one of clip"),
        ("open_clip_config.json", b"{}", "describes no model"),
        ("configuration.json", b"{}", "'ms:org/name' has neither open_clip_config.json nor config.json"),
    ):
        site.files = {name: config, "pytorch_model.bin": WEIGHTS}
        with pytest.raises(ExportError, match=words):
            export_model("ms:org/name", tmp_path / "bundle", options)
        assert site.requested("pytorch_model.bin") == []
        assert not (tmp_path / "bundle").exists()


def test_addresses_are_read_as_by_the_sites_own_client(monkeypatch: pytest.MonkeyPatch) -> None:
    repository = parse_repository("ms:org/name")
    for name in ("MODELSCOPE_ENDPOINT", "MODELSCOPE_DOMAIN"):
        monkeypatch.delenv(name, raising=False)
    assert repository.url("revisions") == "https://modelscope.cn/api/v1/models/org/name/revisions"
    monkeypatch.setenv("MODELSCOPE_DOMAIN", "www.modelscope.ai")
    assert repository.url("repo", FilePath="a b").startswith(
        "https://www.modelscope.ai/api/v1/models/org/name/repo?FilePath=a+b"
    )
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://mirror:8080/")
    assert repository.url("revisions") == "http://mirror:8080/api/v1/models/org/name/revisions"
