"""Thawline reads packages as data: code in them does not run, and what is not as it was registered is refused."""

import json
import os
import pickle
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from colours import CLASSES, files_of, forget_digests, make_package, picture, register, trial_run
from commands import Forks
from pyfuncs import load_pyfunc

from thawline.backbones import check_architecture
from thawline.drift import check_drift
from thawline.exceptions import BackboneError, RegistryError
from thawline.explain import explain_files
from thawline.predict import predict_items
from thawline.registry import (
    LabelledData,
    MlflowRegistry,
    ModelName,
    Outcome,
    force,
    judge,
    log_packaged_model,
    register_challenger,
    roll_back,
)
from thawline.registry.contents import DIGEST_TAG
from thawline.registry.packaged import QUANTISED_FORMAT
from thawline.scoring import score_files
from thawline.serving.served import ServedModel
from thawline.tracking import MlflowStore

CHAMPION = ModelName("birds", None, "1")


def line_in_its_program(folder: Path, line: str) -> None:
    append(folder / "pyfunc.py", line)


def line_in_its_modules(folder: Path, line: str) -> None:
    for file in (folder / "code").iterdir():
        append(file, line)


def loader_of_its_own(folder: Path, line: str) -> None:
    (folder / "code" / "own_loader.py").write_text(f"{line}\ndef _load_pyfunc(path): return None\n")
    description = folder / "MLmodel"
    description.write_text(description.read_text().replace("mlflow.pyfunc.loaders.code_model", "own_loader"))


def append(file: Path, line: str) -> None:
    file.write_text(f"{file.read_text()}\n{line}\n")


PLANTS = (line_in_its_program, line_in_its_modules, loader_of_its_own)
Plant = Callable[[Path, str], None]


def use(verb: str, store: MlflowStore, folder: Path) -> Any:
    """One of Thawline's verbs, of version 1 of the model ``birds``."""
    image = folder / "red.png"
    image.write_bytes(picture("red"))
    where: dict[str, Any] = {"tracking_uri": store.uri, "home": store.home}
    many = folder / "many"
    many.mkdir(exist_ok=True)
    for number in range(20):
        (many / f"{number}.png").write_bytes(picture(CLASSES[number % 3], size=(40 + number, 50)))
    test = LabelledData("test", [picture(name) for name in CLASSES], CLASSES)
    verbs: dict[str, Callable[[], Any]] = {
        "serve": lambda: ServedModel(MlflowRegistry(store).load(CHAMPION), "cpu"),
        "score": lambda: score_files("birds/1", many, folder / "scores.parquet", **where),
        "predict": lambda: predict_items("birds/1", [str(image)], **where),
        "explain": lambda: explain_files("birds/1", [image], folder / "out", method="occlusion", **where),
        "drift": lambda: check_drift("birds/1", many, reference=many, **where),
        "promote": lambda: judge(store, name="birds", version="1", test=test),
        "promote --force": lambda: force(store, name="birds", version="1", reason="a test"),
        "rollback": lambda: roll_back(store, name="birds", to="1"),
    }
    return verbs[verb]()


VERBS = ("serve", "score", "predict", "explain", "drift", "promote", "promote --force", "rollback")


# ------------------------------------------------------------------------------------------------------------- no code


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_runs_code_that_was_put_into_a_package(
    store: MlflowStore, folder: Path, tmp_path: Path, verb: str, plant: Plant
) -> None:
    register(store, folder)
    store.client.set_registered_model_alias("birds", "champion", register(store, folder))
    marker = tmp_path / "ran"
    plant(files_of(store), f"import pathlib; pathlib.Path({str(marker)!r}).touch()")
    with pytest.raises(RegistryError, match=r"birds/1 (is not what was registered|was not packaged by Thawline)"):
        use(verb, store, tmp_path)
    assert not marker.exists()


@pytest.mark.xdist_group("postgres")  # on whose worker there is a first process already
def test_what_was_planted_runs_when_mlflow_loads_the_package(
    store: MlflowStore, folder: Path, tmp_path: Path, first_process: Forks
) -> None:
    """Else the test above would show nothing. Each package in a fork of one process, which has MLflow loaded."""
    packages, markers = [], [tmp_path / plant.__name__ for plant in PLANTS]
    for plant, marker in zip(PLANTS, markers, strict=True):
        register(store, folder, name := f"birds-{marker.name}")
        packages.append(files_of(store, name))
        plant(packages[-1], f"import pathlib; pathlib.Path({str(marker)!r}).touch()")
    program = (
        "import os, sys, mlflow.pyfunc\n"
        "for package in sys.argv[1:]:\n"
        "    child = os.fork()\n"
        "    if not child: mlflow.pyfunc.load_model(package)\n"
        "    if not child: os._exit(0)\n"
        "    os.waitpid(child, 0)"
    )
    first_process.run(["-c", program, *map(str, packages)], os.environ, tmp_path)
    assert [marker.name for marker in markers if marker.exists()] == [plant.__name__ for plant in PLANTS]


@pytest.mark.parametrize("plant", [line_in_its_program, line_in_its_modules])
def test_a_package_of_an_earlier_version_answers_without_its_code_and_is_said_to_be_unverified(
    store: MlflowStore, folder: Path, tmp_path: Path, plant: Plant, caplog: pytest.LogCaptureFixture
) -> None:
    register(store, folder)
    old = forget_digests(store)
    (old / "pyfunc.py").rename(old / "servable.py")  # as it was called
    (old / "MLmodel").write_text((old / "MLmodel").read_text().replace("pyfunc.py", "servable.py"))
    marker = tmp_path / "ran"
    (old / "pyfunc.py").write_text("")
    plant(old, f"import pathlib; pathlib.Path({str(marker)!r}).touch()")
    (answer,) = use("predict", store, tmp_path)
    assert answer["class"] == "red"
    assert not marker.exists()
    assert "birds/1 was registered by a version of Thawline that recorded no digests" in caplog.text


def test_a_loader_of_its_own_is_refused_in_a_package_of_an_earlier_version_too(
    store: MlflowStore, folder: Path, tmp_path: Path
) -> None:
    register(store, folder)
    marker = tmp_path / "ran"
    old = forget_digests(store)
    loader_of_its_own(old, f"import pathlib; pathlib.Path({str(marker)!r}).touch()")
    with pytest.raises(RegistryError, match=r"it contains 'code/own_loader.py'.*`mlflow models serve`"):
        use("serve", store, tmp_path)
    (old / "code" / "own_loader.py").unlink()
    with pytest.raises(RegistryError, match="it has its own loader, 'own_loader'"):
        use("serve", store, tmp_path)
    assert not marker.exists()


def test_a_pickled_model_is_refused_by_its_description_before_any_of_it_is_read(
    store: MlflowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", raising=False)
    folder = tmp_path / "model"
    folder.mkdir()

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    (folder / "python_model.pkl").write_bytes(pickle.dumps(Evil()))
    pyfunc = {"loader_module": "mlflow.pyfunc.model", "python_model": "python_model.pkl"}
    signature = {"inputs": json.dumps([{"type": "binary", "name": "image"}])}
    description = {"flavors": {"python_function": pyfunc}, "signature": signature}
    (folder / "MLmodel").write_text(yaml.safe_dump(description))
    store.client.create_registered_model("birds")
    store.client.create_model_version("birds", folder.as_uri())
    for verb in ("predict", "serve"):
        with pytest.raises(RegistryError, match="birds/1 was not packaged by Thawline: it "):
            use(verb, store, tmp_path)
    pyfunc["loader_module"] = "mlflow.pyfunc.loaders.code_model"
    (folder / "MLmodel").write_text(yaml.safe_dump(description))
    with pytest.raises(RegistryError, match=r"it is a pickle \(python_model\.pkl\)"):
        MlflowRegistry(store).input_of(CHAMPION)
    assert not (tmp_path / "ran").exists()


def test_all_verbs_work_where_mlflow_may_run_no_code_of_models(
    store: MlflowStore, folder: Path, other_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As MLflow 3.18 does with ``MLFLOW_ALLOW_MODEL_CODE_EXECUTION=false``: then it loads no pyfunc at all."""

    def refused(*args: object, **kwargs: object) -> None:
        raise AssertionError("Loading PyFunc models is disallowed")

    log_packaged_model(store, trial_run(store), folder, "birds")  # MLflow warns when parts of it are imported
    monkeypatch.setenv("MLFLOW_ALLOW_MODEL_CODE_EXECUTION", "false")
    monkeypatch.setattr("mlflow.pyfunc.load_model", refused)
    for made in (folder, other_folder):
        run_id = trial_run(store)
        uri = log_packaged_model(store, run_id, made, "birds", trained=[(picture("red"), [1.0, 0.0, 0.0])])
        register_challenger(store, name="birds", model_uri=uri, run_id=run_id, study="s")
    store.client.set_registered_model_alias("birds", "champion", "2")
    done = {verb: use(verb, store, tmp_path) for verb in VERBS if verb != "rollback"}
    assert done["promote"].verdict.outcome is not Outcome.REJECT
    assert done["predict"][0]["class"] == done["explain"][0]["predicted"] == "red"
    assert done["score"].bad == 0
    force(store, name="birds", version="2", reason="a test")
    assert use("rollback", store, tmp_path) == ("2", "1")


# ------------------------------------------------------------------------------------------------------------- digests


def test_every_file_is_compared_with_the_digest_that_the_registry_remembers(store: MlflowStore, folder: Path) -> None:
    register(store, folder)
    package = files_of(store)
    registry = MlflowRegistry(store)
    names = [str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()]
    assert len(names) > 8
    for name in names:
        file = package / name
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(RegistryError, match=rf"birds/1 is not what was registered: {name} has changed"):
            registry.load(CHAMPION)
        file.unlink()
        with pytest.raises(RegistryError, match=rf"birds/1 is not what was registered: {name} is missing"):
            registry.load(CHAMPION)
        file.write_bytes(content)
    registry.load(CHAMPION).check()


def test_a_list_of_digests_that_was_rewritten_is_not_the_one_that_was_registered(
    store: MlflowStore, folder: Path, other_folder: Path
) -> None:
    register(store, folder)
    register(store, other_folder)
    ours, theirs = files_of(store), files_of(store, version="2")
    for name in ("artifacts/model.safetensors", "digests.json", "MLmodel", "artifacts/model.json"):
        (ours / name).write_bytes((theirs / name).read_bytes())
    with pytest.raises(RegistryError, match=r"birds/1 is not .*digests\.json has changed.*thawline rollback birds$"):
        MlflowRegistry(store).load(CHAMPION)
    store.client.delete_model_version_tag("birds", "1", DIGEST_TAG)  # whoever writes the registry is trusted
    MlflowRegistry(store).load(CHAMPION)


@pytest.mark.parametrize("name", ["notes.txt", "artifacts/model.pkl", "code/sitecustomize.py", "torch.py"])
def test_a_file_that_thawline_never_writes_is_refused_by_its_name(store: MlflowStore, folder: Path, name: str) -> None:
    register(store, folder)
    (files_of(store) / name).write_text("")
    with pytest.raises(RegistryError, match=f"birds/1 was not packaged by Thawline: it contains '{name}'"):
        MlflowRegistry(store).load(CHAMPION)


def test_a_link_is_no_file_of_a_package(store: MlflowStore, folder: Path) -> None:
    register(store, folder)
    file = forget_digests(store) / "artifacts" / "model.json"
    elsewhere = file.rename(store.home / "model.json")
    file.symlink_to(elsewhere)
    with pytest.raises(RegistryError, match=r"it contains 'artifacts/model\.json'"):
        MlflowRegistry(store).load(CHAMPION)


@pytest.mark.xdist_group("postgres")  # on whose worker there is a first process already
def test_what_mlflow_and_python_leave_in_a_package_that_they_load_where_it_lies_spoils_nothing(
    store: MlflowStore, folder: Path, tmp_path: Path, first_process: Forks
) -> None:
    register(store, folder)
    package = files_of(store)
    program = (
        "import sys, mlflow.pyfunc\n"
        "sys.dont_write_bytecode = False\n"  # whatever the tests run with
        "mlflow.pyfunc.load_model('models:/birds/1')"
    )
    code, _, said = first_process.run(["-c", program], os.environ | {"MLFLOW_TRACKING_URI": store.uri}, tmp_path)
    assert code == 0, said
    assert list(package.rglob("*.pyc"))
    assert (package / "registered_model_meta").is_file()
    MlflowRegistry(store).load(CHAMPION).check()


def test_a_package_of_a_newer_format_is_refused_with_what_to_do(
    store: MlflowStore, folder: Path, tmp_path: Path
) -> None:
    register(store, folder)
    file = forget_digests(store) / "artifacts" / "model.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"format": QUANTISED_FORMAT + 1, "thawline": "9.9"}))
    with pytest.raises(RegistryError, match=r"birds/1 was packaged by Thawline 9\.9 .* pip install --upgrade thawline"):
        use("predict", store, tmp_path)


def test_files_of_a_package_can_be_read_by_whom_the_umask_lets(store: MlflowStore, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        register(store, make_package(tmp_path / "package"))
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in files_of(store).rglob("*") if file.is_file()}
    assert {modes[name] for name in ("model.safetensors", "model.json", "MLmodel", "digests.json")} == {0o640}
    assert all(mode & 0o440 == 0o440 for mode in modes.values()), modes


# -------------------------------------------------------------------------------------------------------- architectures


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ({"library": "os", "builder": "system"}, "from the library 'os'"),
        ({"builder": "resnet18", "kwargs": {"weights": "DEFAULT"}}, "unknown settings: weights"),
        ({"builder": "resnet18", "kwargs": {"num_classes": "3"}}, "from numbers only"),
        ({"builder": "fasterrcnn_resnet50_fpn", "kwargs": {}}, "'fasterrcnn_resnet50_fpn', which .* does not have"),
        ({"library": "timm", "builder": "local-dir:/tmp/x", "kwargs": {}}, "'local-dir:/tmp/x', which .* does not"),
        ({"library": "timm", "builder": "hf-hub:a/b", "kwargs": {}}, "'hf-hub:a/b', which .* does not have"),
        (
            {"library": "timm", "builder": "resnet18", "kwargs": {"checkpoint_path": "x.pth"}},
            "unknown settings: checkpoint_path",
        ),
        (
            {"library": "transformers", "config": {"model_type": "vit", "auto_map": {"AutoModel": "evil.Model"}}},
            "auto_map, which refers to external code or weights",
        ),
        (
            {"library": "transformers", "config": {"model_type": "bert", "attn_implementation": "someone/kernel"}},
            "attention is 'someone/kernel'",
        ),
        (
            {"library": "transformers", "config": {"vision_config": {"_attn_implementation": "someone/kernel"}}},
            "attention is 'someone/kernel'",
        ),
        ({"library": "transformers", "config": {"model_type": "timm_wrapper"}}, "a network of another library"),
        (
            {"library": "entry-point", "package": "os", "object": "os:system", "builder": "ls", "kwargs": {}},
            "needs 'os:system' of the package os, which is not installed",
        ),
    ],
)
def test_an_architecture_in_a_file_names_networks_and_plain_values_alone(
    architecture: dict[str, Any], reason: str
) -> None:
    with pytest.raises(BackboneError, match=reason):
        check_architecture(architecture)


def test_an_architecture_that_would_run_something_else_is_refused_when_its_package_is_loaded(
    store: MlflowStore, folder: Path, tmp_path: Path
) -> None:
    register(store, folder)
    old = forget_digests(store)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    file = old / "artifacts" / "model.json"
    evil = {"library": "entry-point", "package": "evil", "object": "evil:x", "builder": "x", "kwargs": {}}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"architecture": evil}))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        with pytest.raises(RegistryError, match=r"birds/1 cannot be loaded: Its network needs 'evil:x'"):
            use("predict", store, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_what_mlflow_loads_of_a_package_answers_as_thawline_does(store: MlflowStore, folder: Path) -> None:
    import pandas as pd

    register(store, folder)
    (ours,) = MlflowRegistry(store).load(CHAMPION).predict([picture("blue")])
    theirs = load_pyfunc(files_of(store)).predict(pd.DataFrame({"image": [picture("blue")]}))
    assert not isinstance(ours, str)
    assert theirs["probabilities"][0] == ours.probabilities


@pytest.mark.parametrize(
    "architecture",
    [
        {"library": "timm", "builder": "resnet50.a1_in1k", "kwargs": {"num_classes": 3}},
        {"library": "torchvision", "builder": "maxvit_t", "kwargs": {"num_classes": 3, "input_size": [64, 64]}},
        {
            "library": "torchvision",
            "builder": "inception_v3",
            "kwargs": {"num_classes": 3, "transform_input": True, "aux_logits": False, "init_weights": False},
        },
        {
            "library": "transformers",
            "task": "image-classification",
            "config": {"model_type": "vit", "use_pretrained_backbone": False, "attn_implementation": "sdpa"},
            "kwargs": {"is_bgr": True},
            "num_classes": 3,
        },
    ],
)
def test_an_architecture_that_thawline_writes_is_let_through(architecture: dict[str, Any]) -> None:
    check_architecture(architecture)
