"""Hugging Face models in PyTorch: python hf_torch.py encoder_decoder|decoder eager|compiled"""

import sys

import torch
import transformers
from job import LEARNING_RATE, SHAPES, WEIGHT_DECAY, Shape, serve


def t5(shape: Shape) -> torch.nn.Module:
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=shape.vocab, d_model=shape.embed, d_kv=shape.head_dim, d_ff=shape.mlp,
            num_layers=shape.layers, num_decoder_layers=shape.layers, num_heads=shape.heads,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False, dropout_rate=0.0, use_cache=False,
            decoder_start_token_id=0,
        )
    )  # fmt: skip


def llama(shape: Shape) -> torch.nn.Module:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=shape.vocab, hidden_size=shape.embed, intermediate_size=shape.mlp,
            num_hidden_layers=shape.layers, num_attention_heads=shape.heads, use_cache=False,
            attn_implementation="sdpa",
        )
    )  # fmt: skip


def main(family: str, mode: str) -> None:
    torch.manual_seed(0)
    shape = SHAPES[family]
    model = (llama if family == "decoder" else t5)(shape).train()
    targets = torch.tensor(shape.ids(shape.targets))
    batch = {"input_ids": targets if family == "decoder" else torch.tensor(shape.ids(shape.inputs))}
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    call = torch.compile(model) if mode == "compiled" else model

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = call(**batch, labels=targets).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    serve(sum(parameter.numel() for parameter in model.parameters()), step)


if __name__ == "__main__":
    main(*sys.argv[1:])
