"""Writes tests/golden/bert_tiny.npz: a small random BERT of `transformers`, its logits, loss and gradients.

    pip install transformers==4.57.1 torch==2.13.0
    python scripts/goldens/bert.py tests/golden/bert_tiny.npz

Weights are drawn with numpy, large enough that every part of the network matters.
"""

import sys

import numpy as np
import torch
from transformers import BertConfig, BertForMaskedLM

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 20, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "layer_norm_eps": 1e-12,
}  # fmt: skip


def main(path: str) -> None:
    random = np.random.RandomState(0)
    model = BertForMaskedLM(BertConfig(**SIZES, attn_implementation="eager")).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = random.normal(size=tuple(parameter.shape)) * 0.2
            if name.endswith("LayerNorm.weight"):
                values += 1
            parameter.copy_(torch.tensor(values.astype(np.float32)))
    ids = random.randint(3, SIZES["vocab_size"], (2, 16))
    chosen = random.rand(2, 16) < 0.3
    attended = np.ones((2, 16), np.int64)
    attended[1, 11:] = 0
    chosen &= attended > 0
    targets = random.randint(3, SIZES["vocab_size"], (2, 16))
    labels = np.where(chosen, targets, -100)
    found = model(
        input_ids=torch.tensor(ids), attention_mask=torch.tensor(attended), labels=torch.tensor(labels)
    )
    found.loss.backward()
    arrays = {
        "ids": ids, "attended": attended, "targets": targets, "chosen": chosen,
        "logits": found.logits.detach().numpy(), "loss": found.loss.detach().numpy(),
    }  # fmt: skip
    for name, parameter in model.named_parameters():
        arrays[f"params/{name}"] = parameter.detach().numpy()
        arrays[f"gradients/{name}"] = parameter.grad.numpy()
    np.savez_compressed(path, **arrays)


main(sys.argv[1])
