"""The section ``execution``."""

from typing import Literal

from pydantic import Field

from thawline.config.model import Model

__all__ = ["ExecutionConfig"]


class ExecutionConfig(Model):
    """Where trials run."""

    kind: Literal["local", "ray", "dask"] = "local"
    """``local``: processes on this machine. ``ray`` and ``dask``: tasks on a cluster, run by Prefect's task runners
    (``pip install 'thawline[ray]'`` or ``'thawline[dask]'``); ``study.workers`` of them at a time."""
    address: str | None = None
    """Address of the cluster, such as ``ray://head:10001``, ``auto`` or ``tcp://scheduler:8786``; without one a small
    cluster is started on this machine."""
    cpus: float = Field(1.0, gt=0)
    """CPU cores per trial on a cluster."""
    gpus: float = Field(0.0, ge=0)
    """GPUs per trial on a Ray cluster; 0.5 puts two trials on each."""
