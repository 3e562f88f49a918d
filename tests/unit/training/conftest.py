"""A backbone that trains in milliseconds, for all tests of training."""

from tiny_training import hyperparameters, images, make_backbone, stored

__all__ = ["hyperparameters", "images", "make_backbone", "stored"]
