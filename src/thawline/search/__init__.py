"""The search: what to try, trying it, the results, and the best model."""

from thawline.search.conduct import Queue, announce_end, announce_start, conduct, trial_spec
from thawline.search.events import Note, Phase, emit
from thawline.search.prepare import (
    DescribedBackbone,
    Prepared,
    already_checked,
    check_backbones,
    check_config,
    complete,
    describe_backbones,
    fetch_data,
    prepare_inputs,
    read_data,
)
from thawline.search.quantising import judge_quantised
from thawline.search.ranking import rank_backbones
from thawline.search.recorder import Recorder
from thawline.search.records import TrialRecord
from thawline.search.slots import Slots
from thawline.search.spec import StudyRun, TrialResult, TrialSpec, trial_name
from thawline.search.steps import run_step, try_step
from thawline.search.stored_activations import store_activations
from thawline.search.study import Asked, Study
from thawline.search.trial import run_together, run_trial
from thawline.search.winner import SearchOutcome, conclude, judge_best
from thawline.search.worker import WorkerCrashed, call_in_worker, prepare_workers, stop_workers, workers_dismissed

__all__ = [
    "Asked",
    "DescribedBackbone",
    "Note",
    "Phase",
    "Prepared",
    "Queue",
    "Recorder",
    "SearchOutcome",
    "Slots",
    "Study",
    "StudyRun",
    "TrialRecord",
    "TrialResult",
    "TrialSpec",
    "WorkerCrashed",
    "already_checked",
    "announce_end",
    "announce_start",
    "call_in_worker",
    "check_backbones",
    "check_config",
    "complete",
    "conclude",
    "conduct",
    "describe_backbones",
    "emit",
    "fetch_data",
    "judge_best",
    "judge_quantised",
    "prepare_inputs",
    "prepare_workers",
    "rank_backbones",
    "read_data",
    "run_step",
    "run_together",
    "run_trial",
    "stop_workers",
    "store_activations",
    "trial_name",
    "trial_spec",
    "try_step",
    "workers_dismissed",
]
