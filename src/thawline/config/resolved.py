"""The configuration of a search on known data, with the optional names filled in."""

from thawline.config.promotion import PromotionConfig
from thawline.config.search import SearchConfig
from thawline.config.study import StudyConfig

__all__ = ["NamedPromotion", "NamedStudy", "ResolvedConfig"]


class NamedStudy(StudyConfig):
    """The search as a whole, with its name filled in."""

    name: str
    """Name of the study."""


class NamedPromotion(PromotionConfig):
    """The same, with the name of the model filled in."""

    model: str
    """Name in the MLflow model registry."""


class ResolvedConfig(SearchConfig):
    """A recipe as it runs, whereas :class:`SearchConfig` is the recipe as written."""

    study: NamedStudy
    promotion: NamedPromotion

    @classmethod
    def of(cls, config: SearchConfig, *, study: str, model: str) -> "ResolvedConfig":
        """Fill in the names of study and registered model, and the number of trials unless there is a time limit."""
        sections = {name: getattr(config, name) for name in SearchConfig.model_fields}
        filled = {**config.study.model_dump(), "name": study, "trials": config.study.most_trials}
        sections["study"] = NamedStudy.model_validate(filled)
        sections["promotion"] = NamedPromotion.model_validate({**config.promotion.model_dump(), "model": model})
        return cls(**sections)
