"""Weights & Biases: a run per trial, and a group per study."""

import hashlib
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from thawline.config import TrackingConfig, without_password
from thawline.exceptions import ConfigError
from thawline.tracking._base import RunStatus, TrackerRun, TrackingReport
from thawline.tracking._errors import first_line
from thawline.tracking.media import Embedding, Figure, Graph, Histogram, Image, Media, Mesh, Predictions, Table
from thawline.tracking.mlflow import metric_key

if TYPE_CHECKING:
    import wandb

__all__ = ["WandbTracker", "check_wandb", "is_logged_in"]

_ANSWER_SECONDS = 10.0
"""Time limit for a response of W&B's server at the start of a run, which leaves time to record on disk instead."""
_FINISH_SECONDS = 15.0
"""How long the end of a run, and of its process, may wait for uploads."""
_EXIT_CODES: dict[RunStatus, int] = {"FINISHED": 0, "FAILED": 1, "KILLED": 255}
"""W&B's exit code of a run stopped on purpose is that of Ctrl-C."""
_BY_STEP = "gradient_step/"
"""Metrics whose step is an optimizer step instead of an epoch."""


def check_wandb(config: TrackingConfig) -> None:
    """Refuse W&B if it cannot be used, without contacting a server.

    Raises:
        ConfigError: if it is not installed, or online without a login.
    """
    if config.wandb == "off":
        return
    if find_spec("wandb") is None:
        raise ConfigError(
            f"tracking.wandb={config.wandb} needs the package wandb: pip install 'thawline[wandb]', or remove "
            "tracking.wandb."
        )
    if config.wandb == "online" and not is_logged_in():
        raise ConfigError(
            "tracking.wandb=online needs a login: run `wandb login`, set WANDB_API_KEY, or record on this machine with "
            "tracking.wandb=offline and send it later with `wandb sync`."
        )


def is_logged_in() -> bool:
    """Whether W&B finds an API key or an identity token, in the environment, in .netrc or in its settings.

    Only the server can tell whether it is still valid.
    """
    from wandb.errors import AuthenticationError
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    host = wandb_setup.singleton().settings.base_url
    try:
        found = wbauth.authenticate_session(host=host, source="thawline", prompt=False, update_session=False)
    except AuthenticationError:  # an invalid key
        return False
    return found is not None


class WandbTracker:
    """Writes one trial, or the study itself, as a W&B run, online or to ``<home>/wandb`` for ``wandb sync``.

    W&B sends from its own process, which ends with its parent. Charts use ``epoch`` as their x-axis, those of single
    optimizer steps ``global_step``; W&B's own step only counts calls. W&B records code and git according to its
    settings, but neither command nor machine if the command contains a password. Stopping a run on its web page has no
    effect: Thawline controls its runs.
    """

    def __init__(self, run: "wandb.Run", *, step_name: str, problem: str | None = None) -> None:
        """
        Args:
            run: a started run.
            step_name: x-axis of charts, such as ``epoch``.
            problem: a problem at its start, for the report.
        """
        self._run = run
        self._step_name = step_name
        self._problem = problem
        self._report: TrackingReport | None = None
        self._families: set[str] = set()
        """Families of metrics whose step W&B knows."""
        self._logged: dict[tuple[str, int], int | None] = {}
        """Timestamps of values by name and step: W&B would treat a repeated value as a new one."""

    @classmethod
    def for_run(
        cls, run: TrackerRun, config: TrackingConfig, *, answer_seconds: float = _ANSWER_SECONDS
    ) -> "WandbTracker":
        """Start or resume the run of a trial or of the study.

        A resumed trial resumes its run. Offline, W&B creates a second folder with the same run id, and ``wandb sync``
        sends them in order.

        If the server does not respond in time, the run is recorded offline in ``<home>/wandb``, with a note in the
        report.

        Args:
            run: run of a trial or of the study.
            config: project, entity and mode.
            answer_seconds: time limit for the server's response.

        Raises:
            wandb.Error: if W&B cannot write offline either.
        """
        import wandb

        step_name, run_id = "trials" if run.trial is None else "epoch", _run_id(run)
        try:
            return cls(_start(run, config, run_id, config.wandb, answer_seconds), step_name=step_name)
        except wandb.Error as error:
            if config.wandb != "online":
                raise
            # The failed attempt has used the id, which W&B's process does not release.
            kept = _start(run, config, f"{run_id}-offline", "offline", answer_seconds)
            problem = f"W&B: {first_line(error)}; `wandb sync {kept.settings.sync_dir}` sends the run"
            return cls(kept, step_name=step_name, problem=problem)

    @property
    def folder(self) -> Path:
        """W&B's folder of this run, for ``wandb sync``."""
        return Path(self._run.settings.sync_dir)

    def log_params(self, params: Mapping[str, str]) -> None:
        """Record parameters as the run's configuration, with numbers as numbers."""
        with self._recording():
            values = {name: _number(value) for name, value in params.items()}
            self._run.config.update(values, allow_val_change=True)  # type: ignore[no-untyped-call]

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Record tags in the run's summary; MLflow's note becomes W&B's."""
        with self._recording():
            for name, value in tags.items():
                if name == "mlflow.note.content":
                    self._run.notes = value
                else:
                    self._run.summary[name] = value

    def log_metrics(self, metrics: Mapping[str, float], *, step: int, timestamp_ms: int | None = None) -> None:
        """See :class:`Tracker`."""
        with self._recording():
            charts: dict[str, dict[str, float]] = defaultdict(dict)
            for name, value in metrics.items():
                if timestamp_ms is None or self._logged.get((name, step)) != timestamp_ms:
                    charts[self._step_of(name)][name] = float(value)
                    self._logged[name, step] = timestamp_ms
            when = {} if timestamp_ms is None else {"_timestamp": timestamp_ms / 1000}
            for step_name, values in charts.items():
                self._run.log({step_name: step, **values, **when})

    def log_media(self, name: str, media: Media, *, step: int) -> None:
        """See :class:`Tracker`. Graphs are ignored."""
        with self._recording():
            values = _media(_media_name(name), media)
            if values:
                self._run.log({self._step_of(name): step, **values})

    def log_text(self, text: str, file: str) -> None:
        """Record a text as a file of the run."""
        with self._recording():
            target = self._place(file)
            target.write_text(text, encoding="utf-8")
            self._save(target)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Record a checkpoint as a model, which is sent without a copy; anything else is copied."""
        with self._recording():
            if path.suffix == ".safetensors":
                self._log_model(path)
                return
            files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
            for file in files:
                target = self._place(str(PurePosixPath(folder) / file.relative_to(path.parent).as_posix()))
                shutil.copyfile(file, target)
                self._save(target)

    def close(self, status: RunStatus) -> TrackingReport:
        """See :class:`Tracker`. Records not sent within 15 s stay in :attr:`folder` for ``wandb sync``."""
        if self._report is None:
            try:
                self._run.finish(exit_code=_EXIT_CODES[status])
            except Exception as error:
                reason = "some records were not sent in time" if isinstance(error, TimeoutError) else first_line(error)
                self._problem = self._problem or f"W&B: {reason}; `wandb sync {self.folder}` sends the rest"
            self._report = TrackingReport(problem=self._problem)
        return self._report

    def _step_of(self, name: str) -> str:
        """X-axis of a metric's chart, declared to W&B at the first metric of a family such as ``val/``."""
        step_name = "global_step" if name.startswith(_BY_STEP) else self._step_name
        family = re.sub("/.*", "/*", name)
        if family not in self._families:
            self._families.add(family)
            if "*" not in family.removesuffix("/*"):  # W&B only allows one at the end
                self._run.define_metric(family, step_metric=step_name)
        return step_name

    @contextmanager
    def _recording(self) -> Iterator[None]:
        """Remember any failure for the report; training continues."""
        if self._report is not None:
            raise RuntimeError("This tracker is closed; nothing more can be logged.")
        try:
            yield
        except Exception as error:
            self._problem = self._problem or f"W&B: {first_line(error)}"

    def _place(self, file: str) -> Path:
        """Path of a file, in a separate folder, since W&B has a ``config.yaml`` too."""
        target = Path(self._run.dir) / "thawline" / file
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def _save(self, path: Path) -> None:
        self._run.save(path, base_path=self._run.dir, policy="now", glob=False)

    def _log_model(self, path: Path) -> None:
        import wandb

        artifact = wandb.Artifact(f"checkpoint-{self._run.id}", type="model")
        artifact.add_file(str(path), policy="immutable", skip_cache=True)  # no second copy in W&B's cache
        self._run.log_artifact(artifact)


def _start(run: TrackerRun, config: TrackingConfig, run_id: str, mode: str, answer_seconds: float) -> "wandb.Run":
    import wandb

    run.home.mkdir(parents=True, exist_ok=True)
    # W&B can only omit the command together with the machine.
    secret = any(without_password(argument) != argument for argument in sys.argv)
    return wandb.init(
        mode=mode,  # type: ignore[arg-type]  # "online" or "offline"
        project=config.wandb_project,
        entity=config.wandb_entity,
        group=run.study,
        job_type="study" if run.trial is None else "trial",
        name=run.run_name,
        id=run_id,
        resume="allow",
        reinit="create_new",  # heads trained together have one run each
        settings=wandb.Settings(
            root_dir=str(run.home),
            silent=True,
            console="off",
            label_disable=True,
            x_disable_stats=not config.system_metrics or run.trial is None,
            init_timeout=answer_seconds,
            finish_timeout=_FINISH_SECONDS,
            finish_timeout_raises=True,
            stop_fn=_go_on,
            **({"x_disable_meta": True} if secret else {}),
        ),
    )


def _run_id(run: TrackerRun) -> str:
    """A run id that is stable for a resumed trial, and unique in the project."""
    return hashlib.sha256(f"{run.study_run_id} {run.trial}".encode()).hexdigest()[:16]


def _media_name(name: str) -> str:
    """A valid file name of at most 60 characters, which W&B extends to at most 128."""
    key = metric_key(name)
    return key if len(key) <= 60 else f"{key[:51]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _go_on() -> None:
    """Replaces the SIGINT that W&B sends its process when a run is stopped on the web."""


def _number(text: str) -> str | int | float:
    """Convert text with a finite number to a number, so that W&B draws axes."""
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        return value if np.isfinite(value) else text
    return text


def _media(name: str, media: Media) -> dict[str, Any]:
    """W&B's representation of media, by name."""
    import wandb

    rows: list[Iterable[Any]]
    match media:
        case Image(pixels, caption):
            return {name: wandb.Image(pixels, caption=caption or None)}
        case Histogram(counts, edges):
            return {name: wandb.Histogram(np_histogram=(counts, edges))}
        case Table(columns):
            rows = [list(row) for row in zip(*columns.values(), strict=True)]
            return {name: wandb.Table(columns=list(columns), data=rows, allow_mixed_types=True)}
        case Figure(svg):
            return {name: wandb.Html(svg, inject=False, data_is_not_path=True)}
        case Predictions():
            return _curves(name, media)
        case Embedding():
            return {name: _points(media)}
        case Mesh():
            return {name: wandb.Object3D(StringIO(_wavefront(media)), file_type="obj")}
        case Graph():
            return {}


def _points(embedding: Embedding) -> "wandb.Table":
    """Points as rows with content, class and coordinates, for W&B's projection."""
    import wandb

    shown: dict[str, Iterable[Any]] = {}
    if embedding.thumbnails is not None:
        shown["picture"] = map(wandb.Image, embedding.thumbnails)
    if embedding.texts is not None:
        shown["text"] = embedding.texts
    shown["class"] = embedding.labels
    dimensions = {f"x{i}": map(float, column) for i, column in enumerate(embedding.vectors.T)}
    columns = shown | dimensions
    return wandb.Table(columns=list(columns), data=[list(row) for row in zip(*columns.values(), strict=True)])


def _curves(name: str, predictions: Predictions) -> dict[str, Any]:
    """Precision-recall, ROC and confusion matrix.

    W&B maps the n-th occurring class to the n-th column, which is wrong if a class does not occur.
    """
    import wandb

    present, labels = np.unique(predictions.labels, return_inverse=True)
    confusion = wandb.plot.confusion_matrix(
        y_true=predictions.labels.tolist(),
        probs=predictions.probabilities.tolist(),
        class_names=list(predictions.classes),
    )
    if len(present) < 2:  # a curve needs a second class
        return {f"{name}/confusion": confusion}
    of_present = (
        labels.tolist(),
        predictions.probabilities[:, present].tolist(),
        [predictions.classes[i] for i in present],
    )
    return {
        f"{name}/confusion": confusion,
        f"{name}/precision_recall": wandb.plot.pr_curve(*of_present),
        f"{name}/roc": wandb.plot.roc_curve(*of_present),
    }


def _wavefront(mesh: Mesh) -> str:
    """A mesh as Wavefront OBJ, with colours after the coordinates, as supported by most viewers."""
    lines = [
        f"v {x:g} {y:g} {z:g} {r:.3f} {g:.3f} {b:.3f}"
        for (x, y, z), (r, g, b) in zip(mesh.vertices, mesh.colours / 255, strict=True)
    ]
    lines += ["f " + " ".join(str(corner + 1) for corner in face) for face in mesh.faces]
    return "\n".join(lines) + "\n"
