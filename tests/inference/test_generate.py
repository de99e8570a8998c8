"""How what a model said becomes a text."""

import pytest
import seqio

from pretrain.inference.generate import _as_begun


@pytest.mark.parametrize(
    ("text", "prompt", "pieces", "expected"),
    [
        (" Thank you", "Thank you", True, "Thank you"),
        (" Thank you", "Thank you", False, " Thank you"),
        ("  return x", "<extra_id_0>return x", False, "  return x"),
        ("  return x", " return", True, "  return x"),
    ],
)
def test_only_the_space_that_sentencepiece_puts_before_a_text_is_taken_away(text, prompt, pieces, expected):
    vocabulary = seqio.SentencePieceVocabulary("any.model") if pieces else seqio.ByteVocabulary()
    assert _as_begun(text, prompt, vocabulary) == expected
