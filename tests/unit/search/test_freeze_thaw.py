"""Freeze-thaw gives the next epoch to the trial that may gain the most, and loses nothing when it is interrupted."""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from thawline.config import SearchConfig
from thawline.exceptions import ConfigError
from thawline.search import slices
from thawline.search.conduct import Queue
from thawline.search.freeze_thaw import Curve, FreezeThaw, forecast
from thawline.search.fruitless import MOST_FRUITLESS
from thawline.search.leases import Leases
from thawline.search.sampling import check_sampling
from thawline.search.storage import Storage
from thawline.search.study import Asked, Study
from thawline.search.trial_result import TrialResult
from thawline.training import Decision, EpochResult, Hyperparameters

DEPTHS = {"resnet18": 5}
EPOCHS = 4
PROMISING, HOPELESS = 1, 2


def curves(*, promising: float, seconds: float = 1.0) -> list[Curve]:
    """Four trials that have ended between 0.6 and 0.7, and two after one epoch."""
    ended = [
        Curve(10 + i, (i / 4, 0.5), tuple(0.6 + 0.01 * i + 0.02 * epoch for epoch in range(EPOCHS)), resumable=False)
        for i in range(4)
    ]
    begun = [Curve(PROMISING, (0.4, 0.6), (promising,), seconds), Curve(HOPELESS, (0.9, 0.1), (0.1, 0.11, 0.11))]
    return [*ended, *begun]


def chosen(
    known: list[Curve], rule: FreezeThaw | None = None, *, by_time: bool = False, perfect: float = 1.0
) -> int | None:
    best = max(value for curve in known for value in curve.values)
    return (rule or FreezeThaw()).choose(known, epochs=EPOCHS, best=best, perfect=perfect, by_time=by_time)


def test_a_promising_trial_is_resumed_and_a_hopeless_one_is_not() -> None:
    known = curves(promising=0.66)
    assert chosen(known) == PROMISING
    without = [curve for curve in known if curve.number != PROMISING]
    assert chosen(without) is None
    assert chosen(without, FreezeThaw(least_chance=0.0)) == HOPELESS, "a control: it could have been chosen"


def test_losses_are_judged_alike() -> None:
    known = [
        Curve(each.number, each.point, tuple(value - 1 for value in each.values), each.seconds, each.resumable)
        for each in curves(promising=0.66)
    ]
    assert chosen(known, perfect=0.0) == PROMISING
    assert chosen([each for each in known if each.number != PROMISING], perfect=0.0) is None


def test_a_new_trial_is_always_worth_its_first_epoch() -> None:
    known = [curve for curve in curves(promising=0.66) if curve.number != PROMISING]
    assert chosen([*known, Curve(3, (0.9, 0.12))]) == 3


@pytest.mark.parametrize("new", [False, True])
def test_where_time_is_the_budget_the_cheaper_of_two_alike_comes_first(new: bool) -> None:
    values = () if new else (0.66,)
    known = [*curves(promising=0.66, seconds=10.0), Curve(3, (0.4, 0.61), values, seconds=1.0)]
    assert chosen(known, by_time=True) == 3
    slow = [*curves(promising=0.66, seconds=1.0), Curve(3, (0.4, 0.61), values, seconds=10.0)]
    assert chosen(slow, by_time=True) == PROMISING


def test_the_first_trials_are_trained_to_their_end_in_the_order_in_which_they_came() -> None:
    begun = [Curve(5, (0.1,), (0.2,)), Curve(4, (0.5,), (0.1,)), Curve(6, (0.9,))]
    assert FreezeThaw(n_startup_trials=2).choose(begun, epochs=EPOCHS, best=0.2, perfect=1.0, by_time=False) == 4
    ended = [Curve(number, (0.5,), (0.5,) * EPOCHS, resumable=False) for number in (0, 1)]
    known = [*ended, *begun]
    assert FreezeThaw(n_startup_trials=2).choose(known, epochs=EPOCHS, best=0.5, perfect=1.0, by_time=False) != 4


def test_a_trial_that_another_process_trains_is_not_chosen_but_counts() -> None:
    known = [*curves(promising=0.66), Curve(3, (0.4, 0.6), (0.68,), resumable=False)]
    assert chosen(known) == PROMISING
    without, beside = (forecast(each, EPOCHS, 1.0)[4].mean for each in (known[:-1], known))
    assert beside > without, "a good neighbour is a good sign"


def test_what_a_curve_has_reached_is_never_foreseen_to_be_lost() -> None:
    known = [*curves(promising=0.66), Curve(3, (0.9, 0.12), (0.95, 0.2))]
    assert forecast(known, EPOCHS, 1.0)[-1].mean >= 0.95


def test_of_a_thousand_trials_the_best_and_the_latest_are_modelled(monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn.gaussian_process as processes

    sizes, fit = list[int](), processes.GaussianProcessRegressor.fit

    def counted(self: Any, points: Any, targets: Any) -> Any:
        sizes.append(len(points))
        return fit(self, points, targets)

    monkeypatch.setattr(processes.GaussianProcessRegressor, "fit", counted)
    many = [Curve(i, (i % 7 / 7, i % 11 / 11), (0.5 + (i % 13) / 100,) * EPOCHS, resumable=False) for i in range(1000)]
    assert chosen([*many, Curve(1000, (0.5, 0.5))]) == 1000
    assert sizes == [60]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"least_chance": 1.0}, "0 <= least_chance < 1 must hold, but got 1.0"),
        ({"n_startup_trials": -1}, "n_startup_trials must be 0 or more, but got -1"),
        ({"n_startup_trials": 1.5}, "n_startup_trials must be a whole number, but got 1.5"),
        ({"patience": 3}, "patience"),
    ],
)
def test_an_option_that_it_does_not_take_is_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=r"study\.pruner_options") as caught:
        check_sampling(config(pruner_options=options).study)
    assert problem in str(caught.value)


def test_it_is_listed_beside_optunas_pruners() -> None:
    with pytest.raises(ConfigError, match="and Thawline freeze_thaw"):
        check_sampling(config(pruner="freeze_frame").study)


# A study whose trials are trained by a function in place of a network.


def config(**study: Any) -> SearchConfig:
    settings = {"pruner": "freeze_thaw", "trials": 12, **study}
    return SearchConfig.build({"data": {"path": "photos"}, "train": {"epochs": EPOCHS}}, {"study": settings})


def open_study(home: Path, name: str = "pets", **study: Any) -> Study:
    return Study.open(home, name, config(**study), DEPTHS, "f")


def value_of(hyperparameters: Hyperparameters, epoch: int) -> float:
    """Best near depth 2 and a rate of 1e-3; head only is worst."""
    off = abs(hyperparameters.freeze_depth - 2) / 3 + abs(math.log10(hyperparameters.learning_rate) + 3)
    return round(0.9 - 0.2 * min(off, 4) - 0.1 * (1 - epoch / EPOCHS), 6)


@dataclass
class Trainer:
    """Trains what the queue of a study gives it. The epochs of a trial are its checkpoints: they outlive a process."""

    home: Path
    options: dict[str, Any] = field(default_factory=dict)
    epochs: dict[int, int] = field(default_factory=Counter)
    order: list[tuple[int, int]] = field(default_factory=list)
    """(trial, epoch) as they were trained."""

    def run(
        self, *, deadline: float | None = None, batch: int = 4, dies: Callable[[], bool] = lambda: False
    ) -> Study | None:
        """Until the search is over; ``None`` if it died before."""
        study = open_study(self.home, **self.options)
        with study.held():
            queue = Queue(study, trials=study.config.study.trials, batch=batch, deadline=deadline, apart=True)
            while together := queue.next():
                (asked,) = together
                result = self.train(study, asked, dies)
                if result is None or dies():
                    return None
                study.tell(result)
            study.end_paused(out_of_time=queue.over)
        return study

    def train(self, study: Study, asked: Asked, dies: Callable[[], bool]) -> TrialResult | None:
        if asked.hyperparameters.is_probe:
            study.report(asked.number, result_of(1, 0.4))
            return TrialResult(asked.number, "complete", 0.4, 1, 1, 1.0, "", "run", "file")
        decision = Decision.CONTINUE
        for known in range(1, self.epochs[asked.number] + 1):
            decision = study.report(asked.number, result_of(known, value_of(asked.hyperparameters, known)))
        while decision is Decision.CONTINUE and self.epochs[asked.number] < EPOCHS:
            if dies():
                return None
            self.epochs[asked.number] += 1
            epoch = self.epochs[asked.number]
            self.order.append((asked.number, epoch))
            decision = study.report(asked.number, result_of(epoch, value_of(asked.hyperparameters, epoch)))
        return ended(asked, self.epochs[asked.number], paused=decision is Decision.PAUSE)


def result_of(epoch: int, value: float) -> EpochResult:
    return EpochResult(epoch, {"val/accuracy": value, "train/loss": 1 - value}, 0)


def ended(asked: Asked, epochs: int, *, paused: bool) -> TrialResult:
    value = max(value_of(asked.hyperparameters, epoch) for epoch in range(1, epochs + 1))
    state = "paused" if paused else "complete"
    reason = f"paused after epoch {epochs}" if paused else ""
    return TrialResult(asked.number, state, value, epochs, epochs, asked.seconds + 1, reason, "run", "file")  # type: ignore[arg-type]


def facts(study: Study) -> list[tuple[int, str, float | None, int]]:
    return [(r.number, r.state, r.value, r.result.epochs if r.result else 0) for r in study.records()]


def test_it_finds_the_best_trial_with_fewer_epochs_than_a_study_without_a_pruner(tmp_path: Path) -> None:
    frozen, whole = Trainer(tmp_path / "frozen"), Trainer(tmp_path / "whole", {"pruner": "NopPruner"})
    found, expected = frozen.run(), whole.run()
    assert found is not None
    assert expected is not None
    assert len(whole.order) == 11 * EPOCHS, "a control: all but the probe are trained to their end"
    assert len(frozen.order) < 0.75 * len(whole.order)
    best, wanted = found.best(), expected.best()
    assert best is not None
    assert wanted is not None
    assert best.value is not None
    assert wanted.value is not None
    assert best.value >= wanted.value - 0.005
    assert frozen.epochs.keys() == whole.epochs.keys(), "a budget of trials is a budget of trials"


def test_what_is_never_resumed_ends_as_pruned_with_its_last_value(tmp_path: Path) -> None:
    study = Trainer(tmp_path).run()
    assert study is not None
    pruned = [record for record in study.records() if record.state == "pruned"]
    assert pruned, "a control"
    for record in pruned:
        assert record.result is not None
        assert record.result.reason == f"paused after epoch {record.result.epochs}, not resumed"
        assert record.value == value_of(record.hyperparameters, record.result.epochs)
    assert {record.state for record in study.records()} == {"complete", "pruned"}


def test_a_decision_reads_only_the_curves_that_have_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decisions, read = Counter[str](), list[int]()
    curve_of, choose = slices.Slices._curve_of, FreezeThaw.choose

    def reading(self: Any, trial: Any, attributes: Any) -> Curve:
        read.append(trial.number)
        return curve_of(self, trial, attributes)

    def choosing(self: Any, curves: Any, **options: Any) -> int | None:
        decisions["with begun trials"] += sum(1 for curve in curves if curve.values)
        return choose(self, curves, **options)

    monkeypatch.setattr(slices.Slices, "_curve_of", reading)
    monkeypatch.setattr(FreezeThaw, "choose", choosing)
    trainer = Trainer(tmp_path)
    assert trainer.run() is not None
    changes = len(trainer.order) + 2 * len(trainer.epochs)  # a value more; drawn, and ended
    assert len(set(read)) == len(trainer.epochs)
    assert len(read) <= changes < decisions["with begun trials"]


@pytest.mark.parametrize("batch", [1, 2])
def test_no_trial_is_lost_however_few_are_drawn_at_once(tmp_path: Path, batch: int) -> None:
    study = Trainer(tmp_path).run(batch=batch)
    assert study is not None
    assert sorted(record.number for record in study.records()) == list(range(12))
    assert {record.state for record in study.records()} <= {"complete", "pruned"}
    assert next(record for record in study.records() if record.hyperparameters.is_probe).state == "complete"


@pytest.mark.parametrize("sampler", ["GridSampler", "BruteForceSampler"])
def test_with_a_finite_list_of_points_it_is_refused(sampler: str) -> None:
    options = {"search_space": {"freeze_depth": [0, 2]}} if sampler == "GridSampler" else {}
    with pytest.raises(ConfigError, match=rf"study\.pruner=freeze_thaw draws before .* {sampler} would restart"):
        check_sampling(config(sampler=sampler, sampler_options=options).study)
    check_sampling(config(sampler=sampler, sampler_options=options, pruner="NopPruner").study)


def test_interrupted_at_every_epoch_it_trains_the_same_epochs_in_the_same_order(tmp_path: Path) -> None:
    whole, hurt = Trainer(tmp_path / "whole"), Trainer(tmp_path / "hurt")
    expected = whole.run()
    assert expected is not None

    lives, seen = 0, 0

    def dies() -> bool:
        """Twice at every epoch: before it is trained, and when its trial has left but nobody has noted it."""
        nonlocal seen
        seen += 1
        return seen % 3 == 0

    while (found := hurt.run(dies=dies)) is None:
        lives += 1
    assert lives > 10, "a control"
    assert hurt.order == whole.order
    assert facts(found) == facts(expected)


def test_out_of_time_the_best_that_is_paused_counts_and_the_others_are_pruned(tmp_path: Path) -> None:
    options = {"trials": 30, "timeout_minutes": 60.0, "pruner_options": {"n_startup_trials": 0}}
    study = open_study(tmp_path, **options)
    with study.held():
        for asked in study.draw(4, trials=30):
            study.begin([asked.number])
            if asked.hyperparameters.is_probe:
                study.tell(TrialResult(asked.number, "complete", 0.1, 1, 1, 1.0, "", "run", "file"))
                continue
            study.report(asked.number, result_of(1, value_of(asked.hyperparameters, 1)))
            study.tell(ended(asked, 1, paused=True))
        (worst,) = study.draw(1, trials=30)
        study.begin([worst.number])
        study.report(worst.number, result_of(1, 0.0))
        study.tell(TrialResult(worst.number, "paused", 0.0, 1, 1, 1.0, "paused after epoch 1", "run", "file"))
        paused = {record.number: record.value for record in study.records() if record.state == "paused"}
        assert len(paused) >= 2, "a control"
        study.end_paused(out_of_time=True)
    best = study.best()
    assert best is not None
    assert best.value == max(value for value in paused.values() if value is not None)
    assert best.result is not None
    assert best.result.reason.startswith("stopped by the time limit, paused after epoch 1")
    assert sorted(r.state for r in study.records() if r.number in paused) == [
        "complete",
        *["pruned"] * (len(paused) - 1),
    ]


def test_with_time_alone_it_draws_until_that_is_spent_or_nothing_new_comes(tmp_path: Path) -> None:
    options = {"trials": None, "timeout_minutes": 60.0, "pruner_options": {"n_startup_trials": 1}}
    study = open_study(tmp_path, **options)
    with study.held():
        queue, numbers = Queue(study, trials=None, batch=4, deadline=time.time() + 3600, apart=True), []
        while together := queue.next():
            (asked,) = together
            numbers.append(asked.number)
            if asked.hyperparameters.is_probe:
                study.tell(TrialResult(asked.number, "complete", 0.4, 1, 1, 1.0, "", "run", "file"))
            elif len(numbers) < 4:
                study.report(asked.number, result_of(1, 0.4))
                study.tell(TrialResult(asked.number, "paused", 0.4, 1, 1, 1.0, "paused after epoch 1", "run", "file"))
            else:
                study.tell(TrialResult.without_result(asked.number, reason="its process ended with 1"))
    assert len(numbers) > MOST_FRUITLESS
    assert study.records()[-1].state == "failed"


def test_a_trial_counts_the_seconds_of_all_its_slices(tmp_path: Path) -> None:
    study = Trainer(tmp_path, {"pruner_options": {"n_startup_trials": 0, "least_chance": 0.0}}).run()
    assert study is not None
    seconds = [record.result.seconds for record in study.records() if record.result is not None]
    assert max(seconds) > 1, "a control: some trial was paused and resumed"


def resumed_for_nothing(
    study: Study, queue: Queue, trainer: Trainer, *, most: int, fails_from: int = 1000
) -> list[int]:
    """Run up to so many trials; the numbers of those that were resumed without training an epoch."""
    for_nothing = []
    for _ in range(most):
        together = queue.next()
        if not together:
            break
        (asked,) = together
        if asked.number >= fails_from and not asked.resumed:
            study.tell(TrialResult.without_result(asked.number, reason="its process ended with 1"))
            continue
        before = trainer.epochs[asked.number]
        result = trainer.train(study, asked, lambda: False)
        assert result is not None
        study.tell(result)
        if asked.resumed and trainer.epochs[asked.number] == before:
            for_nothing.append(asked.number)
    return for_nothing


def test_a_trial_is_not_resumed_for_nothing_after_so_many_failures_that_no_new_one_is_drawn(tmp_path: Path) -> None:
    options = {"trials": None, "timeout_minutes": 60.0}
    study, trainer = open_study(tmp_path, **options), Trainer(tmp_path, options)
    with study.held():
        queue = Queue(study, trials=None, batch=4, deadline=time.time() + 3600, apart=True)
        assert resumed_for_nothing(study, queue, trainer, most=100, fails_from=7) == []
        assert queue.next() == [], "it ends"
    assert study.drawn() > 7 + MOST_FRUITLESS - 1, "a control"


def test_a_trial_is_not_resumed_for_nothing_while_another_search_has_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Storage, "claims", lambda storage, name: Leases(storage._engine, name))
    options = {"storage": f"sqlite:///{tmp_path}/study.db", "trials": 16}
    trainer, met = Trainer(tmp_path, options), 0
    first = open_study(tmp_path, **options)
    with first.held():
        queue = Queue(first, trials=16, batch=4, deadline=None, apart=True)
        while together := queue.next():
            (asked,) = together
            if first.drawn() == 16 and queue._waiting and not met:  # the budget is spent, and some have not begun
                second = open_study(tmp_path, **options)
                with second.held():
                    other = Queue(second, trials=16, batch=4, deadline=None, apart=True)
                    assert resumed_for_nothing(second, other, trainer, most=15) == []
                    met = len(queue._waiting)
            result = trainer.train(first, asked, lambda: False)
            assert result is not None
            first.tell(result)
    assert met, "a control"


def paused_study(home: Path, **options: Any) -> list[int]:
    """Run nine trials, and leave; the numbers of the paused ones."""
    study, trainer = open_study(home, **options), Trainer(home, options)
    with study.held():
        queue = Queue(study, trials=12, batch=4, deadline=None, apart=True)
        resumed_for_nothing(study, queue, trainer, most=9)
        paused = [record.number for record in study.records() if record.state == "paused"]
    assert len(paused) > 1, "a control"
    return paused


def test_with_another_pruner_paused_trials_are_resumed_with_their_seconds(tmp_path: Path) -> None:
    paused = paused_study(tmp_path)
    study = open_study(tmp_path, pruner="NopPruner")
    with study.held():
        queue, seconds = Queue(study, trials=12, batch=4, deadline=None, apart=True), {}
        while together := queue.next():
            for asked in together:
                assert asked.resumed == (asked.number in paused or asked.seconds > 0)
                seconds[asked.number] = asked.seconds
                study.tell(TrialResult(asked.number, "complete", 0.5, 4, 4, 1.0, "", "run", "file"))
        assert not queue.wait_for_others()
        study.end_paused(out_of_time=False)
    assert set(paused) <= seconds.keys()
    assert all(seconds[number] > 0 for number in paused)
    assert study.finished() == 12


def test_with_another_pruner_and_no_time_left_paused_trials_end_with_their_values(tmp_path: Path) -> None:
    options = {"timeout_minutes": 60.0}
    paused = paused_study(tmp_path, **options)
    study = open_study(tmp_path, pruner="NopPruner", **options)
    with study.held():
        queue = Queue(study, trials=12, batch=4, deadline=time.time() - 1, apart=True)
        assert queue.next() == []
        study.end_paused(out_of_time=True)
    ended = {record.number: record for record in study.records()}
    assert all(ended[number].state in ("complete", "pruned") and ended[number].value is not None for number in paused)


def test_killed_while_paused_trials_end_the_best_of_them_still_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"timeout_minutes": 60.0, "pruner_options": {"n_startup_trials": 0}}
    paused = paused_study(tmp_path, **options)

    def dies(study: Study, result: TrialResult) -> None:
        raise KeyboardInterrupt

    study = open_study(tmp_path, **options)
    before = {record.number: record.value for record in study.records() if record.state == "paused"}
    with monkeypatch.context() as patch, study.held():
        patch.setattr(Study, "_tell", dies)
        with pytest.raises(KeyboardInterrupt):
            study.end_paused(out_of_time=True)
    again = open_study(tmp_path, **options)
    with again.held():
        Queue(again, trials=12, batch=4, deadline=time.time() - 1, apart=True)
        again.end_paused(out_of_time=True)
    after = {record.number: record for record in again.records() if record.number in paused}
    assert {number: record.value for number, record in after.items()} == before
    assert {record.state for record in after.values()} <= {"complete", "pruned"}


def test_searches_that_share_a_study_never_train_one_trial_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    options = {"storage": url, "trials": 12}
    trained: dict[int, threading.Lock] = {number: threading.Lock() for number in range(12)}
    faults: list[str] = []
    epochs, order = Counter[int](), list[tuple[int, int]]()

    class Watched(Trainer):
        def train(self, study: Study, asked: Asked, dies: Callable[[], bool]) -> TrialResult | None:
            if not trained[asked.number].acquire(blocking=False):
                faults.append(f"trial {asked.number} is trained twice at once")
            try:
                return super().train(study, asked, dies)
            finally:
                trained[asked.number].release()

    # Each is a search of its own only if it has leases of its own, which those of one process share.
    monkeypatch.setattr(Storage, "claims", lambda storage, name: Leases(storage._engine, name))
    searches = [threading.Thread(target=Watched(tmp_path, options, epochs, order).run) for _ in range(2)]
    for search in searches:
        search.start()
    for search in searches:
        search.join(120)
    study = open_study(tmp_path, **options)
    assert faults == []
    assert {record.state for record in study.records()} == {"complete", "pruned"}
    assert len(study.records()) == 12
    assert max(Counter(order).values()) == 1, "an epoch was trained twice"
