"""Pieces of held-out text: the same for every model that reads the same corpus."""

import dataclasses
import re
from collections.abc import Iterator, Sequence

import numpy as np

from pretrain.data import vocabulary as vocabularies
from pretrain.run import RunConfig

NUMBER = 500  # of passages, spread evenly over the held-out documents
AT_A_TIME = 100  # of prompts, for memory

CONTEXT = 160  # tokens of a passage with a gap
LONGEST_GAP = 4
SHOWN = 2  # letters of a word that are not hidden


def documents(run: RunConfig) -> Iterator[np.ndarray]:
    """The tokens of each held-out document, without EOS."""
    read = run.corpus().get_dataset(None, run.eval_split, shuffle=False, num_epochs=1)
    for document in read.as_numpy_iterator():
        yield document["targets"]


def cut(documents: Iterator[np.ndarray], size: int) -> list[np.ndarray]:
    """All passages of `size` tokens, each within a document, end to end; what is left of one is left out."""
    return [
        tokens[first : first + size]
        for tokens in documents
        for first in range(0, len(tokens) - size + 1, size)
    ]


def spread(passages: Sequence, number: int) -> list:
    """`number` of them, evenly spread, or all where there are fewer.

    >>> spread("abcdefgh", 2)
    ['c', 'g']
    """
    number = min(number, len(passages))
    return [passages[(2 * i + 1) * len(passages) // (2 * number)] for i in range(number)]


def inside_spans(before: np.ndarray, sizes: np.ndarray, length: int) -> np.ndarray:
    """float32 [n, length], 1 inside the spans: `sizes` tokens each, `before` tokens after the one before.

    >>> inside_spans(np.array([[1, 2]]), np.array([[2, 1]]), 8)
    array([[0., 1., 1., 0., 0., 1., 0., 0.]], dtype=float32)
    """
    ends = np.cumsum(before + sizes, axis=1)
    places = np.arange(length)[:, None]
    within = (places >= (ends - sizes)[:, None, :]) & (places < ends[:, None, :])
    return within.any(axis=2).astype(np.float32)


def end_of_word(text: str) -> str:
    """The letters that a text begins with.

    >>> end_of_word("in(): pass")
    'in'
    """
    return re.match("[A-Za-z]*", text)[0]  # type: ignore[index]


@dataclasses.dataclass(frozen=True)
class Gap:
    """A passage whose `hidden` part is the end of a word."""

    before: str
    hidden: str
    after: str


def gaps(run: RunConfig) -> list[Gap]:
    """`NUMBER` passages of plain ASCII, in each of which a word lacks its end, always the same ones."""
    texts = (vocabularies.text_bytes(tokens, run.vocabulary()) for tokens in cut(documents(run), CONTEXT))
    random = np.random.default_rng(0)
    found = (gap_in(text.decode(), random) for text in texts if text.isascii())
    return spread([gap for gap in found if gap], NUMBER)


def gap_in(text: str, random: np.random.Generator) -> Gap | None:
    """Hides the last 1 to `LONGEST_GAP` letters of a random word in the middle half, if one is there.

    A word keeps its first `SHOWN` letters.

    >>> gap_in("x = 1; def train(): pass", np.random.default_rng(0))
    Gap(before='x = 1; def tra', hidden='in', after='(): pass')
    """
    words = [
        word
        for word in re.finditer(r"[A-Za-z]{3,}", text)
        if len(text) // 4 <= word.start() and word.end() <= 3 * len(text) // 4
        and not text[word.end() : word.end() + 1].isalpha()
    ]  # fmt: skip
    if not words:
        return None
    word = words[random.integers(len(words))]
    size = int(random.integers(1, min(LONGEST_GAP, word.end() - word.start() - SHOWN) + 1))
    return Gap(text[: word.end() - size], text[word.end() - size : word.end()], text[word.end() :])
