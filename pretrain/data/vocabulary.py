"""What the ids of a SeqIO vocabulary stand for."""

import dataclasses
import hashlib
import itertools
import numbers
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import seqio
from sentencepiece.sentencepiece_model_pb2 import NormalizerSpec  # type: ignore[attr-defined]

from pretrain.errors import InputError

Ids = Sequence[int] | np.ndarray
Kind = Literal["text", "sentinel", "special"]

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


def begins_word(vocabulary: seqio.Vocabulary) -> np.ndarray:
    """Which ids begin a word, bool [vocab_size]: a space and what it stands before, and ids that are no text.

    A word holds the space before it, as SentencePiece's pieces do; other ids go on with the word before.

    >>> begins_word(seqio.ByteVocabulary())[[1, 3 + ord(" "), 3 + ord("a")]].tolist()
    [True, True, False]
    """
    text = text_of_ids(vocabulary)
    return np.array([spelled is None or spelled[:1].isspace() for spelled in text])


@dataclasses.dataclass(frozen=True)
class Punctuation:
    """What ids say of where sentences end, bool [vocab_size] each; see `corruption.sentences`.

    marks: ends in a full stop, question or exclamation mark. lines: ends in a newline. spaced: begins with
    white space, or is no text. words: has more than white space and marks.

    >>> of_dot = [table[3 + ord(".")] for table in Punctuation.of(seqio.ByteVocabulary()).tables()]
    >>> [bool(value) for value in of_dot]
    [True, False, False, False]
    """

    marks: np.ndarray
    lines: np.ndarray
    spaced: np.ndarray
    words: np.ndarray

    @classmethod
    def of(cls, vocabulary: seqio.Vocabulary) -> "Punctuation":
        texts = [(text is None, text or b"") for text in text_of_ids(vocabulary)]
        return cls(
            marks=np.array([text.endswith((b".", b"?", b"!")) for _, text in texts]),
            lines=np.array([text.endswith(b"\n") for _, text in texts]),
            spaced=np.array([special or text[:1].isspace() for special, text in texts]),
            words=np.array([bool(text.strip(b".?! \t\r\n\v\f")) for _, text in texts]),
        )

    def tables(self) -> tuple[np.ndarray, ...]:
        return self.marks, self.lines, self.spaced, self.words


def text_of_ids(vocabulary: seqio.Vocabulary) -> tuple[bytes | None, ...]:
    """The text of each id; None for sentinels and special ids."""
    return tuple(
        text_bytes([token], vocabulary) if _kind(token, vocabulary) == "text" else None
        for token in range(vocabulary.vocab_size)
    )


def text_ids(vocabulary: seqio.Vocabulary, without: int | None = None) -> np.ndarray:
    """The ids that stand for text, int32, in order; `without` one, such as a mask that is a piece itself.

    >>> text_ids(seqio.ByteVocabulary(extra_ids=100))[[0, -1]].tolist()
    [3, 258]
    """
    texts = enumerate(text_of_ids(vocabulary))
    return np.array([i for i, text in texts if text is not None and i != without], np.int32)


def mask_id(vocabulary: seqio.Vocabulary, wanted: int | None = None) -> int:
    """The id that hides a token: `wanted`, or else the first sentinel. Raises InputError."""
    if wanted is None:
        if not num_sentinels(vocabulary):
            raise InputError(
                "The vocabulary has no sentinel to hide tokens with: give it extra_ids, or mask_id."
            )
        return vocabulary.vocab_size - 1
    if not isinstance(wanted, numbers.Integral) or not 0 <= wanted < vocabulary.vocab_size:
        raise InputError(
            f"mask_id={wanted!r} is not in the vocabulary, which has {vocabulary.vocab_size} ids."
        )
    if wanted in (vocabulary.pad_id, vocabulary.eos_id):
        raise InputError(f"mask_id={wanted} is padding or EOS in the vocabulary: give an id that is neither.")
    return wanted


def fingerprint(vocabulary: seqio.Vocabulary) -> str:
    """64 bits that tell vocabularies apart: of a SentencePiece model, else of what each id spells.

    >>> fingerprint(seqio.ByteVocabulary(100)) == fingerprint(seqio.ByteVocabulary(10))
    False
    """
    digest = hashlib.blake2b(f"{type(vocabulary).__name__} {vocabulary.vocab_size} ".encode(), digest_size=8)
    if isinstance(vocabulary, seqio.SentencePieceVocabulary):
        digest.update(vocabulary.sp_model)
    else:
        for token in range(vocabulary.vocab_size - num_sentinels(vocabulary)):
            digest.update(f"{vocabulary.decode([token])}\0".encode())
    return digest.hexdigest()


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
        ids += [vocabulary.vocab_size - 1 - int(number), *_encode_further(piece, vocabulary)]
    return ids


def _encode_further(text: str, vocabulary: seqio.Vocabulary) -> list[int]:
    """Ids of text that follows a sentinel: SentencePiece would put a space before it."""
    if not isinstance(vocabulary, seqio.SentencePieceVocabulary):
        return list(vocabulary.encode(text))
    return encode_pieces([re.sub(" +", " ", text.rstrip(" "))], vocabulary)[0]


def encode_pieces(texts: Sequence[str], vocabulary: seqio.Vocabulary) -> list[list[int]]:
    """Ids of each piece of a text, as it is: SentencePiece would put a space before it, and leave spaces out.

    >>> encode_pieces(["a ", " b"], seqio.ByteVocabulary())
    [[100, 35], [35, 101]]
    """
    if not isinstance(vocabulary, seqio.SentencePieceVocabulary):
        return [list(vocabulary.encode(text)) for text in texts]
    as_is = NormalizerSpec(add_dummy_prefix=False, remove_extra_whitespaces=False)
    model = seqio.SentencePieceVocabulary(vocabulary.sentencepiece_model_file, vocabulary.extra_ids, as_is)
    return model.tokenizer.encode(list(texts))


def readable(ids: Ids, vocabulary: seqio.Vocabulary) -> str:
    """The text of `ids`, sentinels spelled `<extra_id_N>`; padding and EOS are left out. Undoes `parse`.

    Bytes that are no character become U+FFFD.

    >>> readable([100, 357, 101, 1, 0], seqio.ByteVocabulary(extra_ids=100))
    'a<extra_id_1>b'
    """
    parts = []
    for kind, tokens in _stretches(ids, vocabulary):
        if kind == "text":
            parts.append(text_bytes(tokens, vocabulary).decode(errors="replace"))
        else:
            left_out = (vocabulary.pad_id, vocabulary.eos_id)
            parts += [_name(token, vocabulary) for token in tokens if token not in left_out]
    return "".join(parts)


def text_bytes(ids: Ids, vocabulary: seqio.Vocabulary) -> bytes:
    """The bytes of text that `ids` stand for; sentinels and special ids stand for none.

    Unlike `decode` it keeps a first space, and bytes that are no character.

    >>> text_bytes([107, 198, 358, 108, 1, 0], seqio.ByteVocabulary(extra_ids=100))
    b'h\\xc3i'
    """
    text = [int(token) for token in ids if _kind(int(token), vocabulary) == "text"]
    if isinstance(vocabulary, seqio.ByteVocabulary):
        return bytes(token - 3 for token in text)
    if isinstance(vocabulary, seqio.SentencePieceVocabulary):
        return b"".join(_piece_bytes(vocabulary.tokenizer, token) for token in text)
    return vocabulary.decode(text).encode()


def _piece_bytes(model: Any, token: int) -> bytes:
    name = model.id_to_piece(token)
    return bytes([int(name[1:-1], 16)]) if model.is_byte(token) else name.replace(_SPACE, " ").encode()


@dataclasses.dataclass(frozen=True)
class Piece:
    """Ids as text: a stretch of text, or one sentinel, or one special id such as EOS."""

    kind: Kind
    text: str


def pieces(ids: Ids, vocabulary: seqio.Vocabulary) -> list[Piece]:
    """Every id [n] accounted for: sentinels are <extra_id_N>, a part of a character is its bytes.

    >>> [piece.text for piece in pieces([107, 198, 358, 108, 1, 0], seqio.ByteVocabulary(extra_ids=100))]
    ['h\\\\xc3', '<extra_id_0>', 'i', '</s>', '<pad>']
    """
    result: list[Piece] = []
    for kind, tokens in _stretches(ids, vocabulary):
        if kind == "text":
            result.append(Piece("text", text_bytes(tokens, vocabulary).decode(errors="backslashreplace")))
        else:
            result += [Piece(kind, _name(token, vocabulary)) for token in tokens]
    return result


def _stretches(ids: Ids, vocabulary: seqio.Vocabulary) -> Iterator[tuple[Kind, list[int]]]:
    for kind, group in itertools.groupby(map(int, ids), key=lambda token: _kind(token, vocabulary)):
        yield kind, list(group)


def _kind(token: int, vocabulary: seqio.Vocabulary) -> Kind:
    size = vocabulary.vocab_size
    if token in (vocabulary.unk_id, vocabulary.eos_id, vocabulary.pad_id) or not 0 <= token < size:
        return "special"
    if token >= size - num_sentinels(vocabulary):
        return "sentinel"
    if isinstance(vocabulary, seqio.SentencePieceVocabulary) and vocabulary.tokenizer.is_control(token):
        return "special"
    return "text"


def _name(token: int, vocabulary: seqio.Vocabulary) -> str:
    """What an id that is not text is called."""
    named = {vocabulary.unk_id: "<unk>", vocabulary.eos_id: "</s>", vocabulary.pad_id: "<pad>"}
    if token in named:
        return named[token]
    if _kind(token, vocabulary) == "sentinel":
        return f"<extra_id_{vocabulary.vocab_size - 1 - token}>"
    if 0 <= token < vocabulary.vocab_size and isinstance(vocabulary, seqio.SentencePieceVocabulary):
        return vocabulary.tokenizer.id_to_piece(token)
    return f"<id {token}>"
