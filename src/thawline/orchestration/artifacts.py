"""What Prefect's UI shows of a search beside its task runs: how far it is, the leaderboard, where to look further."""

from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from thawline.orchestration.reach import page
from thawline.search import Recorder, SearchOutcome, Study
from thawline.search.leaderboard import leaderboard_rows

__all__ = ["Progress", "publish_leaderboard", "publish_outcome"]


class Progress:
    """The bar of trials that ended, of those that may be tried."""

    def __init__(self, study: Study, trials: int) -> None:
        self._trials = trials
        self._artifact: UUID | None = None
        self.update(study)

    @page
    def update(self, study: Study) -> None:
        """Move the bar, which is made the first time."""
        if self._artifact is not None:
            update_progress_artifact(self._artifact, self._share(study))
            return
        description = f"Trials of the study {study.name}"
        made = create_progress_artifact(self._share(study), key="trials", description=description)
        assert isinstance(made, UUID)  # noqa: S101  narrows the type: not awaited, since this is no coroutine
        self._artifact = made

    def _share(self, study: Study) -> float:
        return min(100.0, 100.0 * study.finished() / self._trials)


@page
def publish_leaderboard(study: Study) -> None:
    """The leaderboard as a Prefect table."""
    create_table_artifact(
        key="leaderboard", table=leaderboard_rows(study.records()), description=f"Trials of the study {study.name}"
    )


@page
def publish_outcome(outcome: SearchOutcome, recorder: Recorder) -> None:
    """The end of the search in sentences, and where all of it can be seen."""
    create_markdown_artifact(
        key="outcome",
        markdown=f"{outcome.as_markdown()}\n\n## See more\n\n{recorder.where_to_look()}",
        description=f"What came of the study {outcome.study}",
    )
