"""pretrain evaluate"""

import dataclasses
import json
from pathlib import Path

import click

from pretrain.cli import options


@click.command("evaluate", context_settings=options.GIN_CONTEXT)
@click.argument("source", metavar="MODEL_DIR|RUN.gin")
@click.option(
    "--model-dir", type=click.Path(path_type=Path), help="Whose parameters.  [default: those of MODEL_DIR]"
)
@click.option("--split", help="Split to read.  [default: the run's eval_split]")
@click.option("--step", type=int, help="Checkpoint to use.  [default: the newest]")
@click.option(
    "--batches", type=click.IntRange(min=1), help="Batches to read.  [default: the run's eval_batches]"
)
@click.option(
    "--examples", type=click.IntRange(min=0), default=0, help="Also show the model's fill of so many."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@options.gin_arguments
def command(
    source: str, model_dir: Path | None, split: str | None, step: int | None, batches: int | None,
    examples: int, as_json: bool, gin_flags: tuple[str, ...],
) -> None:  # fmt: skip
    """Loss, accuracy, perplexity and bits per byte of the model in MODEL_DIR on a split.

    Beside them, what the same text's own byte statistics reach: the entropy of its bytes (unigram) and of
    its bytes given the one before (bigram). RUN.gin evaluates the model of --model-dir by other settings,
    such as those of another corpus.

    \b
    Example:
      pretrain evaluate /tmp/quickstart --split test --examples 3
      pretrain evaluate other_corpus.gin --model-dir /tmp/quickstart
    """
    options.quiet_logs()
    from rich.console import Console

    from pretrain import evaluation
    from pretrain.cli import examples as drawing
    from pretrain.inference.held_out import filled_examples
    from pretrain.training import loading

    run, holder = options.trained_run(source, model_dir, gin_flags)
    run = dataclasses.replace(
        run, eval_split=split or run.eval_split, eval_batches=batches or run.eval_batches
    )
    with loading.opened(holder, run, step) as trained:
        figures = evaluation.evaluate(run, trained.programs.eval_step, trained.params, trained.mesh)
        # Beside a loss that is no text's, the entropies of the text say nothing.
        baselines = evaluation.text_entropies(run) if "bits_per_byte" in figures else {}
        if as_json:
            click.echo(json.dumps({"step": trained.step, **figures, **baselines}))
            return
        console = Console(highlight=False)
        drawing.show_figures(console, run, trained.step, figures, baselines)
        if examples:
            filled = filled_examples(run, trained.params, trained.mesh, examples)
            drawing.show_filled(console, run, filled)
