"""Inputs that are URLs: fetched when that is allowed, and one clear line when it is not."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import support
from clipmlu.bundle.directory import CompiledBundle
from image_server import ImageServer, content, serving

Run = Callable[..., tuple[int, str, str]]
ALLOWED = ("--allow-urls", "--allow-private-urls")
COUNT = 4


def _png(number: int) -> bytes:
    stream = io.BytesIO()
    support.picture(number).save(stream, "png")
    return stream.getvalue()


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with serving() as started:
        for number in range(COUNT):
            started.answers[f"/{number}.png?size=1"] = content(_png(number))
        yield started


@pytest.fixture
def urls(server: ImageServer) -> list[str]:
    return [server.url(f"/{number}.png?size=1") for number in range(COUNT)]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """The same pictures as files."""
    for number in range(COUNT):
        (tmp_path / f"{number}.png").write_bytes(_png(number))
    return [tmp_path / f"{number}.png" for number in range(COUNT)]


@pytest.mark.parametrize("output", ["rows.npy", "job"])
def test_url_is_an_error_with_the_way_out_unless_it_is_allowed(
    run: Run,
    compiled: CompiledBundle,
    server: ImageServer,
    urls: list[str],
    files: list[Path],
    tmp_path: Path,
    output: str,
) -> None:
    code, _, err = run("embed", compiled.path, files[0], urls[1], "-o", tmp_path / "out" / output)
    assert code == 1
    line = f"Cannot read image '{urls[1]}': URLs are not fetched unless that is allowed. Allow it with --allow-urls"
    job = tmp_path / "out" / "job"
    said = err if output != "job" else json.loads((job / "errors.jsonl").read_text())["reason"]
    assert line in said
    code, out, err = run("classify", compiled.path, urls[1], files[0], "--labels", "a,b", "--format", "jsonl")
    assert (code, len(out.splitlines())) == (1, 1)
    assert line in err
    assert server.heads == []


def test_embed_and_classify_give_the_results_of_the_files(
    run: Run,
    compiled: CompiledBundle,
    urls: list[str],
    files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listed = "\n".join([*urls[1:3], f"  {urls[3]}"]) + "\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed.encode())))
    command = ["embed", compiled.path, urls[0], "-", "-o", tmp_path / "urls.npy", *ALLOWED]
    code, _, err = run(*command)
    assert code == 0, err
    assert run("embed", compiled.path, *files, "-o", tmp_path / "files.npy")[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "urls.npy"), np.load(tmp_path / "files.npy"))
    assert json.loads((tmp_path / "urls.ids.json").read_text()) == urls
    both = []
    for inputs in (urls, files):
        code, out, err = run("classify", compiled.path, *inputs, "--labels", "a,b", "--format", "jsonl", *ALLOWED)
        assert code == 0, err
        both.append([json.loads(line) for line in out.splitlines()])
    assert [each.pop("source") for each in both[0]] == urls
    assert [each.pop("source") for each in both[1]] == list(map(str, files))
    assert both[0] == both[1]


def test_job_stores_its_limits_and_resumes_with_the_same(
    run: Run, compiled: CompiledBundle, server: ImageServer, urls: list[str], files: list[Path], tmp_path: Path
) -> None:
    server.answers["/0.png?size=1"] = content(b"", status="404 Not Found")
    job, shards = tmp_path / "job", ["--shard-format", "npy", "--shard-size", "2"]
    command = ["embed", compiled.path, *urls, "-o", job, *shards, "--allow-urls", "--allow-private-urls"]
    code, _, err = run(*command)
    assert code == 1, err
    rows = [
        json.loads(line) for path in sorted((job / "shards").glob("*.jsonl")) for line in path.read_text().splitlines()
    ]
    assert [row["id"] for row in rows] == urls
    assert rows[0]["error"] == f"Cannot read image '{urls[0]}': its server answers 404 Not Found."
    found = np.concatenate([np.load(path) for path in sorted((job / "shards").glob("*.npy"))])
    assert run("embed", compiled.path, *files, "-o", tmp_path / "files.npy")[0] == 0
    np.testing.assert_array_equal(found[1:], np.load(tmp_path / "files.npy")[1:])
    assert json.loads((job / "job.json").read_text())["settings"]["urls"]["timeout_s"] == 30

    (job / "shards" / "part-00000001.npy").unlink()
    asked = server.asked.copy()
    assert run(*command)[0] == 1
    assert {path for path in asked if server.asked[path] > asked[path]} == {"/2.png?size=1", "/3.png?size=1"}
    code, _, err = run(*command, "--url-timeout", "5")
    assert code == 2
    assert "was begun with" in err
    assert "urls" in err


def test_job_over_a_table_of_urls(
    run: Run, compiled: CompiledBundle, server: ImageServer, urls: list[str], files: list[Path], tmp_path: Path
) -> None:
    pa = pytest.importorskip("pyarrow", reason="needs the extra bulk")
    pq = pytest.importorskip("pyarrow.parquet")
    table = tmp_path / "table.parquet"
    pq.write_table(pa.table({"url": [*urls, "s3://bucket/a.png"]}), table)
    command = ["embed", compiled.path, table, "--shard-format", "npy", "-o"]
    code, _, err = run(*command, tmp_path / "job", *ALLOWED)
    assert code == 1, err
    assert run("embed", compiled.path, *files, "-o", tmp_path / "files.npy")[0] == 0
    (shard,) = (tmp_path / "job" / "shards").glob("*.npy")
    np.testing.assert_array_equal(np.load(shard)[:COUNT], np.load(tmp_path / "files.npy"))
    (error,) = map(json.loads, (tmp_path / "job" / "errors.jsonl").read_text().splitlines())
    assert (error["id"], "neither a path nor an http" in error["reason"]) == (f"{table}#{COUNT}", True)
    assert run(*command, tmp_path / "refused")[0] == 1
    assert "Allow it with --allow-urls" in (tmp_path / "refused" / "errors.jsonl").read_text()


def test_private_addresses_need_an_option_of_their_own(run: Run, compiled: CompiledBundle, urls: list[str]) -> None:
    code, _, err = run("classify", compiled.path, urls[0], "--labels", "a,b", "--allow-urls")
    assert code == 1
    assert f"Cannot read image '{urls[0]}': its host has no public address (127.0.0.1)." in err


def test_limits_reach_the_reader(run: Run, compiled: CompiledBundle, urls: list[str]) -> None:
    limits = ["--url-max-bytes", "20", "--url-timeout", "7"]
    code, _, err = run("classify", compiled.path, urls[0], "--labels", "a,b", *ALLOWED, *limits)
    assert code == 1
    assert "it has more than 20 bytes" in err


@pytest.mark.parametrize(
    "option",
    [["--allow-private-urls"], ["--url-timeout", "3"], ["--url-max-bytes", "3"]],
    ids=lambda option: str(option[0]),
)
def test_limits_alone_are_refused(run: Run, compiled: CompiledBundle, urls: list[str], option: list[str]) -> None:
    code, _, err = run("classify", compiled.path, urls[0], "--labels", "a,b", *option)
    assert code == 2
    assert f"{option[0]} is for URLs; give --allow-urls with it" in err


def test_content_that_is_no_image_is_named_without_secrets(
    run: Run, compiled: CompiledBundle, server: ImageServer
) -> None:
    server.answers["/page?token=abc123"] = content(b"<html>not here</html>", Content_Type="text/html")
    server.answers["/empty?token=abc123"] = content(b"")
    for path in ("/page", "/empty"):
        code, _, err = run("classify", compiled.path, server.url(f"{path}?token=abc123"), "--labels", "a,b", *ALLOWED)
        assert code == 1
        assert f"Cannot read image '{server.url(path)}?token=***': " in err
        assert "abc123" not in err
