"""What is observed is true, and observing changes nothing of what is trained."""

import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_torchvision import tiny
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from thawline import backbones
from thawline.backbones import Backbone, Section, section
from thawline.config import TrainConfig
from thawline.freezing import freeze_to, train_mode
from thawline.training import (
    CheckpointFolder,
    Decision,
    FitResult,
    Interrupted,
    Observation,
    Observer,
    fit,
    load_checkpoint,
    runtime_for,
    set_up_process,
)
from thawline.training.observation import Allowance, GradientVerdict

CONFIG = TrainConfig(epochs=2, batch_size=8, device="cpu", label_smoothing=0.0)


def watching(record: Callable[[Observation], None], *, details: bool = False) -> Observer:
    """An observer that takes all the time that it wants for gradients, and for details too or none."""
    always, never = Allowance(math.inf), Allowance(-1.0)
    return Observer(record, flow=always, details=always if details else never)


@pytest.fixture
def train(make_backbone: Any, images: Any, hyperparameters: Any, tmp_path: Path) -> Callable[..., Any]:
    def run(
        observer: Observer | None,
        *,
        folder: str,
        config: TrainConfig = CONFIG,
        depth: int = 0,
        learning_rate: float = 1e-2,
        scale: float = 1.0,
        accumulation: int = 1,
        on_batch: Callable[[], bool] = lambda: False,
    ) -> tuple[Backbone, FitResult]:
        set_up_process(threads=1, seed=0)
        backbone = make_backbone()
        with torch.no_grad():
            backbone.module.neck[2].weight.mul_(scale)
        result = fit(
            backbone,
            lambda depth: (images(60), images(30)),
            hyperparameters=hyperparameters(depth, learning_rate),
            config=config,
            metric="accuracy",
            runtime=runtime_for(config),
            checkpoints=CheckpointFolder(tmp_path / folder, keep=2, maximise=True),
            seed=0,
            accumulation=accumulation,
            on_epoch=lambda result: Decision.CONTINUE,
            on_batch=on_batch,
            observer=observer,
        )
        return backbone, result

    return run


@pytest.mark.parametrize(("exact", "accumulation", "depth"), [(False, 1, 0), (True, 1, 0), (False, 2, 1), (True, 1, 3)])
def test_losses_and_checkpoints_are_the_same_with_and_without_an_observer(
    train: Any, tmp_path: Path, exact: bool, accumulation: int, depth: int
) -> None:
    options = {
        "config": CONFIG.model_copy(update={"exact": exact}),
        "accumulation": accumulation,
        "depth": depth,
    }
    seen: list[Observation] = []
    _, plain = train(None, folder="plain", **options)
    _, watched = train(watching(seen.append, details=True), folder="watched", **options)
    assert [len(observation.gradients) for observation in seen] == [4 - depth] * 2, "it was observed"
    for one, other in zip(plain.history, watched.history, strict=True):
        timed = {"time/epoch_seconds", "train/rows_per_second"}
        assert {k: v for k, v in one.metrics.items() if k not in timed} == {
            k: v for k, v in other.metrics.items() if k not in timed
        }
    for epoch in ("epoch-0001", "epoch-0002"):
        first, second = (load_checkpoint(tmp_path / name / f"{epoch}.safetensors") for name in ("plain", "watched"))
        for part in ("model", "optimizer", "random_states"):
            mine, theirs = getattr(first, part), getattr(second, part)
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_no_hook_is_left_after_training_nor_after_an_error(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    networks: list[Section] = []
    attach = Observer.attach

    def remember(self: Observer, network: Section, *arguments: Any) -> None:
        networks.append(network)
        attach(self, network, *arguments)

    during: list[int] = []

    def count() -> bool:
        during.append(hooks(networks[-1]))
        return False

    def fail() -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(Observer, "attach", remember)
    backbone, _ = train(watching(lambda seen: None), folder="whole", on_batch=count)
    with pytest.raises(KeyboardInterrupt):
        train(watching(lambda seen: None), folder="stopped", on_batch=fail)
    assert max(during) == 4, "one for each layer group and the head while an epoch is trained"
    assert [hooks(network) for network in networks] == [0, 0]
    assert hooks(backbone.module) == 0


def hooks(network: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in network.modules() for kind in kinds)


def one_step(
    backbone: Backbone, images: Tensor, labels: Tensor, observer: Observer | None, *, scaler: GradScaler | None = None
) -> dict[str, Tensor]:
    """Loss and gradients of one step from the given depth."""
    network = section(backbone, 0, exact=False)
    scaler = scaler or GradScaler("cpu", enabled=False)
    if observer is not None:
        observer.attach(network, backbone, depth_of(backbone), scaler)
    torch.manual_seed(0)
    backbone.module.zero_grad()
    with observer.watching(1, range(1, 2)) if observer is not None else nullcontext():
        logits = network(images)
        loss = F.cross_entropy(logits, labels)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if observer is not None:
            observer.before_step()
    if observer is not None:
        observer.end_epoch(1, logits.detach())
    named = backbone.module.named_parameters()
    return {"loss": loss.detach()} | {name: p.grad.clone() for name, p in named if p.grad is not None}


def depth_of(backbone: Backbone) -> int:
    named = dict(backbone.module.named_parameters())
    groups = backbone.layer_groups
    return sum(not any(named[name].requires_grad for name in group.tensors if name in named) for group in groups)


@pytest.mark.parametrize(
    ("name", "size", "thawed"),
    [
        ("resnet18", 32, 5),
        ("squeezenet1_1", 32, 4),
        ("mobilenet_v3_small", 32, 6),
        ("densenet121", 32, 2),
        ("vit_b_32", 32, 2),
        ("swin_t", 32, 3),
        ("convnext_tiny", 32, 2),
        ("efficientnet_b0", 32, 2),
        ("googlenet", 32, 3),
    ],
)
def test_every_kind_of_network_has_the_same_loss_and_gradients_while_it_is_observed(
    name: str, size: int, thawed: int
) -> None:
    with tiny(name):
        backbone = backbones.create(name, num_classes=3, weights="none", image_size=size)
    depth = len(backbone.layer_groups) - thawed
    nn.init.normal_(backbone.module.get_parameter(backbone.head.tensors[0]), std=0.02)  # a ViT's is all zeros
    freeze_to(backbone, depth, batch_norm="train_all")
    train_mode(backbone, depth, batch_norm="train_all")
    random = torch.Generator().manual_seed(0)
    images, labels = torch.randn(4, 3, size, size, generator=random), torch.tensor([0, 1, 2, 0])
    seen: list[Observation] = []
    plain = one_step(backbone, images, labels, None)
    watched = one_step(backbone, images, labels, watching(seen.append))
    assert plain.keys() == watched.keys()
    assert all(torch.equal(plain[key], watched[key]) for key in plain)
    (observation,) = seen
    assert list(observation.norms) == [group.name for group in backbone.layer_groups[depth:]] + ["head"]
    assert all(norms.shape == (1,) and norms[0] > 0 for norms in observation.norms.values())


@pytest.mark.parametrize("scaled", [False, True])
def test_the_norms_are_those_of_the_gradients_at_the_boundaries_of_the_groups(make_backbone: Any, scaled: bool) -> None:
    backbone = make_backbone()
    freeze_to(backbone, 0, batch_norm="train_all")
    backbone.module.eval()
    images, labels = torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
    seen: list[Observation] = []
    scaler = GradScaler("cpu", enabled=True) if scaled else None
    one_step(backbone, images, labels, watching(seen.append), scaler=scaler)
    passed_on, value = {}, images
    for name in ("stem", "body", "neck", "head"):
        value = passed_on[name] = getattr(backbone.module, name)(value)
        value.retain_grad()
    F.cross_entropy(value, labels).backward()  # type: ignore[no-untyped-call]
    for name, tensor in passed_on.items():
        assert tensor.grad is not None
        assert seen[0].norms[name][0] == pytest.approx(float(tensor.grad.norm()), rel=1e-5)


def test_parts_of_a_batch_add_up_to_the_norm_of_the_whole(train: Any) -> None:
    whole: list[Observation] = []
    parts: list[Observation] = []
    train(watching(whole.append), folder="whole", depth=3)
    train(watching(parts.append), folder="parts", depth=3, accumulation=2)
    assert len(whole[0].norms["head"]) == 8
    np.testing.assert_allclose(parts[0].norms["head"], whole[0].norms["head"], rtol=1e-3)


def test_steps_are_counted_over_the_whole_training_and_after_a_leave_from_there_on(train: Any) -> None:
    seen: list[Observation] = []
    train(watching(seen.append), folder="whole")
    assert [observation.steps.tolist() for observation in seen] == [list(range(1, 9)), list(range(9, 17))]
    batches: list[int] = []

    def leave() -> bool:
        batches.append(len(batches))
        return len(batches) == 3

    seen.clear()
    with pytest.raises(Interrupted):
        train(watching(seen.append), folder="left", on_batch=leave)
    assert seen == []
    train(watching(seen.append), folder="left")
    assert [observation.steps.tolist() for observation in seen] == [list(range(4, 9)), list(range(9, 17))]
    assert [len(observation.norms["head"]) for observation in seen] == [5, 8]


def test_histograms_count_the_weights_after_and_the_gradients_before_the_last_step(train: Any, tmp_path: Path) -> None:
    seen: list[Observation] = []
    backbone, _ = train(watching(seen.append, details=True), folder="trial", depth=1)
    last = seen[-1]
    assert list(last.weights) == list(last.gradients) == ["body", "neck", "head"]
    head = torch.cat([parameter.detach().flatten() for parameter in backbone.module.head.parameters()])
    counted = last.weights["head"]
    assert counted.counts.sum() == len(head)
    assert counted.edges[0] == pytest.approx(float(head.min()))
    assert counted.edges[-1] == pytest.approx(float(head.max()))
    assert last.gradients["head"].counts.sum() == len(head)
    assert last.gradients["head"].edges[-1] > 0


def test_histograms_of_a_large_group_are_counted_from_a_sample() -> None:
    backbone = backbones.create("mobilenet_v3_small", num_classes=3, weights="none", image_size=32)
    backbone.module.to(memory_format=torch.channels_last)
    freeze_to(backbone, 5, batch_norm="train_all")
    train_mode(backbone, 5, batch_norm="train_all")
    seen: list[Observation] = []
    one_step(backbone, torch.randn(2, 3, 32, 32), torch.tensor([0, 1]), watching(seen.append, details=True))
    name = backbone.layer_groups[5].name
    parameters = [
        backbone.module.get_parameter(n)
        for n in backbone.layer_groups[5].tensors
        if "running" not in n and "num_batches" not in n
    ]
    numbers = torch.cat([parameter.detach().flatten() for parameter in parameters])
    sample = seen[0].weights[name]
    assert sample.counts.sum() < 9000 < len(numbers)
    mean = float((sample.counts * (sample.edges[1:] + sample.edges[:-1]) / 2).sum() / sample.counts.sum())
    assert mean == pytest.approx(float(numbers.mean()), abs=0.05 * float(numbers.std()))


def test_details_are_left_out_while_they_would_take_more_than_their_share(train: Any) -> None:
    seen: list[Observation] = []
    train(watching(seen.append), folder="trial")
    assert [(observation.in_detail, observation.weights, observation.gradients) for observation in seen] == [
        (False, {}, {})
    ] * 2
    assert all(len(observation.norms["head"]) for observation in seen), "the norms are always there"


def test_the_allowance_permits_as_much_as_its_share_of_the_time_that_has_passed() -> None:
    now = [0.0]
    allowance = Allowance(0.05, clock=lambda: now[0])
    assert allowance.permits()
    assert not allowance.permits(0.5)
    now[0] = 10.0
    assert allowance.permits(0.5)
    with allowance.spending(elsewhere=0.5, times=2.0):
        now[0] += 1.0
    assert allowance.spent == 2.5
    now[0] = 49.0
    assert not allowance.permits()
    now[0] = 50.0
    assert allowance.permits()
    assert not allowance.permits(0.1)


def test_gradients_are_looked_at_in_as_many_steps_as_there_is_time_for(train: Any) -> None:
    seen: list[Observation] = []
    now = [0.0]

    def tick() -> float:
        now[0] += 1.0
        return now[0]

    def train_for_thirty_seconds() -> bool:
        now[0] += 30.0
        return False

    observer = Observer(seen.append, flow=Allowance(0.2, clock=tick), details=Allowance(-1.0))
    train(observer, folder="some", on_batch=train_for_thirty_seconds)
    watched = [observation.steps.tolist() for observation in seen]
    assert watched[0][0] == 1
    assert watched[1][0] == 9, "the first step of every epoch is observed"
    assert all(1 < len(steps) < 8 for steps in watched)
    assert [len(observation.norms["head"]) for observation in seen] == [len(steps) for steps in watched]
    assert all(np.isfinite(observation.norms["head"]).all() for observation in seen)
    assert all((observation.norms["head"] > 0).all() for observation in seen)


def test_fifty_steps_of_an_epoch_are_handed_over_and_the_mean_is_of_all(train: Any) -> None:
    seen: list[Observation] = []
    train(watching(seen.append), folder="trial", config=CONFIG.model_copy(update={"batch_size": 1}), depth=3)
    steps = seen[1].steps.tolist()
    assert (len(steps), steps[0], steps[-1]) == (50, 61, 120)
    assert seen[1].mean_norms["head"] > 0


def test_what_recording_raises_ends_no_training_and_is_logged(train: Any, caplog: pytest.LogCaptureFixture) -> None:
    def broken(observation: Observation) -> None:
        raise OSError("the disk is gone")

    with caplog.at_level(logging.WARNING):
        _, result = train(watching(broken), folder="trial")
    assert len(result.history) == 2
    assert "the observation of epoch 1 could not be recorded" in caplog.text


@pytest.mark.parametrize(("scale", "word"), [(1e-6, "vanishes"), (1e6, "explodes")])
def test_groups_after_a_layer_that_scales_gradients_away_are_named(train: Any, scale: float, word: str) -> None:
    observer = watching(lambda observation: None)
    train(observer, folder="trial", learning_rate=1e-9, scale=scale)
    findings = observer.verdict.findings
    assert [finding.split(":")[0] for finding in findings] == [
        f"The gradient {word} in {name}" for name in ("stem", "body")
    ]


def test_nothing_is_said_of_a_network_in_which_gradients_flow(train: Any) -> None:
    observer = watching(lambda observation: None)
    train(observer, folder="trial")
    assert observer.verdict.findings == ()


def test_a_verdict_needs_a_quarter_of_the_steps_and_leaves_out_those_that_broke() -> None:
    norms = {"a": np.full(100, 1.0), "b": np.full(100, 1.0), "head": np.full(100, 0.5)}
    norms["a"][:24] = 1e-9
    verdict = GradientVerdict()
    verdict.add(norms)
    assert verdict.findings == ()
    norms["a"][24] = 1e-9
    again = GradientVerdict()
    again.add(norms)
    assert again.findings[0].startswith(
        "The gradient vanishes in a: in 25% of the steps it is less than a thousandth of the head's"
    )
    broken = GradientVerdict()
    broken.add({name: np.full(10, np.nan) for name in norms})
    assert broken.findings == ()
    exploding = {"a": np.full(10, np.inf), "b": np.full(10, 1.0), "head": np.full(10, 1.0)}
    broken.add(exploding)
    assert broken.findings[0].startswith("The gradient explodes in a: in 100% of the steps")
    scaled = GradientVerdict()
    scaled.add(exploding, skip_not_finite=True)
    assert scaled.findings == (), "a loss scale that was too large is no finding"
