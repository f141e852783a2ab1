"""The tokenizer of a model that sees: the chat template places images, the image processor says how long they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentgym import pictures
from agentgym.errors import TemplateError
from agentgym.learner.vision import Vision
from agentgym.pictures import Ref
from agentgym.renderer import HFTokenizer, Placed
from agentgym.types import ImageSpan, Message

_FREE = range(0xE000, 0xF8FF)
"""Private characters, one of which stands for what must not be read as an image while a template is rendered."""


class VisionTokenizer(HFTokenizer):
    """A Hugging Face tokenizer with a chat template that takes messages in parts.

    A placeholder is an image only where a marker was: neither what the environment says nor what the policy samples
    makes one.
    """

    def __init__(self, tokenizer: Any, vision: Vision, template_kwargs: dict[str, Any] | None = None):
        """Wrap the tokenizer of a model that sees.

        Raises:
            TemplateError: If the tokenizer has no chat template, or does not know the placeholder.
        """
        super().__init__(tokenizer, template_kwargs)
        self.vision = vision
        if tokenizer.convert_tokens_to_ids(vision.image_token) != vision.image_id:
            raise TemplateError(
                f"{vision.image_token} is token {vision.image_id} for the model, but not in its tokenizer"
            )
        self.special = {**self.special, vision.image_token: vision.image_id}

    def render(self, messages: Sequence[Message]) -> str:
        """Render, with one placeholder an image."""
        return self.place(messages)[0]

    def place(self, messages: Sequence[Message]) -> tuple[str, list[Placed]]:
        """Render, and say which image stands where.

        Raises:
            TemplateError: If the template drops an image or shows it more than once.
        """
        token = self.vision.image_token
        everything = "".join(m["content"] for m in messages)
        stand_in = next(chr(c) for c in _FREE if chr(c) not in everything)
        refs: list[Ref] = []
        shown = [{"role": m["role"], "content": self._parts(m, refs, stand_in)} for m in messages]
        text = super().render(shown)  # type: ignore[arg-type]
        if text.count(token) != len(refs):
            raise TemplateError(
                f"the chat template shows {text.count(token)} images of {len(refs)}: it must write {token} where a "
                "message has a part of type image"
            )
        placed, at = [], 0
        for number, (piece, ref) in enumerate(zip(text.split(token), refs, strict=False)):
            at += len(piece.replace(stand_in, token)) + (len(token) if number else 0)
            placed.append(Placed(at, ref))
        return text.replace(stand_in, token), placed

    def _parts(self, message: Message, refs: list[Ref], stand_in: str) -> list[dict[str, str]]:
        """The content as the template takes it; what is written as a placeholder becomes ``stand_in``."""
        content, token = message["content"], self.vision.image_token
        if message["role"] == "assistant":
            return [{"type": "text", "text": content.replace(token, stand_in)}]
        parts = []
        for part in pictures.split(content) if content else [""]:
            if isinstance(part, Ref):
                refs.append(part)
                parts.append({"type": "image"})
            else:
                parts.append({"type": "text", "text": part.replace(token, stand_in)})
        return parts

    def encode_images(self, text: str, images: Sequence[Placed]) -> tuple[list[int], list[ImageSpan]]:
        """Tokenise text with every image as long as the model sees it, and find its placeholders.

        Raises:
            TemplateError: If the tokenizer does not keep the placeholders apart.
        """
        pieces, bounds, length, last = [], [], 0, 0
        for at, ref in images:
            expansion = self.vision.expand(ref.height, ref.width)
            pieces += [text[last:at], expansion.text]
            length += at - last
            bounds.append((length, length + len(expansion.text), ref, expansion))
            length, last = length + len(expansion.text), at + len(self.vision.image_token)
        ids, spans = self.encode_spans("".join([*pieces, text[last:]]))
        found: list[ImageSpan] = []
        j = 0
        for start, stop, ref, expansion in bounds:
            while spans[j][0] < start:
                j += 1
            seen = 0
            while j < len(ids) and spans[j][0] < stop:
                if ids[j] == self.vision.image_id:
                    if seen and found[-1].stop == j:
                        found[-1].stop += 1
                    else:
                        found.append(ImageSpan(ref.hash, j, j + 1, seen, expansion.columns))
                    seen += 1
                j += 1
            if seen != expansion.tokens:
                raise TemplateError(f"{seen} of the {expansion.tokens} placeholders of an image became tokens")
        return ids, found
