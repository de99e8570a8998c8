"""Batches out of stores are a function of (seed, N): of no process, no restart and no order of asking."""

import dataclasses
import itertools

import numpy as np
import pytest
import seqio
import tensorflow as tf

from pretrain import indexed, optim, pipeline
from pretrain.data import manifest, store
from pretrain.data import vocabulary as vocabularies
from pretrain.data.chunks import cut_documents
from pretrain.errors import InputError
from pretrain.fingerprint import batch_hash, hexadecimal
from pretrain.objectives import (
    CausalLM,
    Contrastive,
    FillInTheMiddle,
    MaskedLM,
    Mixture,
    Part,
    PrefixLM,
    SpanCorruption,
)
from pretrain.parallel import sharding
from pretrain.run import RunConfig

VOCABULARY = seqio.ByteVocabulary(extra_ids=100)
LENGTHS = {
    "span_corruption": {"inputs": 32, "targets": 16},
    "causal_lm": {"targets": 16},
    "prefix_lm": {"targets": 16},
    "masked_lm": {"inputs": 16},
    "masked_lm_of_each_document": {"inputs": 16},
    "fill_in_the_middle": {"targets": 32},
    "contrastive": {"inputs": 12, "targets": 16},
    "mixture": {"targets": 32},
    "batches": {"targets": 32},
    "losses": {"targets": 32},
}
CHANGING = [(0, 1.0), (2, 3.0), (20, 1.0)]
ENDING = [(0, 1.0), (3, 0.0)]
OBJECTIVES = {
    "span_corruption": SpanCorruption(), "causal_lm": CausalLM(), "prefix_lm": PrefixLM(),
    "masked_lm": MaskedLM(), "masked_lm_of_each_document": MaskedLM(join_documents=False),
    "fill_in_the_middle": FillInTheMiddle(), "contrastive": Contrastive(),
    "mixture": Mixture(parts=[Part(objective=PrefixLM(), rate=CHANGING),
                              Part(objective=SpanCorruption(family="decoder"), rate=2.0)]),
    "batches": Mixture(mixes="batches",
                       parts=[Part(objective=PrefixLM(), rate=ENDING, lengths={"targets": 24}),
                              Part(objective=SpanCorruption(family="decoder"), rate=2.0)]),
    "losses": Mixture(mixes="losses",
                      parts=[Part(objective=PrefixLM(), lengths={"targets": 24}),
                             Part(objective=SpanCorruption(family="decoder"))]),
}  # fmt: skip
ALONE = [name for name, objective in OBJECTIVES.items() if not isinstance(objective, Mixture)]


def documents(seed: int, number: int) -> list[np.ndarray]:
    random = np.random.RandomState(seed)
    return [random.randint(3, 259, random.randint(1, 60)).astype(np.int32) for _ in range(number)]


def write_store(directory, seed=0, number=60, vocabulary=VOCABULARY, num_shards=3):
    """A store of random documents in a few shards."""
    directory.mkdir()
    settings = manifest.Manifest(
        task="numbers",
        vocabulary=vocabularies.fingerprint(vocabulary),
        vocab_size=vocabulary.vocab_size,
        block_tokens=16,
        splits={"train": manifest.Split(source="s", num_shards=num_shards)},
    )
    bytes_of = vocabularies.token_bytes(vocabulary)
    parts = np.array_split(np.arange(number), num_shards)
    found = documents(seed, number)
    shards = []
    for index, part in enumerate(parts):
        pieces = [piece for i in part for piece in (found[i], np.array([store.END], np.int32))]
        name = f"train-{index:05}-of-{num_shards:05}"
        shards.append(store.write_shard(directory, name, settings, bytes_of, pieces))
    split = dataclasses.replace(settings.splits["train"], shards=tuple(shards))
    manifest.finish(directory, dataclasses.replace(settings, splits={"train": split}))
    return directory


def corpus(vocabulary=VOCABULARY) -> seqio.Task:
    def read(split, shuffle_files, seed=None):
        return tf.data.Dataset.from_tensors({"targets": tf.range(3, 200)})

    return seqio.Task(
        "numbers",
        source=seqio.FunctionDataSource(read, splits=["train", "validation"]),
        preprocessors=[seqio.CacheDatasetPlaceholder()],
        output_features={"targets": seqio.Feature(vocabulary, add_eos=True)},
    )


@pytest.fixture
def make_run(tiny_config, tmp_path):
    def make(name="causal_lm", **changes) -> RunConfig:
        objective = OBJECTIVES[name]
        if "stores" not in changes:
            directory = tmp_path / "store"
            changes["stores"] = [directory if directory.exists() else write_store(directory)]
        settings = {
            "task": corpus(),
            "objective": objective,
            "model": tiny_config(objective.family, vocab_size=384),
            "optimizer": optim.AdamW(schedule=optim.Constant(peak=1e-3)),
            "lengths": LENGTHS[name],
            "steps": 4,
            "batch_size": 8,
        }
        return RunConfig(**{**settings, **changes})

    return make


def take(batches, number):
    return [hexadecimal(batch_hash(batch)) for batch in itertools.islice(batches, number)]


@pytest.mark.parametrize("name", ALONE)
def test_an_epoch_has_every_example_once_and_the_next_another_order(name, make_run):
    run = make_run(name)
    (reader,) = indexed.readers(run)
    (size,) = reader.sizes
    epochs = []
    for epoch in range(2):
        tokens, lengths, _ = reader.read(np.arange(epoch * size, (epoch + 1) * size))
        epochs.append([tuple(part.tolist()) for part in np.split(tokens, np.cumsum(lengths)[:-1])])
    eos = [VOCABULARY.eos_id] if run.objective.ends_documents else []
    stream = tf.data.Dataset.from_generator(
        lambda: ({"targets": np.array([*document, *eos], np.int32)} for document in documents(0, 60)),
        output_signature={"targets": tf.TensorSpec([None], tf.int32)},
    )
    length = run.objective.chunk_length(run.lengths)
    cut = cut_documents(stream, length, join=run.objective.join_documents)
    chunks = [tuple(chunk["targets"].numpy().tolist()) for chunk in cut]
    chunks = [chunk for chunk in chunks if len(chunk) >= run.objective.shortest_chunk]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(chunks)
    assert epochs[0] != epochs[1] != chunks


@pytest.mark.parametrize("name", OBJECTIVES)
def test_any_position_is_reached_without_what_came_before(name, make_run):
    run = make_run(name)
    whole = take(pipeline.batches(run), 40)  # some epochs
    assert len(set(whole)) == 40
    for position in (0, 7, 39):
        batches = pipeline.batches(run)
        batches.seek(position)
        assert take(batches, 1) == [whole[position]]


@pytest.mark.parametrize(
    ("name", "processes"),
    [*((name, 2) for name in OBJECTIVES), ("causal_lm", 4), ("mixture", 4), ("batches", 4)],
)
def test_the_processes_together_read_the_same_batches(name, processes, make_run, monkeypatch):
    run = make_run(name)
    whole = list(itertools.islice(pipeline.batches(run), 5))
    parts = []
    for process in range(processes):
        rows = np.array_split(np.arange(run.batch_size), processes)[process]
        monkeypatch.setattr(sharding, "local_rows", lambda batch_size, rows=rows: rows.tolist())
        parts.append(list(itertools.islice(pipeline.batches(run), 5)))
    for step, batch in enumerate(whole):
        for feature in batch:
            together = np.concatenate([part[step][feature] for part in parts])
            np.testing.assert_array_equal(together, batch[feature])


def test_the_seed_decides_order_and_noise(make_run):
    one, other = make_run("span_corruption"), make_run("span_corruption", seed=1)
    assert take(pipeline.batches(one), 3) == take(pipeline.batches(one), 3)
    assert not {*take(pipeline.batches(one), 20)} & {*take(pipeline.batches(other), 20)}


def test_noise_is_new_in_every_epoch(make_run):
    (reader,) = indexed.readers(make_run("span_corruption"))
    (size,) = reader.sizes
    _, _, seeds = reader.read(np.arange(3 * size))
    assert len(np.unique(seeds.reshape(3 * size, -1), axis=0)) == 3 * size
    assert len(np.unique(seeds)) == seeds.size


def test_a_position_is_saved_and_restored(make_run, tmp_path):
    run = make_run()
    whole = take(pipeline.batches(run), 12)
    batches = pipeline.batches(run)
    assert take(batches, 5) == whole[:5]
    batches.snapshot()(tmp_path / "place")
    again = pipeline.batches(run)
    again.restore(tmp_path / "place")
    assert again.position == 5
    assert take(again, 7) == whole[5:]


def test_what_is_skipped_is_not_read(make_run):
    run = make_run()
    whole = take(pipeline.batches(run), 12)
    skipping = pipeline.batches(run, skips=[range(3, 5), range(5, 6)])
    assert take(skipping, 6) == [*whole[:3], *whole[6:9]]
    assert skipping.position == 9


def test_several_stores_are_read_at_their_rates(make_run, tmp_path):
    stores = [write_store(tmp_path / "a", seed=1), write_store(tmp_path / "b", seed=2, number=30)]
    (reader,) = indexed.readers(make_run(stores=stores, store_rates=[1, 3]))
    number = 4000
    store_of, _ = reader.order.position(np.arange(number))
    assert np.bincount(store_of).tolist() == [1000, 3000]
    tokens, lengths, _ = reader.read(np.arange(number))
    assert len(lengths) == number and lengths.sum() == len(tokens)


def test_another_store_is_noticed_and_a_moved_one_is_not(make_run, tmp_path):
    run = make_run()
    batches = pipeline.batches(run)
    batches.snapshot()(tmp_path / "place")
    moved = (tmp_path / "store").rename(tmp_path / "moved")
    pipeline.batches(make_run(stores=[moved])).restore(tmp_path / "place")
    other = pipeline.batches(make_run(stores=[write_store(tmp_path / "other", seed=9)]))
    with pytest.raises(InputError, match="position in other data, since the stores changed"):
        other.restore(tmp_path / "place")


def test_what_does_not_go_together_is_refused(make_run, tmp_path):
    with pytest.raises(InputError, match="tokens of another vocabulary"):
        pipeline.batches(make_run(task=corpus(seqio.ByteVocabulary(extra_ids=90))))
    with pytest.raises(InputError, match="2 rates for 1 stores"):
        pipeline.batches(make_run(store_rates=[1.0, 2.0]))
    with pytest.raises(
        InputError, match="a chunk a row, so that each is found by its number: set pack=False"
    ):
        pipeline.batches(make_run(pack=True))
    with pytest.raises(InputError, match="give a list of directories"):
        make_run(stores=str(tmp_path / "store"))
    with pytest.raises(InputError, match="is no finished store"):
        pipeline.batches(make_run(stores=[tmp_path]))


def test_a_damaged_record_is_named_in_training_too(make_run, tmp_path):
    run = make_run()
    next(pipeline.batches(run))
    for path in (tmp_path / "store").glob("*.array_record"):
        data = bytearray(path.read_bytes())
        middle = data.find(b"\x28\xb5\x2f\xfd") + 40  # in a block that zstd compressed
        data[middle : middle + 8] = bytes(8)
        path.write_bytes(data)
    with pytest.raises(InputError, match=r"\.array_record, record \d+, is damaged"):
        for _, _ in zip(range(100), pipeline.batches(run), strict=False):
            pass


def test_a_part_that_is_read_no_more_does_not_hold_up_the_others(make_run):
    ends = Part(objective=PrefixLM(), rate=[(0, 1.0), (3, 0.0)])
    objective = Mixture(parts=[ends, Part(objective=SpanCorruption(family="decoder"))])
    run = make_run("mixture", objective=objective)
    parts = [batch["decoder_part_ids"][:, 0].mean() for batch in itertools.islice(pipeline.batches(run), 6)]
    assert parts == [0.5, 0.5, 0.5, 1, 1, 1]


def test_other_rates_are_other_data(make_run):
    before, after = (
        pipeline.batches(make_run("mixture", objective=Mixture(parts=[
            Part(objective=PrefixLM(), rate=[(0, 1.0), (step, 2.0)]),
            Part(objective=SpanCorruption(family="decoder")),
        ]))).identity()
        for step in (3, 4)
    )  # fmt: skip
    assert before != after
