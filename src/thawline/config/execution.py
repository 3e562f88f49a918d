"""The section ``execution``."""

from typing import Literal

from pydantic import Field

from thawline.config.model import Model

__all__ = ["ExecutionConfig"]


class ExecutionConfig(Model):
    """Where trials run."""

    kind: Literal["local", "ray", "dask"] = "local"
    """``local``: processes of this machine. ``ray`` and ``dask``: tasks on a cluster, by Prefect's task runners
    (``pip install 'thawline[ray]'`` or ``'thawline[dask]'``); ``study.workers`` of them at a time."""
    address: str | None = None
    """Address of the cluster, such as ``ray://head:10001``, ``auto`` or ``tcp://scheduler:8786``; without one a small
    cluster is started on this machine."""
    cpus: float = Field(1.0, gt=0)
    """CPU cores that a trial on a cluster takes."""
    gpus: float = Field(0.0, ge=0)
    """GPUs that a trial on a Ray cluster takes; 0.5 puts two trials on each."""
