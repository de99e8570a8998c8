#!/usr/bin/env python
"""Times our pipeline of span corruption beside that of seqio and t5: the same corpus, the same shapes.

    python scripts/benchmark_data.py --rounds 6
    python scripts/benchmark_data.py --sentencepiece my.model

Both read the embedded corpus, shuffle, hide 15% in spans of 3 and fill rows of 512 inputs and 114 targets;
both are read in one process, in turns. t5 is where ./scripts/test.sh has installed it.
"""

import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import click
import seqio
import t5.data.preprocessors as t5
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from pretrain.data import reading
from pretrain.objectives import SpanCorruption
from tasks import python_stdlib

LENGTHS = {"inputs": 512, "targets": 114}
BATCH = 128
CHUNK = SpanCorruption().tokens_length(LENGTHS["inputs"])  # tokens of text in a row
READ = {
    "sequence_length": LENGTHS,
    "split": "train",
    "seed": 0,
    "num_epochs": None,
    "try_in_mem_cache": False,
}


def ours(corpus: seqio.Task) -> tf.data.Dataset:
    objective = SpanCorruption()
    examples = objective.bind(corpus).get_dataset(**READ)
    rows = objective.converter(pack=False)(examples, LENGTHS)
    return rows.batch(BATCH, drop_remainder=True).prefetch(4).with_options(reading.options())


def seqio_and_t5(corpus: seqio.Task, options: tf.data.Options) -> tf.data.Dataset:
    feature = corpus.output_features["targets"]
    own = [step for step in corpus.preprocessors if not isinstance(step, seqio.CacheDatasetPlaceholder)]
    task = seqio.Task(
        "span_corruption",
        source=corpus.source,
        preprocessors=[*own, t5.span_corruption, seqio.preprocessors.append_eos_after_trim],
        output_features={"inputs": feature, "targets": feature},
    )
    rows = seqio.EncDecFeatureConverter(pack=False)(task.get_dataset(**READ), LENGTHS)
    return rows.batch(BATCH, drop_remainder=True).prefetch(4).with_options(options)


def rates(batches: Iterator, number: int) -> tuple[float, float]:
    """Tokens of text a second, and a second of CPU time."""
    time.sleep(1.5)  # until the other one has filled what it reads ahead
    for _ in range(6):
        next(batches)
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(number):
        next(batches)
    tokens = number * BATCH * CHUNK
    return tokens / (time.perf_counter() - began), tokens / (time.process_time() - cpu)


@click.command()
@click.option("--sentencepiece", type=click.Path(exists=True, dir_okay=False), help="A model; else bytes.")
@click.option("--rounds", type=click.IntRange(min=1), default=6, show_default=True)
@click.option("--batches", type=click.IntRange(min=1), default=24, show_default=True, help="In each round.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
def main(sentencepiece: str | None, rounds: int, batches: int, json_file: Path | None) -> None:
    """Prints tokens of text a second of both, and how much faster ours is within a round."""
    vocabulary = seqio.SentencePieceVocabulary(sentencepiece, extra_ids=100) if sentencepiece else None
    corpus = python_stdlib.task(vocabulary=vocabulary)
    pipelines = {
        "pretrain": iter(ours(corpus)),
        "seqio + t5": iter(seqio_and_t5(corpus, tf.data.Options())),
        # tf.data's own tuning, which we turn off, may be what makes the difference.
        "seqio + t5, untuned as ours": iter(seqio_and_t5(corpus, reading.options())),
    }
    for name, pipeline in pipelines.items():
        batch = next(pipeline)
        if not all(tf.reduce_all(batch[f"{of}_tokens"] > 0) for of in ("encoder_input", "decoder_target")):
            raise SystemExit(f"{name} pads: the two do not read as much.")
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in pipelines}
    for turn in range(rounds):
        for name in list(pipelines)[:: 1 if turn % 2 else -1]:
            found[name].append(rates(pipelines[name], batches))
    table = Table(box=None, padding=(0, 3, 0, 0))
    for column in ("", "tokens/s", "tokens/CPU s", "ours is faster by", "of rounds"):
        table.add_column(column, justify="right" if column else "left")
    results = {}
    for name, figures in found.items():
        ratios = [own[0] / other[0] for own, other in zip(found["pretrain"], figures, strict=True)]
        wall, cpu = (statistics.median(column) for column in zip(*figures, strict=True))
        results[name] = {"tokens_per_second": wall, "tokens_per_cpu_second": cpu, "ratios": ratios}
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        table.add_row(name, f"{wall:,.0f}", f"{cpu:,.0f}", f"{statistics.median(ratios):.2f}", spread)
    Console(width=120, highlight=False).print(table)
    if json_file:
        json_file.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
