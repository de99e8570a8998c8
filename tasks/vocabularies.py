"""Vocabularies with sentinels: the `extra_ids` are the last ids, and `vocab_size` counts them."""

import os

import seqio
import tensorflow as tf

from pretrain.errors import InputError

# Code points no vocabulary is trained on: what they become is what unknown text becomes.
_RARE_TEXT = "\U0010fffd\U000f0000"


def byte_vocabulary(extra_ids: int = 100) -> seqio.ByteVocabulary:
    """Returns the vocabulary of ByT5 (https://arxiv.org/abs/2105.13626): UTF-8 bytes.

    Padding is 0, EOS 1, unknown 2, byte b is b + 3, and the sentinels are 259 to 258 + extra_ids.

    >>> vocabulary = byte_vocabulary(extra_ids=100)
    >>> vocabulary.vocab_size, vocabulary.encode("hi")
    (359, [107, 108])
    """
    return seqio.ByteVocabulary(extra_ids=extra_ids)


def sentencepiece(model_file: str | os.PathLike, extra_ids: int = 100) -> seqio.SentencePieceVocabulary:
    """Returns the vocabulary of a SentencePiece model (https://arxiv.org/abs/1808.06226), read at once.

    Args:
      model_file: path of the `.model` file, local or remote.
      extra_ids: sentinels to add after the model's own pieces; T5 counts them from the end, so that
        `<extra_id_0>` is `vocab_size - 1`.

    Raises:
      InputError: there is no such file, it is no SentencePiece model, or its special ids do not suit SeqIO.
    """
    if not isinstance(model_file, str | os.PathLike) or not os.fspath(model_file):
        raise InputError(f"The SentencePiece model_file is {model_file!r}; give the path of a `.model` file.")
    model_file = os.fspath(model_file)
    if not tf.io.gfile.exists(model_file):
        raise InputError(f"{model_file} does not exist: set model_file to a SentencePiece model.")
    vocabulary = seqio.SentencePieceVocabulary(model_file, extra_ids=extra_ids)
    try:
        tokenizer = vocabulary.tokenizer
    except Exception as error:  # protobuf, SentencePiece and TensorFlow each fail in a way of their own
        raise InputError(
            f"{model_file} is not a SentencePiece model: set model_file to the `.model` file of one."
        ) from error
    # SeqIO takes id 0 for padding wherever it stands, and packing cuts an example there.
    if tokenizer.eos_id() < 0 or vocabulary.pad_id in tokenizer.encode(_RARE_TEXT):
        raise InputError(
            f"{model_file} has no end-of-sequence id, or gives id 0, SeqIO's padding, to unknown text: "
            "train it again with pad_id=0, eos_id=1 and unk_id=2."
        )
    return vocabulary
