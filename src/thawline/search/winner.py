"""From the best trial to a registered model: restore, calibrate, package, judge, and promote if it is better."""

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from thawline import backbones
from thawline.config import DataConfig
from thawline.data import Manifest, Problem, Row, files_of, markdown_text, printable, texts_of
from thawline.exceptions import ExportError, StudyError, TrackingError
from thawline.registry import (
    Baselines,
    LabelledData,
    MlflowRegistry,
    Outcome,
    PromotionOutcome,
    calibrate,
    fit_prediction_sets,
    graphs_of,
    graphs_tried,
    judge,
    log_packaged_model,
    majority_class,
    package,
    register_challenger,
    settle,
)
from thawline.search.events import Note, Phase, emit
from thawline.search.leaderboard import leaderboard_rows
from thawline.search.prepare import Prepared, image_preprocessing, labelled, preprocessing_for
from thawline.search.records import TrialRecord
from thawline.search.reference import make_reference
from thawline.search.soup import SOUP_TAG, kept_soup, make_soup
from thawline.search.spec import StudyRun, build_backbone
from thawline.search.study import Study
from thawline.tracking import TrackingReport, find_trial_run, replay_unsent, unsent_records
from thawline.training import load_checkpoint, load_model, open_inputs, predict, runtime_for

__all__ = ["SearchOutcome", "conclude", "further_data", "judge_best", "restore", "test_split"]

_COMPARED = 16
"""Number of images or texts on which the package is compared with the trained network."""


@dataclass(frozen=True)
class SearchOutcome:
    """The result of a search."""

    study: str
    metric: str
    records: tuple[TrialRecord, ...]
    """All trials, best first."""
    best_trial: int
    promotion: PromotionOutcome
    bad_files: tuple[Problem, ...]
    unsent: int
    """Number of records that the tracking server has not received; kept in Thawline's home, the next search sends
    them."""
    unkept: tuple[str, ...]
    """What was neither stored on disk nor recorded, and why: one line per affected trial."""
    run_id: str
    """Id of MLflow's parent run."""
    soup: str = ""
    """A description of the soup's result; empty if none was tried."""
    report: Path | None = None
    """The report; ``None`` if it was not requested, or could not be written."""
    quantised: PromotionOutcome | None = None
    """The outcome of the int8 copy; ``None`` if it was not requested or not made."""

    @property
    def model(self) -> str:
        """Name of the registered model."""
        return self.promotion.name

    @property
    def promoted(self) -> bool:
        """Whether the best trial became the champion."""
        return self.promotion.verdict.outcome is Outcome.PROMOTE

    @property
    def champion_version(self) -> str | None:
        """The current champion."""
        if self.quantised is not None and self.quantised.verdict.outcome is Outcome.PROMOTE:
            return self.quantised.version
        return self.promotion.version if self.promoted else self.promotion.champion_version

    @property
    def everything_kept(self) -> bool:
        """Whether all records arrived and all checkpoints are on disk."""
        return self.unsent == 0 and not self.unkept

    def after_closing(self, report: TrackingReport) -> "SearchOutcome":
        """The same, updated with the delivery of the study's own records."""
        return replace(self, unsent=self.unsent + report.unsent)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """The result of a search in sentences."""
        lines = self._result()
        if self.bad_files:
            lines.append(f"Skipped {len(self.bad_files)} unreadable:")
            lines += [f"  {printable(problem.path)}: {problem.reason}" for problem in self.bad_files]
        if self.unsent:
            lines.append(
                f"{self.unsent} records did not reach the tracking server. They are stored; the next search sends them."
            )
        lines += [f"Not stored: {sentence}" for sentence in self.unkept]
        if self.report is not None:
            here = self.report.is_relative_to(Path.cwd())
            lines.append(f"Report: {self.report.relative_to(Path.cwd()) if here else self.report}")
        return lines

    def _result(self) -> list[str]:
        """The best trial, its metrics beside the baselines, and the promotion decision."""
        promotion = self.promotion
        metrics, majority = promotion.challenger.metrics, promotion.majority
        beside = f"; majority class {majority.metrics['accuracy']:.4f}" if majority else ""
        best = next(record for record in self.records if record.number == self.best_trial)
        decision = "promoted to champion" if self.promoted else "not promoted"
        several = len({record.hyperparameters.backbone for record in self.records}) > 1
        of_backbone = f" of {backbones.label(best.hyperparameters.backbone)}" if several else ""
        point = best.hyperparameters
        trained = f"freeze depth {point.freeze_depth}{of_backbone}, learning rate {point.learning_rate:.2e}"
        how = f"the linear probe{of_backbone}" if point.is_probe else trained
        lines = [
            f"Best trial: {best.number}, {how}",
            *([promotion.baselines.sentence()] if promotion.baselines else []),
            f"Test accuracy: {metrics['accuracy']:.4f} "
            f"(balanced {metrics['balanced_accuracy']:.4f}, macro F1 {metrics['macro_f1']:.4f}{beside})",
            f"Model: {promotion.name} version {promotion.version}, {decision}: {promotion.verdict.reason}",
        ]
        if self.quantised is not None:
            verdict = self.quantised.verdict
            decision = "promoted to champion" if verdict.outcome is Outcome.PROMOTE else "not promoted"
            lines.append(f"In int8: {promotion.name} version {self.quantised.version}, {decision}: {verdict.reason}")
        if self.soup:
            lines.append(f"Soup: {self.soup}")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        promotion = self.promotion
        return {
            "study": self.study,
            "run_id": self.run_id,
            "metric": self.metric,
            "best_trial": self.best_trial,
            "trials": leaderboard_rows(self.records),
            "model": promotion.name,
            "version": promotion.version,
            "promoted": self.promoted,
            "decision": promotion.verdict.outcome.value,
            "reason": promotion.verdict.reason,
            "test": promotion.challenger.metrics,
            "test_recall": promotion.challenger.recalls,
            "baselines": {
                "validation": promotion.baselines.as_dict() if promotion.baselines else None,
                "test": {"majority_class": promotion.majority.metrics if promotion.majority else None},
            },
            "champion_version": self.champion_version,
            "quantised": self.quantised.as_dict() if self.quantised else None,
            "bad_files": {problem.path: problem.reason for problem in self.bad_files},
            "unsent": self.unsent,
            "unkept": list(self.unkept),
            "soup": self.soup,
            "report": str(self.report) if self.report else None,
        }

    def as_markdown(self) -> str:
        """The decision as markdown."""
        rows = [f"| {name} | {value:.4f} |" for name, value in self.promotion.challenger.metrics.items()]
        table = "\n".join(["| test metric | value |", "|---|---|", *rows])
        return "\n\n".join(
            [f"# {self.model} version {self.promotion.version}", *map(markdown_text, self._result()), table]
        )


def judge_best(prepared: Prepared, run: StudyRun) -> PromotionOutcome:
    """Register the best trial as challenger, and judge it against the champion. Idempotent: registers nothing twice.

    Raises:
        StudyError: if no trial was completed, with the reasons of those that failed.
        RegistryError: if the model cannot be packaged, registered or scored.
    """
    study = Study.load(run.home, run.study, prepared.config)
    best = _best(study)
    run_id = _run_of(best, run)
    registry = MlflowRegistry(run.store)
    model_uri, tags = "", _tags(prepared, best)
    if registry.find_version(prepared.model, study=study.name, run_id=run_id) is None:
        emit(Phase(f"packaging trial {best.number} as model {prepared.model}"))
        tags |= _soup_tags(prepared, study, run.home)
        model_uri = _package(prepared, best, tags, run_id, run)
    version = register_challenger(
        run.store,
        name=prepared.model,
        model_uri=model_uri,
        run_id=run_id,
        study=study.name,
        tags=tags,
    )
    test = test_split(prepared.manifest)
    emit(Phase(f"scoring on {len(test.labels)} test {prepared.manifest.kind}, with the champion"))
    promotion = prepared.config.promotion
    return judge(
        run.store,
        name=prepared.model,
        version=version,
        test=test,
        rules=promotion,
        further=further_data(promotion.further, prepared.config.data),
        baselines=_baselines(prepared, study),
    )


def conclude(prepared: Prepared, study: Study, run: StudyRun, judged: PromotionOutcome) -> SearchOutcome:
    """Move the champion's alias if the verdict is to promote, and return the outcome of the search.

    Raises:
        RegistryError: if another version became champion meanwhile.
    """
    settle(run.store, judged)
    best = _best(study)
    records = tuple(study.records())
    return SearchOutcome(
        study=study.name,
        metric=prepared.config.study.metric,
        records=records,
        best_trial=best.number,
        promotion=judged,
        bad_files=prepared.manifest.bad,
        unsent=unsent_records(run.store, study.name),
        unkept=tuple(
            f"trial {record.number}: {record.result.unkept}"
            for record in records
            if record.result and record.result.unkept
        ),
        run_id=run.run_id,
        soup=_soup_of(prepared, judged, run),
    )


def test_split(manifest: Manifest) -> LabelledData:
    """The held-out images or texts."""
    rows = manifest.of("test")
    return LabelledData(
        name="test",
        items=_items(manifest, rows),
        labels=[manifest.classes[row.label] for row in rows],
        dataset=(manifest.name, manifest.digest),
    )


def _items(manifest: Manifest, rows: Sequence[Row]) -> Sequence[Path] | Sequence[str]:
    """Image files, or texts; checks that the data have not changed since training."""
    return texts_of(manifest, rows) if manifest.kind == "texts" else files_of(manifest, rows)


def further_data(paths: Sequence[Path], columns: DataConfig) -> list[LabelledData]:
    """Additional test data: folders of labelled images, or tables of labelled texts with these columns.

    Raises:
        DataError: if one does not exist or is empty.
    """
    return [LabelledData(path.name, *labelled(path, columns)) for path in paths]


def restore(prepared: Prepared, record: TrialRecord, home: Path) -> backbones.Backbone:
    """The backbone of a trial with the weights of its best checkpoint, or of the winning soup."""
    result = record.result
    if result is None or result.checkpoint is None:
        raise StudyError(f"Trial {record.number} left no checkpoint in {home}.")
    if not (home / result.checkpoint).exists():
        raise StudyError(
            f"The checkpoint of trial {record.number} is not in {home}. If a search with another home trained it, run "
            "the same command there, or use one THAWLINE_HOME for all."
        )
    backbone = build_backbone(prepared.config, record.hyperparameters.backbone, len(prepared.manifest.classes))
    soup = kept_soup(prepared.study, record.number, home) if prepared.config.study.soup else None
    load_model(soup or load_checkpoint(home / result.checkpoint), backbone)
    backbone.module.eval()
    return backbone


def _best(study: Study) -> TrialRecord:
    best = study.best()
    if best is None:
        reasons = {record.result.reason for record in study.records() if record.result and record.result.reason}
        listed = "".join(f"\n  {reason}" for reason in sorted(reasons))
        raise StudyError(f"No trial of the study {study.name!r} was completed, so there is no model.{listed}")
    return best


def _run_of(best: TrialRecord, run: StudyRun) -> str:
    """The trial's MLflow run, which is missing if the server was unreachable while the trial ran."""
    if best.result is not None and best.result.run_id is not None:
        return best.result.run_id
    replay_unsent(run.store)
    reason = "the tracking server was unreachable"
    try:
        run_id = find_trial_run(run.store, parent_run_id=run.run_id, number=best.number)
        if run_id is not None:
            return run_id
    except TrackingError as error:
        reason = str(error)
    raise StudyError(
        f"The best trial, {best.number}, has no MLflow run: {reason.rstrip('.')}. "
        "Run the same command again when it is back: nothing is trained twice."
    )


def _soup_tags(prepared: Prepared, study: Study, home: Path) -> dict[str, str]:
    """Try a soup if requested; its result is recorded with the version."""
    if not prepared.config.study.soup:
        return {}
    soup = make_soup(prepared, study.records(), home)
    tags = (
        soup.tags
        if soup is not None
        else {SOUP_TAG: "not tried: this home has no checkpoints of two complete trials of the best trial's backbone"}
    )
    emit(Note(f"soup: {tags[SOUP_TAG]}"))
    return tags


def _soup_of(prepared: Prepared, judged: PromotionOutcome, run: StudyRun) -> str:
    """The recorded result of the soup."""
    if not prepared.config.study.soup:
        return ""
    return MlflowRegistry(run.store).tags(judged.name, judged.version).get(SOUP_TAG, "")


def _package(prepared: Prepared, best: TrialRecord, tags: dict[str, str], run_id: str, run: StudyRun) -> str:
    backbone = restore(prepared, best, run.home)
    config, manifest, name = prepared.config, prepared.manifest, best.hyperparameters.backbone
    # The pretrained weights' statistics, as in training; `restore` built the network without them.
    preprocessing = preprocessing_for(config, name)
    # In the precision of serving, regardless of the precision of training.
    runtime = runtime_for(config.train.model_copy(update={"precision": "fp32"}))
    inputs = open_inputs(prepared.inputs[name], "validation", image_preprocessing(config, name), runtime)
    logits = predict(backbone, inputs, runtime, config.train.batch_size).double()
    calibration = calibrate(logits.numpy(), inputs.labels)
    probabilities = (logits / calibration.temperature).softmax(1)
    coverage = config.promotion.coverage
    sets = None if coverage is None else fit_prediction_sets(probabilities.numpy(), inputs.labels, coverage)
    unknown = config.promotion.unknown
    example, *compared = map(_sent, _items(manifest, [manifest.of("train")[0], *manifest.of("validation")[:_COMPARED]]))
    sample = list(zip(compared, probabilities.tolist(), strict=False))
    with tempfile.TemporaryDirectory(prefix="thawline-") as folder:
        reference = (
            make_reference(
                backbone,
                prepared.inputs[name],
                image_preprocessing(config, name),
                runtime,
                false_alarms=unknown,
                batch_size=config.train.batch_size,
                folder=Path(folder),
            )
            if unknown is not None
            else None
        )
        write = partial(
            package,
            Path(folder),
            state_dict=backbone.module.state_dict(),
            architecture=backbone.architecture,
            classes=manifest.classes,
            preprocessing=preprocessing,
            example=example,
            max_pixels=config.data.max_pixels,
            calibration=calibration,
            prediction_sets=sets,
            reference=reference,
            network=backbone.module.cpu(),
            sample=sample,
            text_column=manifest.table.text_name if manifest.table is not None else None,
            extra={**tags, "train_classes": _train_classes(manifest)},
        )
        required, tried = graphs_of(config.promotion.exports), graphs_tried(config.promotion.exports, manifest.kind)
        try:
            write(exports=tried)
        except ExportError as error:
            if tried == required:
                raise
            emit(Note(f"packaged without model.onnx, so PyTorch computes it: {error}", "warning"))
            write(exports=required)
        return log_packaged_model(
            run.store,
            run_id,
            Path(folder),
            prepared.model,
            trained=sample,
        )


def _sent(item: Path | str) -> bytes | str:
    """A client's input: an encoded image, or a text."""
    return item.read_bytes() if isinstance(item, Path) else item


def _baselines(prepared: Prepared, study: Study) -> Baselines:
    """Baselines for the best trial: the majority class, and the best linear probe."""
    metric, manifest = prepared.config.study.metric, prepared.manifest
    labels = [manifest.classes[row.label] for row in manifest.of("validation")]
    majority = majority_class(_train_classes(manifest), labels, kind=manifest.kind)
    values = {
        record.number: record.value
        for record in study.records()
        if record.state == "complete" and record.value is not None
    }
    probes = [record.number for record in study.records() if record.hyperparameters.is_probe]
    best = _best(study).number
    return Baselines(
        metric,
        best_trial=values[best],
        majority_class=majority.metrics[metric],
        linear_probe=next((values[number] for number in probes if number in values), None),
        best_is_probe=best in probes,
    )


def _train_classes(manifest: Manifest) -> dict[str, int]:
    """Number of images or texts per class in the training split."""
    return dict(Counter(manifest.classes[row.label] for row in manifest.of("train")))


def _tags(prepared: Prepared, best: TrialRecord) -> dict[str, str]:
    return {
        "thawline.trial": str(best.number),
        "thawline.backbone": best.hyperparameters.backbone,
        "thawline.freeze_depth": str(best.hyperparameters.freeze_depth),
        "thawline.policy": best.hyperparameters.policy,
        "thawline.learning_rate": f"{best.hyperparameters.learning_rate:.6g}",
        "thawline.data_digest": prepared.manifest.digest,
    }
