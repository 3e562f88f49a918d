"""Search a custom space, and list the trials.

    python examples/search.py [PHOTOS]    # a folder with one subfolder per class; by default digits

This takes a minute on two CPU cores. Run it again to resume the same study.
"""

import sys
from pathlib import Path

import thawline
from thawline.data import write_digits

photos = Path(sys.argv[1]) if len(sys.argv) > 1 else write_digits(Path("digits"))
outcome = thawline.run_search(
    photos,
    backbone="mobilenet_v3_small",
    weights="starter",  # ships with Thawline; omit this to start from ImageNet weights
    image_size=32,
    trials=6,
    epochs=3,
    settings={
        "space.freeze_depth": [2, 6],  # from freezing two layer groups to training the head only
        "space.learning_rate": [0.0003, 0.01],
        "space.weight_decay": [0.0001, 0.1],  # a setting with a range is searched as well
        "study.pruner": "SuccessiveHalvingPruner",  # any Optuna pruner
        "study.pruner_options": {"min_resource": 1, "reduction_factor": 2},
        "promotion.model": "digits-deep",
    },
)
for record in outcome.records:  # best trial first
    tried = record.hyperparameters
    print(f"trial {record.number}: freeze depth {tried.freeze_depth}, {record.state}, {outcome.metric} {record.value}")
print(outcome)
