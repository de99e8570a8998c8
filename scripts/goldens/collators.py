"""Writes tests/golden/collators.npz: what `transformers`' collators choose, hide and let be seen.

    pip install transformers==4.57.1 torch==2.13.0
    python scripts/goldens/collators.py tests/golden/collators.npz

The vocabulary is seqio.ByteVocabulary(extra_ids=100): id 3 + b is byte b, and a word begins with a space.
Arrays are of a few rows, with what was drawn for them; "eligible" and "number_*" are counts over many more.
"""

import random
import sys
import tempfile
from unittest import mock

import numpy as np
import torch
from transformers import (
    BertTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorForPermutationLanguageModeling,
    DataCollatorForWholeWordMask,
    XLNetConfig,
    XLNetModel,
)

PAD, EOS, MASK, VOCAB = 0, 1, 358, 359
ROWS, LENGTH, MANY = 8, 48, 4000
DRAWS = ("bernoulli", "randint")


def tokenizer() -> BertTokenizer:
    text = [("" if byte == ord(" ") else "##") + f"byte{byte}" for byte in range(256)]
    names = ["[PAD]", "[SEP]", "[UNK]", *text, "[CLS]", *(f"extra{i}" for i in range(98)), "[MASK]"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(names))
        file.flush()
        return BertTokenizer(file.name)


def texts(rows: int, length: int, least: int) -> list[list[int]]:
    """Words of 1 to 8 letters, each after a space, and EOS."""
    draw = np.random.RandomState(0)
    found = []
    for _ in range(rows):
        letters = "".join(" " + "x" * draw.randint(1, 9) for _ in range(length)).encode()
        letters = [draw.randint(97, 123) if byte == ord("x") else byte for byte in letters]
        size = draw.randint(least, length + 1)
        found.append([3 + byte for byte in letters[: size - 1]] + [EOS])
    return found


def recorded(collator, examples) -> tuple[dict[str, torch.Tensor], dict[str, list[np.ndarray]]]:
    """What a collator makes of the examples, and what it has drawn for that."""
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in DRAWS}

    def recording(name):
        real = getattr(torch, name)

        def record(*args, **kwargs):
            found = real(*args, **kwargs)
            drawn[name].append(found.numpy().copy())
            return found

        return mock.patch.object(torch, name, record)

    with recording(DRAWS[0]), recording(DRAWS[1]):
        return collator(examples), drawn


def masking(collator) -> dict[str, np.ndarray]:
    few, many = texts(ROWS, LENGTH, LENGTH // 2), texts(MANY, LENGTH, LENGTH)
    made, drawn = recorded(collator, few)
    chosen = made["labels"].numpy() != -100
    longest = chosen.shape[1]
    arrays = {
        "tokens": np.array([text + [PAD] * (longest - len(text)) for text in few]), "chosen": chosen,
        "inputs": made["input_ids"], "words": drawn["randint"][0], "loss": loss(made["labels"]),
        "replaced": drawn["bernoulli"][-2] > 0, "randomised": drawn["bernoulli"][-1] > 0,
    }  # fmt: skip
    made = collator(many)
    tokens, inputs, chosen = np.array(many), made["input_ids"].numpy(), made["labels"].numpy() != -100
    became = inputs[chosen]
    return arrays | {
        "eligible": (tokens != EOS).sum(), "number_chosen": chosen.sum(),
        "number_masked": (became == MASK).sum(), "number_kept": (became == tokens[chosen]).sum(),
    }  # fmt: skip


def permutation(collator) -> dict[str, np.ndarray]:
    few, many = texts(ROWS, LENGTH, LENGTH), texts(MANY, LENGTH, LENGTH)
    made = collator(few)
    return {
        "tokens": np.array(few), "chosen": made["labels"].numpy() != -100, "inputs": made["input_ids"],
        "perm_mask": made["perm_mask"].numpy() > 0, "loss": loss(made["labels"]),
        "reached": reached(few, made["perm_mask"]),
        "eligible": (np.array(many) != EOS).sum(),
        "number_chosen": (collator(many)["labels"] != -100).sum(),
    }  # fmt: skip


def loss(labels: torch.Tensor) -> np.ndarray:
    """The mean cross entropy, as of all their models, of random logits, which need not be kept."""
    logits = np.random.RandomState(1).normal(size=(*labels.shape, VOCAB)).astype(np.float32)
    function = torch.nn.CrossEntropyLoss()  # leaves out -100
    return function(torch.tensor(logits).view(-1, VOCAB), labels.view(-1)).numpy()


def reached(tokens: list[list[int]], perm_mask: torch.Tensor) -> np.ndarray:
    """bool [rows, L, L]: whether XLNet's query stream of a position depends on the token at another.

    Of the tokens themselves: the collator hides those that are predicted from the content stream too.
    """
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32}
    model = XLNetModel(XLNetConfig(**sizes, dropout=0.0)).eval()
    embedded = model.word_embedding(torch.tensor(tokens)).detach().requires_grad_()
    mapping = torch.eye(LENGTH).expand(len(tokens), -1, -1)
    output = model(inputs_embeds=embedded, perm_mask=perm_mask, target_mapping=mapping)[0]
    weights = torch.randn(output.shape[-1])
    found = []
    for position in range(LENGTH):
        total = (output[:, position] @ weights).sum()
        (gradient,) = torch.autograd.grad(total, embedded, retain_graph=True)
        found.append((gradient.abs().sum(-1) > 0).numpy())
    return np.stack(found, axis=1)


def main(path: str) -> None:
    random.seed(0)
    torch.manual_seed(0)
    names = tokenizer()
    assert (len(names), names.pad_token_id, names.sep_token_id, names.mask_token_id) == (
        VOCAB,
        PAD,
        EOS,
        MASK,
    )
    made = {
        "tokens": masking(DataCollatorForLanguageModeling(names, mlm_probability=0.15)),
        "whole_words": masking(DataCollatorForWholeWordMask(names, mlm_probability=0.15)),
        "permutation": permutation(DataCollatorForPermutationLanguageModeling(names)),
    }
    arrays = {f"{kind}/{name}": x for kind, found in made.items() for name, x in found.items()}
    np.savez_compressed(path, **{name: smaller(np.asarray(x)) for name, x in arrays.items()})


def smaller(x: np.ndarray) -> np.ndarray:
    return x.astype(np.int32) if x.dtype == np.int64 else x


main(sys.argv[1])
