"""A model of texts: packaged with its tokenizer, classified by text, judged, and refused where only pictures do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from colours import folder_of, picture, register, trial_run
from mlflow.exceptions import MlflowException
from notes import ADVERTISEMENTS, CLASSES, FRIENDLY, PREPROCESSING, make_text_package, note_network, tokens_of
from pyfuncs import load_pyfunc

from thawline.config import GateRules
from thawline.drift import check_drift
from thawline.exceptions import ConfigError, RegistryError
from thawline.explain import explain_files
from thawline.registry import (
    LabelledData,
    MlflowRegistry,
    ModelInput,
    ModelName,
    Outcome,
    PackagedModel,
    check_exports,
    force,
    graphs_tried,
    judge,
    log_packaged_model,
    package,
    settle,
)
from thawline.tracking import MlflowStore

TEXTS = [*FRIENDLY, *ADVERTISEMENTS]
LABELS = ["ham"] * len(FRIENDLY) + ["spam"] * len(ADVERTISEMENTS)
LONG = "see you at lunch " * 20


def expected(text: str) -> list[float]:
    """What the trained network says of one text on its own."""
    with torch.inference_mode():
        answer: list[float] = note_network()(tokens_of(text)).double().softmax(1)[0].tolist()
    return answer


def load(store: MlflowStore, folder: Path) -> PackagedModel:
    return MlflowRegistry(store).load(ModelName("notes", None, register(store, folder, "notes")))


def test_a_packaged_model_answers_texts_of_any_length_together_as_the_network_does_each_alone(
    store: MlflowStore, text_folder: Path
) -> None:
    model = load(store, text_folder)
    texts = [*TEXTS, LONG, "Zounds!", "WIN  a\nfree prize now "]
    answers = model.predict(texts)
    for text, answer in zip(texts, answers, strict=True):
        assert not isinstance(answer, str)
        assert list(answer.probabilities) == list(CLASSES)
        assert list(answer.probabilities.values()) == pytest.approx(expected(text), abs=1e-5)
    assert [answer.class_name for answer in answers[: len(TEXTS)] if not isinstance(answer, str)] == LABELS
    assert (model.kind, model.example()) == ("texts", FRIENDLY[0])
    model.check()


def test_more_texts_than_a_batch_keep_their_order_and_an_empty_one_costs_only_itself(
    store: MlflowStore, text_folder: Path
) -> None:
    model = load(store, text_folder)
    texts = [TEXTS[index % len(TEXTS)] for index in range(70)]
    texts[40] = " \n\t"
    answers = model.predict(texts)
    assert answers[40] == "the text is empty"
    rest = [answer for index, answer in enumerate(answers) if index != 40]
    wanted = [LABELS[index % len(TEXTS)] for index in range(70) if index != 40]
    assert [answer.class_name for answer in rest if not isinstance(answer, str)] == wanted


def test_of_a_text_that_no_network_reads_to_its_end_only_the_beginning_is_looked_at(
    store: MlflowStore, text_folder: Path
) -> None:
    classifier = load(store, text_folder).servable
    near, far = ("see" + " " * spaces + "you" for spaces in (900_000, 1_000_000))
    assert [len(classifier.prepare(text)) for text in (near, far)] == [4, 3]


def test_the_logged_model_holds_its_tokenizer_and_no_pickle(store: MlflowStore, text_folder: Path) -> None:
    run_id = trial_run(store)
    uri = log_packaged_model(store, run_id, text_folder, "notes")
    path = folder_of(store, uri)
    names = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    code = {name for name in names if name.startswith("code/")}
    assert {name.rpartition("_")[0] for name in code} == {
        "code/thawline_networks",
        "code/thawline_servable",
        "code/thawline_tokenizing",
    }
    assert names - code == {
        "MLmodel",
        "artifacts/model.json",
        "artifacts/model.safetensors",
        "artifacts/tokenizer.json",
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
    assert (path / "artifacts" / "tokenizer.json").read_text(encoding="utf-8") == PREPROCESSING.tokenizer
    settings = json.loads((path / "artifacts" / "model.json").read_text(encoding="utf-8"))
    assert (settings["kind"], settings["preprocessing"]) == ("texts", {"max_length": 10})
    assert settings["text_column"] is None
    description = yaml.safe_load((path / "MLmodel").read_text())
    assert json.loads(description["signature"]["inputs"]) == [{"type": "string", "name": "text", "required": True}]
    requirements = {line.partition("==")[0] for line in (path / "requirements.txt").read_text().split()}
    assert requirements == {"mlflow", "torch", "safetensors", "numpy", "pandas", "transformers", "tokenizers"}
    assert store.client.get_logged_model(uri.removeprefix("models:/")).model_type == "text-classifier"


def test_the_model_classifies_a_text_in_a_process_that_cannot_import_thawline(
    store: MlflowStore, text_folder: Path, tmp_path: Path
) -> None:
    path = folder_of(store, log_packaged_model(store, trial_run(store), text_folder, "notes"))
    program = (
        "import sys\n"
        "sys.modules['thawline'] = None  # importing it raises\n"
        "import mlflow.pyfunc, pandas\n"
        "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
        "print(*model.predict(pandas.DataFrame({'text': sys.argv[2:]}))['class'])\n"
        "assert [name for name in sys.modules if name.startswith('thawline.')] == []\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, str(path), ADVERTISEMENTS[1], FRIENDLY[0]],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split() == ["spam", "ham"]


@pytest.mark.parametrize(
    ("text", "reason"), [("", "the text is empty"), ("\ud800", "half of a character"), (3, "a text must be a string")]
)
def test_what_is_no_text_is_refused_by_the_number_of_its_row(
    store: MlflowStore, text_folder: Path, text: object, reason: str
) -> None:
    model = load_pyfunc(folder_of(store, log_packaged_model(store, trial_run(store), text_folder, "notes")))
    table = pd.DataFrame({"text": pd.Series([*TEXTS, text], dtype=object)})
    classifier = model.unwrap_python_model()
    assert list(classifier.predict(None, table[:-1])["class"]) == LABELS
    with pytest.raises(MlflowException, match=f"^Row 6: .*{reason}") as caught:
        classifier.predict(None, table)
    assert caught.value.get_http_status_code() == 400


def test_a_text_for_a_model_of_images_and_a_file_for_one_of_texts_are_refused_in_one_sentence(
    store: MlflowStore, folder: Path, text_folder: Path, tmp_path: Path
) -> None:
    texts, registry = load(store, text_folder), MlflowRegistry(store)
    colours = registry.load(ModelName("birds", None, register(store, folder, "birds")))
    for item in (tmp_path / "a.png", picture("red")):
        with pytest.raises(RegistryError, match=r"^notes/1 classifies texts, but got an image\.$"):
            texts.predict([item])
    with pytest.raises(RegistryError, match=r"^birds/1 classifies images, but got a text\.$"):
        colours.predict(["red"])
    assert [registry.input_of(ModelName(name, None, "1")).kind for name in ("notes", "birds")] == ["texts", "images"]


def test_the_column_that_was_trained_on_is_told_without_loading_the_model(store: MlflowStore, tmp_path: Path) -> None:
    folder = make_text_package(tmp_path / "package", text_column="mail body")
    version = register(store, folder, "notes")
    assert json.loads((folder / "model.json").read_text(encoding="utf-8"))["text_column"] == "mail body"
    answer = MlflowRegistry(store).input_of(ModelName("notes", None, version))
    assert answer == ModelInput("texts", text_column="mail body")


def test_an_example_of_the_other_kind_is_not_packaged(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"of a text model a text .* but got bytes for TextPreprocessing"):
        package(
            tmp_path,
            state_dict={},
            architecture={},
            classes=CLASSES,
            preprocessing=PREPROCESSING,
            example=picture("red"),
        )


def test_a_better_model_of_texts_is_promoted_on_texts_and_one_of_images_is_not_compared_with_it(
    store: MlflowStore, folder: Path, text_folder: Path, tmp_path: Path
) -> None:
    test = LabelledData("test", TEXTS, LABELS)
    registry = MlflowRegistry(store)
    swapped = make_text_package(tmp_path / "swapped", order=(1, 0))
    first = settle(store, judge(store, name="notes", version=register(store, swapped, "notes"), test=test))
    assert first.verdict.outcome is Outcome.HOLD
    force(store, name="notes", version="1", reason="it is all there is")
    assert first.challenger.metrics["accuracy"] == 0
    rules = GateRules(max_latency_ratio=1000)  # the machine may be busy just while one of them is timed
    version = register(store, text_folder, "notes")
    better = settle(store, judge(store, name="notes", version=version, test=test, rules=rules))
    assert better.verdict.outcome is Outcome.PROMOTE
    assert "on the same 6 test texts; 6 texts of 6 better" in better.verdict.reason
    assert "seconds for one text" in [each.name for each in better.verdict.criteria]
    assert better.as_dict()["texts"] == 6
    assert "On 6 test texts" in better.as_markdown()
    # A champion of images, which somebody has registered under the same name: it cannot read the texts.
    registry.promote("notes", register(store, folder, "notes"), judged_against="2", by="me", reason="a test")
    held = judge(store, name="notes", version="2", test=test)
    assert held.verdict.outcome is Outcome.HOLD
    assert "notes/3 classifies images, but got a text." in held.verdict.reason


def test_the_difference_from_the_trained_network_is_measured_on_texts_and_kept(
    store: MlflowStore, text_folder: Path
) -> None:
    right = [(text, expected(text)) for text in TEXTS]
    wrong = [(text, expected(text)[::-1]) for text in TEXTS]
    registry = MlflowRegistry(store)
    parities = []
    for trained in (right, wrong):
        run_id = trial_run(store)
        uri = log_packaged_model(store, run_id, text_folder, "notes", trained=trained)
        version = registry.register("notes", uri, run_id=run_id, study="s", tags={})
        parities.append(registry.load(ModelName("notes", None, version)).parity)
    assert parities[0] is not None
    assert parities[0] < 1e-5
    assert parities[1] is not None
    assert parities[1] > 0.9


def test_exports_explanations_and_drift_are_refused_for_texts_before_anything_is_computed(
    store: MlflowStore, text_folder: Path, tmp_path: Path
) -> None:
    check_exports(("auto",), "texts")
    assert graphs_tried(("auto",), "texts") == ()
    assert graphs_tried(("auto",), "images") == ("onnx",)
    check_exports(("pt2",), "images")
    with pytest.raises(ConfigError, match=r"promotion\.exports names pt2, but a text model cannot be exported"):
        check_exports(("pt2",), "texts")
    version = register(store, text_folder, "notes")
    where = {"tracking_uri": store.uri, "home": store.home}
    with pytest.raises(RegistryError, match="classifies texts, but explanations are drawn on images"):
        explain_files(f"notes/{version}", [tmp_path / "nowhere.png"], tmp_path / "out", **where)
    assert not (tmp_path / "out").exists()
    with pytest.raises(RegistryError, match="classifies texts, but drift is measured between images"):
        check_drift(f"notes/{version}", tmp_path / "nowhere", **where)
