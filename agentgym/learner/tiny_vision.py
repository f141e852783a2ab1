"""Small real vision-language models without a download: each family's own architecture, over the tiny tokenizer."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken
from transformers import (
    AutoModelForImageTextToText,
    Idefics3Config,
    Qwen2_5_VLConfig,
    Qwen3VLConfig,
    SmolVLMConfig,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from agentgym.learner.vision import FAMILIES, Vision

TILE = 128
"""Pixels of a side of what a tiny SmolVLM or Idefics3 looks at: 64 placeholders, as in the published SmolVLM."""
_QWEN: tuple[str, ...] = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_IDEFICS = ("<image>", "<fake_token_around_image>", "<global-img>")
_QWENS = ("qwen2_5_vl", "qwen3_vl")
_TEMPLATE = (
    "{%% for message in messages %%}<|{{ message['role'] }}|>{%% for part in message['content'] %%}"
    "{%% if part['type'] == 'image' %%}%s{%% else %%}{{ part['text'] }}{%% endif %%}{%% endfor %%}<|end|>{%% endfor %%}"
    "{%% if add_generation_prompt %%}<|assistant|>{%% endif %%}"
)


def add_images(tokenizer: Any, family: str, most_tiles: int = 1) -> None:
    """Teach a tiny tokenizer the tokens of images, and its chat template where they stand.

    Args:
        tokenizer: Of `agentgym.learner.tiny.train_tokenizer`.
        family: A key of `agentgym.learner.vision.FAMILIES`.
        most_tiles: Tiles along a side, for which SmolVLM and Idefics3 have tokens.
    """
    tokens, image = _QWEN, "".join(_QWEN[i] for i in (0, 2, 1))
    if family not in _QWENS:
        tiles = (f"<row_{i + 1}_col_{j + 1}>" for i in range(most_tiles) for j in range(most_tiles))
        tokens, image = (*_IDEFICS, *tiles), _IDEFICS[0]
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in tokens], special_tokens=True)
    tokenizer.chat_template = _TEMPLATE % image


def build_model(
    family: str,
    tokenizer: Any,
    seed: int,
    hidden: int = 128,
    layers: int = 3,
    heads: int = 4,
    positions: int = 4096,
    most_tiles: int = 1,
    tile: int = TILE,
) -> tuple[Any, Vision]:
    """Build a small model with fresh weights.

    Args:
        family: A key of `agentgym.learner.vision.FAMILIES`.
        tokenizer: With the tokens of images (`add_images`).
        seed: Seed of the weights.
        hidden: Width of language model and vision tower.
        layers: Depth of the language model; the tower has 2 layers.
        heads: Attention heads of both.
        positions: Longest sequence.
        most_tiles: Tiles along the longer side of an image, for SmolVLM and Idefics3; with 1 it is not cut.
        tile: Pixels of a side of a tile.

    Returns:
        The model, and its eyes.
    """
    token = tokenizer.convert_tokens_to_ids
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": positions,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": True,
    }
    tower: dict[str, Any] = {"hidden_size": hidden, "intermediate_size": 2 * hidden}
    shared = {"tie_word_embeddings": True, "image_token_id": token(FAMILIES[family].image_token)}
    if family in _QWENS:
        third = hidden // heads // 6
        sections = [hidden // heads // 2 - 2 * third, third, third]
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": sections}
        tower |= {"depth": 2, "num_heads": heads, "out_hidden_size": hidden}
        start, end, _, video = token(list(_QWEN))
        shared |= {"vision_start_token_id": start, "vision_end_token_id": end, "video_token_id": video}
    config: Any
    processor: Any
    if family == "qwen2_5_vl":
        config = Qwen2_5_VLConfig(text_config=text, vision_config={**tower, "fullatt_block_indexes": [1]}, **shared)
        processor = _qwen_processor(14)
    elif family == "qwen3_vl":
        text["head_dim"] = hidden // heads
        text["rope_parameters"]["mrope_interleaved"] = True
        tower |= {"num_position_embeddings": 256, "deepstack_visual_indexes": [0], "patch_size": 16}
        config = Qwen3VLConfig(text_config=text, vision_config=tower, **shared)
        processor = _qwen_processor(16)
    else:
        tower |= {"num_hidden_layers": 2, "num_attention_heads": heads, "image_size": tile, "patch_size": 8}
        kind, make = (SmolVLMConfig, SmolVLMImageProcessorPil)
        if family == "idefics3":
            kind, make = (Idefics3Config, Idefics3ImageProcessorPil)
        config = kind(
            text_config={"model_type": "llama", **text},
            vision_config=tower,
            scale_factor=2,
            pad_token_id=tokenizer.pad_token_id,
            **shared,
        )
        processor = make(
            size={"longest_edge": most_tiles * tile},
            max_image_size={"longest_edge": tile},
            do_image_splitting=most_tiles > 1,
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
        for name, parameter in model.named_parameters():
            if "pos_embed" in name or "position_embedding" in name:
                torch.nn.init.normal_(parameter)  # as loud as the patches; at 0.02 where things are is learned late
    return model, FAMILIES[family](config, processor)


def _qwen_processor(patch: int) -> Any:
    side = 2 * patch
    return Qwen2VLImageProcessorPil(patch_size=patch, size={"shortest_edge": side**2, "longest_edge": 256 * side**2})
