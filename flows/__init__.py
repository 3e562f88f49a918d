"""Prefect flows. Each is a table of contents of what the packages beneath do."""

from thawline import environment

environment.prepare_flows()  # Prefect and MLflow read their switches when they are imported
