"""Prefect features for the flows: execution of trials, schedules, approval, artifacts and notifications."""

from thawline import environment

environment.prepare_flows()
