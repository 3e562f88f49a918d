"""The configuration: one set of frozen models for the recipe file, the command line, Prefect's form and the log.

A recipe is YAML with these keys; every key may be left out. Precedence: defaults, then the recipe, then the command
line's options, then ``--set key=value``. All mistakes are reported at once, with the path of each key.
"""

from thawline.config.activations import ActivationsConfig
from thawline.config.backbone import BackboneConfig
from thawline.config.data import DataConfig
from thawline.config.execution import ExecutionConfig
from thawline.config.layers import flatten, load_recipe, nested, parse_assignments, parse_value
from thawline.config.model import PlainName
from thawline.config.promotion import GateRules, PromotionConfig
from thawline.config.resolved import ResolvedConfig
from thawline.config.retrain import RetrainConfig
from thawline.config.search import SearchConfig
from thawline.config.searchable import SEARCHABLE, Choice, Range
from thawline.config.space import SearchSpace
from thawline.config.study import StudyConfig
from thawline.config.tracking import TrackingConfig
from thawline.config.train import NOT_COMPARED, AugmentationKind, BatchNorm, HeadStart, Policy, TrainConfig
from thawline.config.urls import with_driver, without_password

__all__ = [
    "NOT_COMPARED",
    "SEARCHABLE",
    "ActivationsConfig",
    "AugmentationKind",
    "BackboneConfig",
    "BatchNorm",
    "Choice",
    "DataConfig",
    "ExecutionConfig",
    "GateRules",
    "HeadStart",
    "PlainName",
    "Policy",
    "PromotionConfig",
    "Range",
    "ResolvedConfig",
    "RetrainConfig",
    "SearchConfig",
    "SearchSpace",
    "StudyConfig",
    "TrackingConfig",
    "TrainConfig",
    "flatten",
    "load_recipe",
    "nested",
    "parse_assignments",
    "parse_value",
    "with_driver",
    "without_password",
]
