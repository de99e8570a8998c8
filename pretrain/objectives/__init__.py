"""Objectives: each is a frozen dataclass that turns a corpus into examples, rows and a loss."""

from pretrain.objectives.base import Part
from pretrain.objectives.causal_lm import CausalLM
from pretrain.objectives.contrastive import Contrastive
from pretrain.objectives.denoising import Denoising
from pretrain.objectives.fill_in_the_middle import FillInTheMiddle
from pretrain.objectives.iid_denoising import IidDenoising
from pretrain.objectives.masked_lm import MaskedLM
from pretrain.objectives.mixture import Mixture
from pretrain.objectives.permutation_lm import PermutationLM
from pretrain.objectives.prefix_lm import PrefixLM
from pretrain.objectives.span_corruption import SpanCorruption
from pretrain.objectives.text_to_text import TextToText
from pretrain.objectives.ul2 import UL2

__all__ = [
    "UL2",
    "CausalLM",
    "Contrastive",
    "Denoising",
    "FillInTheMiddle",
    "IidDenoising",
    "MaskedLM",
    "Mixture",
    "Part",
    "PermutationLM",
    "PrefixLM",
    "SpanCorruption",
    "TextToText",
]
