"""Inference requests: from the bytes and headers of an HTTP request to checked tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn

import msgspec

from clipmlu.arguments import shown
from clipmlu.errors import InputError, wrong_choice
from clipmlu.serve.kserve.tensors import TensorFacts, Values, values_from_binary, values_from_json

LENGTH_HEADER = "Inference-Header-Content-Length"
MOST_INPUTS = 16
_MOST_AXES = 8
_LONGEST_NAME = 256


class InputTensor(NamedTuple):
    """One input of a request: its values, and its shape in the request."""

    values: Values
    shape: tuple[int, ...]


class WantedOutput(NamedTuple):
    """One output that a request asks for.

    Attributes:
        name: its name.
        binary: whether it is answered as binary data.
        classes: number of the best classes to answer as text, instead of the tensor; 0 for the tensor.
    """

    name: str
    binary: bool
    classes: int = 0


class InferenceRequest(NamedTuple):
    """A checked request.

    Attributes:
        id: the client's identifier, or None.
        inputs: maps the name of each given input to it.
        outputs: what is asked for; None for all outputs that the inputs determine.
        binary_output: whether outputs are answered as binary data if nothing else is asked for.
    """

    id: str | None
    inputs: dict[str, InputTensor]
    outputs: tuple[WantedOutput, ...] | None
    binary_output: bool


class _RequestParameters(msgspec.Struct):
    binary_data_output: bool = False


class _InputParameters(msgspec.Struct):
    binary_data_size: int | None = None
    content_type: str | None = None
    shared_memory_region: str | None = None


class _OutputParameters(msgspec.Struct):
    binary_data: bool | None = None
    classification: int = 0
    shared_memory_region: str | None = None


def _short_list(name: str, kind: Any, most: int) -> Any:
    """Return the type of a list of at most ``most`` elements; elements beyond them are errors before they are built."""
    fields: list[Any] = [(f"element_{number}", kind | msgspec.UnsetType, msgspec.UNSET) for number in range(most)]
    return msgspec.defstruct(name, fields, array_like=True, forbid_unknown_fields=True)


def _elements(found: Any) -> list[Any]:
    """Return the elements of a list of ``_short_list``."""
    return [element for element in msgspec.structs.astuple(found) if element is not msgspec.UNSET]


_Name = Annotated[str, msgspec.Meta(max_length=_LONGEST_NAME)]
if TYPE_CHECKING:
    _Shape = Any
else:
    _Shape = _short_list("_Shape", int, _MOST_AXES)


class _Input(msgspec.Struct):
    name: _Name
    shape: _Shape
    datatype: _Name
    parameters: _InputParameters = msgspec.field(default_factory=_InputParameters)
    data: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)


class _Output(msgspec.Struct):
    name: _Name
    parameters: _OutputParameters = msgspec.field(default_factory=_OutputParameters)


if TYPE_CHECKING:
    _Inputs = Any
    _Outputs = Any
else:
    _Inputs = _short_list("_Inputs", _Input, MOST_INPUTS)
    _Outputs = _short_list("_Outputs", _Output, MOST_INPUTS)


class _Request(msgspec.Struct):
    inputs: _Inputs
    id: _Name | None = None
    parameters: _RequestParameters = msgspec.field(default_factory=_RequestParameters)
    outputs: _Outputs | None = None


# Fields that are not known are skipped without building them.
_DECODER = msgspec.json.Decoder(_Request)


def read_request(
    body: bytes,
    header_length: str | None,
    inputs: Mapping[str, TensorFacts],
    outputs: Mapping[str, TensorFacts],
) -> InferenceRequest:
    """Read an inference request.

    Args:
        body: the body of the HTTP request.
        header_length: value of the header ``Inference-Header-Content-Length``, the length of the JSON in bytes, after which
            binary data follow; None if the request has no such header, and so no binary data. "0" is a raw binary request: the
            body is one encoded image.
        inputs: maps the name of each input of the model to its facts.
        outputs: the same of its outputs.

    Raises:
        InputError: the request is not valid; the message names the field.
    """
    length = _json_length(header_length, len(body))
    if length == 0 and header_length is not None:
        return _raw_request(body, inputs)
    found = _decode(body[:length])
    view = memoryview(body)[length:]
    binary = header_length is not None
    tensors: dict[str, InputTensor] = {}
    for position, given in enumerate(_elements(found.inputs)):
        where = f"inputs[{position}] ('{given.name}')"
        facts = _check_input(given, where, inputs, tensors)
        view = _read_input(given, facts, where, view, tensors, binary=binary)
    if len(view):
        raise InputError(f"{len(view)} bytes follow the binary data of all inputs; expected none.")
    every = found.parameters.binary_data_output
    named: list[_Output] = _elements(found.outputs) if found.outputs is not None else []
    wanted = tuple(_read_outputs(named, outputs, every)) if named else None
    return InferenceRequest(found.id, tensors, wanted, every)


def _json_length(header: str | None, size: int) -> int:
    if header is None:
        return size
    if not (header.isascii() and header.isdigit() and len(header) <= 18):
        raise InputError(f"{LENGTH_HEADER} is {shown(header)}; expected the length of the JSON in bytes.")
    if int(header) > size:
        raise InputError(f"{LENGTH_HEADER} is {int(header)}, but the body has {size} bytes.")
    return int(header)


def _raw_request(body: bytes, inputs: Mapping[str, TensorFacts]) -> InferenceRequest:
    if "images" not in inputs:
        raise InputError(f"{LENGTH_HEADER} is 0, but the model takes no encoded image; send the inputs as JSON.")
    if not body:
        raise InputError(f"{LENGTH_HEADER} is 0 and the body is empty; expected an image file.")
    return InferenceRequest(None, {"images": InputTensor([body], (1,))}, None, True)


def _decode(text: bytes) -> _Request:
    try:
        found = _DECODER.decode(text)
    except msgspec.ValidationError as error:
        raise InputError(f"The request is no inference request: {error}.") from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InputError(f"The body is no JSON that can be read ({error}).") from error
    if not _elements(found.inputs):
        raise InputError(f"The request has no inputs; expected 1 to {MOST_INPUTS}.")
    return found


def _check_input(
    given: _Input, where: str, known: Mapping[str, TensorFacts], seen: Mapping[str, InputTensor]
) -> TensorFacts:
    if given.name not in known:
        raise InputError(wrong_choice(f"inputs[{len(seen)}]", given.name, known))
    if given.name in seen:
        raise InputError(f"{where} is given twice; expected once.")
    facts, shape = known[given.name], _elements(given.shape)
    if given.datatype != facts.datatype:
        raise InputError(f"{where} has datatype {shown(given.datatype)}; expected {facts.datatype}.")
    fits = len(shape) == len(facts.shape) and all(
        expected in (-1, size) for size, expected in zip(shape, facts.shape, strict=True)
    )
    if not fits:
        raise InputError(f"{where} has shape {shape}; expected {list(facts.shape)}, with -1 for any number.")
    if not 1 <= shape[0] <= facts.rows:
        raise InputError(f"{where} has shape {shape}; its first dimension may be 1 to {facts.rows}.")
    if given.parameters.shared_memory_region is not None:
        _refuse_shared_memory(where)
    return facts


def _read_input(
    given: _Input, facts: TensorFacts, where: str, view: memoryview, tensors: dict[str, InputTensor], *, binary: bool
) -> memoryview:
    """Add the tensor of an input; return the binary data that are left for the others."""
    size, raw, shape = given.parameters.binary_data_size, memoryview(given.data), tuple(_elements(given.shape))
    if (size is None) == (not raw):
        raise InputError(f"{where} needs one of 'data' and the parameter 'binary_data_size'.")
    if size is None:
        encoded = given.parameters.content_type == "base64"
        values = values_from_json(raw, facts, shape, where, base64_encoded=encoded)
    else:
        if not binary:
            raise InputError(f"{where} has binary data, but the request has no header {LENGTH_HEADER}; add it.")
        if not 0 <= size <= len(view):
            raise InputError(
                f"{where} has a binary_data_size of {size}, but {len(view)} bytes follow; check {LENGTH_HEADER}."
            )
        values = values_from_binary(view[:size], facts, shape, where)
        view = view[size:]
    tensors[given.name] = InputTensor(values, shape)
    return view


def _read_outputs(given: Sequence[_Output], known: Mapping[str, TensorFacts], binary: bool) -> Sequence[WantedOutput]:
    wanted: dict[str, WantedOutput] = {}
    for output in given:
        where, parameters = f"output '{output.name}'", output.parameters
        if output.name not in known:
            raise InputError(wrong_choice(f"outputs[{len(wanted)}]", output.name, known))
        if output.name in wanted:
            raise InputError(f"The {where} is requested twice; expected once.")
        if parameters.shared_memory_region is not None:
            _refuse_shared_memory(f"The {where}")
        if parameters.classification < 0 or (parameters.classification and known[output.name].datatype != "FP32"):
            raise InputError(
                f"The {where} has classification {parameters.classification}; expected a number of classes, of an output of FP32."
            )
        chosen = binary if parameters.binary_data is None else parameters.binary_data
        wanted[output.name] = WantedOutput(output.name, chosen, parameters.classification)
    return list(wanted.values())


def _refuse_shared_memory(where: str) -> NoReturn:
    raise InputError(f"{where} is in shared memory, which this server does not use; send it in the body.")
