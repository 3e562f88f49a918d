"""The usual approach: an Optuna study around the loop of PyTorch's transfer-learning tutorial.

https://docs.pytorch.org/tutorials/beginner/transfer_learning_tutorial.html: ``ImageFolder`` and its transforms,
``DataLoader`` with worker processes, frozen parameters by ``requires_grad``, ``model.train()``. For texts, as in
https://huggingface.co/docs/transformers/tasks/sequence_classification: tokens before training, padded per batch, and
``AutoModelForSequenceClassification``. Optimizer, schedule, epochs, seeds and evaluation are Thawline's. Prints a line
of JSON per epoch.

``benchmarks/search.py`` runs it as a separate process.
"""

import argparse
import csv
import json
import math
import time
from pathlib import Path
from typing import Any

import optuna
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms

BEGAN = time.perf_counter()


def main() -> None:
    """Run the trials listed in ``--trials`` in order, or this number of trials drawn by Optuna's default sampler."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True, help="train/ and validation/, or .csv files")
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--weights", required=True, help="a file, or none")
    parser.add_argument("--image-size", type=int, help="needed for images")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    listed = 'JSON: {"groups": [[tensor, …], …], "trials": [[depth, rate], …] or a number}'
    parser.add_argument("--trials", type=Path, required=True, help=listed)
    parser.add_argument("--pruner", default="NopPruner", help="class name of an Optuna pruner")
    arguments = parser.parse_args()
    as_thawline = {"n_startup_trials": 8, "n_warmup_steps": 2} if arguments.pruner == "MedianPruner" else {}
    pruner = getattr(optuna.pruners, arguments.pruner)(**as_thawline)
    sampler = optuna.samplers.TPESampler(seed=arguments.seed)
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
    asked = json.loads(arguments.trials.read_text())
    groups, trials = asked["groups"], asked["trials"]
    for number in range(trials if isinstance(trials, int) else len(trials)):
        trial = study.ask()
        if isinstance(trials, int):
            depth = trial.suggest_int("freeze_depth", 0, len(groups))
            rate = trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True)
        else:
            depth, rate = trials[number]
        frozen = {name for group in groups[:depth] for name in group}
        value, pruned = run(trial, number, frozen, rate, arguments)
        study.tell(trial, None if pruned else value, state=optuna.trial.TrialState.PRUNED if pruned else None)


def run(trial: optuna.Trial, number: int, frozen: set[str], rate: float, arguments: Any) -> tuple[float, bool]:
    """Run one trial; returns its best validation accuracy and whether it was pruned."""
    torch.manual_seed(arguments.seed)
    model: nn.Module
    if arguments.backbone.startswith("hf:"):
        train, validation = (text_loader(arguments, split) for split in ("train", "validation"))
        model = texts = TextClassifier(arguments.backbone, len({label for _, label in train.dataset}))  # type: ignore[attr-defined]
        frozen = {texts.name_of(name) for name in frozen}
    else:
        train, validation = (image_loader(arguments, split) for split in ("train", "validation"))
        model = image_classifier(arguments, len(train.dataset.classes))  # type: ignore[attr-defined]
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name not in frozen
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = {"params": [p for p in free if p.ndim >= 2], "weight_decay": 0.01}
    plain = {"params": [p for p in free if p.ndim < 2], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([decayed, plain], lr=rate)
    steps = arguments.epochs * len(train)
    schedule = LambdaLR(optimizer, lambda step: factor(step, steps))
    best = 0.0
    for epoch in range(arguments.epochs):
        model.train()
        for inputs, labels in train:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels, label_smoothing=0.1).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(free, 1.0)
            optimizer.step()
            schedule.step()
        model.eval()
        correct = total = 0
        with torch.no_grad():
            for inputs, labels in validation:
                correct += int((model(inputs).argmax(1) == labels).sum())
                total += len(labels)
        accuracy = correct / total
        best = max(best, accuracy)
        seconds = time.perf_counter() - BEGAN
        print(json.dumps({"trial": number, "epoch": epoch + 1, "value": accuracy, "seconds": seconds}), flush=True)
        trial.report(accuracy, epoch + 1)
        if trial.should_prune() and epoch + 1 < arguments.epochs:
            return best, True
    return best, False


def text_loader(arguments: Any, split: str) -> DataLoader[Any]:
    """Token ids of all texts, computed once per trial and padded to the longest of a batch."""
    from transformers import AutoTokenizer, DataCollatorWithPadding

    with (arguments.data / f"{split}.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    classes = sorted({row["label"] for row in rows})
    tokenizer = AutoTokenizer.from_pretrained(arguments.backbone.removeprefix("hf:"))
    encoded = [tokenizer(row["text"], truncation=True) for row in rows]
    pad = DataCollatorWithPadding(tokenizer)

    def collate(batch: list[tuple[Any, int]]) -> tuple[Any, torch.Tensor]:
        return pad([tokens for tokens, _ in batch]), torch.tensor([label for _, label in batch])

    data = [(tokens, classes.index(row["label"])) for tokens, row in zip(encoded, rows, strict=True)]
    return DataLoader(data, batch_size=arguments.batch_size, shuffle=split == "train", collate_fn=collate)  # type: ignore[arg-type]


class TextClassifier(nn.Module):
    """The pretrained encoder with a new head."""

    def __init__(self, backbone: str, classes: int) -> None:
        super().__init__()
        from transformers import AutoModelForSequenceClassification

        name = backbone.removeprefix("hf:")
        self.network = AutoModelForSequenceClassification.from_pretrained(name, num_labels=classes)

    def name_of(self, tensor: str) -> str:
        """The name here of a tensor of Thawline's ``encoder``."""
        return f"network.{self.network.base_model_prefix}.{tensor.removeprefix('encoder.')}"

    def forward(self, tokens: Any) -> torch.Tensor:
        """Logits of shape (batch, classes)."""
        logits: torch.Tensor = self.network(**tokens).logits
        return logits


def image_loader(arguments: Any, split: str) -> DataLoader[Any]:
    """As in the tutorial, but without random crops, so that every design sees the same pixels."""
    steps = transforms.Compose(
        [
            transforms.Resize(round(256 * arguments.image_size / 224)),
            transforms.CenterCrop(arguments.image_size),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    data = datasets.ImageFolder(arguments.data / split, steps)
    return DataLoader(data, batch_size=arguments.batch_size, shuffle=split == "train", num_workers=2)


def image_classifier(arguments: Any, classes: int) -> nn.Module:
    """The pretrained network with a new head."""
    source, _, name = arguments.backbone.rpartition("/")
    model: nn.Module
    if source == "timm":
        import timm

        model = timm.create_model(name, num_classes=classes)
    else:
        model = models.get_model(name, weights=None, num_classes=classes)
    if arguments.weights == "none":
        return model
    state = model.state_dict()
    pretrained = load_file(arguments.weights)
    state.update({name: value for name, value in pretrained.items() if value.shape == state[name].shape})
    model.load_state_dict(state)
    return model


def factor(step: int, steps: int) -> float:
    """Thawline's schedule: warm-up over a tenth of the steps, then cosine decay."""
    warmup = math.ceil(steps * 0.1)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


if __name__ == "__main__":
    main()
