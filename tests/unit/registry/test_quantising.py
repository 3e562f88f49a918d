"""A champion's int8 copy: made, judged against what it was quantised from, and used wherever a model is."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from colours import CLASSES, add_layers, files_of, make_package, picture, trial_run
from pyfuncs import load_pyfunc

from thawline.config import GateRules
from thawline.data import images
from thawline.drift import check_drift
from thawline.exceptions import ConfigError, EngineError, RegistryError
from thawline.explain import explain_files
from thawline.exporting import export_model
from thawline.predict import predict_items
from thawline.registry import (
    LabelledData,
    MlflowRegistry,
    ModelName,
    Outcome,
    PackagedModel,
    PromotionOutcome,
    check_exports,
    fit_prediction_sets,
    judge,
    log_packaged_model,
    parse_model,
    promotion,
    quantise,
    register_challenger,
    settle,
)
from thawline.registry.servable import QuantisedServable
from thawline.scoring import score_files
from thawline.serving.served import ServedModel
from thawline.tracking import MlflowStore

PICTURES = {name: picture(name) for name in CLASSES}
LABELS = [*CLASSES] * 8
TEST = LabelledData("test", [PICTURES[name] for name in LABELS], LABELS)
RULES = GateRules(max_quantisation_loss=0.2)
"""For which 24 images suffice."""
Quantised = Callable[..., PromotionOutcome]


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What an image takes, by engine."""
    taken = {"onnxruntime": 1.0, "pytorch": 2.0, "openvino": 2.0, "openvino-bf16": 2.0}

    def measured(models: Sequence[PackagedModel], items: object) -> list[float]:
        return [taken["onnxruntime" if model.is_quantised else "pytorch"] for model in models]

    monkeypatch.setattr(promotion, "seconds_per_item", measured)
    return taken


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    answers = np.full((30, 3), 0.1) + 0.7 * np.eye(3)[np.arange(30) % 3]
    sets = fit_prediction_sets(answers, np.arange(30) % 3, 0.9)
    return make_package(tmp_path_factory.mktemp("original"), prediction_sets=sets)


@pytest.fixture
def quantised(store: MlflowStore, original: Path, tmp_path: Path, seconds: dict[str, float]) -> Quantised:
    def judge_copy(*, outlier: float = 0.0, rules: GateRules = RULES, champion: bool = True) -> PromotionOutcome:
        """Register version 1 of birds, and its int8 copy as version 2, which is judged.

        Args:
            outlier: see :func:`colours.add_layers`.
            rules: of the gate.
            champion: whether version 1 is.
        """
        folder = add_layers(original, outlier=outlier)
        run_id, registry = trial_run(store), MlflowRegistry(store)
        uri = log_packaged_model(store, run_id, folder, "birds")
        first = ModelName("birds", None, register(store, run_id, uri))
        if champion:
            registry.promote("birds", "1", judged_against=None, by="me", reason="a test")
        shown = np.stack([seen(PICTURES[name]) for name in LABELS])
        (tmp_path / "copy").mkdir()
        with registry.artifacts(first) as files:
            answered = quantise(tmp_path / "copy", files, registry.load(first), shown, np.arange(len(shown)) % 3)
        trained = [(PICTURES[LABELS[row]], answered[row].tolist()) for row in range(16)]
        uri = log_packaged_model(store, run_id, tmp_path / "copy", "birds-int8", trained=trained)
        version = register(store, run_id, uri, quantised_from="1")
        return settle(store, judge(store, name="birds", version=version, test=TEST, rules=rules))

    return judge_copy


def register(store: MlflowStore, run_id: str, uri: str, *, quantised_from: str | None = None) -> str:
    return register_challenger(
        store, name="birds", model_uri=uri, run_id=run_id, study="s", quantised_from=quantised_from
    )


def seen(picture: bytes) -> Any:
    return images.seen(picture, max_pixels=10**6, resize_size=36, crop_size=32, interpolation="bilinear")


def criterion(judged: PromotionOutcome, name: str) -> tuple[str, bool]:
    ((value, passed),) = [(each.value, each.passed) for each in judged.verdict.criteria if each.name == name]
    return value, passed


# ------------------------------------------------------------------------------------------------------------- the gate


def test_a_copy_that_is_as_good_and_faster_takes_the_champions_place_and_the_former_one_comes_back(
    quantised: Quantised, store: MlflowStore
) -> None:
    judged = quantised()
    registry = MlflowRegistry(store)
    assert judged.verdict.outcome is Outcome.PROMOTE
    assert judged.verdict.reason == (
        "the int8 copy is faster and no worse: accuracy 1.0000 against 1.0000 of the version that it was quantised "
        "from, on the same 24 test images"
    )
    assert (registry.champion("birds"), registry.former_champion("birds")) == ("2", "1")
    assert registry.quantised_from("birds", "2") == "1"
    assert criterion(judged, "seconds for one image") == ("1.0000 against 2.0000", True)
    again = judge(store, name="birds", version="1", test=TEST)
    assert again.verdict.outcome is Outcome.HOLD
    assert again.verdict.reason.startswith("birds version 1 is already the champion, as version 2, its int8 copy; ")
    found = {
        copied: registry.find_version("birds", study="s", run_id=judged.run_id, quantised_from=copied)
        for copied in (None, "1", "2")
    }
    assert found == {None: "1", "1": "2", "2": None}


def test_a_network_that_quantises_badly_is_rejected_and_the_champion_stays(
    quantised: Quantised, store: MlflowStore
) -> None:
    """One channel of large values leaves no steps to the others."""
    judged = quantised(outlier=10_000.0)
    assert judged.verdict.outcome is Outcome.REJECT
    assert judged.verdict.reason.startswith(
        "the network quantises badly: accuracy 0.3333 against 1.0000 of the version that it was quantised from, on the "
        "same 24 test images; loss by quantisation +0.6667, required: at most 0.2; "
    )
    assert MlflowRegistry(store).champion("birds") == "1"
    assert MlflowRegistry(store).tags("birds", "2")["thawline.verdict"] == "reject"


def test_a_copy_that_is_no_faster_is_held(quantised: Quantised, seconds: dict[str, float]) -> None:
    seconds["onnxruntime"] = 1.9
    judged = quantised()
    assert judged.verdict.outcome is Outcome.HOLD
    assert judged.verdict.reason.startswith("not faster: accuracy 1.0000 against 1.0000")
    assert "seconds for one image 1.9000 against 2.0000, required: at most 0.9 times" in judged.verdict.reason


def test_a_copy_is_held_where_the_images_are_too_few_to_show_that_any_copy_is_as_good(quantised: Quantised) -> None:
    judged = quantised(rules=GateRules())
    assert judged.verdict.outcome is Outcome.HOLD
    assert judged.verdict.reason.startswith(
        "not shown to be as good as its original; 24 test images are too few to show it for any copy: accuracy 1.0000"
    )


def test_a_copy_of_what_is_not_champion_must_be_better_as_every_challenger(
    quantised: Quantised, store: MlflowStore
) -> None:
    assert quantised(champion=False).verdict.reason.startswith("first champion; its accuracy is 1.0000")


def test_the_verdict_on_a_copy_leaves_that_on_the_version_that_it_shares_its_run_with(
    quantised: Quantised, store: MlflowStore, tmp_path: Path
) -> None:
    judged = quantised(outlier=10_000.0)
    judge(store, name="birds", version="1", test=TEST)
    metrics = store.client.get_run(judged.run_id).data.metrics
    assert (metrics["test/accuracy"], metrics["int8/test/accuracy"]) == (1.0, pytest.approx(1 / 3))
    registry = MlflowRegistry(store)
    verdict = registry.verdict("birds", "2")
    assert verdict is not None
    assert (verdict["version"], verdict["outcome"]) == ("2", "reject")
    assert registry.verdict("birds", "1") is None


def test_time_and_size_of_the_next_challenger_are_compared_with_what_the_champion_was_quantised_from(
    quantised: Quantised, store: MlflowStore, other_folder: Path
) -> None:
    """Which it could be itself: in single precision it is eight times as large and may be six times as slow."""
    quantised()
    run_id = trial_run(store)
    version = register(store, run_id, log_packaged_model(store, run_id, other_folder, "birds"))
    judged = judge(store, name="birds", version=version, test=TEST)
    assert judged.champion_version == "2"
    assert criterion(judged, "seconds for one image") == ("2.0000 against 2.0000", True)
    ours, theirs = criterion(judged, "size")[0].removesuffix(" MB").split(" MB against ")
    assert float(ours) == pytest.approx(float(theirs), abs=0.2)
    files_of(store, version="1").joinpath("MLmodel").unlink()
    judged = judge(store, name="birds", version=version, test=TEST)
    assert not {"size", "seconds for one image"} & {each.name for each in judged.verdict.criteria}


# ---------------------------------------------------------------------------------------------------------------- using


def test_every_verb_answers_with_a_champion_in_int8_by_onnx_runtime_and_says_so(
    quantised: Quantised, store: MlflowStore, tmp_path: Path
) -> None:
    quantised()
    where: dict[str, Any] = {"tracking_uri": store.uri, "home": store.home}
    (tmp_path / "green.png").write_bytes(PICTURES["green"])
    (answer,) = predict_items("birds", [str(tmp_path / "green.png")], **where)
    assert (answer["class"], answer["prediction_set"]) == ("green", ["green"])
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "blue.png").write_bytes(PICTURES["blue"])
    assert score_files("birds", tmp_path / "many", tmp_path / "scores.parquet", device="cpu", **where).version == "2"
    served = ServedModel(MlflowRegistry(store).load(parse_model("birds"), engine="auto"), "cpu")
    assert (served.version, served.engine, served.device) == ("2", "onnxruntime", "cpu")
    tried, *others = served.engines
    assert (tried.name, tried.refused, tried.difference) == ("onnxruntime", None, pytest.approx(0, abs=1e-6))
    assert {each.name for each in others} == {"pytorch", "openvino", "openvino-bf16"}
    alone = "the network is in int8, which only ONNX Runtime computes in the same way as in its comparison"
    assert {each.refused for each in others} == {alone}


def test_another_engine_or_device_is_refused_with_the_version_in_single_precision(
    quantised: Quantised, store: MlflowStore
) -> None:
    quantised()
    registry = MlflowRegistry(store)
    instead = r" birds/1, which it was quantised from, is in single precision\.$"
    for engine in ("pytorch", "openvino", "openvino-bf16"):
        with pytest.raises(EngineError, match=rf"birds/2 cannot be computed by {engine}: .* --engine\.{instead}"):
            registry.load(parse_model("birds"), engine=engine)
    with pytest.raises(EngineError, match=rf"birds/2 is in int8, .* not on cuda: leave out --device\.{instead}"):
        registry.load(parse_model("birds"), device="cuda")
    assert registry.load(parse_model("birds"), engine="onnxruntime", device="cpu").engine == "onnxruntime"


def test_a_processor_on_which_it_answers_otherwise_than_it_was_judged_is_refused_it(
    quantised: Quantised, store: MlflowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose sums of 8-bit products overflow."""
    quantised()
    computed = QuantisedServable.outputs

    def overflown(self: QuantisedServable, prepared: list[Any]) -> tuple[list[list[float]], Any]:
        rows, features = computed(self, prepared)
        return [[first - 0.03, second + 0.03, third] for first, second, third in rows], features

    monkeypatch.setattr(QuantisedServable, "outputs", overflown)
    with pytest.raises(
        EngineError, match=r"birds/2 is in int8 and gives different results on this .* by 3\.0e-02.* birds/1, which"
    ):
        MlflowRegistry(store).load(parse_model("birds"))


def test_where_onnx_runtime_is_missing_the_command_that_installs_it_is_said(
    quantised: Quantised, store: MlflowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantised()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        EngineError, match=r"birds/2 is in int8 and needs ONNX Runtime, .* pip install 'thawline\[onnx\]'"
    ):
        MlflowRegistry(store).load(parse_model("birds"))


def test_explanations_drift_and_export_take_the_version_in_single_precision_and_say_so(
    quantised: Quantised, store: MlflowStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quantised()
    where: dict[str, Any] = {"tracking_uri": store.uri, "home": store.home}
    many = tmp_path / "many"
    many.mkdir()
    for number in range(20):
        (many / f"{number}.png").write_bytes(picture(CLASSES[number % 3], size=(40 + number, 50)))
    explained = explain_files("birds", [many / "0.png"], tmp_path / "out", method="occlusion", **where)
    assert explained[0]["model"] == "birds/1"
    assert check_drift("birds", many, reference=many, **where).version == "1"
    with pytest.raises(RegistryError, match="birds/1 is mnasnet0_5 of torchvision, which timm does not have"):
        export_model("birds", "timm", tmp_path / "exported", **where)
    for what in ("explained", "compared", "exported"):
        assert f"birds/2 is in int8, so the version {what} is birds/1, from which it was quantised" in caplog.messages
    store.client.delete_model_version("birds", "1")
    with pytest.raises(RegistryError, match=r"The model 'birds' has no version 1\. Its versions: 2\."):
        explain_files("birds", [many / "0.png"], tmp_path / "again", **where)


def test_nothing_is_said_of_a_version_in_single_precision(
    quantised: Quantised, store: MlflowStore, caplog: pytest.LogCaptureFixture
) -> None:
    quantised()
    with caplog.at_level(logging.WARNING):
        assert MlflowRegistry(store).with_network(ModelName("birds", None, "1"), "explained").version == "1"
    assert not caplog.messages


# ---------------------------------------------------------------------------------------------------------- the package


def test_what_mlflow_loads_answers_by_onnx_runtime_as_thawline_does_without_a_network_of_pytorch(
    quantised: Quantised, store: MlflowStore
) -> None:
    quantised()
    package = files_of(store, version="2")
    held = {file.name.rpartition("_")[0] if file.suffix == ".py" else file.name for file in package.rglob("*.*")}
    assert {"model.onnx", "model.json", "sample.safetensors", "thawline_servable", "thawline_images"} <= held
    assert not {"model.safetensors", "thawline_networks"} & held
    needed = {line.partition("==")[0] for line in (package / "requirements.txt").read_text().split()}
    assert needed == {"mlflow", "onnxruntime", "numpy", "pandas", "pillow"}
    (ours,) = MlflowRegistry(store).load(parse_model("birds")).predict([PICTURES["blue"]])
    theirs = load_pyfunc(package).predict(pd.DataFrame({"image": [PICTURES["blue"]]}))
    assert not isinstance(ours, str)
    assert (theirs["class"][0], theirs["probabilities"][0]) == ("blue", ours.probabilities)


def test_the_convolutions_are_in_int8_and_the_graph_says_of_itself_what_the_other_did(
    quantised: Quantised, store: MlflowStore
) -> None:
    import onnx

    quantised()
    ours, theirs = (onnx.load(files_of(store, version=version) / "artifacts" / "model.onnx") for version in ("2", "1"))
    kinds = {onnx.TensorProto.DataType.Name(each.data_type) for each in ours.graph.initializer}
    assert "INT8" in kinds
    assert "INT8" not in {onnx.TensorProto.DataType.Name(each.data_type) for each in theirs.graph.initializer}
    assert [each.name for each in ours.graph.output] == ["probabilities"]


def test_a_file_of_a_copy_that_has_changed_is_refused(quantised: Quantised, store: MlflowStore) -> None:
    quantised()
    file = files_of(store, version="2") / "artifacts" / "model.onnx"
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(RegistryError, match=r"birds/2 is not what was registered: artifacts/model\.onnx has changed"):
        MlflowRegistry(store).load(parse_model("birds"))


def test_a_thawline_that_knows_no_int8_refuses_a_copy_by_its_format(quantised: Quantised, store: MlflowStore) -> None:
    quantised()
    formats = [
        json.loads((files_of(store, version=version) / "artifacts" / "model.json").read_text())["format"]
        for version in ("1", "2")
    ]
    assert formats == [1, 2]


def test_a_network_that_cannot_be_quantised_is_said_with_what_to_leave_out(
    store: MlflowStore, original: Path, tmp_path: Path
) -> None:
    registry, run_id = MlflowRegistry(store), trial_run(store)
    version = register(store, run_id, log_packaged_model(store, run_id, add_layers(original), "birds"))
    for name in ("torn", "none", "copy"):
        (tmp_path / name).mkdir()
    (tmp_path / "torn" / "model.onnx").write_bytes(b"torn")
    model = registry.load(ModelName("birds", None, version))
    shown = np.stack([seen(PICTURES[name]) for name in CLASSES])
    with pytest.raises(RegistryError, match=r"birds/1 cannot be quantised: .* Leave int8 out of promotion\.exports\."):
        quantise(tmp_path / "copy", tmp_path / "torn", model, shown, np.arange(3))
    with pytest.raises(RegistryError, match=r"birds/1 cannot be quantised: it was packaged without model\.onnx"):
        quantise(tmp_path / "copy", tmp_path / "none", model, shown, np.arange(3))


# ------------------------------------------------------------------------------------------------------ before training


def test_int8_is_refused_before_training_for_texts_and_where_its_packages_are_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_exports(("int8",), "images")
    with pytest.raises(ConfigError, match=r"promotion\.exports names int8, but a text model cannot be exported"):
        check_exports(("int8",), "texts")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"promotion\.exports names int8, .* pip install 'thawline\[onnx\]'"):
        check_exports(("pt2", "int8"), "images")
