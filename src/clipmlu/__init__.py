"""clipmlu: export, compile, classify and measure CLIP models, on Cambricon MLU cards and on any CPU.

    import clipmlu

    classifier = clipmlu.pipeline("ViT-B-32::openai", labels=["cat", "dog"])
    classifier("photo.jpg")

``pipeline`` exports and compiles a model, and keeps it. ``export_model``, ``compile_bundle`` and ``load`` are its steps; each
command of the command line has a function, with the same words as keywords.

Every public name is imported on first use, so that importing the package is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from clipmlu._version import __version__

if TYPE_CHECKING:
    from clipmlu.api.building import calibrate_bundle, compile_bundle, export_model, lower, search_bundle
    from clipmlu.api.bulk import EmbeddingReport, classify_images, embed_images, embed_to_file
    from clipmlu.api.importing import import_onnx
    from clipmlu.api.machine import check_machine, list_datasets, list_models, run_emulated
    from clipmlu.api.measuring import compare_bundles, evaluate, evaluate_retrieval, measure_speed, run_sweep
    from clipmlu.api.pipeline import pipeline
    from clipmlu.api.searching import build_index, search_index
    from clipmlu.api.serving import create_app, run_server
    from clipmlu.bundle.directory import CompiledBundle, ExportedBundle, open_bundle
    from clipmlu.classify.classifier import ZeroShotClassifier
    from clipmlu.classify.results import Prediction, Predictions
    from clipmlu.compile.lowering import LoweredGraphs, LowerOptions
    from clipmlu.compile.plan import CompileOptions
    from clipmlu.data.calibration import CalibrationOptions
    from clipmlu.data.calibration_set import CalibrationSet
    from clipmlu.data.datasets import Dataset, open_dataset
    from clipmlu.embed.encoder import Encoder
    from clipmlu.errors import ClipmluError
    from clipmlu.export.options import ExportOptions
    from clipmlu.file_names import path_from_name
    from clipmlu.importing.options import ImportOptions
    from clipmlu.index.opened import Hit, VectorIndex, open_index
    from clipmlu.index.report import IndexReport
    from clipmlu.index.search import SearchResults
    from clipmlu.jobs.job import Job, open_job
    from clipmlu.jobs.options import ClassificationOptions, JobOptions
    from clipmlu.jobs.run import JobReport, run_job
    from clipmlu.measure.accuracy.evaluate import EvalOptions
    from clipmlu.measure.accuracy.report import AccuracyReport
    from clipmlu.measure.compare.compare import CompareOptions, ComparisonReport
    from clipmlu.measure.retrieval.evaluate import RetrievalOptions
    from clipmlu.measure.retrieval.report import RetrievalReport
    from clipmlu.measure.speed.loads import SpeedOptions
    from clipmlu.measure.speed.speed import SpeedReport
    from clipmlu.model import Model, load
    from clipmlu.report.write import WrittenReport, write_report
    from clipmlu.specs import Precision
    from clipmlu.tune.sweep_options import SweepOptions
    from clipmlu.tune.sweep_report import SweepReport
    from clipmlu.tune.trial import SearchOptions, SearchReport

_HOMES = {
    "AccuracyReport": "clipmlu.measure.accuracy.report",
    "CalibrationOptions": "clipmlu.data.calibration",
    "CalibrationSet": "clipmlu.data.calibration_set",
    "ClassificationOptions": "clipmlu.jobs.options",
    "ClipmluError": "clipmlu.errors",
    "CompareOptions": "clipmlu.measure.compare.compare",
    "ComparisonReport": "clipmlu.measure.compare.compare",
    "CompileOptions": "clipmlu.compile.plan",
    "CompiledBundle": "clipmlu.bundle.directory",
    "Dataset": "clipmlu.data.datasets",
    "EmbeddingReport": "clipmlu.api.bulk",
    "Encoder": "clipmlu.embed.encoder",
    "EvalOptions": "clipmlu.measure.accuracy.evaluate",
    "ExportOptions": "clipmlu.export.options",
    "ExportedBundle": "clipmlu.bundle.directory",
    "Hit": "clipmlu.index.opened",
    "ImportOptions": "clipmlu.importing.options",
    "IndexReport": "clipmlu.index.report",
    "Job": "clipmlu.jobs.job",
    "JobOptions": "clipmlu.jobs.options",
    "JobReport": "clipmlu.jobs.run",
    "LowerOptions": "clipmlu.compile.lowering",
    "LoweredGraphs": "clipmlu.compile.lowering",
    "Model": "clipmlu.model",
    "Precision": "clipmlu.specs",
    "Prediction": "clipmlu.classify.results",
    "Predictions": "clipmlu.classify.results",
    "RetrievalOptions": "clipmlu.measure.retrieval.evaluate",
    "RetrievalReport": "clipmlu.measure.retrieval.report",
    "SearchOptions": "clipmlu.tune.trial",
    "SearchReport": "clipmlu.tune.trial",
    "SearchResults": "clipmlu.index.search",
    "SpeedOptions": "clipmlu.measure.speed.loads",
    "SpeedReport": "clipmlu.measure.speed.speed",
    "SweepOptions": "clipmlu.tune.sweep_options",
    "SweepReport": "clipmlu.tune.sweep_report",
    "VectorIndex": "clipmlu.index.opened",
    "WrittenReport": "clipmlu.report.write",
    "ZeroShotClassifier": "clipmlu.classify.classifier",
    "build_index": "clipmlu.api.searching",
    "calibrate_bundle": "clipmlu.api.building",
    "check_machine": "clipmlu.api.machine",
    "classify_images": "clipmlu.api.bulk",
    "compare_bundles": "clipmlu.api.measuring",
    "compile_bundle": "clipmlu.api.building",
    "create_app": "clipmlu.api.serving",
    "embed_images": "clipmlu.api.bulk",
    "embed_to_file": "clipmlu.api.bulk",
    "evaluate": "clipmlu.api.measuring",
    "evaluate_retrieval": "clipmlu.api.measuring",
    "export_model": "clipmlu.api.building",
    "import_onnx": "clipmlu.api.importing",
    "list_datasets": "clipmlu.api.machine",
    "list_models": "clipmlu.api.machine",
    "load": "clipmlu.model",
    "lower": "clipmlu.api.building",
    "measure_speed": "clipmlu.api.measuring",
    "open_bundle": "clipmlu.bundle.directory",
    "open_dataset": "clipmlu.data.datasets",
    "open_index": "clipmlu.index.opened",
    "open_job": "clipmlu.jobs.job",
    "path_from_name": "clipmlu.file_names",
    "pipeline": "clipmlu.api.pipeline",
    "run_emulated": "clipmlu.api.machine",
    "run_job": "clipmlu.jobs.run",
    "run_server": "clipmlu.api.serving",
    "run_sweep": "clipmlu.api.measuring",
    "search_bundle": "clipmlu.api.building",
    "search_index": "clipmlu.api.searching",
    "write_report": "clipmlu.report.write",
}

__all__ = [
    "AccuracyReport",
    "CalibrationOptions",
    "CalibrationSet",
    "ClassificationOptions",
    "ClipmluError",
    "CompareOptions",
    "ComparisonReport",
    "CompileOptions",
    "CompiledBundle",
    "Dataset",
    "EmbeddingReport",
    "Encoder",
    "EvalOptions",
    "ExportOptions",
    "ExportedBundle",
    "Hit",
    "ImportOptions",
    "IndexReport",
    "Job",
    "JobOptions",
    "JobReport",
    "LowerOptions",
    "LoweredGraphs",
    "Model",
    "Precision",
    "Prediction",
    "Predictions",
    "RetrievalOptions",
    "RetrievalReport",
    "SearchOptions",
    "SearchReport",
    "SearchResults",
    "SpeedOptions",
    "SpeedReport",
    "SweepOptions",
    "SweepReport",
    "VectorIndex",
    "WrittenReport",
    "ZeroShotClassifier",
    "__version__",
    "build_index",
    "calibrate_bundle",
    "check_machine",
    "classify_images",
    "compare_bundles",
    "compile_bundle",
    "create_app",
    "embed_images",
    "embed_to_file",
    "evaluate",
    "evaluate_retrieval",
    "export_model",
    "import_onnx",
    "list_datasets",
    "list_models",
    "load",
    "lower",
    "measure_speed",
    "open_bundle",
    "open_dataset",
    "open_index",
    "open_job",
    "path_from_name",
    "pipeline",
    "run_emulated",
    "run_job",
    "run_server",
    "run_sweep",
    "search_bundle",
    "search_index",
    "write_report",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'clipmlu' has no attribute '{name}'")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
