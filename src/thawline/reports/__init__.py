"""Figures and pages of a study: values in, figures out."""

from thawline.reports.gallery import excerpt, thumbnail, worst_mistakes
from thawline.reports.intervals import Interval, class_table, metric_intervals, proportion_interval
from thawline.reports.page import render, report_figures, report_surfaces
from thawline.reports.prediction_figures import (
    confusion_figure,
    precision_recall_curves,
    reliability_diagram,
    roc_curves,
)
from thawline.reports.study_figures import (
    best_trial,
    hyperparameter_importance,
    learning_curves,
    memory_by_depth,
    optimisation_history,
    response_surface,
    thaw_line,
    time_by_depth,
)
from thawline.reports.surface import Surface, fit_surface, surface_mesh
from thawline.reports.values import (
    Baselines,
    Calibration,
    Criterion,
    DataSummary,
    Explanation,
    FileProblem,
    LearningCurve,
    Mistake,
    Promotion,
    Provenance,
    StudyReport,
    TrialPoint,
)

__all__ = [
    "Baselines",
    "Calibration",
    "Criterion",
    "DataSummary",
    "Explanation",
    "FileProblem",
    "Interval",
    "LearningCurve",
    "Mistake",
    "Promotion",
    "Provenance",
    "StudyReport",
    "Surface",
    "TrialPoint",
    "best_trial",
    "class_table",
    "confusion_figure",
    "excerpt",
    "fit_surface",
    "hyperparameter_importance",
    "learning_curves",
    "memory_by_depth",
    "metric_intervals",
    "optimisation_history",
    "precision_recall_curves",
    "proportion_interval",
    "reliability_diagram",
    "render",
    "report_figures",
    "report_surfaces",
    "response_surface",
    "roc_curves",
    "surface_mesh",
    "thaw_line",
    "thumbnail",
    "time_by_depth",
    "worst_mistakes",
]
