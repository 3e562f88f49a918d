"""Labels that contradict the frozen features, and their examples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thawline.data import DecodedImages, as_text, texts_of
from thawline.labels import FrozenFeatures, LabelCheck, Network, judged
from thawline.reports import LabelDoctor, SuspectLabel, shown_example
from thawline.search import Note, Prepared, TrialRecord, emit
from thawline.search.stored_activations import known_plan

__all__ = ["SUSPECTS_FILE", "labels_to_look_at", "shown_labels"]

SUSPECTS_FILE = "suspects.csv"
"""The file with all of them, beside the page."""
_SUSPECTS = 24
_JUDGED = 5_000_000
"""Maximum number of rows times classes for a label check: a minute or two on two cores."""


def labels_to_look_at(prepared: Prepared, home: Path, best: TrialRecord) -> LabelCheck | None:
    """Check the labels with the frozen features of the best trial's backbone; ``None`` if they were not stored.

    Computing them only for this check could take as long as a trial.
    """
    if len(prepared.manifest.rows) * len(prepared.manifest.classes) > _JUDGED:
        asked = f"thawline check {prepared.config.data.path} --labels {prepared.study}"
        emit(Note(f"the report omits the label check, because the data set is large; to run it: `{asked}`"))
        return None
    name, config = best.hyperparameters.backbone, prepared.config
    network = Network(f"the pretrained {name}", name, config, known_plan(home, prepared.study, name))
    features = FrozenFeatures.of(network, prepared.manifest, config, home, prepared.inputs[name])
    return judged(prepared.manifest, features.read(), network.described) if features.are_stored else None


def shown_labels(prepared: Prepared, found: LabelCheck, best: TrialRecord) -> LabelDoctor:
    """The first suspects, with their images or texts."""
    manifest, shown = prepared.manifest, found.suspects[:_SUSPECTS]
    place = {as_text(row.path): number for number, row in enumerate(manifest.rows)}
    numbers = [place[suspect.path] for suspect in shown]
    examples: Sequence[Any]
    if manifest.kind == "texts":
        examples = texts_of(manifest, [manifest.rows[number] for number in numbers])
    else:
        images = DecodedImages.open(prepared.inputs[best.hyperparameters.backbone]).images
        examples = [images[number] for number in numbers]
    suspects = [
        SuspectLabel(
            **shown_example(example),
            file=suspect.path,
            split=suspect.split,
            label=suspect.label,
            suggested=suspect.suggested,
            label_probability=suspect.label_probability,
            suggested_probability=suspect.suggested_probability,
        )
        for suspect, example in zip(shown, examples, strict=True)
    ]
    return LabelDoctor(
        examples=found.examples,
        listed=len(found.suspects),
        noise=found.noise,
        accuracy=found.accuracy,
        is_doubtful=found.is_doubtful,
        file=SUSPECTS_FILE if shown else "",
        suspects=tuple(suspects),
    )
