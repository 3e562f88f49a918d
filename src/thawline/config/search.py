"""The whole configuration of a search."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import ValidationError, model_validator

from thawline.config.activations import ActivationsConfig
from thawline.config.backbone import BackboneConfig
from thawline.config.data import DataConfig
from thawline.config.execution import ExecutionConfig
from thawline.config.layers import merge
from thawline.config.mistakes import describe
from thawline.config.model import Model
from thawline.config.promotion import PromotionConfig
from thawline.config.retrain import RetrainConfig
from thawline.config.space import SearchSpace
from thawline.config.study import StudyConfig
from thawline.config.tracking import TrackingConfig
from thawline.config.train import NOT_COMPARED, AugmentationKind, BatchNorm, Policy, TrainConfig
from thawline.config.urls import without_password
from thawline.exceptions import ConfigError

__all__ = ["SearchConfig"]

_WHOLE = frozenset({"space.backbone", "backbone.weights", "study.sampler_options", "study.pruner_options"})
"""Mappings that a later layer replaces as a whole: merged with a recipe's, no entry could be removed."""


class SearchConfig(Model):
    """The whole configuration of ``thawline search``."""

    data: DataConfig
    backbone: BackboneConfig = BackboneConfig()
    train: TrainConfig = TrainConfig()
    activations: ActivationsConfig = ActivationsConfig()
    space: SearchSpace = SearchSpace()
    study: StudyConfig = StudyConfig()
    execution: ExecutionConfig = ExecutionConfig()
    tracking: TrackingConfig = TrackingConfig()
    promotion: PromotionConfig = PromotionConfig()
    retrain: RetrainConfig = RetrainConfig()

    @model_validator(mode="after")
    def _views_of_what_changes(self) -> Self:
        if self.train.views is not None and set(self.augmentations) == {"none"} and not self.train.random_erasing:
            raise ValueError(
                f"train.views={self.train.views} needs augmentation: set train.augmentation to light or "
                "standard, or set train.random_erasing, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _compiled_for_a_whole_trial(self) -> Self:
        if self.train.compile and self.study.pruner == "freeze_thaw":
            raise ValueError(
                "train.compile needs trials that train without a break, but study.pruner=freeze_thaw trains one epoch "
                "at a time, and would compile again for each. Change one of the two"
            )
        return self

    @model_validator(mode="after")
    def _something_thaws_gradually(self) -> Self:
        policies = self.policies
        given = {name: getattr(self.train, name) for name in ("thaw_patience", "thaw_epochs")}
        useless = [f"train.{name}={value}" for name, value in given.items() if value is not None]
        if useless and "gradual" not in policies:
            raise ValueError(
                f"{useless[0]} needs the policy gradual, but the policy is {' or '.join(policies)}: set "
                "train.policy=gradual, or leave it out"
            )
        fraction = self.train.thaw_fraction
        if fraction != TrainConfig.model_fields["thaw_fraction"].default and not self._reads_thaw_fraction(policies):
            raise ValueError(
                f"train.thaw_fraction={fraction} has no effect: the policy is {' or '.join(policies)}"
                f"{', and thaw_epochs sets the epochs' if self.train.thaw_epochs else ''}. Leave it out, or set "
                "train.policy=lp_ft"
            )
        return self

    def _reads_thaw_fraction(self, policies: Sequence[Policy]) -> bool:
        return "lp_ft" in policies or ("gradual" in policies and self.train.thaw_epochs is None)

    @model_validator(mode="before")
    @classmethod
    def _sampler_of_conditional_spaces(cls, given: Any) -> Any:
        """Default to TPESampler for several backbones: GPSampler cannot model a depth that belongs to only one of them.

        See ADR 18.
        """
        if not isinstance(given, Mapping):
            return given
        space, study = given.get("space"), given.get("study", {})
        searched = space.get("backbone") if isinstance(space, Mapping) else getattr(space, "backbone", None)
        count = len(searched) if isinstance(searched, list | tuple | Mapping) else 0
        named = study if isinstance(study, Mapping) else getattr(study, "model_fields_set", {"sampler"})
        if count < 2 or "sampler" in named:
            return given
        options = {"multivariate": True, "group": True, "n_startup_trials": 4 + 2 * count}
        own = study if isinstance(study, Mapping) else study.model_dump(exclude_unset=True)
        return {**given, "study": {"sampler_options": options, **own, "sampler": "TPESampler"}}

    @model_validator(mode="after")
    def _weights_are_of_backbones(self) -> Self:
        if isinstance(self.backbone.weights, dict):
            unknown = self.backbone.weights.keys() - set(self.backbones)
            if unknown:
                raise ValueError(
                    f"backbone.weights names {', '.join(sorted(unknown))}, but the study's backbones are "
                    f"{', '.join(self.backbones)}"
                )
        return self

    @classmethod
    def build(cls, *layers: Mapping[str, Any], typed_as: Mapping[str, str] | None = None) -> "SearchConfig":
        """Merge layers of nested mappings and validate the result; later layers override earlier ones.

        ``space.backbone``, ``backbone.weights`` by name, and options of samplers and pruners are not merged: the last
        layer that has one replaces it as a whole.

        Args:
            layers: nested mappings.
            typed_as: command-line options by the keys that they set, such as ``{"study.trials": "--trials"}``, to name
                them in errors.

        Raises:
            ConfigError: naming every wrong key and value at once.
        """
        merged: dict[str, Any] = {}
        for layer in layers:
            merge(merged, layer, whole=_WHOLE)
        try:
            return cls.model_validate(merged)
        except ValidationError as error:
            raise ConfigError(describe(error, cls, typed_as or {})) from None

    @property
    def backbones(self) -> tuple[str, ...]:
        """Names of all backbones that the study may train."""
        return tuple(self.space.backbone or (self.backbone.name,))

    @property
    def policies(self) -> tuple[Policy, ...]:
        """Thawing policies that trials may have."""
        return self.space.opened("policy") or (self.train.policy,)

    @property
    def augmentations(self) -> tuple[AugmentationKind, ...]:
        """Augmentations that trials may have."""
        return self.space.opened("augmentation") or (self.train.augmentation,)

    def fixed(self, name: str, backbone: str) -> Any:
        """The value of a searchable setting for trials of a backbone if it is not searched."""
        return self.batch_norm_of(backbone) if name == "batch_norm" else getattr(self.train, name)

    def batch_norm_of(self, backbone: str) -> BatchNorm:
        """The batch-norm mode of a backbone if it is not searched: random weights have no statistics to keep."""
        return "train_all" if self.backbone.is_random(backbone) else self.train.batch_norm

    def fingerprint(self, data_digest: str) -> str:
        """Sixteen hex digits that differ when trials of two searches are not comparable.

        Budget (trials, timeout, workers), names, tracking and promotion may change between two runs of one study;
        data, backbone, training and search space may not.
        """
        relevant = {"data": data_digest, **self.comparable()}
        return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:16]

    def comparable(self) -> dict[str, dict[str, Any]]:
        """The settings, by section, that two trials must share to be comparable."""
        return {
            "backbone": self.backbone.model_dump(mode="json"),
            "train": self.train.model_dump(mode="json", exclude=NOT_COMPARED),
            "space": self.space.model_dump(mode="json"),
            "study": self.study.model_dump(
                mode="json", include={"metric", "sampler", "sampler_options", "seed", "keep_backbones"}
            ),
        }

    def without_passwords(self) -> "SearchConfig":
        """The same configuration with ``***`` for passwords in its URLs, for logs and pages."""
        storage, uri = (url and without_password(url) for url in (self.study.storage, self.tracking.uri))
        return self.model_copy(
            update={
                "study": self.study.model_copy(update={"storage": storage}),
                "tracking": self.tracking.model_copy(update={"uri": uri}),
            }
        )
