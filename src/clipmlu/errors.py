"""Every exception that clipmlu raises on purpose.

    ClipmluError
      UnknownNameError (LookupError)        a model, backend, dataset or template set nobody knows; .name and .known
      MissingDependencyError (ImportError)  an optional package is absent; .package and .extra
      BackendUnavailableError               the runtime of a target is not usable on this machine
      CompileError
        PrecisionError                      a precision that the target does not offer
        CalibrationError                    calibration data that are missing or do not fit
      BundleError
        BundleNotFoundError                 no bundle at that path
        BundleExistsError (OutputExistsError) the output is there already
        BundleCorruptError                  a file is missing, altered or unreadable
        BundleVersionError                  the manifest was written by a newer clipmlu
      ExportError
        DownloadError                       a file of the model cannot be reached
        ParityError                         the exported graph differs from torch; .differences
      GateError                             a measured figure lies outside what was allowed
        OverlapError                        images are evaluated that the bundle was calibrated with
      InputError                            an image, a label file, a dataset that cannot be read
      OptionError (ValueError)              an option or argument outside its range, or two that exclude one another
      OutputError                           a result cannot be written
        OutputExistsError                   something is there, and overwriting was not asked for
      SessionError
        ShapeError                          a batch that the compiled bundle does not take
        DeviceError                         a call into the vendor's SDK failed; .call, .status and .kind

The command line exits with an error's ``exit_code``: 1, or 2 for a mistake in the options, or 3 for a failed gate.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class ClipmluError(Exception):
    """Base of all errors below; ``exit_code`` is what the command line returns for it."""

    exit_code: int = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the message and the attributes: what ``__init__`` of a subclass takes is not kept."""
        return _remade, (type(self), self.args), self.__dict__


class UnknownNameError(ClipmluError, LookupError):
    """A name that is in no registry.

    Attributes:
        kind: what was looked up, such as ``"model"`` or ``"dataset"``.
        name: the name as given.
        known: all names that would have been accepted.
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
    """An optional package is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        self.package = package
        self.extra = extra
        super().__init__(
            f"{purpose} needs '{package}', which is not installed. Install it with: pip install 'clipmlu[{extra}]'"
        )


class BackendUnavailableError(ClipmluError):
    """The runtime that a bundle or a target needs cannot be used here."""


class CompileError(ClipmluError):
    """An exported bundle cannot be compiled as asked."""


class PrecisionError(CompileError):
    """The precision asked for is not offered by the target."""


class CalibrationError(CompileError):
    """Calibration data are missing, cannot be read, or do not fit the graph."""


class OutputError(ClipmluError):
    """A result cannot be written where it was asked for."""


class OutputExistsError(OutputError):
    """An output path is taken and overwriting was not asked for."""


class BundleError(ClipmluError):
    """Something about a bundle directory is not as it must be."""


class BundleNotFoundError(BundleError):
    """There is no bundle at the path."""


class BundleExistsError(BundleError, OutputExistsError):
    """The path of a bundle, or of a calibration set, is taken and overwriting was not asked for."""


class BundleCorruptError(BundleError):
    """A file of the bundle is missing, differs from its digest, or cannot be parsed."""


class BundleVersionError(BundleError):
    """The manifest's schema is newer than this clipmlu understands."""


class ExportError(ClipmluError):
    """A model cannot be loaded or turned into ONNX."""


class DownloadError(ExportError):
    """A file of the model is neither in the cache nor reachable."""


class ParityError(ExportError):
    """The exported graph and the torch model disagree by more than is allowed.

    Attributes:
        differences: one mapping for each failed comparison: output, batch size, measured and allowed values.
    """

    exit_code = 3

    def __init__(self, message: str, differences: Iterable[Mapping[str, object]]) -> None:
        self.differences = tuple(differences)
        super().__init__(message)


class GateError(ClipmluError):
    """A check on the result failed: what was produced runs, but not as well as was required."""

    exit_code = 3


class OverlapError(GateError):
    """Images are evaluated that the bundle was calibrated with: the figure would be too good."""


class InputError(ClipmluError):
    """An image, a label file, a list or a dataset that cannot be read as what it should be."""


class OptionError(ClipmluError, ValueError):
    """A value outside its range, or options that exclude one another; nothing was started."""

    exit_code = 2


class SessionError(ClipmluError):
    """A compiled graph failed while it ran."""


class ShapeError(SessionError):
    """A batch whose shape or dtype the compiled bundle does not take."""


class DeviceError(SessionError):
    """A call into the vendor's SDK failed.

    Attributes:
        call: the SDK's function.
        status: its code and message, as it printed them.
        kind: what it is about, such as ``"device_lost"`` or ``"out_of_memory"``.
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
    """The first line of a foreign error's message without its full stop, or the error's type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def reason_of(error: BaseException) -> str:
    """Why something could not be read, for a message: the system's words without number and path, else ``first_line``."""
    return error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)


def _close_matches(name: str, known: tuple[str, ...]) -> list[str]:
    folded: dict[str, str] = {}
    for candidate in known:
        folded.setdefault(candidate.casefold(), candidate)
    close = difflib.get_close_matches(name.casefold(), list(folded), n=5, cutoff=0.5)
    return [folded[key] for key in close]
