"""The linear probes of a study: of each backbone's head, and of the features after each stored layer group.

They are fitted once, as soon as the activations are stored, and kept in a file in the study's folder. Trial 0 is the
probe itself; other trials start from its head.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from thawline import backbones
from thawline.activations import StoredSplits
from thawline.backbones import Backbone, write_head
from thawline.config import SearchConfig
from thawline.data import write_atomically
from thawline.training import PENALTIES, Probe, Runtime, class_weights, features_at, fit_probes, probes_of_head

__all__ = ["ProbeFile", "begin_with_probe", "fitted_probe", "probe_curve"]

_FORMAT = "thawline-probe-2"


@dataclass(frozen=True)
class ProbeFile:
    """The stored probes of one backbone."""

    head: Probe
    """The best probe of the backbone's head, which is the trial."""
    start: Probe
    """The probe that trials start from, see :func:`thawline.training.softened`."""
    seconds: float
    """Time for fitting them, including the features."""
    curve: dict[int, float]
    """The study's validation metric of a probe by number of layer groups; empty until the probes are fitted."""

    @staticmethod
    def path(home: Path, study: str, backbone: str) -> Path:
        """Where the file is stored."""
        return home / "studies" / study / f"probe-{backbones.short_name(backbone)}.safetensors"

    @classmethod
    def read(cls, path: Path, key: Mapping[str, Any] | None = None) -> "ProbeFile | None":
        """Read the file; ``None`` if it is missing or damaged, or the probes were not fitted to ``key``."""
        try:
            with safe_open(path, "pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        except (SafetensorError, OSError):
            return None
        if header.get("format") != _FORMAT:
            return None
        content = json.loads(header["probe"])
        if key is not None and content["key"] != dict(key):
            return None
        head, start = (
            Probe(tensors[f"{name}.weight"], tensors[f"{name}.bias"], **content[name]) for name in ("head", "start")
        )
        curve = {int(depth): value for depth, value in content["curve"].items()}
        return cls(head, start, content["seconds"], curve)

    def write(self, path: Path, key: Mapping[str, Any]) -> None:
        """Store it, with the key of what it was fitted to."""
        content: dict[str, Any] = {"key": dict(key), "seconds": self.seconds, "curve": self.curve}
        tensors = {}
        for name, probe in (("head", self.head), ("start", self.start)):
            content[name] = asdict(probe)
            for part in ("weight", "bias"):
                tensors[f"{name}.{part}"] = content[name].pop(part).contiguous()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, save(tensors, {"format": _FORMAT, "probe": json.dumps(content)}))


def fitted_probe(
    backbone: Backbone, splits: StoredSplits, config: SearchConfig, runtime: Runtime, path: Path
) -> ProbeFile:
    """The probes of a backbone's head, fitted and stored on the first call.

    Args:
        backbone: fresh from :func:`thawline.backbones.create`; its module is left in evaluation mode.
        splits: its stored activations.
        config: the study's configuration.
        runtime: the device and precision in which the activations were computed.
        path: path of its file.
    """
    key = _key(backbone, splits, config, runtime)
    known = ProbeFile.read(path, key)
    if known is not None:
        return known
    started = time.perf_counter()
    train, validation = splits.open_plain(len(backbone.layer_groups), runtime)
    path.parent.mkdir(parents=True, exist_ok=True)
    head, start = probes_of_head(
        backbone,
        train,
        validation,
        config=config.train,
        metric=config.study.metric,
        runtime=runtime,
        folder=path.parent,
        seed=config.study.seed,
    )
    found = ProbeFile(head, start, time.perf_counter() - started, {})
    found.write(path, key)
    return found


def probe_curve(
    backbone: Backbone, splits: StoredSplits, config: SearchConfig, runtime: Runtime, path: Path
) -> dict[int, float]:
    """The quality of the features after each stored layer group: the study's validation metric by freeze depth.

    The deepest is the head's own probe; the others use the mean over positions or tokens, with every other penalty.
    Fitted once, as in :func:`fitted_probe`; a search that resumes with more stored layer groups adds theirs.
    """
    known = fitted_probe(backbone, splits, config, runtime, path)
    metric, deepest = config.study.metric, len(backbone.layer_groups)
    curve = known.curve | {deepest: known.head.validation[metric]}
    for boundary in set(splits.boundaries) - curve.keys():
        train, validation = splits.open_plain(boundary, runtime)
        if (train.boundary, validation.boundary) != (boundary, boundary):
            continue  # its activations were evicted, or are of augmented images
        size, classes = config.train.batch_size, len(known.head.bias)
        fitted, chosen = (features_at(each, runtime, size, path.parent) for each in (train, validation))
        probes = fit_probes(
            fitted,
            chosen,
            classes=classes,
            metric=metric,
            device=runtime.device,
            class_weights=class_weights(train.labels, classes, config.train, runtime),
            penalties=PENALTIES[::2],
        )
        curve[boundary] = probes.best.validation[metric]
    if curve == known.curve:
        return curve
    curve = dict(sorted(curve.items()))
    replace(known, curve=curve).write(path, _key(backbone, splits, config, runtime))
    return curve


def begin_with_probe(
    backbone: Backbone, splits: StoredSplits, config: SearchConfig, runtime: Runtime, path: Path
) -> None:
    """Load a probe as the head of a fresh backbone, to fine-tune from there."""
    start = fitted_probe(backbone, splits, config, runtime, path).start
    write_head(backbone, start.weight, start.bias, lowest=start.lowest)


def _key(backbone: Backbone, splits: StoredSplits, config: SearchConfig, runtime: Runtime) -> dict[str, Any]:
    """Identifies what it is fitted to: after a study was deleted, a new one of the same name may have other data."""
    return {
        "data": splits.data.stem,
        "weights": backbone.weights_digest,
        "precision": runtime.precision,
        "metric": config.study.metric,
        "class_weights": config.train.class_weights,
        "seed": config.study.seed,
    }
