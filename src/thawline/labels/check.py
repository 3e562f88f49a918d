"""``thawline check DATA --labels``: the examples whose label the features contradict, as a list to go through."""

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
"""Examples of a class, copies and groups counted once, with which something can be said of it."""
_TOLD = 2 / 3
"""Share of right labels that features must predict. Where simulated ones told a half, with 5 % of labels wrong, three
suspects in four were right; where they told three quarters, one in four."""


@dataclass(frozen=True)
class Suspect:
    """An example whose label the features contradict."""

    path: str
    """As :attr:`thawline.data.Row.path`, bytes that are no UTF-8 written out."""
    label: str
    suggested: str
    """The class that is the likeliest by its features."""
    label_probability: float
    suggested_probability: float
    split: str
    digest: str
    """Of its content, by which it is known to be the same later."""


@dataclass(frozen=True)
class LabelCheck:
    """What is to be looked at."""

    suspects: tuple[Suspect, ...]
    """The least likely label first."""
    examples: int
    """Number of examples that were judged."""
    noise: float
    """Share of their labels that seems to be wrong, listed or not; 0 to 1."""
    accuracy: float
    """Share of their labels that were predicted from the features; 0 to 1."""
    unjudged: tuple[str, ...]
    """Classes of too few examples."""
    network: str = ""
    """Whose features they are, in words."""

    @property
    def is_doubtful(self) -> bool:
        """Whether the features tell the classes so badly that what they contradict may well be right."""
        return self.examples > 0 and self.accuracy < _TOLD * (1 - self.noise)

    def as_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self)

    def to_csv(self, path: Path) -> None:
        """Write what ``data.exclude`` and ``data.relabel`` read: a line for each suspect, in UTF-8.

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
    """Refuse a file that is there: somebody may have taken out of it by hand what is right.

    Raises:
        DataError: if it is.
    """
    if path.exists():
        raise DataError(f"{path} is there already, and is not overwritten. Name another by --suspects, or remove it.")


def check_labels(
    manifest: Manifest,
    network: str,
    given: SearchConfig,
    *,
    home: Path,
    tracking_uri: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> LabelCheck:
    """Compare every label with what the frozen features of a pretrained network say of the example.

    Args:
        manifest: what :func:`thawline.data.scan` returned.
        network: a backbone, a study, or a registered model; see :func:`thawline.labels.features.network_of`.
        given: of the data; weights and sizes of a backbone.
        home: Thawline's home, where features are stored.
        tracking_uri: where studies and models are recorded; by default as for a search.
        on_progress: called with (examples done, examples in all) while features are computed.

    Raises:
        StudyError: if what a study or a model was trained with is not recorded.
        RegistryError: if there is nothing of that name.
        ConfigError: if the network takes images and the data are texts, or the other way round.
        WeightsError: if the network's weights are not available.
    """
    chosen = network_of(network, given, home=home, tracking_uri=tracking_uri)
    features = FrozenFeatures.of(chosen, manifest, given, home)
    return judged(manifest, features.read(on_progress), chosen.described)


def judged(manifest: Manifest, features: np.ndarray, network: str) -> LabelCheck:
    """The same where the features are there.

    Args:
        manifest: of the data.
        features: float32 ``[rows, F]``, as the manifest's rows lie.
        network: whose they are, in words.
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
