"""The description of a version in MLflow's registry: a short model card, in Markdown."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from thawline.data import markdown_text
from thawline.registry.names import LONGEST_REASON, QUANTISED_FROM
from thawline.tracking import MlflowStore
from thawline.training.intervals import proportion_interval

if TYPE_CHECKING:
    from thawline.registry.promotion_outcome import PromotionOutcome

__all__ = ["MODEL_CARD", "TESTED_ON", "tested_of", "version_card"]

MODEL_CARD = (
    "A classifier trained by Thawline. `champion` is the version that is served, `challenger` the one that was judged "
    "last; each version has its own card. `thawline history NAME` shows which version was champion when, and why."
)
"""Description of a registered model as a whole."""
TESTED_ON = "thawline.tested_on"
"""Tag of a version: the data on which ``test/accuracy`` and others were measured, such as ``241 test images``."""


def tested_of(tags: Mapping[str, str]) -> dict[str, float | str] | None:
    """From its tags, a version's test accuracy and the data it was measured on; ``None`` if it was never judged."""
    if "test/accuracy" not in tags:
        return None
    return {"accuracy": float(tags["test/accuracy"]), "on": tags.get(TESTED_ON, "the test split")}


def version_card(store: MlflowStore, outcome: "PromotionOutcome", tags: Mapping[str, str], parent: str | None) -> str:
    """Describe a version: its training, its test accuracy, its data, and links to its run and report.

    Args:
        store: with its runs.
        outcome: outcome of its comparison.
        tags: tags of the version.
        parent: id of its study's run, if it has one.
    """
    scores = outcome.challenger
    right = sum(label == said for label, said in zip(scores.labels, scores.predicted, strict=True))
    interval = proportion_interval(right, len(scores.labels))
    links = [f"[run]({store.page(f'/runs/{outcome.run_id}')})"]
    if parent is not None:
        links += [f"[study]({store.page(f'/runs/{parent}')})"]
        links += [f"[report]({store.page(f'/runs/{parent}/artifacts/report/report.html')})"]
    digest = tags.get("thawline.data_digest")
    majority = outcome.majority.metrics["accuracy"] if outcome.majority else None
    reason = outcome.verdict.reason
    if len(reason) > LONGEST_REASON:
        reason = f"{reason[:LONGEST_REASON]}…"
    lines = [
        f"A classifier of {scores.kind}, {len(scores.classes)} classes: {_training(tags)}.",
        f"**Test accuracy {scores.metrics['accuracy']:.3f}** (95 % interval {interval.low:.3f} to {interval.high:.3f}, "
        f"{len(scores.labels)} {scores.kind})"
        + (f"; of the majority class {majority:.3f}." if majority is not None else "."),
        f"Verdict: {outcome.verdict.outcome.value}, {markdown_text(reason)}.",
        *([f"Data digest: `{digest}`."] if digest else []),
        " · ".join(links),
    ]
    return "\n\n".join(lines)


def _training(tags: Mapping[str, str]) -> str:
    backbone = f"`{tags.get('thawline.backbone', 'a network')}`"
    if tags.get("thawline.policy") == "probe":
        trained = f"a linear probe on {backbone}"
    else:
        depth, rate = tags.get("thawline.freeze_depth", "unknown"), tags.get("thawline.learning_rate", "unknown")
        trained = f"{backbone}, fine-tuned with freeze depth {depth} and learning rate {rate}"
    return f"{trained}, in int8, quantised from version {tags[QUANTISED_FROM]}" if QUANTISED_FROM in tags else trained
