"""torchvision, from which every module of Thawline takes it, so that it is loaded in the quick way."""

from thawline.backbones.networks import compiler_on_demand

with compiler_on_demand():
    import torchvision
    from torchvision import models

__all__ = ["models", "torchvision"]
