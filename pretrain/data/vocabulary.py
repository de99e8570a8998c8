"""What the ids of a SeqIO vocabulary stand for."""

import numpy as np
import seqio

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
