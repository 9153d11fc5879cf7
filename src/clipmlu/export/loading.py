"""Loading a torch model: configuration, weights, activation; always float32, on the CPU, in evaluation mode."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clipmlu.data.preprocess import spec_from_open_clip
from clipmlu.errors import DownloadError, ExportError, first_line
from clipmlu.export.catalog import tags_of
from clipmlu.export.checkpoint import Checkpoint, read_checkpoint
from clipmlu.export.configuration import check_text_config, parse_config
from clipmlu.export.downloads import checkpoint_names, fetch_file
from clipmlu.export.filetypes import error_text, identify_weights, unusable_weights
from clipmlu.export.fitting import has_logit_bias, load_weights
from clipmlu.export.options import PURPOSE, ExportOptions
from clipmlu.export.source import Source, model_config, text_model_folder
from clipmlu.export.training import (
    CONFIG_NAME,
    PREPROCESS_KEYS,
    Training,
    learn_training,
    note_activation,
    training_from_content,
)
from clipmlu.file_names import name_from_path
from clipmlu.files.publish import scratch_directory
from clipmlu.host import require
from clipmlu.specs import LARGEST_LOGIT, PreprocessSpec
from clipmlu.steps import StartStep, no_steps

_WEIGHTS_HINT = (
    "Copy the file into that cache (HF_HOME or --cache-dir) from a machine that has it, "
    "or give a checkpoint file as --pretrained FILE, or a directory as local-dir:PATH."
)
_TEXT_CONFIG_HINT = "It configures the text tower: copy it into that cache (HF_HOME or --cache-dir)."

_QUICK_GELU = ("QuickGELU", "QuickGELUActivation")  # the classes of open_clip and transformers
_TANH_GELU = ("NewGELUActivation", "PytorchGELUTanh", "GELUTanh", "FastGELUActivation")
_DEFAULT_CONTEXT_LENGTH = 77  # open_clip.model.CLIPTextCfg


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model in memory with the facts that the export needs.

    Attributes:
        module: open_clip's ``CLIP``, ``CustomTextCLIP`` or ``CoCa``; float32, evaluation mode, no gradients.
        config: open_clip's ``model_cfg``.
        preprocess: preprocessing of its input images.
        context_length: token ids per text.
        vocab_size: rows of the token embedding.
        pad_id: the text tower's id of padding.
        logit_scale: the multiplier itself, not its logarithm.
        logit_bias: offset of the logits, or None.
        activation: ``quick_gelu``, ``gelu_tanh`` or ``gelu``, as built.
        weights_digest: SHA-256 of all weights in the order of their names.
        notes: one line for each assumption, omission or change.
    """

    module: Any
    config: dict[str, Any]
    preprocess: PreprocessSpec
    context_length: int
    vocab_size: int
    pad_id: int
    logit_scale: float
    logit_bias: float | None
    activation: str
    weights_digest: str
    notes: tuple[str, ...] = ()

    @property
    def parameter_count(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.module.parameters())


def load_model(source: Source, options: ExportOptions, on_step: StartStep = no_steps) -> LoadedModel:
    """Build the model and load its weights.

    Args:
        source: the model.
        options: options of the export.
        on_step: begins each step: imports, downloads, the model itself, its weights.

    Raises:
        MissingDependencyError: torch or open_clip is not installed.
        DownloadError: a file of the model cannot be downloaded.
        ExportError: the configuration or the weights cannot be used.
    """
    form = None if source.checkpoint is None else identify_weights(source.checkpoint)  # importing torch is slow
    with on_step("importing torch and open_clip"):
        torch = require("torch", "export", PURPOSE)
        require("open_clip", "export", PURPOSE)
    config = _read_config(source, options, on_step)
    path = None if source.random else _find_weights(source, options, on_step)
    form = None if path is None else form or identify_weights(path)
    checkpoint = None
    if path is not None and form is not None and form != "big_vision":
        with on_step(f"reading {name_from_path(path.name)}"):
            checkpoint = read_checkpoint(path, form)
    quick_gelu = _is_listed_quick_gelu(source)
    notes: list[str] = []
    if source.name is not None and source.checkpoint is not None:
        training, notes = _assume_training(source.name, source.checkpoint, checkpoint, config)
        quick_gelu = bool(training.quick_gelu)
    elif checkpoint is not None and form == "script":
        quick_gelu, notes = _activation_of_script(checkpoint, config)
    if checkpoint is not None and has_logit_bias(checkpoint):
        config["model_cfg"].setdefault("init_logit_bias", 0.0)
    name = source.name or str(source.identity)
    with on_step(f"building {name}"), _build_errors(source), torch.random.fork_rng(devices=[]):
        # Seed also with trained weights: a tensor that the checkpoint lacks (there should be none) must not vary.
        torch.manual_seed(options.seed)
        module = _build(config, quick_gelu)
    with on_step("loading the weights"):
        if checkpoint is not None:
            notes += load_weights(module, checkpoint, name)
        elif path is not None:
            _load_big_vision(module, path)
        module = module.float().eval().requires_grad_(False)
        return _describe(module, config, source, notes)


def _read_config(source: Source, options: ExportOptions, on_step: StartStep) -> dict[str, Any]:
    """Return the content of ``open_clip_config.json`` with all references to the network replaced by local paths."""
    config = model_config(source)
    if config is None:
        assert source.repo is not None, "a source is a name, a directory or a repository"
        path = fetch_file(
            source.repo,
            [CONFIG_NAME],
            cache_dir=options.cache_dir,
            offline=options.offline,
            hint=f"A model of the library transformers is hf:{source.repo}. {_WEIGHTS_HINT}",
            on_step=on_step,
        )
        config = parse_config(path)
    if source.name is not None and source.weights is not None:
        config["preprocess_cfg"] = _listed_preprocess(source.name, source.weights.tag)
    _localise_text_config(config["model_cfg"], source, options)
    return config


def _listed_preprocess(name: str, tag: str) -> dict[str, Any]:
    listed = require("open_clip", "export", PURPOSE).get_pretrained_cfg(name, tag)
    return {key: listed[key] for key in PREPROCESS_KEYS if key in listed}


def _assume_training(
    name: str, path: Path, checkpoint: Checkpoint | None, config: dict[str, Any]
) -> tuple[Training, list[str]]:
    """Return the training facts of a weights file, from files beside it or from the weights listed for the name.

    It adds ``preprocess_cfg`` to ``config``.
    """
    facts, tensors = ({}, {}) if checkpoint is None else (checkpoint.facts, checkpoint.tensors)
    training = learn_training(path, config["model_cfg"], facts, tensors)
    listed = {
        json.dumps(each, sort_keys=True): each for each in (_listed_preprocess(name, tag) for tag in tags_of(name))
    }
    prepared, source = training.preprocess, training.preprocess_source
    if not prepared and len(listed) == 1:
        prepared, source = next(iter(listed.values())), f"'{name}' with the weights listed for it"
    config["preprocess_cfg"] = dict(prepared)
    note = note_activation(name, path, training)
    return training, [*([] if note is None else [note]), _note_preprocess(path, prepared, source, len(listed))]


def _activation_of_script(checkpoint: Checkpoint, config: Mapping[str, Any]) -> tuple[bool, list[str]]:
    """Return whether a TorchScript archive is of QuickGELU, and a note if the configuration of its directory has GELU."""
    training = training_from_content(checkpoint.path, checkpoint.facts, checkpoint.tensors)
    if not training.quick_gelu or config["model_cfg"].get("quick_gelu"):
        return False, []
    return True, [
        f"'{checkpoint.path}' is loaded with QuickGELU, although {CONFIG_NAME} has no 'quick_gelu': {training.gelu_source} says so"
    ]


def _note_preprocess(path: Path, prepared: Mapping[str, Any], source: str, variants: int) -> str:
    mean = ", ".join(f"{value:.4g}" for value in prepared.get("mean", ()) if isinstance(value, float))
    if prepared:
        return f"'{path}' gets images prepared as {source} says: mean {mean}, {prepared.get('resize_mode', 'shortest')} edge"
    doubt = f" (the weights listed for the name differ in it, in {variants} ways)" if variants > 1 else ""
    return (
        f"'{path}' does not say how its images were prepared: OpenAI's mean and standard deviation are used{doubt}. "
        f"If that is wrong, put an {CONFIG_NAME} with 'preprocess_cfg' beside it"
    )


def _localise_text_config(model_cfg: dict[str, Any], source: Source, options: ExportOptions) -> None:
    """Replace ``hf_model_name`` by a directory, so that building the text tower needs neither network nor cache."""
    name = model_cfg["text_cfg"].get("hf_model_name")
    if not name:
        return
    folder = text_model_folder(model_cfg, source.directory)
    if folder is None:
        path = fetch_file(
            name, ["config.json"], cache_dir=options.cache_dir, offline=options.offline, hint=_TEXT_CONFIG_HINT
        )
        folder = path.parent
    check_text_config(folder / "config.json")
    model_cfg["text_cfg"]["hf_model_name"] = str(folder.resolve())


def _is_listed_quick_gelu(source: Source) -> bool:
    """Return whether open_clip's list marks the weights as QuickGELU, whatever the configuration says.

    OpenAI's weights (and others) are listed under names such as ``ViT-B-32``, whose configuration has GELU; open_clip
    warns and builds GELU. The reverse is not forced: a tag without this mark may belong to a configuration with
    QuickGELU
    (``roberta-ViT-B-32``).
    """
    return source.weights is not None and source.weights.quick_gelu


def _find_weights(source: Source, options: ExportOptions, on_step: StartStep) -> Path:
    if source.checkpoint is not None:
        return source.checkpoint
    repo, names = source.repo, checkpoint_names("")
    if repo is None:
        assert source.weights is not None, "resolve_source asks for weights unless they are random"
        open_clip = require("open_clip", "export", PURPOSE)
        listed = open_clip.get_pretrained_cfg(source.name, source.weights.tag)
        repo, _, filename = listed.get("hf_hub", "").rpartition("/")
        if not repo:
            raise DownloadError(
                f"Weights '{source.identity}' are not on the hub: get {listed.get('url')!r} and give it as --pretrained FILE."
            )
        names = checkpoint_names(filename)
    return fetch_file(
        repo, names, cache_dir=options.cache_dir, offline=options.offline, hint=_WEIGHTS_HINT, on_step=on_step
    )


def _build(config: dict[str, Any], force_quick_gelu: bool) -> Any:
    """Build the model with open_clip from a directory that holds only the configuration.

    This form accepts any configuration and uses no network: towers from timm and transformers load no weights of their
    own.
    """
    open_clip = require("open_clip", "export", PURPOSE)
    with scratch_directory() as folder:
        (folder / CONFIG_NAME).write_text(json.dumps(config), encoding="utf-8")
        return open_clip.create_model(
            f"local-dir:{folder}",
            load_weights=False,
            precision="fp32",
            device="cpu",
            force_quick_gelu=force_quick_gelu,
            pretrained_image=False,
            pretrained_text=False,
        )


@contextmanager
def _build_errors(source: Source) -> Iterator[None]:
    try:
        yield
    except (DownloadError, ImportError):
        raise
    except Exception as error:  # different tower types raise different errors for a wrong configuration
        raise ExportError(f"Cannot build '{source.identity}': {first_line(error)}") from error


def _load_big_vision(module: Any, path: Path) -> None:
    convert = require("open_clip.convert", "export", PURPOSE)
    try:
        convert.load_big_vision_weights(module, str(path))
    except Exception as error:  # KeyError, RuntimeError, BadZipFile, ...: open_clip does not check the file
        raise unusable_weights(
            path, f"it does not fit as an .npz of Google's big_vision, for SigLIP models: {error_text(error)}."
        ) from error


def _describe(module: Any, config: dict[str, Any], source: Source, notes: list[str]) -> LoadedModel:
    text_cfg = config["model_cfg"]["text_cfg"]
    try:
        preprocess = spec_from_open_clip(module.visual.preprocess_cfg)
    except ValueError as error:
        raise ExportError(f"Model '{source.identity}': {error}") from error
    scale, shift = read_logit_values(module, source)
    return LoadedModel(
        module=module,
        config=config["model_cfg"],
        preprocess=preprocess,
        context_length=text_cfg.get("context_length", _DEFAULT_CONTEXT_LENGTH),
        vocab_size=_vocab_size(module),
        pad_id=_pad_id(module, text_cfg),
        logit_scale=scale,
        logit_bias=shift,
        activation=activation_name(module),
        weights_digest=digest_weights(module),
        notes=tuple(notes),
    )


def read_logit_values(module: Any, source: Source) -> tuple[float, float | None]:
    """Return the logit scale, not its logarithm, and the logit bias or None.

    Raises:
        ExportError: a value is none of a trained model.
    """
    scale, bias = float(module.logit_scale.exp().reshape(())), getattr(module, "logit_bias", None)
    shift = None if bias is None else float(bias.reshape(()))
    if not 1 / LARGEST_LOGIT <= scale <= LARGEST_LOGIT or not abs(shift or 0.0) <= LARGEST_LOGIT:
        raise ExportError(
            f"Model '{source.identity}' has the logit scale {scale:g} and the logit bias {shift or 0:g}; trained models have a "
            f"scale of some 100, and none has more than {LARGEST_LOGIT:g} of either. Its weights are damaged, or hold the scale "
            "itself where its logarithm belongs: put that there."
        )
    return scale, shift


def _text_module(module: Any) -> Any:
    """Return the text tower: a separate module, or for plain CLIP the model itself."""
    return getattr(module, "text", module)


def _vocab_size(module: Any) -> int:
    text = _text_module(module)
    if hasattr(text, "token_embedding"):
        return int(text.token_embedding.num_embeddings)
    return int(text.transformer.get_input_embeddings().num_embeddings)


def _pad_id(module: Any, text_cfg: dict[str, Any]) -> int:
    hf_config = getattr(_text_module(module), "config", None)
    pad_id = text_cfg.get("pad_id", 0) if hf_config is None else getattr(hf_config, "pad_token_id", None)
    return int(pad_id or 0)


def activation_name(module: Any) -> str:
    """Return ``quick_gelu``, ``gelu_tanh`` or ``gelu``, as a model was built."""
    names = {_activation_of(each) for each in module.modules()}
    return next((name for name in ("quick_gelu", "gelu_tanh") if name in names), "gelu")


def _activation_of(module: Any) -> str | None:
    kind = type(module).__name__
    if kind in _QUICK_GELU:
        return "quick_gelu"
    if kind in _TANH_GELU or getattr(module, "approximate", None) == "tanh":
        return "gelu_tanh"
    return None


def digest_weights(module: Any) -> str:
    """Return the SHA-256 of name, dtype, shape and bytes of every tensor of the state, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.detach().contiguous().numpy().reshape(-1)).cast("B"))
    return digest.hexdigest()
