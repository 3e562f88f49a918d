"""What the fork server loads once for all trials. It must start no thread and touch no device."""

import mlflow.system_metrics.system_metrics_monitor
import sklearn.metrics
import torch.utils.tensorboard
import torchvision.models

import thawline.search.trial  # noqa: F401

__all__: list[str] = []
