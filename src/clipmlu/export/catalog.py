"""The models and pretrained tags of open_clip, read from its files without importing it or torch."""

from __future__ import annotations

import ast
import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Iterator
from importlib import util
from pathlib import Path
from typing import Any

from clipmlu.errors import MissingDependencyError, UnknownNameError
from clipmlu.host import require

DEMO_MODEL = "demo"

MODEL_PREFIXES = ("hf-hub:", "local-dir:", "hf:", "ms:")
"""First parts of the names of models that are on a hub or in a directory."""
OTHER_MODELS = "Also: hf-hub:org/name, hf:org/name (transformers), ms:org/name (ModelScope), local-dir:PATH."
TRANSFORMERS_EXAMPLES = ("hf:OFA-Sys/chinese-clip-vit-base-patch16",)
"""Models of the library transformers of families that open_clip lacks, for suggestions."""

MODEL_KEYS = ("embed_dim", "vision_cfg", "text_cfg")  # keys that open_clip.factory requires in a configuration
_QUICK_GELU_SUFFIX = "-quickgelu"
_FAMILIES = {
    "Demo": "^demo$",
    "CLIP, vision transformers": "^ViT-(?!.*(SigLIP|CLIPA|worldwide))",
    "CLIP, ResNets": "^RN",
    "CLIP, ConvNeXt": "^convnext",
    "SigLIP 2": "SigLIP2",
    "SigLIP": "^ViT.*SigLIP(?!.*i18n)",
    "CLIPA": "CLIPA",
    "EVA": "^EVA",
    "MobileCLIP": "^MobileCLIP",
    "Perception Encoder": "^PE-",
    "ViTamin": "^ViTamin",
    "CoCa": "^coca_(?!.*roberta)",
    "Many languages": "^nllb|^mt5|roberta|worldwide|i18n",
    "Others": "",
}
"""Families of models in the order of lists, each with a pattern of names; the first that is found counts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """One entry of open_clip's list of pretrained weights.

    Attributes:
        tag: name of the weights.
        quick_gelu: True if the weights were trained with QuickGELU.
        repo: ``org/name`` of the Hugging Face hub, or empty if they are elsewhere.
    """

    tag: str
    quick_gelu: bool
    repo: str = ""


def list_models() -> dict[str, tuple[str, ...]]:
    """Map each model name to the tags of its weights; ``demo`` first, the rest in natural order.

    Raises:
        MissingDependencyError: open_clip is not installed.
    """
    pretrained = _pretrained()
    return {DEMO_MODEL: ()} | {
        name: tuple(weights.tag for weights in pretrained.get(name, ())) for name in _config_paths()
    }


def find_weights(name: str, tag: str) -> Weights:
    """Return the weights with a tag; case and ``-`` or ``_`` make no difference, as in open_clip.

    Raises:
        UnknownNameError: the model has no such weights.
    """
    known = _pretrained().get(name, ())
    for weights in known:
        if weights.tag == tag.lower().replace("-", "_"):
            return weights
    if not known:
        hint = f"Model '{name}' has no pretrained weights; give the path of a checkpoint file."
    else:
        first = ", ".join(recommended_tags(weights.tag for weights in known))
        hint = f"Recommended: {first}; 'clipmlu models {name}' lists all {len(known)}. Or give the path of a checkpoint file."
    raise UnknownNameError("pretrained tag", tag, [weights.tag for weights in known], hint)


def model_names() -> tuple[str, ...]:
    """Return the names of all configurations in open_clip's package, in natural order."""
    return tuple(_config_paths())


def quick_gelu_name(name: str) -> str | None:
    """Return the name of the QuickGELU variant of an architecture without QuickGELU, or None if there is none."""
    twin = f"{name}{_QUICK_GELU_SUFFIX}"
    return twin if twin in _config_paths() and not read_config(name).get("quick_gelu") else None


def quick_gelu_tags(name: str) -> tuple[str, ...]:
    """Return the tags of a model's weights that were trained with QuickGELU."""
    return tuple(weights.tag for weights in _pretrained().get(name, ()) if weights.quick_gelu)


def tags_of(name: str) -> tuple[str, ...]:
    """Return the tags of a model's weights; empty if it has none."""
    return tuple(weights.tag for weights in _pretrained().get(name, ()))


def is_model_name(text: str) -> bool:
    """Return whether a text is the name of a model, with or without a tag; without open_clip only ``demo`` is known by its name."""
    name, separator, _tag = text.partition("::")
    if text == DEMO_MODEL or separator or text.startswith(MODEL_PREFIXES):
        return True
    return util.find_spec("open_clip") is not None and name.replace("/", "-") in _config_paths()


def with_tag(text: str) -> str:
    """Return the name of a model with the first of its recommended tags, if it has any and names none."""
    if "::" in text or not util.find_spec("open_clip"):
        return text
    return "::".join([text, *recommended_tags(tags_of(text.replace("/", "-")))[:1]])


def hub_entries() -> list[tuple[str, str, str]]:
    """Return the model name, tag and ``org/name`` of all weights that are on the Hugging Face hub."""
    return [(name, each.tag, each.repo) for name, known in _pretrained().items() for each in known if each.repo]


def recommended_tags(tags: Iterable[str]) -> list[str]:
    """Return the three tags that people want first, best first.

    OpenAI's first, then those of the data sets whose weights lead the zero-shot results that open_clip publishes
    (``docs/openclip_results.csv`` of its repository).
    """
    order = ("openai", "dfn5b", "dfn2b", "datacomp_xl", "datacomp1b", "metaclip_fullcc", "laion2b_s", "laion2b")

    def rank(tag: str) -> int:
        return next((place for place, start in enumerate(order) if tag.startswith(start)), len(order))

    return sorted(tags, key=rank)[:3]


def by_family(names: Iterable[str]) -> dict[str, list[str]]:
    """Map the families of models, in the order of lists, to those of the names that belong to them."""
    groups: dict[str, list[str]] = {family: [] for family in _FAMILIES}
    for name in names:
        groups[next(family for family, pattern in _FAMILIES.items() if re.search(pattern, name))].append(name)
    return {family: members for family, members in groups.items() if members}


def read_config(name: str) -> dict[str, Any]:
    """Return a named model's configuration (open_clip's ``model_cfg``); the caller owns it."""
    config: dict[str, Any] = json.loads(_config_paths()[name].read_text(encoding="utf-8"))
    return config


def open_clip_folder() -> Path:
    """Return the installation folder of open_clip.

    Raises:
        MissingDependencyError: it is not installed.
    """
    spec = util.find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError("open_clip", "export", "Exporting a model")
    return Path(next(iter(spec.submodule_search_locations)))


@functools.cache
def _config_paths() -> dict[str, Path]:
    """Return the files of all named configurations, in open_clip's natural order."""
    paths = [path for path in (open_clip_folder() / "model_configs").glob("*.json") if _is_model(path)]
    return {path.stem: path for path in sorted(paths, key=lambda path: _natural_key(path.stem))}


def _is_model(path: Path) -> bool:
    return all(key in json.loads(path.read_text(encoding="utf-8")) for key in MODEL_KEYS)


def _natural_key(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name.lower())]


@functools.cache
def _pretrained() -> dict[str, tuple[Weights, ...]]:
    """Return the pretrained weights of each model.

    The table is a literal in ``open_clip/pretrained.py``. Importing that file takes three seconds (torch), so it is
    parsed; if
    the parser does not support its form, it is imported.
    """
    try:
        tree = ast.parse((open_clip_folder() / "pretrained.py").read_text(encoding="utf-8"))
        return _with_quick_gelu_names(dict(_parse_table(tree)))
    except (OSError, SyntaxError, _UnexpectedFormError):
        return _imported_table()


class _UnexpectedFormError(Exception):
    """The parser does not support the form of open_clip's table."""


def _parse_table(tree: ast.Module) -> Iterator[tuple[str, tuple[Weights, ...]]]:
    assigned = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    table = assigned.get("_PRETRAINED")
    if not isinstance(table, ast.Dict):
        raise _UnexpectedFormError
    for key, value in zip(table.keys, table.values, strict=True):
        if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
            raise _UnexpectedFormError
        yield key.value, _parse_weights(assigned.get(value.id) if isinstance(value, ast.Name) else value)


def _parse_weights(node: ast.expr | None) -> tuple[Weights, ...]:
    """Parse ``dict(tag=_pcfg(url=..., quick_gelu=True), ...)``, or a dict display with string keys."""
    entries: list[tuple[object, ast.expr]] = []
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        entries = [(keyword.arg, keyword.value) for keyword in node.keywords]
    elif isinstance(node, ast.Dict):
        entries = [(getattr(key, "value", None), value) for key, value in zip(node.keys, node.values, strict=True)]
    else:
        raise _UnexpectedFormError
    return tuple(_parse_entry(tag, value) for tag, value in entries)


def _parse_entry(tag: object, node: ast.expr) -> Weights:
    if not isinstance(tag, str) or not isinstance(node, ast.Call):
        raise _UnexpectedFormError
    flags = [keyword.value for keyword in node.keywords if keyword.arg == "quick_gelu"]
    if any(keyword.arg is None for keyword in node.keywords) or not all(
        isinstance(each, ast.Constant) for each in flags
    ):
        raise _UnexpectedFormError
    places = [getattr(each.value, "value", "") for each in node.keywords if each.arg == "hf_hub"]
    return Weights(
        tag=tag,
        quick_gelu=any(bool(getattr(each, "value", False)) for each in flags),
        repo=_repo_of(places[0] if places else ""),
    )


def _repo_of(place: object) -> str:
    """Return ``org/name`` of open_clip's ``org/name/FILE``."""
    return "/".join(str(place).split("/")[:2])


def _with_quick_gelu_names(table: dict[str, tuple[Weights, ...]]) -> dict[str, tuple[Weights, ...]]:
    """Add ``NAME-quickgelu`` for weights that were trained with QuickGELU, as open_clip does."""
    quick = {name: tuple(weights for weights in known if weights.quick_gelu) for name, known in table.items()}
    return table | {f"{name}{_QUICK_GELU_SUFFIX}": known for name, known in quick.items() if known}


def _imported_table() -> dict[str, tuple[Weights, ...]]:
    open_clip = require("open_clip", "export", "Exporting a model")
    table: dict[str, tuple[Weights, ...]] = {}
    for name, tag in open_clip.list_pretrained():
        entry = open_clip.get_pretrained_cfg(name, tag)
        weights = Weights(tag=tag, quick_gelu=bool(entry.get("quick_gelu")), repo=_repo_of(entry.get("hf_hub", "")))
        table[name] = (*table.get(name, ()), weights)
    return table
