"""What of a registered version is served."""

from pathlib import Path

import pytest
from colours import CLASSES, folder_of, make_package, picture, trial_run

from thawline.exceptions import RegistryError
from thawline.registry import MlflowRegistry, ModelName, log_packaged_model
from thawline.serving.served import ServedModel
from thawline.tracking import MlflowStore


def test_what_is_served_is_answered_as_the_package_itself_does(store: MlflowStore, tmp_path: Path) -> None:
    uri = log_packaged_model(store, trial_run(store), make_package(tmp_path / "package"), "birds")
    MlflowRegistry(store).register("birds", uri, run_id=trial_run(store), study="s", tags={})
    packaged = MlflowRegistry(store).load(ModelName("birds", None, "1"))
    served = ServedModel(packaged, "cpu")
    row = served.row(served.probabilities([served.prepare(picture("green"))])[0])
    (answer,) = packaged.predict([picture("green")])
    assert not isinstance(answer, str)
    assert row == {
        "class": answer.class_name,
        "probability": answer.probability,
        "probabilities": dict(answer.probabilities),
    }
    assert (row["class"], tuple(row["probabilities"])) == ("green", CLASSES)


def test_a_package_of_an_earlier_version_is_refused_before_it_serves_with_what_to_do(
    store: MlflowStore, tmp_path: Path
) -> None:
    uri = log_packaged_model(store, trial_run(store), make_package(tmp_path / "package"), "birds")
    MlflowRegistry(store).register("birds", uri, run_id=trial_run(store), study="s", tags={})
    servable = folder_of(store, uri) / "servable.py"
    servable.write_text(servable.read_text().replace("def prepare(self", "def pixels(self"))  # as it was called
    packaged = MlflowRegistry(store).load(ModelName("birds", None, "1"))
    with pytest.raises(RegistryError, match=r"birds/1 was not packaged .* earlier version .*`mlflow models serve`"):
        ServedModel(packaged, "cpu")
