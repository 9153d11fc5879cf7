"""The speed of a precision relative to float32, with times set by hand."""

from __future__ import annotations

from collections.abc import Callable

from clipmlu.backends.product_speed import relative_speed


class _Clock:
    """A clock that products advance by the next of their own times."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def product(self, name: str, seconds: list[float]) -> Callable[[object], None]:
        waiting = iter([9.0, *seconds])  # the first run is not counted

        def run(_rows: object) -> None:
            self.order.append(name)
            self.now += next(waiting)

        return run


def test_speed_is_the_median_of_ratios_in_changing_order_so_that_single_delays_do_not_count() -> None:
    clock = _Clock()
    # Ratios: 0.5 five times, and twice each 0.05 and 20, where another program delayed one of the two.
    own = clock.product("bf16", [0.2, 2.0, 0.2, 2.0, 0.2, 0.2, 0.2, 0.005, 0.005])
    base = clock.product("f32", [0.1] * 9)
    assert round(relative_speed(own, base, lambda: clock.now), 6) == 0.5
    assert clock.order[2:6] == ["f32", "bf16", "bf16", "f32"]
    assert len(clock.order) == 20
