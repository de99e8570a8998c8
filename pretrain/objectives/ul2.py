"""UL2: denoisers of several kinds in one run, each with a token that says which it is."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import seqio
import tensorflow as tf

from pretrain.data import vocabulary as vocabularies
from pretrain.errors import InputError
from pretrain.objectives.base import Family, Objective, Part, check_family, check_number, check_numbers
from pretrain.objectives.mixture import Mixture
from pretrain.objectives.prefix_lm import PrefixLM
from pretrain.objectives.span_corruption import SpanCorruption

MODES = ("R", "X", "S")
_X = ((3, 0.5), (8, 0.5), (64, 0.15), (64, 0.5))  # mean tokens of a span, density


@dataclasses.dataclass(frozen=True, kw_only=True)
class UL2(Mixture):
    """A mixture of seven denoisers: short spans (R), long or many spans (X) and a prefix LM (S).

    The objective of Tay et al. 2022 (https://arxiv.org/abs/2205.05131, table 1): R has spans of 3 and 8
    tokens on average at density 0.15; X has 3 and 8 at 0.5, and 64 at 0.15 and 0.5; S goes on from a prefix
    that ends anywhere, as in the published code, where the table says at three quarters. Before the inputs
    stands a token that names the mode, of three that are the vocabulary's last sentinels. Chunks are as much
    shorter as sentinels and rows ask for: the published code runs over both.

    To go on from another model (UL2R, https://arxiv.org/abs/2210.11399), set `RunConfig.warm_start`.

    Attributes:
        rates: shares of the rows, of R, X and S together and divided evenly within each; the paper's seven
            denoisers have one share each.
        mode_tokens: whether there are tokens for the modes.
        most_spans: in a chunk; of the vocabulary's sentinels three are the modes'.
    """

    family: Family = "encoder_decoder"
    parts: Sequence[Part] = dataclasses.field(init=False)
    rates: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"R": 2.0, "X": 4.0, "S": 1.0})
    mode_tokens: bool = True
    most_spans: int = 97

    def __post_init__(self) -> None:
        check_family(self)
        if set(self.rates) != set(MODES):
            raise InputError(f"UL2.rates are of R, X and S, not of {', '.join(map(str, self.rates))}.")
        for mode, rate in self.rates.items():
            check_number(f"UL2.rates[{mode!r}]", rate, "[0, inf)")
        check_numbers(self, whole=True, most_spans="[1, inf)")
        object.__setattr__(self, "parts", self._denoisers())
        super().__post_init__()

    def _denoisers(self) -> Sequence[Part]:
        def spans(mean: float, density: float) -> Objective:
            return SpanCorruption(
                family=self.family, join_documents=self.join_documents, mean_span_length=mean,
                noise_density=density, most_spans=self.most_spans,
            )  # fmt: skip

        made: dict[str, dict[str, Objective]] = {
            "R": {f"R_{mean}": spans(mean, 0.15) for mean in (3, 8)},
            "X": {f"X_{mean}_{int(100 * density)}": spans(mean, density) for mean, density in _X},
            "S": {"S": PrefixLM(family=self.family, join_documents=self.join_documents)},
        }
        return [
            Part(
                objective=Mode(of=objective, mode=mode) if self.mode_tokens else objective,
                rate=self.rates[mode] / len(kinds), name=name,
            )
            for mode, kinds in made.items()
            for name, objective in kinds.items()
        ]  # fmt: skip

    def check(self, lengths: Mapping[str, int], vocabulary: seqio.Vocabulary) -> None:
        needed = self.most_spans + (len(MODES) if self.mode_tokens else 0)
        if (sentinels := vocabularies.num_sentinels(vocabulary)) < needed:
            most = sentinels - needed + self.most_spans
            fewer = f"UL2.most_spans={most}, or " if most > 0 else ""
            raise InputError(
                f"UL2 needs {needed} sentinels, but the vocabulary has {sentinels}: "
                f"set {fewer}extra_ids={needed}."
            )
        super().check(lengths, vocabulary)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mode(Objective):
    """Another objective, whose inputs begin with a token that names a mode."""

    of: Objective
    mode: str

    _ROW: ClassVar[Mapping[str, str]] = {"encoder_decoder": "inputs", "decoder": "targets"}

    def __post_init__(self) -> None:
        object.__setattr__(self, "join_documents", self.of.join_documents)
        super().__post_init__()

    @property
    def family(self) -> Family:
        return self.of.family

    @property
    def shortest_chunk(self) -> int:  # type: ignore[override]
        return self.of.shortest_chunk

    def token(self, vocabulary: seqio.Vocabulary) -> int:
        """The id of the mode, one of the last sentinels."""
        return vocabulary.vocab_size - vocabularies.num_sentinels(vocabulary) + MODES.index(self.mode)

    def _less(self, lengths: Mapping[str, int]) -> dict[str, int]:
        """The row lengths without the place of the token."""
        row = self._ROW[self.family]
        return {name: length - (name == row) for name, length in lengths.items()}

    def check(self, lengths: Mapping[str, int], vocabulary: seqio.Vocabulary) -> None:
        self.of.check(self._less(lengths), vocabulary)

    def chunk_length(self, lengths: Mapping[str, int]) -> int:
        return self.of.chunk_length(self._less(lengths))

    def examples(
        self, chunks: tf.RaggedTensor, seeds: tf.Tensor, lengths, vocabulary
    ) -> dict[str, tf.RaggedTensor]:
        made = self.of.examples(chunks, seeds, self._less(lengths), vocabulary)
        token = tf.fill([chunks.nrows(), 1], self.token(vocabulary))
        return {**made, "inputs": tf.concat([token, made["inputs"]], axis=1)}

    def output_features(self, corpus_features: Mapping[str, seqio.Feature]) -> dict[str, seqio.Feature]:
        return self.of.output_features(corpus_features)

    def converter(self, pack: bool) -> seqio.FeatureConverter:
        return self.of.converter(pack)

    @property
    def bidirectional_prompt(self) -> bool:
        return self.of.bidirectional_prompt

    def encode_prompt(self, text: str, feature: seqio.Feature) -> list[int]:
        ids, mode = self.of.encode_prompt(text, feature), self.token(feature.vocabulary)
        modes = {mode + number - MODES.index(self.mode) for number in range(len(MODES))}
        if taken := modes.intersection(ids):
            last = feature.vocabulary.vocab_size - 1 - min(taken)
            raise InputError(f"The prompt {text!r} has <extra_id_{last}>, which is the token of a mode.")
        return [mode, *ids]

    def complete(self, inputs, targets, vocabulary: seqio.Vocabulary) -> list[int]:
        mode = self.token(vocabulary)
        inputs = [token for token in inputs if token != mode]
        targets = [token for token in targets if token != mode]  # a decoder's row holds both
        return self.of.complete(inputs, targets, vocabulary)
