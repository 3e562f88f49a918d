"""Train a challenger for the champion, and print the gate's evidence.

    python examples/promote.py    # run examples/quickstart.ipynb first, which trains the champion

The gate evaluates both on the same test images. Exit code 0 means a new champion; 1 means that the champion stays.
"""

import sys
from pathlib import Path

import thawline
from thawline.data import write_digits

outcome = thawline.run_search(
    write_digits(Path("digits")),
    backbone="mobilenet_v3_small",
    weights="starter",
    image_size=32,
    trials=6,
    epochs=4,
    settings={
        "study.name": "digits-challenger",
        "promotion.model": "digits",
        "promotion.minimum_gain": 0.005,  # it must be better by half a point
        "promotion.max_recall_loss": 0.05,  # and lose at most five points of recall of any class, beyond chance
    },
)
decision = outcome.promotion
print(f"{decision.name} version {decision.version}: {decision.verdict.outcome.value}, {decision.verdict.reason}")
for criterion in decision.verdict.criteria:
    print(f"  {'pass' if criterion.passed else 'FAIL'}  {criterion.name}: {criterion.value} ({criterion.threshold})")
print(f"digits@champion is version {outcome.champion_version}")
sys.exit(0 if outcome.promoted else 1)
