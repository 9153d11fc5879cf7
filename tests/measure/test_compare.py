"""Two bundles against each other: figures by NumPy, planted faults, smoothing, the emulated SDK, roles in float."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

import support
from clipmlu.backends import BACKENDS, get_backend
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle, open_exported
from clipmlu.bundle.verify import file_record
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.data.calibration import CalibrationOptions
from clipmlu.data.images import DEFAULT_MAX_PIXELS
from clipmlu.errors import BundleError, InputError, OptionError, OverlapError
from clipmlu.files.publish import encode_json
from clipmlu.graph.quantisation.undo import restore_structure
from clipmlu.graph.roles import find_operators
from clipmlu.measure.compare.compare import CompareOptions, ComparisonReport, compare_bundles
from clipmlu.measure.compare.nodes import NodeComparison
from clipmlu.measure.compare.rebuilding import Rebuilder
from clipmlu.measure.compare.sides import hidden_reason
from clipmlu.measure.compare.tensors import choose_watched, lowered_model, smoothed_tensors, tensor_graph
from clipmlu.model import Model
from clipmlu.specs import Precision, QuantisationOptions

Array = np.ndarray[Any, np.dtype[Any]]
CALIBRATED = 6
NAMES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")
Compile = Callable[..., CompiledBundle]


@dataclasses.dataclass
class Pictures:
    """Noise pictures with drawn labels; those in ``broken`` cannot be read."""

    size: int = 9
    side: int = support.SIDE
    first: int = 1000
    broken: frozenset[int] = frozenset()
    class_names: tuple[str, ...] = NAMES
    original_names: tuple[str, ...] = NAMES
    max_pixels: int = DEFAULT_MAX_PIXELS
    name: str = "pictures"
    split: str = "test"

    def __len__(self) -> int:
        return self.size

    def label(self, index: int) -> int:
        return index * 5 % len(self.class_names)

    def image(self, index: int) -> Image.Image:
        if index in self.broken:
            raise InputError(f"Image '{index}' is broken")
        return support.picture(self.first + index).resize((self.side, self.side))

    def source(self, index: int) -> Image.Image:
        return self.image(index)

    def key(self, index: int) -> str:
        return f"pictures/{index}"


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> CalibrationOptions:
    folder = tmp_path_factory.mktemp("calibration")
    for number in range(CALIBRATED):
        support.picture(number).resize((32, 32)).save(folder / f"{number}.png")
    return CalibrationOptions(dataset=str(folder), samples=CALIBRATED)


@pytest.fixture(scope="module")
def compile_for(calibration: CalibrationOptions, tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """``compile_for(exported, precision, target="cpu", **options)``, unchecked; options of the quantisation by name.

    Equal arguments give one bundle, not to be changed.
    """
    made: dict[str, CompiledBundle] = {}

    def compile_one(exported: ExportedBundle, precision: str, target: str = "cpu", **options: Any) -> CompiledBundle:
        key = repr((exported.digest, precision, target, sorted(options.items())))
        if key not in made:
            made[key] = compile_anew(exported, precision, target, **options)
        return made[key]

    def compile_anew(exported: ExportedBundle, precision: str, target: str, **options: Any) -> CompiledBundle:
        fields = {name: options.pop(name) for name in QuantisationOptions.__struct_fields__ if name in options}
        given = CompileOptions(
            target=target,
            precision=Precision(precision),
            batch_size=4,
            calibration=calibration if precision.startswith("qint") else None,
            quantisation=QuantisationOptions(**fields) if precision.startswith("qint") else None,
            check=False,
            **options,
        )
        return compile_bundle(exported, tmp_path_factory.mktemp("compiled") / "out", given)

    return compile_one


@pytest.fixture
def tiny(tmp_path: Path) -> ExportedBundle:
    return support.write_exported(tmp_path / "tiny-exported")


@pytest.fixture(scope="module")
def vit(tiny_bundle: Callable[..., ExportedBundle]) -> ExportedBundle:
    return tiny_bundle("vit")


@pytest.fixture(scope="module")
def int8(vit: ExportedBundle, compile_for: Compile) -> CompiledBundle:
    return compile_for(vit, "qint8_mixed_float16")


@pytest.fixture(scope="module")
def smoothed(vit: ExportedBundle, compile_for: Compile) -> CompiledBundle:
    """With everything that happens to a graph before it is quantised."""
    return compile_for(
        vit,
        "qint16_mixed_float32",
        smooth_alpha={"qkv": 0.5, "mlp_in": 0.8, "attention_output": 0.5, "mlp_out": 0.75, "projection": 0.5},
        algorithm="percentile",
        percentile=100.0,
        granularity="per_axis",
        keep_float=("mlp_out:1",),
    )


def nodes_of(report: ComparisonReport) -> dict[str, NodeComparison]:
    return {node.tensor: node for node in report.towers["image"].nodes}


def change_weight(
    bundle: CompiledBundle, output: Path, tower: str, part: str, change: Callable[[Array], Array]
) -> Path:
    """A copy of a bundle whose first weight with ``part`` in its name was changed, with digests that are right."""
    shutil.copytree(bundle.path, output)
    file = output / f"{tower}.onnx"
    model = onnx.load(file)
    weight = next(weight for weight in model.graph.initializer if part in weight.name)
    weight.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(weight)), weight.name))
    onnx.save(model, file)
    files = {name: msgspec.to_builtins(record) for name, record in bundle.manifest.files.items()}
    support.edit_manifest(output, files={**files, file.name: msgspec.to_builtins(file_record(file))})
    return output


def test_figures_of_an_int8_bundle_are_those_of_numpy(tiny: ExportedBundle, tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / "data").mkdir(exist_ok=True)
        support.picture(number).save(tmp_path / "data" / f"{number}.png")
    data = CalibrationOptions(dataset=str(tmp_path / "data"), samples=6)
    options = CompileOptions(
        target="cpu",
        precision=Precision.QINT8_MIXED_FLOAT32,
        batch_size=3,
        quantisation=QuantisationOptions(),
        calibration=data,
    )
    bundle = compile_bundle(tiny, tmp_path / "q8", options)
    dataset = Pictures()
    report = compare_bundles(bundle, tiny, dataset)

    def pooled(images: list[Image.Image]) -> Array:
        pixels = np.stack([support.preprocess(image) for image in images])
        half = support.SIDE // 2
        return pixels.reshape(-1, 3, 2, half, 2, half).mean(axis=(3, 5), dtype=np.float64).reshape(-1, 12)

    def quantised(values: Array, bound: float) -> Array:
        return np.clip(np.rint(values / (bound / 127)), -128, 127) * (bound / 127)

    bound = float(np.abs(pooled([support.picture(number) for number in range(6)])).max())
    inputs = pooled([dataset.image(index) for index in range(9)])
    weight = support.weights()[0].astype(np.float64)
    theirs = inputs @ weight
    ours = quantised(inputs, bound) @ quantised(weight, float(np.abs(weight).max()))
    nodes = nodes_of(report)
    assert [(node.tensor, node.kind) for node in report.towers["image"].nodes] == [
        ("flat", "input"),
        ("raw", "operator"),
        ("image_embeds", "output"),
    ]
    raw, flat = nodes["raw"], nodes["flat"]
    error = ours - theirs
    assert raw.snr_db == pytest.approx(10 * np.log10((theirs**2).sum() / (error**2).sum()), abs=0.01)
    assert raw.cosine == pytest.approx((ours * theirs).sum() / np.linalg.norm(ours) / np.linalg.norm(theirs), abs=1e-6)
    assert raw.max_abs_diff == pytest.approx(np.abs(error).max(), abs=1e-5)
    assert flat.is_exact
    assert flat.quantised_range == (pytest.approx(-128 * bound / 127), pytest.approx(bound))
    assert flat.outside == np.mean(np.abs(inputs) > bound + bound / 254)
    embedding = report.embeddings["image"]
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (ours, theirs)]
    cosines = (units[0] * units[1]).sum(axis=1)
    assert (embedding.mean_cosine, embedding.min_cosine) == (
        pytest.approx(cosines.mean(), abs=1e-6),
        pytest.approx(cosines.min(), abs=1e-6),
    )


def test_predictions_and_flips_are_those_of_numpy(tiny: ExportedBundle, compile_for: Compile, tmp_path: Path) -> None:
    bundle = compile_for(tiny, "force_float32")
    turned = change_weight(bundle, tmp_path / "turned", "image", "weight", lambda weight: np.roll(weight, 1, axis=1))
    dataset = Pictures(size=60)
    report = compare_bundles(turned, tiny, dataset, CompareOptions(tower="image"))
    with Model(bundle) as encoder:
        texts = support.embed_tokens(encoder.tokenizer([f"a photo of a {name}." for name in NAMES]))
    pixels = np.stack([support.preprocess(dataset.image(index)) for index in range(60)])
    embeddings = support.embed_images(pixels)
    theirs = (embeddings @ texts.T).argmax(axis=1)
    ours = (np.roll(embeddings, 1, axis=1) @ texts.T).argmax(axis=1)
    labels = np.array([dataset.label(index) for index in range(60)])
    found = report.predictions
    assert found.agreement == np.mean(ours == theirs) < 1
    assert (found.top1, found.reference_top1) == (np.mean(ours == labels), np.mean(theirs == labels))
    assert found.right_to_wrong == np.sum((theirs == labels) & (ours != labels)) > 0
    assert found.wrong_to_right == np.sum((theirs != labels) & (ours == labels)) > 0
    assert found.wrong_to_wrong == np.sum((theirs != labels) & (ours != labels) & (ours != theirs)) > 0
    assert 0 < found.mcnemar_p <= 1
    changed = np.flatnonzero(ours != theirs)[:20]
    assert [flip.id for flip in found.flips] == [f"pictures/{index}" for index in changed]
    assert [(flip.class_name, flip.predicted, flip.reference) for flip in found.flips] == [
        (NAMES[labels[index]], NAMES[ours[index]], NAMES[theirs[index]]) for index in changed
    ]
    assert report.towers["image"].first_divergence is not None
    assert report.towers["image"].first_divergence.tensor == "raw"
    assert list(report.towers) == ["image"]


def test_overflow_of_binary16_is_found_where_it_begins(compile_for: Compile, tmp_path: Path) -> None:
    exported = support.write_exported(tmp_path / "large")
    large = change_weight(exported, tmp_path / "larger", "image", "weight", lambda weight: weight * np.float32(1e6))  # type: ignore[arg-type]
    bundle = compile_for(open_exported(large), "force_float16")
    report = compare_bundles(bundle, large, Pictures(), CompareOptions(samples=5))
    first = report.towers["image"].first_divergence
    assert first is not None
    assert (first.tensor, first.kind, first.cosine) == ("raw", "operator", None)
    assert first.non_finite > 0
    assert first.float16_share is not None
    assert first.float16_share > 1
    assert report.towers["text"].first_divergence is None
    assert report.embeddings["image"].non_finite == 5
    assert report.embeddings["image"].mean_cosine is None
    assert report.predictions.agreement == 0
    assert [flip.predicted for flip in report.predictions.flips] == [None] * 5
    assert b"NaN" not in encode_json(report)
    assert b"Infinity" not in encode_json(report)


def test_report_survives_json_and_says_how_it_was_made(
    tiny: ExportedBundle, compiled: CompiledBundle, tmp_path: Path
) -> None:
    exported = open_exported(tmp_path / "tiny")
    report = compare_bundles(compiled.path, exported.path, Pictures(broken=frozenset({2})), CompareOptions(samples=5))
    assert msgspec.json.decode(encode_json(report), type=ComparisonReport) == report
    assert (report.images, [skipped.id for skipped in report.skipped]) == (4, ["pictures/2"])
    assert report.towers["image"].rows == 4
    assert report.towers["text"].rows == 5, "as many prompts as images were asked for"
    assert (report.measured.kind, report.reference.kind) == ("compiled", "exported")
    assert (report.measured.provenance.bundle_digest, report.reference.provenance.bundle_digest) == (
        compiled.digest,
        exported.digest,
    )
    assert not report.emulated
    assert report.predictions.agreement == 1.0
    assert all(node.cosine is not None and node.cosine > 0.999999 for node in report.towers["image"].nodes)


def test_samples_are_the_first_256_or_all_of_fewer(tiny: ExportedBundle) -> None:
    options = CompareOptions(tower="text")
    assert compare_bundles(tiny, tiny, Pictures(size=9), options).images == 9
    assert compare_bundles(tiny, tiny, Pictures(size=300), options).images == 256
    with pytest.raises(OptionError, match="samples is 10, but 'pictures' has 9 images in its split 'test'"):
        compare_bundles(tiny, tiny, Pictures(size=9), CompareOptions(samples=10))
    for options, message in (
        ({"samples": 0}, "samples is 0"),
        ({"threshold": 1.5}, "threshold is 1.5; expected a cosine"),
        ({"tower": "joint"}, "tower is 'joint'; expected one of image, text, both"),
    ):
        with pytest.raises(OptionError, match=message):
            CompareOptions(**options)  # type: ignore[arg-type]


def test_different_models_are_refused_in_one_line(tiny: ExportedBundle, compile_for: Compile, tmp_path: Path) -> None:
    other = support.write_exported(tmp_path / "other", seed=1)
    bundle, theirs = compile_for(tiny, "force_float32"), compile_for(other, "force_float32")
    with pytest.raises(BundleError, match=r"was not compiled from '.*other', but from another export"):
        compare_bundles(bundle, other, Pictures())
    with pytest.raises(BundleError, match=r"was not compiled from '.*other', but from another export"):
        compare_bundles(other, bundle, Pictures())
    with pytest.raises(BundleError, match=r"hold different models, 'tiny \(random.* 0\)' and 'tiny \(random.* 1\)'"):
        compare_bundles(bundle, theirs, Pictures())
    model = msgspec.to_builtins(bundle.manifest.model)
    same_name = shutil.copytree(theirs.path, tmp_path / "same-name")
    support.edit_manifest(same_name, model=model)
    with pytest.raises(BundleError, match="with different weights; give two bundles of one export"):
        compare_bundles(bundle, same_name, Pictures())


@pytest.mark.parametrize("precision", ["force_float32", "qint8_mixed_float32"])
@pytest.mark.parametrize("target", ["cpu", "emulated-mlu"])
def test_bundles_that_take_uint8_pixels_are_compared_and_ablated(
    tiny: ExportedBundle, compile_for: Compile, target: str, precision: str
) -> None:
    """Mean and standard deviation of the tiny model are exact in float32, so the emulated card's normalisation is too."""
    plain = compile_for(tiny, precision, target)
    taking = compile_for(tiny, precision, target, uint8_input=True)
    images = CompareOptions(tower="image", ablate=precision.startswith("qint"))
    against_plain = compare_bundles(taking, plain, Pictures(), dataclasses.replace(images, source=tiny))
    assert [node.tensor for node in against_plain.towers["image"].nodes] == ["flat", "raw", "image_embeds"]
    for node in against_plain.towers["image"].nodes:
        assert node.max_abs_diff is not None
        assert node.max_abs_diff < 1e-5
    theirs = compare_bundles(plain, tiny, Pictures(), images)
    ours = compare_bundles(taking, tiny, Pictures(), images)
    for mine, other in zip(ours.towers["image"].nodes, theirs.towers["image"].nodes, strict=True):
        assert (mine.tensor, mine.max_abs_diff) == (other.tensor, pytest.approx(other.max_abs_diff, abs=1e-5))
    if images.ablate:
        assert ours.ablation is not None
        assert theirs.ablation is not None
        assert ours.ablation.mean_cosine["image"] == pytest.approx(theirs.ablation.mean_cosine["image"], abs=1e-6)
        (role,) = ours.ablation.roles
        assert role.mean_cosine == pytest.approx(1.0, abs=1e-6), "with its only operator in float it is the float model"


def _joint(tmp_path: Path) -> ExportedBundle:
    return support.write_exported(tmp_path / "joint", layout="joint")


@pytest.mark.parametrize("target", ["cpu", "emulated-mlu"])
def test_joint_layout_is_compared_with_its_source_and_with_the_towers(
    tiny: ExportedBundle, tmp_path: Path, target: str
) -> None:
    joint = _joint(tmp_path)
    compiled = compile_bundle(joint, tmp_path / "joint-compiled", CompileOptions(target=target))
    notes: list[str] = []
    for reference in (joint, tiny):
        report = compare_bundles(compiled, reference, Pictures(), on_note=notes.append)
        assert report.embeddings == {}
        assert report.logits is not None
        assert report.logits.rows == report.images == report.predictions.images
        assert report.logits.max_abs_diff is not None
        assert report.logits.max_abs_diff < 1e-4
        assert report.predictions.agreement == 1.0
        assert report.towers["joint"].hidden is not None
    assert any("two towers would take" in note for note in notes)


def test_joint_layout_shows_where_logits_part(tmp_path: Path) -> None:
    joint = _joint(tmp_path)
    half = compile_bundle(joint, tmp_path / "half", CompileOptions(target="cpu", precision=Precision.FORCE_FLOAT16))
    report = compare_bundles(half, joint, Pictures())
    assert report.logits is not None
    assert report.logits.max_abs_diff is not None
    assert 1e-4 < report.logits.max_abs_diff < 0.1, "half precision of logits around 20"


def test_layouts_of_other_weights_are_refused(tiny: ExportedBundle, tmp_path: Path) -> None:
    joint = _joint(tmp_path)
    export = msgspec.json.decode((joint.path / "manifest.json").read_bytes())["export"]
    support.edit_manifest(joint.path, export={**export, "weights_digest": "1" * 64})
    with pytest.raises(BundleError, match="different weights"):
        compare_bundles(joint.path, tiny, Pictures())


def test_ablation_of_the_joint_layout_is_refused(tmp_path: Path) -> None:
    joint = _joint(tmp_path)
    with pytest.raises(OptionError, match=r"ablation needs two towers.* without '--layout joint'"):
        compare_bundles(joint, joint, Pictures(), CompareOptions(ablate=True))


def test_images_that_a_bundle_was_calibrated_with_are_refused_or_counted(tiny: ExportedBundle, tmp_path: Path) -> None:
    dataset = Pictures()
    (tmp_path / "seen").mkdir()
    for index in range(3):
        dataset.image(index).save(tmp_path / "seen" / f"{index}.png")
    data = CalibrationOptions(dataset=str(tmp_path / "seen"), samples=3)
    given = CompileOptions(
        target="cpu", precision=Precision.QINT8_MIXED_FLOAT32, batch_size=4, calibration=data, check=False
    )
    bundle = compile_bundle(tiny, tmp_path / "q8", given)
    for pair in ((bundle, tiny), (tiny, bundle)):
        with pytest.raises(OverlapError, match="Image 'pictures/0' is one that a compared bundle was calibrated with"):
            compare_bundles(*pair, dataset)
        assert compare_bundles(*pair, dataset, CompareOptions(allow_overlap=True)).calibration_overlap == 3


def test_ablation_is_refused_where_it_means_nothing(tiny: ExportedBundle, compile_for: Compile, tmp_path: Path) -> None:
    options = CompareOptions(ablate=True)
    bundle, plain = compile_for(tiny, "qint8_mixed_float16"), compile_for(tiny, "force_float16")
    with pytest.raises(OptionError, match="quantises nothing"):
        compare_bundles(plain, tiny, Pictures(), options)
    with pytest.raises(OptionError, match="quantises nothing"):
        compare_bundles(tiny, bundle, Pictures(), options)
    with pytest.raises(OptionError, match="ablation needs the float source; give the exported bundle"):
        compare_bundles(bundle, plain, Pictures(), options)
    quantised = {"image": bundle.compilation.quantised["image"]}  # as with the text tower on the CPU
    image_only = support.with_compilation(bundle, tmp_path / "image-only", quantised=quantised)
    with pytest.raises(OptionError, match=r"ablation looks at the text tower, which bundle '.*' does not quantise"):
        compare_bundles(image_only, tiny, Pictures(), CompareOptions(ablate=True, tower="text"))
    other = support.write_exported(tmp_path / "other", seed=1)
    with pytest.raises(BundleError, match=r"was not compiled from '.*other', but from another export"):
        compare_bundles(bundle, plain, Pictures(), CompareOptions(ablate=True, source=other))
    with pytest.raises(BundleError, match="is compiled already"):
        compare_bundles(bundle, plain, Pictures(), CompareOptions(source=plain.path))


def test_graphs_that_are_too_large_are_not_looked_into(tiny: ExportedBundle) -> None:
    files = tiny.manifest.files
    files = {**files, "text.onnx": msgspec.structs.replace(files["text.onnx"], size=1_900_000_001)}
    large = ExportedBundle(tiny.path, msgspec.structs.replace(tiny.manifest, files=files), tiny.digest)
    report = compare_bundles(large, large, Pictures(), CompareOptions(batch_size=100))
    assert len(report.towers["image"].nodes) == 3
    assert report.towers["text"].hidden is not None
    assert "has 1.9 GB, too many to read its intermediate tensors: only its outputs" in report.towers["text"].hidden


@pytest.fixture
def cards_are_cpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Bundles for real cards run here: their backend's place is taken by the CPU's."""
    monkeypatch.setitem(BACKENDS, "magicmind", BACKENDS["onnxruntime"])
    get_backend.cache_clear()
    yield
    get_backend.cache_clear()


def test_openvino_runs_the_same_file_which_can_be_looked_into_unless_it_rounds_to_bfloat16(
    tiny: ExportedBundle, compile_for: Compile, tmp_path: Path
) -> None:
    bundle = compile_for(tiny, "qint8_mixed_float32")

    def placed(precision: Precision) -> CompiledBundle:
        changes = {"target": "openvino", "backend": "openvino", "precision": precision}
        return support.with_compilation(bundle, tmp_path / precision.value, **changes)

    assert hidden_reason(placed(Precision.QINT8_MIXED_FLOAT32), "image") is None
    assert hidden_reason(placed(Precision.FORCE_FLOAT32), "image") is None
    reason = hidden_reason(placed(Precision.FORCE_BFLOAT16), "image")
    assert reason is not None
    assert "computed in bfloat16 by 'openvino' alone" in reason


@pytest.mark.usefixtures("cards_are_cpus")
def test_real_card_has_predictions_and_no_nodes(tiny: ExportedBundle, compile_for: Compile, tmp_path: Path) -> None:
    bundle = compile_for(tiny, "qint8_mixed_float32")
    records = bundle.compilation.quantised
    quantised = {name: msgspec.structs.replace(record, tensors={}) for name, record in records.items()}
    changes = {"target": "mlu", "backend": "magicmind", "quantised": quantised}
    card = support.with_compilation(bundle, tmp_path / "card", **changes)
    report = compare_bundles(card, tiny, Pictures())
    for tower in report.towers.values():
        assert tower.nodes == ()
        assert tower.first_divergence is None
        assert tower.hidden is not None
        assert "a model file of 'magicmind', whose intermediate tensors cannot be read" in tower.hidden
    assert report.embeddings["image"].mean_cosine == pytest.approx(1, abs=0.05)
    assert report.predictions.images == 9
    with pytest.raises(OptionError, match=r"has no record of the quantisation of its tensors.*--target cpu"):
        compare_bundles(card, tiny, Pictures(), CompareOptions(ablate=True))


def test_static_batches_of_two_sizes_share_no_nodes(tiny: ExportedBundle, tmp_path: Path) -> None:
    bundles = [
        compile_bundle(
            tiny,
            tmp_path / str(size),
            CompileOptions(target="cpu", precision=Precision.FORCE_FLOAT16, batch_size=size, dynamic_shape=False),
        )
        for size in (2, 4)
    ]
    report = compare_bundles(*bundles, Pictures())
    assert report.towers["image"].hidden is not None
    assert "batches of exactly 2 and 4 rows" in report.towers["image"].hidden
    assert report.predictions.agreement == 1.0
    report = compare_bundles(bundles[1], tiny, Pictures())
    assert report.towers["image"].rows == 12, "the last batch is filled up"
    assert nodes_of(report)["raw"].snr_db == pytest.approx(66, abs=6)


@pytest.mark.torch
def test_sound_bundle_diverges_nowhere(vit: ExportedBundle, compile_for: Compile) -> None:
    bundle = compile_for(vit, "force_float16")
    report = compare_bundles(bundle, vit, Pictures(side=32), CompareOptions(samples=4, threshold=0.9999))
    assert not report.first_divergences


@pytest.mark.torch
@pytest.mark.parametrize(("part", "place"), [("resblocks.1.mlp.c_fc", "block 1 mlp_in"), ("conv1", "patch_embedding")])
def test_planted_fault_is_named_by_block_and_role(
    vit: ExportedBundle, compile_for: Compile, tmp_path: Path, part: str, place: str
) -> None:
    bundle = compile_for(vit, "force_float16")
    names = [weight.name for weight in onnx.load(bundle.tower_path("image")).graph.initializer]
    weight = next(name for name in names if (part in name and "weight" in name) or f"{part}/MatMul:input1" in name)
    broken = change_weight(bundle, tmp_path / "broken", "image", weight, lambda values: values * values.dtype.type(-1))
    report = compare_bundles(broken, vit, Pictures(side=32), CompareOptions(samples=4, threshold=0.9999))
    assert list(report.first_divergences) == ["image"]
    found = report.first_divergences["image"]
    assert (found.place, found.kind) == (place, "operator")
    assert found.cosine == pytest.approx(-1.0, abs=0.6)
    before = report.towers["image"].nodes[: report.towers["image"].nodes.index(found)]
    assert all(node.cosine is not None and node.cosine > 0.9999 for node in before)


@pytest.mark.torch
def test_emulated_card_and_cpu_have_the_same_nodes(
    vit: ExportedBundle, int8: CompiledBundle, compile_for: Compile
) -> None:
    emulated = compile_for(vit, "qint8_mixed_float16", target="emulated-mlu")
    dataset = Pictures(side=32)
    options = CompareOptions(samples=6)
    reports = [compare_bundles(bundle, vit, dataset, options) for bundle in (emulated, int8)]
    assert reports[0].towers == reports[1].towers
    assert reports[0].embeddings == reports[1].embeddings
    assert (reports[0].emulated, reports[1].emulated) == (True, False)
    assert reports[0].measured.provenance.emulated
    both = compare_bundles(emulated, int8, dataset, options)
    for tower in ("image", "text"):
        assert all(node.is_exact and node.cosine == 1.0 for node in both.towers[tower].nodes)  # type: ignore[index]
        assert len(both.towers[tower].nodes) == len(reports[0].towers[tower].nodes)  # type: ignore[index]


@pytest.mark.torch
@pytest.mark.slow
def test_smoothed_bundle_lines_up_with_its_source(vit: ExportedBundle, smoothed: CompiledBundle) -> None:
    """On the calibration images nothing is cut off, and in 16 bits hardly any noise is left: a wrong factor would show."""
    assert len(smoothed.compilation.quantised["image"].smoothing) == 8, (
        "7 free ones, and the hidden layer whose operator is quantised"
    )
    dataset, options = Pictures(CALIBRATED, side=32, first=0), CompareOptions(allow_overlap=True)
    report = compare_bundles(smoothed, vit, dataset, options)
    backwards = compare_bundles(vit, smoothed, dataset, options)
    assert report.calibration_overlap == CALIBRATED
    for tower in report.towers.values():
        assert (tower.smoothed_apart, tower.absent) == (0, 0)
        assert len(tower.nodes) > 30
        assert min(node.cosine or 0.0 for node in tower.nodes) > 0.99999
    assert [node.cosine for node in backwards.towers["image"].nodes] == pytest.approx(
        [node.cosine for node in report.towers["image"].nodes]
    )


@pytest.mark.torch
def test_scaled_pixels_line_up_with_the_source(vit: ExportedBundle, compile_for: Compile) -> None:
    scaled = compile_for(vit, "qint8_mixed_float32", activation="asymmetric", granularity="per_axis")
    dataset = Pictures(CALIBRATED, side=32, first=0)
    report = compare_bundles(scaled, vit, dataset, CompareOptions(allow_overlap=True, tower="image"))
    assert report.towers["image"].absent == 0
    given = nodes_of(report)["pixel_values/scaled"]
    assert (given.cosine or 0.0) > 0.99999


@pytest.mark.torch
def test_what_was_smoothed_otherwise_is_left_out_and_nothing_else(
    vit: ExportedBundle, smoothed: CompiledBundle, compile_for: Compile
) -> None:
    plain = compile_for(vit, "qint16_mixed_float32")
    dataset = Pictures(CALIBRATED, side=32, first=0)
    report = compare_bundles(smoothed, plain, dataset, CompareOptions(allow_overlap=True))
    for name, tower in report.towers.items():
        assert tower.smoothed_apart > 8
        assert min(node.cosine or 0.0 for node in tower.nodes) > 0.99999
        # All that was left out does differ: in the float graphs, with the factors of the one and without.
        source = tensor_graph(vit, name)
        alike = source.smoothed_like(tensor_graph(smoothed, name))
        operators = find_operators(source.structure)
        apart = smoothed_tensors(source.structure, operators, alike, source)
        left_out = [each.tensor for each in choose_watched(source.structure, operators) if each.tensor in apart]
        assert len(left_out) == tower.smoothed_apart
        rows = np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)
        if name == "text":
            rows = np.random.default_rng(0).integers(1, 200, (2, vit.manifest.tokenizer.context_length))
        pairs = zip(alike.watch(left_out).run(rows), source.watch(left_out).run(rows), strict=True)
        assert min(np.abs(ours - theirs).max() / np.abs(theirs).max() for ours, theirs in pairs) > 0.02


@pytest.mark.torch
@pytest.mark.parametrize(
    ("kind", "precision", "target", "granularity"),
    [
        ("vit", "force_float16", "cpu", None),
        ("vit", "qint8_mixed_float16", "emulated-mlu", "per_tensor"),
        ("vit", "qint8_mixed_float32", "cpu", "per_axis"),
        ("quick-gelu", "qint8_mixed_float32", "cpu", "per_tensor"),
        ("siglip", "qint8_mixed_float32", "cpu", "per_tensor"),
        ("resnet", "qint8_mixed_float32", "cpu", "per_axis"),
    ],
)
def test_structure_of_rewritten_graphs_is_that_of_the_lowered_ones(
    tiny_bundle: Callable[..., ExportedBundle],
    compile_for: Compile,
    kind: str,
    precision: str,
    target: str,
    granularity: str | None,
) -> None:
    exported = tiny_bundle(kind)
    how = {} if granularity is None else {"granularity": granularity}
    bundle = compile_for(exported, precision, target, **how)
    for tower in exported.manifest.towers:
        lowered = lowered_model(exported.tower_path(tower), exported.tower(tower))
        rewritten = tensor_graph(bundle, tower)
        assert rewritten.lowered is None
        operators = find_operators(lowered)
        assert find_operators(restore_structure(rewritten.model, bundle.tower(tower))) == operators
        assert choose_watched(rewritten.structure, operators) == choose_watched(lowered, operators)


@pytest.mark.torch
def test_rebuilt_graph_is_the_bundles_own(
    vit: ExportedBundle, smoothed: CompiledBundle, int8: CompiledBundle, compile_for: Compile
) -> None:
    eqnm = compile_for(vit, "qint8_mixed_float32", algorithm="eqnm")
    scaled = compile_for(vit, "qint8_mixed_float32", activation="asymmetric")
    assert scaled.compilation.quantised["image"].pixel_scaling is not None
    for bundle in (smoothed, int8, eqnm, scaled):
        for tower in bundle.manifest.towers:
            assert_same_graph(Rebuilder(bundle, vit, tower).rebuild(()), onnx.load(bundle.tower_path(tower)))


def assert_same_graph(found: onnx.ModelProto, expected: onnx.ModelProto, *, scalars: bool = True) -> None:
    assert list(found.graph.node) == list(expected.graph.node)
    weights = {weight.name: numpy_helper.to_array(weight) for weight in expected.graph.initializer}
    assert weights.keys() == {weight.name for weight in found.graph.initializer}
    for weight in found.graph.initializer:
        if scalars or list(weight.dims) != [1]:
            np.testing.assert_array_equal(numpy_helper.to_array(weight), weights[weight.name])


@pytest.mark.torch
@pytest.mark.parametrize(
    ("granularity", "precision"),
    [
        ("per_axis", "qint8_mixed_float32"),
        pytest.param("per_axis", "qint8_mixed_float16", marks=pytest.mark.slow),
        pytest.param("per_tensor", "qint8_mixed_float32", marks=pytest.mark.slow),
        ("per_tensor", "qint8_mixed_float16"),
    ],
)
def test_rebuilt_graph_has_the_chosen_integers_but_in_float_the_weights_of_the_source(
    vit: ExportedBundle, compile_for: Compile, precision: str, granularity: str
) -> None:
    chosen = {"weight_rounding": "gptq", "granularity": granularity}
    bundle = compile_for(vit, precision, **chosen)
    nearest = compile_for(vit, precision, granularity=granularity)
    kept = compile_for(vit, precision, keep_float=("mlp_out",), **chosen)
    for tower in bundle.manifest.towers:
        record = bundle.compilation.quantised[tower]
        assert len(record.rounded) > 6
        graphs = {each.path: onnx.load(each.tower_path(tower)) for each in (bundle, nearest, kept)}
        with pytest.raises(AssertionError):
            assert_same_graph(graphs[bundle.path], graphs[nearest.path])
        rebuilder = Rebuilder(bundle, vit, tower)
        assert_same_graph(rebuilder.rebuild(()), graphs[bundle.path])
        # Only the ranges of activations, which are scalars, differ: each bundle calibrated its own weights.
        assert_same_graph(rebuilder.rebuild(rebuilder.nodes("mlp_out")), graphs[kept.path], scalars=False)


@pytest.mark.torch
@pytest.mark.slow
def test_role_in_float_is_what_compiling_with_it_kept_in_float_gives(
    vit: ExportedBundle, int8: CompiledBundle, compile_for: Compile
) -> None:
    kept = compile_for(vit, "qint8_mixed_float16", keep_float=("mlp_out",))
    dataset = Pictures(side=32, size=12)
    report = compare_bundles(int8, vit, dataset, CompareOptions(tower="image", ablate=True))
    reference = compare_bundles(kept, vit, dataset, CompareOptions(tower="image"))
    assert report.ablation is not None
    costs = {cost.role: cost for cost in report.ablation.roles}
    operators = find_operators(tensor_graph(vit, "image").structure)
    assert set(costs) == {operator.role for operator in operators}
    found = costs["mlp_out"]
    assert found.mean_cosine == pytest.approx(reference.embeddings["image"].mean_cosine, abs=1e-9)
    own = report.embeddings["image"].mean_cosine
    assert own is not None
    assert report.ablation.mean_cosine == {"image": own}
    assert found.recovered == pytest.approx((found.mean_cosine or 0) - own)
    assert found.operators == 2
    macs = [operator.macs for operator in operators if operator.role == "mlp_out"]
    assert found.macs_share == sum(macs) / sum(operator.macs for operator in operators)
    assert sum(cost.macs_share for cost in costs.values()) == pytest.approx(1)
    assert report.ablation.top1 == report.predictions.top1
    assert report.ablation.float_top1 == report.predictions.reference_top1
    assert report.ablation.agreement == report.predictions.agreement
    assert found.top1_gain == pytest.approx(found.top1 - report.predictions.top1)
    assert found.top1 == reference.predictions.top1
    assert 0 < found.mcnemar_p <= 1
    recovered = [cost.recovered or 0.0 for cost in report.ablation.roles]
    assert recovered == sorted(recovered, reverse=True)


@pytest.mark.torch
def test_ablation_of_the_text_tower_takes_its_own_source(
    vit: ExportedBundle, smoothed: CompiledBundle, int8: CompiledBundle
) -> None:
    """B is another compiled bundle here, so the float source is named apart; mlp_out:1 is in float already."""
    options = CompareOptions(tower="text", ablate=True, source=vit.path, samples=4)
    report = compare_bundles(smoothed, int8, Pictures(side=32), options)
    assert report.ablation is not None
    assert {cost.tower for cost in report.ablation.roles} == {"text"}
    costs = {cost.role: cost for cost in report.ablation.roles}
    assert costs["mlp_out"].operators == 1
    assert (costs["mlp_out"].mean_cosine or 0) > 0.999999
    assert report.ablation.images == 4
