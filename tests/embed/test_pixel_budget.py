"""The pixels that threads hold together: bounded, in turn, and never in the way of small images."""

from __future__ import annotations

import ctypes
import threading
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest
from PIL import Image

from clipmlu.bundle.directory import CompiledBundle
from clipmlu.data.images import DEFAULT_MAX_PIXELS
from clipmlu.embed import pixel_budget
from clipmlu.embed.images import embed_items
from clipmlu.embed.items import ImageItem
from clipmlu.embed.pixel_budget import PixelBudget, PixelReservation
from clipmlu.errors import InputError
from clipmlu.model import load


def test_budget_is_one_largest_image_or_a_photo_for_each_thread() -> None:
    assert PixelBudget(1).pixels == DEFAULT_MAX_PIXELS
    assert PixelBudget(64).pixels == 64 * 24_000_000


def test_threads_together_stay_below_the_budget_and_all_get_their_turn() -> None:
    budget = PixelBudget(2)
    lock, held, most = threading.Lock(), [0], [0]
    sizes = np.random.default_rng(0).integers(5_000_000, 2 * DEFAULT_MAX_PIXELS, 200).tolist()

    def hold(pixels: int) -> None:
        reservation = PixelReservation(budget)
        reservation.reserve(pixels)
        with lock:
            held[0] += min(pixels, budget.pixels)
            most[0] = max(most[0], held[0])
        with lock:
            held[0] -= min(pixels, budget.pixels)
        reservation.end()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, sizes, timeout=60))
    assert 0 < most[0] <= budget.pixels
    assert budget.take(budget.pixels) == budget.pixels, "everything came back"


def test_large_image_waits_until_there_is_room() -> None:
    budget = PixelBudget(1)
    first, second = PixelReservation(budget), PixelReservation(budget)
    first.reserve(budget.pixels - pixel_budget.FREE_PIXELS)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(second.reserve, pixel_budget.FREE_PIXELS + 1)
        assert wait([waiting], timeout=0.05).not_done
        first.end()
        waiting.result(timeout=60)


@pytest.fixture
def trimmed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The calls of a C library's ``malloc_trim``."""
    calls: list[int] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: types.SimpleNamespace(malloc_trim=calls.append))
    pixel_budget._find_trim.cache_clear()
    yield calls
    pixel_budget._find_trim.cache_clear()


@pytest.mark.parametrize(("pixels", "returned"), [(24_000_000, 0), (24_000_001, 1)])
def test_memory_of_more_than_a_photo_goes_back_to_the_system(trimmed: list[int], pixels: int, returned: int) -> None:
    reservation = PixelReservation(PixelBudget(1))
    reservation.reserve(pixels)
    reservation.end()
    assert trimmed == [0] * returned


def test_small_images_never_wait() -> None:
    budget = PixelBudget(1)
    budget.take(budget.pixels)
    reservation = PixelReservation(budget)
    reservation.reserve(pixel_budget.FREE_PIXELS)
    reservation.end()


def test_closing_sends_waiting_threads_away() -> None:
    budget = PixelBudget(1)
    budget.take(budget.pixels)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(budget.take, 5_000_000)
        budget.close()
        with pytest.raises(InputError, match="stopped"):
            waiting.result(timeout=60)


def test_pipeline_gives_back_what_it_held_after_errors_too(compiled: CompiledBundle) -> None:
    """An image that is not given back would leave no room for the third one."""
    budget = PixelBudget(4).pixels
    large = Image.new("L", (8192, budget * 2 // 5 // 8192))

    def refuse(_image: Image.Image) -> None:
        raise InputError("refused")

    items = [ImageItem(str(number), lambda: large, refuse if number % 3 else None) for number in range(4)]
    with load(compiled.path) as encoder:
        outcomes = list(embed_items(encoder, items, batch_size=4, workers=4))
    assert [outcome.error is None for outcome in outcomes] == [number % 3 == 0 for number in range(4)]
