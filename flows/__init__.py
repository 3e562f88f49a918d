"""Prefect flows. Each is a table of contents; what its lines do lives in the packages that they name."""
