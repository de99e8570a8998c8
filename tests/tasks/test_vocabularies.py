"""Where the sentinels are, and what is refused as a SentencePiece model."""

import io

import pytest
import sentencepiece as spm
import tensorflow as tf

from pretrain.errors import InputError
from tasks.vocabularies import byte_vocabulary, sentencepiece

_SENTENCES = ["the quick brown fox jumps over the lazy dog", "pack my box with five dozen liquor jugs"] * 20


def _train(path, **options):
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(_SENTENCES),
        model_writer=model,
        minloglevel=2,
        **{"vocab_size": 60, "hard_vocab_limit": False, **options},
    )
    path.write_bytes(model.getvalue())
    return str(path)


def test_byte_sentinels_are_the_last_ids_and_no_byte():
    vocabulary = byte_vocabulary(extra_ids=100)
    assert vocabulary.vocab_size == 3 + 256 + 100
    every_byte = vocabulary.encode_tf(tf.constant(bytes(range(256)))).numpy().tolist()
    assert every_byte == list(range(3, 259))
    assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.extra_ids) == (0, 1, 100)
    assert byte_vocabulary(extra_ids=0).vocab_size == 259


def test_sentencepiece_sentinels_are_the_last_ids(tmp_path):
    path = _train(tmp_path / "a.model", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    plain, vocabulary = sentencepiece(path, extra_ids=0), sentencepiece(path, extra_ids=7)
    assert vocabulary.vocab_size == plain.vocab_size + 7
    assert vocabulary.encode("<extra_id_0>") == [vocabulary.vocab_size - 1]
    assert vocabulary.encode("<extra_id_6>") == [plain.vocab_size]
    assert vocabulary.decode(vocabulary.encode("five quick dogs")) == "five quick dogs"


@pytest.mark.parametrize("content", [b"", b"no model at all", b"\x00\xff" * 100])
def test_what_is_no_model_is_refused(tmp_path, content):
    path = tmp_path / "bad.model"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.model is not a SentencePiece model"):
        sentencepiece(str(path))


def test_a_missing_file_and_a_directory_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.model does not exist"):
        sentencepiece(str(tmp_path / "none.model"))
    with pytest.raises(InputError, match="is not a SentencePiece model"):
        sentencepiece(str(tmp_path))


@pytest.mark.parametrize("ids", [{"pad_id": -1, "unk_id": 0}, {"pad_id": 0, "unk_id": 2, "eos_id": -1}])
def test_special_ids_that_collide_with_padding_are_refused(tmp_path, ids):
    with pytest.raises(InputError, match=r"train it again with pad_id=0"):
        sentencepiece(_train(tmp_path / "a.model", **ids))


def test_unknown_text_that_never_becomes_id_0_is_accepted(tmp_path):
    path = _train(tmp_path / "a.model", pad_id=-1, unk_id=0, byte_fallback=True, vocab_size=320)
    assert 0 not in sentencepiece(path).encode("snow ☃ \U0010fffd")
