"""HuggingFace's encoders of texts and classifiers of images: ``hf:FOLDER``, or of their hub ``hf:ID`` or
``hf:ID@REVISION``.

Only tensors are ever read (safetensors), and no code that comes with a model is run.
"""

import copy
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial, wraps
from inspect import signature
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from thawline.backbones import networks
from thawline.backbones._base import Backbone, BackboneInfo, Interpolation, LayerGroup, Preprocessing, TextPreprocessing
from thawline.backbones._graph import forget_biases_on_load, seeded
from thawline.backbones._registry import library_of, refuse_length
from thawline.backbones._weights import digest_of, first_line, load_into
from thawline.backbones._windows import example, learn_layout
from thawline.exceptions import BackboneError, WeightsError

__all__ = ["check_weights", "create", "inspect", "kind_of", "list_names", "preprocessing_of"]

_Answer = TypeVar("_Answer")

_LONGEST = 512
"""Tokens that are kept of a text unless ``max_length`` asks for more: what a block costs grows with their square, and
newer encoders allow 8,192, which few texts need."""

_INTERPOLATIONS: dict[int, Interpolation] = {
    0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"
}  # fmt: skip
_PROCESSORS = {
    f"{kind}ImageProcessor"
    for kind in (
        *("Beit", "Bit", "CLIP", "ConvNext", "DeiT", "EfficientNet", "Levit", "MobileNetV1", "MobileNetV2"),
        *("MobileViT", "PoolFormer", "Pvt", "Segformer", "Siglip", "ViT"),
    )
}
"""Whose steps are known here. Others cut patches, count colours or pad, which no :class:`Preprocessing` says."""
_HUB_ID = re.compile(r"([A-Za-z0-9_][\w.-]*(?:/[A-Za-z0-9_][\w.-]*)?)(?:@([\w.-]+))?")
"""Of a repository, and of one of its branches, tags or commits."""
_CONVERT = (
    "Convert another format with transformers (model.save_pretrained(FOLDER)) and name that folder: hf:FOLDER. Or "
    "train from random weights (--weights none)."
)
_WAYS_OUT = (
    "Where the hub cannot be reached, download it elsewhere (`hf download ID --local-dir FOLDER`) and name the folder: "
    "hf:FOLDER."
)


def _remembered(answer: Callable[[str], _Answer]) -> Callable[[str], _Answer]:
    """Remember the answers about a few names; those about a folder until a file in it is another one."""
    kept = lru_cache(maxsize=32)(lambda name, _files: answer(name))

    @wraps(answer)
    def answered(name: str) -> _Answer:
        return kept(name, _files_of(name))

    return answered


def _files_of(name: str) -> tuple[tuple[str, int, int], ...]:
    """Names, times and sizes of the files in a folder; none of what the hub holds, which has a cache of its own."""
    folder, is_local = _source(name)
    if not (is_local and folder.is_dir()):
        return ()
    with os.scandir(folder) as entries:
        return tuple(sorted((entry.name, entry.stat().st_mtime_ns, entry.stat().st_size) for entry in entries))


def list_names() -> list[str]:
    """None: what the hub holds is not listed, and a folder has any name."""
    return []


def kind_of(name: str) -> Literal["images", "texts"]:
    """What a network takes, by its configuration alone.

    Raises:
        BackboneError: if it is neither a classifier of images nor an encoder of texts, or transformers is missing.
        WeightsError: if the configuration cannot be had.
    """
    library_of(name).check_installed()
    from transformers.models.auto import modeling_auto as auto

    config = _config_of(name)
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


def check_weights(name: str, weights: str) -> None:
    """Refuse weights that are not there, without reading them or asking the network.

    Raises:
        WeightsError: if ``weights`` is neither ``default`` nor ``none``, or the folder does not hold them.
    """
    if weights not in ("default", "none"):
        raise WeightsError(
            f"The weights of {name!r} must be 'default' (those of its folder or hub page) or 'none' (random), but got "
            f"{weights!r}. Name the folder that holds them instead: hf:FOLDER."
        )
    source, is_local = _source(name)
    if is_local and not (source / "config.json").is_file():
        raise WeightsError(f"The folder of {name!r} must hold a config.json, but there is no {source / 'config.json'}.")
    if is_local and weights == "default" and not any(source.glob("*.safetensors")):
        raise WeightsError(
            f"The folder of {name!r} must hold a .safetensors, but there is none in {source}. {_CONVERT}"
        )


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
        WeightsError: if the files cannot be had, or hold no tokenizer.
    """
    del weights
    if kind_of(name) == "texts":
        if image_size is not None:
            raise BackboneError(f"{name!r} takes texts, and so no image_size, but got image_size={image_size}.")
        return _text_preprocessing(name, max_length)
    refuse_length(name, max_length)
    return _image_preprocessing(name, image_size)


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


@_remembered
def inspect(name: str) -> BackboneInfo:
    """What is known of a network, found out from one with random weights, which is built and run on one input.

    That takes seconds and the memory of the whole network, and from the hub its configuration and its tokenizer or
    preprocessing are downloaded, not its weights.

    Raises:
        BackboneError: if it cannot be used.
        WeightsError: if those files cannot be had.
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
    """Refuse a network that answers a text otherwise where there is padding behind it, as there is in most batches."""
    tokens = torch.arange(2, 6).unsqueeze(0)
    padded = torch.nn.functional.pad(tokens, (0, 4), value=-1)
    with torch.no_grad():
        module.eval()
        alone, with_padding = module(tokens), module(padded)
        module.train()
    if not torch.allclose(alone, with_padding, rtol=1e-3, atol=1e-5):
        raise BackboneError(
            f"{name!r} answers a text otherwise with padding behind it: it has no mask of what is a token. Choose "
            "another backbone."
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
    config = _config_of(name)
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
    if _trained_side(config) not in (None, preprocessing.image_size) and _can_interpolate(config):
        kwargs["interpolate_positions"] = True
    if getattr(_image_processor(name), "do_flip_channel_order", False):
        kwargs["is_bgr"] = True
    return made | {"task": "image-classification", "kwargs": kwargs}


def _pooling(name: str) -> str:
    """How an encoder was trained to pool its tokens: as sentence-transformers' files beside it say, else the mean.

    What they name behind the pooling (a dense layer, normalisation) is left out: the head takes its place.

    Raises:
        BackboneError: if it is none of :data:`thawline.backbones.networks.POOLINGS`.
        WeightsError: if the files cannot be had.
    """
    modules = _json_beside(name, "modules.json")
    pooling = next((part for part in modules or [] if part.get("type", "").rpartition(".")[2] == "Pooling"), None)
    if pooling is None:
        return "mean"
    file = f"{pooling['path']}/config.json"
    said = _json_beside(name, file)
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


def _json_beside(name: str, file: str) -> Any:
    """What a JSON file beside the weights says; ``None`` if there is no such file.

    Raises:
        WeightsError: if it cannot be read, or if neither the hub nor its cache says whether there is one.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError

    source, is_local = _source(name)
    try:
        # What is neither a path nor None is the cache's word for a file that the hub does not have.
        path: Any = source / file if is_local else try_to_load_from_cache(str(source), file, revision=_revision(name))
        if path is None:
            with _quiet():
                path = hf_hub_download(str(source), file, revision=_revision(name))
        if not isinstance(path, str | Path) or not Path(path).is_file():
            return None
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except RemoteEntryNotFoundError:  # the hub's own answer, and an OSError too
        return None
    except (OSError, ValueError, HfHubHTTPError) as error:  # a hub that is out of reach among them
        raise WeightsError(
            f"The {file} of {name!r}, which says how the network pools its tokens, cannot be had: "
            f"{first_line(error)}. {'' if is_local else _WAYS_OUT}".rstrip()
        ) from error


def _trained_side(config: Any) -> int | None:
    """The side in pixels that its position embeddings are for; such as CLIP's say so of their half for images."""
    return _side(getattr(getattr(config, "vision_config", config), "image_size", None))


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
        WeightsError: if they cannot be had, or others than the head's are missing, which transformers draws at random.
    """
    from transformers import AutoModel, AutoModelForImageClassification

    is_text = architecture["task"] == "text-classification"
    library = AutoModel if is_text else AutoModelForImageClassification
    prefix = "encoder." if is_text else "network."
    with torch.random.fork_rng(devices=[]):
        loaded, report = _load(
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


def _text_preprocessing(name: str, max_length: int | None) -> TextPreprocessing:
    tokenizer, allowed = _tokenizer(name)
    positions = _positions(name)
    longest = min(length for length in (allowed, positions, 10**6) if length is not None)
    if max_length is None:
        return TextPreprocessing(tokenizer, min(longest, _LONGEST))
    # What the network has no positions for, it cannot take; the tokenizer's own limit is advice.
    if not 3 <= max_length <= (positions or 10**6):
        raise BackboneError(
            f"`3 <= max_length <= {positions or 10**6}` must hold for {name!r}, but got max_length={max_length}."
        )
    return TextPreprocessing(tokenizer, max_length)


@_remembered
def _tokenizer(name: str) -> tuple[str, int | None]:
    """The tokenizer as JSON, without padding and truncation, and how many tokens it allows.

    Raises:
        BackboneError: if it is none of the library tokenizers.
        WeightsError: if it cannot be had, or knows no words.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    loaded = _load(AutoTokenizer, name, is_whole=_knows_words)
    if not _knows_words(loaded):
        _, is_local = _source(name)
        raise WeightsError(
            f"{name!r} holds no tokenizer, or one that knows no words. Its files, such as tokenizer.json or vocab.txt, "
            f"must lie beside its config.json. {'' if is_local else _WAYS_OUT}".rstrip()
        )
    if not loaded.is_fast:
        raise BackboneError(
            f"The tokenizer of {name!r} must be one of the library tokenizers (a tokenizer.json), but it is a "
            f"{type(loaded).__name__}. Convert it with transformers, or choose another backbone."
        )
    tokenizer = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    allowed = loaded.model_max_length
    return tokenizer.to_str(), allowed if allowed < 10**6 else None  # transformers says 10**30 where nothing is said


def _knows_words(tokenizer: Any) -> bool:
    """Whether it has any but special tokens: transformers makes one of those alone where there are no files of it."""
    return bool(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens))


@_remembered
def _positions(name: str) -> int | None:
    """How many tokens a text may have for which the network has positions, None if any number."""
    config = _config_of(name)
    longest = getattr(config, "max_position_embeddings", None)
    if not longest or longest < 0:
        return None
    with torch.device("meta"):
        module = networks.build({"library": "transformers", "task": "text-classification", "num_classes": 1,
                                 "config": json.loads(config.to_json_string(use_diff=False))})  # fmt: skip
    # RoBERTa and its kin count positions from behind that of padding.
    first = max(
        (
            part.padding_idx + 1
            for path, part in module.named_modules()
            if path.endswith("position_embeddings") and isinstance(part, nn.Embedding) and part.padding_idx is not None
        ),
        default=0,
    )
    return int(longest) - first


def _image_preprocessing(name: str, image_size: int | None) -> Preprocessing:
    processor = _image_processor(name)
    kind = _class_of(processor)
    if kind not in _PROCESSORS:
        raise BackboneError(
            f"The images of {name!r} are prepared by a {kind}, whose steps Thawline does not know, and otherwise "
            "prepared its weights would mean little. Choose another backbone."
        )
    trained = _trained_side(_config_of(name)) or 224
    size, resize = _sides(processor, trained)
    if image_size is not None:
        size, resize = image_size, round(resize * image_size / size)
    mean, std = _normalisation(name, processor)
    resample = getattr(processor, "resample", None)
    return Preprocessing(
        image_size=size,
        resize_size=resize,
        mean=mean,
        std=std,
        interpolation=_INTERPOLATIONS.get(int(resample) if resample is not None else 2, "bilinear"),
        crop_mode="squash" if _squashes(processor, trained) else "center",
    )


def _class_of(processor: Any) -> str:
    """The class of a processor, whichever library does its work: ``ViTImageProcessor``."""
    return type(processor).__name__.removesuffix("Pil").removesuffix("Fast")


def _sides(processor: Any, trained: int) -> tuple[int, int]:
    """The side of the square that the network sees, and the length that the shorter side, or both, are resized to
    before."""
    named = getattr(processor, "size", None)
    asked = _side(named) or trained
    size = resize = asked
    crop_pct = getattr(processor, "crop_pct", None)
    match _class_of(processor):
        case "ConvNextImageProcessor" if crop_pct and asked < 384:  # a larger one is not cut
            resize = int(asked / crop_pct)
        case "PoolFormerImageProcessor" if crop_pct:
            size = resize = int(asked / crop_pct)
        case "LevitImageProcessor" if named and named.get("shortest_edge"):
            size = resize = int(256 / 224 * asked)
    if getattr(processor, "do_center_crop", False):
        size = _side(processor.crop_size) or size
    return size, max(resize, size)


def _squashes(processor: Any, trained: int) -> bool:
    """Whether a processor makes a square of the whole image: it does if it is told a height and a width.

    The two exceptions are ConvNeXt's, which is told a shorter side and squashes from 384 pixels on, and PoolFormer's.
    """
    size = getattr(processor, "size", None)
    match _class_of(processor):
        case "ConvNextImageProcessor":
            return (_side(size) or trained) >= 384
        case "PoolFormerImageProcessor" if getattr(processor, "crop_pct", None):
            return False
    return bool(size and not size.get("shortest_edge") and size.get("height") and size.get("width"))


def _normalisation(name: str, processor: Any) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of values in [0, 1] that do what a processor does to values in [0, 255].

    Raises:
        BackboneError: unless it does so to three channels.
    """
    scale, offset, mean, std = 255.0, 0.0, [0.0] * 3, [1.0] * 3
    if getattr(processor, "do_rescale", True):
        scale = 255 * getattr(processor, "rescale_factor", 1 / 255)
    # MobileViT's normalises nothing, whatever its file says.
    if getattr(processor, "do_normalize", True) and _class_of(processor) != "MobileViTImageProcessor":
        mean, std = (list(map(float, values)) for values in (processor.image_mean, processor.image_std))
    if len(mean) != 3 or len(std) != 3:
        raise BackboneError(f"{name!r} must take images of three channels, but its preprocessing has {len(mean)}.")
    if _class_of(processor) == "EfficientNetImageProcessor":  # may shift by one, and divide a second time
        offset = float(getattr(processor, "rescale_offset", False) and getattr(processor, "do_rescale", True))
        if getattr(processor, "include_top", True):
            std = [value * float(again) for value, again in zip(std, processor.image_std, strict=True)]
    red, green, blue = ((value + offset) / scale for value in mean)
    return (red, green, blue), (std[0] / scale, std[1] / scale, std[2] / scale)


def _side(size: Any) -> int | None:
    """The shorter side that a processor's ``size`` or ``crop_size`` asks for."""
    if size is None or isinstance(size, int):
        return size
    if isinstance(size, list | tuple):
        return int(min(size))
    sides = [size[key] for key in ("shortest_edge", "height", "width") if size.get(key) is not None]
    return int(min(sides)) if sides else None


@_remembered
def _image_processor(name: str) -> Any:
    """What is said of the preparation of images beside the weights, or for such networks in general."""
    from transformers import AutoImageProcessor

    return _load(AutoImageProcessor, name)


def _config_of(name: str) -> Any:
    """A copy of the configuration, which the caller may change."""
    return copy.deepcopy(_read_config(name))


@_remembered
def _read_config(name: str) -> Any:
    from transformers import AutoConfig

    check_weights(name, "none")
    return _load(AutoConfig, name)


def _source(name: str) -> tuple[Path, bool]:
    """The folder or hub id that a name stands for, and whether it is a folder."""
    given = _given(name)
    path = Path(given).expanduser()  # which no longer tells ./a/b from a/b
    hub_id = _HUB_ID.fullmatch(given)
    if path.exists() or hub_id is None:
        return path, True
    return Path(hub_id[1]), False


def _revision(name: str) -> str | None:
    """The branch, tag or commit that the name of a network of the hub ends with."""
    hub_id = _HUB_ID.fullmatch(_given(name))
    return hub_id[2] if hub_id is not None else None


def _given(name: str) -> str:
    return name.removeprefix(library_of(name).prefix)


def _load(library: Any, name: str, *, is_whole: Callable[[Any], bool] = lambda _: True, **arguments: Any) -> Any:
    """What a class of transformers makes of the files of a folder, or of the hub's, from its cache if they lie there.

    Args:
        library: such as ``AutoConfig``.
        name: of the backbone.
        is_whole: whether the cache held all of it; if not, the hub is asked.
        arguments: of ``from_pretrained``.

    Raises:
        WeightsError: with the ways out.
    """
    source, is_local = _source(name)
    if not is_local and (revision := _revision(name)):
        arguments["revision"] = revision
    load = partial(library.from_pretrained, str(source), trust_remote_code=False, **arguments)
    try:
        with _quiet(), _without_conversion():
            try:
                found = load(local_files_only=True)
                if is_local or is_whole(found):
                    return found
            except (OSError, ValueError):  # a ValueError where a tokenizer's files are not in the cache
                if is_local:
                    raise
            return load()
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        if is_local:
            raise WeightsError(f"The files of {name!r} cannot be used: {first_line(error)}.") from error
        if "cannot be loaded with `safetensors`" in str(error):
            raise WeightsError(
                f"{name!r} has no .safetensors on the hub, and other files could run code. {_CONVERT}"
            ) from error
        raise WeightsError(
            f"There is no folder {str(source)!r}, and from HuggingFace's hub {name!r} cannot be had: "
            f"{first_line(error)}. {_WAYS_OUT}"
        ) from error


@contextmanager
def _without_conversion() -> Iterator[None]:
    """Keep transformers from asking a public service to convert a repository that has no safetensors."""
    switch = "DISABLE_SAFETENSORS_CONVERSION"
    before = os.environ.get(switch)
    os.environ[switch] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[switch]
        else:
            os.environ[switch] = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Take the reports and progress bars of transformers and its hub off the terminal, where --json writes."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    levels, bars = (logging.get_verbosity(), hub_logging.get_verbosity()), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(levels[0])
        hub_logging.set_verbosity(levels[1])
        if bars:
            logging.enable_progress_bar()
