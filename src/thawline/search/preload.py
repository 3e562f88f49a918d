"""What the fork server loads once for all trials. It must start no thread and touch no device."""

# ruff: noqa: F401  imported only to be loaded
import mlflow
import sklearn.metrics
import torch._dynamo  # by every optimizer
import torch.utils.tensorboard

import thawline.search.trial

__all__: list[str] = []
