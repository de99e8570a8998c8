"""Files, splits, lengths, vocabularies and meshes that do not fit are known before anything is written."""

import gzip
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("own_directory")

FRACTION, INVALID = "text_files.task.validation_fraction", "text_files.task.invalid_utf8"

EMPTY_TASK = """
import seqio

seqio.TaskRegistry.add(
    "my_empty_corpus",
    source=seqio.TextLineDataSource({"train": "text.txt", "validation": "text.txt", "none": "empty.txt"}),
    preprocessors=[
        lambda dataset: dataset.map(lambda line: {"targets": line}),
        seqio.preprocessors.tokenize,
    ],
    output_features={"targets": seqio.Feature(seqio.ByteVocabulary(extra_ids=100), add_eos=True)},
)
"""


@pytest.mark.parametrize(
    ("name", "contents", "settings", "said"),
    [
        ("a.txt", b"", {}, "files matches 1 file(s) without any text"),
        ("a.txt", b" \n\n", {}, "files matches 1 file(s) without any text"),
        ("a.txt", b"one\n", {}, "one document, which cannot be split"),
        ("a.txt", b"one\ntwo\n", {FRACTION: 0.999999}, "leaves none of the 2 document(s) for training"),
        (
            "a.txt",
            b"one\n",
            {FRACTION: 0},
            "no split 'validation': set eval_split (or --split) to one of train",
        ),
        ("a.txt", b"fine\nbad \xff\n", {INVALID: "refuse"}, "a.txt, line 2, is not UTF-8"),
        ("a.txt", b"fine\n", {INVALID: "ignore"}, "is 'ignore', but it takes 'replace' or 'refuse'"),
        (
            "a.txt.gz",
            gzip.compress(b"some text\n" * 500, mtime=0)[:-9],
            {},
            "a.txt.gz is not a whole gzip file",
        ),
        ("a.jsonl", b'{"text": "fine"}\n{"text"\n', {}, "a.jsonl, line 2, is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "x"}\n', {}, "a.jsonl, line 2, has no field 'text'"),
        ("a.jsonl", b'{"text": 3}\n', {}, "a.jsonl, line 1, has int, not text, in field 'text'"),
        ("a.csv", b"text\n", {}, "a.csv, which files matches, is of no known format"),
        ("b.txt", b"text\n", {}, "/data/a*' matches no file: correct the path"),
        ("a/b.txt", b"text\n", {}, "/data/a*' matches only directories"),
    ],
)
def test_what_is_wrong_with_the_files(train, tmp_path, name, contents, settings, said):
    path = tmp_path / "data" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(contents)
    train(settings={"FILES": f"{tmp_path}/data/a*", **settings}).is_refused_untouched(said)


@pytest.mark.parametrize("files", [None, [], ""])
def test_files_that_are_not_given(train, files):
    example = "--gin.FILES=\"'/data/*.txt'\""
    train(settings={"FILES": files}).is_refused_untouched(f"files is {files!r}: set it to a glob", example)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        (
            "--gin.FILES=3",
            "--gin.FILES is 3, but text_files.task.files takes text in quotes or a list of text in quotes",
        ),
        ("--gin.FILES=[3]", "--gin.FILES is [3], but text_files.task.files takes text in quotes"),
        ("--gin.FILES=/data/*.txt", "text needs quotes of its own, as in --gin.FILES=\"'/data/*.txt'\""),
    ],
)
def test_files_that_are_no_text(train, flag, said):
    train(flag).is_refused_untouched(said)


@pytest.mark.parametrize("split", ["train_split", "eval_split"])
def test_a_split_of_the_users_own_task_that_is_empty_or_not_there(call, change_and_import, text, split):
    Path("empty.txt").write_text("")
    Path("my_empty_tasks.py").write_text(EMPTY_TASK)
    change_and_import("import my_empty_tasks", "  task = @text_files.task()", "  task = 'my_empty_corpus'")
    arguments = ["train", "spans.gin", "--model-dir", "model"]
    empty = call(*arguments, settings={split: "none"})
    empty.is_refused_untouched("not one batch of 8 in split 'none' of task 'my_empty_corpus'", "it is empty")
    absent = call(*arguments, settings={split: "nine"})
    absent.is_refused_untouched(
        "'my_empty_corpus' has no split 'nine'", f"set {split}", "train, validation, none"
    )


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("lengths", {"inputs": 2, "targets": 64}, "lengths['inputs'] must be a whole number of at least 3"),
        ("lengths", {"inputs": 32, "targets": 4}, "lengths['targets'] is 4, but the 34 tokens"),
        ("lengths", {"inputs": 32}, "needs the lengths of inputs and targets"),
        (
            "lengths",
            {"inputs": 4096, "targets": 2048},
            "227 spans in the 4550 tokens of a chunk, but the vocab",
        ),
        ("span_corruption.SpanCorruption.noise_density", 0.9, "makes more spans than it leaves tokens"),
        ("span_corruption.SpanCorruption.noise_density", 1.5, "must be between 0 and 1, not 1.5"),
        ("encoder_decoder.EncoderDecoderConfig.vocab_size", 300, "has 359 ids (100 of them sentinels), but "),
        (
            "batch_size",
            12,
            "RunConfig.batch_size is 12: make it a multiple of 8, the shares of the mesh (data=8",
        ),
        (
            "train_split",
            "trian",
            "'text_files' has no split 'trian': set train_split to one of train, validation",
        ),
        (
            "eval_split",
            "test",
            "'text_files' has no split 'test': set eval_split (or --split) to one of train",
        ),
        ("use_cached", True, "task 'text_files' is in none of SeqIO's cache directories"),
    ],
)
def test_settings_that_do_not_fit_each_other(train, setting, value, said):
    train(settings={setting: value}).is_refused_untouched(said)


@pytest.mark.parametrize(
    ("axis", "size", "said"),
    [
        ("data", 3, "Mesh (data=3) needs 3 devices but there are 8"),
        ("data", 16, "needs 16 devices but there are 8; change MeshConfig so that the axes multiply to 8"),
        ("tensor", 5, "needs a multiple of 5 devices but there are 8"),
        ("data", 0, "every axis must be a positive number"),
        ("fsdp", -1, "at most one may be -1"),
        ("data", "8", "--gin.mesh.MeshConfig.data is '8', but it takes a whole number"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices(train, change_and_import, axis, size, said):
    change_and_import("from pretrain.parallel import mesh", "  seed = %SEED", "  mesh = @mesh.MeshConfig()")
    train(settings={f"mesh.MeshConfig.{axis}": size}).is_refused_untouched(said)


def test_a_length_that_does_not_divide_over_the_context(train, change_and_import):
    change_and_import("from pretrain.parallel import mesh", "  seed = %SEED", "  mesh = @mesh.MeshConfig()")
    result = train(settings={"mesh.MeshConfig.context": 8, "lengths": {"inputs": 32, "targets": 25}})
    result.is_refused_untouched(
        "RunConfig.lengths['targets'] is 25: make it a multiple of 8, the shares of the mesh (context=8)"
    )


def test_rules_for_an_axis_that_the_mesh_lacks(train, change_and_import):
    change_and_import(
        "from pretrain.parallel import sharding", "  seed = %SEED", "  rules = @sharding.Rules()"
    )
    result = train("--gin.sharding.Rules.batch='model'")
    result.is_refused_untouched("Rules.batch names mesh axis 'model'; the mesh has replica, data, fsdp")


def test_an_objective_of_one_family_with_a_model_of_the_other(train, change_and_import):
    change_and_import(
        "from pretrain.objectives import causal_lm",
        "  objective = @span_corruption.SpanCorruption()",
        "  objective = @causal_lm.CausalLM()",
    )
    said = "CausalLM is of the decoder family, but RunConfig.model of the encoder_decoder family"
    train().is_refused_untouched(said)


def test_an_unknown_task(call):
    result = call("train", "runs/quickstart.gin", "--model-dir", "model", "--gin.task='my_corpus'")
    result.is_refused_untouched(
        "RunConfig.task is 'my_corpus', which nothing that the run file imports registers", "python_stdlib"
    )


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (None, "VOCABULARY_FILE is None, but vocabularies.sentencepiece.model_file takes text in quotes"),
        ("/no/such.model", "/no/such.model does not exist: set model_file to a SentencePiece model"),
        ("text.txt", "text.txt is not a SentencePiece model"),
    ],
)
def test_a_vocabulary_file_that_is_not_one(call, text, file, said):
    result = call(
        "train", "runs/c4_t5_1_1_base.gin", "--model-dir", "model", settings={"VOCABULARY_FILE": file}
    )
    result.is_refused_untouched(said)
