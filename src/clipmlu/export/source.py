"""Resolving MODEL to a source of configuration and weights, before slow work begins and without importing torch."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from clipmlu.arguments import as_path, is_there
from clipmlu.bundle.manifest import TOKENIZER_NAME, FileRecord
from clipmlu.bundle.other_folders import next_step
from clipmlu.bundle.verify import file_record
from clipmlu.errors import ExportError, InputError, OptionError, UnknownNameError
from clipmlu.export.catalog import (
    DEMO_MODEL,
    MODEL_PREFIXES,
    Weights,
    find_weights,
    model_names,
    read_config,
    recommended_tags,
    tags_of,
)
from clipmlu.export.configuration import parse_config, parse_transformers_config
from clipmlu.export.directories import (
    CONFIG_NAMES,
    TOKENIZER_FILES,
    WEIGHTS_NAMES,
    WEIGHTS_SUFFIXES,
    Library,
    described_files,
    library_of,
    weights_files,
    weights_of,
)
from clipmlu.export.filetypes import identify_weights
from clipmlu.export.model_names import is_transformers_id, model_of_hub_id, near_models
from clipmlu.export.modelscope.repository import PREFIX as MODELSCOPE_PREFIX
from clipmlu.export.modelscope.repository import parse_repository
from clipmlu.export.options import ExportOptions
from clipmlu.export.training import CONFIG_NAME, files_beside
from clipmlu.file_names import expand_home, prefer_known_name
from clipmlu.specs import ModelId

_HUB_PREFIX = "hf-hub:"
_LOCAL_PREFIX = "local-dir:"
_TAG_SEPARATOR = "::"
_REPO = re.compile(r"\b[\w.-]+\b/\b[\w.-]{1,96}\b", re.ASCII)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A model to export; exactly one of ``name``, ``repo`` and ``directory`` is set.

    Attributes:
        identity: the model's identity in the manifest.
        name: name of a configuration in open_clip's package.
        repo: ``org/name`` on a hub.
        hub: the prefix of the name that chose the hub, for ``repo``: ``hf-hub:`` if open_clip reads single files of it, another
            one if it becomes a directory first; see ``downloading``.
        format: the library whose format ``directory`` has.
        directory: a directory in open_clip's own format, or as ``save_pretrained`` of transformers writes it.
        weights: the entry of open_clip's list, for ``name`` with a tag.
        checkpoint: a local file of weights, or the index of several, for ``name`` and ``directory``.
        taken_from: the id of the Hugging Face hub that was given for ``name`` and its weights, or empty.
    """

    identity: ModelId
    name: str | None = None
    repo: str | None = None
    hub: str | None = None
    format: Library = "open_clip"
    directory: Path | None = None
    weights: Weights | None = None
    checkpoint: Path | None = None
    taken_from: str = ""

    @property
    def random(self) -> bool:
        """True if the weights are random."""
        return self.identity.random_seed is not None


def resolve_source(model: str, options: ExportOptions) -> Source:
    """Resolve MODEL to a source.

    Args:
        model: an open_clip name, ``NAME::TAG``, ``hf-hub:org/name``, ``hf:org/name``, ``ms:org/name``, ``local-dir:PATH``,
            ``demo``, or the hub's id of a model that open_clip lists.
        options: options that choose the weights.

    Raises:
        UnknownNameError: there is no such model or tag.
        OptionError: the weights are not given, or given twice.
        ExportError: a local model or checkpoint is missing or incomplete.
    """
    if not isinstance(model, str):
        raise OptionError(f"the model is {model!r}; expected a name, or local-dir:PATH")
    seed = options.seed if options.random_weights else None
    if (taken := _listed_model(model)) is not None:
        _refuse_tag(model, options)
        name = taken.partition(_TAG_SEPARATOR)[0] if options.random_weights else taken
        return dataclasses.replace(_named_source(name, options, seed), taken_from=model)
    if model == DEMO_MODEL or model.startswith(MODEL_PREFIXES):
        _refuse_tag(model, options)
        identity = ModelId(name=model, random_seed=seed)
        prefix = next((each for each in MODEL_PREFIXES if model.startswith(each)), _LOCAL_PREFIX)
        if prefix != _LOCAL_PREFIX:
            return Source(identity=identity, repo=_repo_name(model, prefix), hub=prefix)
        return local_source(identity, demo_folder() if model == DEMO_MODEL else _local_folder(model))
    return _named_source(model, options, seed)


def source_files(source: Source, options: ExportOptions) -> dict[str, FileRecord]:
    """Return the digests of the local files that determine the export; empty if open_clip and the hub provide all."""
    records = {name: file_record(path) for name, path in _local_files(source)}
    if options.tokenizer is not None:
        records[f"tokenizer:{TOKENIZER_NAME}"] = file_record(tokenizer_file(options.tokenizer))
    return records


def files_of_name(model: str, options: ExportOptions) -> dict[str, FileRecord]:
    """Return ``source_files`` of a model of open_clip without asking open_clip: weights that are the path of a file are a checkpoint.

    Raises:
        InputError: the tokenizer is missing.
    """
    given = model.partition(_TAG_SEPARATOR)[2] or options.pretrained
    path = None if given is None else expand_home(given)
    checkpoint = path if path is not None and path.is_file() else None
    return source_files(Source(identity=ModelId(name=model), name=model, checkpoint=checkpoint), options)


def read_local_config(folder: Path) -> dict[str, Any]:
    """Read the ``open_clip_config.json`` of a directory.

    Raises:
        ExportError: it is missing, cannot be parsed, or describes no model.
    """
    return parse_config(folder / CONFIG_NAME)


def tokenizer_file(given: str | os.PathLike[str]) -> Path:
    """Return the ``tokenizer.json`` at a user's path, which is the file or its directory.

    Raises:
        InputError: there is none.
    """
    path = as_path(given, "the tokenizer")
    file = path / TOKENIZER_NAME if is_there(path, folder=True) else path
    if not file.is_file():
        raise InputError(f"No tokenizer at '{path}'. Expected a {TOKENIZER_NAME}, or a directory that has one.")
    return file


def demo_folder() -> Path:
    """Return the demo model's folder in the package.

    Raises:
        ExportError: this installation lacks it.
    """
    folder = Path(str(resources.files("clipmlu"))) / "assets" / "demo"
    if not (folder / CONFIG_NAME).is_file():
        raise ExportError(f"The demo model is missing from this installation: no '{folder / CONFIG_NAME}'.")
    return folder


def _listed_model(model: str) -> str | None:
    """Return open_clip's ``NAME::TAG`` for an id of the hub; None for all other names."""
    repo = model.removeprefix(_HUB_PREFIX)
    if repo == model:
        return model_of_hub_id(model) if "/" in model and not model.startswith(_LOCAL_PREFIX) else None
    return model_of_hub_id(repo) if is_transformers_id(repo) else None


def _refuse_tag(model: str, options: ExportOptions) -> None:
    if options.pretrained is not None:
        raise OptionError(
            f"model '{model}' has its own weights; leave out the pretrained weights '{options.pretrained}'"
        )


def _repo_name(model: str, prefix: str) -> str:
    repo = model[len(prefix) :]
    if prefix == MODELSCOPE_PREFIX:
        parse_repository(model)
        return repo
    if not _is_repo(repo):
        own = f"; a directory is {_LOCAL_PREFIX}{repo}" if is_there(repo, folder=True) else ""
        raise OptionError(f"model is '{model}'; expected {prefix}org/name{own}")
    return repo


def _is_repo(name: str) -> bool:
    """Return whether the Hugging Face hub could have this repository (``validate_repo_id`` of huggingface_hub)."""
    return (
        _REPO.fullmatch(name) is not None
        and not any(each in name for each in ("--", ".."))
        and not name.endswith(".git")
    )


def _local_folder(model: str) -> Path:
    path = model[len(_LOCAL_PREFIX) :]
    if not path:
        raise OptionError(f"model is '{model}'; expected {_LOCAL_PREFIX}PATH")
    return expand_home(path)


def local_source(identity: ModelId, folder: Path, *, prefer: Library = "open_clip") -> Source:
    """Return the source of a directory, whose files decide whose format it has.

    Args:
        identity: the model's identity.
        folder: the directory.
        prefer: the library to take if the directory has the files of both.

    Raises:
        ExportError: it is missing, has no model's format, cannot be read, or has no weights.
    """
    _check_local_folder(identity, folder)
    library = library_of(_entries(folder), prefer=prefer)
    if library is None:
        configs = " nor ".join(CONFIG_NAMES.values())
        raise ExportError(
            f"'{folder}' has neither {configs}, so it is no model of open_clip or transformers. {next_step(folder)}".rstrip()
        )
    if library == "open_clip":
        read_local_config(folder)
    else:
        parse_transformers_config(folder / CONFIG_NAMES[library])
    if identity.random_seed is not None:
        return Source(identity=identity, format=library, directory=folder)
    checkpoint = _find_checkpoint(folder, library)
    if checkpoint is None:
        expected = WEIGHTS_NAMES[library][0]
        raise ExportError(
            f"Model '{identity.name}' has no weights: expected '{expected}' (or another {', '.join(WEIGHTS_SUFFIXES)} file) in "
            f"'{folder}'. Put it there, or export untrained weights with --random-weights."
        )
    return Source(identity=identity, format=library, directory=folder, checkpoint=checkpoint)


def _entries(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise ExportError(f"Cannot read the model's directory '{folder}': {error.strerror}.") from error


def _check_local_folder(identity: ModelId, folder: Path) -> None:
    if is_there(folder) and not is_there(folder, folder=True):
        raise ExportError(
            f"Model '{identity.name}': '{folder}' is a file. Give its directory, or the file as: NAME --pretrained FILE."
        )
    if not is_there(folder, folder=True):
        raise ExportError(f"Model '{identity.name}': there is no directory '{folder}'.")


def _find_checkpoint(folder: Path, library: Library) -> Path | None:
    files = [name for name in _entries(folder) if (folder / name).is_file()]
    found = weights_of(files, library)
    return None if found is None else folder / found


def _named_source(model: str, options: ExportOptions, seed: int | None) -> Source:
    name, tag = _split_tag(model, options)
    if os.path.isfile(expand_home(name)):
        raise _weights_alone(name)
    name = _checked_name(name, tag)
    if seed is not None:
        return Source(identity=ModelId(name=name, random_seed=seed), name=name)
    if tag is None:
        raise OptionError(_no_weights_message(name))
    try:
        weights = find_weights(name, tag)
    except UnknownNameError:
        return Source(**_checkpoint_fields(name, tag))
    prefer_known_name(tag, (tag,), "tag")
    return Source(identity=ModelId(name=name, pretrained=weights.tag), name=name, weights=weights)


def _split_tag(model: str, options: ExportOptions) -> tuple[str, str | None]:
    name, separator, tag = model.partition(_TAG_SEPARATOR)
    if not separator:
        return name, options.pretrained
    if not tag:
        raise OptionError(f"model is '{model}'; expected NAME{_TAG_SEPARATOR}TAG")
    if options.pretrained is not None or options.random_weights:
        other = "random weights" if options.random_weights else f"pretrained weights '{options.pretrained}'"
        raise OptionError(f"model '{model}' names its weights already; leave out the {other}")
    return name, tag


def _checked_name(name: str, tag: str | None) -> str:
    """Return a model name in open_clip's spelling.

    Raises:
        UnknownNameError: there is no such model; the message has the names that were probably meant.
    """
    cleaned = name.replace("/", "-")
    known = (DEMO_MODEL, *model_names())
    if cleaned in known:
        return cleaned
    step = next_step(expand_home(name))
    if step:
        raise UnknownNameError("model", name, known, f"'{name}' is a directory. {step}", meant=())
    is_path = name.startswith((".", "/", "~"))
    hub = f"hf-hub:{name}" if _is_repo(name) else "hf-hub:org/name"
    folder = f"{_LOCAL_PREFIX}{name}" if is_path or is_there(name, folder=True) else f"{_LOCAL_PREFIX}PATH"
    hint = f"See 'clipmlu models', or give {hub} for a repository in open_clip's format, {hub.replace('hf-hub:', 'hf:')} for one of transformers, {hub.replace('hf-hub:', 'ms:')} for one of ModelScope, or {folder}."
    raise UnknownNameError("model", name, known, hint, meant=near_models(name, tag))


def _weights_alone(given: str) -> OptionError:
    """Return the error for a file of weights in place of a model's name; a file of another kind raises its own."""
    identify_weights(expand_home(given))
    likely = next(iter(near_models(Path(given).stem)), "NAME")
    return OptionError(
        f"model '{given}' is a file of weights, which does not say its architecture; give that before it, as in: "
        f"clipmlu export {likely}{_TAG_SEPARATOR}{given}"
    )


def _no_weights_message(name: str) -> str:
    tags = tags_of(name)
    if not tags:
        return f"model '{name}' has no pretrained weights; give a checkpoint file as --pretrained, or --random-weights"
    first, *others = recommended_tags(tags)
    also = f" (or the tag {' or '.join(others)})" if others else ""
    rest = f"; 'clipmlu models {name}' lists all {len(tags)}" if len(tags) > 1 + len(others) else ""
    return (
        f"model '{name}' needs weights: clipmlu export {name}{_TAG_SEPARATOR}{first} -o {name.lower()}{also}{rest}; "
        "or --pretrained FILE for a checkpoint, or --random-weights for speed work"
    )


def _checkpoint_fields(name: str, given: str) -> dict[str, Any]:
    """Treat an unknown tag as the path of a checkpoint, if it looks like one."""
    path = expand_home(given)
    if os.path.isfile(path):
        return {"identity": ModelId(name=name, pretrained=path.name), "name": name, "checkpoint": path}
    if is_there(path):
        identify_weights(path)  # raises for a directory, a pipe, ...
    if path.suffix in (*WEIGHTS_SUFFIXES, ".npz") or len(path.parts) > 1:
        raise ExportError(f"There is no checkpoint file '{given}'. Expected a file of weights for '{name}', or a tag.")
    find_weights(name, given)  # raises with the close matches
    raise AssertionError


def _local_files(source: Source) -> Iterator[tuple[str, Path]]:
    if source.checkpoint is not None:
        yield source.checkpoint.name, source.checkpoint
    if source.directory is None:
        beside = files_beside(source.checkpoint) if source.checkpoint is not None else ()
        yield from ((f"beside:{path.name}", path) for path in beside)
        return
    if source.format == "transformers":
        names = _entries(source.directory)
        weights = () if source.random else weights_files(names, source.format)
        for name in (*described_files(names, source.format), *weights):
            if source.checkpoint is None or name != source.checkpoint.name:
                yield name, source.directory / name
        return
    for name in (CONFIG_NAME, *TOKENIZER_FILES):
        if (source.directory / name).is_file():
            yield name, source.directory / name
    text_config = text_model_folder(read_local_config(source.directory)["model_cfg"], source.directory)
    if text_config is not None:
        yield "text_cfg/config.json", text_config / "config.json"


def model_config(source: Source) -> dict[str, Any] | None:
    """Return the content of ``open_clip_config.json`` for a local source, or None for a repository on the hub."""
    if source.name is not None:
        return {"model_cfg": read_config(source.name)}
    return None if source.directory is None else read_local_config(source.directory)


def text_model_folder(model_cfg: dict[str, Any], folder: Path | None) -> Path | None:
    """Directory of a Hugging Face text tower's ``config.json``, if ``hf_model_name`` is a path and not a hub name.

    A relative path is looked up in the model's own directory first, so that a model can be moved as a whole.
    """
    name = model_cfg["text_cfg"].get("hf_model_name")
    if not name:
        return None
    candidates = [Path(name)] if folder is None else [folder / name, Path(name)]
    return next((path for path in candidates if (path / "config.json").is_file()), None)
