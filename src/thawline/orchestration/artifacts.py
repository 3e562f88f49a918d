"""Artifacts of a search in Prefect's UI: progress, the leaderboard, links."""

from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from thawline.config import StudyConfig
from thawline.orchestration.reach import page
from thawline.search import Recorder, SearchOutcome, Study
from thawline.search.leaderboard import leaderboard_rows

__all__ = ["Progress", "publish_leaderboard", "publish_outcome"]


class Progress:
    """The progress bar of a search: the share of its trials or of its time limit, whichever is larger."""

    def __init__(self, study: Study, budget: StudyConfig) -> None:
        self._budget = budget
        self._artifact: UUID | None = None
        self.update(study)

    @page
    def update(self, study: Study) -> None:
        """Update the bar, or create it on the first call."""
        if self._artifact is not None:
            update_progress_artifact(self._artifact, self._share(study))
            return
        description = f"Trials of the study {study.name}"
        made = create_progress_artifact(self._share(study), key="trials", description=description)
        assert isinstance(made, UUID)  # noqa: S101  narrows the type: this is not a coroutine
        self._artifact = made

    def _share(self, study: Study) -> float:
        trials, minutes = self._budget.most_trials, self._budget.timeout_minutes
        by_trials = 0.0 if trials is None else study.finished() / trials
        by_time = 0.0 if minutes is None else study.seconds / (60 * minutes)
        return min(100.0, 100.0 * max(by_trials, by_time))


@page
def publish_leaderboard(study: Study) -> None:
    """Publish the leaderboard as a Prefect table."""
    create_table_artifact(
        key="leaderboard", table=leaderboard_rows(study.records()), description=f"Trials of the study {study.name}"
    )


@page
def publish_outcome(outcome: SearchOutcome, recorder: Recorder) -> None:
    """Publish the result of the search in sentences, with links."""
    create_markdown_artifact(
        key="outcome",
        markdown=f"{outcome.as_markdown()}\n\n## See more\n\n{recorder.where_to_look()}",
        description=f"Result of the study {outcome.study}",
    )
