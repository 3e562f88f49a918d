"""What of a registered version is served."""

from pathlib import Path

from colours import CLASSES, make_package, picture, trial_run

from thawline.registry import MlflowRegistry, ModelName, log_packaged_model
from thawline.serving.served import ServedModel
from thawline.tracking import MlflowStore


def test_what_is_served_is_answered_as_the_package_itself_does(store: MlflowStore, tmp_path: Path) -> None:
    uri = log_packaged_model(store, trial_run(store), make_package(tmp_path / "package"), "birds")
    MlflowRegistry(store).register("birds", uri, run_id=trial_run(store), study="s", tags={})
    packaged = MlflowRegistry(store).load(ModelName("birds", None, "1"))
    served = ServedModel(packaged, "cpu")
    row = served.row(served.answers([served.prepare(picture("green"))])[0])
    (answer,) = packaged.predict([picture("green")])
    assert not isinstance(answer, str)
    assert row == {
        "class": answer.class_name,
        "probability": answer.probability,
        "probabilities": dict(answer.probabilities),
    }
    assert (row["class"], tuple(row["probabilities"])) == ("green", CLASSES)
