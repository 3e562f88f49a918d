"""How a process hears of signals, in a process that loads nothing else."""

import subprocess
import sys

INTERRUPTED_IN_A_DESTRUCTOR = """
import signal, time, weakref
from thawline import stopping

stopping.listen(lambda: print("by force", flush=True))
stopping.allow(60)

class Thing:
    pass

def remove(reference):
    signal.raise_signal(signal.SIGINT)

thing = Thing()
reference = weakref.ref(thing, remove)
try:
    del thing
    time.sleep(600)
except KeyboardInterrupt:
    print("in order", flush=True)
    stopping.leave()
"""


def test_ctrl_c_while_garbage_is_collected_ends_the_command_in_order_too() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IN_A_DESTRUCTOR], capture_output=True, text=True, timeout=50, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "in order\n", "")


LOADED = """
import sys, thawline.__main__
print([name for name in ("importlib.metadata", "logging") if name in sys.modules])
"""


def test_nothing_slow_is_loaded_before_ctrl_c_is_heard_of() -> None:
    loaded = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    assert loaded.stdout == "[]\n"
