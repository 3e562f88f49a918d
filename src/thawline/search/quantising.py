"""Quantise a new champion to int8, register the copy as its own version, and judge it against the original."""

import tempfile
from pathlib import Path

from thawline.data import DecodedImages, files_of
from thawline.exceptions import RegistryError
from thawline.registry import (
    MlflowRegistry,
    ModelName,
    PromotionOutcome,
    judge,
    log_packaged_model,
    quantise,
    register_challenger,
)
from thawline.search.events import Note, Phase, emit
from thawline.search.prepare import Prepared
from thawline.search.spec import StudyRun
from thawline.search.winner import further_data, test_split

__all__ = ["judge_quantised"]

_COMPARED = 16
"""Number of images on which the package is compared with the quantised graph."""
_ORIGIN = ("trial", "backbone", "freeze_depth", "policy", "learning_rate", "data_digest")
"""Tags on the origin of a version, which apply to its copy too."""


def judge_quantised(prepared: Prepared, run: StudyRun, promoted: PromotionOutcome) -> PromotionOutcome | None:
    """Quantise the best trial's version if it is champion now, and judge the copy. Idempotent: registers nothing twice.

    Args:
        prepared: the search.
        run: the study's run.
        promoted: the settled outcome of that version.

    Returns:
        The verdict on the copy; ``None``, with a note, if the version is not champion or cannot be quantised.

    Raises:
        RegistryError: if the copy cannot be registered or scored.
    """
    registry, original = MlflowRegistry(run.store), ModelName(promoted.name, None, promoted.version)
    found = registry.find_version(
        original.name, study=prepared.study, run_id=promoted.run_id, quantised_from=promoted.version
    )
    if registry.champion(original.name) not in (promoted.version, found or promoted.version):
        emit(Note(f"int8: {original} is not the champion, so no copy of it is judged"))
        return None
    model_uri, known = "", registry.tags(original.name, promoted.version)
    if found is None:
        emit(Phase(f"quantising {original} to int8"))
        try:
            model_uri = _package(prepared, run, original, promoted.run_id)
        except RegistryError as error:
            emit(Note(f"int8: {error}", "warning"))
            return None
    version = register_challenger(
        run.store,
        name=original.name,
        model_uri=model_uri,
        run_id=promoted.run_id,
        study=prepared.study,
        tags={key: known[key] for key in (f"thawline.{name}" for name in _ORIGIN) if key in known},
        quantised_from=promoted.version,
    )
    test, promotion = test_split(prepared.manifest), prepared.config.promotion
    emit(Phase(f"scoring {original.name}/{version}, in int8, on {len(test.labels)} test images, and {original}"))
    return judge(
        run.store,
        name=original.name,
        version=version,
        test=test,
        rules=promotion,
        further=further_data(promotion.further, prepared.config.data),
    )


def _package(prepared: Prepared, run: StudyRun, original: ModelName, run_id: str) -> str:
    """Quantise on the validation images, and log the package as another output of the trial's run."""
    registry, manifest = MlflowRegistry(run.store), prepared.manifest
    model = registry.load(original, device="cpu")
    backbone = registry.tags(original.name, str(original.version))["thawline.backbone"]
    images, labels = DecodedImages.open(prepared.inputs[backbone]).split("validation")
    compared = [file.read_bytes() for file in files_of(manifest, manifest.of("validation")[:_COMPARED])]
    with registry.artifacts(original) as files, tempfile.TemporaryDirectory(prefix="thawline-") as folder:
        answers = quantise(Path(folder), files, model, images, labels)
        trained = list(zip(compared, answers.tolist(), strict=False))
        return log_packaged_model(run.store, run_id, Path(folder), f"{original.name}-int8", trained=trained)
