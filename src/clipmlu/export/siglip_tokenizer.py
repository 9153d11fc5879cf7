"""SigLIP's tokenizer, which the transformers library has without a fast form, as one of the library ``tokenizers``.

Its canonical form of a text (lower case, no punctuation, single spaces) is ``clean`` in the spec; the rest is SentencePiece's.
"""

from __future__ import annotations

from typing import Any

from clipmlu.errors import ExportError
from clipmlu.export.options import PURPOSE
from clipmlu.host import require

_SPACE = "\u2581"  # SentencePiece's sign for a space
_UNIGRAM = 1  # TrainerSpec.ModelType of SentencePiece


def build_siglip_tokenizer(tokenizer: Any) -> Any:
    """Return a ``tokenizers.Tokenizer`` with the ids of transformers' ``SiglipTokenizer`` for canonical texts.

    Args:
        tokenizer: the library's tokenizer.

    Raises:
        ExportError: its SentencePiece model is of another kind, or it keeps upper case.
    """
    import tokenizers
    from tokenizers import decoders, models, processors

    if not tokenizer.do_lower_case:
        raise ExportError(
            "The tokenizer keeps upper case ('do_lower_case' is false), which clipmlu does not know for SigLIP."
        )
    proto = _read_model(tokenizer)
    if proto.trainer_spec.model_type != _UNIGRAM or proto.trainer_spec.byte_fallback:
        raise ExportError(
            "The tokenizer's SentencePiece model is no unigram model without byte fallback, as SigLIP has."
        )
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    result = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=proto.trainer_spec.unk_id))
    result.normalizer = _normalizer(proto.normalizer_spec)
    end, end_id = str(tokenizer.eos_token), int(tokenizer.eos_token_id)
    result.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, end_id)])
    result.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")
    for token_id, token in sorted(tokenizer.added_tokens_decoder.items()):
        _check_place(token, token_id, pieces)
        result.add_special_tokens([tokenizers.AddedToken(str(token), normalized=False, special=True)])
    result.enable_padding(pad_id=int(tokenizer.pad_token_id), pad_token=str(tokenizer.pad_token))
    return result


def _read_model(tokenizer: Any) -> Any:
    convert = require("transformers.convert_slow_tokenizer", "export", PURPOSE)
    model = convert.import_protobuf().ModelProto()
    model.ParseFromString(tokenizer.sp_model.serialized_model_proto())
    return model


def _normalizer(spec: Any) -> Any:
    import tokenizers
    from tokenizers import normalizers

    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(tokenizers.Regex(" {2,}"), " "))
        steps.append(normalizers.Replace(tokenizers.Regex(f"[ {_SPACE}]+\\z"), ""))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])


def _check_place(token: Any, token_id: int, pieces: list[tuple[str, float]]) -> None:
    """Raise if a special token is no piece of the model: another id would be given to it."""
    if token_id >= len(pieces) or pieces[token_id][0] != str(token):
        raise ExportError(
            f"The tokenizer's special token '{token}' with the id {token_id} is no piece of its SentencePiece model."
        )
