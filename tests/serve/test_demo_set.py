"""The demo set through HTTP: each image gets the scores of offline, whatever the requests are and while cards are lost."""

from __future__ import annotations

import io
import os
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import clipmlu
from clipmlu.backends import SessionOptions
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.magicmind.backend import emulated_worker
from clipmlu.model import Model
from clipmlu.serve.http.app import make_app
from clipmlu.serve.options import ServeOptions
from clipmlu.serve.served_model import ServedModel
from clipmlu.serve.service import Service
from http_client import base64_images
from http_server import serving

pytestmark = [pytest.mark.slow, pytest.mark.torch]

IMAGES = 320
THREADS = 12
ROUNDING = 5e-6
"""Of a score: batches of other sizes round a similarity by up to some 1e-7, the logit scale of 100 makes 1e-5 of it, and a score
changes by at most a quarter of that. A score of another image differs by far more."""


@pytest.fixture(scope="module")
def pictures() -> tuple[list[bytes], list[str]]:
    """Images of the demo set as PNG files, and the names of its classes."""
    dataset = clipmlu.open_dataset("demo", size=IMAGES)
    files = []
    for image, _label in dataset:
        file = io.BytesIO()
        image.save(file, "png")
        files.append(file.getvalue())
    return files, list(dataset.class_names)


def compiled(source: ExportedBundle, folder: Path, target: str) -> CompiledBundle:
    return compile_bundle(source, folder / "bundle", CompileOptions(target=target, batch_size=8, check=False))


def served(bundle: CompiledBundle, names: list[str], session: SessionOptions | None = None) -> tuple[Service, Model]:
    options = ServeOptions(labels=names)
    encoder = Model(bundle, session)
    model = ServedModel("demo", encoder, options)
    model.warm_up()
    return Service({"demo": model}, options), encoder


def ask(client: httpx.Client, files: list[bytes], classes: int) -> list[dict[str, float]]:
    """The scores of images that are sent in one request."""
    answer = client.post("/v1/classify", json={"images": base64_images(*files), "top_k": classes})
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    return [{each["class_name"]: each["score"] for each in result["predictions"]} for result in results]


def offline(bundle: CompiledBundle, files: list[bytes], names: list[str], **options: Any) -> list[dict[str, float]]:
    with clipmlu.load(bundle.path) as model:
        predictions = model.classifier(names, cache=False).predict(files, top_k=len(names), **options)
        return [dict(zip(each.class_names, map(float, each.scores), strict=True)) for each in predictions]


def test_all_scores_are_those_of_offline_while_the_card_is_killed(
    demo_bundle: ExportedBundle, pictures: tuple[list[bytes], list[str]], tmp_path: Path
) -> None:
    files, names = pictures
    bundle = compiled(demo_bundle, tmp_path, "emulated-mlu")
    service, encoder = served(bundle, names, SessionOptions(worker=emulated_worker()))
    session: Any = encoder._session("image")
    chance, lock, done = random.Random(18), threading.Lock(), [0]
    order = chance.sample(range(len(files)), len(files))
    requests = []
    while order:
        size = chance.randint(1, 5)
        requests.append(order[:size])
        order = order[size:]

    try:
        with serving(make_app(service)) as address, httpx.Client(base_url=address, timeout=120) as client:

            def send(rows: list[int]) -> list[tuple[int, dict[str, float]]]:
                answers = ask(client, [files[row] for row in rows], len(names))
                with lock:
                    done[0] += 1
                    if done[0] in (10, 40, 80):
                        os.kill(session._peer._link._process.pid, signal.SIGKILL)
                return list(zip(rows, answers, strict=True))

            with ThreadPoolExecutor(THREADS) as pool:
                found = [pair for pairs in pool.map(send, requests) for pair in pairs]
            assert encoder.worker_restarts() >= 2
    finally:
        service.close()
    assert sorted(row for row, _ in found) == list(range(len(files)))
    for row, wanted in enumerate(offline(bundle, files, names)):
        scores = dict(found)[row]
        assert scores.keys() == wanted.keys()
        np.testing.assert_allclose([scores[name] for name in names], [wanted[name] for name in names], atol=ROUNDING)


def test_equal_batches_give_equal_bits(
    demo_bundle: ExportedBundle, pictures: tuple[list[bytes], list[str]], tmp_path: Path
) -> None:
    files, names = pictures
    bundle = compiled(demo_bundle, tmp_path, "cpu")
    service, _ = served(bundle, names)
    try:
        with serving(make_app(service)) as address, httpx.Client(base_url=address, timeout=120) as client:
            found = [ask(client, [file], len(names))[0] for file in files[:64]]
    finally:
        service.close()
    assert found == offline(bundle, files[:64], names, batch_size=1)
