"""torchvision, imported here by every module of Thawline, so that it loads fast."""

from thawline.backbones.networks import compiler_on_demand

with compiler_on_demand():
    import torchvision
    from torchvision import models

__all__ = ["models", "torchvision"]
