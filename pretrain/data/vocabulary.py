"""What the ids of a SeqIO vocabulary stand for."""

import re
from collections.abc import Sequence

import numpy as np
import seqio

from pretrain.errors import InputError

Ids = Sequence[int] | np.ndarray

_SPACE = "\u2581"  # SentencePiece writes a space as this


def num_sentinels(vocabulary: seqio.Vocabulary) -> int:
    """How many sentinels there are; they are the last ids, the first of them `vocab_size - 1`."""
    return vocabulary.extra_ids or 0


def token_bytes(vocabulary: seqio.Vocabulary) -> np.ndarray:
    """Bytes of text each id stands for, int32 [vocab_size]; 0 for padding, EOS, unknown and sentinels.

    >>> token_bytes(seqio.ByteVocabulary())[[0, 1, 2, 3, 258]].tolist()
    [0, 0, 0, 1, 1]
    """
    table = np.zeros(vocabulary.vocab_size, np.int32)
    if isinstance(vocabulary, seqio.ByteVocabulary):
        table[3 : 3 + 256] = 1
    elif isinstance(vocabulary, seqio.SentencePieceVocabulary):
        pieces = vocabulary.tokenizer
        for token in range(pieces.get_piece_size()):
            if pieces.is_byte(token):
                table[token] = 1
            elif not (pieces.is_control(token) or pieces.is_unknown(token) or pieces.is_unused(token)):
                table[token] = len(pieces.id_to_piece(token).replace(_SPACE, " ").encode())
        if num_sentinels(vocabulary):
            table[-num_sentinels(vocabulary) :] = 0
    else:
        spelled = range(vocabulary.vocab_size - num_sentinels(vocabulary))
        special = (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id)
        for token in set(spelled) - set(special):
            table[token] = len(vocabulary.decode([token]).encode())
    return table


_SENTINEL = re.compile(r"<extra_id_(\d+)>")


def parse(text: str, vocabulary: seqio.Vocabulary) -> list[int]:
    """Ids of `text`, in which `<extra_id_0>`, `<extra_id_1>`, ... are the sentinels. No EOS.

    >>> parse("a<extra_id_1>b", seqio.ByteVocabulary(extra_ids=100))
    [100, 357, 101]
    """
    pieces = _SENTINEL.split(text)
    ids = list(vocabulary.encode(pieces[0]))
    for number, piece in zip(pieces[1::2], pieces[2::2], strict=True):
        if int(number) >= num_sentinels(vocabulary):
            raise InputError(
                f"The prompt has <extra_id_{number}>, but the vocabulary's sentinels are <extra_id_0> to "
                f"<extra_id_{num_sentinels(vocabulary) - 1}>."
                if num_sentinels(vocabulary)
                else f"The prompt has <extra_id_{number}>, but the vocabulary has no sentinels."
            )
        ids += [vocabulary.vocab_size - 1 - int(number), *vocabulary.encode(piece)]
    return ids


def readable(ids: Ids, vocabulary: seqio.Vocabulary) -> str:
    """The text of `ids`, sentinels spelled `<extra_id_N>`; padding and EOS are left out. Undoes `parse`.

    >>> readable([100, 357, 101, 1, 0], seqio.ByteVocabulary(extra_ids=100))
    'a<extra_id_1>b'
    """
    first_sentinel = vocabulary.vocab_size - num_sentinels(vocabulary)
    text = ""
    run: list[int] = []
    for token in [int(token) for token in ids]:
        if token >= first_sentinel:
            text += vocabulary.decode(run) + f"<extra_id_{vocabulary.vocab_size - 1 - token}>"
            run = []
        elif token not in (vocabulary.pad_id, vocabulary.eos_id):
            run.append(token)
    return text + vocabulary.decode(run)
