"""The page shows what the model is fed and what its own masks allow, and nothing in a corpus acts on it."""

import base64
import re
import shutil
import subprocess
import zlib
from html import escape, unescape

import jax
import numpy as np
import pytest
import seqio
import tensorflow as tf

from pretrain import inspection, inspection_page, optim, pictures
from pretrain.errors import InputError
from pretrain.inspection_page import Column, Mark
from pretrain.models import attention
from pretrain.objectives import (
    CausalLM,
    Contrastive,
    MaskedLM,
    Mixture,
    Part,
    PermutationLM,
    PrefixLM,
    SpanCorruption,
)
from pretrain.run import RunConfig

VOCABULARY = seqio.ByteVocabulary(extra_ids=100)
NASTY = "<script>document.title = 'owned'</script> &amp; \"é\" \x1b[31m {braces}\n"


def ids(text):
    """The ids of a text, its <0>, <1> sentinels and its $ the end."""
    parts = re.split(r"(<\d>|\$)", text)
    tokens = []
    for part in parts:
        if re.fullmatch(r"<\d>", part):
            tokens.append(VOCABULARY.vocab_size - 1 - int(part[1]))
        else:
            tokens += [1] if part == "$" else list(VOCABULARY.encode(part))
    return np.array(tokens)


def corpus(name="corpus"):
    def read(split, shuffle_files, seed=None):
        documents = [NASTY * (1 + number % 4) for number in range(40)]
        return tf.data.Dataset.from_tensor_slices({"targets": documents})

    return seqio.Task(
        name,
        source=seqio.FunctionDataSource(read, splits=["train", "validation"]),
        preprocessors=[seqio.preprocessors.tokenize, seqio.CacheDatasetPlaceholder()],
        output_features={"targets": seqio.Feature(VOCABULARY, add_eos=True)},
    )


@pytest.fixture
def make_page(tiny_config):
    def make(objective, lengths, pack=False, examples=2) -> tuple[RunConfig, inspection.Inspection, str]:
        run = RunConfig(
            task=corpus(), objective=objective,
            model=tiny_config(objective.family, vocab_size=384, **PREDICTS.get(objective.mixes, {})),
            optimizer=optim.AdamW(schedule=optim.Constant(peak=1e-3)), lengths=lengths, steps=1,
            batch_size=4, shuffle_buffer=8, pack=pack,
        )  # fmt: skip
        found = inspection.inspect(run, num_batches=3)
        return run, found, inspection_page.page(run, found, "<run>.gin", ("--gin.A='<b>'",), examples)

    return make


SPANS = SpanCorruption(join_documents=False)
MIXED = Mixture(parts=[Part(objective=CausalLM()), Part(objective=PrefixLM(join_documents=False))])
PREDICTS = {"losses": {"predicts": True}}
ADDED = Mixture(
    parts=[Part(objective=Contrastive()), Part(objective=MaskedLM(), lengths={"inputs": 96})], mixes="losses"
)


@pytest.mark.parametrize(
    ("objective", "lengths", "pack", "masks"),
    [
        (CausalLM(), {"targets": 96}, False, ["decoder"]),
        (SPANS, {"inputs": 384, "targets": 96}, True, ["encoder", "decoder", "cross"]),
        (MaskedLM(), {"inputs": 96}, True, ["encoder"]),
        (PermutationLM(), {"inputs": 96}, True, ["content", "query"]),
        (Contrastive(), {"inputs": 64, "targets": 64}, False, ["left", "right"]),
        (MIXED, {"targets": 256}, True, ["decoder", "decoder"]),
        (ADDED, {"inputs": 64, "targets": 64}, False, ["left", "right", "encoder"]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_every_family_has_a_page(make_page, objective, lengths, pack, masks):
    run, found, page = make_page(objective, lengths, pack)
    parts = run.objective.parts
    assert [re.search(f"<h2>{part.called}</h2>", page) is not None for part in parts] == [True] * len(parts)
    assert page.count("<h4>row") == 2 * len(parts)
    assert re.findall(r"<b>(\w+)</b>: [\d,]+ queries down", page) == masks
    for line in inspection.rows_lines(found) + inspection.corpus_lines(found):
        assert "".join(f"<td>{escape(cell)}</td>" for cell in line) in page.replace("th>", "td>")
    assert "<script" not in page and "\x1b" not in page
    assert "&lt;run&gt;.gin" in page and "--gin.A=&#x27;&lt;b&gt;&#x27;" in page


def test_text_is_what_it_says_and_is_no_markup():
    tokens = ids(NASTY)
    html = inspection_page.spelled(tokens, [Mark()] * len(tokens), VOCABULARY)
    assert "<" not in html and unescape(html) == inspection.visible(NASTY)
    marked = inspection_page.spelled(ids("a\n$"), [Mark("ordered", 7, 3)] * 2 + [Mark()], VOCABULARY)
    assert marked == (
        '<mark class="ordered" style="--h:7">a↵<sub>3</sub>\n</mark><mark class="special">&lt;/s&gt;</mark>'
    )


def cells_of(side):
    return {f"{side}_target_tokens": None}


def looks(column: Column) -> list[tuple[str, Mark]]:
    """(text, mark) of each stretch of one mark."""
    found: list[tuple[list[int], Mark]] = []
    for token, mark in zip(column.ids, column.marks, strict=True):
        if not found or found[-1][1] != mark:
            found.append(([], mark))
        found[-1][0].append(token)
    return [
        ("".join(p.text for p in inspection_page.vocabularies.pieces(t, VOCABULARY)), m) for t, m in found
    ]


@pytest.mark.parametrize("family", ["encoder_decoder", "decoder"])
def test_a_span_has_the_hue_of_its_sentinel_on_both_sides(family):
    read, said = ids("ab<0>cd<1>e"), ids("<0>xy<1>z<2>$")
    if family == "encoder_decoder":
        example = {"inputs": read, "targets": said, "weights": np.ones(len(said))}
        name, rest = "inputs", Mark()
    else:
        weights = np.repeat([0.0, 0.5], [len(read), len(said)])
        example = {"targets": np.concatenate([read, said]), "weights": weights}
        name, rest = "prefix", Mark("silent")
    left, right = inspection_page.columns(example, cells_of("decoder"), VOCABULARY)
    assert (left.title, right.title) == (name, "targets")
    texts, marks = zip(*looks(left), strict=True)
    assert texts == ("ab", "<extra_id_0>", "cd", "<extra_id_1>", "e")
    first, second = marks[1].hue, marks[3].hue
    assert first != second and marks == (rest, Mark("sentinel", first), rest, Mark("sentinel", second), rest)
    spans = looks(right)
    assert spans[:4] == [
        ("<extra_id_0>", Mark("sentinel", first)),
        ("xy", Mark("span", first)),
        ("<extra_id_1>", Mark("sentinel", second)),
        ("z", Mark("span", second)),
    ]
    assert [mark.kind for _, mark in spans[4:]] == ["sentinel", ""]  # a sentinel that nothing asked for


def test_what_became_of_a_chosen_token_and_when_it_is_predicted():
    weights = np.array([0, 1, 1, 1, 0])
    example = {"inputs": ids("a<0>xde"), "targets": ids("abcde"), "weights": weights}
    kinds = [
        [mark.kind for mark in column.marks]
        for column in inspection_page.columns(example, cells_of("encoder"), VOCABULARY)
    ]
    assert kinds == [
        ["", "masked", "random", "kept", ""],
        ["silent", "masked", "random", "kept", "silent"],
    ]
    named = inspection_page.columns(example, cells_of("encoder"), VOCABULARY, mask=int(ids("x")[0]))
    assert [mark.kind for mark in named[0].marks] == ["", "masked", "masked", "kept", ""]
    ordered = example | {"inputs": example["targets"], "order": np.array([-1, 2, 0, 1, -1])}
    column, _ = inspection_page.columns(ordered, cells_of("encoder"), VOCABULARY)
    assert [mark.number for mark in column.marks] == [None, 2, 0, 1, None]


def seen_by_the_attention(model_config, batch, monkeypatch) -> list[np.ndarray]:
    """Every mask that an attention layer of the model gets, written out, of the first row."""
    seen, call = [], attention.Attention.__call__

    def recorded(self, *args, **kwargs):
        seen.append(np.asarray(kwargs["seen"])[0])
        return call(self, *args, **kwargs)

    monkeypatch.setattr(attention.Attention, "__call__", recorded)
    model = model_config.build(jax.random.key(0))
    if model_config.family == "dual_encoder":
        for side in ("left", "right"):
            model.embed(batch, side)
    else:
        model.features(batch)
    return seen


@pytest.mark.parametrize("family", ["decoder", "encoder_decoder", "encoder", "two_stream", "dual_encoder"])
def test_the_pictures_are_of_the_masks_that_the_model_uses(family, tiny_config, token_batch, monkeypatch):
    batch = token_batch("encoder" if family == "dual_encoder" else family, packed=family != "dual_encoder")
    if family == "dual_encoder":
        batch["encoder_segment_ids"][:, 20:] = 0
        batch = {f"{side}_{name}": x for side in ("left", "right") for name, x in batch.items()}
        batch["right_encoder_segment_ids"] = batch["right_encoder_segment_ids"].copy()
        batch["right_encoder_segment_ids"][:, 9:] = 0
    if family == "decoder":
        batch["decoder_prefix_mask"] = np.zeros_like(batch["decoder_segment_ids"])
        batch["decoder_prefix_mask"][:, [0, 1, 2, 7, 8]] = 1
    config = tiny_config(family)
    drawn = inspection_page.masks(config, batch)
    used = seen_by_the_attention(config, batch, monkeypatch)
    assert {seen.tobytes() for seen in used} == {seen.tobytes() for seen, _, _ in drawn.values()}
    for seen, queries, keys in drawn.values():
        picture = cells_of_png(pictures.grid(seen, queries, keys))
        assert ((picture > 0) == seen).all() and len(np.unique(picture)) > 1
        assert ((picture == 1) == (seen & (queries == 0)[:, None])).all()


def cells_of_png(svg: str) -> np.ndarray:
    data = base64.b64decode(re.search(r"base64,([^\"]+)", svg)[1])
    width, height = (int.from_bytes(data[at : at + 4]) for at in (16, 20))
    start = data.index(b"IDAT")
    size = int.from_bytes(data[start - 4 : start])
    lines = np.frombuffer(zlib.decompress(data[start + 4 : start + 4 + size]), np.uint8)
    return lines.reshape(height, width + 1)[:, 1:]


def test_long_rows_are_drawn_in_part():
    seen = np.tril(np.ones((1100, 1100), bool))
    segments = np.repeat([1, 2], [600, 500])
    picture = cells_of_png(pictures.grid(seen, segments, segments))
    assert picture.shape == (367, 367) and ((picture > 0) == seen[::3, ::3]).all()
    assert set(picture[-1]) == {3} and picture[0, 0] == 2


@pytest.mark.parametrize(("most", "width"), [(1, 1), (25, 1), (26, 2), (92, 5), (512, 20), (2048, 100)])
def test_a_histogram_counts_every_value_once(most, width):
    values = np.random.RandomState(most).randint(0, most + 1, 300)
    svg = pictures.histogram(values, most, "examples")
    bars = re.findall(r"<title>([\d,]+)(?: to ([\d,]+))?: ([\d,]+) examples</title>", svg)
    found = {}
    for bar in bars:
        first, last, count = (int(part.replace(",", "") or -1) for part in bar)
        found[first] = count
        assert first % width == 0 and count == ((values >= first) & (values <= max(first, last))).sum()
    assert sum(found.values()) == 300 and pictures.bins(values, most)[1] == width


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    inspection_page.write(path, "first é")
    assert path.read_text(encoding="utf-8") == "first é" and list(tmp_path.iterdir()) == [path]

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "replace", full)
    with pytest.raises(InputError, match=r"page.html could not be written \(No space left on device\)"):
        inspection_page.write(path, "second")
    assert path.read_text(encoding="utf-8") == "first é" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("letters", [240, 300])
def test_a_name_that_is_too_long_is_refused(tmp_path, letters):
    """With 240 letters only the page that is being written has too long a name."""
    with pytest.raises(InputError, match="is no name for a file"):
        inspection_page.check(tmp_path / ("x" * letters + ".html"))


CHROMIUM = shutil.which("chromium")
HARNESS = """<!DOCTYPE html><script>window.onload = () => {
  document.title = JSON.stringify([...document.querySelectorAll('iframe')].map(frame => {
    const page = frame.contentDocument, root = page.documentElement;
    return [root.scrollWidth <= root.clientWidth, page.title, page.scripts.length,
            frame.contentWindow.performance.getEntriesByType('resource').length,
            [...page.querySelectorAll('svg')].every(svg => svg.getBoundingClientRect().height > 20)];
  }));
};</script>"""


@pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")
def test_a_browser_shows_it_from_one_file(make_page, tmp_path):
    """On a desk and on a telephone: no sideways scrolling, no script, no request, no complaint."""
    *_, page = make_page(SPANS, {"inputs": 384, "targets": 96}, pack=True)
    frames = [f'<iframe width={width} height=800 srcdoc="{escape(page)}"></iframe>' for width in (1280, 390)]
    (tmp_path / "harness.html").write_text(HARNESS + "".join(frames), encoding="utf-8")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
        f"file://{tmp_path}/harness.html",
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    title = unescape(re.search("<title>(.*?)</title>", shown.stdout)[1])
    expected = '[true,"<run>.gin",0,0,true]'
    assert title == f"[{expected},{expected}]"
    assert "CONSOLE" not in shown.stderr
