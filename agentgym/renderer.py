"""Messages to token ids, exactly and incrementally.

A `Renderer` renders a conversation through the model's own chat template. What the policy sampled is never
tokenised again: a later prompt re-uses the ids of the earlier one as long as the template shows history as it
was. Where the template (or the context) rewrites history, the row forks, and the fork says what was edited.

The text of a row is a list of pieces. A context piece is text that was rendered and tokenised; a sampled piece
is what the policy wrote. A new prompt extends the row if its text begins with the text of all pieces; the
remaining text is tokenised on its own. Both ends of a sampled piece are safe places to cut, since the engine
itself starts sampling at the first and a special token stands at the second.

Where the tokenizer is that of a model that sees, a piece also says which images stand where in its text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from agentgym import pictures
from agentgym.errors import ContextFull, TemplateError
from agentgym.pictures import Ref
from agentgym.types import Edit, ImageSpan, Message, Segment, Trajectory

_SYSTEM, _FIRST, _PROBE, _SECOND = "PROBE-2c51", "PROBE-9e08", "PROBE-7f3a", "PROBE-b64d"
_EXCERPT = 400


class ChatTokenizer(Protocol):
    """What a renderer needs of a tokenizer."""

    special: dict[str, int]

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt text of the messages, ready for the assistant's next turn."""
        ...

    def encode(self, text: str) -> list[int]:
        """Tokenise text without adding anything; special tokens in it become their ids."""
        ...

    def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokenise as ``encode`` does; also the span ``(start, stop)`` of each token's characters."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the ids, special tokens included."""
        ...


class Placed(NamedTuple):
    """An image in rendered text, where its placeholder stands.

    Attributes:
        at: First character of the placeholder.
        ref: The image.
    """

    at: int
    ref: Ref


class SeeingTokenizer(ChatTokenizer, Protocol):
    """A tokenizer of a model that sees."""

    def place(self, messages: Sequence[Message]) -> tuple[str, list[Placed]]:
        """Return the prompt text of the messages, with one placeholder an image, and which image stands where."""
        ...

    def encode_images(self, text: str, images: Sequence[Placed]) -> tuple[list[int], list[ImageSpan]]:
        """Tokenise text with images in it; also where in the ids they stand."""
        ...


class HFTokenizer:
    """A Hugging Face tokenizer with a chat template as a `ChatTokenizer`."""

    def __init__(self, tokenizer: Any, template_kwargs: dict[str, Any] | None = None):
        """Wrap a tokenizer.

        Args:
            tokenizer: ``PreTrainedTokenizerFast`` with a chat template.
            template_kwargs: Arguments for the template, such as ``enable_thinking``.

        Raises:
            TemplateError: If the tokenizer has no chat template.
        """
        if not tokenizer.chat_template:
            raise TemplateError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no chat template: set tokenizer.chat_template "
                "and save it, or use an instruction-tuned model"
            )
        self.tokenizer = tokenizer
        self.template_kwargs = template_kwargs or {}
        added = tokenizer.added_tokens_decoder
        self.special = {str(t.content): i for i, t in added.items() if t.special}

    def render(self, messages: Sequence[Message]) -> str:
        """Render through ``apply_chat_template``."""
        return str(
            self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True, **self.template_kwargs
            )
        )

    def encode(self, text: str) -> list[int]:
        """Tokenise without special tokens added at the ends."""
        return list(self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokenise without special tokens added at the ends, with the tokenizer's own map to characters."""
        found = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        return list(found.ids), [(int(a), int(b)) for a, b in found.offsets]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode without cleaning spaces up."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


class ByteTokenizer:
    """UTF-8 bytes and three special tokens, for policies that have no tokenizer of their own."""

    special = {"<|im_start|>": 256, "<|im_end|>": 257}  # noqa: RUF012

    def render(self, messages: Sequence[Message]) -> str:
        """Render in ChatML."""
        turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages]
        return "".join(turns) + "<|im_start|>assistant\n"

    def encode(self, text: str) -> list[int]:
        """Tokenise to bytes."""
        ids: list[int] = []
        while text:
            cuts = [(text.find(s), s) for s in self.special if s in text]
            at, token = min(cuts) if cuts else (len(text), "")
            ids += text[:at].encode()
            ids += [self.special[token]] if token else []
            text = text[at + len(token) :]
        return ids

    def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokenise to bytes; every byte of a character has the character's span."""
        spans: list[tuple[int, int]] = []
        at = 0
        while at < len(text):
            token = next((s for s in self.special if text.startswith(s, at)), text[at])
            spans += [(at, at + len(token))] * (1 if token in self.special else len(token.encode()))
            at += len(token)
        return self.encode(text), spans

    def decode(self, ids: Sequence[int]) -> str:
        """Decode bytes; invalid UTF-8 becomes U+FFFD."""
        names = {i: s.encode() for s, i in self.special.items()}
        return b"".join(names.get(i) or bytes([i]) for i in ids).decode(errors="replace")


def holds_bytes(trajectory: Trajectory) -> bool:
    """Whether the ids of a trajectory are the bytes of a policy that writes text, rather than tokens of a model."""
    if not (trajectory.turns and trajectory.segments) or any(i > 257 for s in trajectory.segments for i in s.ids):
        return False
    turn = trajectory.turns[0]
    written = ByteTokenizer().decode(trajectory.segments[turn.segment].ids[turn.start : turn.stop])
    return written.removesuffix("<|im_end|>") == turn.text


@dataclass
class _Piece:
    text: str
    start: int
    sampled: bool
    images: Sequence[Placed] = field(default_factory=list)


class Renderer:
    """Renders conversations for one tokenizer; an episode keeps its state in a `Row`.

    Attributes:
        tokenizer: The tokenizer.
        close: Text of the token that ends an assistant turn.
        close_id: Its id; a policy stops sampling there.
        sees: Whether the tokenizer's model looks at images.
    """

    def __init__(self, tokenizer: ChatTokenizer | SeeingTokenizer):
        """Probe the template.

        Raises:
            TemplateError: If the template fails, drops a message, does not end an assistant turn with a special
                token, or does not open one when it is asked for the generation prompt.
        """
        self.tokenizer: Any = tokenizer
        self.sees = hasattr(tokenizer, "place")
        self.close, self.close_id = self._probe()

    def _probe(self) -> tuple[str, int]:
        asked = [Message(role="system", content=_SYSTEM), Message(role="user", content=_FIRST)]
        told = [Message(role="assistant", content=_PROBE), Message(role="user", content=_SECOND)]
        try:
            prompt = self.tokenizer.render(asked)
            text = self.tokenizer.render([*asked, *told])
        except Exception as error:
            raise TemplateError(
                f"the chat template cannot render system, user, assistant, user messages: {error}"
            ) from error
        if text.count(_PROBE) != 1:
            raise TemplateError("the chat template does not show an assistant message exactly once")
        opening, after = text.split(_PROBE)
        for token in sorted(self.tokenizer.special, key=len, reverse=True):
            if after.startswith(token):
                break
        else:
            raise TemplateError(
                f"the chat template follows an assistant message with {after[:20]!r}, which is no special token: "
                "the end of a turn cannot be recognised, so it cannot be rendered incrementally"
            )
        for shown, content, what in ((prompt, _SYSTEM, "system"), (prompt, _FIRST, "user"), (after, _SECOND, "last")):
            if content not in shown:
                raise TemplateError(f"the chat template drops the {what} message")
        if opening.startswith(prompt) and any(t in opening[len(prompt) :] for t in self.tokenizer.special):
            raise TemplateError(
                f"the chat template has no generation prompt: before an answer it writes {opening[len(prompt) :]!r}, "
                "but not when it is asked for one (add_generation_prompt)"
            )
        return token, self.tokenizer.special[token]

    def escape(self, text: str) -> str:
        """Break up special tokens in text that comes from outside, so that it cannot fake a turn or an image.

        Halves of surrogate pairs, which no tokenizer takes, become question marks.
        """
        text = pictures.escape(text)
        for token in self.tokenizer.special:
            if token in text:
                text = text.replace(token, f"{token[0]} {token[1:]}" if len(token) > 1 else " ")
        return text.encode(errors="replace").decode()

    def place(self, messages: Sequence[Message]) -> tuple[str, list[Placed]]:
        """Render messages; a model that does not see reads the markers of images as text."""
        if self.sees:
            found: tuple[str, list[Placed]] = self.tokenizer.place(messages)
            return found
        return self.tokenizer.render(messages), []

    def encode(self, text: str, images: Sequence[Placed], behind: bool) -> tuple[list[int], list[ImageSpan]]:
        """Ids of rendered text, at the start or ``behind`` other text, and where in them images stand."""
        if not images:
            return self.encode_after(text) if behind else self.tokenizer.encode(text), []
        if not behind:
            ids, spans = self.tokenizer.encode_images(text, images)
            return ids, spans
        moved = [Placed(len(self.close) + at, ref) for at, ref in images]
        ids, spans = self.tokenizer.encode_images(self.close + text, moved)
        return ids[1:], [replace(span, start=span.start - 1, stop=span.stop - 1) for span in spans]

    def encode_reply(self, text: str) -> list[int]:
        """Ids of an assistant message with its closing token, as a scripted policy would write it."""
        return [*self.encode_after(self.escape(text)), self.close_id]

    def encode_after(self, text: str) -> list[int]:
        """Ids of text that stands behind other text, not at the start: some tokenizers mark a start with a space."""
        return self.tokenizer.encode(self.close + text)[1:]

    def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids as ``encode_after`` gives them, and the span of each token's characters in ``text``."""
        ids, spans = self.tokenizer.encode_spans(self.close + text)
        offset = len(self.close)
        return ids[1:], [(a - offset, b - offset) for a, b in spans[1:]]

    def decode_reply(self, ids: Sequence[int]) -> str:
        """Text of sampled ids without the closing token."""
        ids = ids[:-1] if ids and ids[-1] == self.close_id else ids
        return self.tokenizer.decode(ids)


class Row:
    """The growing token rows of one episode."""

    def __init__(self, renderer: Renderer, context_limit: int | None = None):
        """Start without any segment.

        Args:
            renderer: Renderer of the policy's tokenizer.
            context_limit: Longest prompt in tokens, or None.
        """
        self.renderer = renderer
        self.context_limit = context_limit
        self.segments: list[Segment] = []
        self._pieces: list[_Piece] = []
        self._prompt, self._prompt_pieces = "", 0
        self._prompt_images: list[Placed] = []

    @property
    def segment(self) -> Segment:
        """The segment that is being written."""
        return self.segments[-1]

    def prompt(self, messages: Sequence[Message], turn: int) -> int:
        """Bring the row up to the prompt for these messages, by extending it or by a fork.

        Args:
            messages: What the policy is to see. Assistant messages hold the policy's decoded text.
            turn: Index of the turn, for the edit record.

        Returns:
            The position in `segment` where the new context tokens start.

        Raises:
            ContextFull: If the prompt is longer than the limit. The row is left as it was.
        """
        text, images = self.renderer.place(messages)
        matched, at = self._match(text, images)
        rest, new = text[at:], _within(images, at, len(text))
        grows = self.segments and matched == len(self._pieces)
        start = self._extend(rest, new) if grows else self._fork(rest, new, matched, at, turn)
        self._prompt, self._prompt_images, self._prompt_pieces = text, images, len(self._pieces)
        return start

    def sampled(self, ids: list[int], logps: list[float], version: int | list[int]) -> tuple[int, int]:
        """Append what the policy sampled.

        Returns:
            The span ``(start, stop)`` of the ids in `segment`.
        """
        start = len(self.segment)
        self.segment.append_sampled(ids, logps, version)
        text = self.renderer.tokenizer.decode(ids)
        self._pieces.append(_Piece(text, start, sampled=True))
        return start, len(self.segment)

    def _match(self, text: str, images: Sequence[Placed]) -> tuple[int, int]:
        """Number of pieces that ``text`` begins with, and where the rest of it starts.

        A text that begins with the last prompt begins with the pieces of that prompt: only later ones are looked at.
        """
        same = text.startswith(self._prompt) and _within(images, 0, len(self._prompt)) == self._prompt_images
        known = self._prompt_pieces if same else 0
        at = len(self._prompt) if known else 0
        close = self.renderer.close
        for i in range(known, len(self._pieces)):
            piece = self._pieces[i]
            if not piece.sampled:
                stop = at + len(piece.text)
                if not text.startswith(piece.text, at) or _within(images, at, stop) != piece.images:
                    return i, at
                at = stop
                continue
            closed = piece.text.endswith(close) and self._ends_closed(i)
            body = piece.text.removesuffix(close) if closed else piece.text
            for shown in (body, body.rstrip(), body.lstrip(), body.strip()):
                if text.startswith(shown + close, at) and not _within(images, at, at + len(shown)):
                    at += len(shown) + (len(close) if closed else 0)
                    break
            else:
                return i, at
        return len(self._pieces), at

    def _ends_closed(self, i: int) -> bool:
        stop = self._pieces[i + 1].start if i + 1 < len(self._pieces) else len(self.segment)
        return self.segment.ids[stop - 1] == self.renderer.close_id

    def _check(self, length: int) -> None:
        if self.context_limit is not None and length > self.context_limit:
            raise ContextFull(f"the prompt has {length} tokens, the context holds {self.context_limit}")

    def _extend(self, rest: str, images: list[Placed]) -> int:
        ids, spans = self.renderer.encode(rest, images, behind=True)
        start = len(self.segment)
        self._check(start + len(ids))
        self.segment.append_context(ids, spans)
        self._pieces.append(_Piece(rest, start, False, images))
        return start

    def _fork(self, rest: str, images: list[Placed], matched: int, at: int, turn: int) -> int:
        pieces, old = self._pieces[:matched], self.segments[-1] if self.segments else None
        kept = self._pieces[matched].start if old is not None else 0
        ids, spans = self.renderer.encode(rest, images, behind=at > 0)
        self._check(kept + len(ids))
        new = Segment()
        if old is not None:
            before = "".join(p.text for p in self._pieces[matched:])
            new.edit = Edit(turn, kept, len(old) - kept, before[:_EXCERPT], rest[:_EXCERPT])
            new.append_context(old.ids[:kept], [image for image in old.images if image.stop <= kept])
        new.append_context(ids, spans)
        self.segments.append(new)
        self._pieces = [*pieces, _Piece(rest, kept, False, images)]
        return kept


def _within(images: Sequence[Placed], start: int, stop: int) -> list[Placed]:
    """The images in a part of a text, counted from its beginning."""
    return [Placed(at - start, ref) for at, ref in images if start <= at < stop]
