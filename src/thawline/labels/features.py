"""The frozen, pretrained features that labels are compared with: whose network, and what it gives of the data."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from thawline import backbones
from thawline.activations import Plan, StoredSplits
from thawline.backbones import Backbone
from thawline.config import SearchConfig, SearchSpace
from thawline.data import Manifest
from thawline.exceptions import BackboneError, RegistryError, StudyError, TrackingError
from thawline.registry import MlflowRegistry, parse_model
from thawline.search.prepare import check_kind, image_preprocessing, prepare_inputs
from thawline.search.records import load_records, study_names
from thawline.search.spec import build_backbone
from thawline.search.stored_activations import known_plan
from thawline.search.version_config import config_of_study, config_of_version
from thawline.tracking import open_store
from thawline.training import Augmentation, Runtime, head_features, runtime_for

__all__ = ["FrozenFeatures", "Network", "network_of"]


@dataclass(frozen=True)
class Network:
    """A pretrained network as a study begins with it."""

    described: str
    """In words."""
    backbone: str
    config: SearchConfig
    """Of the study, or what was given."""
    plan: Plan | None = None
    """Of the study, by which what it has stored is found."""


def network_of(name: str, given: SearchConfig, *, home: Path, tracking_uri: str | None) -> Network:
    """The network that a name means: a backbone, or that from which a study or a registered model was trained.

    Args:
        name: a backbone, a study, or a model as ``NAME``, ``NAME@alias`` or ``NAME/version``, tried in this order.
        given: weights and sizes of a backbone; a study and a model have their own.
        home: Thawline's home.
        tracking_uri: where studies and models are recorded; by default as for a search.

    Raises:
        StudyError: if the settings of a study or of a model's study are not recorded.
        RegistryError: if there is nothing of that name.
        TrackingError: if it is no backbone and no study, and no store of models can be read.
        ConfigError: if it was trained with settings that this version does not know.
    """
    try:
        backbones.kind_of(name)
    except BackboneError as error:
        unknown = error
    else:
        config = given.model_copy(update={"backbone": given.backbone.model_copy(update={"name": name})})
        return Network(f"the pretrained {name}", name, config)
    if name in study_names(home):
        _, records = load_records(home, name)
        best = next((record.hyperparameters.backbone for record in records if record.value is not None), None)
        recorded = config_of_study(open_store(tracking_uri, home), name)
        return _trained(f"the study {name}", name, recorded, best, home)
    try:
        return _of_model(name, home, tracking_uri)
    except (RegistryError, TrackingError) as error:
        raise type(error)(f"{unknown} Nor is there a study {name!r} in {home}. {error}") from None


def _of_model(name: str, home: Path, tracking_uri: str | None) -> Network:
    model, registry = parse_model(name), MlflowRegistry(open_store(tracking_uri, home))
    version = registry.resolve(model)
    tags, recorded = registry.tags(model.name, version), config_of_version(registry, model.name, version)
    study, best = tags.get("thawline.study", ""), tags.get("thawline.backbone")
    return _trained(f"{model.name}/{version}", study, recorded, best, home)


def _trained(what: str, study: str, config: SearchConfig | None, best: str | None, home: Path) -> Network:
    """The network of a study, of several backbones that of its best trial."""
    if config is None:
        raise StudyError(f"What {what} was trained with is not recorded. Name a backbone, one of `thawline backbones`.")
    backbone = best or config.backbones[0]
    return Network(f"the pretrained {backbone} of {what}", backbone, config, known_plan(home, study, backbone))


@dataclass(frozen=True)
class FrozenFeatures:
    """What the network's head would be given of the data before any training."""

    manifest: Manifest
    stored: StoredSplits
    backbone: Backbone
    runtime: Runtime
    batch_size: int

    @classmethod
    def of(
        cls, network: Network, manifest: Manifest, given: SearchConfig, home: Path, inputs: Path | None = None
    ) -> "FrozenFeatures":
        """Decode or tokenize the data, and build the network; neither is computed with yet.

        Args:
            network: whose features they are.
            manifest: the data.
            given: how the data are read, and on which device they are computed with.
            home: Thawline's home.
            inputs: file of the decoded images or tokenized texts, if they are already.

        Raises:
            ConfigError: if the network takes images and the data are texts, or the other way round.
            WeightsError: if the network's weights are not available.
        """
        config = network.config.model_copy(
            update={
                "data": given.data,
                "activations": given.activations,
                "backbone": network.config.backbone.model_copy(update={"name": network.backbone}),
                "space": SearchSpace(),
            }
        )
        check_kind(config, manifest.kind)
        backbone = build_backbone(config, network.backbone, len(manifest.classes))
        stored = StoredSplits(
            folder=home / "cache" / "activations",
            budget=config.activations.budget_bytes,
            plan=network.plan,
            data=inputs or prepare_inputs(config, manifest, home)[network.backbone],
            backbone=network.backbone,
            weights=backbone.weights_digest,
            preprocessing=image_preprocessing(config, network.backbone),
            augmentations=(Augmentation(),),
        )
        own = config.train.model_copy(update={"device": given.train.device})
        # What the store holds without a plan is in single precision.
        train = stored.train_config(own) if network.plan else own.model_copy(update={"precision": "fp32"})
        return cls(manifest, stored, backbone, runtime_for(train), train.batch_size)

    @property
    def are_stored(self) -> bool:
        """Whether a search has stored what is before the head of all training examples, so that reading is cheap."""
        return self.stored.has_plain("train", self.backbone, self.runtime)

    def read(self, on_progress: Callable[[int, int], None] | None = None) -> np.ndarray:
        """The features, float32 ``[rows, F]``, as the manifest's rows lie.

        What is before the head is computed once and stored, as a search does.

        Args:
            on_progress: called with (rows of a split done, rows of it in all) where something is computed.
        """
        size, found = self.batch_size, []
        for split in dict.fromkeys(row.split for row in self.manifest.rows):  # which are sorted by it
            inputs = self.stored.plain(split, self.backbone, self.runtime, batch_size=size, on_progress=on_progress)
            found.append(head_features(self.backbone, inputs, self.runtime, size, self.stored.folder).values)
        return np.concatenate(found)
