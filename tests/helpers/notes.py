"""A small network with known predictions: advertisements versus notes between friends."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from thawline.backbones import TextPreprocessing, networks
from thawline.registry import Calibration, package

__all__ = ["ADVERTISEMENTS", "CLASSES", "FRIENDLY", "PREPROCESSING", "make_text_package", "note_network", "tokens_of"]

CLASSES = ("ham", "spam")
FRIENDLY = ("see you at lunch", "call me at home when you are done with work", "are you at home now")
ADVERTISEMENTS = ("win a free prize now", "claim your free phone", "a prize of cash is yours to claim call now")
ARCHITECTURE = {
    "library": "transformers",
    "task": "text-classification",
    "config": {
        "model_type": "bert",
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 16,
        "pad_token_id": 0,
    },
    "num_classes": 2,
}


def _tokenizer() -> str:
    """A word-level tokenizer with BERT's special tokens; unknown words are [UNK]."""
    words = sorted({word for text in (*FRIENDLY, *ADVERTISEMENTS) for word in text.split()})
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return str(tokenizer.to_str())


PREPROCESSING = TextPreprocessing(_tokenizer(), max_length=10)


def tokens_of(text: str) -> torch.Tensor:
    """Tokens of one text from the library itself, int64 ``[1, T]``, truncated to ten."""
    tokenizer = Tokenizer.from_str(PREPROCESSING.tokenizer)
    tokenizer.enable_truncation(PREPROCESSING.max_length)
    return torch.tensor([tokenizer.encode(text).ids])


def note_network(order: tuple[int, int] = (0, 1)) -> torch.nn.Module:
    """Random layers, and a head fitted to them, so that class ``order[0]`` is a friendly note."""
    torch.manual_seed(0)
    network = networks.build(ARCHITECTURE).eval()
    texts = (*FRIENDLY, *ADVERTISEMENTS)
    assert isinstance(network.head, torch.nn.Linear)
    caught: list[torch.Tensor] = []
    hook = network.head.register_forward_pre_hook(lambda head, inputs: caught.append(inputs[0]))
    with torch.no_grad():
        for text in texts:
            network(tokens_of(text))
        target = np.full((len(texts), 2), -5.0)
        for row in range(len(texts)):
            target[row, order[row // len(FRIENDLY)]] = 5.0
        features = torch.cat(caught).double().numpy()
        solution = np.linalg.lstsq(features, target, rcond=None)[0]
        network.head.weight.copy_(torch.from_numpy(solution.T))
        network.head.bias.zero_()
    hook.remove()
    return network


def make_text_package(
    folder: Path,
    *,
    order: tuple[int, int] = (0, 1),
    classes: Sequence[str] = CLASSES,
    calibration: Calibration | None = None,
    text_column: str | None = None,
) -> Path:
    return package(
        folder,
        state_dict=note_network(order).state_dict(),
        architecture=ARCHITECTURE,
        classes=classes,
        preprocessing=PREPROCESSING,
        example=FRIENDLY[0],
        calibration=calibration,
        text_column=text_column,
        extra={"study": "notes", "trial": 3},
    )
