"""Judge a registered version again, on the test data and with the thresholds of its study."""

from dataclasses import dataclass
from pathlib import Path

from thawline.config import DataConfig, PromotionConfig, SearchConfig
from thawline.data import Manifest, scan
from thawline.exceptions import ConfigError, DataError
from thawline.registry import (
    LabelledData,
    MlflowRegistry,
    ModelName,
    PromotionOutcome,
    Shadowed,
    force,
    judge,
    read_shadow,
)
from thawline.search.events import Note, Phase, counting, emit
from thawline.search.version_config import config_of_version, promotion_of_version
from thawline.search.winner import further_data, test_split
from thawline.tracking import MlflowStore, open_store

__all__ = ["Challenger", "force_challenger", "judge_challenger", "open_challenger"]

_DEFAULTS = "The default thresholds apply; approval is required only with --approve."


@dataclass(frozen=True)
class Challenger:
    """A version to judge, with its test data and thresholds."""

    store: MlflowStore
    name: str
    version: str
    test: LabelledData
    rules: PromotionConfig
    data: DataConfig
    """Data settings of the study; additional tables of texts must have the same columns."""
    shadowed: Shadowed | None = None
    """What a server counted when it computed the version in the champion's shadow."""


def open_challenger(
    model: str,
    *,
    version: str | None,
    data: Path | None,
    approve: bool | None,
    tracking_uri: str | None,
    home: Path,
    shadow: str | None = None,
    token_file: Path | None = None,
) -> Challenger:
    """Find a version and the data to judge it on.

    Args:
        model: name of the registered model.
        version: by default the one with the alias ``challenger``, or else the newest.
        data: a folder of labelled images, or a table of labelled texts; by default the test split of the study that
            trained the version.
        approve: whether a person must approve; by default as in that study. The study's thresholds apply too.
        tracking_uri: where the registry is.
        home: Thawline's home.
        shadow: address of a server that computes this version in the champion's shadow.
        token_file: file with the token that this server requires.

    Raises:
        RegistryError: if there is no such version, or no run to record the verdict in, or if the server does not
            respond or does not know the version.
        ConfigError: if a person must approve but no server is available to request it, or if the settings of the study
            cannot be read and no data are given.
        DataError: if the study's data have changed since, or are missing.
    """
    store = open_store(tracking_uri, home)
    registry = MlflowRegistry(store)
    chosen = _version(registry, model, version)
    registry.run_of(model, chosen)  # before anything is scored
    shadowed = read_shadow(shadow, chosen, token_file=token_file) if shadow else None
    config, rules = _settings_of_study(registry, model, chosen, data)
    if approve is not None:
        rules = rules.model_copy(update={"approve": approve})
    return Challenger(
        store=store,
        name=model,
        version=chosen,
        test=_test_data(registry, model, chosen, config, data),
        rules=rules,
        data=config.data if config else DataConfig(path=data or Path()),
        shadowed=shadowed,
    )


def judge_challenger(challenger: Challenger) -> PromotionOutcome:
    """Score the challenger and the champion on the same data, and decide.

    Raises:
        RegistryError: if the version cannot be loaded or scored.
    """
    test = challenger.test
    kind = "texts" if isinstance(test.items[0], str) else "images"
    emit(Phase(f"scoring version {challenger.version} and the champion on {len(test.labels)} test {kind}"))
    return judge(
        challenger.store,
        name=challenger.name,
        version=challenger.version,
        test=test,
        rules=challenger.rules,
        further=further_data(challenger.rules.further, challenger.data),
        shadowed=challenger.shadowed,
    )


def force_challenger(model: str, *, version: str | None, reason: str, tracking_uri: str | None, home: Path) -> str:
    """Make a version champion without a comparison; returns the version.

    Raises:
        RegistryError: if the reason is empty, or the version is missing or fails to predict.
    """
    store = open_store(tracking_uri, home)
    chosen = _version(MlflowRegistry(store), model, version)
    force(store, name=model, version=chosen, reason=reason)
    return chosen


def _version(registry: MlflowRegistry, model: str, version: str | None) -> str:
    """The given version, or the challenger, or the newest."""
    if version is not None:
        return registry.resolve(ModelName(model, None, version))
    return registry.challenger(model) or registry.newest(model)


def _settings_of_study(
    registry: MlflowRegistry, model: str, version: str, data: Path | None
) -> tuple[SearchConfig | None, PromotionConfig]:
    """Settings and thresholds of the study that trained a version; ``None`` if it can be judged without the former."""
    try:
        config = config_of_version(registry, model, version)
    except ConfigError as error:
        if data is None:
            raise ConfigError(f"{error}\nName labelled data that {model}/{version} has not seen with --data.") from None
        rules = promotion_of_version(registry, model, version)
        emit(Note(f"{error}\n{_DEFAULTS if rules is None else 'Its thresholds apply.'}", "warning"))
        return None, rules or PromotionConfig()
    if config is not None:
        return config, config.promotion
    if data is not None:
        emit(Note(f"The settings of the study that trained {model}/{version} are not recorded. {_DEFAULTS}", "warning"))
    return None, PromotionConfig()


def _test_data(
    registry: MlflowRegistry, model: str, version: str, config: SearchConfig | None, data: Path | None
) -> LabelledData:
    if data is not None:
        return further_data([data], config.data if config else DataConfig(path=data))[0]
    if config is None:
        raise DataError(f"The test data of {model}/{version} are not recorded: name a folder or a table with --data.")
    manifest: Manifest = scan(config.data, on_progress=counting("reading the data of its study"))
    trained_on = registry.tags(model, version).get("thawline.data_digest")
    if trained_on not in (None, manifest.digest):
        raise DataError(
            f"{config.data.path} has changed since {model}/{version} was trained, so that its test {manifest.kind} may "
            f"be among those. Name labelled {manifest.kind} that it has not seen with --data."
        )
    return test_split(manifest)
