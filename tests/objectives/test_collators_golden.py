"""MaskedLM and PermutationLM against `transformers`' collators: tests/golden/collators.npz.

scripts/goldens/collators.py made the file. Where a collator defines the thing, ours is compared with it token
for token, given what it has drawn; where it departs from the papers, a test says how, and which is right.
"""

from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf

from pretrain.data import corruption
from pretrain.data import vocabulary as vocabularies
from pretrain.models.masks import Mask
from pretrain.objectives import MaskedLM, PermutationLM, masked_lm

SIZE, EOS, MASK = 359, 1, 358


@pytest.fixture(scope="module")
def goldens():
    with np.load(Path(__file__).parents[1] / "golden" / "collators.npz") as data:
        return dict(data)


@pytest.fixture
def golden(goldens):
    """golden(kind): its arrays."""

    def of(kind: str) -> dict[str, np.ndarray]:
        return {name.partition("/")[2]: x for name, x in goldens.items() if name.startswith(f"{kind}/")}

    return of


def examples_of(objective, tokens, vocabulary) -> dict[str, tf.RaggedTensor]:
    """What an objective makes of these chunks, 0 after the end of each."""
    chunks = tf.RaggedTensor.from_tensor(tokens, lengths=(tokens > 0).sum(1))
    seeds = tf.zeros([len(tokens), 2], tf.int64)
    return objective.examples(chunks, seeds, {"inputs": tokens.shape[1]}, vocabulary)


def rows_of(objective, examples, length, pack=False) -> dict[str, np.ndarray]:
    """The rows of examples, [rows, length] each."""
    dataset = tf.data.Dataset.from_tensor_slices(examples)
    rows = list(objective.converter(pack)(dataset, {"inputs": length}).as_numpy_iterator())
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def loss_of(objective, rows, logits) -> float:
    model = SimpleNamespace(features=lambda batch, key: jnp.asarray(logits), logits=lambda features: features)
    sums = objective.loss(model, {name: jnp.asarray(x) for name, x in rows.items()}, None)
    return float(sums.loss / sums.weight)


def logits_of(shape) -> np.ndarray:
    """The generator's of the goldens."""
    return np.random.RandomState(1).normal(size=(*shape, SIZE)).astype(np.float32)


def everywhere(x):
    """A function that gives these draws, whatever it is asked."""
    return lambda *args, **kwargs: tf.constant(x)


@pytest.fixture
def with_their_draws(monkeypatch):
    """with_their_draws(drawn): MaskedLM chooses and hides as a collator has done."""

    def use(drawn):
        # In [0, 0.8) a lot means the mask, in [0.8, 0.9) a random token, above the token itself.
        lots = np.where(drawn["replaced"], 0.4, np.where(drawn["randomised"], 0.85, 0.95)).astype(np.float32)
        monkeypatch.setattr(corruption, "chosen", everywhere(drawn["chosen"]))
        monkeypatch.setattr(corruption, "random_tokens", everywhere(drawn["words"]))
        monkeypatch.setattr(masked_lm, "uniform", everywhere(lots))

    return use


@pytest.mark.parametrize("kind", ["tokens", "whole_words"])
def test_of_the_same_draws_inputs_and_charges_are_theirs(kind, golden, with_their_draws, vocabulary):
    """Their label -100 is our loss weight 0: padding, EOS (their [SEP]) and all that is not chosen."""
    drawn = golden(kind)
    with_their_draws(drawn)
    objective, length = MaskedLM(), drawn["tokens"].shape[1]
    rows = rows_of(objective, examples_of(objective, drawn["tokens"], vocabulary), length)
    np.testing.assert_array_equal(rows["encoder_input_tokens"], drawn["inputs"])
    np.testing.assert_array_equal(rows["encoder_target_tokens"], drawn["tokens"])
    np.testing.assert_array_equal(rows["encoder_loss_weights"], drawn["chosen"])
    changed = drawn["inputs"] != drawn["tokens"]
    assert changed.any() and not (changed & ~drawn["chosen"]).any()
    assert loss_of(objective, rows, logits_of(drawn["tokens"].shape)) == pytest.approx(
        drawn["loss"], rel=1e-5
    )


@pytest.mark.parametrize("kind", ["tokens", "whole_words"])
def test_packing_changes_no_charge(kind, golden, with_their_draws, vocabulary):
    """Two texts in a row, their logits beside each other: the collator's loss, which knows no packing."""
    drawn = golden(kind)
    with_their_draws(drawn)
    objective, length = MaskedLM(), drawn["tokens"].shape[1]
    examples = examples_of(objective, drawn["tokens"], vocabulary)
    rows = rows_of(objective, examples, 2 * length, pack=True)
    assert len(rows["encoder_positions"]) < len(drawn["tokens"])
    logits = np.zeros((*rows["encoder_positions"].shape, SIZE), np.float32)
    texts = drawn["tokens"].tolist()
    for row, segments in enumerate(rows["encoder_segment_ids"]):
        for segment in range(1, segments.max() + 1):
            own = np.flatnonzero(segments == segment)
            text = rows["encoder_target_tokens"][row, own].tolist()
            number = texts.index(text + [0] * (length - len(text)))
            logits[row, own] = logits_of(drawn["tokens"].shape)[number, : len(own)]
    assert loss_of(objective, rows, logits) == pytest.approx(drawn["loss"], rel=1e-5)


def made_of_words(rows: int, length: int) -> np.ndarray:
    """Texts as the goldens': words of 1 to 8 letters, each after a space, and EOS."""
    random = np.random.RandomState(5)
    found = np.full((rows, length), EOS, np.int32)
    for row in found:
        words = [[35, *random.randint(100, 126, random.randint(1, 9))] for _ in range(length)]
        row[:-1] = np.concatenate(words)[: length - 1]
    return found


def drawn_by(objective, tokens, vocabulary) -> dict[str, np.ndarray]:
    random = np.random.RandomState(7)
    seeds = tf.constant(random.randint(0, 2**62, (len(tokens), 2)), tf.int64)
    chunks = tf.RaggedTensor.from_tensor(tokens)
    made = objective.examples(chunks, seeds, {"inputs": tokens.shape[1]}, vocabulary)
    return {name: x.numpy() for name, x in made.items()}


def assert_same_share(one: tuple[int, int], other: tuple[int, int]) -> None:
    """Two counts of so many are of one probability: no further apart than 5 standard deviations."""
    (a, n), (b, m) = one, other
    share = (a + b) / (n + m)
    assert abs(a / n - b / m) < 5 * np.sqrt(share * (1 - share) * (1 / n + 1 / m))


@pytest.mark.parametrize("kind", ["tokens", "whole_words"])
def test_rates_are_theirs(kind, golden, vocabulary):
    """Chosen, masked and kept, of which shares, within the error of counting.

    Two things differ. They draw random words among all ids, [PAD] and [MASK] too, and we among those that are
    text; so kept ones are compared less those that are kept by chance. And they choose each token by itself,
    where BERT's own code (create_pretraining_data.py) and ours choose a number of them, the share rounded:
    of 47 tokens always 7. Whole words have a test of their own.
    """
    theirs, tokens = golden(kind), made_of_words(4000, 48)
    made = drawn_by(MaskedLM(unit="word" if kind == "whole_words" else "token"), tokens, vocabulary)
    chosen = made["chosen"] > 0
    became, was = made["inputs"][chosen], tokens[chosen]
    if kind == "tokens":
        np.testing.assert_array_equal(chosen.sum(1), 7)
        # Ours has no error of its own but the rounding, 7 of 47.
        share = theirs["number_chosen"] / theirs["eligible"]
        assert abs(share - 0.15) < 5 * np.sqrt(0.15 * 0.85 / theirs["eligible"])
        assert abs(7 / 47 - share) < 0.5 / 47 + 5 * np.sqrt(0.15 * 0.85 / theirs["eligible"])
    number = theirs["number_chosen"]
    assert_same_share(((became == MASK).sum(), chosen.sum()), (theirs["number_masked"], number))
    assert_same_share(((became == was).sum(), chosen.sum()), (theirs["number_kept"], number))
    other = became[(became != MASK) & (became != was)]
    assert set(np.unique(other)) <= set(range(3, 259)) and not chosen[tokens == EOS].any()


def test_their_words_are_ours_and_they_choose_them_whole(golden, vocabulary):
    """But fewer of the long ones: a word that would exceed the share is passed over, never a shorter one.

    So they choose less than the share (13.5% in words of 2 to 9 tokens), and of a short text maybe nothing;
    BERT's own code does the same. Ours chooses a word at least, and takes the one that crosses the share as
    often as makes the mean right.
    """
    theirs = golden("whole_words")
    begins = vocabularies.begins_word(vocabulary)
    for tokens, chosen in zip(theirs["tokens"], theirs["chosen"], strict=True):
        numbers = corruption.words(tf.constant(begins[tokens][None])).numpy()[0]
        inside = tokens > EOS
        for number in np.unique(numbers[inside]):
            assert len(set(chosen[inside & (numbers == number)])) == 1
    assert theirs["number_chosen"] / theirs["eligible"] < 0.14 and not theirs["chosen"].any(1).all()
    made = drawn_by(MaskedLM(unit="word"), made_of_words(1000, 161), vocabulary)
    chosen = made["chosen"] > 0
    for text, own in zip(made["targets"][:50], chosen[:50], strict=True):
        for word in np.split(own[:-1], np.flatnonzero(text[:-1] == 35)[1:]):
            assert len(set(word)) == 1
    assert chosen.sum(1).mean() == pytest.approx(24, abs=0.4) and chosen.any(1).all()  # 15% of 160


@pytest.fixture
def permuted(golden, monkeypatch, vocabulary):
    """The arrays of the permutation collator, and the rows of PermutationLM for the same choice and order."""
    theirs = golden("permutation")
    # A token that is predicted sees those before it: as many as its place in the order.
    seen = ~theirs["perm_mask"] & theirs["chosen"][:, None, :]
    lots = seen.sum(2)
    monkeypatch.setattr(corruption, "chosen", everywhere(theirs["chosen"]))
    monkeypatch.setattr(corruption, "random_bits", everywhere(lots.astype(np.int32)))
    objective = PermutationLM()
    rows = rows_of(objective, examples_of(objective, theirs["tokens"], vocabulary), lots.shape[1])
    for row, order, chosen in zip(rows["encoder_order"], lots, theirs["chosen"], strict=True):
        np.testing.assert_array_equal(row, np.where(chosen, order, -1))
    return theirs, rows


def test_of_the_same_choice_and_order_the_same_may_be_seen(permuted):
    """perm_mask[i, j] = 1 hides j from i; their model lets the content stream see its own token besides.

    Left out are the rows of special tokens, which the next test is about, and the query stream of context,
    which is charged for nothing, and sees nothing here.
    """
    theirs, rows = permuted
    segments, order = jnp.asarray(rows["encoder_segment_ids"]), jnp.asarray(rows["encoder_order"])
    content = np.asarray(Mask.of(segments, order_BL=order).written_out())
    query = np.asarray(Mask.of(segments, order_BL=order, strict=True).written_out())
    allowed, chosen, text = ~theirs["perm_mask"], theirs["chosen"], theirs["tokens"] != EOS
    itself = np.eye(chosen.shape[1], dtype=bool)
    np.testing.assert_array_equal(content[text], (allowed | itself)[text])
    np.testing.assert_array_equal(query[chosen], allowed[chosen])
    assert query[chosen].any() and not query[~chosen].any()


def test_special_tokens_are_context_here_and_a_leak_there(permuted):
    """XLNet's code gives special tokens a place in the order and hides them from those before it.

    The collator gives them the place and hides them from nobody ("j is either masked or a functional token",
    says its comment; its code asks for masked ones alone). So a special token reads predicted tokens of lower
    rank, they read it, and from the second layer on a prediction sees its own token: `reached` is what their
    model depends on. It does no harm there only because the collator puts the mask in place of all predicted
    tokens in the content stream too, so that nothing predicted is ever read, whatever the order says; the
    paper's content stream (section 2.3) holds the tokens. Ours does, and EOS is context as any other token.
    """
    theirs, rows = permuted
    reached, chosen, special = theirs["reached"], theirs["chosen"], theirs["tokens"] == EOS
    themselves = np.einsum("rii->ri", reached)
    assert themselves[chosen].any(), "their predictions no longer see themselves"
    assert (theirs["inputs"][chosen] == MASK).all()
    np.testing.assert_array_equal(rows["encoder_input_tokens"], theirs["tokens"])
    # What ours sees through two layers or more: the query stream of one, the content stream of the others.
    segments, order = jnp.asarray(rows["encoder_segment_ids"]), jnp.asarray(rows["encoder_order"])
    content = np.asarray(Mask.of(segments, order_BL=order).written_out()).astype(int)
    query = np.asarray(Mask.of(segments, order_BL=order, strict=True).written_out()).astype(int)
    ours = query @ np.linalg.matrix_power(content, 4) > 0
    assert not np.einsum("rii->ri", ours).any()
    # Elsewhere theirs sees what ours does, and more only through a special token that it may read.
    np.testing.assert_array_equal(ours[chosen], query[chosen] > 0)
    assert (reached[chosen] >= ours[chosen]).all()
    through = (theirs["perm_mask"][special] == 0) & chosen  # of one special token a row
    more = ours | through[:, None, :]
    np.testing.assert_array_equal(reached[chosen], more[chosen])


def test_permutation_loss_is_theirs(permuted):
    theirs, rows = permuted
    np.testing.assert_array_equal(rows["encoder_loss_weights"], theirs["chosen"])
    np.testing.assert_array_equal(rows["encoder_target_tokens"], theirs["tokens"])
    found = loss_of(PermutationLM(), rows, logits_of(theirs["tokens"].shape))
    assert found == pytest.approx(theirs["loss"], rel=1e-5)


def test_the_share_that_is_predicted_is_theirs_but_not_its_spans_nor_orders(golden, vocabulary):
    """Spans of 1 to 5 tokens at a share of 1/6: theirs are uniform, as the paper says ("sample a length L").

    The authors' code (data_utils.py, `_sample_mask`) draws n as often as 1/n says, and so do we. And the
    collator has one order of places for both halves of a text, the second half after the first, for its
    memory; the paper draws one among all orders, and so do we (see test_permutation_lm.py).
    """
    theirs, tokens = golden("permutation"), made_of_words(2000, 48)
    chosen = drawn_by(PermutationLM(), tokens, vocabulary)["chosen"]
    # Of 47 tokens 7.83, which rounds to 8.
    share = theirs["number_chosen"] / theirs["eligible"]
    assert share == pytest.approx(1 / 6, abs=0.002)
    assert chosen[:, :-1].mean() == pytest.approx(8 / 47, abs=0.002)
    order = theirs["perm_mask"]
    half = tokens.shape[1] // 2
    for hidden, own in zip(order, theirs["chosen"], strict=True):
        first, second = (np.flatnonzero(own[part]) for part in (slice(0, half), slice(half, None)))
        assert hidden[np.ix_(first, second + half)].all() and not hidden[np.ix_(second + half, first)].any()
