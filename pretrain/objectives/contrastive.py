"""Contrastive learning: texts that belong together get vectors that are alike, others do not."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import seqio
import tensorflow as tf

from pretrain.data import corruption, groups, rows
from pretrain.data import vocabulary as vocabularies
from pretrain.data.converters import DualEncoderConverter
from pretrain.data.seeds import uniform
from pretrain.errors import InputError
from pretrain.objectives.base import (
    Family,
    Objective,
    Preprocessor,
    check_lengths,
    check_numbers,
    check_of_chunks,
)
from pretrain.objectives.text_to_text import ended

Pairs = Literal["crops", "cloze", "features"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrastive(Objective):
    """Of a text and all the others in the global batch, which one belongs to this one?

    The loss is cross entropy over the cosines of a batch's vectors, divided by a temperature that the model
    learns (https://arxiv.org/abs/1807.03748); the targets of all other rows, on all devices, are the wrong
    answers. What belongs together:

    pairs="crops": two random stretches of a chunk (Contriever, https://arxiv.org/abs/2112.09118, section 3),
    each `crop_min` to `crop_max` of it, of whose tokens a share `deletion` is left out.

    pairs="cloze": a random sentence and the chunk around it, from which it is taken out but for one time in
    ten (inverse cloze task, https://arxiv.org/abs/1906.00300, section 4).

    pairs="features": the features "inputs" and "targets" of the task, such as questions and passages.

    Examples: {"inputs": int32 [up to lengths["inputs"]], "targets": int32 [up to lengths["targets"]]}.

    Attributes:
        symmetric: also ask which inputs belong to each targets, and take the mean of both.
        chunks: parts in which the vectors of a batch are made, one after the other, and again for the
            gradient: the memory of one, and the gradient of the whole batch.
    """

    family: ClassVar[Family] = "dual_encoder"
    compares_rows: ClassVar[bool] = True
    join_documents: bool = False
    pairs: Pairs = "crops"
    crop_min: float = 0.1
    crop_max: float = 0.5
    deletion: float = 0.1
    symmetric: bool = False
    chunks: int = 1  # type: ignore[misc]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pairs not in get_args(Pairs):
            raise InputError(f"Contrastive.pairs must be one of {get_args(Pairs)}, not {self.pairs!r}.")
        check_numbers(self, crop_min="(0, 1]", crop_max="(0, 1]", deletion="[0, 1)")
        check_numbers(self, whole=True, chunks="[1, inf)")
        if self.crop_min > self.crop_max:
            raise InputError(
                f"Contrastive.crop_min={self.crop_min} and crop_max={self.crop_max} are shares of a chunk: "
                "make the first no greater than the second."
            )
        if self.pairs == "features":
            check_of_chunks(self, "join_documents", "crop_min", "crop_max", "deletion")
        if (self.label_smoothing, self.z_loss, self.loss_chunks) != (0.0, 0.0, 1):
            raise InputError("Contrastive has no label_smoothing, z_loss or loss_chunks: leave them out.")

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("inputs", "targets") if self.pairs == "features" else ("targets",)

    @property
    def shortest_chunk(self) -> int:  # type: ignore[override]
        return 2

    def check(self, lengths: Mapping[str, int], vocabulary: seqio.Vocabulary) -> None:
        check_lengths(self, lengths, inputs=4, targets=4)

    def chunk_length(self, lengths: Mapping[str, int]) -> int:
        if self.pairs == "cloze":
            return lengths["targets"] - 1
        return int((min(lengths.values()) - 1) / self.crop_max)

    def preprocessors(self) -> tuple[Preprocessor, ...]:
        return (self._given,) if self.pairs == "features" else super().preprocessors()

    @property
    def makes_chunks(self) -> bool:
        return self.pairs != "features"

    def _given(self, pairs: tf.data.Dataset, sequence_length, output_features) -> tf.data.Dataset:
        self.check(sequence_length, output_features["targets"].vocabulary)

        def fit(group: Mapping[str, Any]) -> dict[str, tf.RaggedTensor]:
            pair = groups.ragged(group)
            return {name: ended(pair[name], output_features[name], sequence_length[name]) for name in pair}

        read = pairs.map(lambda pair: {name: pair[name] for name in self.reads})
        return groups.each(read.ragged_batch(groups.size(sum(sequence_length.values()))), fit)

    def examples(
        self, chunks: tf.RaggedTensor, seeds: tf.Tensor, lengths, vocabulary
    ) -> dict[str, tf.RaggedTensor]:
        if self.pairs == "cloze":
            return self._cloze(chunks, seeds, lengths, vocabulary)
        return {"inputs": self._crop(chunks, seeds, draw=0), "targets": self._crop(chunks, seeds, draw=4)}

    def _crop(self, chunks: tf.RaggedTensor, seeds: tf.Tensor, draw: int) -> tf.RaggedTensor:
        found = corruption.cropped(chunks, self.crop_min, self.crop_max, seeds, draw)
        dense = found.to_tensor()
        units = tf.broadcast_to(tf.range(tf.shape(dense)[1]), tf.shape(dense))
        inside = tf.sequence_mask(found.row_lengths(), tf.shape(dense)[1])
        # The first token stays, so that something does.
        left_out = corruption.chosen(units, inside & (units > 0), self.deletion, seeds, draw + 2, least=0)
        return corruption.without(found, left_out)

    def _cloze(
        self, chunks: tf.RaggedTensor, seeds: tf.Tensor, lengths: Mapping[str, int], vocabulary
    ) -> dict[str, tf.RaggedTensor]:
        dense = chunks.to_tensor(default_value=vocabulary.pad_id)
        inside = tf.sequence_mask(chunks.row_lengths(), tf.shape(dense)[1])
        sentence = corruption.sentences(dense, vocabularies.Punctuation.of(vocabulary))
        number = tf.reduce_max(tf.where(inside, sentence, 0), axis=1, keepdims=True) + 1
        lots = uniform(seeds, 2)
        own = inside & (sentence == tf.cast(lots[:, :1] * tf.cast(number, tf.float32), tf.int32))
        # A chunk of one sentence keeps it: the context would be empty.
        leaves = (lots[:, 1:] < 0.9) & (number > 1)
        return {
            "inputs": tf.ragged.boolean_mask(dense, own)[:, : lengths["inputs"] - 1],
            "targets": tf.ragged.boolean_mask(dense, inside & ~(own & leaves)),
        }

    def output_features(self, corpus_features: Mapping[str, seqio.Feature]) -> dict[str, seqio.Feature]:
        targets = corpus_features["targets"]
        return {"inputs": corpus_features.get("inputs", targets), "targets": targets}

    def converter(self, pack: bool) -> DualEncoderConverter:
        return DualEncoderConverter(pack)

    def loss(self, model, batch: Mapping[str, Any], key) -> Any:
        """Cross entropy of which targets belong to each inputs; sums over the pairs of the batch."""
        from pretrain import losses  # here, because the data side of an objective needs no jax

        left, right = losses.pair_embeddings(model, batch, key, self.chunks)
        return losses.pair_cross_entropy(left, right, rows.real(batch), model.scale, symmetric=self.symmetric)

    def weight(self, batch: Mapping[str, Any]) -> Any:
        return rows.real(batch).sum(dtype="float32")

    def encode_prompt(self, text: str, feature: seqio.Feature) -> list[int]:
        raise InputError("A contrastive model compares texts and writes none.")
