"""Drift: at most so many false alarms as stated, shifts are found, and what is compared is what was held out."""

import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from colours import CLASSES, PREPROCESSING, trial_run
from PIL import Image, ImageEnhance, ImageOps
from scipy.stats import binom
from servers import ask_prefect
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tiny_torchvision import tiny
from torchvision.models import get_model

from thawline import backbones
from thawline.cli import main
from thawline.config import SearchConfig
from thawline.data import scan
from thawline.drift import Answers, DriftReport, check_drift, compare
from thawline.drift.check import catch_features
from thawline.exceptions import ConfigError, DataError, RegistryError
from thawline.registry import MlflowRegistry, log_packaged_model, package
from thawline.tracking import MlflowStore

pytestmark = pytest.mark.xdist_group("drift")


def answers(seed: int, images: int, dimensions: int = 32, shift: float = 0.0) -> Answers:
    """Features as a network has them: correlated, heavy-tailed (Student's t, 3 degrees of freedom), cut off at zero."""
    spread = np.geomspace(3, 0.1 if dimensions < 100 else 1, dimensions)
    mixing = np.eye(dimensions) + np.random.default_rng(1).normal(size=(dimensions, dimensions)) / dimensions
    features = np.random.default_rng(seed).standard_t(3, size=(images, dimensions)) * spread @ mixing
    features = np.maximum(features + shift * features.std(0), 0)
    logits = features @ np.random.default_rng(2).normal(size=(dimensions, 5)) / (3 * np.sqrt(dimensions))
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return Answers(features.astype(np.float32), exponentials / exponentials.sum(1, keepdims=True))


def alarms(sizes: Sequence[tuple[int, int]], dimensions: int, alpha: float, shift: float = 0.0) -> int:
    """How many of so many pairs of samples are called drift; ``shift`` is in standard deviations of each feature."""
    found = 0
    for seed, (many, few) in enumerate(sizes):
        reference, new = answers(seed, many, dimensions), answers(10_000 + seed, few, dimensions, shift)
        found += any(test.drift for test in compare(reference, new, alpha=alpha).tests)
    return found


@pytest.mark.slow
@pytest.mark.xdist_group("drift-rate")
@pytest.mark.parametrize(
    ("many", "few", "dimensions"),
    [(120, 60, 32), (60, 120, 256)],  # fewer images than features: principal components of them alone follow chance
)
def test_images_of_the_same_kind_raise_at_most_the_stated_rate_of_false_alarms(
    many: int, few: int, dimensions: int
) -> None:
    pairs, alpha = 400, 0.05
    # No more than chance alone makes of the stated rate in 999 of 1000 such tests.
    assert alarms([(many, few)] * pairs, dimensions, alpha) <= binom.ppf(0.999, pairs, alpha)


def test_a_moderate_shift_is_found_nine_times_in_ten() -> None:
    assert alarms([(120, 60)] * 50, 32, 0.01, shift=0.4) >= 45


def test_another_class_mix_is_found_and_rare_classes_alone_are_no_alarm() -> None:
    def predicted(counts: Sequence[int]) -> Answers:
        named = np.repeat(np.arange(len(counts)), counts)
        probabilities = np.full((len(named), len(counts)), 0.01)
        probabilities[np.arange(len(named)), named] = 0.9
        return Answers(np.zeros((len(named), 4), np.float32), probabilities)

    shift = compare(predicted([100, 100, 100, 0]), predicted([60, 20, 10, 10]), alpha=0.01).tests[-1]
    assert shift.part == "predicted classes"
    assert shift.drift
    # Half of |1/3 - 0.6| + |1/3 - 0.2| + |1/3 - 0.1| + |0 - 0.1|.
    assert shift.difference == pytest.approx(0.3667, abs=1e-4)
    # One image of 720. By the usual approximation it would be p = 3e-9; that it is among the 20 has a chance of 20/720.
    rare = compare(predicted([700, 0]), predicted([19, 1]), alpha=0.01).tests[-1]
    assert rare.p_value == pytest.approx(20 / 720, abs=0.005)
    assert not rare.drift


def test_a_model_that_says_the_same_of_everything_shows_no_drift() -> None:
    same = Answers(np.ones((30, 8), np.float32), np.tile([0.7, 0.3], (30, 1)))
    compared = compare(same, same, alpha=0.01)
    assert [(test.p_value, test.difference) for test in compared.tests] == [(1.0, 0.0)] * 3
    assert np.isfinite(compared.distances).all()


def test_the_image_that_is_unlike_all_others_is_the_farthest() -> None:
    new = answers(2, 40)
    features = new.features.copy()
    features[17] = features.max(0) * 3
    distances = compare(answers(1, 200), replace(new, features=features), alpha=0.01).distances
    assert distances.argmax() == 17
    assert np.median(np.delete(distances, 17)) == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "squeezenet1_0", "densenet121", "vit_b_32", "swin_t"])
def test_the_features_are_what_the_head_is_given(name: str) -> None:
    with tiny(name):
        backbone = backbones.create(name, num_classes=3, weights="none", image_size=32 if name != "swin_t" else 64)
    network = backbone.module.eval()
    given: list[torch.Tensor] = []
    network.get_submodule(backbone.head.name).register_forward_pre_hook(lambda layer, inputs: given.append(inputs[0]))
    features = catch_features(network)
    with torch.inference_mode():
        network(torch.randn(2, 3, backbone.preprocessing.image_size, backbone.preprocessing.image_size))
    expected = given[0].mean((2, 3)) if given[0].ndim == 4 else given[0]
    assert features().shape[0] == 2
    np.testing.assert_array_equal(features(), expected.numpy())


# ------------------------------------------------------------------------------------------------ pictures and models


def draw(folder: Path, counts: Sequence[int], seed: int) -> Path:
    """``FOLDER/<colour>/<number>.png``: colours of varying brightness with noise."""
    random = np.random.default_rng(seed)
    for colour, (name, count) in enumerate(zip(CLASSES, counts, strict=True)):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = random.integers(0, 60, (40, 50, 3))
            pixels[..., colour] = np.clip(random.normal(210, 15) + random.normal(0, 10, (40, 50)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index:03d}.png")
    return folder


def changed(folder: Path, to: Path, change: Callable[[Image.Image], Image.Image]) -> Path:
    to.mkdir()
    for file in sorted(folder.rglob("*.png")):
        change(Image.open(file)).save(to / f"{file.parent.name}-{file.name}")
    return to


@pytest.fixture(scope="session")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that stand for what a model was made for."""
    return draw(tmp_path_factory.mktemp("known") / "colours", (60, 60, 60), seed=0)


@pytest.fixture(scope="session")
def same_kind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other pictures, from the same source."""
    return draw(tmp_path_factory.mktemp("new") / "colours", (20, 20, 20), seed=1)


@pytest.fixture(scope="session")
def folder(known: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package that names the colour of such pictures."""
    torch.manual_seed(0)
    files = sorted(known.rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(file).resize((32, 32))) for file in files])
    network = get_model("squeezenet1_1", weights=None, num_classes=3).eval()
    with torch.no_grad():
        maps = network.features((torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25)
        labels = [CLASSES.index(file.parent.name) for file in files]
        fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(maps.mean((2, 3)), labels)
        scaler, head = fitted[0], fitted[1]
        weight = head.coef_ / scaler.scale_
        network.classifier[1].weight.copy_(torch.from_numpy(weight)[..., None, None])
        network.classifier[1].bias.copy_(torch.from_numpy(head.intercept_ - weight @ scaler.mean_))
    return package(
        tmp_path_factory.mktemp("package"),
        state_dict=network.state_dict(),
        architecture={"builder": "squeezenet1_1", "kwargs": {"num_classes": 3}},
        classes=CLASSES,
        preprocessing=PREPROCESSING,
        example=files[0].read_bytes(),
    )


def registered(store: MlflowStore, folder: Path, data: Path | None = None, digest: str | None = None) -> None:
    """The package as champion; as if a search on ``data`` had made it, where that is given."""
    run_id = trial_run(store)
    tags = {}
    if data is not None:
        config = SearchConfig.build({"data": {"path": str(data), "validation_fraction": 0.3, "test_fraction": 0.3}})
        parent = store.client.create_run(store.experiment_id, run_name="study").info.run_id
        store.client.log_text(parent, yaml.safe_dump(config.model_dump(mode="json")), "config.yaml")
        store.client.set_tag(run_id, "mlflow.parentRunId", parent)
        tags = {"thawline.data_digest": digest or scan(config.data).digest}
    registry = MlflowRegistry(store)
    uri = log_packaged_model(store, run_id, folder, "birds")
    registry.set_alias("birds", "champion", registry.register("birds", uri, run_id=run_id, study="s", tags=tags))


@pytest.fixture
def champion(store: MlflowStore, folder: Path) -> MlflowStore:
    registered(store, folder)
    return store


def check(store: MlflowStore, folder: Path, **options: Any) -> DriftReport:
    return check_drift("birds", folder, tracking_uri=store.uri, home=store.home, device="cpu", **options)


@pytest.fixture
def thawline(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """The command line in this process; returns the exit code."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments: str | Path) -> int:
        monkeypatch.setattr(sys, "argv", ["thawline", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)
    signal.set_wakeup_fd(-1)


def test_pictures_of_the_same_kind_are_no_drift_and_inverted_ones_are(
    champion: MlflowStore,
    known: Path,
    same_kind: Path,
    tmp_path: Path,
    thawline: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ("--reference", known, "--tracking-uri", champion.uri, "--device", "cpu")
    assert thawline("drift", "birds", same_kind, *options, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["drift"], report["reference_images"], report["new_images"]) == (False, 180, 60)
    assert [test["part"] for test in report["tests"]] == ["features", "probabilities", "predicted classes"]
    assert all(test["p_value"] > test["threshold"] == pytest.approx(0.01 / 3) for test in report["tests"])

    inverted = changed(same_kind, tmp_path / "inverted", ImageOps.invert)
    assert thawline("drift", "birds", inverted, *options) == 1
    shown = capsys.readouterr().out
    assert "Drift between 60 new images and 180 reference images, at a false-alarm rate of 0.01: features" in shown
    assert "birds version 1" in shown


def test_another_mix_of_classes_is_drift_of_the_predicted_classes(
    champion: MlflowStore, known: Path, tmp_path: Path
) -> None:
    report = check(champion, draw(tmp_path / "mostly-blue", (5, 5, 50), seed=2), reference=known)
    assert report.event == "thawline.drift.detected"
    shift = report.tests[-1]
    assert (shift.part, shift.drift) == ("predicted classes", True)
    first = report.classes[0]
    assert first.name == "blue"
    assert first.reference == pytest.approx(1 / 3, abs=0.05)
    assert first.new == pytest.approx(50 / 60, abs=0.05)
    page = report.as_markdown()
    assert "| `blue` | 33.3% | 83.3% |" in page
    assert "| predicted classes | chi-square, 3 classes |" in page


def test_the_odd_one_out_and_unreadable_files_are_named_and_copies_count_once(
    champion: MlflowStore, known: Path, same_kind: Path, tmp_path: Path
) -> None:
    new = tmp_path / "new"
    shutil.copytree(same_kind, new)
    Image.fromarray(np.random.default_rng(3).integers(0, 255, (40, 50, 3)).astype(np.uint8)).save(new / "noise.png")
    shutil.copy(new / "red" / "000.png", new / "copy.png")
    (new / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no photograph")
    report = check(champion, new, reference=known)
    assert not report.drift
    assert (report.new_images, report.copies) == (61, 1)
    assert list(report.bad) == [str(new / "broken.jpg")]
    assert report.unusual[0].path == str(new / "noise.png")
    assert report.unusual[0].distance > 1.5
    assert f"- `{new / 'broken.jpg'}`: " in report.as_markdown()


def test_of_very_many_images_so_many_are_drawn_always_the_same(
    champion: MlflowStore, known: Path, same_kind: Path
) -> None:
    seen: list[tuple[int, int]] = []
    report = check(
        champion, same_kind, reference=known, max_images=40, on_progress=lambda done, total: seen.append((done, total))
    )
    assert (report.reference_images, report.new_images) == (40, 40)
    assert seen[-1] == (80, 80)
    assert check(champion, same_kind, reference=known, max_images=40) == report


def test_by_default_the_reference_is_what_the_study_held_out(store: MlflowStore, folder: Path, known: Path) -> None:
    registered(store, folder, known)
    config = SearchConfig.build({"data": {"path": str(known), "validation_fraction": 0.3, "test_fraction": 0.3}})
    manifest = scan(config.data)
    held_out = [known / row.path for row in (*manifest.of("validation"), *manifest.of("test"))]
    report = check(store, known)
    assert report.reference == f"the validation and test images of {known}"
    assert report.reference_images == len(held_out) < 180 == report.new_images
    assert not report.drift
    assert report.note == ""


def test_test_images_unlike_the_validation_images_are_said_to_be_so(
    store: MlflowStore, folder: Path, same_kind: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    draw(data / "train", (5, 5, 5), seed=4)
    draw(data / "validation", (20, 20, 20), seed=5)
    draw(data / "test", (2, 2, 46), seed=6)
    registered(store, folder, data)
    report = check(store, same_kind)
    assert "the validation images differ from the test images" in report.note
    assert report.note in report.as_markdown()
    assert check(store, same_kind, reference=data / "validation").note == ""


def test_a_reference_that_is_not_available_is_refused_with_what_to_do(
    store: MlflowStore, folder: Path, known: Path, same_kind: Path, tmp_path: Path
) -> None:
    registered(store, folder)
    with pytest.raises(DataError, match=r"birds/1 was trained on are not recorded.*--reference"):
        check(store, same_kind)
    registered(store, folder, known, digest="another")
    with pytest.raises(DataError, match=r"has changed since birds/2 was trained on it.*--reference"):
        check(store, same_kind)
    registered(store, folder, tmp_path / "gone", digest="any")
    with pytest.raises(DataError, match=r"birds/3 was trained on cannot be read: There is no folder.*--reference"):
        check(store, same_kind)
    assert not check(store, same_kind, reference=known).drift


def test_too_few_images_and_wrong_options_are_refused_with_the_reason(
    champion: MlflowStore,
    known: Path,
    same_kind: Path,
    tmp_path: Path,
    thawline: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = draw(tmp_path / "few", (6, 6, 7), seed=3)
    shutil.copy(few / "red" / "000.png", few / "copy.png")
    assert thawline("drift", "birds", few, "--reference", known, "--tracking-uri", champion.uri) == 2
    error = capsys.readouterr().err
    assert "Drift detection needs at least 20 images, but got 19" in error
    assert "(1 copies and 0 unreadable files left out)" in error
    with pytest.raises(DataError, match="There is no folder"):
        check(champion, tmp_path / "nowhere", reference=known)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="contains no image file"):
        check(champion, same_kind, reference=tmp_path / "empty")
    for alpha in (0.0, 0.5, float("nan")):
        with pytest.raises(ConfigError, match=r"alpha must be between 0.001 and 0.2, but got"):
            check(champion, same_kind, reference=known, alpha=alpha)
    with pytest.raises(ConfigError, match="max_images must be at least 20, but got 3"):
        check(champion, same_kind, reference=known, max_images=3)
    with pytest.raises(RegistryError, match="No model 'cats'"):
        check_drift("cats", same_kind, tracking_uri=champion.uri, home=champion.home, reference=known)


@pytest.mark.slow
@pytest.mark.xdist_group("drift-flow")
def test_the_flow_publishes_the_report_and_tells_prefect_of_drift(
    champion: MlflowStore,
    known: Path,
    same_kind: Path,
    tmp_path: Path,
    prefect: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in prefect.items():
        monkeypatch.setenv(name, value)
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from thawline.flows.drift import drift

    darkened = changed(same_kind, tmp_path / "darkened", lambda image: ImageEnhance.Brightness(image).enhance(0.4))
    with temporary_settings({PREFECT_API_URL: prefect["PREFECT_API_URL"]}):  # it may have been imported before
        options = {"reference": known, "device": "cpu", "tracking_uri": champion.uri}
        assert not drift("birds", same_kind, **options).drift
        assert drift("birds", darkened, **options).drift
    artifacts = ask_prefect(prefect, "artifacts/filter", {"artifacts": {"key": {"any_": ["drift"]}}})
    events: list[dict[str, Any]] = []
    birds = {"event": {"prefix": ["thawline."]}, "resource": {"id": ["thawline.model.birds"]}}
    while len(events) < 2:  # the test's time limit ends this
        events = ask_prefect(prefect, "events/filter", {"filter": birds})["events"]
    assert any("# birds version 1: drift" in each["data"] for each in artifacts)
    assert sorted(event["event"] for event in events) == ["thawline.drift.absent", "thawline.drift.detected"]
    detected = max(events, key=lambda event: event["event"])
    assert detected["resource"]["prefect.resource.id"] == "thawline.model.birds"
    assert detected["payload"]["drift"] is True
