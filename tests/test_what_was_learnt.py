"""The baselines are what they say, the table is of every run, and each measure can be taken."""

import doctest
import importlib
import json
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pretrain import checkpointing, config, pipeline
from pretrain.parallel import sharding
from pretrain.training import model_dirs, step

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "objectives.md"
RESULTS = {
    "one": {
        "steps": 1000, "seconds": 61.0, "measure": "accuracy", "of_model": 0.5, "of_baseline": 0.25,
        "baseline": "a | b", "lower": False, "beaten": True,
    },
    "another": {
        "steps": 20, "seconds": 7.0, "measure": "bits", "of_model": 3.25, "of_baseline": 3.0,
        "baseline": "bigrams", "lower": True, "beaten": False,
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def modules(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts" / "what_was_learnt")


@pytest.mark.parametrize("name", ["baselines", "passages"])
def test_doctests(name):
    done = doctest.testmod(importlib.import_module(name))
    assert done.attempted and not done.failed


def test_cosines_are_those_of_counted_ngrams():
    import baselines

    random = np.random.default_rng(0)
    texts = [random.integers(0, 4, size).astype(np.uint8).tobytes() for size in (1, 2, 9, 30, 30)]

    def bag(text: bytes) -> Counter:
        return Counter(text[at : at + n] for n in (1, 2, 3) for at in range(len(text) - n + 1))

    def norm(counts: Counter) -> float:
        return math.sqrt(sum(n * n for n in counts.values()))

    bags = [bag(text) for text in texts]
    wanted = [[sum(a[x] * b[x] for x in a) / norm(a) / norm(b) for b in bags] for a in bags]
    np.testing.assert_allclose(baselines.ngram_cosines(texts, texts), wanted, rtol=1e-5)


def test_recall_counts_those_before_the_own_answer():
    import baselines

    scores = np.random.default_rng(0).normal(size=(400, 400))
    ranks = [list(np.argsort(-row)).index(own) for own, row in enumerate(scores)]
    assert baselines.recall(scores, 10) == np.mean(np.array(ranks) < 10)
    assert baselines.recall(scores, 10) == pytest.approx(10 / 400, abs=0.03)  # chance


def test_gaps_are_ends_of_words():
    import passages

    random = np.random.default_rng(0)
    text = "import os\n\ndef find(names, value):\n    return sorted(name for name in names if name)\n"
    for _ in range(100):
        gap = passages.gap_in(text, random)
        assert gap.before + gap.hidden + gap.after == text
        assert re.search(r"[a-z]{2}$", gap.before) and not gap.after[0].isalpha()
        assert gap.hidden.isalpha() and 1 <= len(gap.hidden) <= passages.LONGEST_GAP
    assert passages.gap_in("x = 1\n" * 20, random) is None


def test_the_table_goes_between_its_marks(tmp_path):
    import table

    page = tmp_path / "page.md"
    page.write_text("before\n<!-- what was learnt -->\nold\n<!-- end -->\nafter\n<!-- end -->\n")
    for _ in range(2):
        table.fill(page, table.draw(RESULTS))
    text = page.read_text()
    assert text.startswith("before\n<!-- what was learnt -->\n\n| run |") and "old" not in text
    assert text.endswith("<!-- end -->\nafter\n<!-- end -->\n")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert rows == [
        "| `another` | 20 | 7 s | bits | 3.250 | **3.000** | bigrams |",
        "| `one` | 1,000 | 61 s | accuracy | **0.500** | 0.250 | a &#124; b |",
    ]
    page.write_text("no block")
    with pytest.raises(SystemExit, match="has no block"):
        table.fill(page, "")


def test_the_rows_of_the_page_are_of_small_runs():
    """Of those that have been trained to their end."""
    (block,) = re.findall(r"<!-- what was learnt -->\n(.*?)<!-- end -->", PAGE.read_text(), re.S)
    named = re.findall(r"^\| `(\w+)` \|", block, re.M)
    runs = sorted(path.stem for path in (config.shipped() / "runs").glob("*_tiny.gin"))
    assert named and named == sorted(named) and set(named) <= set(runs)


SMALL = {"embed_dim": 16, "mlp_dim": 16, "head_dim": 8, "num_heads": 2}
MODELS = {
    "encoder": {"encoder.EncoderConfig": {"num_layers": 1}},
    "dual_encoder": {"dual_encoder.DualEncoderConfig": {"num_layers": 1}},
    "decoder": {"decoder.DecoderConfig": {"num_layers": 1, "num_kv_heads": 2}},
    "encoder_decoder": {"encoder_decoder.EncoderDecoderConfig": {"encoder_layers": 1, "decoder_layers": 1}},
}


def write_model_dir(directory: Path, run_file: str, family: str) -> Path:
    """A model dir with a checkpoint of step 2, and nothing learnt."""
    code = "def function_{0}(first, second):\n    return first + second * {0}  # of some length\n\n" * 8
    lines = [json.dumps({"text": code.format(number)}) for number in range(60)]
    (directory / "text.jsonl").write_text("\n".join(lines))
    settings = {"FILES": str(directory / "text.jsonl"), "STEPS": 2, "BATCH_SIZE": 8, "eval_batches": 2}
    settings |= {
        f"{model}.{name}": value
        for model, own in MODELS[family].items()
        for name, value in {**SMALL, **own}.items()
    }
    settings["text_files.task.validation_fraction"] = 0.2
    run, text = config.load_with_text(run_file, [f"{name} = {value!r}" for name, value in settings.items()])
    batches = pipeline.batches(run)
    next(batches)
    with sharding.layout(run.mesh.build(), run.rules):
        state = step.programs(run).init()
    model_dirs.claim(directory / "model", text)
    saved = checkpointing.Checkpoints(directory / "model")
    saved.save(2, state, batches, text)
    saved.close()
    return directory / "model"


@pytest.mark.parametrize(
    ("name", "family", "measure", "least", "most"),
    [  # A model that learnt nothing says each of 384 ids with about the same probability.
        pytest.param("causal_lm", "decoder", "bits per byte", 8, 11, marks=pytest.mark.slow),
        pytest.param("masked_lm", "encoder", "accuracy on hidden bytes", 0, 0.1, marks=pytest.mark.slow),
        ("denoising", "encoder_decoder", "bits per hidden byte", 7.5, 13),
        ("fill_in_the_middle", "decoder", "exact infills of the ends of", 0, 0),
        ("contrastive", "dual_encoder", "recall@10 of the other half", 0, 1),
    ],
)
def test_each_measure_can_be_taken(name, family, measure, least, most, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    import table

    found = table.measured(write_model_dir(tmp_path, f"runs/text_files_{name}.gin", family))
    assert found["steps"] == 2 and found["measure"].startswith(measure)
    assert least <= found["of_model"] <= most
    assert 0 <= found["of_baseline"] <= (8 if found["lower"] else 1)
    assert found["beaten"] == (
        found["of_model"] < found["of_baseline"]
        if found["lower"]
        else found["of_model"] > found["of_baseline"]
    )
    json.dumps(found)
