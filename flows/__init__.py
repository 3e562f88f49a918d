"""Prefect flows. Each lists the steps of one job; the packages beneath do the work."""

from thawline import environment

environment.prepare_flows()  # Prefect and MLflow read their environment on import
