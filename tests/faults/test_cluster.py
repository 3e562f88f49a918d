"""A search on a real Ray cluster of two nodes, one of which is killed in the middle of a trial."""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from faults import TRIALS, Search, epochs_of, facts
from servers import free_port

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cluster"), pytest.mark.timeout(900)]

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
"""Who does not know it is not let in, as on a cluster that others can reach."""


@contextmanager
def node(*options: str) -> Iterator["subprocess.Popen[str]"]:
    """`ray start`, up; killed with all that belongs to it when the block ends."""
    command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **TOKEN}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            said = []
            for line in process.stdout:
                said.append(line)
                if "Ray runtime started" in line:
                    break
            else:
                pytest.fail("".join(said))
            yield process
        finally:
            kill(process)
            process.stdout.read()


def kill(node: "subprocess.Popen[str]") -> None:
    """All processes of a node at once, as when a machine loses its power."""
    with suppress(ProcessLookupError):
        os.killpg(node.pid, signal.SIGKILL)


@pytest.fixture
def head() -> Iterator[str]:
    """A head node that computes nothing; its address."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        options = ["--head", "--port", str(port), "--num-cpus", "0", "--include-dashboard", "false"]
        with node(*options, "--temp-dir", folder, "--node-ip-address", "127.0.0.1"):
            yield f"127.0.0.1:{port}"


def test_a_trial_whose_node_is_killed_is_finished_on_another_one(
    make_search: Callable[..., Search], reference: dict[str, Any], head: str
) -> None:
    on_ray = ["--set", "execution.kind=ray", "--set", f"execution.address={head}"]
    search = make_search("there", *TRIALS, *on_ray, **TOKEN)
    with node("--address", head, "--num-cpus", "1") as first:
        life = search.start()
        trials = search.home / "studies" / "shapes"
        deadline = time.monotonic() + 300
        while not list(trials.glob("trial-00[123]/epoch-000[12].safetensors")) and life.process.poll() is None:
            assert time.monotonic() < deadline, life.lines
            time.sleep(0.05)  # a trial elsewhere tells its driver nothing before it ends
        kill(first)
        with node("--address", head, "--num-cpus", "1"):
            code, _ = life.end(400)
    assert code == 0, "\n".join(life.lines)
    assert facts(search.outcome()) == facts(reference)
    recorded = search.epochs()
    assert recorded.keys() == epochs_of(4, 4)
    assert {key for key, times in recorded.items() if len(times) > 1} == set()


def test_dask_does_the_same_trials(make_search: Callable[..., Search], reference: dict[str, Any]) -> None:
    outcome = make_search("there", *TRIALS, "--set", "execution.kind=dask", "--set", "study.workers=1").finish()
    assert facts(outcome) == facts(reference)


def test_a_cluster_that_does_not_answer_is_reported_before_anything_is_trained(
    make_search: Callable[..., Search],
) -> None:
    options = ["--set", "execution.kind=dask", "--set", "execution.address=tcp://127.0.0.1:1"]
    # Dask asks again for so long: what it does while the address refuses is the same, however long it is.
    search = make_search("nobody", *options, DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT="1s")
    life = search.start()
    code, _ = life.end()
    assert code == 2, "\n".join(life.lines)
    assert "execution.address=tcp://127.0.0.1:1 does not respond" in life.lines[-1]
