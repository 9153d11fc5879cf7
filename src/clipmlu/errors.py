"""The exceptions that clipmlu raises.

    ClipmluError
      UnknownNameError (LookupError)        an unknown model, backend, dataset or template set; .name and .known
      MissingDependencyError (ImportError)  an optional package is not installed; .package and .extra
      BackendUnavailableError               the runtime of a target cannot be used on this machine
      CompileError
        PrecisionError                      the target does not offer the precision
        CalibrationError                    calibration data are missing or do not fit the graph
      BundleError
        BundleNotFoundError                 there is no bundle at the path
        BundleExistsError (OutputExistsError) the output path already exists
        BundleCorruptError                  a file is missing, altered or unreadable
        BundleVersionError                  a newer clipmlu wrote the manifest
      ExportError
        DownloadError                       a file of the model cannot be downloaded
        ParityError                         the exported graph differs from torch; .differences
      GateError                             a measured figure is outside the allowed range
        OverlapError                        evaluation images were also used for calibration
      InputError                            an image, label file or dataset cannot be read
      OptionError (ValueError)              an option is out of range, or two options exclude each other
      OutputError                           a result cannot be written
        OutputExistsError                   the output path already exists and overwriting was not requested
      SessionError
        ResultError                         a result is NaN, or no embedding
        ShapeError                          the compiled bundle does not accept the shape or dtype of a batch
        DeviceError                         a call into the vendor's SDK failed; .call, .status and .kind

The command line exits with the error's ``exit_code``: 1, or 2 for a wrong option or name, or 3 for a failed gate.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from clipmlu.tracebacks import short_traceback

_LONGEST_LIST = 12  # of known names in a message
_LEAST_LIKENESS = 0.5  # of names that are suggested, 0..1
_TIE = 0.1  # difference of likeness up to which names are suggested together

_OTHER_WORDS: dict[str, tuple[str, ...]] = {
    "perchannel": ("per_axis",),
    "minmax": ("linear",),
    "kl": ("entropy",),
    "mse": ("eqnm",),
    "half": ("fp16",),
    "fp8": ("fp16", "int8"),
    "float8": ("fp16", "int8"),
    "w8a8": ("int8",),
    "onnxruntime": ("cpu",),
    "onnx": ("cpu",),
    "ort": ("cpu",),
    "magicmind": ("mlu",),
    "cambricon": ("mlu",),
    "mlu370": ("mlu", "mtp_372"),
    "mlu590": ("mlu", "mtp_592"),
    "emulator": ("emulated-mlu",),
    "gpu": ("auto",),
    "cuda": ("auto",),
    "imagenet": ("openai-imagenet",),
    "folder": ("imagefolder",),
    "candidatelabels": ("labels",),
    "classnames": ("labels",),
    "hypothesistemplate": ("templates",),
    "dtype": ("precision",),
    "json": ("format",),
    "torchdtype": ("precision",),
    "backend": ("target",),
    "provider": ("target",),
    "topk": ("top_k",),
}
"""Maps words of other tools, lower case and without separators, to the names here; only known names are suggested."""


class ClipmluError(Exception):
    """Base class of all clipmlu errors; ``exit_code`` is the exit code of the command line."""

    exit_code: int = 1

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows for the error."""
        return short_traceback(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the message and the attributes, without calling a subclass's ``__init__`` again."""
        return _remade, (type(self), self.args), self.__dict__


class UnknownNameError(ClipmluError, LookupError):
    """A name is not registered.

    Attributes:
        kind: the kind of name, such as ``"model"`` or ``"dataset"``.
        name: the name as given.
        known: all accepted names.
    """

    exit_code = 2

    def __init__(
        self, kind: str, name: str, known: Iterable[str], hint: str = "", *, meant: Iterable[str] | None = None
    ) -> None:
        """Write the message.

        Args:
            kind: the kind of name.
            name: the name as given.
            known: all accepted names; a few are listed.
            hint: more sentences.
            meant: names that were probably meant; None for those with similar letters.
        """
        self.kind = kind
        self.name = name
        self.known = tuple(known)
        message = f"Unknown {kind} '{name}'. {_question(close_names(name, self.known) if meant is None else meant)}"
        if 0 < len(self.known) <= _LONGEST_LIST:
            message += f" Known: {', '.join(self.known)}."
        super().__init__(" ".join(f"{message} {hint}".split()))


class MissingDependencyError(ClipmluError, ImportError):
    """An optional package is not installed; the message names the extra to install, or several."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        self.package = package
        self.extra = extra
        super().__init__(
            f"{purpose} needs '{package}', which is not installed. Install it with: pip install 'clipmlu[{extra}]'"
        )


class BackendUnavailableError(ClipmluError):
    """The runtime of a bundle or target cannot be used on this machine."""


class CompileError(ClipmluError):
    """An exported bundle cannot be compiled with these options."""


class PrecisionError(CompileError):
    """The target does not offer the requested precision."""


class CalibrationError(CompileError):
    """Calibration data are missing, cannot be read, or do not fit the graph."""


class OutputError(ClipmluError):
    """A result cannot be written to its path."""


class OutputExistsError(OutputError):
    """The output path already exists and overwriting was not requested."""


class BundleError(ClipmluError):
    """A bundle directory is missing or invalid."""


class BundleNotFoundError(BundleError):
    """There is no bundle at the path."""


class BundleExistsError(BundleError, OutputExistsError):
    """The path of a bundle or calibration set already exists and overwriting was not requested."""


class BundleCorruptError(BundleError):
    """A file of the bundle is missing, differs from its digest, or cannot be parsed."""


class BundleVersionError(BundleError):
    """The manifest's schema is newer than this version of clipmlu supports."""


class ExportError(ClipmluError):
    """A model cannot be loaded or converted to ONNX."""


class DownloadError(ExportError):
    """A file of the model is not in the cache and cannot be downloaded."""


class ParityError(ExportError):
    """The exported graph and the torch model differ by more than the bound.

    Attributes:
        differences: one mapping for each failed comparison: output, batch size, measured and allowed values.
    """

    exit_code = 3

    def __init__(self, message: str, differences: Iterable[Mapping[str, object]]) -> None:
        self.differences = tuple(differences)
        super().__init__(message)


class GateError(ClipmluError):
    """A result was produced, but a measured figure is outside the allowed range."""

    exit_code = 3


class OverlapError(GateError):
    """The bundle was calibrated with some of the evaluation images, so the accuracy would be too high."""


class InputError(ClipmluError):
    """An image, label file, list or dataset cannot be read."""


class OptionError(ClipmluError, ValueError):
    """An option is out of range, or two options exclude each other; nothing was started."""

    exit_code = 2


class SessionError(ClipmluError):
    """Running a compiled graph failed."""


class ResultError(SessionError):
    """A graph gives NaN, infinity or no embedding for some inputs of a batch."""


class ShapeError(SessionError):
    """The compiled bundle does not accept the shape or dtype of a batch."""


class DeviceError(SessionError):
    """A call into the vendor's SDK failed.

    Attributes:
        call: name of the SDK function.
        status: code and message that the SDK returned.
        kind: the kind of failure, such as ``"device_lost"`` or ``"out_of_memory"``.
    """

    def __init__(self, message: str, call: str, status: str, kind: str) -> None:
        self.call = call
        self.status = status
        self.kind = kind
        super().__init__(message)


def _remade(kind: type[ClipmluError], arguments: tuple[Any, ...]) -> ClipmluError:
    error = kind.__new__(kind, *arguments)
    error.args = arguments
    return error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without its full stop, or the error's type if it is empty."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def reason_of(error: BaseException) -> str:
    """Return the reason of a read error for a message: the system's text without number and path, else ``first_line``."""
    return error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)


def wrong_choice(what: str, given: str, known: Iterable[str], expected: str = "expected one of") -> str:
    """Return the message about a wrong name: ``WHAT is 'GIVEN'; expected one of A, B. Did you mean 'B'?``."""
    names = tuple(known)
    message = f"{what} is '{given}'; {expected} {', '.join(names)}"
    meant = did_you_mean(given, names)
    return f"{message}. {meant}" if meant else message


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return the question whether a close name was meant; empty if no name is close."""
    return _question(close_names(given, known))


def close_names(given: str, known: Iterable[str]) -> list[str]:
    """Return the names that a wrong one may stand for, the best first, three at most.

    A name that differs in case or separators only is the only answer, as is the known word for another tool's word. Else
    names are ranked by common letters; one that begins with the given text, or is its beginning, ranks before others.
    """
    plain = {name: _plain(name) for name in dict.fromkeys(known)}
    wanted = _plain(given)
    same = [name for name, letters in plain.items() if letters == wanted]
    same += [
        name for word in _OTHER_WORDS.get(wanted, ()) for name, letters in plain.items() if letters == _plain(word)
    ]
    if same or not wanted:
        return list(dict.fromkeys(same))
    ranks = {name: _likeness(wanted, letters) for name, letters in plain.items() if letters}
    least = max(_LEAST_LIKENESS, max(ranks.values(), default=0.0) - _TIE)
    return sorted((name for name in ranks if ranks[name] >= least), key=lambda name: -ranks[name])[:3]


def _question(names: Iterable[str]) -> str:
    close = [f"'{name}'" for name in names]
    return f"Did you mean {' or '.join(close)}?" if close else ""


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _likeness(first: str, second: str) -> float:
    shorter, longer = sorted((first, second), key=len)
    ratio = difflib.SequenceMatcher(None, first, second).ratio()
    return max(ratio, 0.8) if len(shorter) > 2 and longer.startswith(shorter) else ratio
