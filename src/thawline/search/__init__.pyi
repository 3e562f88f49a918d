from .conduct import Queue, announce_end, announce_start, trial_spec
from .events import Note, Phase, emit
from .prepare import (
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
from .quantising import judge_quantised
from .ranking import rank_backbones
from .recorder import Recorder
from .records import TrialRecord
from .slots import Slots
from .spec import StudyRun, TrialSpec
from .steps import load_for_last_steps, run_step, try_step
from .stored_activations import store_activations
from .study import Asked, Study
from .trial import run_together, run_trial
from .trial_result import TrialResult, trial_name
from .winner import SearchOutcome, conclude, judge_best
from .worker import WorkerCrashed, call_in_worker, prepare_workers, stop_workers, workers_dismissed

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
    "describe_backbones",
    "emit",
    "fetch_data",
    "judge_best",
    "judge_quantised",
    "load_for_last_steps",
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
