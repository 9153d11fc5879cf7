"""The commands on the emulated card: the vendor's flags, calibration, a text tower on the CPU, and what every output says."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

import support
from clipmlu.backends import SessionOptions
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle, open_compiled
from clipmlu.bundle.manifest import Compilation
from clipmlu.cli._vendor_spelling import rewrite_arguments
from clipmlu.magicmind.backend import emulated_worker
from clipmlu.model import Model
from clipmlu.specs import Precision

Run = Callable[..., tuple[int, str, str]]
LABELS = "cat,dog,red circle"


@pytest.fixture
def compile_tiny(run: Run, exported: ExportedBundle, tmp_path: Path) -> Callable[..., Path]:
    """Compiles the tiny model for the emulated card; gives the bundle's path."""

    def compile_one(*arguments: object, name: str = "card") -> Path:
        output = tmp_path / name
        code, out, err = run("compile", exported.path, "--target", "emulated-mlu", *arguments, "-o", output)
        assert code == 0, err
        assert "emulated-mlu (magicmind-emulated) (emulated)" in out
        return output

    return compile_one


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset of three classes with the same five pictures in each."""
    for label in ("cat", "dog", "owl"):
        (tmp_path / "folder" / label).mkdir(parents=True)
        for number in range(5):
            support.picture(number).save(tmp_path / "folder" / label / f"{number}.png")
    return tmp_path / "folder"


def facts_of(bundle: Path) -> Compilation:
    return open_compiled(bundle).compilation


def test_vendors_flags_are_taken_as_the_old_scripts_wrote_them(
    compile_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"debug_config": {"fusion_enable": false}}')
    vendor = ("--precision", "force_float32", "--batch_size", 32, "--dynamic_shape", "true", "--mlu_arch", "mtp_372")
    facts = facts_of(compile_tiny(*vendor, "--cluster_num", 2, 6, "--build_config", tmp_path / "config.json"))
    assert (facts.batch_size, facts.dynamic_shape, facts.precision) == (32, True, Precision.FORCE_FLOAT32)
    assert facts.mlu is not None
    assert facts.mlu.archs == {"mtp_372": (2, 6)}
    assert facts.mlu.build_config == {"debug_config": {"fusion_enable": False}}
    facts = facts_of(
        compile_tiny("--batch-size", 8, "--dynamic-shape", "false", "--mlu-arch", "mtp_592", "--no-check", name="b")
    )
    assert (facts.batch_size, facts.max_batch, facts.dynamic_shape) == (8, 8, False)
    assert facts.mlu is not None
    assert facts.mlu.archs == {"mtp_592": (2, 6, 8)}
    assert facts.parity == ()


def test_uint8_pixels_are_asked_for_and_told(
    compile_tiny: Callable[..., Path], run: Run, exported: ExportedBundle, folder: Path, tmp_path: Path
) -> None:
    int8 = ("--precision", "qint8_mixed_float32", "--calib", folder, "--calib-samples", 6, "--batch-size", 3)
    assert not facts_of(compile_tiny(*int8)).uint8_input
    again = ("--recipe", tmp_path / "card", "--batch_size", 3, "--uint8_input")
    assert facts_of(compile_tiny(*again, name="again")).uint8_input
    for name, told in (
        ("card", "float32 pixels, normalised before"),
        ("again", "uint8 pixels, normalised in the graph"),
    ):
        _, out, _ = run("info", "-v", tmp_path / name)
        assert re.search(rf"input +{told}", out)
    (tmp_path / "own.json").write_text('{"insert_bn_before_firstnode": {"0": {"mean": [0], "var": [1]}}}')
    own = ("--target", "emulated-mlu", "--uint8-input", "--build-config", tmp_path / "own.json")
    code, _, err = run("compile", exported.path, *own, "-o", tmp_path / "own")
    assert code == 2
    assert "the build configuration has 'insert_bn_before_firstnode', which --uint8-input writes" in err


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--dynamic_shape true", "--dynamic-shape"),
        ("--dynamic_shape false b32", "--static-shape b32"),
        ("--dynamic-shape b32", "--dynamic-shape b32"),
        ("--conv_scale_fold false", "--no-conv-scale-fold"),
        ("--cluster_num 2 6 8 b32", "--cluster-num 2 --cluster-num 6 --cluster-num 8 b32"),
        ("--mlu_arch mtp_372 mtp_592 -o x", "--mlu-arch mtp_372 --mlu-arch mtp_592 -o x"),
        ("--batch_size=8 under_score --calib-seed 3 4", "--batch-size=8 under_score --calib-seed 3 4"),
        ("-o --overwrite", "-o --overwrite"),
        ("--calibration_algo eqnm b32", "--quantisation vendor --calibration-algo eqnm b32"),
        ("--calibration_algo eqnm -- b32", "--quantisation vendor --calibration-algo eqnm -- b32"),
        (
            "--weight_quant_granularity=per_axis --quantisation recommended",
            "--weight-quant-granularity=per_axis --quantisation recommended",
        ),
    ],
)
def test_vendors_way_of_writing_becomes_ours(given: str, meant: str) -> None:
    assert " ".join(rewrite_arguments(given.split())) == meant


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expected a JSON object"),
        ('{"a": NaN}', "Expected a JSON object"),
        ('{"a": ' * 100_000, "nested too deeply"),
        ("[1]", "Expected a JSON object"),
        (None, "Cannot read the build configuration"),
        ('{"no_such_key": 1}', "MagicMind cannot build the image tower: parse_from_string.*no_such_key"),
    ],
)
def test_bad_build_configuration_is_told_and_writes_nothing(
    run: Run, exported: ExportedBundle, tmp_path: Path, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    arguments = ("--target", "emulated-mlu", "--build-config", tmp_path / "config.json", "-o", tmp_path / "card")
    code, _, err = run("compile", exported.path, *arguments)
    assert code == 1
    assert re.search(message, err), err
    assert err.count("\n") == 1
    assert not (tmp_path / "card").exists()


def test_users_configuration_wins(compile_tiny: Callable[..., Path], tmp_path: Path) -> None:
    """``graph_shape_mutable: false`` in the file makes a model of fixed shape, whatever the options say."""
    (tmp_path / "config.json").write_text('{"precision_config": {"precision_mode": "force_float16"}}')
    bundle = compile_tiny("--build-config", tmp_path / "config.json", "--min-cosine", 0.99)
    pixels = np.random.default_rng(0).standard_normal((2, 3, support.SIDE, support.SIDE), dtype=np.float32)
    with Model(open_compiled(bundle)) as encoder:
        difference = np.abs(encoder.encode_images(pixels) - support.embed_images(pixels)).max()
    assert 1e-6 < difference < 1e-3, "binary16, not the float32 that was the default"


def test_every_output_says_emulated(run: Run, compile_tiny: Callable[..., Path], photos: Path, tmp_path: Path) -> None:
    bundle = compile_tiny()
    arguments = ("classify", bundle, photos / "*.png", "--labels", LABELS, "--format")
    assert run(*arguments, "table")[1].startswith("(emulated)")
    assert json.loads(run(*arguments, "json")[1])["provenance"]["emulated"] is True
    assert all(json.loads(line)["emulated"] is True for line in run(*arguments, "jsonl")[1].splitlines())
    assert {row["emulated"] for row in csv.DictReader(io.StringIO(run(*arguments, "csv")[1]))} == {"true"}
    assert "(emulated)" in run("embed", bundle, photos / "*.png", "-o", tmp_path / "e.npy")[2]
    assert "emulated" in run("info", bundle)[1]
    assert json.loads(run("info", bundle, "--json")[1])["manifest"]["compilation"]["emulated"] is True


def test_classes_are_those_of_the_cpu(
    run: Run, compile_tiny: Callable[..., Path], exported: ExportedBundle, photos: Path, tmp_path: Path
) -> None:
    assert run("compile", exported.path, "--target", "cpu", "-o", tmp_path / "cpu")[0] == 0
    rows = []
    for bundle in (tmp_path / "cpu", compile_tiny()):
        out = run("classify", bundle, photos / "*.png", "--labels", LABELS, "--format", "csv")[1]
        rows.append([(row["class_name_1"], float(row["score_1"])) for row in csv.DictReader(io.StringIO(out))])
    assert [name for name, _ in rows[0]] == [name for name, _ in rows[1]]
    np.testing.assert_allclose([score for _, score in rows[0]], [score for _, score in rows[1]], atol=2e-6)


def test_eval_counts_every_image_and_says_emulated(run: Run, compile_tiny: Callable[..., Path], folder: Path) -> None:
    bundle = compile_tiny("--batch-size", 4, "--static-shape")
    code, out, _ = run("eval", bundle, "--dataset", f"imagefolder:{folder}", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["images"] == 15
    assert (report["provenance"]["emulated"], report["provenance"]["target"]) == (True, "emulated-mlu")
    text = run("eval", bundle, "--dataset", f"imagefolder:{folder}")[1]
    assert "images/s (emulated)" in text


def test_second_card_is_used_and_an_absent_one_is_told(
    run: Run, compile_tiny: Callable[..., Path], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = compile_tiny()
    arguments = ("classify", bundle, photos / "0.png", "--labels", LABELS, "--device")
    code, _, err = run(*arguments, 1)
    assert code == 1
    assert "there is no card 1; this process sees 1" in err
    assert err.count("\n") == 1
    monkeypatch.setenv("CLIPMLU_EMULATOR_DEVICES", "2")
    assert run(*arguments, 1)[0] == 0


def test_several_cards_give_the_files_and_counts_of_one(
    run: Run, compile_tiny: Callable[..., Path], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPMLU_EMULATOR_DEVICES", "3")
    bundle = compile_tiny("--text-target", "cpu", "--batch-size", 2)
    (folder / "cat" / "broken.png").write_bytes(b"no image")
    found = {}
    for name, chosen in {"one": ("--device", 2), "two": ("--devices", "2,0"), "all": ("--devices", "all")}.items():
        assert run("embed", bundle, folder, *chosen, "-o", tmp_path / f"{name}.npy")[0] == 1
        code, listed, _ = run("classify", bundle, folder, "--labels", LABELS, "--format", "csv", *chosen)
        assert code == 1
        code, out, _ = run("eval", bundle, "--dataset", f"imagefolder:{folder}", "--json", *chosen)
        report = json.loads(out)
        provenance = report.pop("provenance")
        assert provenance["emulated"]
        assert provenance["devices"] == {"one": [2], "two": [2, 0], "all": [0, 1, 2]}[name]
        report = {
            key: value
            for key, value in report.items()
            if not key.endswith("_s") and "second" not in key and key != "command"
        }
        found[name] = (
            (tmp_path / f"{name}.npy").read_bytes(),
            (tmp_path / f"{name}.ids.json").read_text(),
            listed,
            report,
        )
    assert found["one"] == found["two"] == found["all"]


@pytest.mark.parametrize(
    ("chosen", "code", "message"),
    [
        (
            ("--devices", "0,0"),
            2,
            "devices are '0,0', which names card 0 twice; expected different indices of 0 or more",
        ),
        (
            ("--devices", "-1"),
            2,
            "devices are '-1'; expected different indices of 0 or more, such as 0 or 0,1, or 'all'",
        ),
        (("--devices", "a"), 2, "devices are 'a'; expected different indices"),
        (("--devices", "0", "--device", "0"), 2, "device and devices exclude each other; give one of them"),
        (("--devices", "0,3"), 1, "(image tower, card 3): there is no card 3; this process sees 1."),
    ],
)
def test_wrong_devices_are_one_line(
    run: Run, compile_tiny: Callable[..., Path], photos: Path, chosen: tuple[str, ...], code: int, message: str
) -> None:
    found, out, err = run("classify", compile_tiny(), photos / "0.png", "--labels", LABELS, *chosen)
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert message in err


def test_devices_of_a_bundle_for_the_cpu_are_one_line(run: Run, compiled: CompiledBundle, photos: Path) -> None:
    code, _, err = run("classify", compiled.path, photos / "0.png", "--labels", LABELS, "--devices", "all")
    assert (code, err.count("\n")) == (2, 1)
    assert f"devices are all, but bundle '{compiled.path}' runs on the CPU; leave them out" in err


def test_text_tower_may_run_on_the_cpu(
    run: Run, compile_tiny: Callable[..., Path], exported: ExportedBundle, tmp_path: Path
) -> None:
    bundle = open_compiled(compile_tiny("--text-target", "cpu", "--precision", "force_float16"))
    facts = bundle.compilation
    assert (facts.placement("text").target, facts.placement("text").precision) == ("cpu", Precision.FORCE_FLOAT32)
    assert facts.placement("image").target == "emulated-mlu"
    assert re.search(r"text tower\s+cpu \(onnxruntime\), force_float32", run("info", "-v", bundle.path)[1])
    assert bundle.manifest.towers["text"].file == "text.onnx"
    ids = np.random.default_rng(2).integers(0, 256, (3, support.CONTEXT))
    with Model(bundle) as encoder:
        np.testing.assert_allclose(encoder.encode_tokens(ids), support.embed_tokens(ids), atol=1e-6)
    code, _, err = run(
        "compile", exported.path, "--target", "cpu", "--text-target", "emulated-mlu", "-o", tmp_path / "x"
    )
    assert code == 2
    assert "'emulated-mlu' is not one of cpu, openvino" in err


@pytest.mark.parametrize("precision", ["qint8_mixed_float16", "qint16_mixed_float32"])
@pytest.mark.parametrize("shape", ["--dynamic-shape", "--static-shape"])
def test_quantised_modes_calibrate_with_a_folder(
    run: Run, compile_tiny: Callable[..., Path], folder: Path, precision: str, shape: str
) -> None:
    calibration = ("--calib", f"imagefolder:{folder}", "--calib-samples", 10, "--calib-seed", 3)
    bundle = open_compiled(compile_tiny("--precision", precision, *calibration, "--batch-size", 4, shape))
    facts = bundle.compilation
    found = facts.calibration
    assert found is not None
    assert (found.dataset, found.split) == (f"imagefolder:{folder}", "all")
    assert (found.samples, found.seed) == (10, 3)
    shown = run("info", "-v", bundle.path)[1]
    assert re.search(r"calibration\s+10 images of\s+imagefolder", shown)
    assert "mtp_372 (2, 6, 8 clusters)" in shown
    assert "per_axis weights, symmetric activations, linear calibration" in shown
    record = msgspec.json.decode((bundle.path / "image.mm.json").read_bytes())
    assert record["calibration_batches"] == 3, "ten pictures in batches of four, the last one filled up"
    pixels = np.stack([support.preprocess(support.picture(number)) for number in range(5)])
    with Model(bundle) as encoder:
        embeddings = encoder.encode_images(pixels)
    difference = np.abs(embeddings - support.embed_images(pixels)).max()
    assert 1e-7 < difference < (0.05 if "qint8" in precision else 1e-3)


@pytest.mark.parametrize("target", ["cpu", "emulated-mlu"])
def test_images_that_were_calibrated_with_are_not_evaluated(
    run: Run, exported: ExportedBundle, folder: Path, tmp_path: Path, target: str
) -> None:
    """By content: the same pixels in another file, of another format, are the same image."""
    precision = ("--precision", "qint16_mixed_float32", "--calib", f"imagefolder:{folder}")
    code, _, err = run("compile", exported.path, "--target", target, *precision, "-o", tmp_path / "out")
    assert code == 0, err
    for number, name in ((50, "new.png"), (2, "copy.bmp")):
        (tmp_path / name[:-4] / "cat").mkdir(parents=True)
        support.picture(number).save(tmp_path / name[:-4] / "cat" / name)
    evaluate = ("eval", tmp_path / "out", "--templates", "a {}", "--dataset")
    assert run(*evaluate, f"imagefolder:{tmp_path / 'new'}")[0] == 0
    code, out, err = run(*evaluate, f"imagefolder:{tmp_path / 'copy'}")
    assert (code, out) == (3, "")
    assert re.search(r"Image '.*copy\.bmp' is one that bundle .* was calibrated with\. .*--allow-overlap", err)
    assert err.count("\n") == 1
    code, out, _ = run(*evaluate, f"imagefolder:{tmp_path / 'copy'}", "--allow-overlap", "--json")
    assert code == 0
    assert json.loads(out)["calibration_overlap"] == 1
    assert "also served for calibration" in run(*evaluate, f"imagefolder:{tmp_path / 'copy'}", "--allow-overlap")[1]
    (tmp_path / "out" / "calibration.json").unlink()
    assert "calibration.json" in run(*evaluate, f"imagefolder:{tmp_path / 'new'}")[2]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--target", "emulated-mlu", "--precision", "qint8_mixed_float16"), 2, "needs calibration data: give --calib"),
        (("--target", "emulated-mlu", "--calib", "demo"), 2, "force_float32 quantises nothing; leave --calib out"),
        (("--target", "cpu", "--mlu-arch", "mtp_372"), 2, "target 'cpu' has no MLU cards"),
        (("--target", "emulated-mlu", "--cluster-num", "six"), 2, "cluster number is 'six'; expected numbers"),
        (("--target", "emulated-mlu", "--cluster-num", "0"), 2, "cluster number is '0'; expected numbers such as 6"),
        (("--target", "emulated-mlu", "--mlu-arch", "mtp_270"), 2, "'mtp_270' is not one of"),
        (("--target", "emulated-mlu", "--calib-algo", "eqnm", "--activation-quant", "asymmetric"), 2, "symmetric act"),
        (
            ("--target", "emulated-mlu", "--mlu-arch", "mtp_592"),
            1,
            "cannot be checked here: .*create_i_engine.*--no-check",
        ),
        (("--target", "mlu"), 1, "'magicmind' is not importable here"),
        (
            ("--target", "emulated-mlu", "--min-cosine", "1", "--precision", "force_float16"),
            3,
            r"allowed: 0 \(smallest cosine .*, allowed 1\)",
        ),
    ],
)
def test_options_that_cannot_be_are_told_in_one_line(
    run: Run, exported: ExportedBundle, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    found, _, err = run("compile", exported.path, *arguments, "-o", tmp_path / "card")
    assert found == code, err
    assert re.search(message, err), err
    assert not (tmp_path / "card").exists()


def test_bundle_of_the_emulator_runs_on_no_card(
    run: Run, compile_tiny: Callable[..., Path], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever passes it off as one built for a card is told, even where a worker is named."""
    bundle = compile_tiny()
    compilation = json.loads((bundle / "manifest.json").read_text())["compilation"]
    support.edit_manifest(
        bundle, compilation={**compilation, "backend": "magicmind", "target": "mlu", "emulated": False}
    )
    monkeypatch.setenv("CLIPMLU_MLU_PYTHON", "python3")
    code, _, err = run("classify", bundle, photos / "0.png", "--labels", LABELS)
    assert code == 1
    assert "was built by the emulated SDK and runs on no card" in err


def test_faults_of_the_card_cost_no_image(compile_tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Crash, hang, lost device and NaN in one run of many batches, through the encoder: each row is there once."""
    bundle = open_compiled(compile_tiny("--batch-size", 4))
    faults = "enqueue:3:crash,enqueue:9:device_lost,enqueue:14:nan,sync:20:hang"
    worker = emulated_worker(faults=faults, fault_log=str(tmp_path / "fired"))
    pixels = np.random.default_rng(1).standard_normal((120, 3, support.SIDE, support.SIDE), dtype=np.float32)
    with Model(bundle, SessionOptions(worker=dataclasses.replace(worker, run_seconds=2.0))) as encoder:
        pending = [encoder.submit_images(pixels[start : start + 4]) for start in range(0, len(pixels), 4)]
        embeddings = np.concatenate([each.result() for each in pending])
    np.testing.assert_allclose(embeddings, support.embed_images(pixels), atol=1e-6)
    assert len((tmp_path / "fired").read_text().splitlines()) == 4
