"""Keeps output and log messages of torch, open_clip and onnxscript out of standard output."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

from clipmlu.host import require

_LOG = logging.getLogger("clipmlu.export")

# Loggers whose warnings concern the exporter's internals: constants not folded, files without an extension, ...
_CHATTY_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "timm", "transformers")

# Deprecation warnings of these libraries are hidden; those of other code still show.
_LIBRARIES = r"(torch|torchvision|open_clip|onnx|onnx_ir|onnxscript|timm|transformers|huggingface_hub)(\.|$)"

# First words of known messages that say nothing about the exported model.
_KNOWN_WARNINGS = (
    r"# The axis name",  # the name of a dynamic axis differs from torch.export's
    r"QuickGELU mismatch",  # handled in loading.py; the manifest records the built activation
    r"IProgress not found",  # tqdm in a notebook without ipywidgets
)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Redirect the libraries' output to clipmlu's log (level DEBUG), and ignore known irrelevant warnings."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings(), _quiet_loggers():
            for category in (DeprecationWarning, FutureWarning, PendingDeprecationWarning):
                warnings.filterwarnings("ignore", category=category, module=_LIBRARIES)
            # onnx's reference operators fold constants: log(0), masked out afterwards (mT5's position buckets).
            warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"onnx\.reference\.")
            for start in _KNOWN_WARNINGS:
                warnings.filterwarnings("ignore", message=start, category=Warning)
            yield
    finally:
        for line in filter(None, map(str.strip, printed.getvalue().splitlines())):
            _LOG.debug("%s", line)


@contextlib.contextmanager
def _quiet_loggers() -> Iterator[None]:
    root = logging.getLogger()
    # open_clip calls logging.warning(), which installs a handler on the root logger if it has none.
    placeholder = logging.NullHandler()
    levels = {name: logging.getLogger(name).level for name in _CHATTY_LOGGERS}
    root.addHandler(placeholder)
    root.addFilter(_not_open_clip)
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        root.removeFilter(_not_open_clip)
        root.removeHandler(placeholder)


def _not_open_clip(record: logging.LogRecord) -> bool:
    """Return False for records below ERROR that open_clip logs on the root logger itself."""
    return record.levelno >= logging.ERROR or "open_clip" not in record.pathname


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Switch off the bars that transformers draws on standard error while it loads weights."""
    bars = require("transformers.utils.logging", "export", "Exporting a model")
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()
