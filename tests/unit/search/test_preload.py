"""What the fork server is told to load."""

import subprocess
import sys

CODE = """
import atexit, os, sys
atexit.register(print, "torn down", flush=True)
import thawline.search.preload
child = os.fork()
if child:
    os.waitpid(child, 0)
"""


def test_the_fork_server_leaves_without_tearing_down_its_libraries_and_its_children_as_they_do() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout == "torn down\n", "by the child alone"
