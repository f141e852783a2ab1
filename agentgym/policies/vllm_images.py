"""Images as vLLM's token API takes them: the trainer's own pixel values, and where in the prompt they stand.

vLLM could prepare a screenshot itself, but not surely to the same pixels or to as many tokens; so it gets what the
trainer's vision tower gets. vLLM keeps what its tower made of an image under a name; the version of the weights is
part of the name here, so that nothing seen with old weights is used again.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import torch

from agentgym.learner.vision import Vision
from agentgym.pictures import Picture
from agentgym.types import ImageSpan

_RAW = 3
"""Code of msgpack's extension type for the bytes of a tensor (vllm/v1/serial_utils.py)."""
_KEPT = 64
"""Images that are not prepared again."""


class Images:
    """Prepares the images of prompts for a server.

    Attributes:
        vision: The eyes of the trainer's model.
    """

    def __init__(self, vision: Vision, dtype: torch.dtype):
        """Send pixel values of this type, that of the model."""
        self.vision, self._dtype = vision, dtype
        self._prepared: dict[tuple[str, int, int], str] = {}

    def features(
        self, images: Sequence[ImageSpan], pictures: Mapping[str, Picture], version: int
    ) -> dict[str, Any] | None:
        """What a request says of its images, None if it has none.

        Args:
            images: Where in the prompt they stand.
            pictures: What they are, by hash.
            version: Version of the weights that will see them.

        Raises:
            EngineError: If a prompt holds a part of an image that cannot be seen alone.
        """
        if not images:
            return None
        names = [f"{image.hash}-{image.first}-{image.stop - image.start}-{version}" for image in images]
        places = [{"offset": image.start, "length": image.stop - image.start} for image in images]
        pixels = [self._pixels(image, pictures[image.hash]) for image in images]
        return {"mm_hashes": {"image": names}, "mm_placeholders": {"image": places}, "kwargs_data": {"image": pixels}}

    def _pixels(self, image: ImageSpan, picture: Picture) -> str:
        first, stop = image.first, image.first + image.stop - image.start
        key = (image.hash, first, stop)
        if key not in self._prepared:
            inputs = self.vision.inputs_behind(picture.pixels, first, stop)
            while len(self._prepared) >= _KEPT:
                del self._prepared[next(iter(self._prepared))]
            self._prepared[key] = _encode(self.vision.item(inputs), self._dtype)
        return self._prepared[key]


def _encode(item: Mapping[str, torch.Tensor], dtype: torch.dtype) -> str:
    """One image as vLLM reads it: named tensors, and for each how those of several images are put together.

    Matrices and larger ones are laid end to end; what is smaller stays on the CPU, one for each image.
    """
    fields: dict[str, Any] = {}
    for name, tensor in item.items():
        if tensor.dim() > 1:
            how: tuple[str, dict[str, Any]] = ("flat", {"slices": [(0, len(tensor), None)], "dim": 0})
        else:
            how = ("batched", {"keep_on_cpu": True})
        value = tensor.to(dtype) if tensor.is_floating_point() else tensor
        raw = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        data = (str(value.dtype).removeprefix("torch."), tuple(value.shape), msgspec.msgpack.Ext(_RAW, raw))
        fields[name] = {"data": data, "field": how}
    return base64.b64encode(msgspec.msgpack.encode(fields)).decode()
