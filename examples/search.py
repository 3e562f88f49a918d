"""Search a space of your own, and read the result.

    python examples/search.py [PHOTOS]    # a folder of images, one folder for each class; by default the digits

Takes a minute on two CPU cores. Run it again, and it resumes the study that it made.
"""

import sys
from pathlib import Path

import thawline
from thawline.data import write_digits

photos = Path(sys.argv[1]) if len(sys.argv) > 1 else write_digits(Path("digits"))
outcome = thawline.run_search(
    photos,
    backbone="mobilenet_v3_small",
    weights="starter",  # ship with Thawline; leave this out to fine-tune ImageNet's
    image_size=32,
    trials=6,
    epochs=3,
    settings={
        "space.freeze_depth": [2, 6],  # from the third layer group on to the head only
        "space.learning_rate": [0.0003, 0.01],
        "space.weight_decay": [0.0001, 0.1],  # a setting with a range is searched, too
        "study.pruner": "SuccessiveHalvingPruner",  # any of Optuna's
        "study.pruner_options": {"min_resource": 1, "reduction_factor": 2},
        "promotion.model": "digits-deep",
    },
)
for record in outcome.records:  # the best first
    tried = record.hyperparameters
    print(f"trial {record.number}: freeze depth {tried.freeze_depth}, {record.state}, {outcome.metric} {record.value}")
print(outcome)
