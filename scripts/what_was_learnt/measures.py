"""What a trained model can do on held-out text, and what a trivial baseline can on the very same text."""

import dataclasses
from collections import Counter
from collections.abc import Callable

import baselines
import numpy as np
import passages
import tensorflow as tf

from pretrain import evaluation, metrics, pipeline
from pretrain.data import corruption, rows
from pretrain.data import vocabulary as vocabularies
from pretrain.inference.embedding import embed_tokens
from pretrain.inference.generate import generate
from pretrain.objectives.denoising import Denoising, Infilling
from pretrain.run import RunConfig
from pretrain.training.loading import Trained

NEAREST = 10


@dataclasses.dataclass(frozen=True)
class Learnt:
    """measure: what is counted; lower: whether less of it is better; baseline: who reached `of_baseline`."""

    measure: str
    of_model: float
    of_baseline: float
    baseline: str
    lower: bool = False

    @property
    def beaten(self) -> bool:
        return self.of_model < self.of_baseline if self.lower else self.of_model > self.of_baseline


Measure = Callable[[RunConfig, Trained], Learnt]


def of(run: RunConfig) -> Measure:
    """The measure that fits what the run learns."""
    if run.model.family == "dual_encoder":
        return retrieval
    if run.model.family in ("encoder", "two_stream"):
        return hidden_tokens
    by_name = {"denoising": bits_per_hidden_byte, "fill_in_the_middle": infilling}
    return by_name.get(run.objective.name, bits_per_byte)


def hidden_tokens(run: RunConfig, trained: Trained) -> Learnt:
    """How many of the tokens that it is asked for the model finds."""
    found = evaluation.evaluate(run, trained.programs.eval_step, trained.params, trained.mesh)
    everywhere, asked = np.zeros((2, run.vocabulary().vocab_size), np.int64)
    for batch in evaluation.held_out(run):
        targets, weights = rows.scored(batch)
        np.add.at(everywhere, targets[batch["encoder_segment_ids"] > 0], 1)
        np.add.at(asked, targets[weights > 0], 1)
    return Learnt(
        "accuracy on hidden bytes",
        found["accuracy"],
        baselines.most_frequent_token(everywhere, asked),
        "unigram: always the most frequent byte",
    )


def bits_per_byte(run: RunConfig, trained: Trained) -> Learnt:
    """What `pretrain evaluate` says: all that the targets cost, over the bytes of text in them."""
    found = evaluation.evaluate(run, trained.programs.eval_step, trained.params, trained.mesh)
    return _against_bigrams("bits per byte", found["bits_per_byte"], run)


def _against_bigrams(measure: str, of_model: float, run: RunConfig) -> Learnt:
    bigram = evaluation.text_entropies(run)["bigram_bits_per_byte"]
    return Learnt(measure, of_model, bigram, "bigram entropy of the text", lower=True)


def bits_per_hidden_byte(run: RunConfig, trained: Trained) -> Learnt:
    """Bits per byte of a denoiser over what its inputs do not show: to copy the rest is no feat.

    The noise is its infilling alone, so that it is known which bytes of the targets were hidden.
    """
    assert isinstance(run.objective, Denoising)
    (noise,) = (each for each in run.objective.noise if isinstance(each, Infilling))
    size = run.objective.chunk_length(run.lengths)
    chunks = tf.ragged.constant([c.tolist() for c in passages.cut(passages.documents(run), size)], tf.int32)
    seeds = tf.stack([tf.range(chunks.nrows()), tf.zeros(chunks.nrows(), tf.int64)], axis=1)
    lengths = tf.cast(chunks.row_lengths(), tf.int32)
    spans = corruption.infilling_spans(lengths, noise.rate, noise.mean_span_length, seeds, draw=0)
    mask = vocabularies.mask_id(run.vocabulary(), run.objective.mask_id)
    ended = [
        tf.concat([x, tf.fill([x.nrows(), 1], run.vocabulary().eos_id)], axis=1)
        for x in (corruption.masked_spans(chunks, *spans, mask), chunks)
    ]
    examples = tf.data.Dataset.from_tensor_slices(dict(zip(("inputs", "targets"), ended, strict=True)))
    converted = run.objective.converter(pack=False)(examples, dict(run.lengths))
    batches = converted.batch(run.batch_size, drop_remainder=True)
    weights = passages.inside_spans(spans[0].numpy(), spans[1].numpy(), run.lengths["targets"])
    sums = []
    for number, batch in enumerate(batches.as_numpy_iterator()):
        own = weights[number * run.batch_size :][: run.batch_size]
        charged = pipeline.to_devices({**batch, "decoder_loss_weights": own}, trained.mesh, run.rules)
        sums.append(trained.programs.eval_step(trained.params, charged))
    found = metrics.figures(metrics.add(sums))
    return _against_bigrams("bits per hidden byte", found["bits_per_byte"], run)


def retrieval(run: RunConfig, trained: Trained) -> Learnt:
    """How often the second half of a passage is among the nearest to its first half."""
    half = min(run.lengths.values()) - 1
    whole = passages.spread(passages.cut(passages.documents(run), 2 * half), passages.NUMBER)
    sides = [passage[:half] for passage in whole], [passage[half:] for passage in whole]
    left, right = (
        embed_tokens(run, trained.params, trained.mesh, texts, side)
        for texts, side in zip(sides, ("left", "right"), strict=True)
    )
    spelled = ([vocabularies.text_bytes(text, run.vocabulary()) for text in side] for side in sides)
    return Learnt(
        f"recall@{NEAREST} of the other half, of {len(whole)}",
        baselines.recall(left @ right.T, NEAREST),
        baselines.recall(baselines.ngram_cosines(*spelled), NEAREST),
        f"bags of 1 to 3 bytes (chance: {NEAREST / len(whole):.3f})",
    )


def infilling(run: RunConfig, trained: Trained) -> Learnt:
    """How often the end of a word in code is filled in to the letter.

    What is written after the word is not judged: small models have not learnt where a gap ends.
    """
    gaps = passages.gaps(run)
    prompts = [f"{gap.before}<extra_id_0>{gap.after}" for gap in gaps]
    said: list[str] = []
    for first in range(0, len(prompts), passages.AT_A_TIME):
        some = prompts[first : first + passages.AT_A_TIME]
        # One token more than the longest gap has: the end of the word.
        made = generate(run, trained.params, trained.mesh, some, max_tokens=passages.LONGEST_GAP + 1)
        said += [passages.end_of_word(each.output) for each in made]
    hidden = [gap.hidden for gap in gaps]
    ((frequent, _),) = Counter(hidden).most_common(1)
    return Learnt(
        f"exact infills of the ends of {len(gaps)} words",
        baselines.exact(said, hidden),
        baselines.exact([frequent] * len(gaps), hidden),
        f"always the most frequent, {frequent!r}",
    )
