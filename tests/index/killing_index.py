"""Run by ``test_kills``: kills an update of an index at each of its changes of files, looks at the index, and runs it again.

Arguments: a scratch folder, and the distance of the steps that are tried. Each update runs in a process that is forked from this
one. It changes a shard, removes one and adds one. Prints how many kills there were, and what was wrong.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np

from clipmlu.index.build import build
from clipmlu.index.opened import open_index
from clipmlu.index.options import IndexOptions
from kill_at_steps import content, run_forked

_DIM = 8


def save(path: Path, seed: int, rows: int) -> None:
    np.save(path, np.random.default_rng(seed).standard_normal((rows, _DIM)).astype(np.float32))


def update(sources: list[Path], index: Path, last_step: int | None) -> int:
    """Update in a forked process; see ``run_forked``."""
    return run_forked(lambda: build(sources, index, IndexOptions()), index, last_step)


def hits(index: Path) -> list[tuple[str, float]]:
    (found,) = open_index(index).search(np.ones(_DIM), 100)
    return [(hit.id, hit.score) for hit in found]


def main() -> None:
    scratch, distance = Path(sys.argv[1]), int(sys.argv[2])
    first, second, third = (scratch / f"{name}.npy" for name in ("first", "second", "third"))
    index, before = scratch / "index", scratch / "before"
    save(first, 1, 20)
    save(second, 2, 10)
    build([first, second], before, IndexOptions())
    save(second, 3, 15)
    save(third, 4, 5)
    sources = [second, third]
    shutil.copytree(before, index)
    count = update(sources, index, None)
    old, new, whole = hits(before), hits(index), content(index)
    assert old != new
    assert count > 20
    kills, wrong = 0, {}
    for step in range(0, count, distance):
        shutil.rmtree(index)
        shutil.copytree(before, index)
        kills += update(sources, index, step) == -1
        if hits(index) not in (old, new):
            wrong[step] = "a reader found neither the old nor the new rows"
        update(sources, index, None)
        if content(index) != whole:
            wrong[step] = f"the next run left {sorted(content(index).keys() ^ whole.keys())}"
    print(json.dumps({"kills": kills, "steps": count, "wrong": wrong}))


if __name__ == "__main__":
    main()
