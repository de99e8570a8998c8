"""Causal language modelling on whole tasks."""

import numpy as np
import pytest

from pretrain.objectives import CausalLM


def _with_eos(documents) -> list[list[int]]:
    return [[*document.tolist(), 1] for document in documents]


@pytest.mark.parametrize("length", [2, 37, 64])
def test_joined_documents_are_one_stream_with_eos_after_each(length, corpus, documents, read):
    examples = read(CausalLM().bind(corpus()), {"targets": length})
    assert sorted(examples[0]) == ["targets"]
    np.testing.assert_array_equal(
        np.concatenate([example["targets"] for example in examples]), np.concatenate(_with_eos(documents))
    )
    assert {len(example["targets"]) for example in examples[:-1]} == {length}


def test_documents_cut_alone_each_end_in_eos(corpus, documents, read):
    examples = read(CausalLM(join_documents=False).bind(corpus()), {"targets": 64})
    expected = [doc[start : start + 64] for doc in _with_eos(documents) for start in range(0, len(doc), 64)]
    assert [example["targets"].tolist() for example in examples] == expected


def test_packed_rows_hold_every_target_once(corpus, documents):
    objective, lengths = CausalLM(join_documents=False), {"targets": 64}
    examples = objective.bind(corpus()).get_dataset(lengths, "train", shuffle=False, seed=0)
    rows = list(objective.converter(pack=True)(examples, lengths).as_numpy_iterator())
    targets = np.concatenate([row["decoder_target_tokens"][row["decoder_loss_weights"] > 0] for row in rows])
    expected = np.concatenate(_with_eos(documents))
    np.testing.assert_array_equal(np.sort(targets), np.sort(expected))
    assert len(rows) < len(list(examples))
