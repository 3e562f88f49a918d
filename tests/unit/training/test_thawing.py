"""Every policy thaws when it says, trains what is thawed and nothing else, and resumes where it was killed."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from thawline.backbones import Backbone, section
from thawline.config import TrainConfig
from thawline.exceptions import TrainingError
from thawline.training import (
    CheckpointFolder,
    Decision,
    EpochResult,
    FitResult,
    Hyperparameters,
    ImageInputs,
    Inputs,
    Interrupted,
    Observer,
    fit,
    load_checkpoint,
    load_model,
    loop,
    predict,
    runtime_for,
    set_up_process,
)
from thawline.training.averaging import WeightAverage
from thawline.training.metrics import classification_metrics
from thawline.training.observation import HEAD
from thawline.training.optim import build_optimizer
from thawline.training.thawing import Thawing

DEEPEST = 3
CONFIG = TrainConfig(epochs=6, batch_size=8, device="cpu", label_smoothing=0.0)
POLICIES = {
    "static": {},
    "gradual": {},
    "on plateau": {"thaw_patience": 1, "thaw_fraction": 0.8},
    "at given epochs": {"thaw_epochs": (2, 4)},
    "lp_ft": {"thaw_fraction": 0.34},
}
"""By name, what the configuration says beside the policy."""


def noted_optimizers(monkeypatch: pytest.MonkeyPatch) -> list[Optimizer]:
    """Fills with the optimizers that trainings make."""
    made: list[Optimizer] = []

    def build(*given: Any, **options: Any) -> Optimizer:
        made.append(build_optimizer(*given, **options))
        return made[-1]

    monkeypatch.setattr(loop, "build_optimizer", build)
    return made


def epoch(number: int, value: float = 0.5) -> EpochResult:
    return EpochResult(number, {"val/accuracy": value, "val/loss": value}, 0)


def thawing(policy: Any = "gradual", *, depth: int = 0, epochs: int = 8, metric: str = "accuracy", **more: Any) -> Any:
    config = TrainConfig(epochs=epochs, thaw_fraction=more.pop("fraction", 0.5))
    until = config.epochs_until_thawed
    return Thawing(policy=policy, freeze_depth=depth, deepest=DEEPEST, until=until, metric=metric, **more)


@pytest.mark.parametrize(
    ("at", "depth", "expected"),
    [
        ((2, 4, 6), 0, [3, 2, 2, 1, 1, 0, 0]),
        ((3, 5), 0, [3, 3, 2, 2, 0, 0, 0]),
        ((4,), 1, [3, 3, 3, 1, 1, 1, 1]),
        ((2, 3, 7), 2, [3, 2, 2, 2, 2, 2, 2]),
        ((2, 3, 4), 3, [3, 3, 3, 3, 3, 3, 3]),
    ],
)
def test_at_each_epoch_that_is_given_a_group_is_thawed_and_at_the_last_all_that_are_left(
    at: tuple[int, ...], depth: int, expected: list[int]
) -> None:
    history = [epoch(number) for number in range(1, 7)]
    assert thawing(depth=depth, epochs=7, at=at).depths(history) == expected
    assert thawing("lp_ft", depth=depth, epochs=7, at=at).depths(history) == [3] * 4 + [depth] * 3, "no matter of its"


@pytest.mark.parametrize(
    ("policy", "depth", "epochs", "fraction", "expected"),
    [
        ("static", 1, 4, 0.5, [1, 1, 1, 1]),
        ("lp_ft", 1, 4, 0.5, [3, 3, 1, 1]),
        ("lp_ft", 1, 4, 0.1, [3, 1, 1, 1]),
        ("lp_ft", 0, 4, 1.0, [3, 3, 3, 0]),
        ("gradual", 0, 8, 0.5, [3, 3, 2, 1, 0, 0, 0, 0]),
        ("gradual", 0, 3, 0.5, [3, 2, 0]),
        ("gradual", 2, 6, 0.5, [3, 3, 3, 2, 2, 2]),
        ("gradual", 3, 4, 0.5, [3, 3, 3, 3]),
        ("gradual", 0, 1, 0.5, [0]),
        ("lp_ft", 0, 1, 0.5, [0]),
    ],
)
def test_each_policy_comes_to_its_freeze_depth_by_the_epoch_that_it_names(
    policy: str, depth: int, epochs: int, fraction: float, expected: list[int]
) -> None:
    plan = thawing(policy, depth=depth, epochs=epochs, fraction=fraction)
    assert plan.depths([epoch(number) for number in range(1, epochs)]) == expected


def test_on_a_plateau_one_group_is_thawed_at_a_time_and_progress_postpones_it() -> None:
    values = [0.5, 0.6, 0.6, 0.6, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7]
    history = [epoch(number, value) for number, value in enumerate(values, 1)]
    expected = [3, 3, 3, 3, 2, 2, 2, 1, 1, 0, 0]
    assert thawing(epochs=40, patience=2).depths(history) == expected
    falling = [epoch(number, 1 - value) for number, value in enumerate(values, 1)]
    assert thawing(epochs=40, patience=2, metric="loss").depths(falling) == expected
    assert thawing(epochs=40, depth=2, patience=2).depths(history) == [3, 3, 3, 3, 2, 2, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("epochs", [2, 3, 8])
def test_without_any_plateau_all_is_thawed_in_the_end_so_that_every_trial_comes_to_its_depth(
    depth: int, epochs: int
) -> None:
    rising = [epoch(number, number / 100) for number in range(1, epochs)]
    depths = thawing(depth=depth, epochs=epochs, patience=2).depths(rising)
    assert depths == thawing("lp_ft", depth=depth, epochs=epochs).depths(rising)
    assert depths[-1] == depth


@pytest.mark.parametrize("epochs", [8, 11, 30])
def test_the_longest_patience_that_is_allowed_thaws_a_group_before_the_end_and_a_longer_one_is_refused(
    epochs: int,
) -> None:
    longest = TrainConfig(epochs=epochs).epochs_until_thawed - 2
    flat = [epoch(number) for number in range(1, epochs)]
    TrainConfig(epochs=epochs, policy="gradual", thaw_patience=longest)
    assert 2 in thawing(epochs=epochs, patience=longest).depths(flat)
    with pytest.raises(
        ValueError, match=f"thaw_patience={longest + 1} would never thaw anything: with epochs={epochs}"
    ):
        TrainConfig(epochs=epochs, policy="gradual", thaw_patience=longest + 1)
    assert 2 not in thawing(epochs=epochs, patience=longest + 1).depths(flat)


def test_training_is_not_stopped_early_before_all_is_thawed_and_has_had_its_time() -> None:
    plan = thawing("lp_ft", depth=1, epochs=20)
    history = [epoch(number, 0.5) for number in range(1, 20)]
    assert [n for n in range(20) if plan.stops_early(history[:n], 2)] == list(range(12, 20)), "thawed after 10"
    static = thawing("static", depth=1, epochs=20)
    assert [n for n in range(20) if static.stops_early(history[:n], 2)] == list(range(3, 20))
    assert not plan.stops_early(history, None)


class Trained:
    """A training that a test can look into after every epoch."""

    def __init__(self, make_backbone: Callable[[], Backbone], images: Any, folder: Path) -> None:
        self.make_backbone, self.images, self.folder = make_backbone, images, folder

    def __call__(
        self,
        policy: str = "static",
        *,
        depth: int = 0,
        folder: str = "trial",
        look: Callable[[Backbone, EpochResult], None] = lambda backbone, result: None,
        on_batch: Callable[[], bool] = lambda: False,
        inputs: Callable[[Backbone], Callable[[int], tuple[Inputs, Inputs]]] | None = None,
        optimizer: Any = "adamw",
        layer_decay: float = 1.0,
        batch_norm: Any = "train_all",
        learning_rate: float = 1e-2,
        accumulation: int = 1,
        stored: bool = False,
        observer: Observer | None = None,
        **more: Any,
    ) -> tuple[Backbone, FitResult]:
        set_up_process(threads=1, seed=0)
        config = CONFIG.model_copy(update={**POLICIES[policy], **more})
        backbone = self.make_backbone()
        kind: Any = policy if policy in {"static", "lp_ft"} else "gradual"
        hyperparameters = Hyperparameters(
            "tiny", depth, learning_rate, 0.01, 1.0, optimizer, kind, layer_decay, batch_norm
        )

        def on_epoch(result: EpochResult) -> Decision:
            look(backbone, result)
            return Decision.CONTINUE

        def usual(depth: int) -> tuple[Inputs, Inputs]:
            train, validation = self.images(60), self.images(30)
            if stored and depth:
                return Features(backbone, train, depth), Features(backbone, validation, depth)
            return train, validation

        result = fit(
            backbone,
            inputs(backbone) if inputs else usual,
            hyperparameters=hyperparameters,
            config=config,
            metric="accuracy",
            runtime=runtime_for(config),
            checkpoints=CheckpointFolder(self.folder / folder, keep=2, maximise=True),
            seed=0,
            accumulation=accumulation,
            on_epoch=on_epoch,
            on_batch=on_batch,
            observer=observer,
        )
        return backbone, result


@pytest.fixture
def train(make_backbone: Any, images: Any, tmp_path: Path) -> Trained:
    return Trained(make_backbone, images, tmp_path)


def state(backbone: Backbone) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in backbone.module.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_the_order_of_thawing_shows_in_the_weights_group_by_group(train: Trained, make_backbone: Any) -> None:
    pretrained = state(make_backbone())
    groups = {group.name: group.tensors for group in make_backbone().layer_groups}
    changed: dict[str, list[list[str]]] = {}

    def looking(policy: str) -> Callable[[Backbone, EpochResult], None]:
        def look(backbone: Backbone, result: EpochResult) -> None:
            now = backbone.module.state_dict()
            names = [
                group
                for group, tensors in groups.items()
                if not all(torch.equal(now[name], pretrained[name]) for name in tensors)
            ]
            changed.setdefault(policy, []).append(names)

        return look

    for policy in ("static", "gradual", "lp_ft"):
        _, result = train(policy, depth=1, folder=policy, look=looking(policy))
        depths = [int(each.metrics["train/freeze_depth"]) for each in result.history]
        assert changed[policy] == [list(groups)[depth:] for depth in depths]
    assert changed["static"][0] == ["body", "neck"]
    assert changed["gradual"] == [[], [], ["neck"], *[["body", "neck"]] * 3]
    assert changed["lp_ft"] == [[], [], *[["body", "neck"]] * 4]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_optimizer_holds_exactly_what_is_free_in_every_epoch(
    train: Trained, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = noted_optimizers(monkeypatch)
    counts = []

    def look(backbone: Backbone, result: EpochResult) -> None:
        held = [parameter for group in made[-1].param_groups for parameter in group["params"]]
        free = [parameter for parameter in backbone.module.parameters() if parameter.requires_grad]
        assert sorted(map(id, held)) == sorted(map(id, free))
        counts.append(len(held))

    train(policy, look=look, batch_norm="frozen_eval", epochs=8)
    all_but_batch_norms = 6
    assert counts[-1] == all_but_batch_norms
    assert (counts[0] == 2) == (policy != "static"), "weight and bias of the head"


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_thawing_leaves_the_optimizer_state_of_what_was_free_as_it_was(
    train: Trained, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = []
    original = loop.add_parameters

    def moments(of: Optimizer) -> dict[int, dict[str, Tensor]]:
        return {
            id(p): {key: value.clone() for key, value in values.items() if isinstance(value, Tensor)}
            for p, values in of.state.items()
        }

    def add(of: Optimizer, *rest: Any) -> None:
        before, rates = moments(of), [group["lr"] for group in of.param_groups]
        original(of, *rest)
        after = moments(of)
        assert before.keys() == after.keys()
        assert all(torch.equal(after[p][key], value) for p, values in before.items() for key, value in values.items())
        assert any(value.abs().sum() > 0 for values in before.values() for value in values.values())
        assert [group["lr"] for group in of.param_groups][: len(rates)] == rates
        added.append(of)

    monkeypatch.setattr(loop, "add_parameters", add)
    train("gradual", optimizer=optimizer)
    assert len(added) == 3


def test_a_group_that_is_thawed_late_joins_at_the_share_of_its_rate_that_is_in_force(
    train: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = noted_optimizers(monkeypatch)
    shares: list[set[float]] = []

    def look(backbone: Backbone, result: EpochResult) -> None:
        shares.append({round(group["lr"] / group["initial_lr"], 9) for group in made[-1].param_groups})

    _, late = train("gradual", look=look, layer_decay=0.5)
    _, never = train("static", folder="static")
    schedules = [[epoch.metrics["train/learning_rate"] for epoch in result.history] for result in (late, never)]
    assert schedules[0] == schedules[1], "thawing does not restart it"
    assert [len(each) for each in shares] == [1] * CONFIG.epochs
    rates = [group["initial_lr"] for group in made[0].param_groups if group["weight_decay"]]
    assert rates == [1e-2, 5e-3, 2.5e-3, 1.25e-3], "from the head to the input"


def test_layer_decay_slows_what_is_near_the_input_and_not_the_head(train: Trained, make_backbone: Any) -> None:
    before = state(make_backbone())

    def moved(layer_decay: float) -> dict[str, float]:
        backbone, _ = train(layer_decay=layer_decay, folder=f"decay-{layer_decay}", epochs=1, optimizer="sgd")
        after = state(backbone)
        return {name: float((after[name] - before[name]).norm()) for name in ("stem.0.weight", "head.weight")}

    even, falling = moved(1.0), moved(0.1)
    assert falling["stem.0.weight"] < 0.02 * even["stem.0.weight"]
    assert falling["head.weight"] > 0.5 * even["head.weight"]


@pytest.mark.parametrize(
    ("batch_norm", "moving"),
    [("frozen_eval", set()), ("train_affine", {"weight", "bias"}), ("train_all", None)],
)
def test_batch_norms_of_thawed_groups_do_what_they_are_told_and_convolutions_train(
    train: Trained, make_backbone: Any, batch_norm: str, moving: set[str] | None
) -> None:
    before = make_backbone().module.state_dict()
    backbone, _ = train(depth=1, batch_norm=batch_norm, epochs=1)
    after = backbone.module.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    thawed = {name.removeprefix("body.1.") for name in before if name.startswith("body.1.")}
    assert {name.removeprefix("body.1.") for name in changed if name.startswith("body.1.")} == (
        thawed if moving is None else moving
    )
    assert "body.0.weight" in changed
    assert not any(name.startswith("stem.") for name in changed)


class Killed(Exception):
    pass


def killing(after: int) -> Callable[[Backbone, EpochResult], None]:
    def look(backbone: Backbone, result: EpochResult) -> None:
        if result.epoch == after:
            raise Killed

    return look


RESUMED = [
    ("gradual", {"layer_decay": 0.5}),
    ("gradual", {"optimizer": "sgd", "batch_norm": "frozen_eval", "ema": 0.9}),
    ("gradual", {"mixup": 0.4, "stored": True, "accumulation": 2}),
    ("on plateau", {"epochs": 8}),
    ("at given epochs", {"class_weights": "balanced"}),
    ("lp_ft", {"ema": 0.9}),
    ("lp_ft", {"cutmix": 1.0, "mixup": 0.2, "optimizer": "sgd"}),
    ("static", {"ema": 0.9, "depth": 1}),
]


@pytest.mark.parametrize(("policy", "options"), RESUMED)
def test_killed_after_any_epoch_it_ends_with_the_weights_of_one_that_was_not(
    train: Trained, policy: str, options: dict[str, Any]
) -> None:
    whole, expected = train(policy, folder="whole", **options)
    depths = [each.metrics["train/freeze_depth"] for each in expected.history]
    assert (depths[0] == DEEPEST > depths[-1]) == (policy != "static")
    for after in range(1, len(depths)):
        with pytest.raises(Killed):
            train(policy, folder=f"killed-{after}", look=killing(after), **options)
        resumed, result = train(policy, folder=f"killed-{after}", **options)
        assert same(state(whole), state(resumed)), f"killed after epoch {after}"
        for name in ("train/loss", "train/learning_rate", "train/freeze_depth", "val/loss"):
            assert [e.metrics[name] for e in result.history] == [e.metrics[name] for e in expected.history]


LEFT_AT = (1, 3, 8, 10)
"""Of the eight batches of training and four of validation of an epoch: the first, one within, the last, and one of
validation. They take turns, each case beginning with another."""


@pytest.mark.parametrize(("turn", "policy", "options"), [(turn, *case) for turn, case in enumerate(RESUMED)])
def test_left_within_any_epoch_it_ends_with_the_weights_of_an_uninterrupted_one(
    train: Trained, turn: int, policy: str, options: dict[str, Any]
) -> None:
    whole, expected = train(policy, folder="whole", **options)
    *epochs, last = range(len(expected.history))
    points = [12 * number + LEFT_AT[(number + turn) % len(LEFT_AT)] for number in epochs]
    for leave_at in (*points, 12 * last + 3):
        seen: list[int] = []

        def on_batch(seen: list[int] = seen, leave_at: int = leave_at) -> bool:
            seen.append(1)
            return len(seen) >= leave_at

        with pytest.raises(Interrupted):
            train(policy, folder=f"left-{leave_at}", on_batch=on_batch, **options)
        resumed, result = train(policy, folder=f"left-{leave_at}", **options)
        assert same(state(whole), state(resumed)), f"left after {leave_at} batches"
        assert result.value == expected.value


def test_another_policy_ends_with_other_weights(train: Trained) -> None:
    """The positive control of bit-equality."""
    ends = [state(train(policy, folder=policy)[0]) for policy in ("static", "gradual", "lp_ft")]
    assert not same(ends[0], ends[1])
    assert not same(ends[0], ends[2])
    assert not same(ends[1], ends[2])


@pytest.mark.parametrize("policy", ["gradual", "lp_ft"])
def test_where_only_the_head_is_trained_every_policy_is_the_same(train: Trained, policy: str) -> None:
    static, _ = train("static", depth=DEEPEST, folder="static")
    other, _ = train(policy, depth=DEEPEST, folder=policy)
    assert same(state(static), state(other))


class Features:
    """Activations after this many layer groups, kept in memory."""

    lengths = None

    def __init__(self, backbone: Backbone, images: ImageInputs, boundary: int) -> None:
        training = backbone.module.training
        backbone.module.eval()
        rows = np.arange(len(images))
        with torch.no_grad():
            read = images.prepare(images.read(rows, 0), rows, 0)
            self.features: Tensor = section(backbone, 0, boundary)(read)
        backbone.module.train(training)
        self.labels, self.boundary = images.labels, boundary

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, rows: np.ndarray, epoch: int) -> Tensor:
        return self.features[torch.from_numpy(rows)]

    def prepare(self, read: Tensor, rows: np.ndarray, epoch: int) -> Tensor:
        return read


@pytest.mark.parametrize("policy", POLICIES)
def test_stored_activations_serve_as_long_as_a_prefix_is_frozen_and_none_of_it_is_computed(
    train: Trained, images: Any, policy: str
) -> None:
    """The stem's forward passes are counted: none while it is frozen and stored, some from images and once it is free.

    From whatever is stored the results are those from images, bit by bit.
    """
    passes: list[int] = []
    opened: list[int] = []
    alive: list[weakref.ref[Any]] = []

    def counting(result_passes: list[int]) -> Callable[[Backbone, EpochResult], None]:
        def look(backbone: Backbone, result: EpochResult) -> None:
            result_passes.append(len(passes))
            passes.clear()

        return look

    def stored(backbone: Backbone) -> Callable[[int], tuple[Inputs, Inputs]]:
        def of(depth: int) -> tuple[Inputs, Inputs]:
            assert not any(inputs() is not None for inputs in alive), "the former are dropped before others are opened"
            made = tuple(Features(backbone, images(count), depth) if depth else images(count) for count in (60, 30))
            alive.extend(map(weakref.ref, made))
            opened.append(depth)
            passes.clear()
            count_passes(backbone)
            return made  # type: ignore[return-value]

        return of

    def count_passes(backbone: Backbone) -> None:
        convolution = backbone.module.get_submodule("stem.0")
        if not convolution._forward_hooks:
            convolution.register_forward_hook(lambda module, given, result: passes.append(1))

    def plain(backbone: Backbone) -> Callable[[int], tuple[Inputs, Inputs]]:
        count_passes(backbone)
        return lambda depth: (images(60), images(30))

    from_store: list[int] = []
    backbone, result = train(policy, folder="stored", inputs=stored, look=counting(from_store), epochs=8)
    from_images: list[int] = []
    other, same_result = train(policy, folder="images", inputs=plain, look=counting(from_images), epochs=8)

    depths = [int(each.metrics["train/freeze_depth"]) for each in result.history]
    assert opened == list(dict.fromkeys(depths))
    assert all(count > 0 for count in from_images)
    assert [count == 0 for count in from_store] == [depth > 0 for depth in depths]
    assert same(state(backbone), state(other))
    assert result.value == same_result.value


def test_activations_from_after_what_an_epoch_trains_are_refused(train: Trained, images: Any) -> None:
    def stored(backbone: Backbone) -> Callable[[int], tuple[Inputs, Inputs]]:
        return lambda depth: (Features(backbone, images(60), 3), Features(backbone, images(30), 3))

    with pytest.raises(TrainingError, match=r"Activations after 3 layer groups cannot train a network .* frozen to 2"):
        train("gradual", inputs=stored)


def test_an_observer_sees_in_each_epoch_what_it_trains_and_changes_nothing(train: Trained) -> None:
    seen: list[list[str]] = []
    observer = Observer(lambda observation: seen.append(list(observation.norms)))
    watched, _ = train("gradual", folder="watched", observer=observer)
    alone, result = train("gradual", folder="alone")
    names = [*(group.name for group in alone.layer_groups), HEAD]
    assert seen == [names[int(epoch.metrics["train/freeze_depth"]) :] for epoch in result.history]
    assert same(state(watched), state(alone))


def test_the_best_checkpoint_can_be_loaded_over_the_weights_of_any_other_epoch(
    train: Trained, make_backbone: Any, tmp_path: Path
) -> None:
    backbone, _ = train("gradual")
    first = next(path for path in sorted((tmp_path / "trial").glob("epoch-*")))
    fresh = make_backbone()
    for each in (fresh, backbone):
        load_model(load_checkpoint(first), each)
    assert same(state(fresh), state(backbone))


# ------------------------------------------------------------------------------------------------- averaged weights


def test_an_average_follows_the_weights_by_the_rule_and_counts_what_cannot_be_averaged() -> None:
    module = nn.BatchNorm1d(1)
    average = WeightAverage(module, 0.5)
    average.follow(["weight", "num_batches_tracked"])
    expected = 1.0
    for step, value in enumerate([3.0, 5.0, 4.0], 1):
        with torch.no_grad():
            module.weight.fill_(value)
        module.num_batches_tracked.fill_(step)  # type: ignore[union-attr,operator]
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        with average.in_place() as trained:
            assert module.weight.tolist() == pytest.approx([expected])
            assert trained["weight"].tolist() == [value]
            assert int(module.num_batches_tracked) == step  # type: ignore[arg-type]
        assert module.weight.tolist() == [value], "training continues with its own"
    assert module.bias.tolist() == [0.0], "what is not followed is left alone"


def test_what_is_measured_and_kept_are_the_averaged_weights(
    train: Trained, make_backbone: Any, images: Any, tmp_path: Path
) -> None:
    backbone, result = train("gradual", ema=0.9, depth=1)
    best = CheckpointFolder(tmp_path / "trial", keep=2, maximise=True).last()
    assert best is not None
    assert best.trained.keys() == best.model.keys()
    assert same(best.trained, {name: state(backbone)[name] for name in best.trained})
    assert not same(best.trained, best.model)
    fresh, losses = make_backbone(), {}
    for name in ("model", "trained"):
        fresh.module.load_state_dict(fresh.module.state_dict() | getattr(best, name))
        logits = predict(fresh, images(30), runtime_for(CONFIG), 8)
        losses[name] = classification_metrics(logits, torch.from_numpy(images(30).labels))["loss"]
    assert losses["model"] == result.history[-1].metrics["val/loss"]
    assert losses["trained"] != losses["model"]


def test_thawing_begins_the_average_of_what_is_thawed_and_continues_with_the_rest(
    train: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[set[str]] = []
    follow = WeightAverage.follow
    monkeypatch.setattr(WeightAverage, "follow", lambda self, names: (begun.append(set(names)), follow(self, names)))
    backbone, _ = train("gradual", ema=0.9, depth=1)
    groups = [backbone.head, *reversed(backbone.layer_groups[1:])]
    assert begun == [set(group.tensors) for group in groups]


def test_averaging_changes_nothing_of_the_weights_that_are_trained(train: Trained) -> None:
    plain, _ = train("gradual", folder="plain")
    averaged, _ = train("gradual", folder="averaged", ema=0.9)
    assert same(state(plain), state(averaged))
