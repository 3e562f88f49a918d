"""Tiny Hugging Face networks with random weights, created fast and without a hub."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

__all__ = ["FURTHER", "IMAGES", "SIDE", "TEXTS", "TINY", "VOCABULARY", "write_tiny"]

SIDE = 32
"""Side of the tiny networks' images in pixels."""

VOCABULARY = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *("win", "a", "free", "prize", "now", "call", "this", "number", "claim", "your", "cash", "see", "you", "at"),
    *("home", "tonight", "mum", "is", "late", "for", "dinner", "text", "stop", "reply", "love", "meet", "work"),
    *map(str, range(10)),
)
"""The tiny tokenizer's vocabulary, starting with five special tokens."""

_BLOCKS = 3
_ENCODER: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "num_hidden_layers": _BLOCKS,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": _BLOCKS,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": SIDE,
    "patch_size": 8,
}
_STAGES: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
_SWIN: dict[str, Any] = {
    "image_size": SIDE,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [1, 2, 1],
    "num_heads": [1, 2, 2],
    "window_size": 4,
}

TEXTS: dict[str, dict[str, Any]] = {
    "albert": _ENCODER | {"embedding_size": 16, "num_hidden_groups": 1},
    "bert": _ENCODER,
    "camembert": _ENCODER,
    "deberta": _ENCODER | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False},
    "deberta-v2": _ENCODER
    | {
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_biased_input": False,
        "conv_kernel_size": 3,
    },
    "distilbert": {
        "vocab_size": len(VOCABULARY),
        "dim": 32,
        "n_layers": _BLOCKS,
        "n_heads": 2,
        "hidden_dim": 48,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
    },
    "electra": _ENCODER | {"embedding_size": 16},
    "eurobert": _ENCODER | {"num_key_value_heads": 2, "mask_token_id": 4},
    "modernbert": _ENCODER
    | {"local_attention": 8, "global_attn_every_n_layers": 3, "cls_token_id": 2, "sep_token_id": 3},
    "mpnet": _ENCODER,
    "roberta": _ENCODER,
    "xlm-roberta": _ENCODER,
}
"""Text encoders: their configurations besides the model type."""

IMAGES: dict[str, dict[str, Any]] = {
    "beit": _VISION | {"use_shared_relative_position_bias": True, "use_mask_token": True},
    "clip": {
        "vision_config": _VISION,
        "text_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
        "projection_dim": 16,
    },
    "convnext": _STAGES,
    "convnextv2": _STAGES,
    "deit": _VISION,
    "dinov2": _VISION | {"mlp_ratio": 2},
    "efficientnet": {
        "image_size": 2 * SIDE,
        "width_coefficient": 0.25,
        "depth_coefficient": 0.25,
        "hidden_dim": 320,
    },
    "levit": {
        "image_size": 2 * SIDE,
        "hidden_sizes": [16, 24, 32],
        "num_attention_heads": [2, 3, 4],
        "depths": [1, 1, 1],
        "key_dim": [8, 8, 8],
    },
    "mobilenet_v2": {"image_size": SIDE, "depth_multiplier": 0.25},
    "mobilevit": {
        "image_size": 2 * SIDE,
        "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 64],
    },
    "poolformer": _STAGES,
    "pvt": {
        "image_size": SIDE,
        "hidden_sizes": [8, 16, 24, 32],
        "depths": [1, 2, 1, 1],
        "num_attention_heads": [1, 2, 2, 4],
        "sequence_reduction_ratios": [8, 4, 2, 1],
        "patch_sizes": [4, 2, 2, 2],
        "mlp_ratios": [2, 2, 2, 2],
    },
    "regnet": _STAGES | {"embedding_size": 8, "groups_width": 4},
    "resnet": _STAGES | {"embedding_size": 8},
    "segformer": {
        "image_size": SIDE,
        "hidden_sizes": [8, 16, 24, 32],
        "depths": [1, 2, 1, 1],
        "num_attention_heads": [1, 2, 2, 4],
        "mlp_ratios": [2, 2, 2, 2],
    },
    "swin": _SWIN,
    "swinv2": _SWIN,
    "vit": _VISION,
}
"""Image classifiers."""

FURTHER: dict[str, dict[str, Any]] = {
    "big_bird": _ENCODER | {"attention_type": "original_full"},
    "convbert": _ENCODER | {"embedding_size": 32, "conv_kernel_size": 3, "head_ratio": 2},
    "data2vec-text": _ENCODER,
    "ernie": _ENCODER,
    "esm": _ENCODER | {"mask_token_id": 4, "position_embedding_type": "absolute"},
    "esmc": _ENCODER,
    "flaubert": {"emb_dim": 32, "n_layers": _BLOCKS, "n_heads": 2, "n_words": len(VOCABULARY)},
    "fnet": _ENCODER,
    "gte": _ENCODER,
    "ibert": _ENCODER,
    "jina_embeddings_v3": _ENCODER,
    "layoutlm": _ENCODER,
    "longformer": _ENCODER | {"attention_window": [4] * _BLOCKS},
    "luke": _ENCODER | {"entity_vocab_size": 10, "entity_emb_size": 8},
    "megatron-bert": _ENCODER,
    "mobilebert": _ENCODER | {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    "mra": _ENCODER,
    "neomme": _ENCODER | {"num_key_value_heads": 2},
    "nomic_bert": _ENCODER,
    "nystromformer": _ENCODER | {"num_landmarks": 4, "segment_means_seq_len": 4},
    "rembert": _ENCODER | {"input_embedding_size": 16, "output_embedding_size": 16},
    "roberta-prelayernorm": _ENCODER,
    "roc_bert": _ENCODER,
    "roformer": _ENCODER | {"embedding_size": 32},
    "squeezebert": _ENCODER
    | {"embedding_size": 32}
    | {f"{part}_groups": 1 for part in ("q", "k", "v", "post_attention", "intermediate", "output")},
    "tapas": _ENCODER,
    "ultrabert": _ENCODER,
    "xlm": {"emb_dim": 32, "n_layers": _BLOCKS, "n_heads": 2, "n_words": len(VOCABULARY)},
    "xlm-roberta-xl": _ENCODER,
    "xmod": _ENCODER | {"languages": ["en"], "default_language": "en"},
    "yoso": _ENCODER,
    "bit": {"hidden_sizes": [8, 16, 24, 32], "embedding_size": 8, "num_groups": 4},
    "data2vec-vision": _VISION | {"use_shared_relative_position_bias": True},
    "dinov2_with_registers": _VISION,
    "donut-swin": _SWIN,
    "focalnet": {"image_size": SIDE, "embed_dim": 8, "depths": [1, 1, 2, 1]},
    "hgnet_v2": {},
    "hiera": {"image_size": [64, 64], "embed_dim": 8, "depths": [1] * 4, "num_heads": [1, 2, 2, 4]},
    "ijepa": _VISION,
    "metaclip_2": {
        "vision_config": _VISION,
        "text_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
        "projection_dim": 16,
    },
    "mobilenet_v1": {"image_size": SIDE, "depth_multiplier": 0.25},
    "mobilevitv2": {"image_size": 2 * SIDE, "width_multiplier": 0.5},
    "pvt_v2": {"image_size": SIDE, "hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4}
    | {"num_attention_heads": [1, 2, 2, 4]},
    "siglip": {
        "vision_config": _VISION,
        "text_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
    },
    "swiftformer": {"image_size": SIDE, "embed_dims": [8, 16, 24, 32], "depths": [1] * 4},
    "textnet": {"image_size": SIDE},
    "vit_msn": _VISION,
}
"""Less common encoders and classifiers."""


def write_tiny(kind: str, folder: Path, *, weights: bool = True, **settings: Any) -> Path:
    """Write the tiny network of a model type to a folder in transformers' format, and return the folder.

    Args:
        kind: a key of :data:`TEXTS`, :data:`IMAGES` or :data:`FURTHER`.
        folder: created if it does not exist.
        weights: whether to write weights besides the configuration and the tokenizer or preprocessing.
        settings: additional settings of the configuration.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    config = AutoConfig.for_model(kind, **((TEXTS | IMAGES | FURTHER)[kind] | settings))
    is_text = kind not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    if is_text:
        _write_tokenizer(folder)
    else:
        side = getattr(config, "image_size", SIDE)
        _write_preprocessing(folder, side if isinstance(side, int) else side[0])
    if not weights:
        config.save_pretrained(folder)
        return folder
    if kind in ("deit", "levit"):  # they have two classes each, one of which the configuration must name
        config.architectures = [{"deit": "DeiT", "levit": "Levit"}[kind] + "ForImageClassification"]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        library: Any = AutoModel if is_text else AutoModelForImageClassification
        library.from_config(config).save_pretrained(folder)
    return folder


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    numbers = {word: i for i, word in enumerate(VOCABULARY)}
    special = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("pad", "unk", "cls", "sep", "mask")}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=special["unk_token"]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", numbers["[CLS]"]), ("[SEP]", numbers["[SEP]"])]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def _write_preprocessing(folder: Path, side: int) -> None:
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "do_normalize": True,
        "do_rescale": True,
        "size": {"height": side, "width": side},
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.25, 0.3],
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


TINY: dict[str, Callable[[Path], Path]] = {kind: partial(write_tiny, kind) for kind in (*TEXTS, *IMAGES)}
"""A function for each model type that writes a tiny network to a folder and returns it."""
