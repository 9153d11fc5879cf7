"""The approximate index: its measured recall, updates without new clusters, and what it does when faiss or its file is missing."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import clipmlu
import support
from cli.conftest import Run
from clipmlu.classify.open_set import DEFAULT_BACKGROUND
from clipmlu.errors import InputError, MissingDependencyError, OptionError

faiss = pytest.importorskip("faiss")
DIM, K = 24, 10


def grouped(count: int, seed: int) -> npt.NDArray[np.float32]:
    random = np.random.default_rng(seed)
    rows = np.random.default_rng(0).standard_normal((40, DIM))[random.integers(0, 40, count)]
    rows += 0.5 * random.standard_normal((count, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def save(path: str, rows: npt.NDArray[np.float32]) -> None:
    np.save(path, rows)
    Path(path).with_suffix(".ids.json").write_text(json.dumps([f"{path}/{row}" for row in range(len(rows))]))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    """Threads that wait for each other take most of the time of such small indices."""
    faiss.omp_set_num_threads(1)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("approximate")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save("first.npy", grouped(2600, 1))
        clipmlu.build_index("first.npy", "all", approximate=True)
    return folder


@pytest.fixture
def place(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a copy of ``all``, an index with an approximate one, and of its source."""
    folder = tmp_path / "place"
    shutil.copytree(built, folder)
    monkeypatch.chdir(folder)
    return folder


def best(rows: npt.NDArray[np.float32], queries: npt.NDArray[np.float32], k: int = K) -> list[list[int]]:
    scores = queries.astype(np.float64) @ rows.astype(np.float64).T
    return [np.argsort(-each, kind="stable")[:k].tolist() for each in scores]


def names(results: list[tuple[clipmlu.Hit, ...]]) -> list[list[str]]:
    return [[hit.id for hit in hits] for hits in results]


@pytest.mark.usefixtures("place")
def test_the_stored_recall_is_that_of_the_held_rows() -> None:
    index, rows = clipmlu.open_index("all"), np.load("first.npy")
    record = index.manifest.approximate
    assert record is not None
    held = np.arange(0, 2600, 32)
    assert (record.queries, record.text_recall, record.trained_rows) == (len(held), None, 2600)
    truth = [
        [row for row in each if row != own][:K] for each, own in zip(best(rows, rows[held], K + 1), held, strict=True)
    ]
    found = [
        [hit.row for hit in hits if hit.row != own][:K]
        for hits, own in zip(index.search(rows[held], K + 1), held, strict=True)
    ]
    same = sum(len(set(one) & set(other)) for one, other in zip(found, truth, strict=True))
    assert record.recall == pytest.approx(same / (K * len(held)))
    assert 0.95 <= record.recall <= 1


@pytest.mark.usefixtures("place")
def test_scores_are_exact_and_an_exact_search_or_a_filter_searches_all_rows() -> None:
    index, rows, queries = clipmlu.open_index("all"), np.load("first.npy"), grouped(30, 9)
    exact = index.search(queries, K, exact=True)
    assert [[hit.row for hit in hits] for hits in exact] == best(rows, queries)
    known = [{hit.row: hit.score for hit in hits} for hits in index.search(queries, 200, exact=True)]
    for hits, scores in zip(index.search(queries, K), known, strict=True):
        assert [hit.score for hit in hits] == [scores[hit.row] for hit in hits]
    filtered = index.search(queries, K, include="*5")
    fives = np.flatnonzero(np.arange(2600) % 10 == 5)
    assert [[hit.row for hit in hits] for hits in filtered] == [
        fives[each].tolist() for each in best(rows[fives], queries)
    ]


@pytest.mark.usefixtures("place")
def test_a_search_for_many_rows_finds_as_many_and_most_of_the_best() -> None:
    index, rows, queries = clipmlu.open_index("all"), np.load("first.npy"), grouped(6, 9)
    queries[3:] = np.random.default_rng(3).standard_normal((3, DIM))  # far from all clusters
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    for k in (100, 300):
        found = [{hit.row for hit in hits} for hits in index.search(queries, k)]
        truth = best(rows, queries, k)
        assert [len(each) for each in found] == [k] * 6
        assert np.mean([len(each & set(true)) / k for each, true in zip(found, truth, strict=True)]) > 0.9
    (every,) = index.search(queries[:1], 5000)
    assert [hit.row for hit in every] == best(rows, queries[:1], 2600)[0]


@pytest.mark.usefixtures("place")
def test_an_update_adds_and_takes_out_rows_without_new_clusters() -> None:
    before = clipmlu.open_index("all").manifest.approximate
    assert before is not None
    save("second.npy", grouped(500, 2))
    report = clipmlu.build_index("second.npy", "all")
    after = report.approximate
    assert after is not None
    assert (after.trained_rows, after.lists, report.rows) == (2600, before.lists, 3100)
    rows = np.concatenate([np.load("first.npy"), np.load("second.npy")])
    index = clipmlu.open_index("all")
    found = index.search(rows[2600:2700], 1)
    assert names(found) == [[f"second.npy/{row}"] for row in range(100)]
    save("second.npy", grouped(300, 3))
    save("third.npy", grouped(200, 4))
    report = clipmlu.build_index(["second.npy", "third.npy"], "all")
    assert (report.rows, report.changed, report.added) == (3100, 1, 1)
    assert len(list(Path("all").glob("*.faiss"))) == 1
    index = clipmlu.open_index("all")
    assert names(index.search(grouped(300, 3)[:20], 1)) == [[f"second.npy/{row}"] for row in range(20)]
    assert names(index.search(grouped(200, 4)[:20], 1)) == [[f"third.npy/{row}"] for row in range(20)]
    gone = index.search(grouped(500, 2)[:50], 1)
    assert max(hits[0].score for hits in gone) < 0.999
    again = clipmlu.build_index(["second.npy", "third.npy"], "all")
    assert again.approximate == report.approximate


@pytest.mark.slow
@pytest.mark.usefixtures("place")
def test_clusters_are_computed_anew_when_there_are_many_more_rows() -> None:
    save("many.npy", grouped(7900, 5))
    report = clipmlu.build_index("many.npy", "all", recall=0.5, approximate=True)
    assert report.approximate is not None
    assert (report.approximate.trained_rows, report.approximate.wanted_recall) == (10500, 0.5)


@pytest.mark.usefixtures("place")
def test_rows_of_another_size_get_an_approximate_index_of_their_own() -> None:
    save("own.npy", grouped(2100, 5))
    clipmlu.build_index("own.npy", approximate=True, recall=0.9)
    save("own.npy", grouped(2100, 5)[:, :16])
    record = clipmlu.build_index("own.npy").approximate
    assert record is not None
    assert (record.trained_rows, record.wanted_recall) == (2100, 0.9)
    (hits,) = clipmlu.open_index("own.index").search(np.load("own.npy")[3], 1)
    assert hits[0].row == 3


@pytest.mark.usefixtures("place")
def test_the_same_rows_twice_are_found_twice() -> None:
    for suffix in (".npy", ".ids.json"):
        shutil.copy(f"first{suffix}", f"copy{suffix}")
    clipmlu.build_index("copy.npy", "all")
    (hits,) = clipmlu.open_index("all").search(np.load("first.npy")[7], 2)
    assert [hit.row for hit in hits] == [7, 2607]
    assert hits[0].score == hits[1].score


@pytest.mark.usefixtures("place")
def test_the_recall_of_texts_is_measured_with_the_bundle(compiled_once: Path) -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((2100, support.DIM)).astype(np.float32)
    save("own.npy", rows)
    record = clipmlu.build_index("own.npy", bundle=compiled_once, approximate=True).approximate
    assert record is not None
    index = clipmlu.open_index("own.index")
    with clipmlu.load(compiled_once) as model:
        texts = model.embed_texts([f"a photo of a {name}." for name in DEFAULT_BACKGROUND])
    truth = best(rows / np.linalg.norm(rows, axis=1, keepdims=True), texts)
    found = [{hit.row for hit in hits} for hits in index.search(texts, K)]
    same = sum(len(one & set(other)) for one, other in zip(found, truth, strict=True))
    assert record.text_recall == pytest.approx(same / (K * len(texts)), abs=0.01)
    assert index.recall_of() == min(record.recall, record.text_recall)
    results = clipmlu.search_index(index, "a red dog")
    assert results.recall == index.recall_of()
    assert clipmlu.search_index(index, "a red dog", exact=True).recall is None


@pytest.mark.usefixtures("place")
def test_few_rows_are_searched_exactly() -> None:
    save("few.npy", grouped(100, 6))
    notes: list[str] = []
    assert clipmlu.build_index("few.npy", approximate=True, on_note=notes.append).approximate is None
    assert any("100 rows are too few for an approximate index" in note for note in notes)
    with pytest.raises(OptionError, match="recall is for an approximate index"):
        clipmlu.build_index("few.npy", recall=0.9)


@pytest.mark.usefixtures("place")
def test_a_damaged_file_is_named_and_made_again() -> None:
    (path,) = Path("all").glob("*.faiss")
    whole, query = path.read_bytes(), np.load("first.npy")[0]
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match=r"faiss' was changed: its SHA-256"):
        clipmlu.open_index("all").search(query)
    assert clipmlu.open_index("all").search(query, exact=True)[0][0].row == 0
    for content in (whole[:-1], None):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(InputError, match=r"faiss' (was changed: its size|is missing)"):
            clipmlu.open_index("all")
        notes: list[str] = []
        assert clipmlu.build_index(output="all", on_note=notes.append).approximate is not None
        assert any("made anew" in note for note in notes)
        assert clipmlu.open_index("all").search(query)[0][0].row == 0


@pytest.mark.usefixtures("place")
def test_without_faiss_the_extra_is_named_and_an_exact_search_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    query = np.load("first.npy")[0]
    with pytest.raises(MissingDependencyError, match=r"--exact.*clipmlu\[search\]"):
        clipmlu.open_index("all").search(query)
    assert clipmlu.open_index("all").search(query, exact=True)[0][0].row == 0
    with pytest.raises(MissingDependencyError, match=r"clipmlu\[search\]"):
        clipmlu.build_index("first.npy", approximate=True)
    assert not Path("first.index").exists()


@pytest.mark.usefixtures("place")
def test_the_command_line_prints_the_recall(run: Run) -> None:
    code, out, _err = run("index", "-o", "all")
    assert code == 0
    assert "% of the 10 best rows for 82 held images; a query searches" in " ".join(out.split())
    code, out, _err = run("index", "-o", "all", "--json")
    result: dict[str, Any] = json.loads(out)
    assert result["approximate"]["queries"] == 82
