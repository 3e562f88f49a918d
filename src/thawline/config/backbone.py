"""The section ``backbone``."""

from pydantic import Field

from thawline.config.model import Model

__all__ = ["BackboneConfig"]


class BackboneConfig(Model):
    """The pretrained network."""

    name: str = "resnet18"
    """Pretrained network, one of ``thawline backbones``."""
    weights: str | dict[str, str] = "default"
    """Pretrained weights: ``default`` (the library's own), ``starter`` (shipped with Thawline), ``none`` (random), or a
    file: .safetensors, or a state_dict saved by torch.save; for timm also a folder with the layout of the Hugging
    Face Hub. For several backbones, a mapping from their names to these; the others use ``default``."""
    image_size: int | None = Field(None, ge=8, le=2048)
    """Input image size (pixels), the side of a square; by default the size that the weights were trained for."""

    max_length: int | None = Field(None, ge=8, le=8192)
    """Maximum number of tokens per text; by default the length that the encoder was trained for, up to 512."""

    def weights_of(self, backbone: str) -> str:
        """Initial weights of one backbone."""
        return self.weights if isinstance(self.weights, str) else self.weights.get(backbone, "default")

    def is_random(self, backbone: str) -> bool:
        """Whether one backbone starts from random weights."""
        return self.weights_of(backbone) == "none"
