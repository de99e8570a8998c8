"""What an evaluation reads of a mixture, and what tells one corpus from another."""

import dataclasses

import numpy as np
import pytest
import seqio
import tensorflow as tf

from pretrain import optim, pipeline
from pretrain.objectives import CausalLM
from pretrain.run import RunConfig


def corpus(name: str, documents: int, vocabulary: seqio.Vocabulary) -> seqio.Task:
    """So many documents of one token each, all different."""

    def read(split, shuffle_files, seed=None):
        return tf.data.Dataset.range(3, 3 + documents, output_type=tf.int32).map(
            lambda i: {"targets": i[None]}
        )

    return seqio.Task(
        name,
        source=seqio.FunctionDataSource(read, splits=["train", "validation"]),
        preprocessors=[seqio.CacheDatasetPlaceholder()],
        output_features={"targets": seqio.Feature(vocabulary, add_eos=True)},
    )


@pytest.fixture
def run(tiny_config):
    vocabulary = seqio.ByteVocabulary(extra_ids=100)
    tasks = [(corpus("long", 40, vocabulary), 1.0), (corpus("short", 5, vocabulary), 3.0)]
    return RunConfig(
        task=seqio.Mixture("both", tasks),
        objective=CausalLM(join_documents=False),
        model=tiny_config("decoder", vocab_size=384),
        optimizer=optim.AdamW(schedule=optim.Constant(peak=1e-3)),
        lengths={"targets": 4},
        steps=1,
        batch_size=8,
    )


def test_an_evaluation_reads_every_task_of_a_mixture_to_its_end(run):
    batches = list(pipeline.batches(run, training=False))
    tokens = np.concatenate([batch["decoder_target_tokens"][:, 0] for batch in batches])
    assert sorted(tokens[tokens > 0]) == sorted([*range(3, 43), *range(3, 8)])


def test_identity_tells_tasks_and_vocabularies_apart(run, tiny_config):
    parts = pipeline.identity(run, "train")
    assert list(parts) == [
        "the vocabulary",
        "the generator of noise",
        "the train data of task 'long'",
        "the train data of task 'short'",
    ]
    assert parts == pipeline.identity(run, "train")
    other = corpus("long", 40, seqio.ByteVocabulary(extra_ids=10))
    assert pipeline.identity(_with_task(run, other), "train")["the vocabulary"] != parts["the vocabulary"]


def _with_task(run: RunConfig, task: seqio.Task) -> RunConfig:

    return dataclasses.replace(run, task=task)
