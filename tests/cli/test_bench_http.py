"""``clipmlu bench --http``: a bundle behind a server that runs, and behind one that the command starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import clipmlu
import support
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.errors import SessionError
from clipmlu.serve.process import started_server

pytest.importorskip("fastapi", reason="needs the extra serve")

from http_server import serving

Run = Callable[..., tuple[int, str, str]]

QUICK = ("--warmup", 0, "--duration", 0, "--iterations", 3)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(2):
        support.picture(number).save(folder / f"{number}.png")
    return folder


def _scenarios(out: str) -> dict[str, Any]:
    report = json.loads(out)
    assert report["transport"] == "http"
    return {result["scenario"]: result for result in report["towers"][0]["scenarios"]}


def test_a_server_that_runs(run: Run, compiled: CompiledBundle, pictures: Path) -> None:
    app = clipmlu.create_app(compiled.path)
    more = ("--scenario", "multi-stream", "--scenario", "offline", "--queries-per-stream", 2)
    with serving(app) as url:
        code, out, err = run("bench", compiled.path, "--http", url, "--images", pictures, *QUICK, *more, "--json")
        assert code == 0, err
        found = _scenarios(out)
        assert [found[name]["samples_per_query"] for name in ("multi-stream", "offline")] == [2, 1]
        code, out, err = run("bench", compiled.path, "--http", url, "--images", pictures, *QUICK)
        assert code == 0, err
        facts = [line for line in out.splitlines() if line.startswith(("transport", "start-up", "peak memory"))]
        assert facts[0] == "transport    http, up to 12 requests at a time"
        assert facts[1].startswith("start-up     the server ran before, first request ")
        assert facts[2] == "peak memory  not known"


def test_the_key_of_the_environment_opens_a_server(
    run: Run, compiled: CompiledBundle, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("bench", compiled.path, "--images", pictures, *QUICK, "--scenario", "offline")
    monkeypatch.setenv("CLIPMLU_API_KEY", "0123456789abcdef")
    with serving(clipmlu.create_app(compiled.path, api_key="0123456789abcdef")) as url:
        code, _out, err = run(*command, "--http", url)
        assert code == 0, err
        monkeypatch.delenv("CLIPMLU_API_KEY")
        code, out, err = run(*command, "--http", url)
    assert (code, out) == (1, "")
    assert "status 401" in err


def test_a_server_of_another_bundle_is_not_measured(
    run: Run, compiled: CompiledBundle, compiled_once: Path, pictures: Path
) -> None:
    support.edit_manifest(compiled.path, logit_scale=21.0)
    with serving(clipmlu.create_app({compiled.path.name: compiled_once})) as url:
        code, out, err = run("bench", compiled.path, "--http", url, "--images", pictures, *QUICK)
    assert (code, out) == (1, "")
    assert f"Model '{compiled.path.name}' of server '{url}' has the digest" in err
    assert "expected bundle" in err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--http", "127.0.0.1:8000"), "http is '127.0.0.1:8000'; expected the URL of a server"),
        (("--http", "--tower", "text"), "tower is 'text'; through http the image tower is measured"),
        (("--http", "--batch-size", 2), "batch size is the server's own"),
        (("--tool", "mm_run", "--http"), "--http is not for --tool mm_run"),
    ],
)
def test_wrong_options_are_refused_before_anything_starts(
    run: Run, compiled: CompiledBundle, more: tuple[object, ...], message: str
) -> None:
    code, out, err = run("bench", compiled.path, *more)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.slow
def test_a_server_is_started_and_stopped(run: Run, compiled: CompiledBundle, pictures: Path) -> None:
    code, out, err = run("bench", compiled.path, "--images", pictures, *QUICK, "--json", "--http")
    assert code == 0, err
    report = json.loads(out)
    assert report["open_s"] > 0
    assert report["worker_peak_memory_bytes"] > 10 * 2**20
    assert "offline" in _scenarios(out)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    expected = r"The server for '.*absent' did not start: .*BundleNotFoundError"
    with pytest.raises(SessionError, match=expected), started_server("absent", tmp_path / "absent"):
        pass
