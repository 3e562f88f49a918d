"""The frozen features of a pretrained network for the label check."""

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
    """A pretrained network at the start of a study."""

    described: str
    """Description for messages."""
    backbone: str
    config: SearchConfig
    """Configuration of the study, or the given one."""
    plan: Plan | None = None
    """Plan of the study, to find its stored activations."""


def network_of(name: str, given: SearchConfig, *, home: Path, tracking_uri: str | None) -> Network:
    """The network that a name refers to: a backbone, or the pretrained network of a study or registered model.

    Args:
        name: a backbone, a study, or a model as ``NAME``, ``NAME@alias`` or ``NAME/version``, tried in this order.
        given: weights and sizes of a backbone; studies and models have their own.
        home: Thawline's home.
        tracking_uri: URI of the store with studies and models; by default as for a search.

    Raises:
        StudyError: if the settings of a study or of a model's study are not recorded.
        RegistryError: if there is no backbone, study or model of that name.
        TrackingError: if it is neither a backbone nor a study, and no registry can be read.
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
        raise type(error)(f"{unknown} There is no study {name!r} in {home} either. {error}") from None


def _of_model(name: str, home: Path, tracking_uri: str | None) -> Network:
    model, registry = parse_model(name), MlflowRegistry(open_store(tracking_uri, home))
    version = registry.resolve(model)
    tags, recorded = registry.tags(model.name, version), config_of_version(registry, model.name, version)
    study, best = tags.get("thawline.study", ""), tags.get("thawline.backbone")
    return _trained(f"{model.name}/{version}", study, recorded, best, home)


def _trained(what: str, study: str, config: SearchConfig | None, best: str | None, home: Path) -> Network:
    """The network of a study, or of its best trial if there are several backbones."""
    if config is None:
        raise StudyError(f"The settings of {what} are not recorded. Name a backbone, one of `thawline backbones`.")
    backbone = best or config.backbones[0]
    return Network(f"the pretrained {backbone} of {what}", backbone, config, known_plan(home, study, backbone))


@dataclass(frozen=True)
class FrozenFeatures:
    """Inputs of the network's head for the data, before any training."""

    manifest: Manifest
    stored: StoredSplits
    backbone: Backbone
    runtime: Runtime
    batch_size: int

    @classmethod
    def of(
        cls, network: Network, manifest: Manifest, given: SearchConfig, home: Path, inputs: Path | None = None
    ) -> "FrozenFeatures":
        """Decode or tokenize the data, and build the network, without computing features yet.

        Args:
            network: to compute the features.
            manifest: manifest of the data.
            given: settings for reading the data, and the device.
            home: Thawline's home.
            inputs: file of decoded images or tokenized texts, if it exists already.

        Raises:
            ConfigError: if the network takes images and the data are texts, or vice versa.
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
        # Without a plan, the store contains single precision.
        train = stored.train_config(own) if network.plan else own.model_copy(update={"precision": "fp32"})
        return cls(manifest, stored, backbone, runtime_for(train), train.batch_size)

    @property
    def are_stored(self) -> bool:
        """Whether a search has stored the last activations of all training examples, so that reading is cheap."""
        return self.stored.has_plain("train", self.backbone, self.runtime)

    def read(self, on_progress: Callable[[int, int], None] | None = None) -> np.ndarray:
        """The features, float32 ``[rows, F]``, in the order of the manifest's rows.

        The last activations are computed once and stored, as in a search.

        Args:
            on_progress: called with (rows of a split done, rows of the split) during computation.
        """
        size, found = self.batch_size, []
        for split in dict.fromkeys(row.split for row in self.manifest.rows):  # rows are sorted by split
            inputs = self.stored.plain(split, self.backbone, self.runtime, batch_size=size, on_progress=on_progress)
            found.append(head_features(self.backbone, inputs, self.runtime, size, self.stored.folder).values)
        return np.concatenate(found)
