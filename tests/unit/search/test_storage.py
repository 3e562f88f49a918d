"""A study survives what happens to its storage, and its trials belong to one living search at a time."""

import fcntl
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import sqlalchemy as sa
from commands import Fork, Forks
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage

from thawline.config import SearchConfig
from thawline.exceptions import ConfigError, StudyError
from thawline.search import leases as LEASES_MODULE
from thawline.search.conduct import Queue
from thawline.search.journal import Journal
from thawline.search.leases import LEASES, Leases, beating
from thawline.search.patience import patiently, patiently_for
from thawline.search.space import PORTFOLIO
from thawline.search.storage import LeaseLost, open_storage, storage_url
from thawline.search.study import Asked, Study
from thawline.search.trial_result import TrialResult
from thawline.training import Decision, EpochResult

pytestmark = pytest.mark.xdist_group("postgres")

DEPTHS = {"resnet18": 5}


def open_study(home: Path, url: str | None = None, **study: object) -> Study:
    config = SearchConfig.build(
        {"data": {"path": "photos"}, "train": {"epochs": 4}, "study": {"storage": url, "trials": 12, **study}}
    )
    return Study.open(home, "pets", config, DEPTHS, "f")


def epoch(number: int, value: float = 0.5) -> EpochResult:
    return EpochResult(number, {"val/accuracy": value, "train/loss": 1 - value}, 0)


def ended(number: int, value: float = 0.5) -> TrialResult:
    return TrialResult(number, "complete", value, 4, 4, 1.0, "", "run", "file")


@pytest.fixture
def engine(new_postgres: Callable[[], str], own_home: Path) -> Iterator[sa.Engine]:
    engine = sa.create_engine(str(storage_url(new_postgres())))
    LEASES.create(engine)
    yield engine
    engine.dispose()


def test_a_lease_belongs_to_one_and_is_free_when_given_back(engine: sa.Engine) -> None:
    first, second = Leases(engine, "pets"), Leases(engine, "pets")
    assert first.take("trial-1")
    assert first.take("trial-1"), "its own again"
    assert not second.take("trial-1")
    assert second.taken_by_others("trial-1")
    assert second.take("trial-2")
    first.release("trial-1")
    assert second.take("trial-1")


def test_a_lease_that_is_renewed_is_never_taken_and_one_that_is_not_is(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Leases(engine, "pets"), Leases(engine, "pets")
    first.take("trial-1")
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE thawline_leases SET renewed = now() - interval '59 seconds'"))
    assert not second.take("trial-1")
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE thawline_leases SET renewed = now() - interval '61 seconds'"))
    first.renew()
    assert not second.take("trial-1"), "late, but before anybody took it"
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE thawline_leases SET renewed = now() - interval '61 seconds'"))
    assert second.take("trial-1")
    assert not first.lost("trial-1"), "it has not looked yet"
    first.renew()
    assert first.lost("trial-1")
    assert not second.lost("trial-1")


def test_of_two_that_take_over_at_the_same_moment_one_gets_it(engine: sa.Engine) -> None:
    first, second, third = (Leases(engine, "pets") for _ in range(3))
    first.take("trial-1")
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE thawline_leases SET renewed = now() - interval '1 hour'"))
        row = second._row(connection, "trial-1")
    with engine.begin() as connection:
        assert third._take_over(connection, "trial-1", row)
    with engine.begin() as connection:
        assert not second._take_over(connection, "trial-1", row)


TAKE_AND_HANG = """
import signal, sys, sqlalchemy as sa
from thawline.search.leases import Leases
Leases(sa.create_engine(sys.argv[1]), "pets").take("trial-1")
print("taken", flush=True)
signal.pause()
"""


@pytest.fixture
def run(first_process: Forks, tmp_path: Path) -> Iterator[Callable[..., Fork]]:
    """Starts a program in a fork of a process that has the libraries already; none outlives the test."""
    started: list[Fork] = []

    def start(program: str, *arguments: str) -> Fork:
        started.append(first_process.start(["-c", program, *arguments], os.environ, tmp_path))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def test_the_lease_of_a_process_of_this_machine_is_free_as_soon_as_that_is_dead(
    engine: sa.Engine, run: Callable[..., Fork]
) -> None:
    process = run(TAKE_AND_HANG, engine.url.render_as_string(hide_password=False))
    assert process.stdout is not None
    assert process.stdout.readline() == "taken\n"
    mine = Leases(engine, "pets")
    assert not mine.take("trial-1")
    process.kill()
    process.wait()
    assert mine.take("trial-1")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the times of processes do not move")
def test_a_clock_that_is_set_makes_no_living_search_dead(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Leases(engine, "pets"), Leases(engine, "pets")
    first.take("trial-1")
    booted = psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: booted + 3600)
    assert psutil.boot_time() == booted + 3600, "as psutil reads it once the clock was set"
    assert not second.take("trial-1")


def test_a_trial_that_was_taken_over_is_not_reported_any_more(new_postgres: Callable[[], str], own_home: Path) -> None:
    study = open_study(own_home, new_postgres())
    (asked,) = study.draw(1, trials=12)
    study.report(asked.number, epoch(1))
    claims = study._claims
    assert isinstance(claims, Leases)
    thief = Leases(claims._engine, "pets")
    with claims._engine.begin() as connection:
        connection.execute(sa.text("UPDATE thawline_leases SET renewed = now() - interval '1 hour'"))
    assert thief.take("trial-0")
    claims.renew()
    with pytest.raises(LeaseLost, match="Another search took over trial 0"):
        study.report(asked.number, epoch(2))


SHARE = """
import fcntl, json, sys
from pathlib import Path
from thawline.config import SearchConfig
from thawline.search.conduct import Queue
from thawline.search.study import Study
from thawline.search.trial_result import TrialResult
from thawline.training import Decision, EpochResult

config = SearchConfig.build(
    {"data": {"path": "photos"}, "train": {"epochs": 4}, "study": {"storage": sys.argv[2], "trials": 12, "batch": 2}}
)
study = Study.open(Path(sys.argv[1]), "pets", config, {"resnet18": 5}, "f")
done = []
print("ready", flush=True)
fcntl.flock(open(sys.argv[3]), fcntl.LOCK_SH)
with study.held():
    queue = Queue.of(study, None)
    while together := queue.next():
        for asked in together:
            study.report(asked.number, EpochResult(1, {"val/accuracy": 0.5}, 0))
            study.tell(TrialResult(asked.number, "complete", 0.5, 4, 4, 1.0, "", "run", "file"))
            done.append(asked.number)
    assert not queue.wait_for_others()
print(json.dumps(done))
"""


def test_two_searches_on_postgresql_share_a_study_without_a_lost_or_doubled_trial(
    new_postgres: Callable[[], str], own_home: Path, tmp_path: Path, run: Callable[..., Fork]
) -> None:
    url, gate = new_postgres(), tmp_path / "gate"
    with gate.open("w") as closed:
        fcntl.flock(closed, fcntl.LOCK_EX)  # both begin when it is open
        outputs = [run(SHARE, str(own_home), url, str(gate)).stdout for _ in range(2)]
        assert [output.readline() for output in outputs if output is not None] == ["ready\n"] * 2
    done = [json.loads(output.read()) for output in outputs if output is not None]
    assert sorted(done[0] + done[1]) == list(range(12))
    assert all(done), "both had some"


def test_a_trial_that_another_search_ends_while_this_one_looks_is_not_run_again(
    new_postgres: Callable[[], str], own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_postgres()
    one, other = open_study(own_home, url), open_study(own_home, url)
    other._claims = Leases(one._claims._engine, "pets")  # type: ignore[attr-defined]
    (asked,) = other.draw(1, trials=12)
    take = one._claims.take

    def take_late(name: str) -> bool:
        if name == f"trial-{asked.number}":  # it was listed as running, and ends now
            other.tell(ended(asked.number))
        return take(name)

    monkeypatch.setattr(one._claims, "take", take_late)
    assert one.unfinished() == []
    assert not other._claims.taken_by_others(f"trial-{asked.number}")


def test_what_a_dead_search_had_begun_is_resumed_by_another_that_waits(
    new_postgres: Callable[[], str], own_home: Path
) -> None:
    url = new_postgres()
    study = open_study(own_home, url)
    dead = Leases(study._claims._engine, "pets")  # type: ignore[attr-defined]
    (asked,) = study.draw(1, trials=12)
    study.report(asked.number, epoch(1))
    study._claims.release("trial-0")
    assert dead.take("trial-0")
    assert study.unfinished() == []
    assert study.others_run()
    with dead._engine.begin() as connection:
        connection.execute(sa.text("UPDATE thawline_leases SET renewed = now() - interval '1 hour'"))
    assert [again.number for again in study.unfinished()] == [0]
    assert not study.others_run()


@pytest.mark.parametrize("left", [b'{"op_code": 4, "wor', b'{"op_code": 4, "worker_id": "' + b"x" * 9000])
def test_a_line_that_was_written_half_does_not_cost_the_study(own_home: Path, left: bytes) -> None:
    (asked,) = open_study(own_home).draw(1, trials=12)
    with (own_home / "optuna.journal").open("ab") as file:
        file.write(left)
    study = open_study(own_home)
    assert [again.number for again in study.unfinished()] == [asked.number]
    study.tell(ended(asked.number))
    assert [record.state for record in open_study(own_home).records()] == ["complete"]


def test_optunas_own_journal_would_be_lost(own_home: Path) -> None:
    """The positive control of the test above."""
    open_study(own_home).draw(1, trials=12)
    # Under another name: Optuna takes the file of our lock for its own, and for half a minute waits for it to go.
    journal = own_home / "optuna's own.journal"
    journal.write_bytes((own_home / "optuna.journal").read_bytes() + b'{"op_code": 4, "wor')
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    backend.append_logs([{"a": 1}])
    backend.append_logs([{"a": 2}])
    with pytest.raises(ValueError, match=r"Expecting|delimiter"):
        list(backend.read_logs(0))


def test_a_storage_that_cannot_be_written_gets_the_reports_later_in_order(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study(own_home)
    _, asked = study.draw(2, trials=12)
    with monkeypatch.context() as context:

        def full(self: object, logs: object) -> None:
            raise OSError(28, "No space left on device")

        context.setattr(Journal, "append_logs", full)
        assert study.report(asked.number, epoch(1, 0.1)) is Decision.CONTINUE
        assert study.report(asked.number, epoch(2, 0.2)) is Decision.CONTINUE
    study.report(asked.number, epoch(3, 0.3))
    stored = open_study(own_home)._study.get_trials()[asked.number].intermediate_values
    assert stored == {1: 0.1, 2: 0.2, 3: 0.3}


def test_what_passes_is_tried_again_and_what_does_not_is_said() -> None:
    failures = [OSError(28, "No space left on device"), sa.exc.OperationalError("UPDATE", {}, Exception("locked"))]

    def write() -> str:
        if failures:
            raise failures.pop(0)
        return "written"

    assert patiently(write) == "written"
    failures.append(OSError(28, "No space left on device"))
    with pytest.raises(StudyError, match=r"cannot be written: .*No space left.*the same command resumes"):
        patiently_for(0.0, write)


class Outage:
    """Makes a method fail a few times as if the database were away, and then work."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: type, name: str, error: Exception) -> None:
        self.failures, works = 0, getattr(owner, name)

        def called(*args: Any, **options: Any) -> Any:
            if self.failures < 2:
                self.failures += 1
                raise error
            return works(*args, **options)

        patch.setattr(owner, name, called)


AWAY = sa.exc.OperationalError("SELECT", {}, Exception("server closed the connection unexpectedly"))
STANDBY = sa.exc.InternalError("UPDATE", {}, Exception("cannot execute UPDATE in a read-only transaction"))


@pytest.mark.parametrize("method", ["_insert", "_of"])
@pytest.mark.parametrize("error", [AWAY, STANDBY], ids=["away", "standby"])
def test_a_database_that_is_away_for_a_moment_ends_no_search(
    own_home: Path, monkeypatch: pytest.MonkeyPatch, method: str, error: Exception
) -> None:
    """Whether a lease's row is inserted, or read, renewed or deleted."""
    monkeypatch.setattr(LEASES_MODULE, "LEASE_SECONDS", 0.5)
    study = open_study(own_home, f"sqlite:///{own_home.parent}/study.db", pruner="freeze_thaw")
    with study.held():
        first, *_ = study.draw(2, trials=12)
        study.tell(ended(first.number))
        outage = Outage(monkeypatch, Leases, method, error)
        (asked,) = study.draw(1, trials=12)
        study.begin([asked.number])
        study.report(asked.number, epoch(1))
        study.tell(TrialResult(asked.number, "paused", 0.5, 1, 1, 1.0, "paused after epoch 1", "run", "file"))
        assert study.paused.resume(asked.number) is not None
        assert not study.others_run()
        study.tell(ended(asked.number))
    assert outage.failures == 2, "a control"
    assert {record.state for record in study.records() if record.number in (0, 2)} == {"complete"}


def test_a_trial_opens_its_study_although_the_database_is_starting(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study(own_home, f"sqlite:///{own_home.parent}/study.db")
    outage = Outage(monkeypatch, RDBStorage, "get_study_id_from_name", StorageInternalError("it is starting up"))
    assert Study.load(own_home, "pets", study.config).drawn() == 0
    assert outage.failures == 2, "a control"


def test_leases_are_renewed_after_an_error_that_nobody_foresaw(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(LEASES_MODULE, "LEASE_SECONDS", 0.2)
    beats, often = 0, threading.Event()

    def beat() -> None:
        nonlocal beats
        beats += 1
        if beats == 2:
            raise ValueError("unforeseen")
        if beats == 4:
            often.set()

    with beating(beat):
        assert often.wait(30)
    assert "leases were not renewed" in caplog.text


def test_a_storage_that_is_none_is_refused_with_the_next_step(own_home: Path) -> None:
    with pytest.raises(StudyError, match="must be the URL of a database such as postgresql://"):
        open_storage(own_home, "nonsense")
    with pytest.raises(
        StudyError, match=r"postgresql\+psycopg://me:\*\*\*@127.0.0.1:1/x cannot be opened: .*THAWLINE_ST"
    ):
        open_storage(own_home, "postgresql://me:secret@127.0.0.1:1/x")


def test_a_batch_that_was_being_drawn_comes_out_as_if_it_had_not_been_interrupted(own_home: Path) -> None:
    """The same points for the same trials, wherever in the drawing the process died."""

    def eight(study: Study) -> list[Asked]:
        queue = Queue.of(study, None)
        drawn: list[Asked] = []
        while len(drawn) < 8:
            for asked in queue.next():
                drawn.append(asked)
                study.report(asked.number, epoch(1, asked.hyperparameters.learning_rate * 50))
                study.tell(ended(asked.number, asked.hyperparameters.learning_rate * 50))
        return drawn

    def points(home: Path, interruptions: list[int]) -> list[Asked]:
        for count in interruptions:
            study = open_study(home, batch=4)
            Queue.of(study, None)
            study.draw(count, trials=12)
        study = open_study(home, batch=4)
        study._study.ask()  # died before anything was sampled
        return eight(study)

    def whole(home: Path) -> list[Asked]:
        return eight(open_study(home, batch=4))

    def values(drawn: list[Asked]) -> list[tuple[int, object]]:
        return [(asked.number, asked.hyperparameters) for asked in drawn]

    assert values(points(own_home / "a", [])) == values(whole(own_home / "b"))
    assert values(points(own_home / "c", [2])) == values(whole(own_home / "d"))


def test_the_time_limit_counts_every_time_that_the_study_was_run(own_home: Path) -> None:
    study = open_study(own_home, timeout_minutes=1)
    first = study.deadline()
    assert first is not None
    study._opened -= 45
    with study.held():
        pass
    again = open_study(own_home, timeout_minutes=1)
    left = again.deadline()
    assert left is not None
    assert 10 < left - again._opened <= 15.1
    assert open_study(own_home).deadline() is None


def test_points_of_the_configuration_come_first_and_wrong_ones_are_refused(own_home: Path) -> None:
    study = open_study(own_home, enqueue=[{"freeze_depth": 2, "learning_rate": 0.004}, {"freeze_depth": 1}])
    probe, *drawn = (asked.hyperparameters for asked in study.draw(4, trials=12))
    assert probe.is_probe
    cheapest = max(PORTFOLIO, key=lambda start: start.share)
    assert [h.freeze_depth for h in drawn] == [2, 1, round(cheapest.share * 5)]
    assert (drawn[0].learning_rate, drawn[2].learning_rate) == (0.004, pytest.approx(cheapest.learning_rate))
    for point, message in (
        ({"freeze_depth": 6}, "0 <= freeze_depth <= 5 must hold, but got 6"),
        ({"momentum": 1}, "does not open 'momentum', it opens freeze_depth, learning_rate"),
        ({"freeze_depth": 1.5}, "must hold, but got 1.5"),
    ):
        with pytest.raises(ConfigError, match=message):
            open_study(own_home / "other", enqueue=[point])
