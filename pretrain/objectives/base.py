"""What an objective is: how a corpus becomes examples, what a model is fed, and what it is charged for.

A corpus is a SeqIO task that ends where the corpus ends: its examples have "targets", a document's
tokens without EOS. An objective cuts them into chunks, makes an example of each chunk, and puts EOS where
the feature says so:

    corpus (seqio.Task)  --objective.bind-->  BoundTask: cut, make, append EOS       (examples)
                         --objective.converter-->  pad or pack, shift, mask          (rows)
                         --objective.loss-->  (sum of losses, sum of weights, ...)   (a batch)
"""

import abc
import dataclasses
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import seqio
import tensorflow as tf

from pretrain.data import groups, rows, seeds
from pretrain.data import vocabulary as vocabularies
from pretrain.data.chunks import cut_documents
from pretrain.errors import InputError

Family = Literal["encoder_decoder", "decoder", "encoder", "two_stream", "dual_encoder"]
Preprocessor = Callable[..., tf.data.Dataset]
Rate = float | Sequence[tuple[int, float]]
Mixes = Literal["rows", "batches", "losses"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(abc.ABC):
    """What to learn from a corpus; its settings are its fields.

    Attributes:
        join_documents: True puts documents end to end and cuts the stream into full chunks, as T5 and GPT
            do; False cuts each document on its own and keeps the short pieces, which packing then fills
            rows with.
        label_smoothing: probability taken from the target and spread over the vocabulary, in [0, 1).
        z_loss: weight of the squared log partition function.
        loss_chunks: parts of the length whose logits are made one after the other, and again for the
            gradient: memory for logits of one part, for one more product with the output weights.
        ends_documents: EOS stands at the end of each document, before the cut; else at the end of each
            example's features.
        shortest_chunk: tokens of the shortest chunk that makes an example; a shorter last one is left out.
        reads: the features of the corpus that it reads; of a document, "targets".
        compares_rows: the rows of a batch are compared with each other, so it cannot be computed in parts.
        chunks: parts of a batch that it computes one after the other by itself.
        mixes: what its parts share out, see `Mixture`.
    """

    compares_rows: ClassVar[bool] = False
    chunks: ClassVar[int] = 1
    mixes: ClassVar[Mixes] = "rows"

    reads: ClassVar[tuple[str, ...]] = ("targets",)
    ends_documents: ClassVar[bool] = False
    shortest_chunk: ClassVar[int] = 1
    join_documents: bool = True
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    loss_chunks: int = 1

    def __post_init__(self) -> None:
        check_flags(self)
        check_numbers(self, label_smoothing="[0, 1)", z_loss="[0, inf)")
        check_numbers(self, whole=True, loss_chunks="[1, inf)")

    @property
    @abc.abstractmethod
    def family(self) -> Family:
        """The kind of model it trains."""

    @property
    def parts(self) -> "Sequence[Part]":
        """What it is made of: itself, but where it is a mixture."""
        return (Part(objective=self),)

    def lengths_of(self, part: int, lengths: Mapping[str, int]) -> Mapping[str, int]:
        """The row lengths of a part, where those of the run are `lengths`."""
        return lengths

    @property
    def name(self) -> str:
        """The class in snake case, such as "span_corruption"."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()

    @abc.abstractmethod
    def check(self, lengths: Mapping[str, int], vocabulary: seqio.Vocabulary) -> None:
        """Raises InputError, with numbers that would do, unless examples fit these row lengths.

        Args:
            lengths: tokens in a row, by task feature: "targets", and "inputs" where there is an encoder.
            vocabulary: the corpus's.
        """

    @abc.abstractmethod
    def chunk_length(self, lengths: Mapping[str, int]) -> int:
        """Tokens in a full chunk, of which an example is made that fits these row lengths."""

    def example(
        self, tokens: tf.Tensor, seed: tf.Tensor, lengths: Mapping[str, int], vocabulary: seqio.Vocabulary
    ) -> dict[str, tf.Tensor]:
        """The features of an example, [tokens] int32 each, without EOS; a pure TensorFlow function.

        Args:
            tokens: int32 [n], a chunk; n is at least `shortest_chunk` and at most `chunk_length(lengths)`.
            seed: int64 [2], of this example, for `tf.random.stateless_*`.
            lengths: tokens in a row, by task feature.
            vocabulary: the corpus's.
        """
        raise NotImplementedError(f"{type(self).__name__} says neither `example` nor `examples`.")

    def examples(
        self,
        chunks: tf.RaggedTensor,
        seeds: tf.Tensor,
        lengths: Mapping[str, int],
        vocabulary: seqio.Vocabulary,
    ) -> dict[str, tf.RaggedTensor]:
        """The features of many examples: `example` of each, unless an objective has a faster way to say it.

        Args:
            chunks: int32 [n, (tokens)].
            seeds: int64 [n, 2], for `data.seeds.uniform`.
            lengths, vocabulary: as for `example`.

        Returns:
            int32 [n, (tokens)] each, without EOS; an example depends on its own chunk and seed alone.
        """

        @tf.function  # so that an `if` in `example` may ask a tensor
        def make(one: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
            return self.example(*one, lengths, vocabulary)

        specs = tf.TensorSpec([None], tf.int32), tf.TensorSpec([2], tf.int64)
        names = make.get_concrete_function(specs).structured_outputs
        signature = {name: tf.RaggedTensorSpec([None], tf.int32) for name in names}
        return tf.map_fn(make, (chunks, seeds), fn_output_signature=signature)

    def ended_examples(
        self,
        chunks: tf.RaggedTensor,
        seeds: tf.Tensor,
        lengths: Mapping[str, int],
        corpus_features: Mapping[str, seqio.Feature],
    ) -> dict[str, tf.RaggedTensor]:
        """`examples` with EOS where it belongs."""
        examples = self.examples(chunks, seeds, lengths, corpus_features["targets"].vocabulary)
        features = self.output_features(corpus_features)
        if set(examples) != set(features) or not all(map(_is_ragged, examples.values())):
            raise InputError(
                f"{type(self).__name__} makes {', '.join(sorted(examples))} of a chunk; it must make its "
                f"output_features, {', '.join(sorted(features))}, and of many chunks ragged tensors."
            )
        if self.ends_documents:
            return examples
        return {name: _ended(tokens, features[name]) for name, tokens in examples.items()}

    @property
    def makes_chunks(self) -> bool:
        """Whether an example is made of each chunk; not where an objective has preprocessors of its own."""
        return type(self).preprocessors is Objective.preprocessors

    def preprocessors(self) -> tuple[Preprocessor, ...]:
        """Functions (dataset, sequence_length, output_features) -> dataset, to follow the corpus's own."""
        ends = (seqio.preprocessors.append_eos,) if self.ends_documents else ()
        return (*ends, self._cut, self._make)

    def _cut(self, dataset: tf.data.Dataset, sequence_length, output_features) -> tf.data.Dataset:
        self.check(sequence_length, output_features["targets"].vocabulary)
        return cut_documents(dataset, self.chunk_length(sequence_length), self.join_documents)

    def _make(self, chunks: tf.data.Dataset, sequence_length, output_features) -> tf.data.Dataset:
        seeds_of = seeds.of_positions()
        size = groups.size(self.chunk_length(sequence_length))

        def make(number: tf.Tensor, group: Mapping[str, Any]) -> dict[str, tf.RaggedTensor]:
            chunks = groups.ragged(group)["targets"]
            own = seeds_of(number * size + tf.range(chunks.nrows()))
            if self.shortest_chunk > 1:
                long_enough = chunks.row_lengths() >= self.shortest_chunk
                chunks, own = tf.ragged.boolean_mask(chunks, long_enough), tf.boolean_mask(own, long_enough)
            return self.ended_examples(chunks, own, sequence_length, output_features)

        return groups.each(chunks.ragged_batch(size).enumerate(), make)

    @abc.abstractmethod
    def output_features(self, corpus_features: Mapping[str, seqio.Feature]) -> dict[str, seqio.Feature]:
        """The features of the examples it makes of a corpus with these."""

    @abc.abstractmethod
    def converter(self, pack: bool) -> seqio.FeatureConverter:
        """Turns its examples into the rows its model reads."""

    def loss(self, model, batch: Mapping[str, Any], key) -> Any:
        """Cross entropy of the target tokens.

        Args:
            model: has `features(batch, key)`, [batch, length, embed], and `logits(features)`, [batch,
                length, vocabulary].
            batch: the converter's features, each [batch, length].
            key: a PRNG key for dropout, or None.

        Returns:
            What `pretrain.losses.token_cross_entropy` returns.
        """
        from pretrain import losses  # here, because the data side of an objective needs no jax

        def sums(features, targets, weights, *part_ids):
            return losses.token_cross_entropy(
                model.logits(features), targets, weights, *part_ids, num_parts=len(self.parts),
                label_smoothing=self.label_smoothing, z_loss=self.z_loss,
            )  # fmt: skip

        of_tokens = (*rows.scored(batch), *rows.part_ids(batch))
        return losses.in_chunks(sums, self.loss_chunks)(model.features(batch, key), *of_tokens)

    def weight(self, batch: Mapping[str, Any]) -> Any:
        """The `weight` among the sums of `loss`, without computing them."""
        _, weights = rows.scored(batch)
        return weights.sum()

    @property
    def added(self) -> Mapping[str, float] | None:
        """The weights of the parts, by name, if the loss is the sum of their means; else None."""
        return None

    def factors(self, batch: Mapping[str, Any]) -> Any:
        """What `loss` multiplies the sums of each part of the global batch by; None where it does not."""
        return None

    @property
    def bidirectional_prompt(self) -> bool:
        """Whether a decoder reads its prompt in both directions, as it read its prefixes in training."""
        return False

    def encode_prompt(self, text: str, feature: seqio.Feature) -> list[int]:
        """Token ids of a prompt, as the model saw its inputs in training. Raises InputError.

        feature: the corpus's targets.
        """
        return vocabularies.parse(text, feature.vocabulary)

    def complete(
        self, inputs: vocabularies.Ids, targets: vocabularies.Ids, vocabulary: seqio.Vocabulary
    ) -> list[int]:
        """The whole text of an example, or of a prompt and what a model said to it: ids without EOS."""
        return [*inputs, *(token for token in targets if token != vocabulary.eos_id)]

    def bind(
        self, task: seqio.Task | seqio.Mixture, shuffle_buffer: int | None = None
    ) -> seqio.Task | seqio.Mixture:
        """The task that yields this objective's examples of a corpus, registered nowhere.

        Args:
            task: a corpus, or a mixture of corpora, whose rates are kept.
            shuffle_buffer: examples of each corpus held back to shuffle; None is as many as the corpus says.

        Raises:
            InputError: `task` is no corpus.
        """
        if isinstance(task, seqio.Mixture):
            return _bind_mixture(self, task, shuffle_buffer)
        if not isinstance(task, seqio.Task):
            raise InputError(
                f"{type(self).__name__} binds a seqio.Task or seqio.Mixture, not {task!r}: "
                "look a name up with seqio.get_mixture_or_task."
            )
        return BoundTask(task, self, shuffle_buffer)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One of the things that a run learns: an objective, on a corpus, in a share of the rows.

    Attributes:
        objective: what to learn.
        task: from what, as `RunConfig.task`; None is the run's.
        rate: its share of the rows, relative to the other parts; or pairs (step, rate) in order, the first
            of step 0: the share from that step on.
        weight: what its loss is multiplied by.
        lengths: of its rows, as `RunConfig.lengths`, if it has rows of its own; None is the run's.
        name: what its figures are called; None is the objective's name.
    """

    objective: Objective
    task: str | seqio.Task | seqio.Mixture | None = None
    rate: Rate = 1.0
    weight: float = 1.0
    lengths: Mapping[str, int] | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str | None):
            raise InputError(f"Part.name is {self.name!r}; give a text.")
        if not isinstance(self.objective, Objective):
            raise InputError(
                f"Part.objective is {self.objective!r}; give an objective, such as @causal_lm.CausalLM()."
            )
        check_number(f"Part.weight of {self.called}", self.weight, "(0, inf)")
        if not isinstance(self.lengths, Mapping | None):
            raise InputError(
                f"Part.lengths of {self.called} is {self.lengths!r}; give lengths such as {{'inputs': 512}}."
            )
        if not isinstance(self.task, str | seqio.Task | seqio.Mixture | None):
            raise InputError(f"Part.task of {self.called} is {self.task!r}; give a task, or its name.")
        if not isinstance(self.rate, int | float) and not _is_pairs(self.rate):
            raise InputError(
                f"Part.rate of {self.called} is {self.rate!r}; give a number, or pairs (step, rate)."
            )
        steps = [step for step, _ in self.rates]
        whole = all(isinstance(step, int) for step in steps)
        if not steps or not whole or steps[0] != 0 or sorted(set(steps)) != steps:
            raise InputError(
                f"Part.rate of {self.called} changes at the steps {steps}: begin with step 0, and go up in "
                "whole steps."
            )
        for _, rate in self.rates:
            check_number(f"Part.rate of {self.called}", rate, "[0, inf)")

    @property
    def called(self) -> str:
        return self.name or self.objective.name

    @property
    def rates(self) -> Sequence[tuple[int, float]]:
        """(step, rate) of each stretch of steps."""
        return [(0, self.rate)] if isinstance(self.rate, int | float) else list(self.rate)

    def rate_at(self, step: int) -> float:
        return [rate for first, rate in self.rates if first <= step][-1]


def _is_pairs(rate: Any) -> bool:
    listed = isinstance(rate, list | tuple)
    return listed and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in rate)


def _is_ragged(tokens: Any) -> bool:
    return isinstance(tokens, tf.RaggedTensor)


def _ended(tokens: tf.RaggedTensor, feature: seqio.Feature) -> tf.RaggedTensor:
    if not feature.add_eos:
        return tokens
    return tf.concat([tokens, tf.fill([tokens.nrows(), 1], feature.vocabulary.eos_id)], axis=1)


def check_number(called: str, value: Any, interval: str, *, whole: bool = False) -> None:
    """Raises InputError unless the value is a number in the interval, such as "[0, 1)", with 0 and without 1.

    A bool is no number here, and what is not a number (NaN) is in no interval.

    >>> check_number("MaskedLM.max_ngram", 1.5, "[1, inf)", whole=True)
    Traceback (most recent call last):
    pretrain.errors.InputError: MaskedLM.max_ngram must be a whole number of at least 1, not 1.5.
    """
    low, high = interval[1:-1].split(", ")
    ends = [float(end) for end, bound in ((low, interval[0]), (high, interval[-1])) if bound in "[]"]
    kind = numbers.Integral if whole else numbers.Real
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    if is_number and (float(low) < value < float(high) or value in ends):
        return
    if high == "inf":
        among = f"at least {low}" if ends else f"above {low}"
    else:
        among = f"in {interval}" if ends else f"between {low} and {high}"
    raise InputError(f"{called} must be {'a whole number of ' if whole else ''}{among}, not {value!r}.")


def check_numbers(thing: Any, *, whole: bool = False, **intervals: str) -> None:
    """`check_number` of the fields of these names."""
    for name, interval in intervals.items():
        check_number(f"{type(thing).__name__}.{name}", getattr(thing, name), interval, whole=whole)


def check_flags(thing: Any) -> None:
    """Raises InputError unless fields that are True or False by default are one of them."""
    for field in dataclasses.fields(thing):
        value = getattr(thing, field.name)
        if isinstance(field.default, bool) and not isinstance(value, bool):
            raise InputError(f"{type(thing).__name__}.{field.name} must be True or False, not {value!r}.")


def check_of_chunks(objective: Objective, *names: str) -> None:
    """Raises InputError if fields that say how examples are made of chunks are set, where none are made."""
    for field in dataclasses.fields(objective):
        if field.name in names and getattr(objective, field.name) != field.default:
            raise InputError(
                f"{type(objective).__name__}.{field.name} has no effect on the pairs of a task: leave it out."
            )


def check_family(objective: Objective) -> None:
    """Raises InputError unless the objective's family is one that reads inputs and writes targets."""
    if objective.family not in ("decoder", "encoder_decoder"):
        raise InputError(
            f"{type(objective).__name__}.family must be 'decoder' or 'encoder_decoder', "
            f"not {objective.family!r}."
        )


def check_lengths(objective: Objective, lengths: Mapping[str, int] | None, **least: int) -> None:
    """Raises InputError unless `lengths` has exactly the features in `least`, each at least so long."""
    if lengths is None or set(lengths) != set(least):
        raise InputError(
            f"{type(objective).__name__} needs the lengths of {' and '.join(sorted(least))} "
            f"for the {objective.family} family, not {dict(lengths or {})}."
        )
    for feature, length in least.items():
        if not isinstance(lengths[feature], numbers.Integral) or lengths[feature] < length:
            raise InputError(
                f"lengths[{feature!r}] must be a whole number of at least {length} for "
                f"{type(objective).__name__}, not {lengths[feature]!r}."
            )


class BoundTask(seqio.Task):
    """A corpus and an objective. It reads the corpus's cache, and its noise differs by data shard.

    It has no metrics: the corpus's describe other targets than these.
    """

    def __init__(self, corpus: seqio.Task, objective: Objective, shuffle_buffer: int | None = None):
        _check_corpus(corpus, objective)
        self.corpus = corpus
        self.objective = objective
        self._shuffle_buffer = shuffle_buffer
        super().__init__(
            name=f"{corpus.name}.{objective.name}",
            source=corpus.source,
            output_features=objective.output_features(corpus.output_features),
            preprocessors=(*corpus.preprocessors, *objective.preprocessors()),
            # None is SeqIO's way to say that a corpus must not be shuffled.
            shuffle_buffer_size=corpus.shuffle_buffer_size and (shuffle_buffer or corpus.shuffle_buffer_size),
            source_info=corpus.source_info,
        )

    @property
    def cache_dir(self) -> str | None:
        """The corpus's, because SeqIO finds a cache by the task's name."""
        return self.corpus.cache_dir

    def assert_cached(self) -> None:
        self.corpus.assert_cached()

    def replace(self, **kwargs) -> "BoundTask":
        """The same objective bound to `corpus.replace(**kwargs)`."""
        return BoundTask(self.corpus.replace(**kwargs), self.objective, self._shuffle_buffer)

    def get_dataset(
        self,
        sequence_length: Mapping[str, int] | None = None,
        split: str = "train",
        *,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **kwargs,
    ) -> tf.data.Dataset:
        """As `seqio.Task.get_dataset`, but chunks are not trimmed; `sequence_length` must be given.

        Every shard gets the same `seed`, because SeqIO may shuffle before it shards; what sets the shards'
        noise apart is the stream.
        """
        shard_index = shard_info.index if shard_info else 0
        with seeds.stream(seed, self.corpus.name, shard_index):
            if self.objective.makes_chunks:
                # Its examples fit: one that does not is a fault, which converters tell and a trim would hide.
                kwargs["trim_output_features"] = False
            return super().get_dataset(sequence_length, split, seed=seed, shard_info=shard_info, **kwargs)


def _check_corpus(corpus: seqio.Task, objective: Objective) -> None:
    if isinstance(corpus, BoundTask):
        raise InputError(
            f"Task {corpus.name!r} has an objective already: "
            f"bind {objective.name} to its corpus, {corpus.corpus.name!r}."
        )
    for name in objective.reads:
        feature = corpus.output_features.get(name)
        if feature is None:
            raise InputError(
                f"Task {corpus.name!r} has the output features {sorted(corpus.output_features)}, "
                f"but {objective.name} reads {' and '.join(map(repr, objective.reads))}: add {name!r}."
            )
        if feature.dtype != tf.int32 or feature.rank != 1:
            raise InputError(
                f"Feature {name!r} of task {corpus.name!r} must be int32 of rank 1, tokens, "
                f"not {feature.dtype.name} of rank {feature.rank}."
            )


def _bind_mixture(objective: Objective, mixture: seqio.Mixture, shuffle_buffer: int | None) -> seqio.Mixture:
    def rate(bound: seqio.Task) -> float:
        assert isinstance(bound, BoundTask)
        return mixture.get_rate(bound.corpus)

    return seqio.Mixture(
        name=f"{mixture.name}.{objective.name}",
        tasks=[(BoundTask(task, objective, shuffle_buffer), rate) for task in mixture.tasks],
        sample_fn=mixture._sample_fn,  # a part of what the rates mean, which SeqIO makes public nowhere
    )
