"""Write docs/reference/environment.md from the options and the table below: python tools/write_environment_reference.py.

The defaults of options come from the commands. ``OTHERS`` says what the other variables mean; a test compares its names with those that
the source reads.
"""

from __future__ import annotations

from pathlib import Path

import click

from clipmlu.cli import cli

PATH = Path(__file__).resolve().parent.parent / "docs" / "reference" / "environment.md"
OTHERS: dict[str, dict[str, str]] = {
    "Files and downloads": {
        "CLIPMLU_CACHE_DIR": "folder of the cache (class embeddings, datasets, downloads of ModelScope, bundles of `clipmlu.pipeline`); "
        "default: `clipmlu` in `XDG_CACHE_HOME`, or `~/.cache/clipmlu`",
        "XDG_CACHE_HOME": "the user's folder of caches",
        "CIFAR100_DATASETS_PATH": "folder of CIFAR-100, as for the vendor's CLIP sample",
        "HF_HOME": "cache of the Hugging Face hub; read by huggingface_hub",
        "HF_ENDPOINT": "a mirror of the hub; read by huggingface_hub",
        "HF_HUB_OFFLINE": "1: keep off the network, for both hubs",
        "MODELSCOPE_ENDPOINT": "another address of ModelScope",
        "MODELSCOPE_DOMAIN": "the same, in earlier versions of ModelScope's client",
        "MODELSCOPE_API_TOKEN": "token for private models; sent to the site only",
    },
    "The server": {
        "CLIPMLU_API_KEY": "key that requests to `clipmlu serve` need, instead of `--api-key-file`",
    },
    "The vendor's SDK": {
        "CLIPMLU_MLU_PYTHON": "interpreter in which `magicmind` can be imported; clipmlu starts a worker with it",
        "CLIPMLU_MLU_WORKER": "address of a worker that runs already: `unix:PATH` or `tcp:HOST:PORT`",
        "CLIPMLU_WORKER_SECRET_FILE": "file with the secret that this side and the worker share (TCP)",
        "CLIPMLU_WORKER_SECRET": "for a worker: the secret itself, instead of `--secret-file`",
        "NEUWARE_HOME": "folder of the vendor's toolkit, which holds `bin/mm_run`",
        "MM_RUN_PATH": "folder of the vendor's `mm_run`, or the file",
    },
    "The emulated SDK": {
        "CLIPMLU_EMULATOR_MODE": "`strict` (default): every open question is answered by the strictest behaviour under which all public samples "
        "still run; `lenient`: by the most permissive one",
        "CLIPMLU_EMULATOR_SWITCHES": "single answers that differ from the mode, such as `asnumpy_is_view=0,check_shapes=1`",
        "CLIPMLU_EMULATOR_DEVICES": "number of emulated cards, default 1; 0 is a host without a card",
        "CLIPMLU_EMULATOR_ARCH": "architecture of all cards: `mtp_372` (default), `mtp_592` or `tp_322`",
        "CLIPMLU_EMULATOR_CLUSTERS": "clusters of each card, default 8",
        "CLIPMLU_EMULATOR_LATENCY_MS": "time added to every batch, default 0; `2,2,20` gives each card its own",
        "CLIPMLU_EMULATOR_THREADS": "CPU threads of one engine, default 0: the runtime decides",
        "CLIPMLU_EMULATOR_MM_RUN_ITERATIONS": "largest number of batches of the emulated `mm_run`, default 0: no limit",
        "CLIPMLU_EMULATOR_FAULTS": "injected failures; see the module `clipmlu.magicmind.emulator.faults`",
        "CLIPMLU_EMULATOR_FAULT_LOG": "file that records injected faults; a recorded fault is not injected again",
        "CLIPMLU_EMULATOR_COMPAT": "set by `clipmlu emulate --compat` for the programs that it starts",
        "MLU_VISIBLE_DEVICES": "the vendor's own: comma-separated indices of the cards that a process sees",
        "MM_CPP_MIN_LOG_LEVEL": "the vendor's own: 3 hides the lines of refusals on stderr",
    },
    "Terminal and tests": {
        "NO_COLOR": "no bold headings; read by rich",
        "COLUMNS": "width of the terminal",
        "TERM": "`dumb`: no progress",
        "CC": "C compiler that builds the kernel for images",
        "CLIPMLU_TEST_DATA": "tests: folder with CIFAR-100 and golden tensors",
        "CLIPMLU_TEST_PYTHON37": "tests: an interpreter of Python 3.7 with NumPy",
        "CLIPMLU_TEST_CHROMIUM": "tests: the Chromium that opens pages",
        "CLIPMLU_TEST_PICTURES": "tests: folder for pictures of the pages, to be looked at",
    },
}
_INTRODUCTION = """<!-- Written by `python tools/write_environment_reference.py`; do not edit. -->

# Environment variables

## Defaults of options

An option on the command line replaces the variable, a variable excludes no other option, and an empty one counts as not set. A flag is set
by 1, true, yes or on. A wrong value is an error that names the variable.

| variable | option | commands |
|---|---|---|
"""


def render_reference() -> str:
    """Return the whole page: the defaults of options, then the other variables by subject."""
    rows: dict[str, tuple[str, list[str]]] = {}
    for name, command in sorted(cli.commands.items()):
        for parameter in command.params:
            if isinstance(parameter, click.Option) and isinstance(parameter.envvar, str):
                rows.setdefault(parameter.envvar, (parameter.opts[0], []))[1].append(name)
    lines = [f"| `{name}` | `{option}` | {', '.join(users)} |" for name, (option, users) in sorted(rows.items())]
    return _INTRODUCTION + "\n".join([*lines, "", *(_table(title, names) for title, names in OTHERS.items())])


def _table(title: str, names: dict[str, str]) -> str:
    lines = [f"| `{name}` | {meaning} |" for name, meaning in names.items()]
    return "\n".join([f"## {title}", "", "| variable | meaning |", "|---|---|", *lines, ""])


def render_files() -> dict[Path, str]:
    """Return the text of each file that this tool writes."""
    return {PATH: render_reference()}


if __name__ == "__main__":
    for path, text in render_files().items():
        path.write_text(text, encoding="utf-8")
