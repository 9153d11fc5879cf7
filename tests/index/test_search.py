"""Queries by text and image, filters, and what the command line shows."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clipmlu
import support
from cli.conftest import Run
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.errors import InputError, OptionError

IDS = [f"photos/{number}.png" for number in range(8) if number != 3]


@pytest.fixture
def index(place: Path) -> clipmlu.VectorIndex:
    clipmlu.build_index("job")
    return clipmlu.open_index("job")


def ranked(query: np.ndarray, count: int = 7, ids: list[str] = IDS) -> list[tuple[str, float]]:
    """The images by their cosine similarity to a vector, by hand."""
    with clipmlu.load("tiny-cpu") as model:
        rows = np.stack([model.embed_images(name) for name in ids]).astype(np.float64)
    scores = rows @ query
    return [(ids[place], float(scores[place])) for place in np.argsort(-scores, kind="stable")[:count]]


def embedded(*texts: str) -> np.ndarray:
    with clipmlu.load("tiny-cpu") as model:
        return model.embed_texts(list(texts)).astype(np.float64)


def pairs(hits: tuple[clipmlu.Hit, ...]) -> list[tuple[str, float]]:
    return [(hit.id, hit.score) for hit in hits]


def assert_same(hits: tuple[clipmlu.Hit, ...], expected: list[tuple[str, float]]) -> None:
    assert [hit.id for hit in hits] == [name for name, _ in expected]
    np.testing.assert_allclose([hit.score for hit in hits], [score for _, score in expected], rtol=0, atol=1e-6)


def test_texts_and_images_find_what_their_vectors_do(index: clipmlu.VectorIndex) -> None:
    found = clipmlu.search_index(
        "job", ["a red dog", "photos/4.png", Path("photos/5.png"), Image.open("photos/6.png")], top_k=3
    )
    assert [each.kind for each in found.queries] == ["text", "image", "image", "image"]
    assert [each.query for each in found.queries] == ["a red dog", "photos/4.png", "photos/5.png", "image"]
    assert_same(found.queries[0].hits, ranked(embedded("a red dog")[0], 3))
    for each, number in zip(found.queries[1:], (4, 5, 6), strict=True):
        assert each.hits[0].id == f"photos/{number}.png"
        assert each.hits[0].score == pytest.approx(1, abs=1e-6)
    assert found.bundle == Path("tiny-cpu").absolute()
    assert (found.rows, found.emulated, found.index) == (7, False, Path("job/index"))
    assert found.queries[1].hits[0].path == str(Path("photos/4.png").absolute())
    (moved,) = clipmlu.search_index("job", "photos/4.png", images_folder="/elsewhere").queries
    assert moved.hits[0].path == "/elsewhere/photos/4.png"
    assert index.rows == 7


@pytest.mark.usefixtures("index")
def test_combined_queries_are_the_weighted_sum_of_unit_vectors() -> None:
    first, second = embedded("a red dog", "a green cat")
    for weights, total in ((None, first + second), ([1, -0.5], first - 0.5 * second)):
        found = clipmlu.search_index("job", ["a red dog", "a green cat"], combine=True, weights=weights)
        assert_same(found.queries[0].hits, ranked(total / np.linalg.norm(total)))
        assert (len(found.queries), found.queries[0].kind) == (1, "combined")
    assert found.queries[0].query == "a red dog + -0.5 x a green cat"
    for factor in (1e308, 1e-300):
        scaled = clipmlu.search_index("job", ["a red dog", "a green cat"], weights=[factor, -0.5 * factor])
        assert_same(scaled.queries[0].hits, ranked(total / np.linalg.norm(total)))
    for weights, message in (
        ([1], "1 weights for 2 queries"),
        ([1, -1], "cancel out"),
        ([1, float("inf")], "infinite"),
        ([0, 0], "all weights are 0"),
    ):
        with pytest.raises(OptionError, match=message):
            clipmlu.search_index("job", ["a red dog"] * 2, weights=weights)


@pytest.mark.usefixtures("index")
def test_a_text_that_is_longer_than_the_context_is_told() -> None:
    notes: list[str] = []
    clipmlu.search_index("job", ["a red dog", "a dog " * 100], on_note=notes.append)
    assert notes == ["1 text(s) are longer than the context of the model; what lies beyond is not searched"]


def test_filters_select_names(index: clipmlu.VectorIndex) -> None:
    (query,) = embedded("a red dog")
    best = ranked(query)
    cases: list[tuple[str | list[str], str | list[str], str]] = [
        ("photos/*", [], "0124567"),
        ("[0-2].png", [], "012"),
        (["0.png", "*/7.*"], [], "07"),
        ([], ["*[02468].png"], "157"),
        ("photos/[0-4].png", "0.png", "124"),
        ("hotos/*", [], ""),
        ("*.PNG", [], ""),
    ]
    for include, exclude, numbers in cases:
        expected = [(name, score) for name, score in best if name[len("photos/")] in numbers]
        for _ in range(2):  # the second time from the kept filter
            (hits,) = index.search(query, include=include, exclude=exclude)
            assert_same(hits, expected)


def test_vectors_are_checked_and_need_no_unit_norm(index: clipmlu.VectorIndex) -> None:
    (query,) = embedded("a red dog")
    assert_same(index.search(query * 1e-20, k=2)[0], ranked(query, 2))
    with pytest.raises(OptionError, match=rf"shape \(3, 2\); expected \(Q, {support.DIM}\)"):
        index.search(np.ones((3, 2)))
    for bad in (np.nan, np.inf, 0):
        with pytest.raises(OptionError, match="NaN, infinity or only zeros"):
            index.search(np.full(support.DIM, bad))
    for other in ("a dog", np.ones(support.DIM) * 1j, np.ones(support.DIM, bool)):
        with pytest.raises(OptionError, match="no array of real numbers"):
            index.search(other)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="k is 0"):
        index.search(query, k=0)
    with pytest.raises(OptionError, match="empty pattern"):
        index.search(query, include=[""])


@pytest.mark.usefixtures("index")
def test_a_query_that_looks_like_a_file_is_one_or_an_error() -> None:
    with pytest.raises(
        InputError,
        match=r"Query 'photos/44.png' looks like an image file.*Did you mean 'photos/4.png'.*--text 'photos/44.png'",
    ):
        clipmlu.search_index("job", "photos/44.png")
    with pytest.raises(InputError, match=r"'./nothing' looks like an image file"):
        clipmlu.search_index("job", "./nothing")
    with pytest.raises(InputError, match=r"'nothing.png' looks like an image"):
        clipmlu.search_index("job", image="nothing.png")
    with pytest.raises(InputError, match="is a URL"):
        clipmlu.search_index("job", "https://example.com/a.png")
    (found,) = clipmlu.search_index("job", text="photos/44.png").queries
    assert (found.kind, found.query) == ("text", "photos/44.png")
    shutil.copy("photos/4.png", "dog")
    notes: list[str] = []
    assert clipmlu.search_index("job", "dog", on_note=notes.append).queries[0].kind == "text"
    assert notes == ["'dog' is searched as a text; for the file of that name: --image 'dog'"]
    assert clipmlu.search_index("job", image="dog").queries[0].hits[0].id == "photos/4.png"
    with pytest.raises(InputError, match=r"3.png"):
        clipmlu.search_index("job", "photos/3.png")
    for nothing in ("", "  ", []):
        with pytest.raises(OptionError, match=r"empty text|no query"):
            clipmlu.search_index("job", nothing)
    with pytest.raises(OptionError, match=r"a query is b'x'; expected a text"):
        clipmlu.search_index("job", b"x")  # type: ignore[arg-type]


def test_the_bundle_must_hold_the_model_of_the_index(index: clipmlu.VectorIndex, place: Path) -> None:
    exported = support.write_exported(place / "other", seed=1)
    compile_bundle(exported, place / "other-cpu", CompileOptions(target="cpu", batch_size=4))
    with pytest.raises(
        InputError, match=r"'other-cpu' holds 'tiny.*index '.*job/index' holds embeddings of another model"
    ):
        clipmlu.search_index(index, "a red dog", bundle="other-cpu")
    expected = pairs(clipmlu.search_index(index, "a red dog").queries[0].hits)
    Path("tiny-cpu").rename("moved-cpu")
    with pytest.raises(InputError, match=r"bundle of the index.*cannot be opened.*If it was moved.*--bundle"):
        clipmlu.search_index(index, "a red dog")
    assert pairs(clipmlu.search_index(index, "a red dog", bundle="moved-cpu").queries[0].hits) == expected
    with clipmlu.load("moved-cpu") as model:
        assert pairs(clipmlu.search_index(index, "a red dog", bundle=model).queries[0].hits) == expected
        model.require_open()


@pytest.mark.usefixtures("place")
def test_an_index_of_a_file_asks_for_its_bundle() -> None:
    clipmlu.embed_to_file("tiny-cpu", "rows.npy", "photos")
    notes: list[str] = []
    clipmlu.build_index("rows.npy", on_note=notes.append)
    assert "name its bundle with --bundle" in notes[0]
    with pytest.raises(InputError, match="does not say which model"):
        clipmlu.search_index("rows.index", "a red dog")
    expected = ranked(embedded("a red dog")[0])
    assert_same(clipmlu.search_index("rows.index", "a red dog", bundle="tiny-cpu").queries[0].hits, expected)
    clipmlu.build_index("rows.npy", bundle="tiny-cpu")
    assert_same(clipmlu.search_index("rows.index", "a red dog").queries[0].hits, expected)


@pytest.mark.usefixtures("place")
def test_what_a_file_does_not_say_stays_known_when_it_is_indexed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clipmlu.embed_to_file("tiny-cpu", "rows.npy", "photos")
    clipmlu.build_index("rows.npy", bundle="tiny-cpu")
    before = clipmlu.open_index("rows.index").manifest
    photo = str(Path("photos/0.png").absolute())
    monkeypatch.chdir("photos")
    notes: list[str] = []
    for sources in ((), "../rows.npy"):
        clipmlu.build_index(sources, "../rows.index", on_note=notes.append)
        index = clipmlu.open_index("../rows.index")
        assert (index.manifest, index.hit_of(0).path) == (before, photo)
    assert notes == []
    Path("../rows.npy").rename("../moved.npy")
    Path("../rows.ids.json").rename("../moved.ids.json")
    clipmlu.build_index("../moved.npy", "../rows.index")
    assert clipmlu.open_index("../rows.index").hit_of(0).path == photo


@pytest.mark.usefixtures("index")
def test_a_file_that_joins_an_index_without_saying_its_model_is_told() -> None:
    np.save("rows.npy", np.eye(2, clipmlu.open_index("job").embedding_dim))
    notes: list[str] = []
    clipmlu.build_index("rows.npy", "job/index", on_note=notes.append)
    (told,) = notes
    assert "rows.npy' does not say which model computed it, and is taken for one of 'tiny" in told
    clipmlu.build_index(output="job/index", on_note=notes.append)
    clipmlu.build_index("rows.npy", "job/index", bundle="tiny-cpu", on_note=notes.append)
    assert len(notes) == 1


def test_an_open_index_stays_as_it_was_until_it_is_refreshed(index: clipmlu.VectorIndex) -> None:
    (query,) = embedded("a red dog")
    before = pairs(index.search(query)[0])
    assert not index.refresh()
    clipmlu.build_index("job", dtype="float16", overwrite=True)  # its files are removed
    assert pairs(index.search(query)[0]) == before
    assert index.refresh()
    assert index.manifest.dtype == "float16"
    assert [name for name, _ in pairs(index.search(query)[0])] == [name for name, _ in before]
    shutil.rmtree("job/index")
    with pytest.raises(InputError, match="does not exist"):
        index.refresh()
    assert len(index.search(query)[0]) == 7


def test_threads_share_an_index_that_is_updated_meanwhile(index: clipmlu.VectorIndex) -> None:
    queries = embedded(*(f"text {number}" for number in range(6)))
    expected = [pairs(hits) for hits in index.search(queries)]
    wrong: list[object] = []
    done = threading.Event()

    def search(number: int) -> None:
        while not done.is_set():
            try:
                index.refresh()
                (hits,) = index.search(queries[number], include="*.png" if number % 2 else ())
                names = [name for name, _ in pairs(hits)]
                if names != [name for name, _ in expected[number]]:
                    wrong.append(names)
            except Exception as error:
                wrong.append(error)
                return

    threads = [threading.Thread(target=search, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for number in range(3):
        clipmlu.build_index("job", overwrite=True, dtype="float32" if number % 2 else "float16")
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.usefixtures("index")
def test_the_command_line_shows_a_table_or_json(run: Run) -> None:
    Path("queries.txt").write_text("a red dog\nphotos/4.png\n")
    code, out, _err = run(
        "search", "job", "a green cat", "--queries-from", "queries.txt", "-k", 2, "--exclude", "0.png"
    )
    assert code == 0
    assert out.count("rank") == 3
    assert "image: photos/4.png" in out
    assert "   1  1.0000  photos/4.png" in out
    code, out, _err = run("search", "job", "photos/4.png", "-k", 2, "--json")
    result = json.loads(out)
    assert code == 0
    assert result["queries"][0]["hits"][0]["id"] == "photos/4.png"
    assert result["emulated"] is False
    code, _out, err = run("search", "photos", "a dog")
    assert (code, err.count("\n")) == (1, 1)
    assert "'photos' holds no index" in err
    shutil.rmtree("job/index")
    assert "The job 'job' has no index yet. Make one: clipmlu index job." in run("search", "job", "a dog")[2]
    code, _out, err = run("search", "job", "a dog", "--weights", "a")
    assert (code, "--weights is 'a'" in err) == (2, True)


@pytest.mark.usefixtures("place")
def test_the_command_line_says_what_was_indexed(run: Run) -> None:
    code, out, _err = run("index", "job")
    assert code == 0
    assert "7 of" in out
    assert "3 new" in out
    assert "1 row without an embedding" in out
    code, out, _err = run("index", "job", "--json")
    assert json.loads(out)["kept"] == 3


@pytest.mark.usefixtures("index")
def test_results_are_a_table_in_python() -> None:
    found = clipmlu.search_index("job", ["a red dog", "a green cat"], top_k=2)
    records = found.records()
    assert [(record["query"], record["rank"]) for record in records] == [
        ("a red dog", 1), ("a red dog", 2), ("a green cat", 1), ("a green cat", 2),
    ]  # fmt: skip
    assert "a red dog, a green cat" in repr(found)
    assert found.to_dict()["queries"][0]["hits"][0]["id"] == records[0]["id"]


@pytest.mark.usefixtures("place")
def test_results_of_the_emulated_sdk_are_marked(run: Run) -> None:
    path = Path("job/job.json")
    path.write_text(path.read_text().replace('"emulated": false', '"emulated": true'))
    assert clipmlu.build_index("job").emulated
    found = clipmlu.search_index("job", "a red dog", html="found.html")
    assert found.emulated
    assert "emulated" in repr(found)
    assert "emulated" in repr(clipmlu.open_index("job"))
    assert 'class="emulated-banner"' in Path("found.html").read_text()
    for arguments in (("search", "job", "a red dog"), ("index", "job")):
        assert "(emulated)" in run(*arguments)[1]
        assert json.loads(run(*arguments, "--json")[1])["emulated"] is True
