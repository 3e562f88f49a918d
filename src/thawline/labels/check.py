"""``thawline check DATA --labels``: a list of examples whose labels contradict the features, for review."""

import csv
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thawline.config import SearchConfig
from thawline.data import Manifest, as_text, write_atomically
from thawline.data.contract import Row
from thawline.data.splits import keys
from thawline.exceptions import DataError
from thawline.labels.contradiction import contradictions
from thawline.labels.features import FrozenFeatures, network_of
from thawline.labels.probing import FOLDS, folds_of, out_of_fold

__all__ = ["LabelCheck", "Suspect", "check_labels", "check_suspects_file", "judged"]

_FEWEST = 2 * FOLDS
"""Minimum number of examples of a class, with copies and groups counted once."""
_TOLD = 2 / 3
"""Minimum share of correct labels that features must predict. In simulations with 5 % wrong labels, three of four
suspects were right if features predicted half of the labels, and one of four if they predicted three quarters."""


@dataclass(frozen=True)
class Suspect:
    """An example whose label contradicts its features."""

    path: str
    """As :attr:`thawline.data.Row.path`, with invalid UTF-8 escaped."""
    label: str
    suggested: str
    """The most likely class by its features."""
    label_probability: float
    suggested_probability: float
    split: str
    digest: str
    """Digest of its content, to recognise it later."""


@dataclass(frozen=True)
class LabelCheck:
    """The result of a label check."""

    suspects: tuple[Suspect, ...]
    """The least likely label first."""
    examples: int
    """Number of examples that were checked."""
    noise: float
    """Estimated share of wrong labels, listed or not; 0 to 1."""
    accuracy: float
    """Share of labels that the features predict correctly; 0 to 1."""
    unjudged: tuple[str, ...]
    """Classes with too few examples."""
    network: str = ""
    """Description of the network that computed the features."""

    @property
    def is_doubtful(self) -> bool:
        """Whether the features separate the classes so badly that most suspects may be right."""
        return self.examples > 0 and self.accuracy < _TOLD * (1 - self.noise)

    def as_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self)

    def to_csv(self, path: Path) -> None:
        """Write a CSV for ``data.exclude`` and ``data.relabel``: one line per suspect, in UTF-8.

        Raises:
            DataError: if it cannot be written.
        """
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(Suspect.__dataclass_fields__)
        for each in self.suspects:
            shown = (f"{each.label_probability:.4f}", f"{each.suggested_probability:.4f}")
            writer.writerow((each.path, each.label, each.suggested, *shown, each.split, each.digest))
        try:
            write_atomically(path, text.getvalue().encode())
        except OSError as error:
            raise DataError(f"Cannot write {path}: {error.strerror}.") from None


def check_suspects_file(path: Path) -> None:
    """Reject an existing file, which the user may have edited.

    Raises:
        DataError: if the file exists.
    """
    if path.exists():
        raise DataError(
            f"{path} already exists and is not overwritten. Choose another file with --suspects, or remove it."
        )


def check_labels(
    manifest: Manifest,
    network: str,
    given: SearchConfig,
    *,
    home: Path,
    tracking_uri: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> LabelCheck:
    """Compare every label with the predictions from a pretrained network's frozen features.

    Args:
        manifest: result of :func:`thawline.data.scan`.
        network: a backbone, a study, or a registered model; see :func:`thawline.labels.features.network_of`.
        given: settings of the data, and weights and sizes of a backbone.
        home: Thawline's home, where features are stored.
        tracking_uri: URI of the store with studies and models; by default as for a search.
        on_progress: called with (examples done, total) while features are computed.

    Raises:
        StudyError: if the settings of a study or model are not recorded.
        RegistryError: if there is no backbone, study or model of that name.
        ConfigError: if the network takes images and the data are texts, or vice versa.
        WeightsError: if the network's weights are not available.
    """
    chosen = network_of(network, given, home=home, tracking_uri=tracking_uri)
    features = FrozenFeatures.of(chosen, manifest, given, home)
    return judged(manifest, features.read(on_progress), chosen.described)


def judged(manifest: Manifest, features: np.ndarray, network: str) -> LabelCheck:
    """Check the labels with computed features.

    Args:
        manifest: manifest of the data.
        features: float32 ``[rows, F]``, in the order of the manifest's rows.
        network: description of the network that computed them.
    """
    rows = manifest.rows
    together = keys([row.digest for row in rows], [row.group for row in rows])
    sizes = Counter(label for _, label in {(key, row.label) for key, row in zip(together, rows, strict=True)})
    known = [label for label in range(len(manifest.classes)) if sizes[label] >= _FEWEST]
    place = {label: number for number, label in enumerate(known)}
    chosen = [number for number, row in enumerate(rows) if row.label in place]
    unjudged = tuple(name for label, name in enumerate(manifest.classes) if label not in place)
    if len(known) < 2:
        return LabelCheck((), 0, 0.0, 0.0, unjudged, network)
    labels = np.array([place[rows[number].label] for number in chosen])
    folds = folds_of([together[number] for number in chosen], labels)
    probabilities = out_of_fold(np.asarray(features)[chosen], labels, folds, len(known))
    found = contradictions(probabilities, labels)
    names = [as_text(manifest.classes[label]) for label in known]
    suspects = [_suspect(rows[chosen[i]], names, int(labels[i]), probabilities[i]) for i in found.rows.tolist()]
    return LabelCheck(tuple(suspects), len(chosen), found.noise, found.accuracy, unjudged, network)


def _suspect(row: Row, names: list[str], label: int, probabilities: np.ndarray) -> Suspect:
    others = probabilities.copy()
    others[label] = -1.0
    suggested = int(others.argmax())
    likely = float(probabilities[label]), float(probabilities[suggested])
    return Suspect(as_text(row.path), names[label], names[suggested], *likely, row.split, row.digest)
