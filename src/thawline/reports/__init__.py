"""Figures and pages of a study: values in, figures out."""
