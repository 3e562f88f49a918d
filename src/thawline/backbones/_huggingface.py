"""Hugging Face's text encoders and image classifiers: ``hf:FOLDER``, or from the hub ``hf:ID`` or ``hf:ID@REVISION``.

Only tensors are read (safetensors), and no code of a model is run.
"""

import json
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn

from thawline.backbones import networks
from thawline.backbones._base import Backbone, BackboneInfo, LayerGroup, Preprocessing, TextPreprocessing
from thawline.backbones._huggingface_files import (
    check_weights,
    config_of,
    json_beside,
    load,
    remembered,
)
from thawline.backbones._huggingface_inputs import (
    image_preprocessing,
    image_processor,
    text_preprocessing,
    trained_side,
)
from thawline.backbones._layouts import example
from thawline.backbones._registry import library_of, refuse_length
from thawline.backbones._weights import digest_of, first_line, load_into
from thawline.backbones._windows import learn_layout
from thawline.backbones.building import seeded
from thawline.backbones.tracing import forget_biases_on_load
from thawline.exceptions import BackboneError, WeightsError

__all__ = ["check_weights", "create", "inspect", "kind_of", "list_names", "preprocessing_of"]


def list_names() -> list[str]:
    """Always empty: the hub's models are not listed, and folders have arbitrary names."""
    return []


def kind_of(name: str) -> Literal["images", "texts"]:
    """The kind of a network's inputs, from its configuration only.

    Raises:
        BackboneError: if it is neither an image classifier nor a text encoder, or transformers is missing.
        WeightsError: if the configuration is not available.
    """
    library_of(name).check_installed()
    from transformers.models.auto import modeling_auto as auto

    config = config_of(name)
    kind = config.model_type
    if kind == "timm_wrapper":
        tag = config.to_dict().get("pretrained_cfg", {}).get("tag")
        raise BackboneError(
            f"{name!r} is a timm model: use 'timm/{config.architecture}{f'.{tag}' if tag else ''}' instead, for "
            "its layer groups. For weights in a folder, add --weights FOLDER."
        )
    if kind in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return "images"
    if getattr(config, "is_encoder_decoder", False):
        raise BackboneError(
            f"{name!r} is an encoder-decoder ({kind}), but a text backbone must be an encoder only, such "
            "as BERT, RoBERTa, DeBERTa or ModernBERT."
        )
    # A masked language model is bidirectional; some of these types can also be built as decoders.
    fills_in = kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and _takes_ids(config)
    if not fills_in or getattr(config, "is_decoder", False):
        generates = fills_in or kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        what = "generates texts" if generates else "is neither a text encoder nor an image classifier"
        raise BackboneError(
            f"{name!r} ({kind}) {what}, but a backbone must be a text encoder, such as BERT, RoBERTa, DeBERTa or "
            "ModernBERT, or an image classifier, such as ViT, Swin or ConvNeXt."
        )
    return "texts"


def _takes_ids(config: Any) -> bool:
    """Whether a network takes token ids, not audio, which may be masked in pretraining too."""
    from transformers import MODEL_MAPPING

    return bool(getattr(MODEL_MAPPING[type(config)], "main_input_name", "") == "input_ids")


def preprocessing_of(
    name: str, *, weights: str = "default", image_size: int | None = None, max_length: int | None = None
) -> Preprocessing | TextPreprocessing:
    """The preprocessing of images or texts, from the files beside the weights.

    An image is squashed into a square if the network's own processor does so, as most do, also with another
    ``image_size``.

    Args:
        name: ``hf:FOLDER`` or ``hf:ID``.
        weights: ignored.
        image_size: side of images in pixels.
        max_length: maximum number of tokens of texts; by default the network's limit, at most 512.

    Raises:
        BackboneError: if there is no such backbone, the size or length is not supported, its image processor is unknown
            to Thawline, or its tokenizer is not one of the ``tokenizers`` library.
        WeightsError: if the files are not available, or do not include a tokenizer.
    """
    del weights
    if kind_of(name) == "texts":
        if image_size is not None:
            raise BackboneError(f"{name!r} takes texts, so image_size does not apply, but got image_size={image_size}.")
        return text_preprocessing(name, max_length)
    refuse_length(name, max_length)
    return image_preprocessing(name, image_size)


def create(
    name: str,
    *,
    num_classes: int,
    weights: str = "default",
    image_size: int | None = None,
    max_length: int | None = None,
    seed: int = 0,
) -> Backbone:
    """See :func:`thawline.backbones.create`."""
    check_weights(name, weights)
    preprocessing = preprocessing_of(name, weights=weights, image_size=image_size, max_length=max_length)
    architecture = _architecture(name, preprocessing, num_classes)
    module, groups, head = _built(name, architecture, preprocessing, seed)
    forget_biases_on_load(module)
    if weights == "default":
        load_into(module, head.name, _pretrained(name, architecture, head.name), f"of {name!r}")
    return Backbone(
        name=name,
        module=module,
        layer_groups=groups,
        head=head,
        preprocessing=preprocessing,
        weights_digest=digest_of(module, head.name, pooling=architecture.get("pooling", "mean")),
        architecture=architecture,
    )


@remembered
def inspect(name: str) -> BackboneInfo:
    """Information on a network, from building it with random weights and running it on one input.

    This takes seconds and the memory of the whole network. From the hub, its configuration and its tokenizer or
    preprocessing are downloaded, but not its weights.

    Raises:
        BackboneError: if it cannot be used.
        WeightsError: if those files are not available.
    """
    preprocessing = preprocessing_of(name)
    module, groups, _ = _built(name, _architecture(name, preprocessing, 1000), preprocessing, 0)
    return BackboneInfo(
        name=name,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        layer_groups=tuple(group.name for group in groups),
        weights=("default",),
        image_size=preprocessing.image_size if isinstance(preprocessing, Preprocessing) else None,
    )


def _built(
    name: str, architecture: dict[str, Any], preprocessing: Preprocessing | TextPreprocessing, seed: int
) -> tuple[nn.Module, tuple[LayerGroup, ...], LayerGroup]:
    """The network with random weights, its layer groups and its head."""
    try:
        with seeded(seed):
            module = networks.build(architecture)
        _keep_unused_parameters_still(module, preprocessing)
        if isinstance(preprocessing, TextPreprocessing):
            _check_padding(module, name)
    except (ImportError, AttributeError, TypeError, RuntimeError, ValueError, IndexError, KeyError) as error:
        raise BackboneError(f"{name!r} cannot be run on {_what(preprocessing)}: {first_line(error)}") from error
    layout = learn_layout(module, preprocessing, name)
    groups, head = layout.groups(module)
    return module, groups, head


def _check_padding(module: nn.Module, name: str) -> None:
    """Refuse a network whose output for a text depends on padding, which most batches have."""
    tokens = torch.arange(2, 6).unsqueeze(0)
    padded = torch.nn.functional.pad(tokens, (0, 4), value=-1)
    with torch.no_grad():
        module.eval()
        alone, with_padding = module(tokens), module(padded)
        module.train()
    if not torch.allclose(alone, with_padding, rtol=1e-3, atol=1e-5):
        raise BackboneError(
            f"{name!r} gives other outputs for a text with padding: it has no attention mask. Choose another backbone."
        )


def _what(preprocessing: Preprocessing | TextPreprocessing) -> str:
    if isinstance(preprocessing, TextPreprocessing):
        return "texts with a mask of their tokens"
    return f"images of {preprocessing.image_size} x {preprocessing.image_size} pixels"


def _keep_unused_parameters_still(module: nn.Module, preprocessing: Preprocessing | TextPreprocessing) -> None:
    """Turn parameters that do not affect the logits into buffers, such as the mask token of pretraining.

    They stay in the weights' file, but are neither trained nor counted as trainable.
    """
    module.eval()
    with torch.enable_grad():
        module(example(preprocessing)).sum().backward()
    module.train()
    unused = [path for path, parameter in module.named_parameters() if parameter.grad is None]
    module.zero_grad(set_to_none=True)
    for path in unused:
        owner, _, tensor = path.rpartition(".")
        held = module.get_submodule(owner)
        value = getattr(held, tensor).detach()
        delattr(held, tensor)
        held.register_buffer(tensor, value)


def _architecture(name: str, preprocessing: Preprocessing | TextPreprocessing, num_classes: int) -> dict[str, Any]:
    """See :attr:`thawline.backbones.Backbone.architecture`."""
    config = config_of(name)
    config.num_labels = num_classes
    settings = json.loads(config.to_json_string(use_diff=False))
    # Drop the origin, and options for training or for single calls; the file's precision would also be that of
    # computation.
    for key in (
        "_name_or_path",
        "transformers_version",
        "dtype",
        "torch_dtype",
        "id2label",
        "label2id",
        "problem_type",
    ):
        settings.pop(key, None)
    settings |= {"return_dict": True, "output_hidden_states": False, "output_attentions": False, "use_cache": False}
    made = {"library": "transformers", "config": settings, "num_classes": num_classes}
    if isinstance(preprocessing, TextPreprocessing):
        return made | {"task": "text-classification", "pooling": _pooling(name)}
    # The first class of a model type has a single head.
    settings["architectures"] = [_image_class(config).__name__]
    kwargs: dict[str, Any] = {}
    if trained_side(config) not in (None, preprocessing.image_size) and _can_interpolate(config):
        kwargs["interpolate_positions"] = True
    if getattr(image_processor(name), "do_flip_channel_order", False):
        kwargs["is_bgr"] = True
    return made | {"task": "image-classification", "kwargs": kwargs}


def _pooling(name: str) -> str:
    """The pooling with which an encoder was trained, from sentence-transformers' files beside it, or else the mean.

    Modules after the pooling (a dense layer, normalisation) are dropped: the head replaces them.

    Raises:
        BackboneError: if it is not one of :data:`thawline.backbones.networks.POOLINGS`.
        WeightsError: if the files are not available.
    """
    modules = json_beside(name, "modules.json")
    pooling = next((part for part in modules or [] if part.get("type", "").rpartition(".")[2] == "Pooling"), None)
    if pooling is None:
        return "mean"
    file = f"{pooling['path']}/config.json"
    said = json_beside(name, file)
    if said is None:
        raise WeightsError(f"The modules.json of {name!r} lists {file}, but it is missing. Add that file.")
    modes = said.get("pooling_mode") or [
        mode.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens")
        for mode, chosen in said.items()
        if mode.startswith("pooling_mode_") and chosen
    ]
    modes = [modes] if isinstance(modes, str) else modes or ["mean"]
    if len(modes) != 1 or modes[0] not in networks.POOLINGS:
        raise BackboneError(
            f"{name!r} was trained with {' and '.join(modes)} pooling ({file}), but only one of "
            f"{', '.join(networks.POOLINGS)} is supported. Choose another backbone, or for the mean a "
            "copy of its folder without modules.json."
        )
    return str(modes[0])


def _can_interpolate(config: Any) -> bool:
    named = signature(_image_class(config).forward).parameters
    return "interpolate_pos_encoding" in named or hasattr(config, "vision_config")  # which forwards its arguments


def _image_class(config: Any) -> type[nn.Module]:
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

    network: Any = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
    chosen: type[nn.Module] = network[0] if isinstance(network, tuple) else network
    return chosen


def _pretrained(name: str, architecture: dict[str, Any], head: str) -> dict[str, Tensor]:
    """The pretrained tensors by their names in the network.

    Raises:
        WeightsError: if they are not available, or tensors besides the head's are missing, which transformers would
            initialise at random.
    """
    from transformers import AutoModel, AutoModelForImageClassification

    is_text = architecture["task"] == "text-classification"
    library = AutoModel if is_text else AutoModelForImageClassification
    prefix = "encoder." if is_text else "network."
    with torch.random.fork_rng(devices=[]):
        loaded, report = load(
            library,
            name,
            config=networks.transformers_config(architecture),
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # the head's; others are reported below
            output_loading_info=True,
        )
    if is_text:
        networks.without_pooler(loaded)
    lacking = {
        key if isinstance(key, str) else key[0] for kind in ("missing_keys", "mismatched_keys") for key in report[kind]
    }
    tensors = {f"{prefix}{path}": value for path, value in loaded.state_dict().items()}
    wrong = sorted(
        path for path in lacking if f"{prefix}{path}" in tensors and not f"{prefix}{path}".startswith(f"{head}.")
    )
    if wrong:
        raise WeightsError(
            f"The weights of {name!r} do not match its configuration: {len(wrong)} are missing or have another shape, "
            f"including {', '.join(wrong[:5])}."
        )
    return tensors
