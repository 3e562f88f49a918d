"""What the fork server loads once for all trials. It must start no thread and touch no device."""

# ruff: noqa: F401  imported only to be loaded
import atexit
import gc
import os

import mlflow
import sklearn.metrics
import torch._dynamo  # by every optimizer
import torch.utils.tensorboard

import thawline.search.trial

__all__: list[str] = []


def _leave_at_once(number: int) -> None:
    """Tearing down torch takes two seconds, for which this process would hold the pipe that a search's output goes to.

    Args:
        number: of the fork server: its children inherit this.
    """
    if os.getpid() == number:
        os._exit(0)


atexit.register(_leave_at_once, os.getpid())

# A worker collects garbage after every trial: without this it would look through all that is loaded here, a million
# objects, and copy their pages, which takes half a second.
gc.collect()
gc.freeze()
