"""Names of models as people write them: ids of the Hugging Face hub, and near misses compared part by part."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from clipmlu.errors import close_names
from clipmlu.export.catalog import DEMO_MODEL, hub_entries, list_models, recommended_tags

_HUB_ADDRESS = "https://huggingface.co/"
_MODELSCOPE_ADDRESS = re.compile(r"https?://(?:www\.)?modelscope\.(?:cn|ai)/(?:models/)?([\w.-]+/[\w.-]+)")
_OPENAI_IDS = {
    "openai/clip-vit-base-patch32": "ViT-B-32",
    "openai/clip-vit-base-patch16": "ViT-B-16",
    "openai/clip-vit-large-patch14": "ViT-L-14",
    "openai/clip-vit-large-patch14-336": "ViT-L-14-336",
}
"""OpenAI's models on the hub (https://huggingface.co/openai), which open_clip reads from OpenAI's own files."""
_GOOGLE_ID = re.compile(
    r"google/(siglip2?)-(base|large|so400m|giant-opt)-patch(\d+)-(?:(\d+)(?:-(multilingual|i18n))?)"
)
_GOOGLE_SIZES = {"base": "B", "large": "L", "so400m": "SO400M", "giant-opt": "gopt"}
_SIGLIP_TAG = "webli"

_SIZES = {
    "tiny": "t",
    "small": "s",
    "medium": "m",
    "base": "b",
    "large": "l",
    "huge": "h",
    "giant": "g",
    "gigantic": "bigg",
    "big": "bigg",
}
_IGNORED = {"clip", "openclip", "patch", "hf", "hub", "px", "224", "model"}  # 224 is the size of models that name none
_PART = re.compile(r"so\d+m|rn\d+x\d+|siglip2|mobileclip2|[a-z]+|\d+")
_JOINED = re.compile(r"vit(?=(?:bigg|so400m|gopt|[tsmblhge])(?:\b|\d|_))")
_LEAST_SHARE = 0.6  # of parts in common with a name that is suggested
_TIE = 0.12


def model_of_hub_id(text: str) -> str | None:
    """Return the ``NAME::TAG`` of open_clip for an id of the Hugging Face hub, or None if it lists no such id.

    Args:
        text: such as ``openai/clip-vit-base-patch32``, also as an address of the hub's site.
    """
    return _hub_ids().get(text.removeprefix(_HUB_ADDRESS).strip("/").casefold()) or _siglip_of_google(text)


def is_transformers_id(repo: str) -> bool:
    """Return whether a repository of the hub has OpenAI's or Google's weights in a format that only transformers reads."""
    return repo.casefold() in _OPENAI_IDS or _siglip_of_google(repo) is not None


def near_models(text: str, tag: str | None = None) -> list[str]:
    """Return the models that a wrong name may stand for, three at most, the best first, with the tag if it is known.

    Args:
        text: the name, which may also hold a tag, as in ``ViT-B-32-openai``.
        tag: a tag that was given beside the name.
    """
    if (address := _MODELSCOPE_ADDRESS.match(text)) is not None:
        return [f"ms:{address[1]}"]
    models = list_models()
    wanted = _parts(text)
    shares = {name: _share(wanted, _parts(name), tags) for name, tags in models.items()}
    best = max(shares.values())
    least = best if best == 1 else max(_LEAST_SHARE, best - _TIE)
    ranked = sorted((name for name in models if shares[name] >= least), key=lambda name: -shares[name])
    near = ranked[:3] or close_names(text, models)
    return [_with_tag(name, tag or "", wanted, models[name]) for name in near]


@functools.cache
def _hub_ids() -> dict[str, str]:
    """Map the ids of open_clip's own table and of OpenAI, in lower case, to ``NAME::TAG``."""
    found: dict[str, str] = {}
    for name, tag, repo in hub_entries():
        if repo.casefold() not in found or repo.partition("/")[2].casefold() == name.casefold():
            found[repo.casefold()] = f"{name}::{tag}"
    return {each: f"{name}::openai" for each, name in _OPENAI_IDS.items()} | found


def _siglip_of_google(text: str) -> str | None:
    """Google's ids name the same parts as open_clip's models, which have the same weights from Big Vision."""
    match = _GOOGLE_ID.fullmatch(text.removeprefix(_HUB_ADDRESS).strip("/").casefold())
    if match is None:
        return None
    family, size, patch, side, languages = match.groups()
    family = {"siglip": "SigLIP", "siglip2": "SigLIP2"}[family]
    parts = ["ViT", _GOOGLE_SIZES[size], patch, family, "i18n" if languages else "", "" if side == "224" else side]
    name = "-".join(part for part in parts if part)
    return f"{name}::{_SIGLIP_TAG}" if _SIGLIP_TAG in list_models().get(name, ()) else None


def _parts(text: str) -> frozenset[str]:
    """Return the parts of a name: family, size, patch and resolution, in one spelling, without separators."""
    lower = _JOINED.sub("vit ", text.rpartition("/")[2].casefold() if "clip-vit" in text else text.casefold())
    found = {_SIZES.get(part, part) for part in _PART.findall(lower)}
    return frozenset(found - _IGNORED or found)


def _share(wanted: frozenset[str], parts: frozenset[str], tags: Iterable[str]) -> float:
    """Return the share of common parts, 0..1; parts that belong to a tag of the model do not count."""
    words = {word for tag in tags for word in _parts(tag)}
    named = wanted & parts
    rest = {part for part in wanted - parts if part not in words}
    return 2 * len(named) / (len(named) + len(rest) + len(parts))


def _with_tag(name: str, tag: str, wanted: frozenset[str], tags: tuple[str, ...]) -> str:
    spelled = tag.lower().replace("-", "_")
    if spelled in tags:
        return f"{name}::{spelled}"
    inside = [each for each in recommended_tags(tags) + list(tags) if _parts(each) <= wanted - _parts(name)]
    return f"{name}::{max(inside, key=lambda each: len(_parts(each)))}" if inside and name != DEMO_MODEL else name
