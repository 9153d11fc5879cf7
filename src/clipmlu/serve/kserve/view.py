"""A served bundle as a model of the protocol: its inputs and outputs, and the results that follow from given inputs."""

from __future__ import annotations

from typing import Any

from clipmlu.classify.classifier import ZeroShotClassifier
from clipmlu.classify.scoring import PREFER_TOWERS
from clipmlu.embed.rows import FloatArray
from clipmlu.errors import InputError
from clipmlu.model import Model
from clipmlu.serve.kserve.request import InferenceRequest
from clipmlu.serve.kserve.response import OutputTensor
from clipmlu.serve.kserve.tensors import TensorFacts, datatype_of

VERSION = "1"
"""The only version of every model."""

IMAGE_INPUTS = ("pixel_values", "images")
"""Inputs that give images: of them a request gives one."""
TEXT_INPUTS = ("input_ids", "texts")
"""Inputs that give texts."""

_ANY = -1
_PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "openvino": "openvino_onnx", "magicmind": "magicmind_model"}


class ModelView:
    """A served bundle as a model of the protocol.

    A request gives images, texts or both, prepared or not: ``pixel_values`` or ``images``, ``input_ids`` or ``texts``. The
    outputs that follow are ``image_embeds`` and ``text_embeds``, of both ``logits_per_image``, and with classes of the server
    also ``scores`` and ``class_names``.

    Args:
        name: its name.
        encoder: the loaded bundle, which has two towers.
        classifier: classifies images into the classes of the server; None if it has no such classes.
        images: largest number of images of a request.
        texts: largest number of texts of a request.

    Attributes:
        inputs: maps the name of each input to its facts.
        outputs: maps the name of each output to its facts.

    Raises:
        InputError: the bundle has the joint layout.
    """

    def __init__(
        self, name: str, encoder: Model, classifier: ZeroShotClassifier | None, *, images: int, texts: int
    ) -> None:
        if encoder.runnable.facts.layout == "joint":
            raise InputError(
                f"Model '{name}' has the layout 'joint', whose graph gives no embeddings; send images to /v1/classify, or "
                f"{PREFER_TOWERS} and serve that."
            )
        self.name = name
        self._encoder = encoder
        self._classifier = classifier
        self.inputs = {facts.name: facts for facts in self._list_inputs(images, texts)}
        self.outputs = {facts.name: facts for facts in self._list_outputs()}

    def metadata(self) -> dict[str, Any]:
        """Return the model's metadata for JSON, with the facts of the bundle as ``parameters``."""
        compilation = self._encoder.runnable.compilation
        return {
            "name": self.name,
            "versions": [VERSION],
            "platform": _PLATFORMS.get(compilation.backend, compilation.backend),
            "inputs": [_describe(facts) for facts in self.inputs.values()],
            "outputs": [_describe(facts) for facts in self.outputs.values()],
            "parameters": {
                "bundle_digest": self._encoder.bundle.digest,
                "target": str(compilation.target),
                "precision": compilation.precision.value,
                **self.parameters(),
            },
        }

    def parameters(self) -> dict[str, str | bool | int]:
        """Return the parameters of every answer: the mark of the emulated vendor SDK."""
        return {"emulated": True} if self._encoder.runnable.compilation.emulated else {}

    def check(self, request: InferenceRequest) -> tuple[str, ...]:
        """Return the names of the outputs that a request wants.

        Raises:
            InputError: two inputs exclude each other, or an output does not follow from the given ones.
        """
        images, texts = (self._one_of(request, names) for names in (IMAGE_INPUTS, TEXT_INPUTS))
        needs = {
            "image_embeds": images,
            "text_embeds": texts,
            "logits_per_image": images and texts,
            "scores": images,
            "class_names": images,
        }
        follow = tuple(name for name in self.outputs if needs[name])
        wanted = follow if request.outputs is None else tuple(output.name for output in request.outputs)
        for name in wanted:
            if name not in follow:
                raise InputError(f"Output '{name}' does not follow from the inputs {_listed(request.inputs)}.")
        return wanted

    def results(
        self, wanted: tuple[str, ...], image_rows: FloatArray | None, text_rows: FloatArray | None
    ) -> dict[str, OutputTensor]:
        """Return the results of a request.

        Args:
            wanted: names of outputs, as ``check`` returns them.
            image_rows: embeddings of images, shape (N, D).
            text_rows: embeddings of texts, shape (M, D).
        """
        found: dict[str, OutputTensor] = {}
        if image_rows is not None:
            found["image_embeds"] = OutputTensor(image_rows)
        if text_rows is not None:
            found["text_embeds"] = OutputTensor(text_rows)
        if "logits_per_image" in wanted and image_rows is not None and text_rows is not None:
            found["logits_per_image"] = OutputTensor(self._logits(image_rows, text_rows))
        if self._classifier is not None and image_rows is not None and {"scores", "class_names"} & set(wanted):
            names = self._classifier.outcomes
            scores = self._classifier.scores(self._classifier.logits(image_rows))
            found["scores"] = OutputTensor(scores, names)
            found["class_names"] = OutputTensor([name.encode() for name in names])
        return {name: found[name] for name in wanted}

    def _logits(self, image_rows: FloatArray, text_rows: FloatArray) -> FloatArray:
        facts = self._encoder.runnable.facts
        logits: FloatArray = image_rows @ text_rows.T * image_rows.dtype.type(facts.logit_scale)
        return logits if facts.logit_bias is None else logits + logits.dtype.type(facts.logit_bias)

    def _one_of(self, request: InferenceRequest, names: tuple[str, ...]) -> bool:
        given = [name for name in names if name in request.inputs]
        if len(given) > 1:
            raise InputError(f"The inputs {_listed(given)} exclude each other; give one of them.")
        return bool(given)

    def _list_inputs(self, images: int, texts: int) -> list[TensorFacts]:
        pixels = self._encoder.runnable.tower(self._encoder.runnable.image_graph).inputs[0]
        sides = tuple(side for side in pixels.shape[1:] if isinstance(side, int))
        context = self._encoder.runnable.facts.tokenizer.context_length
        return [
            TensorFacts("pixel_values", datatype_of(pixels.dtype), (_ANY, *sides), images),
            TensorFacts("images", "BYTES", (_ANY,), images),
            TensorFacts("input_ids", "INT64", (_ANY, context), texts),
            TensorFacts("texts", "BYTES", (_ANY,), texts),
        ]

    def _list_outputs(self) -> list[TensorFacts]:
        width = self._encoder.embedding_dim
        found = [
            TensorFacts("image_embeds", "FP32", (_ANY, width)),
            TensorFacts("text_embeds", "FP32", (_ANY, width)),
            TensorFacts("logits_per_image", "FP32", (_ANY, _ANY)),
        ]
        if self._classifier is not None:
            count = len(self._classifier.outcomes)
            found += [TensorFacts("scores", "FP32", (_ANY, count)), TensorFacts("class_names", "BYTES", (count,))]
        return found


def server_metadata(version: str) -> dict[str, Any]:
    """Return the server's metadata for JSON.

    Args:
        version: version of the server.
    """
    extensions = ["binary_tensor_data", "classification"]
    return {"name": "clipmlu", "version": version, "extensions": extensions}


def _describe(facts: TensorFacts) -> dict[str, Any]:
    return {"name": facts.name, "datatype": facts.datatype, "shape": list(facts.shape)}


def _listed(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names)
