"""``clipmlu lower``: the files that a compilation hands to the SDK's parser, and what stands beside them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

import clipmlu
import support
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle, open_exported
from clipmlu.cli import main
from clipmlu.data.tokenizer import Tokenizer
from clipmlu.errors import BundleError, BundleExistsError, ClipmluError, OptionError, PrecisionError
from clipmlu.magicmind.emulator.config import BuilderConfig
from clipmlu.magicmind.emulator.parser import Parser
from clipmlu.specs import Layout

STATIC = {"dynamic_shape": False, "batch_size": 3}
QUANTISED = {"precision": "qint8_mixed_float16", "calib_samples": 4, "calib_algo": "percentile", "batch_size": 2}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("ant", "bee"):
        for number in range(3):
            folder = tmp_path / "photos" / "train" / name
            folder.mkdir(parents=True, exist_ok=True)
            support.picture(number + (name == "bee") * 10).save(folder / f"{number}.png")
    return tmp_path / "photos"


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the SDK gets while it builds: ``files``, name -> bytes, and ``settings``, one merged dict for each graph."""
    got: dict[str, Any] = {"files": {}, "settings": []}
    parse, configure = Parser.parse, BuilderConfig.parse_from_string

    def seen_parse(parser: Parser, network: Any, path: str) -> Any:
        got["files"][Path(path).name] = Path(path).read_bytes()
        got["settings"].append({})
        return parse(parser, network, path)

    def seen_configure(config: BuilderConfig, text: str) -> Any:
        for key, value in json.loads(text).items():
            before = got["settings"][-1].get(key, {})
            got["settings"][-1][key] = {**before, **value} if isinstance(value, dict) else value
        return configure(config, text)

    monkeypatch.setattr(Parser, "parse", seen_parse)
    monkeypatch.setattr(BuilderConfig, "parse_from_string", seen_configure)
    return got


@pytest.mark.parametrize("layout", ["towers", "joint"])
@pytest.mark.parametrize("options", [{}, STATIC, QUANTISED], ids=["dynamic", "static", "quantised"])
def test_the_files_are_those_that_the_parser_gets(
    handed_over: dict[str, Any], photos: Path, tmp_path: Path, layout: Layout, options: dict[str, Any]
) -> None:
    exported = support.write_exported(tmp_path / "E", layout=layout)
    if "precision" in options:
        options = {**options, "calib": f"imagefolder:{photos}"}
    lowered = clipmlu.lower(exported, tmp_path / "L", **options)
    clipmlu.compile_bundle(exported, tmp_path / "C", target="emulated-mlu", check=False, **options)
    names = {graph.file: name for name, graph in lowered.header.graphs.items()}
    assert set(handed_over["files"]) == set(names)
    for file, content in handed_over["files"].items():
        assert (tmp_path / "L" / file).read_bytes() == content
    for (file, name), settings in zip(names.items(), handed_over["settings"], strict=True):
        assert json.loads((tmp_path / "L" / f"{name}.build.json").read_text()) == settings
        clips = [node for node in onnx.load(tmp_path / "L" / file).graph.node if node.op_type == "Clip"]
        assert bool(clips) == ("precision" in options and name != "text"), "the text tower has no products"


@pytest.mark.parametrize(("options", "images"), [({}, None), (STATIC, 3)], ids=["dynamic", "static"])
def test_the_fused_graph_has_the_fixed_number_of_texts(
    tmp_path: Path, options: dict[str, Any], images: int | None
) -> None:
    exported = support.write_exported(tmp_path / "E", layout="joint")
    lowered = clipmlu.lower(exported, tmp_path / "L", text_rows=7, **options)
    model = onnx.load(lowered.graph_path("joint"))
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 11)]
    pixels, ids = model.graph.input
    sizes = [axis.dim_value or axis.dim_param for axis in pixels.type.tensor_type.shape.dim]
    assert sizes == [images or "image_batch", 3, support.SIDE, support.SIDE]
    assert [axis.dim_value for axis in ids.type.tensor_type.shape.dim] == [7, support.CONTEXT]


@pytest.mark.parametrize("bias", [None, -3.0])
def test_two_towers_are_joined_to_the_fused_graph(tmp_path: Path, bias: float | None) -> None:
    exported = support.write_exported(tmp_path / "E", logit_bias=bias)
    lowered = clipmlu.lower(exported, tmp_path / "L", layout="joint", labels=["cat", "dog"], templates="my {}")
    header = lowered.header
    assert (header.layout, header.joined, header.labels) == ("joint", True, 2)
    ids = np.load(tmp_path / "L" / "input_ids.npy")
    tokenizer = Tokenizer.load(tmp_path / "L" / "tokenizer.json", header.tokenizer)
    np.testing.assert_array_equal(ids, tokenizer(["my cat", "my dog"]))
    assert (tmp_path / "L" / "labels.txt").read_text() == "cat\ndog\n"
    pixels = np.stack([support.preprocess(support.picture(number)) for number in range(5)])
    session = onnxruntime.InferenceSession(lowered.graph_path("joint"), providers=["CPUExecutionProvider"])
    images, texts = session.run(None, {"pixel_values": pixels, "input_ids": ids})
    np.testing.assert_allclose(images, support.joint_logits(pixels, ids, bias), atol=1e-4)
    np.testing.assert_array_equal(texts, images.T)
    assert sorted(path.name for path in (tmp_path / "L").iterdir()) == sorted([*header.files, "lowered.json"])


def test_the_description_is_that_of_the_files(exported: ExportedBundle, tmp_path: Path) -> None:
    lowered = clipmlu.lower(support.with_clips_normalisation(exported), tmp_path / "L", batch_size=4, max_batch=9)
    stored = json.loads((tmp_path / "L" / "lowered.json").read_text())
    assert {"path": str(tmp_path / "L"), **stored} == lowered.to_dict()
    for name, record in stored["files"].items():
        assert hashlib.sha256((tmp_path / "L" / name).read_bytes()).hexdigest() == record["sha256"]
    for name, described in stored["graphs"].items():
        graph = onnx.load(lowered.graph_path(name)).graph
        for tensors, values in ((described["inputs"], graph.input), (described["outputs"], graph.output)):
            for tensor, value in zip(tensors, values, strict=True):
                kind = value.type.tensor_type
                assert tensor["name"] == value.name
                assert tensor["dtype"] == helper.tensor_dtype_to_np_dtype(kind.elem_type).name
                assert tensor["shape"] == [axis.dim_param or axis.dim_value for axis in kind.shape.dim]
    [pixels] = stored["graphs"]["image"]["inputs"]
    ends = [pixels[end] for end in ("minimum", "preferred", "maximum")]
    assert ends == [[rows, 3, support.SIDE, support.SIDE] for rows in (1, 4, 9)]
    low, high = (support.normalise_as_clip(np.full((1, 3, 1, 1), end, np.uint8)) for end in (0, 255))
    assert pixels["values"].endswith(f"{low.min():.4g} to {high.max():.4g}")
    readme = (tmp_path / "L" / "README.md").read_text()
    assert "python gen_model.py --onnx image.onnx --magicmind_model image.mm --precision force_float32" in readme
    assert "--input_dims 4 3 8 8 --batch_size 4 --dynamic_shape true --dim_range_min 1 3 8 8" in readme
    assert all(f"{value}" in readme for value in (*support.CLIP_MEAN, *support.CLIP_STD))


@pytest.mark.parametrize(
    ("layout", "options", "error", "message"),
    [
        ("joint", {"layout": "towers"}, BundleError, "has the layout 'joint' and no separate image tower"),
        ("towers", {"text_rows": 3}, OptionError, "text rows are about the fused graph; give --layout joint"),
        ("joint", {"text_rows": 3, "labels": ["a", "b"]}, OptionError, "text rows is 3, but there are 2 labels"),
        ("joint", {"labels": ["a", "b"], "templates": "cifar"}, OptionError, "templates are 18, but a graph takes one"),
        ("towers", {"templates": "my {}"}, OptionError, "templates are about labels, which are not given"),
        ("towers", {"target": "cpu"}, OptionError, "target is 'cpu'; expected one of mlu"),
        ("towers", {"precision": "int8"}, OptionError, "needs calibration data: give --calib"),
        ("towers", {"precision": "bf16"}, PrecisionError, "Target 'mlu' does not offer the precision 'force_bfloat16'"),
        ("towers", {"granularity": "per_axis"}, OptionError, "quantises nothing; leave out the quantisation options"),
        ("towers", {"keep_float": "mlp_in", **QUANTISED, "calib": "photos"}, ClipmluError, "mlp_in"),
    ],
)
@pytest.mark.usefixtures("photos")
def test_what_cannot_be_written_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    layout: Layout,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    exported = support.write_exported(tmp_path / "E", layout=layout)
    with pytest.raises(error, match=message):
        clipmlu.lower(exported, tmp_path / "L", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["E", "photos"]


def test_output_is_replaced_only_on_request_and_only_a_folder_of_lowered_graphs(
    exported: ExportedBundle, compiled: CompiledBundle, tmp_path: Path
) -> None:
    lowered = clipmlu.lower(exported.path, tmp_path / "L")
    with pytest.raises(BundleExistsError, match=r"exists.*--overwrite"):
        clipmlu.lower(exported, lowered.path)
    again = clipmlu.lower(exported, lowered.path, precision="fp16", overwrite=True)
    assert again.header.precision == "force_float16"
    with pytest.raises(BundleExistsError, match="is not a folder of lowered graphs; it is not changed"):
        clipmlu.lower(exported, compiled.path, overwrite=True)
    assert open_exported(exported.path).digest == exported.digest


@pytest.mark.parametrize(
    ("bias", "scores"),
    [
        (None, "x cosine similarity, and softmax of a row gives probabilities: image_embeds @ text_embeds.T"),
        (-3.0, "x cosine similarity -3, and sigmoid of each gives its probability: image_embeds @ text_embeds.T"),
    ],
)
def test_the_readme_of_two_towers_says_how_to_score(tmp_path: Path, bias: float | None, scores: str) -> None:
    exported = support.write_exported(tmp_path / "E", logit_bias=bias)
    clipmlu.lower(exported, tmp_path / "L")
    readme = (tmp_path / "L" / "README.md").read_text()
    assert f"- Scores: {exported.manifest.logit_scale:g} {scores}" in readme
    assert "(the shorter side is fitted, the centre cropped), bicubic of Pillow" in readme


def test_models_that_were_built_beside_the_graphs_are_not_replaced(exported: ExportedBundle, tmp_path: Path) -> None:
    lowered = clipmlu.lower(exported, tmp_path / "L")
    (lowered.path / "image.mm").write_text("built for an hour")
    with pytest.raises(BundleExistsError, match=r"also holds 'image\.mm', which clipmlu did not write there"):
        clipmlu.lower(exported, lowered.path, overwrite=True)
    assert (lowered.path / "image.mm").read_text() == "built for an hour"


def test_the_command_takes_the_vendors_way_of_writing(
    exported: ExportedBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--batch_size", "5", "--dynamic_shape", "false", "--layout", "joint", "--json"]
    assert main(["lower", str(exported.path), "--for", "mlu", "-o", str(tmp_path / "L"), *options]) == 0
    header = json.loads(capsys.readouterr().out)
    given = header["graphs"]["joint"]["inputs"]
    assert [each["shape"] for each in given] == [[5, 3, support.SIDE, support.SIDE], [100, support.CONTEXT]]
    assert main(["lower", str(exported.path), "-o", str(tmp_path / "M")]) == 0
    assert "described in" in capsys.readouterr().out
