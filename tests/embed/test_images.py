"""The pipeline: order, memory, errors, stages and closing, against the tiny model's towers in NumPy."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import support
from clipmlu.backends import SessionOptions
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.classify.results import Prediction
from clipmlu.clock import StageClock
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.embed.images import embed_batches, embed_items
from clipmlu.embed.items import ImageItem, item_from_source
from clipmlu.embed.rows import PendingRows
from clipmlu.errors import InputError, OptionError, OverlapError
from clipmlu.model import Model, load


class RecordingEncoder(Model):
    """Notes which memory each batch came in, and how many were on the device at once."""

    def __init__(self, bundle: CompiledBundle, options: SessionOptions | None = None) -> None:
        super().__init__(bundle, options)
        self.addresses: list[int] = []
        self.sizes: list[int] = []

    def submit_images(self, pixel_values: Any) -> PendingRows:
        self.addresses.append(pixel_values.ctypes.data)
        self.sizes.append(len(pixel_values))
        return super().submit_images(pixel_values)


@pytest.fixture
def encoder(compiled: CompiledBundle) -> Iterator[RecordingEncoder]:
    with RecordingEncoder(compiled) as opened:
        yield opened


def _items(count: int, broken: Sequence[int] = ()) -> Iterator[ImageItem]:
    def load_picture(number: int) -> Image.Image:
        if number in broken:
            raise InputError(f"{number} is broken")
        return support.picture(number)

    def item(number: int) -> ImageItem:
        return ImageItem(str(number), lambda: load_picture(number))

    return map(item, range(count))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(0, 40),
    batch_size=st.integers(1, 8),
    workers=st.integers(1, 5),
    broken=st.sets(st.integers(0, 39), max_size=15),
)
def test_every_image_comes_out_once_and_in_order(
    encoder: RecordingEncoder, count: int, batch_size: int, workers: int, broken: set[int]
) -> None:
    encoder.sizes.clear()
    outcomes = list(embed_items(encoder, _items(count, tuple(broken)), batch_size=batch_size, workers=workers))
    assert [outcome.item.id for outcome in outcomes] == [str(number) for number in range(count)]
    good = [number for number in range(count) if number not in broken]
    assert [str(outcome.error) for outcome in outcomes if outcome.error] == [
        f"{number} is broken" for number in range(count) if number in broken
    ]
    if good:
        pixels = np.stack([support.preprocess(support.picture(number)) for number in good])
        rows = np.stack([outcome.row for outcome in outcomes if outcome.row is not None])
        np.testing.assert_allclose(rows, support.embed_images(pixels), atol=1e-6)
    # Batches are fixed runs of items: which are broken changes their length and nothing else.
    groups = [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    left = [sum(number not in broken for number in group) for group in groups]
    assert encoder.sizes == [number for number in left if number]


@pytest.mark.parametrize("workers", [1, 3])
def test_memory_is_used_again_however_many_images_there_are(encoder: RecordingEncoder, workers: int) -> None:
    assert sum(1 for _ in embed_items(encoder, _items(400), batch_size=4, workers=workers)) == 400
    assert len(encoder.addresses) == 100
    # As many as are on the device, and those that keep the workers busy: 2 images for each, and one batch that is ready.
    ahead = 1 + -(-2 * workers // 4)
    assert len(set(encoder.addresses)) <= encoder.batches_in_flight + ahead


def test_items_wait_until_there_is_room_for_them(encoder: RecordingEncoder) -> None:
    taken = 0

    def counted() -> Iterator[ImageItem]:
        nonlocal taken
        for item in _items(10_000):
            taken += 1
            yield item

    stream = embed_batches(encoder, counted(), batch_size=4, workers=2)
    for batch in range(20):
        next(stream)
        assert taken <= (batch + 1 + 5) * 4, "more was taken than the device, the workers and one batch can hold"
    stream.close()


def test_static_bundle_takes_the_last_partial_batch(exported: Any, tmp_path: Path) -> None:
    compiled = compile_bundle(
        exported, tmp_path / "static", CompileOptions(target="cpu", batch_size=4, dynamic_shape=False)
    )
    with load(compiled.path) as encoder:
        rows = np.stack([outcome.require_row() for outcome in embed_items(encoder, _items(7, ()))])
    pixels = np.stack([support.preprocess(support.picture(number)) for number in range(7)])
    np.testing.assert_allclose(rows, support.embed_images(pixels), atol=1e-6)


def test_no_worker_is_refused(encoder: RecordingEncoder) -> None:
    with pytest.raises(OptionError, match="workers is 0; expected 1 or more"):
        next(embed_items(encoder, _items(1), workers=0))


def test_check_that_refuses_an_image_ends_the_run(encoder: RecordingEncoder) -> None:
    def check(_image: Image.Image) -> None:
        raise OverlapError("seen before")

    items = [ImageItem("0", lambda: support.picture(0), check)]
    with pytest.raises(OverlapError, match="seen before"):
        list(embed_items(encoder, items))


def test_a_bug_in_a_worker_is_no_broken_image(encoder: RecordingEncoder) -> None:
    def fail() -> Image.Image:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(embed_items(encoder, [ImageItem("0", fail)]))


def test_a_slow_image_holds_up_no_other(encoder: RecordingEncoder) -> None:
    others = threading.Semaphore(0)

    def slow() -> Image.Image:
        for _ in range(7):
            assert others.acquire(timeout=10), "images waited for the slow one"
        return support.picture(0)

    def quick(number: int) -> Image.Image:
        others.release()
        return support.picture(number)

    items = [ImageItem("0", slow)]
    items += [ImageItem(str(number), lambda number=number: quick(number)) for number in range(1, 8)]  # type: ignore[misc]
    outcomes = list(embed_items(encoder, items, batch_size=8, workers=2))
    assert [outcome.item.id for outcome in outcomes] == [str(number) for number in range(8)]
    pixels = np.stack([support.preprocess(support.picture(number)) for number in range(8)])
    rows = np.stack([outcome.require_row() for outcome in outcomes])
    np.testing.assert_allclose(rows, support.embed_images(pixels), atol=1e-6)


def test_a_bug_ends_the_run_before_the_images_that_wait(encoder: RecordingEncoder) -> None:
    loaded = []

    def load_picture(number: int) -> Image.Image:
        loaded.append(number)
        time.sleep(0.02)
        if number in (3, 4):
            raise ZeroDivisionError(f"image {number}")
        return support.picture(number)

    items = [ImageItem(str(number), lambda number=number: load_picture(number)) for number in range(32)]  # type: ignore[misc]
    with pytest.raises(ZeroDivisionError, match="image 3"):
        list(embed_items(encoder, items, batch_size=8, workers=2))
    assert len(loaded) < 8


def test_a_bug_ends_the_preparation_of_later_batches(encoder: RecordingEncoder) -> None:
    loaded = []

    def load_picture(number: int) -> Image.Image:
        loaded.append(number)
        if number == 1:
            raise ZeroDivisionError("image 1")
        time.sleep(0.2)
        return support.picture(number)

    items = [ImageItem(str(number), lambda number=number: load_picture(number)) for number in range(32)]  # type: ignore[misc]
    with pytest.raises(ZeroDivisionError, match="image 1"):
        list(embed_items(encoder, items, batch_size=1, workers=2))
    assert sorted(loaded) == [0, 1]


def test_interrupt_while_images_are_prepared_ends_the_workers(encoder: RecordingEncoder) -> None:
    loaded = []

    def slow(number: int) -> Image.Image:
        loaded.append(number)
        time.sleep(0.01)
        return support.picture(0)

    items = (ImageItem(str(number), lambda number=number: slow(number)) for number in range(100_000))  # type: ignore[misc]
    with pytest.raises(KeyboardInterrupt), support.interrupted_when(lambda: len(loaded) > 5):
        list(embed_items(encoder, items, batch_size=8, workers=2))
    support.wait_until(_no_worker_runs)


def _no_worker_runs() -> bool:
    return not any(thread.name.startswith("clipmlu-preprocess") for thread in threading.enumerate())


def test_process_ends_although_a_run_is_not_finished(compiled: CompiledBundle) -> None:
    program = """
import sys
import numpy as np
from clipmlu import load
from clipmlu.embed.images import embed_batches
from clipmlu.embed.items import item_from_source

pixels = np.zeros((32, 32, 3), np.uint8)
stream = embed_batches(load(sys.argv[1]), (item_from_source(pixels) for _ in range(10_000)), batch_size=4, workers=3)
print(len(next(stream).rows))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(compiled.path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "4\n", "")


def test_closing_stops_the_workers(encoder: RecordingEncoder) -> None:
    started = 0
    lock = threading.Lock()

    def slow() -> Image.Image:
        nonlocal started
        with lock:
            started += 1
        time.sleep(0.02)
        return support.picture(0)

    stream = embed_batches(encoder, (ImageItem("x", slow) for _ in range(10_000)), batch_size=8, workers=2)
    next(stream)
    stream.close()
    before = started
    support.wait_until(_no_worker_runs)
    assert started <= before + 2, "the image that each worker has in hand"


def test_stages_are_counted_with_their_time(encoder: RecordingEncoder, tmp_path: Path) -> None:
    def slow(path: Path) -> Path:
        time.sleep(0.01)
        return path

    paths = [tmp_path / f"{number}.png" for number in range(10)]
    for number, path in enumerate(paths):
        support.picture(number).save(path)
    loads: list[Callable[[], Path]] = [lambda path=path: slow(path) for path in paths]  # type: ignore[misc]
    items = [
        ImageItem(str(path), load, lambda _image: time.sleep(0.005)) for path, load in zip(paths, loads, strict=True)
    ]
    clock = StageClock()
    list(embed_items(encoder, items, batch_size=4, workers=2, clock=clock))
    totals = clock.totals()
    assert list(totals) == ["read", "decode", "preprocess"]
    assert {total.items for total in totals.values()} == {10}
    assert totals["read"].seconds >= 10 * 0.01
    assert totals["decode"].seconds >= 10 * 0.005
    assert totals["preprocess"].seconds > 0


def test_file_is_named_in_its_error(encoder: RecordingEncoder, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff garbage")
    outcomes = list(embed_items(encoder, [item_from_source(tmp_path / name) for name in ("broken.jpg", "absent.jpg")]))
    assert [outcome.row for outcome in outcomes] == [None, None]
    assert f"image '{tmp_path / 'broken.jpg'}'" in str(outcomes[0].error)
    assert f"image '{tmp_path / 'absent.jpg'}': there is no such file" in str(outcomes[1].error)


def test_errors_of_a_batch_are_in_the_order_of_its_images(encoder: RecordingEncoder) -> None:
    def broken(number: int) -> Image.Image:
        time.sleep(0.02 * (number % 3 == 0))  # these fail after the ones that follow
        raise InputError(f"{number} is broken")

    items = [ImageItem(str(number), lambda number=number: broken(number)) for number in range(8)]  # type: ignore[misc]
    (batch,) = embed_batches(encoder, items, batch_size=8, workers=4)
    assert [str(error) for error in batch.errors.values()] == [f"{number} is broken" for number in range(8)]


def test_images_that_are_cut_off_to_eight_bits_are_counted_once_each(
    encoder: RecordingEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    deep = Image.fromarray(np.full((support.SIDE, support.SIDE), 60_000, np.uint16))
    items = [ImageItem(name, lambda: deep) for name in ("a.tif", "b.tif", "a.tif")]
    items.append(ImageItem("c.png", lambda: support.picture(0)))
    list(embed_items(encoder, items))
    (message,) = caplog.messages
    assert message.startswith("2 image(s) hold grey values outside 0..255")
    assert "as in open_clip" in message


def test_open_files_are_images_and_not_lines(encoder: RecordingEncoder, tmp_path: Path) -> None:
    support.picture(0).save(tmp_path / "0.png")
    expected = support.embed_images(support.preprocess(support.picture(0))[None])[0]
    content = io.BytesIO((tmp_path / "0.png").read_bytes())
    classifier = encoder.classifier(["cat", "dog"], cache=False)
    with (tmp_path / "0.png").open("rb") as file:
        np.testing.assert_allclose(encoder.embed_images(content), expected, atol=1e-6)
        np.testing.assert_allclose(encoder.embed_images(file), expected, atol=1e-6)
        many = encoder.embed_images([content, file, content, tmp_path / "0.png"])
        np.testing.assert_allclose(many, np.stack([expected] * 4), atol=1e-6)
        prediction = classifier.predict(file)
    assert isinstance(prediction, Prediction)
    assert prediction.source == str(tmp_path / "0.png")
    assert isinstance(classifier.predict(content), Prediction)


@pytest.mark.parametrize("workers", [1, 5])
def test_python_calls_take_the_workers_that_they_are_given(encoder: RecordingEncoder, workers: int) -> None:
    threads = set()

    class Stream(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            threads.add(threading.current_thread().name)
            time.sleep(0.005)  # time for another worker to wait for its turn
            return super().read(size)

    content = io.BytesIO()
    support.picture(0).save(content, "PNG")
    streams = [Stream(content.getvalue()) for _ in range(10 * workers)]
    encoder.embed_images(streams, workers=workers)
    assert len(threads) == workers
    threads.clear()
    encoder.classifier(["cat", "dog"], cache=False).predict(streams, workers=workers)
    assert len(threads) == workers
    with pytest.raises(OptionError, match="workers is 0; expected 1 or more"):
        encoder.embed_images(streams, workers=0)
