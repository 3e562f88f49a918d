"""The label doctor: which labels the frozen features contradict."""

from thawline.labels.check import LabelCheck, Suspect, check_labels, check_suspects_file, judged
from thawline.labels.features import FrozenFeatures, Network, network_of

__all__ = [
    "FrozenFeatures",
    "LabelCheck",
    "Network",
    "Suspect",
    "check_labels",
    "check_suspects_file",
    "judged",
    "network_of",
]
