"""``clipmlu bench``: our own measurement of the tiny model, on the CPU and on the emulated card."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest

import support
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.measure.speed.loaded import make_samples, open_graph
from clipmlu.model import load

Run = Callable[..., tuple[int, str, str]]

QUICK = ("--warmup", 0, "--duration", 30, "--iterations", 5)


@pytest.fixture
def card(exported: ExportedBundle, tmp_path: Path) -> CompiledBundle:
    """The tiny image tower on the emulated card, which wants no text tower; batches of four, and no others."""
    options = CompileOptions(target="emulated-mlu", batch_size=4, dynamic_shape=False, text_target="cpu")
    return compile_bundle(exported, tmp_path / "card", options)


def _skipped(err: str) -> list[str]:
    """The names of the images that the command says it could not read."""
    return [Path(path).name for path in re.findall(r"^skipped: Cannot read image '(.*?)'", err, re.MULTILINE)]


def _json(run: Run, *arguments: object) -> dict[str, Any]:
    code, out, err = run("bench", *arguments, "--json")
    assert code == int("--images" in arguments), err
    assert _skipped(err) == (["broken.jpg"] if "--images" in arguments else []), "the only file that cannot be read"
    report: dict[str, Any] = json.loads(out)
    return report


@pytest.mark.parametrize("name", ["empty", "absent"])
def test_folder_without_images_is_refused_before_anything_is_measured(
    run: Run, compiled: CompiledBundle, tmp_path: Path, name: str
) -> None:
    (tmp_path / "empty").mkdir()
    reason = {"empty": "", "absent": f" Cannot list the folder '{tmp_path / name}': No such file or directory."}[name]
    code, out, err = run("bench", compiled.path, "--images", tmp_path / name)
    assert (code, out) == (1, "")
    assert err == (
        f"clipmlu: '{tmp_path / name}' is no folder that holds images; expected some to measure the stages with.{reason}\n"
    )


def test_every_scenario_of_both_towers(run: Run, compiled: CompiledBundle, photos: Path, tmp_path: Path) -> None:
    scenarios = ("single-stream", "multi-stream", "offline")
    chosen = [word for scenario in scenarios for word in ("--scenario", scenario)]
    output = tmp_path / "speed.json"
    report = _json(
        run,
        compiled.path,
        *QUICK,
        *chosen,
        *("--queries-per-stream", 6, "--tower", "both"),
        *("--images", photos, "--output", output),
    )
    assert report == json.loads(output.read_text())
    origin = report["provenance"]
    assert (origin["target"], origin["precision"], origin["emulated"]) == ("cpu", "force_float32", False)
    assert (report["batch_size"], origin["devices"], report["in_flight"]) == (4, [], 2)
    assert set(origin["tool_versions"]) == {"clipmlu", "onnxruntime", "pillow"}
    assert origin["tool_versions"]["pillow"].startswith(f"{PIL.__version__} (")
    assert report["machine"]["cpus"] >= 1
    assert report["machine"]["memory_bytes"] > report["peak_memory_bytes"] > 10 * 2**20
    assert report["open_s"] > 0
    assert [tower["tower"] for tower in report["towers"]] == ["image", "text"]
    for tower in report["towers"]:
        assert tower["load_s"] > 0 < tower["first_batch_s"]
        assert tuple(result["scenario"] for result in tower["scenarios"]) == scenarios
        single, multi, offline = tower["scenarios"]
        assert [single["samples_per_query"], multi["samples_per_query"], offline["samples_per_query"]] == [1, 6, 4]
        assert (single["metric"], single["value"]) == ("p90_latency_ms", single["latency"]["p90_ms"])
        assert (multi["metric"], multi["value"]) == ("p99_latency_ms", multi["latency"]["p99_ms"])
        rate = "texts_per_second" if tower["tower"] == "text" else "images_per_second"
        assert (offline["metric"], offline["value"]) == ("samples_per_second", offline[rate])
        for result in tower["scenarios"]:
            ordered = sorted(result["latencies_ms"])
            assert len(ordered) == result["queries"] >= 5
            assert result["latency"]["p95_ms"] == ordered[len(ordered) * 95 // 100]
            assert result["latency"]["max_ms"] == ordered[-1]
            assert all(value == round(value, 3) for value in ordered)
            answered = result["queries"] * result["samples_per_query"]
            assert result[rate] == pytest.approx(answered / result["elapsed_s"])
            assert result["padding_per_query"] == 0
    pipeline = report["pipeline"]
    assert (pipeline["files"], pipeline["drawn"]) == (6, False)
    assert pipeline["skipped"] > 0, "the broken one among them"
    assert pipeline["verdict"]["bound_by"] in ("host", "device", "post_process", "cores")


def test_shown_on_the_terminal(run: Run, compiled: CompiledBundle, photos: Path) -> None:
    code, out, err = run("bench", compiled.path, *QUICK, "--images", photos)
    assert (code, _skipped(err)) == (1, ["broken.jpg"]), err
    lines = [line.split() for line in out.splitlines()]
    rows = {line[0]: line for line in lines if line and line[0] in ("single-stream", "offline")}
    assert rows["single-stream"][1] == "p90"
    assert rows["offline"][2] == "samples/s"
    assert rows["offline"][-3:-1] != ["x", "4"]
    assert rows["offline"][-2:] == ["x", "4"]
    assert "\ndecode " in out
    assert "share the cores" in out
    assert "emulated" not in out
    assert "measuring the image graph, single-stream" in err


def test_emulated_card_is_marked_in_every_line_with_a_figure(
    run: Run, card: CompiledBundle, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ("--scenario", "server", "--latency-bound-ms", 10, "--scenario", "offline")
    code, out, err = run("bench", card.path, *QUICK, *server, "--images", photos)
    assert (code, _skipped(err)) == (1, ["broken.jpg"]), err
    kinds = (
        "single-stream",
        "server",
        "offline",
        "images/s",
        "queries/s",
        "samples/s",
        "copy in",
        "compute",
        "copy out",
        "decode",
        "preprocess",
    )
    shown = [line for line in out.splitlines() if any(kind in line for kind in kinds) and "metric" not in line]
    figures = [line for line in shown if any(character.isdigit() for character in line)]
    assert len(figures) >= 8
    for line in figures:
        assert "emulated" in line, line
    assert "smaller ones are padded" in out


def test_static_shape_counts_its_padding_and_computing_takes_the_injected_time(
    run: Run, card: CompiledBundle, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPMLU_EMULATOR_LATENCY_MS", "20")
    chosen = ("--scenario", "multi-stream", "--queries-per-stream", 6, "--images", photos)
    report = _json(run, card.path, *QUICK, *chosen)
    (result,) = report["towers"][0]["scenarios"]
    assert (report["dynamic_shape"], report["towers"][0]["emulated"]) == (False, True)
    assert (report["provenance"]["emulated"], report["provenance"]["devices"]) == (True, [0])
    assert result["padding_per_query"] == 2, "six samples in two batches of four"
    assert min(result["latencies_ms"]) >= 40, "two batches, one after the other"
    stages = report["pipeline"]["stages"]
    assert stages["compute"]["seconds_per_image"] >= 0.020 / 4
    assert stages["compute"]["seconds_per_image"] > 5 * stages["copy_in"]["seconds_per_image"]
    assert {"copy_in", "compute", "copy_out", "decode"} <= set(stages)
    assert report["pipeline"]["verdict"]["limits"]["device"] <= 4 / 0.020


def test_computing_of_batches_in_flight_adds_up_to_no_more_than_the_time_that_passed(
    card: CompiledBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPMLU_EMULATOR_LATENCY_MS", "10")
    pixels = np.stack([support.preprocess(support.picture(seed)) for seed in range(4)])
    with load(card.path) as encoder:
        clock = encoder.device_clock("image")
        start = time.perf_counter()
        pending = [encoder.submit_images(pixels) for _ in range(6)]
        for batch in pending:
            np.testing.assert_allclose(batch.result(), support.embed_images(pixels), atol=1e-5)
        passed = time.perf_counter() - start
        totals = clock.totals()
    assert {stage: total.items for stage, total in totals.items()} == dict.fromkeys(
        ("copy_in", "compute", "copy_out"), 24
    )
    assert 6 * 0.010 <= totals["compute"].seconds <= passed


def test_several_cards_share_the_batches(run: Run, card: CompiledBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPMLU_EMULATOR_DEVICES", "2")
    report = _json(run, card.path, *QUICK, "--devices", "0,1", "--no-stages", "--scenario", "offline")
    assert report["provenance"]["devices"] == [0, 1]
    assert report["pipeline"] is None
    assert report["towers"][0]["scenarios"][0]["queries"] >= 5


def test_pipeline_on_several_cards_is_limited_by_all_of_them(
    run: Run, card: CompiledBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPMLU_EMULATOR_DEVICES", "3")
    monkeypatch.setenv("CLIPMLU_EMULATOR_LATENCY_MS", "60")
    report = _json(run, card.path, *QUICK, "--devices", "all", "--scenario", "offline", "--iterations", 24)
    assert report["provenance"]["devices"] == [0, 1, 2]
    limit, batches_per_second = report["pipeline"]["verdict"], 1 / 0.060
    assert 0.5 * 3 * 4 * batches_per_second < limit["limits"]["device"] <= 3 * 4 * batches_per_second
    assert report["pipeline"]["stages"]["compute"]["images_per_second"] >= limit["limits"]["device"]
    assert limit["measured_images_per_second"] == report["pipeline"]["images_per_second"]


def test_server_tells_the_rates_that_it_tried(run: Run, compiled: CompiledBundle) -> None:
    """Which rate it finds on real graphs is up to the machine; ``tests/measure/test_scenarios.py`` knows the right one."""
    report = _json(run, compiled.path, *QUICK, "--scenario", "server", "--latency-bound-ms", 5, "--no-stages")
    (result,) = report["towers"][0]["scenarios"]
    assert (result["metric"], result["latency_bound_ms"], result["samples_per_query"]) == ("queries_per_second", 5, 1)
    for probe in result["probes"]:
        assert probe["within_bound"] == (probe["p99_ms"] <= 5)
    if result["value"] is not None:
        assert result["probes"][-1]["queries_per_second"] == result["value"]
        assert result["latency"]["p99_ms"] == result["probes"][-1]["p99_ms"] <= 5


def test_bound_that_nothing_holds_has_no_rate(run: Run, compiled: CompiledBundle) -> None:
    server = ("--scenario", "server", "--latency-bound-ms", 1e-6, "--no-stages")
    report = _json(run, compiled.path, "--warmup", 0, "--duration", 0, "--iterations", 1, *server)
    (result,) = report["towers"][0]["scenarios"]
    assert (result["value"], result["latency"], result["queries"], result["probes"]) == (None, None, 0, [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scenario", "server"], "the server scenario and a latency bound go together"),
        (["--latency-bound-ms", "5"], "the server scenario and a latency bound go together"),
        (["--devices", "0,0"], "devices are '0,0', which names card 0 twice"),
        (["--devices", "1"], "runs on the CPU"),
        (["--images", "nowhere", "--no-stages"], "leave out one of --images and --no-stages"),
        (["--scenario", "sideways"], "'sideways' is not one of"),
    ],
)
def test_options_that_cannot_be_are_usage_errors(
    run: Run, compiled: CompiledBundle, arguments: list[str], message: str
) -> None:
    code, _, err = run("bench", compiled.path, *QUICK, *arguments)
    assert code == 2
    assert message in err


def test_batches_and_towers_that_the_bundle_has_not(
    run: Run, compiled: CompiledBundle, exported: ExportedBundle
) -> None:
    code, _, err = run("bench", compiled.path, *QUICK, "--batch-size", 9)
    assert code == 1
    assert "Batch of 9 is outside 1..8" in err
    code, _, err = run("bench", compiled.path, *QUICK, "--tower", "joint")
    assert code == 1
    assert "no fused graph" in err
    code, _, err = run("bench", exported.path, *QUICK)
    assert code == 1
    assert "is an exported bundle" in err


@pytest.fixture
def joint(tmp_path: Path) -> Path:
    """The tiny model's fused graph; batches of four images and 100 texts, and no others."""
    source = support.write_exported(tmp_path / "joint", layout="joint")
    options = CompileOptions(target="cpu", batch_size=4, dynamic_shape=False)
    return compile_bundle(source, tmp_path / "joint-cpu", options).path


def test_fused_graph_runs_with_its_texts_and_is_padded(run: Run, joint: Path) -> None:
    streams = ("--scenario", "multi-stream", "--queries-per-stream", 6, "--scenario", "offline")
    report = _json(run, joint, *QUICK, *streams)
    (tower,) = report["towers"]
    assert (tower["tower"], report["pipeline"]) == ("joint", None)
    assert [result["padding_per_query"] for result in tower["scenarios"]] == [2, 0]
    assert all(result["images_per_second"] > 0 for result in tower["scenarios"])


def test_batches_of_the_fused_graph_are_images_and_always_the_same_texts(joint: Path) -> None:
    with load(joint) as encoder:
        samples = make_samples(encoder, "joint", 4, seed=3)
        logits = open_graph(encoder, "joint", samples).submit(1, 2).result()
        texts = encoder.tokenizer(["a photo of a cat.", "a red circle"])
    assert logits.shape == (2, 100), "padded to the static four and trimmed; as many texts as a build for cards has"
    rows = np.asarray(samples, np.float32)[[1, 2]]
    np.testing.assert_allclose(logits[:, :2], support.joint_logits(rows, texts), atol=1e-4)
