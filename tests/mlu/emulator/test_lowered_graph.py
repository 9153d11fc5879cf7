"""A script of the vendor's kind takes the file of ``clipmlu lower --layout joint`` (calls in the order of api 6.2 and 6.4)."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import clipmlu
import support
from mlu.emulator.calls import Runner, build, calibrate, parse, precision

TEXTS = 4


@pytest.mark.parametrize("name", ["force_float32", "qint8_mixed_float16"])
@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "static"])
def test_the_samples_calls_build_and_run_the_fused_graph(
    mm: ModuleType, tmp_path: Path, name: str, dynamic: bool
) -> None:
    """The sample gives the dimensions twice, one setting a call, and dynamic files for static models, too."""
    towers = support.write_exported(tmp_path / "E")
    lowered = clipmlu.lower(towers, tmp_path / "L", layout="joint", text_rows=TEXTS)
    network = parse(mm, lowered.graph_path("joint"))
    assert (network.get_input_count(), network.get_output_count()) == (2, 2)
    shapes = ([3, 3, support.SIDE, support.SIDE], [TEXTS, support.CONTEXT])
    for index, sizes in enumerate(shapes):
        assert network.get_input(index).set_dimension(mm.Dims(sizes)).ok()
    for index, sizes in enumerate(shapes):
        dims = network.get_input(index).get_dimension().GetDims()
        dims[0] = sizes[0]
        assert network.get_input(index).set_dimension(mm.Dims(dims)).ok()
    config = mm.BuilderConfig()
    config.mlu_archs = ["mtp_372"]
    limits = {"0": {"min": [1, *shapes[0][1:]], "max": [8, *shapes[0][1:]]}, "1": {"min": shapes[1], "max": shapes[1]}}
    for part in (
        precision(name),
        {"archs": [{"mtp_372": [2, 6, 8]}]},
        {"graph_shape_mutable": dynamic},
        *([{"dim_range": limits}] if dynamic else []),
        {"computation_preference": "auto"},
        {"opt_config": {"type64to32_conversion": True}},
        {"opt_config": {"conv_scale_fold": True}},
    ):
        assert config.parse_from_string(json.dumps(part)).ok()
    pixels = np.stack([support.preprocess(support.picture(number)) for number in range(6)])
    ids = np.random.default_rng(0).integers(0, support.VOCAB, (TEXTS, support.CONTEXT))
    if "qint" in name:
        assert calibrate(mm, network, config, [pixels[:3], pixels[3:]], [ids.astype(np.int32)] * 2).ok()
    model = build(mm, network, config)
    assert model.serialize_to_file(str(tmp_path / "model")).ok()
    loaded = mm.Model()
    assert loaded.deserialize_from_file(str(tmp_path / "model")).ok()
    images, texts = Runner(mm, loaded)(pixels[:3].astype(np.float64), ids)
    expected = support.joint_logits(pixels[:3], ids)
    np.testing.assert_allclose(images, expected, atol=1e-4 if name == "force_float32" else 0.5)
    np.testing.assert_array_equal(texts, images.T)
    assert [dims.GetDims() for dims in loaded.get_input_dimensions()][1] == shapes[1]


def test_the_description_beside_a_file_builds_it(mm: ModuleType, tmp_path: Path) -> None:
    """``joint.build.json`` for ``parse_from_file``, with the shapes of ``lowered.json``."""
    lowered = clipmlu.lower(support.write_exported(tmp_path / "E", layout="joint"), tmp_path / "L", text_rows=TEXTS)
    described = lowered.header.graphs["joint"]
    network = parse(mm, lowered.graph_path("joint"))
    for index, given in enumerate(described.inputs):
        assert network.get_input(index).set_dimension(mm.Dims(given.preferred)).ok()
    config = mm.BuilderConfig()
    assert config.parse_from_file(str(lowered.path / described.build_config)).ok()
    model = build(mm, network, config)
    assert model.get_input_names() == [given.name for given in described.inputs]
    assert [kind.name for kind in model.get_input_data_types()] == [given.sdk_dtype for given in described.inputs]
    pixels = np.stack([support.preprocess(support.picture(number)) for number in range(2)])
    ids = np.random.default_rng(0).integers(0, support.VOCAB, (TEXTS, support.CONTEXT))
    np.testing.assert_allclose(Runner(mm, model)(pixels, ids)[0], support.joint_logits(pixels, ids), atol=1e-4)
