"""The label doctor: which labels the frozen features contradict."""

from thawline.labels.check import LabelCheck, Suspect, check_labels, check_suspects_file, judged
from thawline.labels.features import head_features_of

__all__ = ["LabelCheck", "Suspect", "check_labels", "check_suspects_file", "head_features_of", "judged"]
