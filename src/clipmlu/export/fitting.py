"""Loading a checkpoint's tensors into a model: prefixes are removed, and tensors that do not fit are named."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from clipmlu.errors import ExportError
from clipmlu.export.architectures import describe_shapes, matching_architectures
from clipmlu.export.checkpoint import Checkpoint
from clipmlu.export.filetypes import TRANSFORMERS_ADVICE, unusable_weights
from clipmlu.export.options import PURPOSE
from clipmlu.host import require

# Modules that wrap another one and prefix its names: torch.compile, FSDP, activation checkpointing, DDP, Lightning
# Fabric.
_WRAPPERS = re.compile(
    r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module|module)\."
)
_AVERAGED = re.compile(r"(?:^|[._])(?:ema|averaged?|teacher|swa)(?:[._]|$)")
_NOT_WEIGHTS = frozenset(
    {"input_resolution", "context_length", "vocab_size", "attn_mask", "position_ids", "n_averaged"}
)
_COUNTER = ".num_batches_tracked"  # of BatchNorm's training, which files of other programs lack
_OPTIONAL = ("logit_bias", _COUNTER)
_MOST_PREFIXES = 12  # more than the number of models in any real file

# Names of other formats that open_clip converts (open_clip.convert.convert_state_dict): Apple's MobileCLIP.
_MOBILE_CLIP = (
    "image_encoder.model.patch_embed.0.rbr_conv.0.conv.weight",
    "image_encoder.model.patch_emb.0.block.conv.weight",
)
_TRANSFORMERS = ("vision_model.", "text_model.", "visual_projection.", "text_projection.weight")


def load_weights(module: Any, checkpoint: Checkpoint, model: str) -> list[str]:
    """Load every weight of a model from a checkpoint.

    Args:
        module: open_clip's model; changed in place.
        checkpoint: the content of the file.
        model: the model's name, for messages.

    Returns:
        One line for each tensor that was left out, interpolated or assumed.

    Raises:
        ExportError: a weight is missing, unexpected, or of another shape or type; or the file holds several models.
    """
    prefixes = _rank_prefixes(module, checkpoint)
    fits = {prefix: _convert(module, checkpoint, prefix) for prefix in prefixes}
    expected = module.state_dict()
    complete = [prefix for prefix, found in fits.items() if not _missing(expected, found)]
    if not complete:
        raise _misfit(expected, fits[prefixes[0]], checkpoint, model)
    chosen, notes = _choose(complete, fits, checkpoint)
    state = fits[chosen]
    heads = {name.partition(".")[0] for name in expected}
    unexpected = [name for name in state if name not in expected]
    if any(name.partition(".")[0] in heads for name in unexpected):
        raise _misfit(expected, state, checkpoint, model)
    notes += _note_left_out(checkpoint, chosen, complete, unexpected)
    notes += _fill(module, {name: state[name] for name in expected if name in state}, checkpoint, model)
    return notes


def has_logit_bias(checkpoint: Checkpoint) -> bool:
    """Return whether the checkpoint holds a logit bias (SigLIP's loss), which its architecture may not declare."""
    return any(name == "logit_bias" or name.endswith(".logit_bias") for name in checkpoint.tensors)


def _unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Map names without wrapper prefixes to the original names; if two would be equal, the second keeps its prefix."""
    plain: dict[str, str] = {}
    for name in names:
        short = _WRAPPERS.sub("", name)
        plain[name if short in plain else short] = name
    return plain


def _rank_prefixes(module: Any, checkpoint: Checkpoint) -> list[str]:
    """Return the prefixes of the model's weight names, most frequent first; at least the empty prefix."""
    wanted = set(module.state_dict())
    wanted |= {name.removeprefix("text.") for name in wanted}  # older names of models with a text module
    wanted |= set(_MOBILE_CLIP)
    most_parts = max(name.count(".") for name in wanted) + 1
    counts: collections.Counter[str] = collections.Counter()
    for name in _unwrapped(checkpoint.tensors):
        parts = name.split(".")
        tails = range(max(0, len(parts) - most_parts), len(parts))
        starts = (start for start in tails if ".".join(parts[start:]) in wanted)
        start = next(starts, None)
        if start is not None:
            counts["".join(f"{part}." for part in parts[:start])] += 1
    return [prefix for prefix, _ in counts.most_common(_MOST_PREFIXES)] or [_common_prefix(checkpoint)]


def _common_prefix(checkpoint: Checkpoint) -> str:
    nests = collections.Counter(checkpoint.nests.values())
    return nests.most_common(1)[0][0]


def _convert(module: Any, checkpoint: Checkpoint, prefix: str) -> dict[str, Any]:
    """Return the tensors below a prefix, with open_clip's current names."""
    names = _unwrapped(checkpoint.tensors)
    state = {
        name.removeprefix(prefix): checkpoint.tensors[own]
        for name, own in names.items()
        if name.startswith(prefix) and name.rpartition(".")[2] not in _NOT_WEIGHTS
    }
    if any(name in state for name in _MOBILE_CLIP):
        try:
            state = require("open_clip.convert", "export", PURPOSE).convert_state_dict(module, state)
        except Exception as error:  # weights are missing or have another shape
            raise unusable_weights(checkpoint.path, f"its MobileCLIP weights do not fit the model: {error}") from error
    if "positional_embedding" in state and not hasattr(module, "positional_embedding"):
        state = dict(require("open_clip.model", "export", PURPOSE).convert_to_custom_text_state_dict(state))
    return state


def _missing(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    return [name for name in expected if name not in found and not name.endswith(_OPTIONAL)]


def _choose(complete: list[str], fits: Mapping[str, dict[str, Any]], checkpoint: Checkpoint) -> tuple[str, list[str]]:
    """Choose among several models in the file: the trained one, not its running average."""
    if len(complete) == 1:
        return complete[0], []
    trained = [prefix for prefix in complete if not _AVERAGED.search(prefix)] or complete
    distinct = [trained[0], *(each for each in trained[1:] if not _are_equal(fits[each], fits[trained[0]]))]
    if len(distinct) > 1:
        listed = ", ".join(f"'{prefix.rstrip('.')}'" for prefix in distinct)
        raise unusable_weights(
            checkpoint.path,
            f"it holds {len(distinct)} models, under {listed}. Save the intended one to its own file.",
        )
    averages = ", ".join(f"'{prefix.rstrip('.')}'" for prefix in complete if prefix not in trained)
    return trained[0], [f"the weights under {averages} (an average) were left out"] if averages else []


def _are_equal(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    return first.keys() == second.keys() and all(
        one.shape == second[name].shape and bool((one == second[name]).all()) for name, one in first.items()
    )


def _note_left_out(checkpoint: Checkpoint, chosen: str, complete: list[str], unexpected: list[str]) -> list[str]:
    names = _unwrapped(checkpoint.tensors)
    nest = next(checkpoint.nests[own] for name, own in names.items() if name.startswith(chosen))
    beside = [
        own
        for name, own in names.items()
        if checkpoint.nests[own] == nest
        and not any(name.startswith(prefix) for prefix in complete)
        and name.rpartition(".")[2] not in _NOT_WEIGHTS
    ]
    left = [f"{chosen}{name}" for name in unexpected] + beside
    return [f"{_listed(left)} were left out: they belong to no part of the model"] if left else []


def _fill(module: Any, state: dict[str, Any], checkpoint: Checkpoint, model: str) -> list[str]:
    """Copy the tensors, converted to float32 where the model has it; interpolate position embeddings of another length."""
    expected = module.state_dict()
    for name, tensor in state.items():
        _check_kind(name, tensor, expected[name], checkpoint)
    for name in ("logit_scale", "logit_bias"):
        if name in state and state[name].numel() == 1:
            state[name] = state[name].reshape(expected[name].shape)
    given, notes = dict(state), _interpolate(module, state, expected, model)
    wrong = [name for name, tensor in state.items() if tensor.shape != expected[name].shape]
    if wrong:
        raise _misshapen(wrong, given, expected, checkpoint, model)
    if "logit_bias" in expected and "logit_bias" not in state:
        state["logit_bias"] = expected["logit_bias"].new_zeros(expected["logit_bias"].shape)
        notes.append("the checkpoint has no 'logit_bias': 0 is used")
    state.update({name: tensor for name, tensor in expected.items() if name.endswith(_COUNTER) and name not in state})
    module.load_state_dict(state, strict=True)
    return notes


def _check_kind(name: str, tensor: Any, expected: Any, checkpoint: Checkpoint) -> None:
    torch = require("torch", "export", PURPOSE)
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_meta or tensor.layout is not torch.strided or tensor.is_quantized:
        raise unusable_weights(
            checkpoint.path, f"'{name}' is stored in a form without plain values ({kind}). Save plain tensors."
        )
    if expected.is_floating_point() and tensor.dtype not in (
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float64,
    ):
        raise unusable_weights(
            checkpoint.path,
            f"'{name}' holds {kind}; expected float32, float16 or bfloat16. Weights that were quantised "
            "cannot be used: give the float weights, and quantise with clipmlu compile.",
        )


def _interpolate(module: Any, state: dict[str, Any], expected: Mapping[str, Any], model: str) -> list[str]:
    """Interpolate as open_clip does for other image sizes and context lengths, and return a note for each tensor."""
    resize = require("open_clip.model", "export", PURPOSE)
    notes = []
    for name, function, cause in (
        ("visual.positional_embedding", resize.resize_pos_embed, "image size or patch size"),
        ("positional_embedding", resize.resize_text_pos_embed, "context length"),
        ("text.positional_embedding", resize.resize_text_pos_embed, "context length"),
    ):
        if name not in state or state[name].ndim != 2 or state[name].shape[1:] != expected[name].shape[1:]:
            continue
        length, wanted = state[name].shape[0], expected[name].shape[0]
        if length == wanted or length < 2 or (name.startswith("visual.") and math.isqrt(length - 1) ** 2 != length - 1):
            continue
        named = matching_architectures(state)
        state[name] = state[name].float()  # torch does not interpolate float16
        function(state, module)
        hint = f"; the checkpoint's are those of {' or '.join(named)}" if named and model not in named else ""
        notes.append(
            f"'{name}' has {length} positions in the checkpoint and {wanted} in '{model}', and was interpolated: "
            f"it was trained with another {cause}{hint}"
        )
    return notes


def _misfit(expected: Mapping[str, Any], found: Mapping[str, Any], checkpoint: Checkpoint, model: str) -> ExportError:
    missing = _missing(expected, found)
    unexpected = [name for name in found if name not in expected]
    counts = [f"{len(missing)} of the model's {len(expected)} are missing ({_first(missing)})"] if missing else []
    counts += [f"{len(unexpected)} are not the model's ({_first(unexpected)})"] if unexpected else []
    return unusable_weights(
        checkpoint.path,
        f"its names do not fit '{model}': {', and '.join(counts)}. {_advise(missing, found, checkpoint, model)}",
    )


def _advise(missing: list[str], found: Mapping[str, Any], checkpoint: Checkpoint, model: str) -> str:
    names = list(_unwrapped(checkpoint.tensors))
    if any(part in name for name in names for part in _TRANSFORMERS[:2]):
        return f"These are names of the transformers library. {TRANSFORMERS_ADVICE}"
    if any("lora_" in name for name in names):
        return "These are LoRA adapters: merge them into the model that they belong to, and save that."
    if missing == ["logit_scale"]:
        return "Add the logarithm of the scale that it was trained with, such as state['logit_scale'] = torch.tensor(4.6052) for 100."
    named = [each for each in matching_architectures(found) if each != model]
    if named:
        return f"Its shapes are those of {' or '.join(named)}: give that name as MODEL."
    if not any(name.startswith("visual.") for name in found):
        return "There is no image tower in it. Give the checkpoint of a whole CLIP model."
    return (
        "Give the architecture that it was trained as, by its name or as local-dir:PATH with its open_clip_config.json."
    )


def _misshapen(
    wrong: list[str], state: Mapping[str, Any], expected: Mapping[str, Any], checkpoint: Checkpoint, model: str
) -> ExportError:
    name = wrong[0]
    more = f" (and {len(wrong) - 1} more differ)" if len(wrong) > 1 else ""
    if all(0 in state[each].shape for each in wrong):
        advice = (
            "Its tensors are empty, as DeepSpeed's ZeRO 3 leaves them: merge its shards with zero_to_fp32.py first."
        )
    else:
        named = [each for each in matching_architectures(state) if each != model]
        shapes = describe_shapes(state)
        advice = (
            f"The checkpoint's shapes are those of {' or '.join(named)}: give that name as MODEL."
            if named
            else f"The checkpoint has {shapes}. Give the architecture that it was trained as."
        )
    return unusable_weights(
        checkpoint.path,
        f"'{name}' has the shape {_shape(state[name])} there and {_shape(expected[name])} in '{model}'{more}. {advice}",
    )


def _shape(tensor: Any) -> str:
    return str(tuple(tensor.shape))


def _first(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:2]) + (", ..." if len(names) > 2 else "")


def _listed(names: list[str]) -> str:
    return f"{len(names)} tensors ({_first(names)})"
