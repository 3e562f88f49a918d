"""Packaging, the registry and the promotion, with a small network whose answers are known."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from colours import CLASSES, PREPROCESSING, colour_network, folder_of, forget_digests, make_package, picture, trial_run
from pyfuncs import load_pyfunc

from thawline.data import decode, resize_and_crop
from thawline.exceptions import ConfigError, RegistryError
from thawline.registry import (
    LabelledData,
    MlflowRegistry,
    ModelName,
    Outcome,
    PromotionOutcome,
    Shadowed,
    calibrate,
    force,
    judge,
    log_packaged_model,
    parse_model,
    register_challenger,
    roll_back,
    score,
    settle,
)
from thawline.registry import exports as exports
from thawline.registry import promotion as promotion
from thawline.registry.packaged import PackagedModel
from thawline.registry.scores import Scores
from thawline.tracking import MlflowStore, start_study_run

IMAGES = [picture("red"), picture("green", "JPEG"), picture("blue"), picture("blue")]
LABELS = ["red", "green", "blue", "blue"]
TEST = LabelledData("test", IMAGES * 2, LABELS * 2)
"""Just enough for a model that gets all of them right to beat the majority class beyond chance."""


def test_a_model_is_named_by_alias_or_version_and_by_default_is_the_champion() -> None:
    assert parse_model("birds") == ModelName("birds", "champion", None)
    assert parse_model("birds@challenger") == ModelName("birds", "challenger", None)
    assert parse_model("models:/birds/3") == ModelName("birds", None, "3")
    assert [str(parse_model(text)) for text in ("birds", "birds/3")] == ["birds@champion", "birds/3"]


@pytest.mark.parametrize("text", ["", "a b", "birds@", "birds/x", "birds/0", "birds@a/3"])
def test_any_other_name_of_a_model_is_refused_with_the_grammar(text: str) -> None:
    with pytest.raises(RegistryError, match="NAME, NAME@ALIAS or NAME/VERSION"):
        parse_model(text)


# ------------------------------------------------------------------------------------------------------------ packaging


def test_the_packaged_model_answers_as_the_trained_network_does(store: MlflowStore, folder: Path) -> None:
    uri = log_packaged_model(store, trial_run(store), folder, "birds")
    registry = MlflowRegistry(store)
    registry.register("birds", uri, run_id=trial_run(store), study="s", tags={})
    versions = json.loads(store.client.get_logged_model(uri.removeprefix("models:/")).tags["mlflow.modelVersions"])
    assert [(item["name"], str(item["version"])) for item in versions] == [("birds", "1")]
    model = registry.load(ModelName("birds", None, "1"))
    (answer,) = model.predict([picture("green")])
    assert not isinstance(answer, str)
    assert answer.class_name == "green"
    assert answer.probability == answer.probabilities["green"] == max(answer.probabilities.values())
    assert sum(answer.probabilities.values()) == pytest.approx(1.0, abs=1e-6)

    from thawline.data import decode, resize_and_crop

    pixels = resize_and_crop(decode(picture("green")), resize_size=36, crop_size=32, interpolation="bilinear")
    with torch.inference_mode():
        batch = (torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.25
        expected = colour_network()(batch).softmax(1)[0].tolist()
    assert [answer.probabilities[name] for name in CLASSES] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("wanted", [{"device": "cpu"}, {"engine": "onnxruntime"}], ids=str)
def test_a_model_that_is_to_be_on_a_cpu_never_goes_to_a_gpu_first(
    wanted: dict[str, Any], store: MlflowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_package(tmp_path / "package", exports=("onnx",), sample=[picture(name) for name in CLASSES])
    uri = log_packaged_model(store, trial_run(store), folder, "birds")
    registry = MlflowRegistry(store)
    registry.register("birds", uri, run_id=trial_run(store), study="s", tags={})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(RegistryError, match="cannot be loaded"):
        registry.load(ModelName("birds", None, "1"))  # a control: it is tried where nobody says otherwise
    assert str(registry.load(ModelName("birds", None, "1"), **wanted).servable.device) == "cpu"


def test_the_logged_model_holds_no_pickle_and_all_that_the_registry_shows(store: MlflowStore, folder: Path) -> None:
    import yaml

    run_id = trial_run(store)
    uri = log_packaged_model(store, run_id, folder, "birds", tags={"thawline.study": "s"})
    path = folder_of(store, uri)
    names = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    code = {name for name in names if name.startswith("code/")}
    assert {name.rpartition("_")[0] for name in code} == {
        "code/thawline_images",
        "code/thawline_networks",
        "code/thawline_servable",
    }
    assert names - code == {
        "MLmodel",
        "artifacts/model.json",
        "artifacts/model.safetensors",
        "conda.yaml",
        "digests.json",
        "input_example.json",
        "pyfunc.py",
        "python_env.yaml",
        "requirements.txt",
        "serving_input_example.json",
    }
    for name in names:
        assert not (path / name).read_bytes().startswith((b"\x80", b"PK")), f"{name} is a pickle or a zip of pickles"
    description = yaml.safe_load((path / "MLmodel").read_text())
    assert json.loads(description["signature"]["inputs"]) == [{"type": "binary", "name": "image", "required": True}]
    assert [column["name"] for column in json.loads(description["signature"]["outputs"])] == [
        "class",
        "probability",
        "probabilities",
    ]
    assert description["metadata"]["classes"] == list(CLASSES)
    assert description["metadata"]["trial"] == 7
    requirements = (path / "requirements.txt").read_text().split()
    assert all("==" in line and "+" not in line for line in requirements)
    assert {line.partition("==")[0] for line in requirements} >= {"torch", "torchvision", "mlflow", "safetensors"}
    outputs = store.client.get_run(run_id).outputs.model_outputs
    assert [f"models:/{output.model_id}" for output in outputs] == [uri]
    assert store.client.get_logged_model(uri.removeprefix("models:/")).status == "READY"
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_the_model_loads_with_neither_thawline_nor_pickles(store: MlflowStore, folder: Path, tmp_path: Path) -> None:

    uri = log_packaged_model(store, trial_run(store), folder, "birds")
    path = folder_of(store, uri)
    (tmp_path / "image.jpg").write_bytes(picture("blue", "JPEG"))
    program = (
        "import sys\n"
        "sys.modules['thawline'] = None  # importing it raises\n"
        "import pickle, mlflow.pyfunc, pandas\n"
        "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
        "print(model.predict(pandas.DataFrame({'image': [open(sys.argv[2], 'rb').read()]}))['class'][0])\n"
        "assert [name for name in sys.modules if name.startswith('thawline.')] == []\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, str(path), str(tmp_path / "image.jpg")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == "blue"


def test_bytes_and_every_form_of_base64_are_taken_and_a_bad_row_is_named(store: MlflowStore, folder: Path) -> None:
    import mlflow
    import pandas as pd
    from mlflow.exceptions import MlflowException

    uri = log_packaged_model(store, trial_run(store), folder, "birds")
    model = mlflow.pyfunc.load_model(str(folder_of(store, uri)))
    raw = picture("green", "JPEG")
    text = base64.b64encode(raw).decode()
    plain = b"P3\n1 1\n255\n0 255 0\n"  # an image that is text itself
    forms = [raw, text.encode(), base64.encodebytes(raw), picture("green", "PPM"), plain]
    assert list(model.predict(pd.DataFrame({"image": forms}))["class"]) == ["green"] * len(forms)
    classifier = model.unwrap_python_model()
    for value in (text, text.rstrip("="), f"data:image/jpeg;base64,{text}", base64.encodebytes(raw).decode()):
        table = classifier.predict(None, pd.DataFrame({"image": [value]}))
        assert list(table["class"]) == ["green"]
    # More than one batch, and the row of the bad one counted over all of them.
    many = [raw] * 40
    assert len(model.predict(pd.DataFrame({"image": many}))) == 40
    for broken in (raw[:200], b"", b"\x00\x01", text[:-3].encode()):
        many[35] = broken
        with pytest.raises(MlflowException, match=r"^Row 35: \w") as caught:
            model.predict(pd.DataFrame({"image": many}))
        assert caught.value.get_http_status_code() == 400
    many[35] = picture("red", size=(2000, 2000))
    with pytest.raises(MlflowException, match=r"Row 35: .*pixels"):
        model.predict(pd.DataFrame({"image": many}))


def test_parts_of_a_table_are_answered_row_by_row_as_spark_udf_asks_for_them(store: MlflowStore, folder: Path) -> None:
    model = load_pyfunc(folder_of(store, log_packaged_model(store, trial_run(store), folder, "birds")))
    table = pd.DataFrame({"image": IMAGES}, index=[7, 3, 90, 91])
    answers = pd.concat([model.predict(part) for part in (table.iloc[:1], table.iloc[1:])])
    assert list(answers["class"]) == LABELS
    assert list(answers.columns) == ["class", "probability", "probabilities"]
    assert list(answers.index) == list(table.index)


def test_an_answer_put_beside_its_question_belongs_to_it_whatever_the_index(store: MlflowStore, folder: Path) -> None:
    model = load_pyfunc(folder_of(store, log_packaged_model(store, trial_run(store), folder, "birds")))
    table = pd.DataFrame({"image": IMAGES, "label": LABELS}, index=["d", "a", "c", "b"]).sort_index()
    table["class"] = model.predict(table[["image"]])["class"]
    assert list(table["class"]) == list(table["label"]) == ["green", "blue", "blue", "red"]


@pytest.mark.filterwarnings("ignore")  # MLflow's own, of every library that it uses
def test_mlflow_evaluates_a_packaged_model_as_a_classifier(store: MlflowStore, folder: Path) -> None:
    """As docs/tracking.md shows it."""
    import mlflow

    model = load_pyfunc(folder_of(store, log_packaged_model(store, trial_run(store), folder, "birds")))
    table = pd.DataFrame({"image": IMAGES * 3, "label": [*LABELS, *LABELS, "red", *LABELS[1:]]}).sort_index()
    table.loc[0, "label"] = "green"  # one that it gets wrong
    mlflow.set_tracking_uri(store.uri)
    try:
        result = mlflow.models.evaluate(
            lambda images: model.predict(images)["class"],
            table,
            targets="label",
            model_type="classifier",
            evaluator_config={"log_model_explainability": False},
        )
    finally:
        mlflow.end_run()
        mlflow.set_tracking_uri(None)
    assert result.metrics["accuracy_score"] == pytest.approx(11 / 12)


def test_a_package_that_cannot_answer_is_not_registered(store: MlflowStore, folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    settings = json.loads((broken / "model.json").read_text())
    settings["architecture"]["kwargs"]["num_classes"] = 4
    (broken / "model.json").write_text(json.dumps(settings))
    with pytest.raises(RegistryError, match="could not be packaged"):
        log_packaged_model(store, trial_run(store), broken, "birds")


# ----------------------------------------------------------------------------------------------- registry and promotion


def challenge(
    store: MlflowStore,
    folder: Path,
    *,
    study: str = "s",
    run_id: str | None = None,
    model_uri: str | None = None,
    labels: Sequence[str] = LABELS,
) -> PromotionOutcome:
    run_id = run_id or trial_run(store)
    version = register_challenger(
        store,
        name="birds",
        model_uri=model_uri or log_packaged_model(store, run_id, folder, "birds"),
        run_id=run_id,
        study=study,
        tags={"backbone": "mnasnet0_5"},
    )
    return settle(store, judge(store, name="birds", version=version, test=replace(TEST, labels=[*labels, *labels])))


def reign(store: MlflowStore, folder: Path) -> PromotionOutcome:
    """A first champion, however bad it is."""
    judged = challenge(store, folder)
    force(store, name="birds", version=judged.version, reason="it is all there is")
    return judged


def test_a_first_model_that_is_no_better_than_the_majority_class_stays_challenger_until_it_is_forced(
    store: MlflowStore, folder: Path, other_folder: Path
) -> None:
    registry = MlflowRegistry(store)
    held = challenge(store, other_folder)
    assert held.verdict.outcome is Outcome.HOLD
    assert (registry.champion("birds"), registry.challenger("birds")) == (None, "1")
    assert "balanced accuracy 0.3333 against 0.3333 on 8 test images" in held.verdict.reason
    assert held.as_dict()["majority_class"]["accuracy"] == 0.5
    assert "| accuracy | 0.2500 |  | 0.5000 |" in held.as_markdown()
    assert "| better than the majority class | balanced accuracy 0.3333 against 0.3333;" in held.as_markdown()
    assert "`thawline promote birds --version 1 --force --reason TEXT`" in held.verdict.reason
    assert registry.tags("birds", "1")["thawline.verdict"] == "hold"
    with pytest.raises(RegistryError, match=r"Name birds@challenger, or promote it: thawline promote birds$"):
        registry.load(parse_model("birds"))
    force(store, name="birds", version="1", reason="it is all there is")
    assert registry.champion("birds") == "1"
    assert registry.history("birds")[0].reason == "first champion, by force: it is all there is"
    assert challenge(store, folder, study="t").verdict.outcome is Outcome.PROMOTE


def test_the_majority_class_is_that_which_the_model_was_trained_on_most_and_else_that_of_the_test_items(
    store: MlflowStore, folder: Path, tmp_path: Path
) -> None:
    assert challenge(store, folder).as_dict()["majority_class"]["accuracy"] == 0.5  # blue
    known = tmp_path / "known"
    shutil.copytree(folder, known)
    settings = json.loads((known / "model.json").read_text())
    settings["extra"]["train_classes"] = {"red": 70, "green": 20, "blue": 10}
    (known / "model.json").write_text(json.dumps(settings))
    majority = challenge(store, known, study="t").as_dict()["majority_class"]
    assert majority["accuracy"] == 0.25
    assert majority["balanced_accuracy"] == pytest.approx(1 / 3)


def test_a_better_challenger_replaces_the_champion_and_a_worse_one_does_not(
    store: MlflowStore, folder: Path, other_folder: Path
) -> None:
    registry = MlflowRegistry(store)
    first_run = trial_run(store)
    first = challenge(store, other_folder, run_id=first_run)
    force(store, name="birds", version=first.version, reason="it is all there is")
    assert (first.version, first.champion_version, first.champion) == ("1", None, None)
    assert first.challenger.metrics["accuracy"] == 0.25
    assert first.challenger.predicted == ("red", "blue", "green", "green") * 2
    assert registry.champion("birds") == "1"
    metrics = store.client.get_run(first_run).data.metrics
    assert metrics["test/accuracy"] == 0.25
    assert metrics["test/recall/red"] == 1.0
    assert metrics["test/recall/blue"] == 0.0

    better = challenge(store, folder, study="t")
    assert better.verdict.outcome is Outcome.PROMOTE
    assert (better.version, better.champion_version) == ("2", "1")
    assert better.challenger.metrics["accuracy"] == 1.0
    assert better.champion is not None
    assert better.champion.metrics["accuracy"] == 0.25
    assert registry.champion("birds") == "2"
    version = store.client.get_model_version("birds", "2")
    assert version.tags["thawline.previous_champion"] == "1"
    assert version.tags["thawline.verdict"] == "promote"
    assert version.tags["test/accuracy"] == "1"
    assert version.tags["champion/accuracy"] == "0.25"
    assert version.tags["backbone"] == "mnasnet0_5"

    equal = challenge(store, folder, study="u")
    assert equal.verdict.outcome is Outcome.HOLD
    assert "gain +0.0000, required: more than 0" in equal.verdict.reason
    worse = challenge(store, other_folder, study="v")
    assert worse.verdict.outcome is Outcome.HOLD
    assert registry.champion("birds") == "2"
    aliases = store.client.get_registered_model("birds").aliases
    assert {alias: str(version) for alias, version in aliases.items()} == {"champion": "2", "challenger": "4"}


def test_the_champion_is_scored_now_on_these_images_and_not_remembered(
    store: MlflowStore, folder: Path, other_folder: Path
) -> None:
    challenge(store, folder)  # perfect on the usual images
    swapped = ["red", "blue", "green", "green"]  # on these the other model is
    outcome = challenge(store, other_folder, study="t", labels=swapped)
    assert outcome.champion is not None
    assert outcome.champion.metrics["accuracy"] == 0.25
    assert outcome.verdict.outcome is Outcome.PROMOTE


def test_judging_again_registers_no_second_version(store: MlflowStore, folder: Path) -> None:
    run_id = trial_run(store)
    first = challenge(store, folder, run_id=run_id)
    again = challenge(store, folder, run_id=run_id, model_uri="models:/m-never-used")
    assert again.version == first.version == "1"
    assert again.verdict.outcome is Outcome.HOLD
    assert again.verdict.reason == "birds version 1 is already the champion; its accuracy is 1.0000 on 8 test images"
    assert again.as_markdown().startswith("# birds version 1 is the champion\n")
    assert store.client.get_model_version("birds", "1").tags["thawline.verdict"] == "promote"
    registry = MlflowRegistry(store)
    assert registry.find_version("birds", study="s", run_id=run_id) == "1"
    assert registry.find_version("birds", study="other", run_id=run_id) is None
    assert registry.find_version("nothing", study="s", run_id=run_id) is None


def test_a_champion_that_cannot_be_loaded_is_not_replaced_and_the_reason_is_said(
    store: MlflowStore, folder: Path
) -> None:
    first = challenge(store, folder)
    path = Path(store.client.get_model_version_download_uri("birds", first.version).removeprefix("file://"))
    (path / "artifacts" / "model.safetensors").unlink()
    second = challenge(store, folder, study="t")
    assert second.verdict.outcome is Outcome.HOLD
    assert "could not be scored" in second.verdict.reason
    assert MlflowRegistry(store).champion("birds") == first.version


def test_a_champion_that_cannot_read_further_images_is_not_replaced_and_the_reason_is_said(
    store: MlflowStore, folder: Path, other_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be packaged with a decoder that does not know their format."""
    reign(store, other_folder)
    version = challenge(store, folder, study="t", labels=LABELS[::-1]).version
    further = LabelledData("phones", IMAGES[::-1], LABELS[::-1])

    def scored(model: PackagedModel, items: Sequence[Any], labels: Sequence[str]) -> Scores:
        if model.name.version == "1" and items is further.items:
            raise RegistryError("phones/1.heic cannot be read")
        return score(model, items, labels)

    control = judge(store, name="birds", version=version, test=TEST, further=[further])
    assert control.verdict.outcome is Outcome.PROMOTE
    monkeypatch.setattr(promotion, "score", scored)
    held = judge(store, name="birds", version=version, test=TEST, further=[further])
    assert held.verdict.outcome is Outcome.HOLD
    assert "the champion could not be scored (RegistryError: phones/1.heic cannot be read)" in held.verdict.reason


def test_a_reason_in_any_script_is_stored_in_the_history_as_it_is(store: MlflowStore, folder: Path) -> None:
    """Escaped, 2,000 characters take 12,000, which PostgreSQL refuses."""
    judged = challenge(store, folder, labels=LABELS[::-1])
    force(store, name="birds", version=judged.version, reason="п" * 3000)
    tags = store.client.get_registered_model("birds").tags
    (entry,) = (value for key, value in tags.items() if key.startswith("thawline.champion."))
    assert "ппп" in entry
    assert len(entry) < 5000


def test_a_promotion_judged_against_another_champion_is_refused(store: MlflowStore, folder: Path) -> None:
    registry = MlflowRegistry(store)
    uri = log_packaged_model(store, trial_run(store), folder, "birds")
    for _ in range(3):
        registry.register("birds", uri, run_id=trial_run(store), study="s", tags={})
    who = {"by": "me", "reason": "a test"}
    registry.promote("birds", "1", judged_against=None, **who)
    registry.promote("birds", "2", judged_against="1", **who)
    with pytest.raises(RegistryError, match="compared with version 1, but the champion is now version 2"):
        registry.promote("birds", "3", judged_against="1", **who)
    with pytest.raises(RegistryError, match="compared with no champion"):
        registry.promote("birds", "3", judged_against=None, **who)
    assert registry.champion("birds") == "2"
    assert "thawline.previous_champion" not in store.client.get_model_version("birds", "3").tags


def test_of_two_promotions_at_once_one_wins_and_the_other_is_refused(store: MlflowStore, folder: Path) -> None:
    registry = MlflowRegistry(store)
    uri = log_packaged_model(store, trial_run(store), folder, "birds")
    versions = [registry.register("birds", uri, run_id=trial_run(store), study="s", tags={}) for _ in range(3)]
    registry.promote("birds", versions[0], judged_against=None, by="me", reason="a test")
    barrier = threading.Barrier(2)

    def promote(version: str) -> str:
        barrier.wait(60)
        try:
            registry.promote("birds", version, judged_against=versions[0], by="me", reason="a test")
        except RegistryError as error:
            return str(error)
        return version

    with ThreadPoolExecutor(2) as pool:
        ended = sorted(pool.map(promote, versions[1:]))
    assert f"was compared with version {versions[0]}" in ended[1]
    assert registry.champion("birds") == ended[0]
    assert [reign.version for reign in registry.history("birds")] == [versions[0], ended[0]]


def test_a_model_is_found_among_more_than_fit_on_a_page_of_the_registry(store: MlflowStore) -> None:
    registry, names = MlflowRegistry(store), [f"m{number:03d}" for number in range(103)]
    for name in names:
        store.client.create_registered_model(name)
    assert registry.names() == names
    assert registry.history("m102") == ()
    with pytest.raises(RegistryError, match=r"No model 'm103'.*m102\."):
        registry.history("m103")


def test_a_missing_model_alias_or_version_is_answered_with_what_there_is(store: MlflowStore, folder: Path) -> None:
    registry = MlflowRegistry(store)
    with pytest.raises(RegistryError, match="No model is registered yet: run `thawline search`"):
        registry.load(parse_model("birds"))
    uri = log_packaged_model(store, trial_run(store), folder, "birds")
    registry.register("birds", uri, run_id=trial_run(store), study="s", tags={})
    assert registry.names() == ["birds"]
    with pytest.raises(RegistryError, match=r"No model 'bird' .* Registered: birds\."):
        registry.load(parse_model("bird"))
    with pytest.raises(RegistryError, match=r"no alias 'champion'\. It has no alias"):
        registry.load(parse_model("birds"))
    registry.set_alias("birds", "challenger", "1")
    with pytest.raises(RegistryError, match=r"no alias 'champion'\. Its aliases: challenger\."):
        registry.load(parse_model("birds"))
    with pytest.raises(RegistryError, match=r"no version 7\. Its versions: 1\."):
        registry.load(parse_model("birds/7"))
    assert str(registry.load(parse_model("birds@challenger")).name) == "birds/1"


def test_predicting_names_the_images_that_cannot_be_read_and_answers_the_others(
    store: MlflowStore, folder: Path, tmp_path: Path
) -> None:
    registry = MlflowRegistry(store)
    registry.register(
        "birds",
        log_packaged_model(store, trial_run(store), folder, "birds"),
        run_id=trial_run(store),
        study="s",
        tags={},
    )
    model = registry.load(parse_model("birds/1"))
    (tmp_path / "red.png").write_bytes(picture("red"))
    answers = model.predict([tmp_path / "red.png", b"junk\x00", tmp_path / "gone.png", picture("blue")])
    assert [answer if isinstance(answer, str) else answer.class_name for answer in answers][::3] == ["red", "blue"]
    assert answers[2] == "No such file or directory"
    assert isinstance(answers[1], str)
    assert "Row" not in answers[1]
    with pytest.raises(RegistryError, match=r"gone\.png"):
        score(model, [tmp_path / "gone.png"], ["red"])


def test_metrics_agree_with_scikit_learn_and_unknown_classes_are_missed(store: MlflowStore, folder: Path) -> None:
    from sklearn.metrics import balanced_accuracy_score, log_loss

    registry = MlflowRegistry(store)
    uri = log_packaged_model(store, trial_run(store), folder, "birds")
    registry.register("birds", uri, run_id=trial_run(store), study="s", tags={})
    model = registry.load(parse_model("birds/1"))
    labels = ["red", "green", "blue", "red"]
    scores = score(model, IMAGES, labels)
    assert scores.metrics["accuracy"] == 0.75
    assert scores.metrics["balanced_accuracy"] == balanced_accuracy_score(labels, scores.predicted)
    answers = model.predict(IMAGES)
    table = [
        [answer.probabilities[name] for name in sorted(CLASSES)] for answer in answers if not isinstance(answer, str)
    ]
    assert scores.metrics["loss"] == pytest.approx(log_loss(labels, table, labels=sorted(CLASSES)), rel=1e-6)
    assert "top5_accuracy" not in scores.metrics
    new = score(model, IMAGES, ["red", "green", "blue", "violet"])
    assert new.recalls == {"blue": 1.0, "green": 1.0, "red": 1.0, "violet": 0.0}
    assert new.metrics["loss"] == pytest.approx(scores.metrics["loss"], abs=30)


def test_two_packages_with_different_decoders_work_in_one_process_of_mlflow(
    store: MlflowStore, folder: Path, tmp_path: Path
) -> None:
    """MLflow runs the code of each package, which must not be taken for that of the other."""
    changed = tmp_path / "changed"
    changed.mkdir()
    for file in folder.iterdir():
        (changed / file.name).write_bytes(file.read_bytes())
    settings = json.loads((changed / "model.json").read_text())
    old = changed / f"{settings['inputs_module']}.py"
    old.rename(changed / "thawline_images_0123456789ab.py")
    with (changed / "thawline_images_0123456789ab.py").open("a") as file:
        file.write("\n\ndef resize_and_crop(image, *, crop_size, **_):\n")
        file.write(
            "    pixels = np.zeros((crop_size, crop_size, 3), np.uint8)\n    pixels[..., 2] = 255\n    return pixels\n"
        )
    (changed / "model.json").write_text(json.dumps({**settings, "inputs_module": "thawline_images_0123456789ab"}))
    models = [
        load_pyfunc(folder_of(store, log_packaged_model(store, trial_run(store), source, "birds")))
        for source in (changed, folder)
    ]
    table = pd.DataFrame({"image": [picture("red")]})
    assert [model.predict(table)["class"][0] for model in models] == ["blue", "red"]


def test_registering_puts_the_users_own_tracking_uri_back(
    store: MlflowStore, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    def register() -> None:
        uri = log_packaged_model(store, trial_run(store), folder, "birds")
        MlflowRegistry(store).register("birds", uri, run_id=trial_run(store), study="s", tags={})

    before = mlflow.get_tracking_uri()
    register()
    assert mlflow.get_tracking_uri() == before
    assert "MLFLOW_TRACKING_URI" not in os.environ
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mine.db")
    register()
    assert mlflow.get_tracking_uri() == os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/mine.db"
    try:
        mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/set.db")
        register()
        assert mlflow.get_tracking_uri() == f"sqlite:///{tmp_path}/set.db"
    finally:
        mlflow.set_tracking_uri(None)
    assert not list(tmp_path.glob("*.db"))


def test_a_study_run_and_a_registered_model_live_in_one_store(store: MlflowStore, folder: Path) -> None:
    parent = start_study_run(store, study="s", params={}, tags={})
    outcome = challenge(store, folder, run_id=parent)
    assert store.client.get_model_version("birds", outcome.version).run_id == parent


# ------------------------------------------------------------------------------------------------- history and undoing


def test_the_verdict_lies_on_the_challengers_run_for_machines_and_for_people(
    store: MlflowStore, folder: Path, other_folder: Path, tmp_path: Path
) -> None:
    reign(store, other_folder)
    run_id = trial_run(store)
    challenge(store, folder, study="t", run_id=run_id)
    verdict = json.loads(
        Path(store.client.download_artifacts(run_id, "promotion/verdict.json", str(tmp_path))).read_text()
    )
    assert (verdict["outcome"], verdict["version"], verdict["judged_against"], verdict["images"]) == (
        "promote",
        "2",
        "1",
        8,
    )
    assert {each["name"] for each in verdict["criteria"]} >= {
        "gain",
        "evidence of the gain",
        "size",
        "recall of every class",
    }
    page = Path(store.client.download_artifacts(run_id, "promotion/verdict.md", str(tmp_path))).read_text()
    assert "# birds version 2 against version 1: promote" in page
    assert "| gain | +0.7500 | more than 0 | pass |" in page


def test_history_tells_who_was_champion_when_and_rollback_returns_to_the_former(
    store: MlflowStore, folder: Path, other_folder: Path
) -> None:
    reign(store, other_folder)
    challenge(store, folder, study="t")
    assert roll_back(store, name="birds") == ("2", "1")
    registry = MlflowRegistry(store)
    assert registry.champion("birds") == "1"
    reigns = registry.history("birds")
    assert [reign.version for reign in reigns] == ["1", "2", "1"]
    assert reigns[0].until == reigns[1].since
    assert reigns[1].until == reigns[2].since
    assert reigns[2].until is None
    assert reigns[0].reason == "first champion, by force: it is all there is"
    assert "the challenger is better" in reigns[1].reason
    assert reigns[2].reason == "rolled back from version 2"
    assert roll_back(store, name="birds") == ("1", "2")  # and forth again
    with pytest.raises(RegistryError, match="birds/2 is already the champion"):
        roll_back(store, name="birds", to="2")
    for unknown in ("01", "v1", "1.0", "champion", "7"):
        with pytest.raises(RegistryError, match=rf"has no version {unknown}\. Its versions: 1, 2\."):
            roll_back(store, name="birds", to=unknown)
    assert registry.champion("birds") == "2"


def test_a_rollback_needs_a_former_champion_that_still_answers(
    store: MlflowStore, folder: Path, other_folder: Path
) -> None:
    first = reign(store, other_folder)
    with pytest.raises(RegistryError, match="is the first champion"):
        roll_back(store, name="birds")
    challenge(store, folder, study="t")
    path = Path(store.client.get_model_version_download_uri("birds", first.version).removeprefix("file://"))
    (path / "artifacts" / "model.safetensors").unlink()
    with pytest.raises(RegistryError, match=r"birds/1 is not what .* artifacts/model\.safetensors is missing"):
        roll_back(store, name="birds")
    assert MlflowRegistry(store).champion("birds") == "2"


def test_a_forced_promotion_needs_a_reason_which_the_history_tells(
    store: MlflowStore, folder: Path, other_folder: Path
) -> None:
    challenge(store, folder)
    worse = challenge(store, other_folder, study="t")
    with pytest.raises(RegistryError, match="needs a reason: add --reason"):
        force(store, name="birds", version=worse.version, reason=" ")
    force(store, name="birds", version=worse.version, reason="the other confuses berries")
    registry = MlflowRegistry(store)
    assert registry.champion("birds") == worse.version
    assert registry.history("birds")[-1].reason == "by force: the other confuses berries"
    assert registry.tags("birds", worse.version)["thawline.verdict"] == "forced"


def test_a_promotion_that_dies_before_the_alias_moves_leaves_the_champion_and_no_trace_in_its_history(
    store: MlflowStore, folder: Path, other_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reign(store, other_folder)

    set_alias = MlflowRegistry.set_alias

    def killed(self: MlflowRegistry, name: str, alias: str, version: str) -> None:
        if alias == "champion":
            raise KeyboardInterrupt
        set_alias(self, name, alias, version)

    monkeypatch.setattr(MlflowRegistry, "set_alias", killed)
    with pytest.raises(KeyboardInterrupt):
        challenge(store, folder, study="t")
    monkeypatch.undo()
    registry = MlflowRegistry(store)
    assert registry.champion("birds") == "1"
    assert [reign.version for reign in registry.history("birds")] == ["1"]
    again = judge(store, name="birds", version="2", test=TEST)
    settle(store, again)
    assert [reign.version for reign in registry.history("birds")] == ["1", "2"]


def test_what_a_server_counted_stands_beside_the_verdict_and_decides_nothing(
    store: MlflowStore, folder: Path, other_folder: Path, tmp_path: Path
) -> None:
    challenge(store, other_folder)
    challenge(store, folder, study="t")
    without = judge(store, name="birds", version="1", test=TEST)
    shadowed = Shadowed("http://a|b:8000", items=100, agreeing=97, seconds=0.0124, uncompared=1)
    judged = judge(store, name="birds", version="1", test=TEST, shadowed=shadowed)
    assert judged.verdict.outcome is without.verdict.outcome
    names = ("promotion/verdict.md", "promotion/verdict.json")
    page, verdict = (
        Path(store.client.download_artifacts(judged.run_id, name, str(tmp_path))).read_text() for name in names
    )
    assert r"a\|b:8000: the champion's class for 97 of 100 (97.0%), 12 ms per request, 1 not" in page
    assert json.loads(verdict)["shadow"]["agreeing"] == 97
    assert (without.as_dict()["shadow"], "In shadow mode" in without.as_markdown()) == (None, False)


def test_an_alias_moved_by_other_means_is_said_to_be(store: MlflowStore, folder: Path, other_folder: Path) -> None:
    challenge(store, folder)
    challenge(store, other_folder, study="t")
    store.client.set_registered_model_alias("birds", "champion", "2")
    first, last = MlflowRegistry(store).history("birds")
    assert first.reason.startswith("first champion; its accuracy is 1.0000, the majority class's 0.5000")
    assert (last.version, last.since, last.by) == ("2", None, "unknown")
    assert "other means" in last.reason


# ---------------------------------------------------------------------------------------------------------- calibration


def test_an_overconfident_network_gets_a_temperature_that_changes_no_answer(store: MlflowStore, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 600)
    logits = 8 * (np.eye(3)[labels] + random.normal(0, 0.9, (600, 3)))
    calibration = calibrate(logits, labels)
    assert calibration.temperature > 2
    assert calibration.error_after < 0.5 * calibration.error_before
    make_package(tmp_path / "cold")
    make_package(tmp_path / "warm", calibration=calibration)
    answers = {}
    for name in ("cold", "warm"):
        uri = log_packaged_model(store, trial_run(store), tmp_path / name, "birds")
        version = MlflowRegistry(store).register("birds", uri, run_id=trial_run(store), study=name, tags={})
        (answers[name],) = MlflowRegistry(store).load(ModelName("birds", None, version)).predict([IMAGES[0]])
    cold, warm = answers["cold"], answers["warm"]
    assert not isinstance(cold, str)
    assert not isinstance(warm, str)
    assert cold.class_name == warm.class_name == "red"
    assert cold.probability > warm.probability
    expected = np.array(list(cold.probabilities.values())) ** (1 / calibration.temperature)
    assert list(warm.probabilities.values()) == pytest.approx(list(expected / expected.sum()), rel=1e-6)


def test_the_calibration_of_a_package_from_before_there_were_texts_is_shown_too(
    store: MlflowStore, tmp_path: Path
) -> None:
    labels = np.arange(30) % 3
    calibration = calibrate(np.eye(3)[np.where(np.arange(30) < 20, labels, 0)] * 20, labels)
    assert calibration.helps
    uri = log_packaged_model(
        store, trial_run(store), make_package(tmp_path / "package", calibration=calibration), "birds"
    )
    description = folder_of(store, uri) / "MLmodel"
    text = description.read_text()
    assert text.count("items: 30") == 1
    older = re.sub(r"\n *(helps|loss_before|loss_after): .*", "", text.replace("items: 30", "images: 30"))
    description.write_text(older)
    MlflowRegistry(store).register("birds", uri, run_id=trial_run(store), study="s", tags={})
    forget_digests(store)
    outcome = judge(store, name="birds", version="1", test=LabelledData("test", IMAGES, LABELS))
    assert "fitted on the 30 validation images" in outcome.as_markdown()
    shown, known = outcome.as_dict()["calibration"], json.loads(json.dumps(calibration.as_dict()))
    assert shown == {key: known[key] for key in known.keys() - {"helps", "loss_before", "loss_after"}}


def test_a_temperature_that_does_not_help_what_it_was_not_fitted_on_is_not_used_and_the_verdict_says_so(
    store: MlflowStore, tmp_path: Path
) -> None:
    """Five images that a sure network got wrong gave a temperature of 13.6; 21 made the calibration error worse."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 400)
    fair = np.log(np.full((400, 3), 0.2) + 0.4 * np.eye(3)[np.where(random.random(400) < 0.5, labels, 0)])
    few = calibrate(8 * np.eye(3)[[0, 1, 2, 0, 1]], np.array([0, 1, 1, 2, 2]))
    assert (few.temperature, few.helps, few.error_after) == (1.0, False, few.error_before)
    useless = [calibrate(fair[start : start + 21], labels[start : start + 21]) for start in range(0, 399, 21)]
    refused = [each for each in useless if not each.helps]
    assert len(refused) >= len(useless) / 2
    assert all(each.temperature == 1.0 for each in refused)
    assert all(each.loss_after < each.loss_before and each.error_after < each.error_before
               for each in useless if each.helps)  # fmt: skip
    for number, (calibration, sentence) in enumerate(
        ((few, "Not calibrated: 5 validation images are too few to fit a temperature."),
         (refused[0], "Not calibrated, because a fitted temperature does not help on held-out folds of the 21 "))
    ):  # fmt: skip
        run_id = trial_run(store)
        uri = log_packaged_model(store, run_id, make_package(tmp_path / str(number), calibration=calibration), "birds")
        version = MlflowRegistry(store).register("birds", uri, run_id=run_id, study=str(number), tags={})
        assert sentence in judge(store, name="birds", version=version, test=TEST).as_markdown()


def test_a_package_that_differs_from_the_trained_network_says_by_how_much_and_is_rejected(
    store: MlflowStore, folder: Path
) -> None:
    good = [(IMAGES[0], [1.0, 0.0, 0.0])]
    for trained, outcome in ((good, Outcome.PROMOTE), ([(IMAGES[0], [0.9, 0.1, 0.0])], Outcome.REJECT)):
        run_id = trial_run(store)
        uri = log_packaged_model(store, run_id, folder, "birds", trained=trained)
        version = register_challenger(store, name=outcome.value, model_uri=uri, run_id=run_id, study="s")
        judged = judge(store, name=outcome.value, version=version, test=TEST)
        assert judged.verdict.outcome is outcome
    assert "parity of package and trained network 1.0e-01, required: at most 1e-03" in judged.verdict.reason


# -------------------------------------------------------------------------------------------------------------- exports


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::DeprecationWarning:onnxscript")
def test_exports_answer_as_the_network_does_hold_no_pickle_and_travel_with_the_model(
    store: MlflowStore, tmp_path: Path
) -> None:
    import onnxruntime

    random = np.random.default_rng(0)
    calibration = calibrate(random.normal(size=(50, 3)), random.integers(0, 3, 50))
    folder = make_package(tmp_path / "package", calibration=calibration, exports=("pt2", "onnx"), sample=IMAGES)
    settings = json.loads((folder / "model.json").read_text())
    assert settings["exports"].keys() == {"pt2", "onnx"}
    assert max(settings["exports"].values()) < 1e-5
    uri = log_packaged_model(store, trial_run(store), folder, "birds")
    artifacts = folder_of(store, uri) / "artifacts"
    with zipfile.ZipFile(artifacts / "model.pt2") as archive:
        contents = {each.filename: archive.read(each) for each in archive.infolist()}
    assert not [name for name, data in contents.items() if re.match(rb"\x80[\2-\5]", data) and data.endswith(b".")]
    answers = load_pyfunc(folder_of(store, uri)).predict(pd.DataFrame({"image": IMAGES}))["probabilities"]
    image = resize_and_crop(decode(IMAGES[0]), resize_size=36, crop_size=32, interpolation="bilinear")
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    program = torch.export.load(artifacts / "model.pt2").module()
    session = onnxruntime.InferenceSession(artifacts / "model.onnx")
    said = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert said["classes"] == list(CLASSES)
    assert said["preprocessing"] == json.loads(json.dumps(asdict(PREPROCESSING)))
    assert said["calibration"] == json.loads(json.dumps(calibration.as_dict()))
    for answer in (program(pixels).detach().numpy(), session.run(None, {"pixels": pixels.numpy()})[0]):
        assert answer[0] == pytest.approx(list(answers[0].values()), abs=1e-4)
    MlflowRegistry(store).register("birds", uri, run_id=trial_run(store), study="s", tags={})
    model = MlflowRegistry(store).load(ModelName("birds", None, "1"), engine="onnxruntime")
    (tried,) = model.engines
    assert (model.engine, tried.refused) == ("onnxruntime", None)
    assert tried.difference is not None
    assert tried.difference < 1e-4


def test_an_export_that_answers_otherwise_stops_the_packaging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(exports._EXPORTERS, "pt2", lambda network, path, pixels, *_: network(pixels) + 0.01)
    with pytest.raises(
        RegistryError, match=r"exported as pt2 gives different results: a probability differs by 1\.0e-02"
    ):
        make_package(tmp_path / "package", exports=("pt2",))


def test_a_format_that_is_not_installed_is_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    exports.check_exports(("auto", "pt2"), "images")
    assert exports.graphs_tried(("auto", "pt2"), "images") == ("pt2",)
    with pytest.raises(ConfigError, match=r"pip install 'thawline\[onnx\]'"):
        exports.check_exports(("auto", "onnx"), "images")
