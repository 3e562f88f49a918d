from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from tiny_torchvision import tiny
from torch import nn

from thawline import backbones
from thawline.backbones import Backbone, section
from thawline.config import TrainConfig
from thawline.exceptions import CheckpointError
from thawline.training import (
    CheckpointFolder,
    Features,
    FitResult,
    Hyperparameters,
    Inputs,
    Probe,
    Runtime,
    features_at,
    fit_probes,
    head_features,
    keep_probe,
    load_checkpoint,
    load_model,
    predict,
    probe,
    probes_of_head,
    softened,
)

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
RUNTIME = Runtime(CPU, None, channels_last=False)
CLASSES = 3


def made(rows: int, seed: int, *, noise: float = 1.5) -> Features:
    """Three classes whose features lie around three centres, at very different scales, far from 0."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(CLASSES, 8))
    labels = random.integers(0, CLASSES, rows)
    values = centres[labels] + noise * random.normal(size=(rows, 8))
    return Features((values * 10.0 ** np.arange(-3, 5) + 7).astype(np.float32), labels)


class Rows:
    """Inputs that are given."""

    lengths: np.ndarray | None = None

    def __init__(self, values: torch.Tensor, labels: np.ndarray, boundary: int = 0) -> None:
        self.values, self.labels, self.boundary = values, labels, boundary

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, rows: np.ndarray, epoch: int) -> torch.Tensor:
        return self.values[torch.from_numpy(rows)]

    def prepare(self, read: torch.Tensor, rows: np.ndarray, epoch: int) -> torch.Tensor:
        return read


def scores(features: Features, found: probe.Probe) -> np.ndarray:
    logits = torch.from_numpy(features.values) @ found.weight.T + found.bias
    return logits.softmax(1).numpy()


@pytest.mark.parametrize("penalty", [1.0, 0.03])
def test_it_is_the_logistic_regression_of_scikit_learn(penalty: float) -> None:
    train, validation = made(200, 1), made(300, 2)
    found = fit_probes(train, validation, classes=CLASSES, metric="accuracy", device=CPU, penalties=(penalty,)).best

    scaler = StandardScaler().fit(train.values)
    peer = LogisticRegression(C=1 / (penalty * len(train.labels)), max_iter=5000, tol=1e-8)
    peer.fit(scaler.transform(train.values), train.labels)
    expected = peer.predict_proba(scaler.transform(validation.values))
    np.testing.assert_allclose(scores(validation, found), expected, atol=2e-3)
    assert expected.max(1).mean() > 0.4  # a control: there is something to agree on
    assert found.validation["accuracy"] == pytest.approx(float((expected.argmax(1) == validation.labels).mean()))


def test_the_penalty_is_the_one_that_is_best_on_validation() -> None:
    train, validation = made(40, 1, noise=3.0), made(2000, 2, noise=3.0)
    values = {
        penalty: fit_probes(
            train, validation, classes=CLASSES, metric="loss", device=CPU, penalties=(penalty,)
        ).best.validation["loss"]
        for penalty in (1.0, 0.1, 0.0001)
    }
    found = fit_probes(train, validation, classes=CLASSES, metric="loss", device=CPU, penalties=tuple(values)).best
    assert found.penalty == min(values, key=values.__getitem__)
    assert values[found.penalty] < values[0.0001]


def test_the_simplest_has_the_strongest_penalty_that_is_as_good_as_the_best_but_for_chance() -> None:
    train, validation = made(60, 1), made(200, 2)
    probes = fit_probes(train, validation, classes=CLASSES, metric="accuracy", device=CPU)
    best, simplest = probes.best.validation["accuracy"], probes.simplest.validation["accuracy"]
    error = (best * (1 - best) / 200) ** 0.5
    assert simplest >= best - error
    assert probes.simplest.penalty >= probes.best.penalty
    stronger = [each for each in probes.fitted if each.penalty > probes.simplest.penalty]
    assert all(each.validation["accuracy"] < best - error for each in stronger)
    assert probes.simplest.training["loss"] > probes.fitted[-1].training["loss"]  # there is something left to learn


def test_what_training_begins_with_gives_the_same_answers_with_smaller_scores_where_they_are_disturbed() -> None:
    train, validation = made(200, 1, noise=0.5), made(100, 2, noise=0.5)
    best = fit_probes(train, validation, classes=CLASSES, metric="accuracy", device=CPU, penalties=(0.001,)).best
    assert torch.equal(softened(best, train).weight, best.weight)  # a control: nothing disturbs them

    random = np.random.default_rng(0)
    dropped = Features(train.values * (random.random(train.values.shape) < 0.5) * 2, train.labels)
    soft = softened(best, dropped)
    assert soft.weight.abs().max() < 0.8 * best.weight.abs().max()
    assert np.array_equal(scores(validation, soft).argmax(1), scores(validation, best).argmax(1))


def test_with_dropout_in_front_of_the_head_training_begins_with_no_more_than_about_the_loss_of_guessing(
    tmp_path: Path,
) -> None:
    backbone = backbones.create("mobilenet_v3_small", num_classes=10, weights="starter", image_size=32)
    generator = torch.Generator().manual_seed(0)
    labels = np.arange(100) % 10
    patterns = torch.randn(10, 3, 32, 32, generator=generator)
    inputs = Rows(patterns[torch.from_numpy(labels)] + torch.randn(100, 3, 32, 32, generator=generator), labels)
    best, start = probes_of_head(
        backbone, inputs, inputs, config=TrainConfig(), metric="accuracy", runtime=RUNTIME, folder=tmp_path, seed=0
    )
    torch.manual_seed(1)
    in_training = head_features(backbone, inputs, RUNTIME, 50, tmp_path, training=True)
    losses = []
    for each in (best, start):
        logits = torch.from_numpy(in_training.values) @ each.weight.T + each.bias
        losses.append(float(nn.functional.cross_entropy(logits, torch.from_numpy(labels))))
    assert losses[1] < 1.1 * np.log(10)
    assert losses[0] > 2 * np.log(10), "a control: dropout disturbs the best probe's answers"


def test_features_that_do_not_fit_in_memory_give_the_same_probe(tmp_path: Path) -> None:
    train, validation = made(200, 1), made(50, 2)
    whole = fit_probes(train, validation, classes=CLASSES, metric="accuracy", device=CPU).best
    rows = Rows(torch.from_numpy(train.values), train.labels, boundary=1)
    on_disk = features_at(rows, RUNTIME, 16, tmp_path, in_memory=0)
    assert isinstance(on_disk.values, np.memmap)
    parts = fit_probes(
        on_disk, validation, classes=CLASSES, metric="accuracy", device=CPU, in_memory=0, chunk=4 * 8 * 30
    ).best
    np.testing.assert_allclose(scores(validation, parts), scores(validation, whole), atol=1e-2)
    assert list(tmp_path.iterdir()) == []  # the file has no name


def test_a_feature_that_is_always_the_same_and_a_class_that_is_missing_do_no_harm() -> None:
    train, validation = made(100, 1), made(50, 2)
    constant = np.full((100, 1), 1e6, np.float32)
    there = train.labels != 2
    few = Features(np.hstack([train.values, constant])[there], train.labels[there])
    more = Features(np.hstack([validation.values, constant[:50]]), validation.labels)
    found = fit_probes(few, more, classes=CLASSES, metric="accuracy", device=CPU).best
    assert torch.isfinite(found.weight).all()
    assert scores(more, found)[:, 2].max() < 0.1


def test_balanced_class_weights_find_more_of_the_rare_class() -> None:
    train, validation = made(600, 1, noise=3.0), made(300, 2, noise=3.0)
    kept = (train.labels != 0) | (np.arange(600) % 10 == 0)
    rare = Features(train.values[kept], train.labels[kept])
    weights = torch.tensor([10.0, 1.0, 1.0])
    recalls = []
    for given in (None, weights):
        found = fit_probes(
            rare, validation, classes=CLASSES, metric="accuracy", device=CPU, class_weights=given, penalties=(0.01,)
        ).best
        recalls.append(float((scores(validation, found).argmax(1) == 0)[validation.labels == 0].mean()))
    assert recalls[1] > recalls[0] + 0.1


@pytest.mark.parametrize("name", ["resnet18", "vit_b_32", "squeezenet1_1"])
def test_the_probe_of_a_head_is_what_the_network_then_answers(name: str, tmp_path: Path) -> None:
    with tiny(name):
        backbone = backbones.create(name, num_classes=CLASSES, weights="none", image_size=64, seed=1)
    images, labels = torch.randn(30, 3, 64, 64, generator=torch.Generator().manual_seed(0)), np.arange(30) % CLASSES
    images += torch.from_numpy(labels).view(-1, 1, 1, 1) * 2.0  # so that there is something to learn
    inputs = Rows(images, labels)
    config = TrainConfig(batch_size=8)
    found, _ = probes_of_head(
        backbone, inputs, inputs, config=config, metric="accuracy", runtime=RUNTIME, folder=tmp_path, seed=0
    )
    assert found.validation["accuracy"] > 0.6

    features = head_features(backbone, inputs, RUNTIME, 8, tmp_path)
    expected = torch.from_numpy(scores(features, found))
    result = kept(backbone, found, inputs, config, CheckpointFolder(tmp_path / "trial", keep=1, maximise=True))
    answered = predict(backbone, inputs, RUNTIME, 8).softmax(1)
    torch.testing.assert_close(answered, expected, atol=2e-2, rtol=0)
    assert result.value == pytest.approx(float((expected.argmax(1).numpy() == labels).mean()), abs=0.04)


def test_it_is_kept_as_a_checkpoint_that_restores_the_network(tmp_path: Path) -> None:
    name = "resnet18"
    backbone = backbones.create(name, num_classes=CLASSES, weights="none", image_size=32, seed=1)
    inputs = Rows(torch.randn(12, 3, 32, 32), np.arange(12) % CLASSES)
    config = TrainConfig(batch_size=4)
    found, _ = probes_of_head(
        backbone, inputs, inputs, config=config, metric="accuracy", runtime=RUNTIME, folder=tmp_path, seed=0
    )
    folder = CheckpointFolder(tmp_path / "trial", keep=1, maximise=True)
    kept(backbone, found, inputs, config, folder)
    best = folder.best()
    assert best is not None
    fresh = backbones.create(name, num_classes=CLASSES, weights="none", image_size=32, seed=1)
    assert not torch.equal(predict(fresh, inputs, RUNTIME, 4), predict(backbone, inputs, RUNTIME, 4))
    load_model(load_checkpoint(best), fresh)
    assert torch.equal(predict(fresh, inputs, RUNTIME, 4), predict(backbone, inputs, RUNTIME, 4))
    assert {name.split(".")[0] for name in load_checkpoint(best).model} == {"fc"}


def test_features_are_the_mean_over_places_and_of_texts_over_tokens(tmp_path: Path) -> None:
    maps = torch.randn(5, 4, 3, 3)
    labels = np.zeros(5, dtype=np.int64)
    found = features_at(Rows(maps, labels, 1), RUNTIME, 2, tmp_path).values
    np.testing.assert_allclose(found, maps.mean((2, 3)).numpy(), atol=1e-6)
    channels_last = maps.permute(0, 2, 3, 1)
    found = features_at(Rows(channels_last, labels, 1), RUNTIME, 2, tmp_path).values
    np.testing.assert_allclose(found, maps.mean((2, 3)).numpy(), atol=1e-6)

    tokens = torch.randn(2, 6, 4)
    tokens[:, :, -1] = 1.0
    tokens[1, 2:] = 0.0  # the second text has two tokens
    texts = Rows(tokens, labels[:2], 1)
    texts.lengths = np.array([6, 2], dtype=np.int32)
    found = features_at(texts, RUNTIME, 2, tmp_path).values
    np.testing.assert_allclose(found[1], tokens[1, :2, :3].mean(0).numpy(), atol=1e-6)
    np.testing.assert_allclose(found[0], tokens[0, :, :3].mean(0).numpy(), atol=1e-6)


def test_stored_activations_give_the_features_that_images_give(tmp_path: Path) -> None:
    backbone = backbones.create("resnet18", num_classes=CLASSES, weights="none", image_size=32, seed=1)
    backbone.module.eval()
    images, labels = torch.randn(6, 3, 32, 32), np.arange(6) % CLASSES
    with torch.no_grad():
        stored = section(backbone, 0, 3)(images)
    from_images = head_features(backbone, Rows(images, labels), RUNTIME, 3, tmp_path)
    from_stored = head_features(backbone, Rows(stored, labels, 3), RUNTIME, 3, tmp_path)
    np.testing.assert_array_equal(from_images.values, from_stored.values)


def test_a_head_without_a_bias_gets_a_probe_without_one(tmp_path: Path) -> None:
    backbone = backbones.create("resnet18", num_classes=CLASSES, weights="none", image_size=32, seed=1)
    head = backbone.module.get_submodule("fc")
    assert isinstance(head, nn.Linear)
    head.register_parameter("bias", None)
    inputs = Rows(torch.randn(12, 3, 32, 32), np.arange(12) % CLASSES)
    found, _ = probes_of_head(
        backbone, inputs, inputs, config=TrainConfig(), metric="accuracy", runtime=RUNTIME, folder=tmp_path, seed=0
    )
    assert not found.bias.any()
    assert found.weight.any()


def test_kept_again_after_a_kill_it_is_the_same_epoch(tmp_path: Path) -> None:
    """Else the epoch would have two times, one in the checkpoint and another in MLflow."""
    inputs, config = Rows(torch.randn(12, 3, 32, 32), np.arange(12) % CLASSES), TrainConfig(batch_size=4)

    def fresh() -> Backbone:
        return backbones.create("resnet18", num_classes=CLASSES, weights="none", image_size=32, seed=1)

    def keep(config: TrainConfig = config) -> FitResult:
        return kept(fresh(), found, inputs, config, CheckpointFolder(tmp_path / "trial", keep=1, maximise=True))

    found, _ = probes_of_head(
        fresh(), inputs, inputs, config=config, metric="accuracy", runtime=RUNTIME, folder=tmp_path, seed=0
    )
    first = keep()
    (file,) = (tmp_path / "trial").iterdir()
    written = file.stat().st_mtime_ns
    assert keep() == first
    assert file.stat().st_mtime_ns == written
    with pytest.raises(CheckpointError, match="another configuration"):
        keep(TrainConfig(batch_size=6))


def kept(backbone: Backbone, found: Probe, inputs: Inputs, config: TrainConfig, folder: CheckpointFolder) -> FitResult:
    """A probe as a trial keeps it."""
    return keep_probe(
        backbone,
        found,
        inputs,
        hyperparameters=hyperparameters(backbone.name, backbone),
        config=config,
        metric="accuracy",
        runtime=RUNTIME,
        checkpoints=folder,
        seed=0,
        seconds=1.0,
    )


def hyperparameters(name: str, backbone: Backbone) -> Hyperparameters:
    return Hyperparameters(name, len(backbone.layer_groups), 0.0, 0.0, 1.0, "adamw", policy="probe")
