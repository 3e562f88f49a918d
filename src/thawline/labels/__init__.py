"""The label doctor: labels that contradict the frozen features."""

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
