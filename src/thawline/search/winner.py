"""From the best trial to a registered model: restore, package, score on the test split, decide."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from thawline import backbones
from thawline.exceptions import StudyError
from thawline.registry import PromotionOutcome, log_packaged_model, package, promote_if_better
from thawline.search.events import Note, emit
from thawline.search.leaderboard import leaderboard_markdown
from thawline.search.prepare import Prepared
from thawline.search.recorder import Recorder
from thawline.search.study import Study, TrialRecord
from thawline.training import load_checkpoint

__all__ = ["SearchOutcome", "promote_best", "restore"]
