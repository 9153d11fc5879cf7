"""A user's program that names every public name; mypy and pyright check its types, and it is never run."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

import numpy as np
import numpy.typing as npt

import clipmlu

Floats = npt.NDArray[np.float32]

# A pipeline: a model, or with labels a classifier.
model = clipmlu.pipeline("demo", target="cpu", precision="force_float32")
assert_type(model, clipmlu.Model)
classifier = clipmlu.pipeline("demo", labels=["cat", "dog"], templates="a {}", quiet=True, calib=Path("photos"))
assert_type(classifier, clipmlu.ZeroShotClassifier)
with clipmlu.load(Path("b32-cpu"), device=0) as loaded:
    assert_type(loaded, clipmlu.Model)
encoder: clipmlu.Encoder = loaded

# Results.
one = classifier("photo.jpg")
assert_type(one, clipmlu.Prediction)
assert_type(classifier.predict(b"\xff"), clipmlu.Prediction)
many = classifier(["a.jpg", Path("b.jpg")], top_k=1)
assert_type(many, clipmlu.Predictions)
assert_type(many[0], clipmlu.Prediction)
assert_type(one.class_name, str)
assert_type(one.score, float)
assert_type(model.embed_texts(["a cat"]), Floats)
assert_type(classifier.class_embeddings, Floats)
assert_type(classifier.class_names, tuple[str, ...])
assert_type(model.batch_size, int)

# A function for each command.
exported = clipmlu.export_model("ViT-B-32::openai", "b32", layout="towers", offline=True)
assert_type(exported, clipmlu.ExportedBundle)
assert_type(clipmlu.export_model("demo", "d", clipmlu.ExportOptions(seed=1)), clipmlu.ExportedBundle)
imported = clipmlu.import_onnx(
    ["image.onnx", Path("text.onnx")], "own", tokenizer="tok", image_size=224, mean=(0.5, 0.5, 0.5)
)
assert_type(imported, clipmlu.ExportedBundle)
assert_type(clipmlu.import_onnx("onnx/", "own", clipmlu.ImportOptions(logit_scale=100.0)), clipmlu.ExportedBundle)
compiled = clipmlu.compile_bundle(
    exported, Path("b32-cpu"), precision=clipmlu.Precision.FORCE_FLOAT16, smooth_alpha=0.5, keep_float=["qkv"]
)
assert_type(compiled, clipmlu.CompiledBundle)
assert_type(clipmlu.compile_bundle("b32", "o", clipmlu.CompileOptions(target="cpu")), clipmlu.CompiledBundle)
lowered = clipmlu.lower(exported, "b32-onnx", layout="joint", labels=["cat", "dog"])
assert_type(lowered, clipmlu.LoweredGraphs)
assert_type(lowered.graph_path("joint"), Path)
lower_options = clipmlu.LowerOptions(layout="joint")
calibration = clipmlu.calibrate_bundle(exported, "set", calib="cifar100", calib_samples=200)
assert_type(calibration, clipmlu.CalibrationSet)
calibration_options = clipmlu.CalibrationOptions(dataset="demo")
assert_type(clipmlu.calibrate_bundle("b32", "set", calibration_options), clipmlu.CalibrationSet)
best, search = clipmlu.search_bundle("b32", "b32-int8", max_drop=0.01, calib="cifar100")
assert_type(best, clipmlu.CompiledBundle)
assert_type(search, clipmlu.SearchReport)
search_options = clipmlu.SearchOptions(max_drop=0.01)
accuracy = clipmlu.evaluate(compiled, "demo", samples=200, threads=1)
assert_type(accuracy, clipmlu.AccuracyReport)
assert_type(accuracy.top1, float)
assert_type(accuracy.top5, float | None)
assert_type(clipmlu.evaluate(model, clipmlu.open_dataset("demo"), clipmlu.EvalOptions()), clipmlu.AccuracyReport)
retrieval = clipmlu.evaluate_retrieval(compiled, ["captions.csv"], samples=200, reference="b32-cpu")
assert_type(retrieval, clipmlu.RetrievalReport)
assert_type(retrieval.text_to_image.mean_rank, float)
assert_type(clipmlu.evaluate_retrieval(model, Path("c.tar"), clipmlu.RetrievalOptions()), clipmlu.RetrievalReport)
comparison = clipmlu.compare_bundles(compiled, exported, samples=4, tower="image")
assert_type(comparison, clipmlu.ComparisonReport)
compare_options = clipmlu.CompareOptions(samples=4)
speed = clipmlu.measure_speed("b32-cpu", scenario="offline", stages=False)
assert_type(speed, clipmlu.SpeedReport)
assert_type(speed.open_s, float)
speed_options = clipmlu.SpeedOptions(stages=False)
written = clipmlu.write_report(
    ["report.json", "sweep"], "report.html", title="A model", thumbnails=False, overwrite=True
)
assert_type(written, clipmlu.WrittenReport)
sweep = clipmlu.run_sweep("b32", "sweep", precision=["force_float32"], batch_size=[1, 8], dataset="demo")
assert_type(sweep, clipmlu.SweepReport)
sweep_options = clipmlu.SweepOptions(
    compile=clipmlu.CompileOptions(), precisions=(clipmlu.Precision.FORCE_FLOAT32,), batch_sizes=(1,)
)
job_report = clipmlu.classify_images("b32-cpu", ["photos"], "classes", ["cat", "dog"], top_k=1)
assert_type(job_report, clipmlu.JobReport)
assert_type(clipmlu.embed_images("b32-cpu", "photos", "embeddings", shard_format="npy"), clipmlu.JobReport)
assert_type(clipmlu.embed_to_file("b32-cpu", "rows.npy", "photos"), clipmlu.EmbeddingReport)
job_options = clipmlu.JobOptions(classification=clipmlu.ClassificationOptions(class_names=["cat", "dog"]))
assert_type(clipmlu.run_job("b32-cpu", ["photos"], "job", job_options), clipmlu.JobReport)
assert_type(clipmlu.open_job("job"), clipmlu.Job)
indexed = clipmlu.build_index(["embeddings", Path("more.npy")], "all.index", dtype="float16")
assert_type(indexed, clipmlu.IndexReport)
with_vectors = clipmlu.open_index("all.index")
assert_type(with_vectors, clipmlu.VectorIndex)
assert_type(with_vectors.search(model.embed_texts(["a dog"]), k=3, include="*.jpg"), list[tuple[clipmlu.Hit, ...]])
found = clipmlu.search_index(with_vectors, ["a dog", Path("a.jpg")], weights=[1, 0.5], bundle=model)
assert_type(found, clipmlu.SearchResults)
assert_type(found.queries[0].hits[0].score, float)
assert_type(clipmlu.open_bundle("b32"), clipmlu.ExportedBundle | clipmlu.CompiledBundle)
assert_type(clipmlu.list_models("vit"), dict[str, tuple[str, ...]])
assert_type([each.location for each in clipmlu.list_datasets()], list[str])
assert_type([each.found for each in clipmlu.check_machine()], list[str])
assert_type(clipmlu.run_emulated(["python", "gen_model.py"], compat=True, devices=2), int)
served: object = clipmlu.create_app({"b32": "b32-cpu"}, labels=["cat", "dog"])
clipmlu.run_server(["b32-cpu"], port=0, on_listen=print)
assert_type(clipmlu.path_from_name("a.jpg"), Path)
assert_type(clipmlu.__version__, str)
dataset: clipmlu.Dataset = clipmlu.open_dataset("demo")
assert_type(dataset.class_names, tuple[str, ...])

try:
    clipmlu.load("nothing")
except clipmlu.ClipmluError as error:
    assert_type(error.exit_code, int)
