"""What is reached without a model, and how answers are counted. NumPy alone."""

from collections.abc import Sequence

import numpy as np


def most_frequent_token(everywhere: np.ndarray, asked: np.ndarray) -> float:
    """The accuracy of always saying the most frequent token of a text.

    everywhere, asked: int [vocabulary], how often each token is in the text, and is asked for.

    >>> most_frequent_token(np.array([0, 5, 3]), np.array([0, 1, 3]))
    0.25
    """
    return float(asked[everywhere.argmax()] / asked.sum())


def recall(scores: np.ndarray, nearest: int) -> float:
    """How often the answer of its own row is among the `nearest` of a question; ties count against it.

    scores: float [questions, answers]; the answer of question i is i.

    >>> recall(np.array([[0.9, 0.1], [0.9, 0.1]]), 1), recall(np.ones((4, 4)), 3)
    (0.5, 0.0)
    """
    own = np.diagonal(scores)[:, None]
    better = (scores >= own).sum(axis=1) - 1  # but the own one
    return float((better < nearest).mean())


def ngram_cosines(left: Sequence[bytes], right: Sequence[bytes], longest: int = 3) -> np.ndarray:
    """Cosines of how often each stretch of 1 to `longest` bytes is in two texts, float32 [left, right].

    >>> ngram_cosines([b"ab"], [b"ab", b"ba", b"cd"]).round(2)
    array([[1.  , 0.67, 0.  ]], dtype=float32)
    """
    bags = [_ngrams(text, longest) for text in (*left, *right)]
    names, where = np.unique(np.concatenate(bags), return_inverse=True)
    counts = np.zeros((len(bags), len(names)), np.float32)
    np.add.at(counts, (np.repeat(np.arange(len(bags)), [len(bag) for bag in bags]), where), 1)
    counts /= np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)
    return counts[: len(left)] @ counts[len(left) :].T


def _ngrams(text: bytes, longest: int) -> np.ndarray:
    """A number for each stretch of a text: its bytes, after a 1 that says where they begin."""
    codes = np.frombuffer(text, np.uint8).astype(np.int64)
    found = [np.zeros(0, np.int64)]
    for size in range(1, longest + 1):
        starts = np.arange(max(len(codes) - size + 1, 0))
        number = np.ones(len(starts), np.int64)
        for offset in range(size):
            number = number * 256 + codes[starts + offset]
        found.append(number)
    return np.concatenate(found)


def exact(said: Sequence[str], true: Sequence[str]) -> float:
    """The share of the answers that are right to the letter.

    >>> exact(["elf", "s"], ["elf", ""])
    0.5
    """
    return float(np.mean([one == other for one, other in zip(said, true, strict=True)]))
