"""The sides of ``end_to_end.py``: from image files to the five best labels, each as in its own documentation.

Every side returns the best class of each image, as indices into the labels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from _runtimes import open_onnxruntime, open_openvino
from _side import Action, Settings, scratch
from PIL import Image

MODEL = "ViT-B-32"
TEMPLATE = "a photo of a {}."
TOP_K = 5
SEED = 0
WORKERS = 2
_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
_SIDE = 224

Array = npt.NDArray[Any]


def clipmlu_side(settings: Settings) -> dict[str, Action]:
    """A compiled bundle with a classifier file, and its stages alone."""
    import clipmlu
    from clipmlu.data.images import load_image

    classifier_file = scratch(settings, f"labels-{Path(settings.bundle).name}.clf")
    with clipmlu.load(settings.bundle, threads=settings.threads, verify=False) as encoder:
        encoder.classifier(settings.labels, [TEMPLATE], cache=False).save(classifier_file, overwrite=True)
    encoder = clipmlu.load(settings.bundle, threads=settings.threads, verify=False, image_only=True)
    classifier = encoder.load_classifier(classifier_file)
    preprocessor, dtype = encoder.preprocessor, encoder.pixel_dtype

    def run() -> list[int]:
        predictions = classifier.predict(settings.files, top_k=TOP_K, batch_size=settings.batch_size)
        assert isinstance(predictions, list)
        return [prediction.indices[0] for prediction in predictions]

    def prepare(path: str) -> None:
        preprocessor.write(load_image(path), np.empty(preprocessor.shape, dtype))

    def decode(threads: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(prepare, settings.files))

    pixels = np.random.default_rng(0).integers(0, 256, (settings.batch_size, *preprocessor.shape)).astype(dtype)

    def tower() -> None:
        for start in range(0, len(settings.files), settings.batch_size):
            encoder.encode_images(pixels[: len(settings.files) - start])

    return {
        "run": run,
        "decode, one thread": lambda: decode(1),
        "decode, all cores": lambda: decode(settings.threads),
        "tower": tower,
    }


def open_clip_single(settings: Settings) -> dict[str, Action]:
    """One image at a time, as in open_clip's README; eager or compiled."""
    import torch

    model, transform, text_features, facts = _open_clip(settings, {1})

    def run() -> list[int]:
        best = []
        with torch.inference_mode():
            for path in settings.files:
                image = transform(Image.open(path)).unsqueeze(0)
                image_features = model(image)
                image_features /= image_features.norm(dim=-1, keepdim=True)
                probabilities = (100.0 * image_features @ text_features.T).softmax(dim=-1)
                best.append(int(probabilities[0].topk(TOP_K).indices[0]))
        return best

    return {"run": run, "facts": lambda: facts}


def open_clip_loader(settings: Settings) -> dict[str, Action]:
    """Batches from a DataLoader with two persistent workers; eager or compiled."""
    import torch

    sizes = {min(settings.batch_size, len(settings.files)), len(settings.files) % settings.batch_size} - {0}
    model, transform, text_features, facts = _open_clip(settings, sizes)
    loader: Any = torch.utils.data.DataLoader(
        _Files(settings.files, transform),
        batch_size=settings.batch_size,
        num_workers=WORKERS,
        persistent_workers=True,
    )

    def run() -> list[int]:
        best: list[int] = []
        with torch.inference_mode():
            for images in loader:
                image_features = model(images)
                image_features /= image_features.norm(dim=-1, keepdim=True)
                probabilities = (100.0 * image_features @ text_features.T).softmax(dim=-1)
                best.extend(probabilities.topk(TOP_K).indices[:, 0].tolist())
        return best

    return {"run": run, "facts": lambda: facts}


class _Files:
    """A map-style dataset of preprocessed images."""

    def __init__(self, files: tuple[str, ...], transform: Callable[[Image.Image], Any]) -> None:
        self._files = files
        self._transform = transform

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Any:
        return self._transform(Image.open(self._files[index]))


def _open_clip(settings: Settings, batch_sizes: set[int]) -> tuple[Any, Any, Any, dict[str, float]]:
    """Return the image tower as a function, the transform, the text features, computed once, and the compilation time."""
    import open_clip
    import torch

    torch.set_num_threads(settings.threads)
    torch.manual_seed(SEED)
    model, _, transform = open_clip.create_model_and_transforms(MODEL)
    model.eval()
    tokenizer = open_clip.get_tokenizer(MODEL)
    facts: dict[str, float] = {}
    with torch.inference_mode():
        text_features = model.encode_text(tokenizer([TEMPLATE.format(label) for label in settings.labels]))
        text_features /= text_features.norm(dim=-1, keepdim=True)
        encode = model.encode_image
        if settings.option == "compiled":
            encode = torch.compile(encode, dynamic=False)
            start = time.perf_counter()
            for size in sorted(batch_sizes, reverse=True):
                encode(torch.zeros(size, 3, _SIDE, _SIDE))
            facts["compile_seconds"] = time.perf_counter() - start
    return encode, transform, text_features, facts


def transformers_pipeline(settings: Settings) -> dict[str, Action]:
    """The zero-shot-image-classification pipeline; every call passes the labels, as in its documentation."""
    import torch
    from transformers import pipeline

    torch.set_num_threads(settings.threads)
    folder = _hugging_face_model(settings)
    classify = pipeline("zero-shot-image-classification", model=str(folder), device="cpu")
    return {"run": lambda: _run_pipeline(classify, settings)}


def optimum_pipeline(settings: Settings) -> dict[str, Action]:
    """The same pipeline with Optimum's ONNX Runtime model."""
    from optimum.onnxruntime import ORTModelForZeroShotImageClassification
    from transformers import AutoImageProcessor, AutoTokenizer, pipeline

    source, folder = _hugging_face_model(settings), scratch(settings, "optimum")
    if not (folder / "config.json").is_file():
        ORTModelForZeroShotImageClassification.from_pretrained(source, export=True).save_pretrained(folder)
    model = ORTModelForZeroShotImageClassification.from_pretrained(
        folder, session_options=_ort_settings(settings.threads)
    )
    classify = pipeline(
        "zero-shot-image-classification",
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(source),
        image_processor=AutoImageProcessor.from_pretrained(source),
    )
    return {"run": lambda: _run_pipeline(classify, settings)}


def optimum_image_graph(settings: Settings) -> dict[str, Action]:
    """Optimum's ONNX Runtime model of the exported image tower, batches from a thread pool, texts embedded once."""
    import torch
    from optimum.onnxruntime import ORTModelForCustomTasks
    from transformers import CLIPConfig

    folder = scratch(settings, "optimum-image")
    folder.mkdir(exist_ok=True)
    graph = folder / "model.onnx"
    if not graph.exists():
        graph.symlink_to(Path(settings.bundle).resolve() / "image.onnx")
    CLIPConfig().save_pretrained(folder)
    model = ORTModelForCustomTasks.from_pretrained(folder, session_options=_ort_settings(settings.threads))

    def encode(pixels: Array) -> Array:
        embeddings: Array = model(pixel_values=torch.from_numpy(pixels))["image_embeds"].numpy()
        return embeddings

    return {"run": lambda: _run_batches(encode, settings)}


def openvino_bare(settings: Settings) -> dict[str, Action]:
    """OpenVINO on the exported image tower without clipmlu: batches from a thread pool, text embeddings computed once."""
    compiled = open_openvino(Path(settings.bundle) / "image.onnx", settings.threads, settings.option)

    def encode(pixels: Array) -> Array:
        embeddings: Array = compiled(pixels)[0]
        return embeddings

    return {"run": lambda: _run_batches(encode, settings)}


def onnxruntime_bare(settings: Settings) -> dict[str, Action]:
    """ONNX Runtime on the exported image tower without clipmlu, in the same loop."""
    session = open_onnxruntime(Path(settings.bundle) / "image.onnx", settings.threads)

    def encode(pixels: Array) -> Array:
        embeddings: Array = session.run(["image_embeds"], {"pixel_values": pixels})[0]
        return embeddings

    return {"run": lambda: _run_batches(encode, settings)}


def joint_graph(settings: Settings) -> dict[str, Action]:
    """The fused two-input layout: the image batch and all prompts run through one graph, every time."""
    session = open_onnxruntime(Path(settings.bundle) / "joint.onnx", settings.threads)
    images, texts = (entry.name for entry in session.get_inputs())
    tokens = np.load(scratch(settings, "tokens.npy"))

    def run() -> list[int]:
        best: list[int] = []
        for pixels in _prepared_batches(settings):
            (logits,) = session.run(["logits_per_image"], {images: pixels, texts: tokens})
            best.extend(np.argsort(-logits, axis=1)[:, :TOP_K][:, 0].tolist())
        return best

    return {"run": run}


def _run_batches(encode: Callable[[Array], Array], settings: Settings) -> list[int]:
    classes = np.load(scratch(settings, "class-embeddings.npy"))
    best: list[int] = []
    for pixels in _prepared_batches(settings):
        best.extend(np.argsort(-(encode(pixels) @ classes.T), axis=1)[:, :TOP_K][:, 0].tolist())
    return best


def _prepared_batches(settings: Settings) -> Iterator[Array]:
    """Yield batches that Pillow and NumPy prepare in two threads; all images of the run are submitted at once."""
    with ThreadPoolExecutor(WORKERS) as pool:
        prepared = pool.map(_prepare, settings.files)
        batch: list[Array] = []
        for pixels in prepared:
            batch.append(pixels)
            if len(batch) == settings.batch_size:
                yield np.stack(batch)
                batch = []
        if batch:
            yield np.stack(batch)


def _prepare(path: str) -> Array:
    """Resize the shorter side, crop the centre, normalise."""
    image: Image.Image = Image.open(path)
    scale = _SIDE / min(image.size)
    width, height = (max(_SIDE, int(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - _SIDE) / 2), round((height - _SIDE) / 2)
    pixels = np.asarray(image.crop((left, top, left + _SIDE, top + _SIDE)).convert("RGB"), dtype=np.float32)
    return np.ascontiguousarray(((pixels / 255 - _MEAN) / _STD).transpose(2, 0, 1))


def _run_pipeline(classify: Any, settings: Settings) -> list[int]:
    positions = {label: index for index, label in enumerate(settings.labels)}
    best = []
    for path in settings.files:
        ranked = classify(path, candidate_labels=list(settings.labels), hypothesis_template=TEMPLATE)
        best.append(positions[ranked[:TOP_K][0]["label"]])
    return best


def _hugging_face_model(settings: Settings) -> Path:
    """Return a ViT-B/32 CLIPModel with random weights, CLIP's tokenizer and image processor, without a network."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

    folder = scratch(settings, "hugging-face")
    if not (folder / "preprocessor_config.json").is_file():
        torch.manual_seed(SEED)
        CLIPModel(CLIPConfig()).save_pretrained(folder)
        special = {"bos_token": "<start_of_text>", "eos_token": "<end_of_text>", "pad_token": "<end_of_text>"}
        # The library's names of the special tokens differ, but the ids, which the model uses, are the same.
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(Path(settings.bundle) / "tokenizer.json"),
            model_max_length=77,
            **special,
        )
        tokenizer.save_pretrained(folder)
        CLIPImageProcessor().save_pretrained(folder)
    return folder


def _ort_settings(threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return options
