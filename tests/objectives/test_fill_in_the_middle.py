"""Filling in the middle: every text can be put together again, in the orders and at the rates asked for."""

from pathlib import Path

import numpy as np
import pytest
import sentencepiece as spm
import seqio
import tensorflow as tf

import pretrain
from pretrain.errors import InputError
from pretrain.objectives import FillInTheMiddle
from pretrain.objectives.fill_in_the_middle import Splits

LENGTHS = {"targets": 64}
PRE, SUF, MID = 358, 357, 356


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A SentencePiece vocabulary of this repository's own sources."""
    prefix = tmp_path_factory.mktemp("pieces") / "pieces"
    sources = [path.read_text() for path in Path(pretrain.__path__[0]).rglob("*.py")]
    lines = "\n".join(sources).splitlines()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(prefix), vocab_size=1000, byte_fallback=True,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    return seqio.SentencePieceVocabulary(f"{prefix}.model", extra_ids=100)


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_the_text_can_be_put_together_again(rate, corpus, documents, vocabulary, read):
    objective = FillInTheMiddle(rate=rate)
    examples = read(objective.bind(corpus()), LENGTHS)
    texts = [objective.complete((), example["targets"], vocabulary) for example in examples]
    np.testing.assert_array_equal(np.concatenate(texts), np.concatenate(documents))
    taken_apart = [example["targets"][0] == PRE for example in examples]
    assert all(len(example["targets"]) <= 64 for example in examples)
    assert all(
        example["targets"][-1] == 1 for example, apart in zip(examples, taken_apart, strict=True) if apart
    )
    assert not any((example["targets"][:-1] == 1).any() for example in examples)
    if rate == 0.0:  # EOS is where documents end, and in a chunk of its own it is left out
        ended = sum(example["targets"][-1] == 1 for example in examples)
        chunk = objective.chunk_length(LENGTHS)
        assert ended == sum((len(document) + 1) % chunk != 1 for document in documents) < len(examples)
    assert {0.0: not any(taken_apart), 0.5: len(set(taken_apart)) == 2, 1.0: all(taken_apart)}[rate]


def test_orders_come_at_their_rates(corpus, read):
    task = FillInTheMiddle(rate=0.6, spm_rate=0.4).bind(corpus(documents=[np.full(56, 5)] * 1500))
    kinds = []
    for example in read(task, LENGTHS):
        tokens = example["targets"].tolist()
        kinds.append("none" if PRE not in tokens else "spm" if tokens[1] == SUF else "psm")
    # A prefix may be empty in the order prefix, suffix, middle too: one place of 57, twice.
    for kind, share in (("none", 0.4), ("spm", 0.24 + 0.36 * 2 / 58), ("psm", 0.36 - 0.36 * 2 / 58)):
        assert abs(kinds.count(kind) / 1500 - share) < 5 * np.sqrt(0.25 / 1500), kind


def test_cuts_are_uniform(corpus, read):
    task = FillInTheMiddle(rate=1.0, spm_rate=0.0).bind(corpus(documents=[np.full(50, 5)] * 2000))
    cuts = []
    for example in read(task, LENGTHS):
        tokens = example["targets"].tolist()
        prefix = tokens.index(SUF) - 1
        middle = len(tokens) - tokens.index(MID) - 2
        cuts.append((prefix, prefix + middle))
    first, second = np.array(cuts).T
    assert first.min() == 0 and second.max() == 50
    # The lesser and the greater of two numbers from 0 to 50.
    assert abs(first.mean() - 50 / 3) < 1.5 and abs(second.mean() - 100 / 3) < 1.5


def test_no_character_is_cut_in_two(corpus, read):
    text = "añ→b" * 300
    task = FillInTheMiddle(rate=1.0).bind(corpus(documents=[np.frombuffer(text.encode(), np.uint8) + 3]))
    for example in read(task, LENGTHS)[1:-1]:
        parts = np.split(example["targets"][:-1], np.flatnonzero(example["targets"][:-1] > 258))
        spelled = [bytes((part[part < 259] - 3).tolist()) for part in parts]
        inner = [part for part in spelled if part]
        # A chunk may begin or end inside a character, and so may the part that it begins or ends with.
        assert sum(len(part) - len(part.decode(errors="ignore").encode()) for part in inner) <= 6


def test_a_cut_inside_a_piece_takes_it_apart(pieces):
    text = "return the preprocessors of another objective"
    tokens = pieces.encode(text)
    assert len(tokens) < 30
    splits, rows = Splits.of(pieces), 500
    seeds = tf.constant(np.random.RandomState(0).randint(0, 2**62, (rows, 2)), tf.int64)
    ragged = tf.RaggedTensor.from_tensor(tf.constant([tokens] * rows, tf.int32))
    prefix, middle, suffix = splits.cut(ragged, seeds, most=1000)
    places, inside = [], 0
    for parts in zip(prefix.to_list(), middle.to_list(), suffix.to_list(), strict=True):
        spelled = [spelled_out(part, pieces) for part in parts]
        assert "".join(spelled) == " " + text
        places.append(len(spelled[0]))
        inside += parts[0] != tokens[: len(parts[0])]
    assert len(set(places)) > 35 and inside > rows / 4


def spelled_out(tokens, vocabulary) -> str:
    return "".join(vocabulary.tokenizer.id_to_piece(token) for token in tokens).replace("\u2581", " ")


def test_where_the_parts_would_not_fit_tokens_stay_whole(pieces):
    tokens = pieces.encode("return the preprocessors of another objective")
    seeds = tf.constant(np.random.RandomState(0).randint(0, 2**62, (50, 2)), tf.int64)
    ragged = tf.RaggedTensor.from_tensor(tf.constant([tokens] * 50, tf.int32))
    parts = Splits.of(pieces).cut(ragged, seeds, most=len(tokens))
    for one, two, three in zip(*(part.to_list() for part in parts), strict=True):
        assert [*one, *two, *three] == tokens


@pytest.mark.parametrize("spm_rate", [0.0, 0.5])
def test_prompts_with_a_gap_are_to_be_filled_in_an_order_that_was_learnt(vocabulary, spm_rate):
    feature = seqio.Feature(vocabulary, add_eos=True)
    objective = FillInTheMiddle(spm_rate=spm_rate)
    a, b = vocabulary.encode("a"), vocabulary.encode("b")
    ids = objective.encode_prompt("a<extra_id_0>b", feature)
    assert ids == ([PRE, SUF, *b, MID, *a] if spm_rate else [PRE, *a, SUF, *b, MID])
    said = [*vocabulary.encode("xy"), 1]
    assert vocabulary.decode(objective.complete(ids, said, vocabulary)) == "axyb"
    assert objective.encode_prompt("ab", feature) == [*a, *b]
    assert objective.complete([*a], said, vocabulary) == [*a, *said[:-1]]
    for prompt in (
        "a<extra_id_0>b<extra_id_0>",
        "a<extra_id_1>b",
        *(f"a<extra_id_0>b<extra_id_{n}>" for n in (1, 2, 5)),
    ):
        with pytest.raises(InputError, match="must have one gap"):
            objective.encode_prompt(prompt, feature)


def test_bad_settings_are_refused(vocabulary):
    with pytest.raises(InputError, match=r"FillInTheMiddle\.rate must be in \[0, 1\], not 2"):
        FillInTheMiddle(rate=2)
    with pytest.raises(InputError, match=r"FillInTheMiddle\.spm_rate must be in \[0, 1\], not '0.5'"):
        FillInTheMiddle(spm_rate="0.5")
    for sentinels in ([1, 2, 2], [3, 4, 5, 5]):
        with pytest.raises(InputError, match="must be three ids, not"):
            FillInTheMiddle(sentinels=sentinels)
    for special in (0, 1, 2):
        with pytest.raises(InputError, match=f"has {special}, which is padding, EOS or unknown"):
            FillInTheMiddle(sentinels=[special, 357, 356]).check(LENGTHS, vocabulary)
    with pytest.raises(InputError, match="needs three sentinels, but the vocabulary has 2"):
        FillInTheMiddle().check(LENGTHS, seqio.ByteVocabulary(extra_ids=2))
    with pytest.raises(InputError, match="are not all"):
        FillInTheMiddle(sentinels=[1, 2, 700]).check(LENGTHS, vocabulary)
