"""What a job computes, apart from its input: resolved options, columns, and the classifier."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from clipmlu.backends.provenance import Provenance, provenance_of
from clipmlu.bundle.space import space_of
from clipmlu.classify.classifier import ZeroShotClassifier
from clipmlu.classify.open_set import resolve_open_set
from clipmlu.classify.scoring import PREFER_TOWERS, check_joint_prompts
from clipmlu.data.class_prompts import resolve_labels, resolve_prompts
from clipmlu.errors import OptionError
from clipmlu.file_names import name_from_path
from clipmlu.host import require
from clipmlu.jobs.manifest import JobOrigin, JobSettings
from clipmlu.jobs.options import ClassificationOptions, JobOptions
from clipmlu.jobs.rows import RowSchema
from clipmlu.model import Model, load_for_images


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobDefinition:
    """A job without its input.

    Attributes:
        settings: options that decide the results.
        schema: columns of the rows.
        provenance: bundle and software that compute the results.
        origin: where the job is begun.
        layout: layout of the bundle.
        classifier: content of the given classifier file, or None.
    """

    settings: JobSettings
    schema: RowSchema
    provenance: Provenance
    origin: JobOrigin
    layout: str
    classifier: bytes | None = None

    @property
    def has_classifier_file(self) -> bool:
        """Whether the job's folder holds class embeddings."""
        return self.schema.class_names is not None and self.layout == "towers"

    def make_classifier(self, bundle: Path, options: JobOptions) -> bytes | None:
        """Return the content of the job's classifier file, computed by the text tower if none was given; None without one."""
        if not self.has_classifier_file or self.classifier is not None:
            return self.classifier
        with load_for_images(bundle, options, image_only=False) as model:
            return build_job_classifier(model, self.settings, self.schema).encode()


def build_job_classifier(model: Model, settings: JobSettings, schema: RowSchema) -> ZeroShotClassifier:
    """Return the classifier of a job that classifies, computed from its class names."""
    assert settings.templates is not None
    rules = settings.open_set
    names, own = settings.class_names(schema), settings.prompts
    return model.classifier(
        names if own is None else {name: own[name] for name in names},
        settings.templates or None,
        none_label=None if rules is None else rules.none_label,
        background=None if rules is None else rules.background,
        reject_below=None if rules is None else rules.reject_below,
    )


def define_job(bundle: Path, options: JobOptions, on_note: Callable[[str], object]) -> JobDefinition:
    """Resolve the options of a job for a bundle.

    Raises:
        OptionError: an option does not fit the bundle.
        InputError: labels, templates or the classifier file cannot be read.
        BundleError: the bundle has no image tower, which an embedding needs.
        MissingDependencyError: the shard format needs an optional package.
    """
    pyarrow = None
    if options.shard_format == "parquet":
        pyarrow = require(
            "pyarrow", "bulk", "The shard format 'parquet' (--shard-format npy needs no package)"
        ).__version__
    with load_for_images(bundle, options, image_only=True) as model:
        classes = None if options.classification is None else _Classes(model, options.classification, on_note)
        return JobDefinition(
            settings=JobSettings(
                kind="embed" if classes is None else "classify",
                shard_size=options.shard_size,
                shard_format=options.shard_format,
                batch_size=model.check_batch_size(options.batch_size),
                fast_preprocess=options.fast_preprocess,
                max_pixels=options.max_pixels,
                urls=options.urls,
                templates=None if classes is None else classes.templates,
                class_embeddings=None if classes is None or classes.content is None else _digest(classes.content),
                pyarrow=pyarrow,
                open_set=None if classes is None else classes.open_set,
                prompts=None if classes is None else classes.prompts or None,
            ),
            schema=_schema(model, options, classes),
            provenance=provenance_of(model.bundle, ()),
            origin=JobOrigin(
                bundle=name_from_path(os.path.abspath(bundle)),
                folder=name_from_path(os.getcwd()),
                space=space_of(model.runnable.facts),
            ),
            layout=model.runnable.facts.layout,
            classifier=None if classes is None else classes.content,
        )


class _Classes:
    """The classes of a job.

    Attributes:
        names: one per class.
        templates: templates of the prompts.
        prompts: own prompts of each class; empty if templates make them.
        content: content of the given classifier file, or None.
        open_set: rules for images of none of the classes, or None.
    """

    def __init__(self, model: Model, options: ClassificationOptions, on_note: Callable[[str], object]) -> None:
        given: ZeroShotClassifier | None = None
        if options.classifier is not None:
            given = model.load_classifier(options.classifier).rejecting(
                none_label=options.none_label, reject_below=options.reject_below
            )
            self.names, self.templates, self.open_set = given.class_names, given.templates, given.open_set
            self.prompts = given.prompts
        else:
            assert options.class_names is not None
            labels = resolve_labels(options.class_names, on_note=on_note)
            self.names, self.prompts = tuple(labels), labels if isinstance(labels, dict) else {}
            self.open_set = resolve_open_set(
                self.names,
                none_label=options.none_label,
                background=options.background,
                reject_below=options.reject_below,
                logit_bias=model.runnable.facts.logit_bias,
            )
            background = self.open_set is not None and bool(self.open_set.background)
            self.templates = resolve_prompts(labels, options.templates, background=background)
        self.content = None if given is None else given.encode()
        if model.runnable.facts.layout == "joint":
            names = self.names if self.open_set is None else (*self.names, *self.open_set.background)
            check_joint_prompts(names, self.templates, self.prompts, f"bundle '{model.runnable.path}'")
            if options.embeddings:
                raise OptionError(
                    f"embeddings cannot be stored: bundle '{model.runnable.path}' has the layout 'joint', whose graph gives "
                    f"logits only; leave --embeddings out, or {PREFER_TOWERS}"
                )


def _schema(model: Model, options: JobOptions, classes: _Classes | None) -> RowSchema:
    classification = options.classification
    if classes is None or classification is None:
        model.runnable.tower("image")
        return RowSchema(embedding_dim=model.embedding_dim, embedding_dtype=options.dtype)
    rules = classes.open_set
    return RowSchema(
        embedding_dim=model.embedding_dim if classification.embeddings else None,
        embedding_dtype=options.dtype if classification.embeddings else "float32",
        class_names=classes.names if rules is None else (*classes.names, rules.none_label),
        top_k=min(classification.top_k, len(classes.names) + bool(rules is not None and rules.background)),
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
