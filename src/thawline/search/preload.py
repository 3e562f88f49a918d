"""Modules that the fork server loads once for all trials. It must not start threads or initialise devices."""

# ruff: noqa: F401  imported only to be loaded
import atexit
import gc
import os

import mlflow
import torch._dynamo  # by every optimizer
import torch.utils.tensorboard

import thawline.search.trial

__all__: list[str] = []


def _leave_at_once(number: int) -> None:
    """Exit without tearing down torch, for two seconds of which this process would keep the output pipe open.

    Args:
        number: process id of the fork server, because its children inherit this function.
    """
    if os.getpid() == number:
        os._exit(0)


atexit.register(_leave_at_once, os.getpid())

# A worker collects garbage after every trial: without this it would visit the million objects loaded here and copy
# their pages, which takes half a second.
gc.collect()
gc.freeze()
