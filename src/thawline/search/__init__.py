"""The search: what to try, trying it, what came of it, and the best of it."""

from thawline.search.conduct import conduct, next_trial
from thawline.search.prepare import Prepared, check_backbones, check_config, complete, decode_images, read_data
from thawline.search.recorder import Recorder
from thawline.search.study import Asked, Study, TrialRecord
from thawline.search.trial import TrialResult, TrialSpec, run_trial, trial_name
from thawline.search.winner import SearchOutcome, promote_best
from thawline.search.worker import TrialCrashed, prepare_workers, run_in_process, stop_workers

__all__ = [
    "Asked",
    "Prepared",
    "Recorder",
    "SearchOutcome",
    "Study",
    "TrialCrashed",
    "TrialRecord",
    "TrialResult",
    "TrialSpec",
    "check_backbones",
    "check_config",
    "complete",
    "conduct",
    "decode_images",
    "next_trial",
    "prepare_workers",
    "promote_best",
    "read_data",
    "run_in_process",
    "run_trial",
    "stop_workers",
    "trial_name",
]
