"""Models that were closed, that came along into a forked process, that are pickled, and that are dropped without a word."""

from __future__ import annotations

import copy
import functools
import gc
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

import clipmlu
import support
from clipmlu import errors
from clipmlu.backends import SessionOptions, get_backend
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.classify.classifier import ZeroShotClassifier
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.errors import BundleCorruptError, BundleNotFoundError, InputError, SessionError
from clipmlu.model import Model

TARGETS = ("cpu", "openvino", "emulated-mlu", "emulated-mlu in a worker")
NAMES = ("red circle", "blue star", "cat")


def pixels(count: int) -> support.FloatArray:
    return np.random.default_rng(0).standard_normal((count, 3, support.SIDE, support.SIDE)).astype(np.float32)


@pytest.fixture
def model(compiled: CompiledBundle) -> Iterator[Model]:
    with clipmlu.load(compiled.path) as model:
        yield model


@pytest.fixture(scope="module")
def bundle_for(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], CompiledBundle]:
    """``bundle_for(target)``: the tiny model, compiled once; not to be changed."""
    folder = tmp_path_factory.mktemp("targets")
    exported = support.write_exported(folder / "tiny")

    @functools.cache
    def compile_for(target: str) -> CompiledBundle:
        options = CompileOptions(target=target, batch_size=4, max_batch=8, check=False)
        return compile_bundle(exported, folder / target, options)

    return compile_for


# ---- closed ----------------------------------------------------------------------------------------------------------

ENCODER_CALLS: dict[str, Callable[[Model], Any]] = {
    "check_batch_size": lambda model: model.check_batch_size(None),
    "encode_images": lambda model: model.encode_images(pixels(1)),
    "encode_images, none": lambda model: model.encode_images(pixels(0)),
    "encode_tokens": lambda model: model.encode_tokens(np.zeros((1, support.CONTEXT), np.int64)),
    "submit_images": lambda model: model.submit_images(pixels(1)),
    "submit_tokens": lambda model: model.submit_tokens(np.zeros((1, support.CONTEXT), np.int64)),
    "submit_pairs": lambda model: model.submit_pairs(pixels(1), np.zeros((1, support.CONTEXT), np.int64)),
    "device_clock": lambda model: model.device_clock("image"),
    "embed_images": lambda model: model.embed_images([support.picture(1)]),
    "embed_images, none": lambda model: model.embed_images([]),
    "embed_texts": lambda model: model.embed_texts("cat"),
    "embed_texts, none": lambda model: model.embed_texts([]),
    "classifier": lambda model: model.classifier(NAMES),
    "recipe": lambda model: model.recipe(),
    "load_classifier": lambda model: model.load_classifier("/nowhere.clf"),
    "with": lambda model: model.__enter__(),
    "pickle": pickle.dumps,
    "copy": copy.copy,
}
CLASSIFIER_CALLS: dict[str, Callable[[ZeroShotClassifier], Any]] = {
    "predict": lambda classifier: classifier.predict(support.picture(1)),
    "predict, none": lambda classifier: classifier.predict([]),
    "predictions_from_rows": lambda classifier: classifier.predictions_from_rows(classifier.class_embeddings, NAMES),
    "rank_rows": lambda classifier: classifier.rank_rows(classifier.class_embeddings, 1),
    "logits": lambda classifier: classifier.logits(classifier.class_embeddings),
    "rejecting": lambda classifier: classifier.rejecting(reject_below=0.5),
    "scores": lambda classifier: classifier.scores(np.zeros((1, 3), np.float32)),
    "encode": lambda classifier: classifier.encode(),
    "save": lambda classifier: classifier.save("/nowhere/x.clf"),
    "detach": lambda classifier: classifier.detach(),
    "pickle": pickle.dumps,
}


def test_every_public_method_is_tried_after_closing() -> None:
    def methods(kind: type) -> set[str]:
        return {name for name, member in vars(kind).items() if not name.startswith("_") and callable(member)}

    assert methods(Model) - {"close", "require_open", "summary", "to_dict"} <= set(ENCODER_CALLS)
    assert methods(ZeroShotClassifier) - {"most_ranked", "summary", "to_dict", "records"} <= set(CLASSIFIER_CALLS)


@pytest.mark.parametrize("call", ENCODER_CALLS)
def test_closed_model_says_so(compiled: CompiledBundle, call: str) -> None:
    model = clipmlu.load(compiled.path)
    model.encode_images(pixels(1))
    model.close()
    model.close()
    with pytest.raises(SessionError, match=r"tiny-cpu' was closed. Load it again: clipmlu.load\('.*tiny-cpu'\)\.$"):
        ENCODER_CALLS[call](model)
    assert not model._sessions, "nothing was opened again"
    assert "tiny-cpu" in repr(model)
    assert model.batch_size == 4, "what it is can still be read"


@pytest.mark.parametrize("call", CLASSIFIER_CALLS)
def test_classifier_of_a_closed_model_says_so(compiled: CompiledBundle, call: str) -> None:
    with clipmlu.load(compiled.path) as model:
        classifier = model.classifier(NAMES)
    with pytest.raises(SessionError, match="was closed"):
        CLASSIFIER_CALLS[call](classifier)


@pytest.mark.parametrize("target", TARGETS[:3])
def test_closing_with_batches_in_flight_fails_them_and_waits_for_nothing(
    bundle_for: Callable[[str], CompiledBundle], target: str
) -> None:
    model = clipmlu.load(bundle_for(target).path)
    expected = support.embed_images(pixels(4))
    pending = [model.submit_images(pixels(4)) for _ in range(50)]
    model.close()
    results = [_result_or_error(each) for each in pending]
    failures = [isinstance(result, SessionError) for result in results]
    assert failures == sorted(failures), "they finish in order"
    for result in results:
        if isinstance(result, SessionError):
            assert "closed" in str(result)
        else:
            np.testing.assert_allclose(result, expected, atol=1e-5)


def _result_or_error(pending: Any) -> support.FloatArray | SessionError:
    try:
        result: support.FloatArray = pending.result()
    except SessionError as error:
        return error
    return result


def test_threads_that_use_a_model_while_it_is_closed_get_results_or_the_error(compiled: CompiledBundle) -> None:
    model = clipmlu.load(compiled.path)
    expected = support.embed_images(pixels(8))
    problems: list[BaseException] = []
    done = [0]

    def work() -> None:
        try:
            while True:
                np.testing.assert_allclose(model.encode_images(pixels(8)), expected, atol=1e-6)
                done[0] += 1
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    support.wait_until(lambda: done[0] >= 30)
    model.close()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert len(problems) == 6
    assert {type(problem) for problem in problems} == {SessionError}


def test_threads_that_begin_at_once_open_each_tower_once(
    compiled: CompiledBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    class Slow(onnxruntime.InferenceSession):  # type: ignore[misc]
        def __init__(self, path: str, *given: Any, **options: Any) -> None:
            opened.append(Path(path).name)
            time.sleep(0.05)
            super().__init__(path, *given, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Slow)
    with clipmlu.load(compiled.path) as model:
        threads = [threading.Thread(target=model.encode_images, args=(pixels(2),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert opened == ["image.onnx"]


# ---- forked ----------------------------------------------------------------------------------------------------------

FORKED = """
import gc, json, multiprocessing, os, sys
sys.path[:0] = {path!r}
import numpy as np
import clipmlu
from clipmlu.backends import SessionOptions
from clipmlu.magicmind.backend import emulated_worker
from clipmlu.bundle.directory import open_compiled
from clipmlu.model import Model
from clipmlu.errors import SessionError

def open_one():
    options = SessionOptions(worker=emulated_worker()) if {worker} else None
    return Model(open_compiled({bundle!r}), options, devices={devices})

model = open_one()
rows = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
expected = model.encode_images(rows)
classifier = model.classifier(["cat", "dog"], cache=False)
pending = model.submit_images(rows)

def attempt(call):
    try:
        call()
    except SessionError as error:
        return str(error)
    return "no error"

def in_child(found):
    found["pending"] = attempt(pending.result)
    found["encode"] = attempt(lambda: model.encode_images(rows))
    found["texts"] = attempt(lambda: model.embed_texts("cat"))
    found["session"] = attempt(lambda: model._sessions["image"].run({{"pixel_values": rows}}))
    found["predict"] = attempt(lambda: classifier.predict(np.zeros((8, 8, 3), np.uint8)))
    model.close()
    model._sessions.clear()
    gc.collect()  # frees what is not kept
    with open_one() as own:
        found["loaded again"] = bool(np.array_equal(own.encode_images(rows), expected))
    return found

def via_pool(_):
    return in_child({{}})

if {how!r} == "os.fork":
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(writing, json.dumps(in_child({{}})).encode())
        sys.exit(0)  # the interpreter ends as it does everywhere
    os.close(writing)
    found = json.loads(os.read(reading, 65536))
    found["exit"] = os.waitpid(pid, 0)[1]
else:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found = pool.apply(via_pool, (0,))
    found["exit"] = 0
found["first process"] = bool(np.array_equal(model.encode_images(rows), expected))
print(json.dumps(found))
"""


@pytest.mark.parametrize(
    ("target", "how"),
    [*((target, "os.fork") for target in (*TARGETS, "emulated-mlu on two cards")), ("cpu", "pool")],
)
def test_forked_process_is_told_what_to_do_and_can_load_its_own(
    bundle_for: Callable[[str], CompiledBundle], target: str, how: str
) -> None:
    bundle = bundle_for(target.split(maxsplit=1)[0])
    devices = [0, 1] if "two cards" in target else None
    script = FORKED.format(path=sys.path, bundle=str(bundle.path), worker="worker" in target, how=how, devices=devices)
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script]
    environment = {**os.environ, "CLIPMLU_EMULATOR_DEVICES": "2"}
    environment["TOKENIZERS_PARALLELISM"] = (
        "false"  # or tokenizers before 0.22.2 prints that it switches to that after a fork
    )
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    for use in ("pending", "encode", "texts", "session", "predict"):
        assert "forked from it" in found[use]
        assert "Load it again in this process with clipmlu.load, or start processes by 'spawn'" in found[use]
    assert (found["loaded again"], found["first process"], found["exit"]) == (True, True, 0)


# ---- pickled ---------------------------------------------------------------------------------------------------------


def _embed_and_predict(
    model: Model, classifier: ZeroShotClassifier
) -> tuple[support.FloatArray, tuple[str, ...], bool]:
    prediction = classifier.predict(support.picture(3))
    return model.encode_images(pixels(3)), prediction.class_names, classifier.encoder is model


def test_models_work_in_processes_that_are_spawned(model: Model) -> None:
    classifier = model.classifier(NAMES)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        embeddings, labels, same = pool.apply(_embed_and_predict, (model, classifier))
    np.testing.assert_allclose(embeddings, support.embed_images(pixels(3)), atol=1e-6)
    assert labels == classifier.predict(support.picture(3)).class_names
    assert same, "one model, though it was sent twice"


def test_pickled_model_keeps_its_options_and_not_the_working_directory(
    compiled: CompiledBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with clipmlu.load("tiny-cpu", threads=1, image_only=True, fast_preprocess=True, busy_wait=False) as model:
        pickled = pickle.dumps(model)
    assert len(pickled) < 2000, "by path, not by content"
    (compiled.path / "text.onnx").unlink()
    monkeypatch.chdir("/")
    with pickle.loads(pickled) as again:
        assert again._options == SessionOptions(threads=1, busy_wait=False)
        assert again.preprocessor.fast
        np.testing.assert_allclose(again.encode_images(pixels(2)), support.embed_images(pixels(2)), atol=1e-6)


def test_classifier_is_pickled_with_its_embeddings(compiled: CompiledBundle) -> None:
    with clipmlu.load(compiled.path) as model:
        classifier = model.classifier(NAMES, "a {} here")
        pickled = pickle.dumps(classifier)
        expected = classifier.predict(support.picture(5))
    again = pickle.loads(pickled)
    with again.encoder:
        assert (again.class_names, again.templates) == (NAMES, ("a {} here",))
        assert again.predict(support.picture(5)) == expected
        assert list(again.encoder._sessions) == ["image"], "the text tower is not needed"


def test_copy_is_another_model(model: Model) -> None:
    for made in (copy.copy(model), copy.deepcopy(model)):
        made.encode_images(pixels(1))
        made.close()
    model.encode_images(pixels(1))


@pytest.mark.parametrize("change", ["replaced", "damaged", "gone"])
def test_pickled_model_refuses_a_bundle_that_changed_since(
    model: Model, exported: ExportedBundle, compiled: CompiledBundle, tmp_path: Path, change: str
) -> None:
    pickled = pickle.dumps(model)
    if change == "replaced":
        options = CompileOptions(target="cpu", batch_size=2, max_batch=8, overwrite=True)
        compile_bundle(exported, compiled.path, options)
        expected, message = BundleCorruptError, "is not the bundle of the pickled model: it was replaced"
    elif change == "damaged":
        graph = compiled.tower_path("image")
        content = bytearray(graph.read_bytes())
        content[-1] ^= 1
        graph.write_bytes(content)
        expected, message = BundleCorruptError, "does not match its digest"
    else:
        compiled.path.rename(tmp_path / "elsewhere")
        expected, message = BundleNotFoundError, "tiny-cpu"
    with pytest.raises(expected, match=message):
        pickle.loads(pickled)


def test_sessions_are_not_pickled(model: Model) -> None:
    model.encode_images(pixels(1))
    with pytest.raises(
        TypeError, match=r"\(image tower\): an open session cannot be copied or pickled. Pickle the model"
    ):
        pickle.dumps(model._sessions["image"])


@pytest.mark.parametrize(
    "error",
    [
        errors.UnknownNameError("model", "x", ["xy"]),
        errors.MissingDependencyError("torch", "export", "Exporting"),
        errors.ParityError("differs", [{"output": "image_embeds"}]),
        errors.DeviceError("failed", "enqueue", "LOST", "device_lost"),
        errors.SessionError("closed"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_come_back_from_other_processes_as_they_were(error: errors.ClipmluError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


# ---- dropped ---------------------------------------------------------------------------------------------------------

DROPPED = """
import sys
sys.path[:0] = {path!r}
import gc
import numpy as np
import clipmlu
from clipmlu.backends import SessionOptions
from clipmlu.magicmind.backend import emulated_worker
from clipmlu.bundle.directory import open_compiled
from clipmlu.model import Model

def open_one():
    return Model(open_compiled({bundle!r}), SessionOptions(worker=emulated_worker()) if {worker} else None)

rows = np.zeros((4, 3, 8, 8), np.float32) + 0.5
for _ in range(2):
    model = open_one()
    model.encode_images(rows)
    del model
    gc.collect()
model = open_one()
model.encode_images(rows)
pending = [model.submit_images(rows) for _ in range(2)]
"""


@pytest.mark.parametrize("target", TARGETS)
def test_open_model_is_dropped_without_a_word(bundle_for: Callable[[str], CompiledBundle], target: str) -> None:
    """Collected twice, then open with batches in flight when the program ends."""
    bundle = bundle_for(target.split(maxsplit=1)[0])
    script = DROPPED.format(path=sys.path, bundle=str(bundle.path), worker="worker" in target)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_session_that_is_dropped_gives_its_place_on_the_card_back(
    bundle_for: Callable[[str], CompiledBundle],
) -> None:
    backend: Any = get_backend("magicmind-emulated")
    before = dict(backend._peers._peers)
    model = clipmlu.load(bundle_for("emulated-mlu").path)
    model.encode_images(pixels(1))
    assert backend._peers._peers != before
    del model
    gc.collect()
    support.wait_until(lambda: backend._peers._peers == before)


def test_pickled_model_keeps_its_limit_of_pixels(compiled: CompiledBundle) -> None:
    with clipmlu.load(compiled.path, max_pixels=100) as model, pickle.loads(pickle.dumps(model)) as again:
        with pytest.raises(InputError, match="more than the limit of 100"):
            again.embed_images(Image.new("RGB", (11, 10)))
        assert again.embed_images(Image.new("RGB", (10, 10), "white")).shape == (again.embedding_dim,)
