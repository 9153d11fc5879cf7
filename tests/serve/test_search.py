"""``/v1/search``: the same hits as offline, in each form of a request, and pictures of them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import clipmlu
import support
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.data.thumbnails import jpeg_thumbnail
from clipmlu.errors import InputError
from http_client import base64_images, call_app, png


@pytest.fixture(scope="module")
def app(place: Path, compiled_once: Path) -> Iterator[Any]:
    app = clipmlu.create_app({"tiny": compiled_once}, index=place / "job")
    yield app
    app.state.service.close()


def post(app: Any, **request: Any) -> Any:
    answer = call_app(app, "POST", "/v1/search", **request)
    assert answer.status_code == 200, answer.text
    return answer.json()


def offline(*queries: Any, **keywords: Any) -> list[dict[str, Any]]:
    (found,) = clipmlu.search_index("job", list(queries), **keywords).queries
    return [{"id": hit.id, "score": pytest.approx(hit.score, abs=1e-6), "row": hit.row} for hit in found.hits]


def test_each_form_finds_what_a_search_offline_does(app: Any) -> None:
    expected = offline("a red dog", top_k=3)
    assert post(app, json={"text": "a red dog", "top_k": 3})["hits"] == expected
    assert post(app, files={"text": (None, "a red dog"), "top_k": (None, "3")})["hits"] == expected
    image = offline("photos/4.png", top_k=2)
    assert image[0]["id"] == "photos/4.png"
    assert post(app, json={"image": base64_images(png(4))[0], "top_k": 2})["hits"] == image
    assert post(app, files={"image": ("a.png", png(4)), "top_k": (None, "2")})["hits"] == image
    raw = {"content": png(4), "headers": {"Content-Type": "image/png"}, "params": {"top_k": 2}}
    assert post(app, **raw)["hits"] == image


def test_texts_and_images_are_one_query_with_weights(app: Any) -> None:
    answer = post(
        app, json={"text": "a red dog", "image": {"data": base64_images(png(4))[0], "id": "p"}, "weights": [2, -1]}
    )
    assert answer["hits"] == offline("a red dog", "photos/4.png", weights=[2, -1])
    assert answer["query"] == "2 x a red dog + -1 x p"
    form = {"text": (None, "a red dog"), "image": ("p", png(4)), "weights": (None, "2")}
    answer = call_app(app, "POST", "/v1/search", files=[*form.items(), ("weights", (None, "-1"))])
    assert answer.json()["hits"] == offline("a red dog", "photos/4.png", weights=[2, -1])


def test_two_files_of_one_name_are_two_images(app: Any) -> None:
    answer = call_app(app, "POST", "/v1/search", files=[("image", ("a.png", png(4))), ("image", ("a.png", png(1)))])
    assert answer.json()["hits"] == offline("photos/4.png", "photos/1.png", combine=True)


def test_filters_and_facts(app: Any) -> None:
    answer = post(app, json={"text": "a red dog", "include": "photos/*", "exclude": ["0.png", "5.png"]})
    assert answer["hits"] == offline("a red dog", include="photos/*", exclude=["0.png", "5.png"])
    assert len(answer["hits"]) == 4
    assert (answer["model"], answer["rows"], answer["recall"], answer["emulated"]) == ("tiny", 6, None, False)
    described = call_app(app, "GET", "/v1/models").json()["index"]
    assert described == {"rows": 6, "models": ["tiny"], "emulated": False, "recall": None}


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"json": {}}, "There is no query"),
        ({"json": {"text": " "}}, "A text of the query is empty"),
        ({"json": {"text": "a", "top_k": 1001}}, "expected 1000 at most"),
        ({"json": {"text": "a", "top_k": -1}}, "top_k is -1"),
        ({"json": {"text": "a", "top_k": 0}}, "top_k is 0"),
        ({"content": b'{"text": "\xff"}', "headers": {"Content-Type": "application/json"}}, "cannot be read"),
        ({"json": {"text": "a", "weights": [1, 2]}}, "2 weights for 1 queries"),
        ({"json": {"text": "a", "include": [""]}}, "empty pattern"),
        ({"json": {"text": 3}}, "The JSON body cannot be read"),
        ({"json": {"text": "a", "labels": ["x"]}}, "a field is 'labels'; expected one of model, text, image, weights"),
        ({"files": {"file": ("a.png", b"x")}}, "expected files in parts named 'image'"),
        ({"files": {"text": (None, "a"), "top_k": (None, "many")}}, "An option of the request is wrong"),
        ({"content": b"no image", "headers": {"Content-Type": "image/png"}}, "image 0"),
    ],
)
def test_wrong_requests_are_refused(app: Any, request_: dict[str, Any], message: str) -> None:
    answer = call_app(app, "POST", "/v1/search", **request_)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_a_query_of_too_many_images_is_refused(app: Any) -> None:
    answer = call_app(app, "POST", "/v1/search", json={"image": base64_images(png(1)) * 65})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"json": {"text": "a", "include": "[" * 501}}, (413, "too_large")),
        ({"json": {"text": "a", "exclude": ["*.png"] * 65}}, (413, "too_large")),
        ({"json": {"text": "a" * 65_537}}, (413, "too_large")),
        ({"json": {"image": {"url": "http://127.0.0.1/a.png"}}}, (403, "urls_not_allowed")),
        ({"content": b"a red dog", "headers": {"Content-Type": "text/plain"}}, (415, "unsupported_media_type")),
    ],
)
def test_bodies_of_a_search_have_the_limits_of_all(
    app: Any, request_: dict[str, Any], expected: tuple[int, str]
) -> None:
    answer = call_app(app, "POST", "/v1/search", **request_)
    assert (answer.status_code, answer.json()["error"]["code"]) == expected


def test_a_form_of_a_search_is_not_written_to_disk(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_file: object) -> None:
        raise AssertionError("a file on the disk")

    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", refuse)
    answer = call_app(app, "POST", "/v1/search", files={"image": ("a.png", png(4) + bytes(3 << 20))})
    assert answer.json()["hits"][0]["id"] == "photos/4.png"


def test_pictures_of_hits_are_small_and_belong_to_their_ids(app: Any, place: Path) -> None:
    answer = call_app(app, "GET", "/v1/thumbnail/2", params={"id": "photos/2.png"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert max(picture.size) <= 256
    for row, name in ((2, "photos/3.png"), (6, "photos/2.png"), (-1, "photos/5.png"), (2, "../../etc/passwd")):
        refused = call_app(app, "GET", f"/v1/thumbnail/{row}", params={"id": name})
        assert refused.status_code == 404, name
    (place / "photos/5.png").rename(place / "moved.png")
    try:
        gone = call_app(app, "GET", "/v1/thumbnail/5", params={"id": "photos/5.png"})
        assert gone.status_code == 404
        assert str(place) not in gone.text
    finally:
        (place / "moved.png").rename(place / "photos/5.png")


def test_an_update_is_seen_by_the_next_search(compiled_once: Path, place: Path) -> None:
    clipmlu.build_index("job", "copy")
    app = clipmlu.create_app({"tiny": compiled_once}, index=place / "copy")
    try:
        support.picture(9).save("9.png")
        clipmlu.embed_images(compiled_once, "9.png", "second", shard_format="npy")
        clipmlu.build_index("second", "copy")
        assert post(app, json={"image": base64_images(png(9))[0]})["hits"][0]["id"] == "9.png"
        Path("copy/index.json").unlink()
        assert post(app, json={"image": base64_images(png(9))[0]})["rows"] == 7
    finally:
        app.state.service.close()


def test_without_an_index_and_with_one_of_another_model(compiled_once: Path, place: Path) -> None:
    app = clipmlu.create_app({"tiny": compiled_once})
    try:
        answer = call_app(app, "POST", "/v1/search", json={"text": "a"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        assert "--index DIR" in answer.json()["error"]["message"]
        assert call_app(app, "GET", "/v1/models").json()["index"] is None
    finally:
        app.state.service.close()
    exported = support.write_exported(place / "other", seed=1)
    compile_bundle(exported, place / "other-cpu", CompileOptions(target="cpu", batch_size=4))
    with pytest.raises(InputError, match=r"holds embeddings of 'tiny.*no served bundle embeds queries for it"):
        clipmlu.create_app({"other": place / "other-cpu"}, index="job")
    app = clipmlu.create_app({"other": place / "other-cpu", "tiny": compiled_once}, index="job")
    try:
        assert post(app, json={"text": "a red dog"})["hits"] == offline("a red dog")
        refused = call_app(app, "POST", "/v1/search", json={"text": "a", "model": "other"})
        assert "not of the model of the index; expected tiny" in refused.json()["error"]["message"]
    finally:
        app.state.service.close()


def test_images_in_archives_and_tables_have_pictures(compiled_once: Path, place: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="it writes the table")
    parquet = pytest.importorskip("pyarrow.parquet", reason="it writes the table")
    with tarfile.open(place / "some.tar", "w") as archive:
        archive.add(place / "photos/1.png", "1.png")
    parquet.write_table(pyarrow.table({"image": [png(2)]}), place / "some.parquet")
    clipmlu.embed_images(compiled_once, ["some.tar", "some.parquet"], "packed", shard_format="npy")
    clipmlu.build_index("packed", "packed-index")
    results = clipmlu.search_index("packed-index", "a red dog", html="packed.html")
    assert Path("packed.html").read_text(encoding="utf-8").count("data:image/jpeg") == 2
    app = clipmlu.create_app({"tiny": compiled_once}, index=place / "packed-index")
    try:
        pictures = {"some.tar::1.png": 1, "some.parquet#0": 2}
        assert {hit.id for hit in results.queries[0].hits} == pictures.keys()
        for hit in results.queries[0].hits:
            answer = call_app(app, "GET", f"/v1/thumbnail/{hit.row}", params={"id": hit.id})
            assert answer.status_code == 200, answer.text
            with Image.open(io.BytesIO(png(pictures[hit.id]))) as whole:
                assert answer.content == jpeg_thumbnail(whole, 256)
    finally:
        app.state.service.close()


def test_pictures_are_those_that_the_job_read(compiled_once: Path, place: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="it writes the tables")
    parquet = pytest.importorskip("pyarrow.parquet", reason="it writes the tables")
    parquet.write_table(pyarrow.table({"image": [png(0), png(1)], "other": [png(2), png(3)]}), place / "two.parquet")
    parquet.write_table(pyarrow.table({"image": [png(4)], "name": ["photos/0.png"]}), place / "ids.parquet")
    with tarfile.open(place / "replaced.tar", "w") as archive:
        archive.add(place / "photos/1.png", "1.png")
    jobs = {"two.parquet": ("other", None), "ids.parquet": ("image", "name"), "replaced.tar": (None, None)}
    for source, (column, ids) in jobs.items():
        clipmlu.embed_images(
            compiled_once, source, f"{source}-job", image_column=column, id_column=ids, shard_format="npy", shard_size=1
        )
        clipmlu.build_index(f"{source}-job", "read-index")
    with tarfile.open(place / "replaced.tar", "w") as archive:
        archive.add(place / "photos/2.png", "1.png")
        for name in ("1", "2", "3", "4", "5", "6", "7", "8", "9", "10"):
            archive.add(place / "photos/3.png", f"{name}0.png")
    app = clipmlu.create_app({"tiny": compiled_once}, index=place / "read-index")
    expected = {"two.parquet#0": 2, "two.parquet#1": 3, "photos/0.png": None, "replaced.tar::1.png": None}
    try:
        hits = post(app, json={"text": "a red dog"})["hits"]
        assert {hit["id"] for hit in hits} == expected.keys()
        for hit in hits:
            answer = call_app(app, "GET", f"/v1/thumbnail/{hit['row']}", params={"id": hit["id"]})
            shown = expected[hit["id"]]
            if shown is None:
                assert answer.status_code == 404, hit
            else:
                with Image.open(io.BytesIO(png(shown))) as whole:
                    assert answer.content == jpeg_thumbnail(whole, 256), hit
    finally:
        app.state.service.close()
    clipmlu.search_index("read-index", "a red dog", html="read.html")
    page = Path("read.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 2
    assert "was replaced since its images were embedded" in page
    assert "whose rows have ids" in page
