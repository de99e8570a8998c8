"""Hugging Face's T5 in Flax, of the last release that has one: python hf_flax.py encoder_decoder"""

import sys

import jax
import jax.numpy as jnp
import optax

_clip = jnp.clip
# The package calls it by names that JAX has since dropped.
jnp.clip = lambda x, a_min=None, a_max=None: _clip(x, a_min, a_max)

import transformers  # noqa: E402
from job import LEARNING_RATE, SHAPES, WEIGHT_DECAY, serve  # noqa: E402


def main(family: str) -> None:
    shape = SHAPES[family]
    model = transformers.FlaxT5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=shape.vocab, d_model=shape.embed, d_kv=shape.head_dim, d_ff=shape.mlp,
            num_layers=shape.layers, num_decoder_layers=shape.layers, num_heads=shape.heads,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False, dropout_rate=0.0,
        )
    )  # fmt: skip
    inputs, targets = jnp.asarray(shape.ids(shape.inputs)), jnp.asarray(shape.ids(shape.targets))
    shifted = jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    optimizer = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def loss(params):
        logits = model(input_ids=inputs, decoder_input_ids=shifted, params=params, train=True).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    def update(params, opt_state):
        value, gradients = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    update = jax.jit(update, donate_argnums=(0, 1))
    state = [jax.tree.map(jnp.array, model.params)]
    state.append(optimizer.init(state[0]))

    def step() -> None:
        *state[:], _ = jax.block_until_ready(update(*state))

    serve(sum(leaf.size for leaf in jax.tree.leaves(model.params)), step)


if __name__ == "__main__":
    main(*sys.argv[1:])
