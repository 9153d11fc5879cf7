"""Several emulated cards under one model: equal results in order, slow and failing cards, wrong choices, and nothing left behind."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clipmlu
import support
from clipmlu.backends import SessionOptions
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.embed.encoder import Encoder
from clipmlu.embed.images import embed_batches
from clipmlu.embed.items import item_from_source
from clipmlu.errors import BackendUnavailableError, DeviceError, OptionError, SessionError
from clipmlu.magicmind.backend import MagicMindBackend, emulated_worker
from clipmlu.model import Model
from mlu.small import children

DEVICES, LATENCY, FAULTS = (f"CLIPMLU_EMULATOR_{name}" for name in ("DEVICES", "LATENCY_MS", "FAULTS"))


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> CompiledBundle:
    """The tiny model for the emulated card, batches of 4; not to be changed."""
    folder = tmp_path_factory.mktemp("cards")
    options = CompileOptions(target="emulated-mlu", batch_size=4, max_batch=8, check=False)
    return compile_bundle(support.write_exported(folder / "tiny"), folder / "tiny-mlu", options)


@pytest.fixture(autouse=True)
def _four_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEVICES, "4")


def pixels(count: int) -> support.FloatArray:
    return np.random.default_rng(3).standard_normal((count, 3, support.SIDE, support.SIDE)).astype(np.float32)


def rows_of(model: Encoder, card: int) -> int:
    """Number of rows that one card of a model has computed."""
    (found,) = [each.session for each in model._session("image")._cards if each.index == card]  # type: ignore[attr-defined]
    return int(found.clock.totals()["compute"].items) if found.clock.totals() else 0


@pytest.mark.parametrize("devices", [[1], [0, 1], (3, 0, 2), "all", "1,2"])
def test_results_equal_those_of_one_card_to_the_last_bit(card: CompiledBundle, devices: Any) -> None:
    with clipmlu.load(card.path) as model:
        expected = model.encode_images(pixels(50))
        texts = model.embed_texts(["a red circle", "x"])
    with clipmlu.load(card.path, devices=devices) as model:
        assert model.encode_images(pixels(50)).tobytes() == expected.tobytes()
        assert model.embed_texts(["a red circle", "x"]).tobytes() == texts.tobytes()
    np.testing.assert_allclose(expected, support.embed_images(pixels(50)), atol=1e-5)


def test_order_is_kept_and_a_slow_card_gets_fewer_batches(
    card: CompiledBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LATENCY, "10,150,5,35")
    pictures = [support.picture(number) for number in range(160)]
    pictures_as_pixels = np.stack([support.preprocess(picture) for picture in pictures])
    with clipmlu.load(card.path, devices="all") as model:
        batches = list(embed_batches(model, map(item_from_source, pictures), workers=2))
        counts = [rows_of(model, index) for index in range(4)]
        total = model.device_clock("image").totals()["compute"].items
    np.testing.assert_allclose(
        np.concatenate([batch.rows for batch in batches]), support.embed_images(pictures_as_pixels), atol=1e-5
    )
    assert sum(counts) == total == 160
    assert counts[1] == min(counts) < counts[2]
    assert counts[1] > 0


def test_cards_work_at_the_same_time(card: CompiledBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with clipmlu.load(card.path, devices="all") as model:
        model.encode_images(pixels(16))
        monkeypatch.setenv(LATENCY, "150")

        def encode() -> float:
            start = time.perf_counter()
            model.encode_images(pixels(64))
            return time.perf_counter() - start

        one_after_the_other = 16 * 0.150
        assert any(encode() < 0.6 * one_after_the_other for _ in range(5)), "a machine may stand still at times"


def test_batches_in_flight_together_reach_every_card(card: CompiledBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with clipmlu.load(card.path, devices="all") as model:
        model.encode_images(pixels(4))
        rows = [rows_of(model, index) for index in range(4)]
        monkeypatch.setenv(LATENCY, "300")
        for pending in [model.submit_images(pixels(4)) for _ in model.devices]:
            pending.result()
        assert [rows_of(model, index) - before for index, before in enumerate(rows)] == [4, 4, 4, 4]


def test_lost_card_is_named_and_costs_no_result(
    card: CompiledBundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(FAULTS, "sync@2:1:device_lost")  # the first card gets the first batch
    with clipmlu.load(card.path, devices="2,0") as model, caplog.at_level(logging.WARNING, "clipmlu"):
        embeddings = model.encode_images(pixels(80))
    np.testing.assert_allclose(embeddings, support.embed_images(pixels(80)), atol=1e-5)
    (message,) = [record.getMessage() for record in caplog.records if "gets no more" in record.getMessage()]
    assert message.startswith("card 2 is lost and gets no more batches; the cards [0] do its work: Bundle")
    assert "(image tower, card 2): MagicMind failed: sync(): UNAVAILABLE" in message


def test_error_of_a_batch_names_its_card(card: CompiledBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FAULTS, "enqueue@1:1:oom")
    with (
        clipmlu.load(card.path, devices=[1, 3]) as model,
        pytest.raises(DeviceError, match=r"card 1\).*RESOURCE_EXHAUSTED"),
    ):
        model.encode_images(pixels(40))


def test_card_that_is_not_there_is_named_and_the_others_are_closed(card: CompiledBundle) -> None:
    threads = _card_threads()
    with (
        clipmlu.load(card.path, devices="0,1,7") as model,
        pytest.raises(BackendUnavailableError, match=r"card 7\): there is no card 7; this process sees 4\.$"),
    ):
        model.encode_images(pixels(4))
    support.wait_until(lambda: _card_threads() == threads)


def test_all_is_what_the_sdk_reports(card: CompiledBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEVICES, "3")
    with clipmlu.load(card.path, devices="all") as model:
        assert model.devices == (0, 1, 2)
    monkeypatch.setenv("MLU_VISIBLE_DEVICES", "2")
    with clipmlu.load(card.path, devices="all") as model:
        assert model.devices == (0,)
        assert model.encode_images(pixels(9)).shape == (9, support.DIM)
    monkeypatch.setenv(DEVICES, "0")
    monkeypatch.delenv("MLU_VISIBLE_DEVICES")
    with clipmlu.load(card.path, devices="all") as model, pytest.raises(BackendUnavailableError, match="reports none"):
        model.encode_images(pixels(4))


@pytest.mark.parametrize("devices", [[0], [0, 1], "all"])
def test_bundle_for_the_cpu_takes_no_devices(compiled: CompiledBundle, devices: Any) -> None:
    with pytest.raises(OptionError, match=r"devices are .*, but bundle '.*' runs on the CPU; leave them out$"):
        clipmlu.load(compiled.path, devices=devices)


def test_device_and_devices_exclude_each_other(card: CompiledBundle) -> None:
    with pytest.raises(OptionError, match="device and devices exclude each other"):
        clipmlu.load(card.path, device=0, devices=[1])


def test_pickled_model_keeps_its_devices(card: CompiledBundle) -> None:
    with clipmlu.load(card.path, devices="2,0") as model:
        pickled = pickle.dumps(model)
    with pickle.loads(pickled) as again:
        assert again.devices == (2, 0)
        np.testing.assert_allclose(again.encode_images(pixels(9)), support.embed_images(pixels(9)), atol=1e-5)


def test_class_embeddings_are_cached_for_any_number_of_cards(card: CompiledBundle) -> None:
    folder = Path(os.environ["CLIPMLU_CACHE_DIR"]) / "classifiers"
    for devices in (None, "0,1", "all"):
        with clipmlu.load(card.path, devices=devices) as model:
            model.classifier(support.NAMES)
    assert len(list(folder.iterdir())) == 1


def test_one_of_several_real_cards_is_always_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not known whether several threads may call the SDK."""
    stub = Path(__file__).with_name("stub_sdk")
    monkeypatch.syspath_prepend(stub)
    monkeypatch.setenv("PYTHONPATH", str(stub))
    backend = MagicMindBackend()
    assert backend.count_devices(SessionOptions(one_of_several=True)) == 1
    assert "magicmind" not in sys.modules, "this process has not called it"


def test_closing_in_the_middle_fails_the_batches_and_ends_the_threads(
    card: CompiledBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LATENCY, "60")
    threads = _card_threads()
    model = clipmlu.load(card.path, devices="all")
    pending = [model.submit_images(pixels(4)) for _ in range(40)]
    pending[0].result()
    model.close()
    errors = [_error_of(each) for each in pending]
    assert None in errors
    assert any(error is not None for error in errors)
    assert all("closed" in str(error) for error in errors if error is not None)
    with pytest.raises(SessionError, match="was closed"):
        model.encode_images(pixels(4))
    support.wait_until(lambda: _card_threads() == threads)


def test_dropped_model_lets_go_of_its_cards(card: CompiledBundle) -> None:
    threads = _card_threads()
    model = clipmlu.load(card.path, devices="0,1")
    model.encode_images(pixels(20))
    assert _card_threads() > threads
    del model
    support.wait_until(lambda: _card_threads() == threads)


def test_fused_graph_runs_on_several_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported = support.write_exported(tmp_path / "joint", layout="joint")
    options = CompileOptions(target="emulated-mlu", batch_size=4, max_batch=8, check=False)
    bundle = compile_bundle(exported, tmp_path / "joint-mlu", options)
    pictures = [support.picture(number) for number in range(30)]
    with clipmlu.load(bundle.path) as model:
        expected = model.classifier(support.NAMES).predict(pictures)
    monkeypatch.setenv(LATENCY, "200")
    with clipmlu.load(bundle.path, devices="0,1,2") as model:
        assert model.classifier(support.NAMES).predict(pictures) == expected
        assert all(each.session.clock.totals() for each in model._session("joint")._cards)  # type: ignore[attr-defined]


@pytest.fixture
def worker_model(card: CompiledBundle) -> Iterator[Callable[..., Encoder]]:
    """Opens models with a worker process for each card, and checks that nothing of them is left."""
    before, memory = children(), _shared_memory()
    with contextlib.ExitStack() as stack:
        yield lambda devices, **settings: stack.enter_context(
            Model(card, SessionOptions(worker=emulated_worker(**settings)), devices=devices)
        )
    support.wait_until(lambda: children() == before)
    support.wait_until(lambda: _shared_memory() == memory)


def test_each_card_has_a_worker_and_a_killed_one_is_replaced(
    worker_model: Callable[..., Encoder], tmp_path: Path
) -> None:
    before = children()
    log = tmp_path / "faults"
    model = worker_model("1,0", faults="enqueue@1:1:crash", fault_log=log)  # the first card gets the first batch
    embeddings = model.encode_images(pixels(80))
    assert len(children() - before) == 2
    assert log.read_text() == "enqueue@1:1:crash\n"
    np.testing.assert_allclose(embeddings, support.embed_images(pixels(80)), atol=1e-5)


def test_worker_that_dies_again_and_again_is_a_lost_card(
    worker_model: Callable[..., Encoder], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "clipmlu"):
        embeddings = worker_model("1,0", faults="enqueue@1:1:crash").encode_images(pixels(80))
    np.testing.assert_allclose(embeddings, support.embed_images(pixels(80)), atol=1e-5)
    (message,) = [record.getMessage() for record in caplog.records if "gets no more" in record.getMessage()]
    assert message.startswith("card 1 is lost")
    assert "failed 3 times in a row" in message


def test_closing_in_the_middle_leaves_no_process_and_no_shared_memory(worker_model: Callable[..., Encoder]) -> None:
    memory = _shared_memory()
    model = worker_model("0,1", latency_ms=30)
    pending = [model.submit_images(pixels(4)) for _ in range(20)]
    pending[0].result()
    assert _shared_memory() > memory, "the batches are in shared memory"
    start = time.monotonic()
    model.close()
    assert time.monotonic() - start < 30
    assert isinstance(_error_of(pending[-1]), SessionError)


def test_eval_counts_and_report_of_several_cards(card: CompiledBundle) -> None:
    from clipmlu.measure.accuracy.evaluate import EvalOptions, evaluate

    reports = []
    for devices in (None, "0,1,2"):
        with clipmlu.load(card.path, devices=devices) as model:
            reports.append(evaluate(model, support.Pictures(60, broken=frozenset({5, 17})), EvalOptions()))
    one, several = reports
    assert several.provenance.devices == (0, 1, 2)
    assert several.provenance.emulated
    assert one.provenance.devices == (0,)
    assert (several.top1, several.top5, several.images) == (one.top1, one.top5, one.images)
    assert several.skipped == one.skipped
    assert len(several.skipped) == 2


def _shared_memory() -> int:
    """Number of anonymous files of shared memory that this process holds."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += os.readlink(link).startswith("/memfd:")
    return found


def _card_threads() -> int:
    return sum(thread.name == "clipmlu-magicmind" for thread in threading.enumerate())


def _error_of(pending: Any) -> Exception | None:
    try:
        pending.result()
    except SessionError as error:
        return error
    return None
