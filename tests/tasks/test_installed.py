"""C4 and Wikipedia: read from TFDS where it has them, and said how to get where it has not."""

import pytest
import seqio
import tensorflow_datasets as tfds

from pretrain.errors import InputError
from tasks import c4, wikipedia
from tasks.sources import LocalBuilder, prepare

_CORPORA = pytest.mark.parametrize(
    ("corpus", "name", "tfds_name"),
    [(c4, "c4_en", "c4/en:3.1.0"), (wikipedia, "wikipedia_en", "wikipedia/20230601.en:1.0.0")],
)


@_CORPORA
def test_documents_become_targets(corpus, name, tfds_name):
    with tfds.testing.mock_data(num_examples=5):
        task = corpus.task()
        for split in ("train", "validation"):
            examples = list(task.get_dataset(split=split, seed=0).as_numpy_iterator())
            assert len(examples) == 5
            for example in examples:
                assert example.keys() == {"targets", "targets_pretokenized"}
                assert bytes((example["targets"] - 3).tolist()) == example["targets_pretokenized"]
    assert seqio.TaskRegistry.get(name).name == task.name == name


@_CORPORA
def test_hosts_share_what_tfds_cannot_count(corpus, name, tfds_name):
    with tfds.testing.mock_data(num_examples=5):
        parts = [
            len(list(corpus.task().get_dataset(seed=0, shard_info=seqio.ShardInfo(index, 2))))
            for index in range(2)
        ]
    assert parts == [3, 2]


@_CORPORA
def test_what_is_not_prepared_says_how(corpus, name, tfds_name, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(InputError) as caught:
        corpus.task().get_dataset(split="train")
    assert f"{tfds_name} is not prepared in {tmp_path}" in str(caught.value)
    assert f"`tfds build {tfds_name} --data_dir={tmp_path}`" in str(caught.value)


@pytest.mark.parametrize("tfds_name", ["no_such_corpus/en:1.0.0", "c4/no_such_config:3.1.0", "c4/en:99.0.0"])
def test_an_unknown_name_is_refused(tfds_name, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(InputError, match=f"has no dataset '{tfds_name}'"):
        c4.task(tfds_name=tfds_name).num_input_examples("train")


class Wikipedia(LocalBuilder, skip_registration=True):
    """What TFDS finds on disk once somebody has prepared Wikipedia."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="20230601.en"),)

    def features(self):
        return {"title": tfds.features.Text(), "text": tfds.features.Text()}

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        return ((number, {"title": str(number), "text": f"article {number}"}) for number in range(300))


def test_wikipedia_is_split_by_slices_of_what_is_prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    prepare(lambda: Wikipedia(data_dir=str(tmp_path)))
    task = wikipedia.task()
    read = {
        split: [
            example["targets_pretokenized"] for example in task.get_dataset(split=split).as_numpy_iterator()
        ]
        for split in ("train", "validation")
    }
    assert {split: task.num_input_examples(split) for split in read} == {"train": 297, "validation": 3}
    assert {split: len(texts) for split, texts in read.items()} == {"train": 297, "validation": 3}
    assert len({*read["train"], *read["validation"]}) == 300
