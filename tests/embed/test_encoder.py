"""Encoders of graphs that lie in no bundle; those of bundles are tested in ``tests/classify``."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

import support
from clipmlu import Encoder
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.bundle.runnable import RunnableModel
from clipmlu.classify.building import build_classifier
from clipmlu.errors import BundleError


@pytest.fixture
def loose(compiled: CompiledBundle, tmp_path: Path) -> RunnableModel:
    """The towers of a bundle in a folder that has no manifest, under other names."""
    folder = tmp_path / "loose"
    folder.mkdir()
    towers = {
        name: msgspec.structs.replace(tower, file=f"my-{name}.onnx") for name, tower in compiled.manifest.towers.items()
    }
    for name, tower in towers.items():
        shutil.copyfile(compiled.tower_path(name), folder / tower.file)
    return dataclasses.replace(compiled.runnable, path=folder, towers=towers, files={})


def test_graphs_outside_a_bundle_embed(loose: RunnableModel) -> None:
    pixels = np.random.default_rng(0).standard_normal((3, 3, support.SIDE, support.SIDE)).astype(np.float32)
    with Encoder(loose) as encoder:
        np.testing.assert_allclose(encoder.encode_images(pixels), support.embed_images(pixels), atol=1e-6)
        tokens = encoder.tokenizer(["a red circle", "two"])
        np.testing.assert_allclose(encoder.encode_tokens(tokens), support.embed_tokens(tokens), atol=1e-6)


def test_graphs_outside_a_bundle_have_no_bundle_and_are_not_pickled(loose: RunnableModel) -> None:
    with Encoder(loose) as encoder:
        with pytest.raises(BundleError, match="loose' are not part of a compiled bundle"):
            _ = encoder.bundle
        with pytest.raises(BundleError, match="loose' are not part of a compiled bundle"):
            pickle.dumps(encoder)


def test_class_embeddings_of_graphs_without_digests_are_not_cached(
    loose: RunnableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPMLU_CACHE_DIR", str(tmp_path / "cache"))
    with Encoder(loose) as encoder:
        build_classifier(encoder, ["cat", "dog"], "a {}", cache=True)
    assert not (tmp_path / "cache").exists()


def test_tower_that_the_graphs_lack_is_named(loose: RunnableModel) -> None:
    with pytest.raises(BundleError, match="has two towers and no fused graph"):
        loose.tower("joint")
