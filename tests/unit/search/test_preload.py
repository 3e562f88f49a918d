"""What the fork server is told to load."""

import os
from pathlib import Path

import pytest
from commands import Forks

pytestmark = pytest.mark.xdist_group("postgres")  # on whose worker there is a first process already

LOADED = """
import sys

def loaded(*names):
    return [name in sys.modules for name in names]
"""
FURTHER = """
import os, sys

sys.path.insert(0, os.getcwd())
from loaded import loaded
from thawline.processes import start_fork_server
from thawline.search.worker import call_with_retries, stop_workers

start_fork_server(["colorsys", "no_such_module"])
print(call_with_retries(loaded, "colorsys", "this", "thawline.search.preload", retries=0, title="asking"))
stop_workers()
"""
CODE = """
import atexit, importlib, os
import thawline.search.preload
atexit.register(print, "torn down", flush=True)
importlib.reload(thawline.search.preload)  # as if it were loaded only now, by a fork server
child = os.fork()
if child:
    os.waitpid(child, 0)
"""


def test_the_fork_server_leaves_without_tearing_down_its_libraries_and_its_children_as_they_do(
    first_process: Forks, tmp_path: Path
) -> None:
    code, out, err = first_process.run(["-c", CODE], os.environ, tmp_path)
    assert (code, out, err) == (0, "torn down\n", ""), "torn down by the child alone"


def test_what_the_fork_server_has_loaded_is_not_looked_through_when_a_worker_collects_garbage(
    first_process: Forks, tmp_path: Path
) -> None:
    code = "import gc, importlib, thawline.search.preload; gc.unfreeze(); print(len(gc.get_objects()) > 100_000); "
    code += "importlib.reload(thawline.search.preload); print(len(gc.get_objects()) < 10_000)"
    assert first_process.run(["-c", code], os.environ, tmp_path) == (0, "True\nTrue\n", "")


def test_the_fork_server_loads_further_modules_for_all_workers_and_leaves_out_what_is_missing(
    first_process: Forks, tmp_path: Path
) -> None:
    (tmp_path / "loaded.py").write_text(LOADED)
    code, out, err = first_process.run(["-c", FURTHER], os.environ, tmp_path)
    assert (code, out, err) == (0, "[True, False, True]\n", ""), "a control: `this` is loaded by nobody"
