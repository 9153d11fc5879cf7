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
    from clipmlu.api.building import calibrate_bundle, compile_bundle, export_model, search_bundle
    from clipmlu.api.pipeline import pipeline
    from clipmlu.bundle.directory import CompiledBundle, ExportedBundle, open_bundle
    from clipmlu.classify.classifier import ZeroShotClassifier
    from clipmlu.classify.results import Prediction, Predictions
    from clipmlu.compile.plan import CompileOptions
    from clipmlu.data.datasets import open_dataset
    from clipmlu.embed.encoder import Encoder
    from clipmlu.errors import ClipmluError
    from clipmlu.export.options import ExportOptions
    from clipmlu.file_names import path_from_name
    from clipmlu.jobs.job import Job, open_job
    from clipmlu.jobs.options import ClassificationOptions, JobOptions
    from clipmlu.jobs.run import JobReport, run_job
    from clipmlu.measure.accuracy.evaluate import EvalOptions, evaluate
    from clipmlu.measure.accuracy.report import AccuracyReport
    from clipmlu.measure.compare.compare import CompareOptions, compare_bundles
    from clipmlu.model import Model, load
    from clipmlu.specs import Precision
    from clipmlu.tune.trial import SearchOptions

_HOMES = {
    "AccuracyReport": "clipmlu.measure.accuracy.report",
    "ClassificationOptions": "clipmlu.jobs.options",
    "ClipmluError": "clipmlu.errors",
    "CompareOptions": "clipmlu.measure.compare.compare",
    "CompileOptions": "clipmlu.compile.plan",
    "CompiledBundle": "clipmlu.bundle.directory",
    "Encoder": "clipmlu.embed.encoder",
    "EvalOptions": "clipmlu.measure.accuracy.evaluate",
    "ExportOptions": "clipmlu.export.options",
    "ExportedBundle": "clipmlu.bundle.directory",
    "Job": "clipmlu.jobs.job",
    "JobOptions": "clipmlu.jobs.options",
    "JobReport": "clipmlu.jobs.run",
    "Model": "clipmlu.model",
    "Precision": "clipmlu.specs",
    "Prediction": "clipmlu.classify.results",
    "Predictions": "clipmlu.classify.results",
    "SearchOptions": "clipmlu.tune.trial",
    "ZeroShotClassifier": "clipmlu.classify.classifier",
    "calibrate_bundle": "clipmlu.api.building",
    "compare_bundles": "clipmlu.measure.compare.compare",
    "compile_bundle": "clipmlu.api.building",
    "evaluate": "clipmlu.measure.accuracy.evaluate",
    "export_model": "clipmlu.api.building",
    "load": "clipmlu.model",
    "open_bundle": "clipmlu.bundle.directory",
    "open_dataset": "clipmlu.data.datasets",
    "open_job": "clipmlu.jobs.job",
    "path_from_name": "clipmlu.file_names",
    "pipeline": "clipmlu.api.pipeline",
    "run_job": "clipmlu.jobs.run",
    "search_bundle": "clipmlu.api.building",
}

__all__ = [
    "AccuracyReport",
    "ClassificationOptions",
    "ClipmluError",
    "CompareOptions",
    "CompileOptions",
    "CompiledBundle",
    "Encoder",
    "EvalOptions",
    "ExportOptions",
    "ExportedBundle",
    "Job",
    "JobOptions",
    "JobReport",
    "Model",
    "Precision",
    "Prediction",
    "Predictions",
    "SearchOptions",
    "ZeroShotClassifier",
    "__version__",
    "calibrate_bundle",
    "compare_bundles",
    "compile_bundle",
    "evaluate",
    "export_model",
    "load",
    "open_bundle",
    "open_dataset",
    "open_job",
    "path_from_name",
    "pipeline",
    "run_job",
    "search_bundle",
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
