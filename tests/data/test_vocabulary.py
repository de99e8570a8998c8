"""Ids to text and back: nothing is lost, no space is made up."""

import io

import pytest
import sentencepiece as spm
import seqio

from pretrain.data import vocabulary as vocabularies

VOCABULARY = seqio.ByteVocabulary(extra_ids=100)


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog"] * 20),
        model_writer=model,
        minloglevel=2,
        vocab_size=320,
        hard_vocab_limit=False,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
    )
    path = tmp_path_factory.mktemp("vocabulary") / "a.model"
    path.write_bytes(model.getvalue())
    return seqio.SentencePieceVocabulary(str(path), extra_ids=10)


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_ids_as_text_keep_every_space_and_every_sentinel(kind, sentencepiece):
    vocabulary = VOCABULARY if kind == "bytes" else sentencepiece
    first, last = vocabulary.vocab_size - 1, vocabulary.vocab_size - vocabulary.extra_ids
    fox, dog = vocabulary.encode(" quick fox"), vocabulary.encode(" dog é")
    pieces = vocabularies.pieces([*fox, first, *dog, last, vocabulary.eos_id, 0, 2, 10_000], vocabulary)
    text = "".join(piece.text for piece in pieces)
    assert (
        text == f" quick fox<extra_id_0> dog é<extra_id_{vocabulary.extra_ids - 1}></s><pad><unk><id 10000>"
    )
    kinds = ["text", "sentinel", "text", "sentinel", "special", "special", "special", "special"]
    assert [piece.kind for piece in pieces] == kinds


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_half_a_character_is_shown_as_its_bytes(kind, sentencepiece):
    vocabulary = VOCABULARY if kind == "bytes" else sentencepiece
    *_, first, second = vocabulary.encode("é")
    assert [vocabularies.pieces([half], vocabulary)[0].text for half in (first, second)] == ["\\xc3", "\\xa9"]


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
@pytest.mark.parametrize(
    "text", ["the<extra_id_0> fox<extra_id_1>es dog", "<extra_id_0>é<extra_id_1>", "the fox"]
)
def test_a_prompt_reads_as_it_was_written(kind, text, sentencepiece):
    vocabulary = VOCABULARY if kind == "bytes" else sentencepiece
    read = vocabularies.readable(vocabularies.parse(text, vocabulary), vocabulary)
    # SentencePiece begins every text with a space.
    assert read.removeprefix(" " if kind == "sentencepiece" else "") == text


def test_text_beside_a_gap_has_the_tokens_it_has_in_a_text_without_one(sentencepiece):
    whole = sentencepiece.encode("the quick fox")
    quick = sentencepiece.encode("quick")
    start = next(i for i in range(len(whole)) if whole[i : i + len(quick)] == quick)
    with_gap = [*whole[:start], sentencepiece.vocab_size - 1, *whole[start + len(quick) :]]
    assert vocabularies.parse("the <extra_id_0> fox", sentencepiece) == with_gap


def test_half_a_character_does_not_swallow_what_follows():
    assert vocabularies.readable([198, 101], VOCABULARY) == "\ufffdb"
    assert vocabularies.text_bytes([198, 101, 358, 1], VOCABULARY) == b"\xc3b"
