"""Which stage limits the pipeline, by numbers made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from PIL import Image

import support
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.clock import Stage, StageClock
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.errors import InputError
from clipmlu.measure.speed import bottleneck
from clipmlu.measure.speed.bottleneck import draw_photos, measure_pipeline
from clipmlu.measure.speed.limit import PipelineSetup, find_limit
from clipmlu.measure.speed.scenarios import Limits
from clipmlu.model import load

COSTS: dict[Stage, float] = {
    "read": 0.001,
    "decode": 0.006,
    "preprocess": 0.003,
    "copy_in": 0.0005,
    "compute": 0.001,
    "copy_out": 0.0005,
    "post_process": 0.0001,
}
CARD = PipelineSetup(workers=4, devices=1, cores=8, threads=0, shares_cores=False)


def test_slow_decoding_before_a_fast_card_is_bound_by_the_host() -> None:
    verdict = find_limit(COSTS, CARD, measured=300.0)
    # 10 ms of an image's decoding on four workers; 2 ms on the card; 0.1 ms behind it.
    assert verdict.limits == {
        "host": pytest.approx(400.0),
        "device": pytest.approx(500.0),
        "post_process": pytest.approx(10_000.0),
    }
    assert (verdict.bound_by, verdict.slowest_stage) == ("host", "decode")
    assert (verdict.images_per_second, verdict.fraction) == (pytest.approx(400.0), pytest.approx(0.75))
    assert verdict.text == "bound by reading, decoding and preprocessing, most of it decode; 75% of what that allows"


def test_more_workers_move_the_bound_to_the_card_and_a_second_card_back() -> None:
    one = find_limit(COSTS, replace(CARD, workers=6), measured=450.0)
    assert (one.bound_by, one.slowest_stage, one.images_per_second) == ("device", "compute", pytest.approx(500.0))
    two = find_limit(COSTS, replace(CARD, workers=6, devices=2), measured=450.0)
    assert (two.bound_by, two.limits["device"]) == ("host", pytest.approx(1000.0))


def test_more_workers_than_cores_are_no_faster() -> None:
    assert find_limit(COSTS, replace(CARD, workers=64), measured=1.0).limits["host"] == pytest.approx(800.0)


def test_slow_post_processing_is_one_thread() -> None:
    verdict = find_limit({**COSTS, "post_process": 0.02}, CARD, measured=50.0)
    assert (verdict.bound_by, verdict.images_per_second, verdict.fraction) == (
        "post_process",
        pytest.approx(50.0),
        pytest.approx(1.0),
    )


def test_graph_on_the_same_cpu_shares_its_cores_with_decoding() -> None:
    costs: dict[Stage, float] = {"decode": 0.006, "preprocess": 0.002, "compute": 0.006}
    setup = PipelineSetup(workers=2, devices=1, cores=2, threads=2, shares_cores=True)
    verdict = find_limit(costs, setup, measured=75.0)
    # 8 ms of one core and 6 ms of two: 20 ms of a core for an image, two cores.
    assert verdict.limits == {
        "host": pytest.approx(250.0),
        "device": pytest.approx(1 / 0.006),
        "cores": pytest.approx(100.0),
    }
    assert (verdict.bound_by, verdict.slowest_stage, verdict.fraction) == ("cores", "compute", pytest.approx(0.75))
    assert "decoding (40%) and computing (60%) share the cores; 75% of what that allows" in verdict.text


def test_one_thread_of_many_cores_is_bound_by_computing() -> None:
    costs: dict[Stage, float] = {"decode": 0.006, "compute": 0.02}
    setup = PipelineSetup(workers=8, devices=1, cores=8, threads=1, shares_cores=True)
    verdict = find_limit(costs, setup, measured=40.0)
    assert (verdict.bound_by, verdict.limits["cores"]) == ("device", pytest.approx(8 / 0.026))
    assert verdict.images_per_second == pytest.approx(50.0)
    assert "share the cores" in verdict.text


def test_quota_of_a_fraction_of_a_core_limits_the_host_and_the_shared_cores() -> None:
    card = find_limit(COSTS, replace(CARD, workers=2, cores=1.5), measured=75.0)
    assert (card.bound_by, card.images_per_second) == ("host", pytest.approx(150.0))  # 1.5 cores, 10 ms each image
    costs: dict[Stage, float] = {"decode": 0.008, "compute": 0.008}
    shared = PipelineSetup(workers=2, devices=1, cores=1.5, threads=2, shares_cores=True)
    # Two threads get 1.5 cores while they compute: 8 + 12 ms of a core for an image.
    assert find_limit(costs, shared, measured=60.0).limits == {
        "host": pytest.approx(187.5),
        "device": pytest.approx(125.0),
        "cores": pytest.approx(75.0),
    }


def test_several_devices_that_compute_on_the_same_cores_are_bound_by_them() -> None:
    costs: dict[Stage, float] = {"decode": 0.006, "compute": 0.002}
    setup = PipelineSetup(workers=8, devices=4, cores=8, threads=1, shares_cores=True)
    verdict = find_limit(costs, setup, measured=900.0)
    assert verdict.limits == {
        "host": pytest.approx(8 / 0.006),
        "device": pytest.approx(2000.0),
        "cores": pytest.approx(1000.0),
    }
    assert (verdict.bound_by, verdict.fraction) == ("cores", pytest.approx(0.9))


def test_emulated_cards_that_wait_leave_the_cores_to_the_host() -> None:
    costs: dict[Stage, float] = {"decode": 0.006, "compute": 0.01}
    setup = PipelineSetup(workers=2, devices=2, cores=2, threads=2, shares_cores=True, computing_cores=0.1)
    verdict = find_limit(costs, setup, measured=200.0)
    # 6 ms of decoding, and 1 ms of a core while the card takes 10 ms.
    assert verdict.limits == {
        "host": pytest.approx(2 / 0.006),
        "device": pytest.approx(200.0),
        "cores": pytest.approx(2 / 0.007),
    }
    assert verdict.bound_by == "device"


def test_two_emulated_cards_with_a_latency_are_the_limit_although_they_share_the_cores(
    exported: ExportedBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPMLU_EMULATOR_DEVICES", "2")
    emulated = compile_bundle(exported, tmp_path / "compiled", CompileOptions(target="emulated-mlu", batch_size=4))
    support.picture(0).save(tmp_path / "a.png")
    monkeypatch.setenv("CLIPMLU_EMULATOR_LATENCY_MS", "100")
    with load(emulated.path, devices=(0, 1)) as encoder:
        report = measure_pipeline(
            encoder,
            [tmp_path / "a.png"],
            batch_size=4,
            limits=Limits(24, 0.0),
            setup=PipelineSetup(workers=2, devices=2, cores=2, threads=2, shares_cores=True),
            drawn=False,
        )
    assert report.verdict.bound_by == "device"
    assert 20 < report.verdict.limits["device"] <= 80, "two cards, four images in 100 ms and more"
    assert report.verdict.limits["cores"] > 2 * report.verdict.limits["device"], "the cards sleep"


def test_stages_are_those_of_the_pipeline_and_of_the_session(
    compiled: CompiledBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host's stages as a pipeline with known costs counts them; computing as the session does."""
    workers: list[int] = []

    def known(
        encoder: Any, items: Any, *, batch_size: int, workers_seen: list[int] = workers, **given: Any
    ) -> Iterator[Any]:
        clock: StageClock = given["clock"]
        workers_seen.append(given["workers"])
        for batch in real(encoder, items, batch_size=batch_size):
            count = len(batch.items)
            clock.add({"read": 0.001 * count, "decode": 0.004 * count, "preprocess": 0.002 * count}, count)
            yield batch

    real = bottleneck.embed_batches
    monkeypatch.setattr(bottleneck, "embed_batches", known)
    support.picture(0).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    with load(compiled.path) as encoder:
        report = measure_pipeline(
            encoder,
            [tmp_path / "a.png", tmp_path / "broken.png"],
            batch_size=4,
            limits=Limits(20, 0.0),
            setup=PipelineSetup(workers=3, devices=1, cores=3, threads=3, shares_cores=True),
            drawn=False,
        )
    assert workers == [1, 1, *[1] * 4, 3], (
        "warm-up, each stage on its own, two options and the same without, then all of them"
    )
    assert {option: set(costs) for option, costs in report.host_options.items()} == {
        "--fast-preprocess": {"read", "decode", "preprocess"},
        "'clipmlu compile --uint8-input'": {"read", "decode", "preprocess"},
    }
    assert report.host_options["--fast-preprocess"]["decode"] == pytest.approx(0.004)
    assert (report.images, report.skipped, report.files, report.workers) == (10, 10, 2, 3)
    assert list(report.stages) == ["read", "decode", "preprocess", "compute", "post_process"]
    assert report.stages["decode"].seconds_per_image == pytest.approx(0.004)
    assert report.stages["decode"].images_per_second == pytest.approx(3 / 0.004)
    ranking = report.stages["post_process"]
    assert 0 < ranking.seconds_per_image < 1
    assert ranking.images_per_second == pytest.approx(1 / ranking.seconds_per_image)
    assert report.stages["preprocess"].together_seconds_per_image == pytest.approx(0.002)
    assert sum(cost.share for cost in report.stages.values()) == pytest.approx(1.0)
    assert 0 < report.stages["compute"].seconds_per_image < 1
    assert report.images_per_second == pytest.approx(10 / report.elapsed_s)
    assert report.verdict.measured_images_per_second == report.images_per_second


def test_files_of_which_none_can_be_read_are_an_error(compiled: CompiledBundle, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with load(compiled.path) as encoder, pytest.raises(InputError, match=r"Not one of 1 image\(s\) could be read"):
        measure_pipeline(
            encoder,
            [tmp_path / "broken.png"],
            batch_size=4,
            limits=Limits(1, 0.0),
            setup=PipelineSetup(workers=1, devices=1, cores=1, threads=1, shares_cores=True),
            drawn=False,
        )


def test_drawn_photos_have_the_sizes_and_the_weight_of_photos(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    paths = draw_photos(tmp_path, count=4, seed=1)
    sizes = set()
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "JPEG"
            sizes.add(image.size)
            width, height = image.size
        assert 320 <= width <= 1200
        assert 320 <= height <= 1200
        bits = path.stat().st_size * 8 / (width * height)
        assert 0.5 < bits < 6, "bits a pixel: neither a flat drawing nor pure noise"
    assert len(sizes) == 4
    again = draw_photos(tmp_path / "again", count=4, seed=1)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]
