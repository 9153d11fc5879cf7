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
        ShapeError                          the compiled bundle does not accept the shape or dtype of a batch
        DeviceError                         a call into the vendor's SDK failed; .call, .status and .kind

The command line exits with the error's ``exit_code``: 1, or 2 for a wrong option, or 3 for a failed gate.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from clipmlu.tracebacks import short_traceback


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

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        self.kind = kind
        self.name = name
        self.known = tuple(known)
        message = f"Unknown {kind} '{name}'."
        close = _close_matches(name, self.known)
        if close:
            message += f" Close matches: {', '.join(close)}."
        elif 0 < len(self.known) <= 12:
            message += f" Known: {', '.join(self.known)}."
        if hint:
            message += f" {hint}"
        super().__init__(message)


class MissingDependencyError(ClipmluError, ImportError):
    """An optional package is not installed; the message names the extra that installs it."""

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


def _close_matches(name: str, known: tuple[str, ...]) -> list[str]:
    folded: dict[str, str] = {}
    for candidate in known:
        folded.setdefault(candidate.casefold(), candidate)
    close = difflib.get_close_matches(name.casefold(), list(folded), n=5, cutoff=0.5)
    return [folded[key] for key in close]
