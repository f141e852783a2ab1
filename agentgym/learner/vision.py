"""How vision-language models see: the tokens that stand for an image, and what takes the place of their embeddings.

The image processor and the vision tower are transformers' own, for each family as it is published. The tower runs with
stock attention over whole images; its features are put among the token embeddings, and the language model then runs on
flat rows like any other. The pixels are always prepared by the PIL variant of the processor, so that they are the same
with and without torchvision.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoImageProcessor
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from agentgym.errors import ConfigError, EngineError
from agentgym.learner.attention import Splice
from agentgym.pictures import Picture
from agentgym.types import ImageSpan

_ATTRIBUTE = "agentgym_vision"


class Expansion(NamedTuple):
    """What stands in a prompt for an image.

    Attributes:
        text: Its tokens, spelled.
        tokens: How many of them are placeholders.
        columns: Columns of the grid of placeholders, where the positions of the family are two-dimensional, else 0.
    """

    text: str
    tokens: int
    columns: int


class Features(NamedTuple):
    """What the vision tower makes of an image, or of several.

    Attributes:
        embeds: ``[P, d]`` takes the place of the embeddings of the placeholders.
        deep: ``[P, d]`` each: what is added to their hidden states after the first layers (Qwen3-VL); may be empty.
    """

    embeds: torch.Tensor
    deep: list[torch.Tensor]

    def part(self, start: int, stop: int) -> Features:
        """Those of some of the placeholders."""
        return Features(self.embeds[start:stop], [layer[start:stop] for layer in self.deep])


class Vision:
    """The eyes of one family of models.

    Attributes:
        image_token: The placeholder, as the chat template writes it for an image.
        image_id: Its id.
        processor: Makes pixel values.
    """

    image_token: str

    def __init__(self, config: Any, processor: Any):
        """Take the image processor of a model with this config."""
        self.processor, self.image_id = processor, int(config.image_token_id)
        self.expand = functools.lru_cache(maxsize=4096)(self._expand)

    def __deepcopy__(self, memo: dict[int, Any]) -> Vision:
        return self  # nothing of it is trained

    def _expand(self, height: int, width: int) -> Expansion:
        raise NotImplementedError

    def inputs(self, pictures: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Pixel values of images ``[H, W, 3]``, as the tower takes them."""
        raise NotImplementedError

    def stock(self, ids: torch.Tensor, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What transformers' own forward takes beside the ids ``[1, T]`` of a row with images."""
        return inputs

    def inputs_behind(self, pixels: np.ndarray, first: int, stop: int) -> dict[str, torch.Tensor]:
        """Pixel values behind some of the placeholders of an image ``[H, W, 3]``, for a tower that sees them alone.

        Raises:
            EngineError: If they cannot be seen alone.
        """
        raise NotImplementedError

    def item(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The pixel values of one image under the names, and in the shapes, that vLLM knows them by."""
        raise NotImplementedError

    def see(self, model: Any, pictures: Sequence[Picture]) -> list[Features]:
        """Run the vision tower over images, all of them in one forward.

        Raises:
            ConfigError: If an image is gone.
        """
        pixels = [picture.pixels for picture in pictures]
        whole = self.run(model, self.inputs(pixels))
        ends = np.cumsum([0, *(self.expand(*image.shape[:2]).tokens for image in pixels)]).tolist()
        return [whole.part(start, stop) for start, stop in itertools.pairwise(ends)]

    def run(self, model: Any, inputs: dict[str, torch.Tensor]) -> Features:
        """Run the vision tower over pixel values."""
        device = next(model.parameters()).device
        out = model.get_image_features(**{k: v.to(device) for k, v in inputs.items()}, return_dict=True)
        deep = [torch.cat(list(parts)) for parts in getattr(out, "deepstack_features", None) or ()]
        return Features(torch.cat(list(out.pooler_output)), deep)

    def probe(self) -> tuple[dict[str, torch.Tensor], int, int]:
        """Pixel values of a small image, how many placeholders it has and in how many columns."""
        noise = np.random.default_rng(0).integers(0, 256, (60, 100, 3), np.uint8)
        expansion = self.expand(*noise.shape[:2])
        return self.inputs([noise]), expansion.tokens, expansion.columns


class _Qwen(Vision):
    """Qwen2.5-VL and Qwen3-VL: one placeholder a merged patch, in a grid of any shape; M-RoPE."""

    image_token = "<|image_pad|>"

    def _expand(self, height: int, width: int) -> Expansion:
        _, rows, columns = self.inputs([_blank(height, width)])["image_grid_thw"][0].tolist()
        rows, columns = rows // self.processor.merge_size, columns // self.processor.merge_size
        return Expansion(self.image_token * (rows * columns), rows * columns, columns)

    def inputs(self, pictures: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Patches ``[N, C]`` and the grid of each image ``[n, 3]``."""
        return dict(self.processor(images=list(pictures), input_data_format="channels_last", return_tensors="pt"))

    def inputs_behind(self, pixels: np.ndarray, first: int, stop: int) -> dict[str, torch.Tensor]:
        """Patches ``[N, C]`` and grid ``[1, 3]`` of the image, which is seen as a whole."""
        if (first, stop) != (0, self.expand(*pixels.shape[:2]).tokens):
            raise EngineError("a prompt holds a part of an image, which this model can only see as a whole")
        return self.inputs([pixels])

    def item(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Patches ``[N, C]`` and grid ``[3]``."""
        return {"pixel_values": inputs["pixel_values"], "image_grid_thw": inputs["image_grid_thw"][0]}

    def stock(self, ids: torch.Tensor, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What transformers' own forward takes beside the ids: it wants to be told which of them are images."""
        return {**inputs, "mm_token_type_ids": (ids == self.image_id).int()}


class _Idefics(Vision):
    """SmolVLM and Idefics3: square tiles and a small copy of the whole, each of the same number of placeholders."""

    image_token = "<image>"

    def __init__(self, config: Any, processor: Any):
        super().__init__(config, processor)
        vision = config.vision_config
        self.tile = (vision.image_size // vision.patch_size) ** 2 // config.scale_factor**2

    def _expand(self, height: int, width: int) -> Expansion:
        made = self._process([_blank(height, width)])
        rows, columns = made["rows"][0][0], made["cols"][0][0]
        text = get_image_prompt_string(
            rows, columns, self.tile, "<fake_token_around_image>", self.image_token, "<global-img>"
        )
        return Expansion(text, self.tile * (rows * columns + 1), 0)

    def inputs(self, pictures: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Tiles of all images ``[1, N, 3, S, S]`` and their masks."""
        made = self._process(pictures)
        return {name: made[name] for name in ("pixel_values", "pixel_attention_mask")}

    def inputs_behind(self, pixels: np.ndarray, first: int, stop: int) -> dict[str, torch.Tensor]:
        """Tiles ``[1, N, 3, S, S]`` and their masks."""
        if first % self.tile or stop % self.tile:
            raise EngineError("a prompt holds a part of a tile of an image, which this model can only see as a whole")
        tiles = slice(first // self.tile, stop // self.tile)
        return {name: value[:, tiles] for name, value in self.inputs([pixels]).items()}

    def item(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tiles ``[N, 3, S, S]``, their masks ``[N, S, S]``, and N."""
        tiles = inputs["pixel_values"][0]
        masks = inputs["pixel_attention_mask"][0]
        return {"pixel_values": tiles, "pixel_attention_mask": masks, "num_patches": torch.tensor(len(tiles))}

    def probe(self) -> tuple[dict[str, torch.Tensor], int, int]:
        """The last tile alone: there may be many, and large ones."""
        inputs, _, _ = super().probe()
        return {name: value[:, -1:] for name, value in inputs.items()}, self.tile, 0

    def _process(self, pictures: Sequence[Any]) -> Any:
        return self.processor(
            images=[list(pictures)],
            input_data_format="channels_last",
            return_row_col_info=True,
            do_pad=True,
            return_tensors="pt",
        )


FAMILIES: dict[str, type[Vision]] = {
    "qwen2_5_vl": _Qwen,
    "qwen3_vl": _Qwen,
    "smolvlm": _Idefics,
    "idefics3": _Idefics,
}
"""Vision-language models that are supported, by ``model_type``."""


def load_vision(source: str | Path, config: Any) -> Vision | None:
    """The eyes of the model in a folder or of a Hugging Face id; None for a model that reads text only.

    Raises:
        ConfigError: If it sees, but its family is not supported.
    """
    if not hasattr(config, "vision_config"):
        return None
    if config.model_type not in FAMILIES:
        raise ConfigError(
            f"{config.model_type}: vision-language models of this family are not supported: use one of "
            f"{', '.join(FAMILIES)}, or a model that reads text only"
        )
    return FAMILIES[config.model_type](config, AutoImageProcessor.from_pretrained(source, backend="pil"))


def give(model: Any, vision: Vision) -> None:
    """Let a model see; copies of it see too."""
    setattr(model, _ATTRIBUTE, vision)


def vision_of(model: Any) -> Vision | None:
    """The eyes of a model, None if it reads text only."""
    found: Vision | None = getattr(model, _ATTRIBUTE, None)
    return found


def freeze(model: Any) -> None:
    """Leave what lies between pixels and embeddings as it is, and train the language model alone.

    Raises:
        ConfigError: If the model reads text only.
    """
    if vision_of(model) is None:
        raise ConfigError("model.train_vision is false, but the model reads text only: leave it out")
    language = {id(p) for part in (model.get_decoder(), model.get_output_embeddings()) for p in part.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in language:
            parameter.requires_grad_(False)


def splice(parts: Sequence[Features], at: Iterable[int]) -> Splice:
    """Features in the places of placeholders.

    Args:
        parts: N of them in all.
        at: ``[N]`` places in a flat row, ascending.
    """
    layers = zip(*(part.deep for part in parts), strict=True)
    embeds = torch.cat([part.embeds for part in parts])
    return Splice(torch.tensor(list(at), device=embeds.device), embeds, [torch.cat(layer) for layer in layers])


def spliced(model: Any, pictures: Mapping[str, Picture], images: Sequence[ImageSpan]) -> Splice | None:
    """See images, each once, and put their features in the places of placeholders.

    Args:
        model: Its tower gets gradients if it is trained.
        pictures: The images by their hash.
        images: Where in a flat row they stand, in order; none: nothing is put anywhere.

    Raises:
        ConfigError: If the model reads text only, or an image is gone.
    """
    if not images:
        return None
    vision = vision_of(model)
    if vision is None:
        raise ConfigError("the rows hold images, but this model reads text only: use a vision-language model")
    names = sorted({image.hash for image in images})
    found = dict(zip(names, vision.see(model, [pictures[name] for name in names]), strict=True))
    parts = [found[i.hash].part(i.first, i.first + i.stop - i.start) for i in images]
    return splice(parts, [at for image in images for at in range(image.start, image.stop)])


def _blank(height: int, width: int) -> Any:
    return np.zeros((height, width, 3), np.uint8)
