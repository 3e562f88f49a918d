"""HuggingFace's encoders of texts and classifiers of images: ``hf:FOLDER``, or of their hub ``hf:ID`` or
``hf:ID@REVISION``.

Only tensors are ever read (safetensors), and no code that comes with a model is run.
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
    """None: what the hub holds is not listed, and a folder has any name."""
    return []


def kind_of(name: str) -> Literal["images", "texts"]:
    """What a network takes, by its configuration alone.

    Raises:
        BackboneError: if it is neither a classifier of images nor an encoder of texts, or transformers is missing.
        WeightsError: if the configuration is not available.
    """
    library_of(name).check_installed()
    from transformers.models.auto import modeling_auto as auto

    config = config_of(name)
    kind = config.model_type
    if kind == "timm_wrapper":
        tag = config.to_dict().get("pretrained_cfg", {}).get("tag")
        raise BackboneError(
            f"{name!r} is a network of timm: use 'timm/{config.architecture}{f'.{tag}' if tag else ''}' instead, for "
            "its layer groups. Of weights in a folder, add --weights FOLDER."
        )
    if kind in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return "images"
    if getattr(config, "is_encoder_decoder", False):
        raise BackboneError(
            f"{name!r} is an encoder with a decoder ({kind}), but a backbone of texts must be an encoder alone, such "
            "as BERT, RoBERTa, DeBERTa or ModernBERT."
        )
    # What fills in masked words reads a text in both directions; some of these types can also be built as decoders.
    fills_in = kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and _takes_ids(config)
    if not fills_in or getattr(config, "is_decoder", False):
        generates = fills_in or kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        what = "generates texts" if generates else "is neither an encoder of texts nor a classifier of images"
        raise BackboneError(
            f"{name!r} ({kind}) {what}, but a backbone must be an encoder of texts, such as BERT, RoBERTa, DeBERTa or "
            "ModernBERT, or a classifier of images, such as ViT, Swin or ConvNeXt."
        )
    return "texts"


def _takes_ids(config: Any) -> bool:
    """Whether a network takes the numbers of tokens, and not sounds, some of which are masked in pretraining too."""
    from transformers import MODEL_MAPPING

    return bool(getattr(MODEL_MAPPING[type(config)], "main_input_name", "") == "input_ids")


def preprocessing_of(
    name: str, *, weights: str = "default", image_size: int | None = None, max_length: int | None = None
) -> Preprocessing | TextPreprocessing:
    """How images or texts must be prepared: as the files beside the weights say.

    An image is squashed into a square where the network's own processor does so, as most of them do, and with
    another ``image_size`` too.

    Args:
        name: ``hf:FOLDER`` or ``hf:ID``.
        weights: makes no difference.
        image_size: side in pixels, for images.
        max_length: tokens that are kept of a text, for texts; by default what the network allows, at most 512.

    Raises:
        BackboneError: if there is no such backbone, it does not take such a size or length, its images are prepared by
            steps that Thawline does not know, or its tokenizer is none of the library tokenizers.
        WeightsError: if the files are not available, or hold no tokenizer.
    """
    del weights
    if kind_of(name) == "texts":
        if image_size is not None:
            raise BackboneError(f"{name!r} takes texts, and so no image_size, but got image_size={image_size}.")
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
    """What is known of a network, found out from one with random weights, which is built and run on one input.

    That takes seconds and the memory of the whole network, and from the hub its configuration and its tokenizer or
    preprocessing are downloaded, not its weights.

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
    """The network with random weights, and how it is cut."""
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
    """Refuse a network whose output for a text depends on its padding, as there is in most batches."""
    tokens = torch.arange(2, 6).unsqueeze(0)
    padded = torch.nn.functional.pad(tokens, (0, 4), value=-1)
    with torch.no_grad():
        module.eval()
        alone, with_padding = module(tokens), module(padded)
        module.train()
    if not torch.allclose(alone, with_padding, rtol=1e-3, atol=1e-5):
        raise BackboneError(
            f"{name!r} gives another output for a text with padding: it has no attention mask. Choose another backbone."
        )


def _what(preprocessing: Preprocessing | TextPreprocessing) -> str:
    if isinstance(preprocessing, TextPreprocessing):
        return "texts with a mask of their tokens"
    return f"images of {preprocessing.image_size} x {preprocessing.image_size} pixels"


def _keep_unused_parameters_still(module: nn.Module, preprocessing: Preprocessing | TextPreprocessing) -> None:
    """Make buffers of parameters that the logits do not depend on, such as the token that only pretraining masks with.

    They stay in the weights' file, but nothing can train them, and they are not counted as if it could.
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
    # Where it came from and what is only about training or asked for with every call. In the precision of
    # the file it would also compute.
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
    # Of the classes for one model type, the first has a single head.
    settings["architectures"] = [_image_class(config).__name__]
    kwargs: dict[str, Any] = {}
    if trained_side(config) not in (None, preprocessing.image_size) and _can_interpolate(config):
        kwargs["interpolate_positions"] = True
    if getattr(image_processor(name), "do_flip_channel_order", False):
        kwargs["is_bgr"] = True
    return made | {"task": "image-classification", "kwargs": kwargs}


def _pooling(name: str) -> str:
    """How an encoder was trained to pool its tokens: as sentence-transformers' files beside it say, else the mean.

    What they name after the pooling (a dense layer, normalisation) is left out: the head takes its place.

    Raises:
        BackboneError: if it is none of :data:`thawline.backbones.networks.POOLINGS`.
        WeightsError: if the files are not available.
    """
    modules = json_beside(name, "modules.json")
    pooling = next((part for part in modules or [] if part.get("type", "").rpartition(".")[2] == "Pooling"), None)
    if pooling is None:
        return "mean"
    file = f"{pooling['path']}/config.json"
    said = json_beside(name, file)
    if said is None:
        raise WeightsError(f"The modules.json of {name!r} names {file}, but there is none. Bring it along.")
    modes = said.get("pooling_mode") or [
        mode.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens")
        for mode, chosen in said.items()
        if mode.startswith("pooling_mode_") and chosen
    ]
    modes = [modes] if isinstance(modes, str) else modes or ["mean"]
    if len(modes) != 1 or modes[0] not in networks.POOLINGS:
        raise BackboneError(
            f"{name!r} was trained to pool its tokens by {' and '.join(modes)} ({file}), but only one of "
            f"{', '.join(networks.POOLINGS)} is known. Choose another backbone, or for the mean a copy of its folder "
            "without modules.json."
        )
    return str(modes[0])


def _can_interpolate(config: Any) -> bool:
    named = signature(_image_class(config).forward).parameters
    return "interpolate_pos_encoding" in named or hasattr(config, "vision_config")  # which hands on what it is given


def _image_class(config: Any) -> type[nn.Module]:
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

    network: Any = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
    chosen: type[nn.Module] = network[0] if isinstance(network, tuple) else network
    return chosen


def _pretrained(name: str, architecture: dict[str, Any], head: str) -> dict[str, Tensor]:
    """The pretrained tensors by the names that they have in the network.

    Raises:
        WeightsError: if they are not available, or others than the head's are missing, which transformers draws at
            random.
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
            ignore_mismatched_sizes=True,  # the head's; others are named below
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
            f"The weights of {name!r} do not fit its configuration: missing or of another shape are {len(wrong)}, "
            f"among them {', '.join(wrong[:5])}."
        )
    return tensors
