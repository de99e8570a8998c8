"""pretrain generate"""

from pathlib import Path

import click

from pretrain.cli import options


@click.command("generate", context_settings=options.GIN_CONTEXT)
@click.argument("source", metavar="MODEL_DIR|RUN.gin")
@click.option(
    "--model-dir", type=click.Path(path_type=Path), help="Whose parameters.  [default: those of MODEL_DIR]"
)
@click.option("--prompt", "prompts", multiple=True, required=True, help="Text; may be given several times.")
@click.option("--step", type=int, help="Checkpoint to use.  [default: the newest]")
@click.option("--max-tokens", type=click.IntRange(min=1), help="New tokens at most.  [default: what fits]")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-k", type=int, help="Draw from the k likeliest tokens.")
@click.option("--top-p", type=float, help="Draw from the fewest tokens that hold this much of the mass.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of the draws.")
@options.gin_arguments
def command(
    source: str, model_dir: Path | None, prompts: tuple[str, ...], step: int | None, max_tokens: int | None,
    temperature: float, top_k: int | None, top_p: float | None, seed: int, gin_flags: tuple[str, ...],
) -> None:  # fmt: skip
    """Let the model in MODEL_DIR fill in (T5) or continue (decoders) a prompt.

    An encoder-decoder trained on span corruption fills the gaps that <extra_id_0>, <extra_id_1>, ... mark.

    \b
    Example:
      pretrain generate /tmp/quickstart --prompt 'for i in <extra_id_0>(10):'
      pretrain generate /tmp/causal --prompt 'def main' --temperature 0.8 --top-p 0.95
    """
    options.quiet_logs()
    from pretrain.inference.generate import generate
    from pretrain.inference.sampling import Sampling
    from pretrain.training import loading

    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    run, holder = options.trained_run(source, model_dir, gin_flags)
    with loading.opened(holder, run, step) as trained:
        for result in generate(
            run, trained.params, trained.mesh, prompts, max_tokens=max_tokens, sampling=sampling, seed=seed
        ):
            click.echo(result.text)
