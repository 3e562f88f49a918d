"""The configuration of a search whose data are known, with the optional names filled in."""

from thawline.config.promotion import PromotionConfig
from thawline.config.search import SearchConfig
from thawline.config.study import StudyConfig

__all__ = ["NamedPromotion", "NamedStudy", "ResolvedConfig"]


class NamedStudy(StudyConfig):
    """The search as a whole, which has a name."""

    name: str
    """Name of the study."""


class NamedPromotion(PromotionConfig):
    """The same, with the name of the model filled in."""

    model: str
    """Name in the MLflow model registry."""


class ResolvedConfig(SearchConfig):
    """A recipe as it is carried out, where :class:`SearchConfig` is the recipe as it was written."""

    study: NamedStudy
    promotion: NamedPromotion

    @classmethod
    def of(cls, config: SearchConfig, *, study: str, model: str) -> "ResolvedConfig":
        """The recipe with the names of study and registered model, and the number of trials unless time limits it."""
        sections = {name: getattr(config, name) for name in SearchConfig.model_fields}
        filled = {**config.study.model_dump(), "name": study, "trials": config.study.most_trials}
        sections["study"] = NamedStudy.model_validate(filled)
        sections["promotion"] = NamedPromotion.model_validate({**config.promotion.model_dump(), "model": model})
        return cls(**sections)
