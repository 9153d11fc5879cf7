"""Zero-shot classification against the tiny model's towers in NumPy."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import support
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.classify.classifier import ZeroShotClassifier
from clipmlu.classify.probabilities import rank_classes
from clipmlu.classify.results import Prediction, Predictions
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.embed.encoder import Encoder
from clipmlu.embed.images import embed_items
from clipmlu.embed.items import ImageItem
from clipmlu.errors import InputError, OptionError, ShapeError
from clipmlu.model import load

NAMES = ("cat", "dog", "red circle", "ice cream", "<b>", "x")
TEMPLATES = ("a photo of a {}.", "{}", "the {}")


@pytest.fixture
def encoder(compiled: CompiledBundle) -> Iterator[Encoder]:
    with load(compiled.path) as opened:
        yield opened


def _texts_computed(encoder: Encoder) -> int:
    """Return how many texts the text tower has computed so far."""
    totals = encoder.device_clock("text").totals()
    return totals["compute"].items if totals else 0


def _class_embeddings(encoder: Encoder) -> support.FloatArray:
    means = []
    for name in NAMES:
        prompts = [template.format(name) for template in TEMPLATES]
        means.append(support.embed_tokens(encoder.tokenizer(prompts)).astype(np.float64).mean(axis=0))
    stacked = np.stack(means)
    return (stacked / np.linalg.norm(stacked, axis=1, keepdims=True)).astype(np.float32)


def _probabilities(encoder: Encoder, seeds: range) -> support.FloatArray:
    pixels = np.stack([support.preprocess(support.picture(seed)) for seed in seeds])
    logits = support.LOGIT_SCALE * support.embed_images(pixels).astype(np.float64) @ _class_embeddings(encoder).T
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def test_class_embeddings_are_normalised_means_over_templates(encoder: Encoder) -> None:
    classifier = encoder.classifier(NAMES, TEMPLATES, cache=False)
    np.testing.assert_allclose(classifier.class_embeddings, _class_embeddings(encoder), atol=1e-6)


def test_predictions_equal_the_reference(encoder: Encoder) -> None:
    predictions = encoder.classifier(NAMES, TEMPLATES).predict([support.picture(seed) for seed in range(11)], top_k=4)
    assert isinstance(predictions, Predictions)
    reference = _probabilities(encoder, range(11))
    for prediction, row in zip(predictions, reference, strict=True):
        best = np.argsort(-row)[:4]
        assert list(prediction.indices) == best.tolist()
        assert prediction.class_names == tuple(NAMES[index] for index in best)
        np.testing.assert_allclose(prediction.scores, row[best], atol=1e-5)


def test_path_bytes_array_and_pil_image_give_the_same_answer(encoder: Encoder, tmp_path: Path) -> None:
    image = support.picture(3)
    path = tmp_path / "image.png"
    image.save(path)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    classifier = encoder.classifier(NAMES)
    answers = [classifier.predict(source) for source in (path, str(path), buffer.getvalue(), np.asarray(image), image)]
    assert all(isinstance(answer, Prediction) for answer in answers)
    assert len({(answer.indices, answer.scores) for answer in answers if isinstance(answer, Prediction)}) == 1


def test_array_of_images_and_iterables_are_many(encoder: Encoder) -> None:
    classifier = encoder.classifier(NAMES)
    stack = np.stack([np.asarray(support.picture(seed)) for seed in range(3)])
    many = classifier.predict(stack)
    assert isinstance(many, Predictions)
    assert [each.indices for each in many] == [classifier.predict(stack[row]).indices for row in range(3)]  # type: ignore[union-attr]
    assert classifier.predict(iter([support.picture(0)]))[0].source == "image 0"  # type: ignore[index]
    assert classifier.predict([]) == []


def test_top_k_is_bounded_by_the_classes(encoder: Encoder) -> None:
    classifier = encoder.classifier(["cat", "dog"])
    prediction = classifier.predict(support.picture(0), top_k=5)
    assert isinstance(prediction, Prediction)
    assert len(prediction.class_names) == 2
    assert sum(prediction.scores) == pytest.approx(1.0)
    with pytest.raises(OptionError, match="top k is 0"):
        classifier.predict(support.picture(0), top_k=0)


def test_model_with_a_bias_scores_each_class_for_itself(tmp_path: Path) -> None:
    exported = support.write_exported(tmp_path / "siglip", logit_bias=-3.0)
    compiled = compile_bundle(exported, tmp_path / "siglip-cpu", CompileOptions(target="cpu"))
    with load(compiled.path) as encoder:
        prediction = encoder.classifier(NAMES, TEMPLATES).predict(support.picture(5), top_k=6)
        logits = (
            support.LOGIT_SCALE
            * support.embed_images(support.preprocess(support.picture(5))[None])
            @ _class_embeddings(encoder).T
            - 3
        )
    assert isinstance(prediction, Prediction)
    expected = 1 / (1 + np.exp(-logits[0].astype(np.float64)))
    np.testing.assert_allclose(prediction.scores, expected[list(prediction.indices)], atol=1e-5)


def test_extreme_logits_give_finite_scores(encoder: Encoder) -> None:
    classifier = encoder.classifier(NAMES)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        scores = classifier.scores(np.array([[80.0, -80.0, 0.0, 0.0, 0.0, 0.0]], np.float32))
    assert scores[0, 0] == pytest.approx(1.0)


def test_equal_logits_rank_the_lower_index_first() -> None:
    assert rank_classes(np.array([[1.0, 2.0, 2.0, 0.0]], np.float32), 3).tolist() == [[1, 2, 0]]


@settings(max_examples=60, deadline=None)
@given(classes=st.integers(500, 700), k=st.integers(1, 12), levels=st.integers(1, 30), seed=st.integers(0, 1000))
def test_many_classes_rank_like_a_full_stable_sort(classes: int, k: int, levels: int, seed: int) -> None:
    logits = np.random.default_rng(seed).integers(0, levels, (3, classes)).astype(np.float32)
    assert rank_classes(logits, k).tolist() == [
        sorted(range(classes), key=lambda index, row=row: (-row[index], index))[:k]  # type: ignore[misc]
        for row in logits
    ]


def test_embeddings_of_one_and_many(encoder: Encoder) -> None:
    one = encoder.embed_images(support.picture(0))
    many = encoder.embed_images([support.picture(seed) for seed in range(9)], batch_size=3)
    assert one.shape == (support.DIM,)
    expected = support.embed_images(np.stack([support.preprocess(support.picture(seed)) for seed in range(9)]))
    np.testing.assert_allclose(many, expected, atol=1e-6)
    np.testing.assert_allclose(one, expected[0], atol=1e-6)
    assert encoder.embed_texts("cat").shape == (support.DIM,)
    assert encoder.embed_texts([]).shape == encoder.embed_images([]).shape == (0, support.DIM)
    np.testing.assert_allclose(
        encoder.embed_texts(["a", "b"]), support.embed_tokens(encoder.tokenizer(["a", "b"])), atol=1e-6
    )


def test_broken_image_raises_and_is_named(encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"broken\.jpg"):
        encoder.classifier(NAMES).predict([support.picture(0), path])


def test_stream_keeps_order_around_broken_images_and_reads_ahead_only_a_little(encoder: Encoder) -> None:
    started = 0

    def items() -> Iterator[ImageItem]:
        nonlocal started
        for number in range(1000):
            started += 1
            yield ImageItem(str(number), _fail if number % 5 == 2 else lambda number=number: support.picture(number))  # type: ignore[misc]

    stream = embed_items(encoder, items(), batch_size=4)
    first = [next(stream) for _ in range(23)]
    assert started < 60
    assert [outcome.item.id for outcome in first] == [str(number) for number in range(23)]
    assert [outcome.item.id for outcome in first if outcome.error] == ["2", "7", "12", "17", "22"]
    for number in (0, 1, 3, 21):
        expected = support.embed_images(support.preprocess(support.picture(number))[None])[0]
        np.testing.assert_allclose(first[number].row, expected, atol=1e-6)
    stream.close()


def test_run_of_broken_images_is_not_held_back(encoder: Encoder) -> None:
    started = 0

    def items() -> Iterator[ImageItem]:
        nonlocal started
        for number in range(10_000):
            started += 1
            yield ImageItem(str(number), _fail)  # type: ignore[arg-type]

    stream = embed_items(encoder, items(), batch_size=4)
    assert next(stream).item.id == "0"
    assert started < 100
    stream.close()


def _fail() -> None:
    raise InputError("broken")


def test_classifier_file_works_without_the_text_tower(
    encoder: Encoder, compiled: CompiledBundle, tmp_path: Path
) -> None:
    classifier = encoder.classifier(NAMES, TEMPLATES)
    classifier.save(tmp_path / "six.clf")
    expected = classifier.predict(support.picture(0))
    (compiled.path / "text.onnx").unlink()
    with load(compiled.path, image_only=True) as image_encoder:
        again = image_encoder.load_classifier(tmp_path / "six.clf")
        assert again.predict(support.picture(0)) == expected
        assert (again.class_names, again.templates) == (NAMES, TEMPLATES)


def test_classifier_file_of_another_text_tower_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    encoder.classifier(NAMES).save(tmp_path / "six.clf")
    other = compile_bundle(
        support.write_exported(tmp_path / "other", seed=9), tmp_path / "other-cpu", CompileOptions(target="cpu")
    )
    with (
        load(other.path) as other_encoder,
        pytest.raises(InputError, match=r"different text tower. Make the classifier again"),
    ):
        other_encoder.load_classifier(tmp_path / "six.clf")


@pytest.mark.parametrize("damage", ["absent", "garbage", "truncated", "altered", "another npz"])
def test_useless_classifier_file_is_refused(encoder: Encoder, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "six.clf"
    encoder.classifier(NAMES).save(path)
    content = path.read_bytes()
    if damage == "absent":
        path.unlink()
    elif damage == "garbage":
        path.write_bytes(b"garbage")
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "altered":
        with np.load(path) as archive:
            np.savez(tmp_path / "x", header=archive["header"], class_embeddings=archive["class_embeddings"] * 2)
        path.write_bytes((tmp_path / "x.npz").read_bytes())
    else:
        np.savez(tmp_path / "x", something=np.zeros(3))
        path.write_bytes((tmp_path / "x.npz").read_bytes())
    with pytest.raises(InputError, match=r"six\.clf"):
        encoder.load_classifier(path)


def test_class_embeddings_are_cached_and_a_damaged_cache_is_replaced(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CLIPMLU_CACHE_DIR", str(tmp_path))
    first = encoder.classifier(NAMES)
    prompts = _texts_computed(encoder)
    assert prompts > 0
    (cached,) = (tmp_path / "classifiers").iterdir()
    assert np.array_equal(encoder.classifier(NAMES).class_embeddings, first.class_embeddings)
    assert _texts_computed(encoder) == prompts
    encoder.classifier(NAMES, "the {}")
    assert _texts_computed(encoder) == prompts + len(NAMES)
    cached.write_bytes(b"damaged")
    assert np.array_equal(encoder.classifier(NAMES).class_embeddings, first.class_embeddings)
    assert _texts_computed(encoder) == 2 * prompts + len(NAMES)


@pytest.mark.parametrize("changed", ["nothing", "weights beside", "logit scale", "runtime", "threads"])
def test_cached_class_embeddings_are_of_the_very_graph_and_runtime(
    compiled: CompiledBundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changed: str
) -> None:
    monkeypatch.setenv("CLIPMLU_CACHE_DIR", str(tmp_path / "cache"))
    beside = compiled.path / "text.onnx.data"

    def lay_beside(content: bytes) -> None:
        beside.write_bytes(content)
        record = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        files = msgspec.to_builtins(compiled.manifest.files)
        support.edit_manifest(compiled.path, files={**files, beside.name: record})

    lay_beside(b"some")
    with load(compiled.path) as encoder:
        encoder.classifier(NAMES)
    if changed == "weights beside":
        lay_beside(b"more")
    if changed == "logit scale":
        support.edit_manifest(compiled.path, logit_scale=7.0)
    if changed == "runtime":
        original = metadata.version
        monkeypatch.setattr(metadata, "version", lambda name: "1.0" if name == "onnxruntime" else original(name))
    with load(compiled.path, threads=1 if changed == "threads" else 0) as encoder:
        classifier = encoder.classifier(NAMES)
        computed = _texts_computed(encoder)
        rows = encoder.embed_images([support.picture(0)])
        expected = encoder.bundle.manifest.logit_scale * rows @ classifier.class_embeddings.T
    assert bool(computed) is (changed != "nothing")
    with load(compiled.path) as encoder:
        np.testing.assert_allclose(encoder.classifier(NAMES).logits(rows), expected, rtol=1e-5)


def test_cached_class_embeddings_are_of_the_very_sdk(
    exported: ExportedBundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CLIPMLU_CACHE_DIR", str(tmp_path / "cache"))
    bundle = compile_bundle(exported, tmp_path / "out", CompileOptions(target="emulated-mlu"))

    def kept() -> int:
        with load(bundle.path) as encoder:
            encoder.classifier(NAMES)
        return len(list((tmp_path / "cache" / "classifiers").iterdir()))

    assert (kept(), kept()) == (1, 1)
    monkeypatch.setenv("CLIPMLU_EMULATOR_MODE", "lenient")
    assert kept() == 2


def test_cache_that_cannot_be_written_costs_only_time(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("CLIPMLU_CACHE_DIR", str(tmp_path / "file"))
    assert isinstance(encoder.classifier(NAMES), ZeroShotClassifier)


@pytest.mark.parametrize(
    ("names", "message"), [([], "No class names"), (["a", " "], "blank"), ("cat", "Label file 'cat' does not exist")]
)
def test_useless_class_names_are_refused(encoder: Encoder, names: list[str] | str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encoder.classifier(names)


def test_names_as_text_are_what_the_command_line_takes(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    expected = encoder.classifier(["cat", "dog"])
    for names in ("cat, dog", str(tmp_path / "labels.txt"), tmp_path / "labels.txt", [" cat", "dog "]):
        classifier = encoder.classifier(names)
        assert classifier.class_names == ("cat", "dog")
        assert np.array_equal(classifier.class_embeddings, expected.class_embeddings)


def test_equal_names_keep_their_positions_and_are_encoded_once(
    encoder: Encoder, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    names = ("heron", "crane", "maillot", "crane", " maillot")
    classifier = encoder.classifier(names, "{}")
    assert _texts_computed(encoder) == 3
    assert classifier.class_names == ("heron", "crane", "maillot", "crane", "maillot")
    expected = support.embed_tokens(encoder.tokenizer([name.strip() for name in names]))
    np.testing.assert_allclose(classifier.class_embeddings, expected, atol=1e-6)
    assert "2 class name(s) occur more than once, such as 'crane' at the positions 1 and 3" in caplog.text
    classifier.save(tmp_path / "birds.clf")
    again = encoder.load_classifier(tmp_path / "birds.clf")
    assert again.class_names == classifier.class_names
    assert len(caplog.records) == 1
    prediction = again.predict(support.picture(0), top_k=5)
    assert sorted(prediction.indices) == list(range(5))  # type: ignore[union-attr]


def test_one_class_is_said_to_be_all_there_is(encoder: Encoder, caplog: pytest.LogCaptureFixture) -> None:
    prediction = encoder.classifier(["only one"]).predict(support.picture(0))
    assert prediction.scores == (1.0,)  # type: ignore[union-attr]
    assert "There is one class only: every image will be 100 % 'only one'." in caplog.text


def test_texts_without_an_order_are_refused(encoder: Encoder) -> None:
    for texts in (b"cat", {"cat", "dog"}, {"cat": 1}):
        with pytest.raises(OptionError, match=r"^texts are .*; expected a text or a list of texts"):
            encoder.embed_texts(texts)  # type: ignore[arg-type]


def test_a_text_is_no_list_of_sources(encoder: Encoder) -> None:
    embeddings = encoder.embed_images([support.picture(seed) for seed in range(3)])
    with pytest.raises(OptionError, match="sources is 'abc'"):
        encoder.classifier(NAMES).predictions_from_rows(embeddings, "abc")


def test_results_are_readable_and_safe_in_html(encoder: Encoder) -> None:
    predictions = encoder.classifier(NAMES).predict([support.picture(0), support.picture(1)], top_k=6)
    assert isinstance(predictions, Predictions)
    assert "image 0: '" in repr(predictions)
    html = predictions._repr_html_()
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert predictions[0].to_dict()["predictions"][0]["class_name"] == predictions[0].class_name
    assert predictions[0].score == max(predictions[0].scores)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: np.where(np.arange(3)[:, None] == 1, np.nan, rows), "Row 1 holds NaN"),
        (lambda rows: rows[:, :3], "of shape \\(3, 3\\); expected"),
        (lambda rows: rows[0], "expected float32 of shape"),
        (lambda rows: rows.tolist(), "are list of shape"),
        (lambda rows: (rows * 100).astype(np.int64), "are int64 of shape"),
    ],
)
def test_rows_that_give_no_logits_are_refused(
    encoder: Encoder, change: Callable[[support.FloatArray], support.FloatArray], message: str
) -> None:
    classifier = encoder.classifier(NAMES)
    rows = encoder.embed_images([support.picture(seed) for seed in range(3)])
    with pytest.raises((InputError, ShapeError), match=message):
        classifier.predictions_from_rows(change(rows), ["a", "b", "c"])
