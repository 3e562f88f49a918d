"""How a process hears of signals, in a process that loads nothing else."""

import subprocess
import sys

import pytest

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


INTERRUPTED_WHILE_IT_STARTS_A_PROCESS = """
import os, signal, socket, sys, threading
from thawline.processes import ctrl_c_withheld

number = signal.Signals[sys.argv[1]]
signal.signal(number, signal.default_int_handler)
reading, writing = socket.socketpair()
writing.setblocking(False)
signal.set_wakeup_fd(writing.fileno())
threading.Thread(target=threading.Event().wait, daemon=True).start()  # which the kernel gives the signal to
try:
    with ctrl_c_withheld():
        os.kill(os.getpid(), number)
        assert reading.recv(1) == bytes([number])  # it has come
        print("started", flush=True)
    print("not reached", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
assert signal.getsignal(number) is signal.default_int_handler
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_ctrl_c_while_a_process_is_started_is_handled_once_it_has_all_of_its_arguments(name: str) -> None:
    """Else it ends in a traceback, ``EOFError: Ran out of input``."""
    command = [sys.executable, "-c", INTERRUPTED_WHILE_IT_STARTS_A_PROCESS, name]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "started\ninterrupted\n", "")


LOADED = """
import sys, thawline.__main__
print([name for name in ("importlib.metadata", "logging") if name in sys.modules])
"""


def test_nothing_slow_is_loaded_before_ctrl_c_is_heard_of() -> None:
    loaded = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    assert loaded.stdout == "[]\n"
