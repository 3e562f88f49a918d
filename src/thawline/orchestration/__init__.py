"""What the flows need of Prefect: where trials run, schedules, approval, artifacts and notifications."""

from thawline import environment

environment.prepare_flows()
