"""Time of a search: exact, with a filter, approximate, and faiss's own exact index; the recall, and the time of building.

    python benchmarks/search.py [--rows N] [--dim D] [--queries Q...] [--rounds N] [--dtype D] [--plain] [--work DIR] [--json FILE]

The rows are drawn: 500 groups of unit vectors around common centres, of the similarities that CLIP's embeddings of photos have
(0.5 to 0.9 inside a group). ``--plain`` draws them without groups, which is the hardest case for an approximate index. Queries are
near the centres, too. All sides search the same rows with the same queries, in alternation.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
from _timing import Sample, compare, print_machine, print_table, take_turns, timed, write_json

import clipmlu

GROUPS = 500
K = 10


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        rows, queries = draw(options.rows, options.dim, max(options.queries), plain=options.plain)
        np.save(Path(folder, "rows.npy"), rows)
        index = build(Path(folder), options.dtype)
        flat = faiss.IndexFlatIP(options.dim)
        flat.add(rows)
        results = [measure(index, flat, queries[:count], options.rounds) for count in options.queries]
    write_json(options.json, {"benchmark": "search", "results": results})


def draw(count: int, dim: int, queries: int, *, plain: bool) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return rows and queries of unit norm."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((GROUPS, dim), np.float32)
    rows, found = (random.standard_normal((number, dim), np.float32) for number in (count, queries))
    if plain:
        return unit(rows), unit(found)
    return unit(_grouped(rows, centres, random)), unit(_grouped(found, centres, random))


def _grouped(
    rows: npt.NDArray[np.float32], centres: npt.NDArray[np.float32], random: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Return rows around centres, some near and some far."""
    rows *= random.uniform(0.3, 1.0, (len(rows), 1)).astype(np.float32)
    rows += centres[random.integers(0, len(centres), len(rows))]
    return rows


def unit(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return rows of unit norm."""
    found: npt.NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found


def build(folder: Path, dtype: str) -> clipmlu.VectorIndex:
    """Build the index, print how long it takes, and return it."""
    source, output = folder / "rows.npy", folder / "index"
    for what, keywords in (("index", {"dtype": dtype}), ("again", {}), ("approximate", {"approximate": True})):
        start = time.perf_counter()
        report = clipmlu.build_index(source, output, **keywords)  # type: ignore[arg-type]
        print(f"{what}: {time.perf_counter() - start:.2f} s")
    record = report.approximate
    assert record is not None
    print(f"recall@10 {record.recall:.4f} over {record.queries} held rows; {record.probes} of {record.lists} clusters")
    return clipmlu.open_index(output)


def measure(
    index: clipmlu.VectorIndex, flat: faiss.IndexFlatIP, queries: npt.NDArray[np.float32], rounds: int
) -> dict[str, float]:
    """Print the times for some queries at once, and return them."""
    count = len(queries)
    sides: dict[str, Callable[[], Sample]] = {
        "exact": timed(lambda: index.search(queries, K, exact=True), 1),
        "exact, filter of 10 %": timed(lambda: index.search(queries, K, include="*0", exact=True), 1),
        "approximate": timed(lambda: index.search(queries, K), 1),
        "faiss IndexFlatIP": timed(lambda: flat.search(queries, K), 1),
    }
    taken = take_turns(sides, rounds, what=f"{count} queries, ")
    table = compare(taken)
    print(f"\n{count} queries at once")
    print_table(
        ["side", "ms", "speed to exact"],
        [(row.name, f"{1000 * row.seconds_per_item:.1f}", row.spread) for row in table],
    )
    return {row.name: row.seconds_per_item for row in table}


if __name__ == "__main__":
    main()
