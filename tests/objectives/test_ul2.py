"""UL2: the seven denoisers, their modes, and that nothing overflows."""

import numpy as np
import pytest
import seqio

from pretrain.errors import InputError
from pretrain.objectives import UL2

CASES = [
    ("encoder_decoder", {"inputs": 64, "targets": 64}), ("encoder_decoder", {"inputs": 300, "targets": 40}),
    ("decoder", {"targets": 96}),
]  # fmt: skip
MODES = {"R": 259, "X": 260, "S": 261}  # the last three of 100 sentinels


@pytest.mark.parametrize(
    ("family", "lengths", "mode_tokens"), [*((*case, True) for case in CASES), (*CASES[0], False)], ids=str
)
def test_every_denoiser_fits_and_keeps_the_text(
    mode_tokens, family, lengths, corpus, documents, vocabulary, read
):
    objective = UL2(family=family, mode_tokens=mode_tokens)
    objective.check(lengths, vocabulary)
    everything = np.concatenate(documents)
    for part in objective.parts:
        examples = read(part.objective.bind(corpus()), lengths)
        texts = []
        for example in examples:
            inputs, targets = example["inputs"], example["targets"]
            marked = inputs[0] == MODES[part.called[0]]
            assert marked == mode_tokens
            assert not {259, 260, 261} & {*inputs[1:].tolist(), *targets.tolist()}
            if family == "decoder":
                assert len(inputs) + len(targets) <= lengths["targets"]
            else:
                assert len(inputs) <= lengths["inputs"] and len(targets) <= lengths["targets"]
            texts.append(part.objective.complete(inputs, targets, vocabulary))
        found = np.concatenate(texts)
        # PrefixLM drops a last chunk of one token.
        np.testing.assert_array_equal(found, everything[: len(found)])
        assert len(everything) - len(found) <= 1
        full = max(len(example["inputs"]) + len(example["targets"]) for example in examples)
        assert full > min(lengths.values()) * 0.8


def test_the_denoisers_are_those_of_the_paper():
    found = {
        part.called: (part.objective.of.mean_span_length, part.objective.of.noise_density, part.rate)
        for part in UL2().parts
        if part.called != "S"
    }
    assert found == {
        "R_3": (3, 0.15, 1), "R_8": (8, 0.15, 1), "X_3_50": (3, 0.5, 1), "X_8_50": (8, 0.5, 1),
        "X_64_15": (64, 0.15, 1), "X_64_50": (64, 0.5, 1),
    }  # fmt: skip
    # The published lengths at 512 inputs, less the mode; X_3_50 has 97 of 128 spans, for want of sentinels.
    lengths = {"inputs": 512, "targets": 512}
    tokens = [part.objective.chunk_length(lengths) for part in UL2().parts]
    assert tokens == [567, 587, 585, 906, 599, 1004, 511]
    rates = UL2(rates={"R": 1.0, "X": 0.0, "S": 1.0}).parts
    assert [part.rate for part in rates] == [0.5, 0.5, 0, 0, 0, 0, 1.0]


def test_prompts_with_the_token_of_a_mode_are_refused(vocabulary):
    first = UL2().parts[0].objective
    feature = seqio.Feature(vocabulary, add_eos=True)
    assert first.encode_prompt("a<extra_id_0>", feature)[0] == first.token(vocabulary)
    for number in (97, 98, 99):
        with pytest.raises(InputError, match=f"has <extra_id_{number}>, which is the token of a mode"):
            first.encode_prompt(f"a<extra_id_{number}>", feature)


def test_bad_settings_are_refused(vocabulary):
    with pytest.raises(InputError, match="UL2.rates are of R, X and S, not of R, Q"):
        UL2(rates={"R": 1.0, "Q": 1.0})
    with pytest.raises(InputError, match=r"UL2.rates\['X'\] must be at least 0, not '4'"):
        UL2(rates={"R": 1.0, "X": "4", "S": 1.0})
    with pytest.raises(InputError, match="UL2.most_spans must be a whole number of at least 1, not 9.5"):
        UL2(most_spans=9.5)
    with pytest.raises(InputError, match="family must be 'decoder' or 'encoder_decoder', not 'encoder'"):
        UL2(family="encoder")
    with pytest.raises(InputError, match="needs 100 sentinels, but the vocabulary has 20: set UL2.most_"):
        UL2().check({"inputs": 64, "targets": 64}, seqio.ByteVocabulary(extra_ids=20))
    with pytest.raises(InputError, match="the vocabulary has 3: set extra_ids=100"):
        UL2().check({"inputs": 64, "targets": 64}, seqio.ByteVocabulary(extra_ids=3))
