"""Exact tokens: what was sampled is stored once, never tokenised again, and trained exactly once."""

import copy
import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agentgym.context import make_context
from agentgym.errors import ContextFull, TemplateError
from agentgym.renderer import ByteTokenizer, HFTokenizer, Renderer, Row
from agentgym.types import Message

TEXT = st.text(st.characters(codec="utf-8"), max_size=24)
WORDS = st.text(st.sampled_from("ab é世\n.<|>_"), max_size=16)
OBSERVATION = TEXT | WORDS
CONTEXTS = st.sampled_from(["append", "window:0", "window:1", "window:2", "workspace"])


def vocabulary(renderer):
    if isinstance(renderer.tokenizer, ByteTokenizer):
        return 258
    return len(renderer.tokenizer.tokenizer)


def sampled_ids(renderer):
    """Ids that a wild policy may sample: any bytes, special tokens in the middle, whitespace; closed or cut."""
    size, tokenizer = vocabulary(renderer), renderer.tokenizer
    spelled = [renderer.close, "<think>", "</think>", "<report>", "</report>", *list(tokenizer.special)[:3]]
    pieces = st.one_of(
        st.integers(0, size - 1).map(lambda i: [i]),
        st.sampled_from(sorted(tokenizer.special.values())).map(lambda i: [i]),
        st.sampled_from([" ", "\n", "\t", "  ", "\n\n", "\u3000"]).map(tokenizer.encode),
        st.sampled_from([b"\xf0", b"\x9f", b"\xe2\x82", b"\xff"]).map(lambda raw: byte_ids(renderer, raw)),
        st.sampled_from(spelled).map(lambda text: byte_ids(renderer, text.encode())),
        WORDS.map(tokenizer.encode),
    )
    body = st.lists(pieces, max_size=6).map(lambda parts: [i for part in parts for i in part])
    return st.tuples(body, st.booleans()).map(lambda t: [*t[0], renderer.close_id] if t[1] or not t[0] else t[0])


def byte_ids(renderer, raw):
    """One token a byte, so that a special token can be spelled without its id and UTF-8 can be invalid."""
    if isinstance(renderer.tokenizer, ByteTokenizer):
        return list(raw)
    tokenizer = renderer.tokenizer.tokenizer
    if "<0x00>" in tokenizer.get_vocab():
        return tokenizer.convert_tokens_to_ids([f"<0x{b:02X}>" for b in raw])
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    names = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(rest)}
    return tokenizer.convert_tokens_to_ids([names[b] for b in raw])


@dataclass
class Played:
    """A conversation as a rollout would play it, with all that was sampled written down beside the row."""

    renderer: Renderer
    row: Row
    context: object
    messages: list = field(default_factory=list)
    spans: list = field(default_factory=list)
    frozen: list = field(default_factory=list)
    views: list = field(default_factory=list)

    def turn(self, observation, ids=None):
        self.messages.append(Message(role="user", content=self.renderer.escape(observation)))
        view = self.context.view(self.messages)
        before, known = copy.deepcopy(self.messages), len(self.row.segments)
        start = self.row.prompt(view, len(self.spans))
        assert self.messages == before, "a context edited the conversation"
        if len(self.row.segments) > known:
            self.frozen += [copy.deepcopy(s) for s in self.row.segments[known - 1 : -1]] if known else []
        self.views.append(view)
        self.check()
        assert 0 <= start <= len(self.row.segment)
        if ids is not None:
            n = len(self.spans)
            logps = [-0.25 * (j + 1) - n for j in range(len(ids))]
            span = self.row.sampled(list(ids), list(logps), version=n)
            self.spans.append((len(self.row.segments) - 1, *span, list(ids), logps, n))
            self.messages.append(Message(role="assistant", content=self.renderer.decode_reply(ids)))
            self.check()

    def check(self):
        """Every guarantee that must hold at any time."""
        segments = self.row.segments
        sampled = [[False] * len(s) for s in segments]
        for s, start, stop, ids, logps, version in self.spans:
            assert segments[s].ids[start:stop] == ids
            assert segments[s].logps[start:stop] == logps
            assert segments[s].versions[start:stop] == [version] * len(ids)
            assert segments[s].mask[start:stop] == [1] * len(ids)
            sampled[s][start:stop] = [True] * len(ids)
        for segment, flags in zip(segments, sampled, strict=True):
            assert len(segment.ids) == len(segment.mask) == len(segment.logps) == len(segment.versions)
            assert segment.mask == [int(f) for f in flags]
            beside = zip(flags, segment.logps, segment.versions, strict=True)
            assert all(f or (p == 0.0 and v == -1) for f, p, v in beside)
        assert sum(sum(s.mask) for s in segments) == sum(len(span[3]) for span in self.spans)
        assert segments[: len(self.frozen)] == self.frozen, "a segment changed after the row had forked from it"
        assert segments[0].edit is None
        for old, new in itertools.pairwise(segments):
            assert new.ids[: new.edit.kept] == old.ids[: new.edit.kept]
            assert new.edit.kept + new.edit.dropped == len(old)

    @property
    def shown(self):
        """The text of the row as the policy reads it."""
        return self.renderer.tokenizer.decode(self.row.segment.ids)


def play(renderer, context, system, turns, last=None):
    """Play ``(observation, ids)`` turns, then render the prompt of one more if ``last`` is given."""
    played = Played(renderer, Row(renderer), make_context(context, renderer.escape, 99))
    played.messages.append(Message(role="system", content=renderer.escape(system)))
    for observation, ids in turns:
        played.turn(observation, ids)
    if last is not None:
        played.turn(last)
    return played


def plain(renderer, text):
    """The text, or where the tokenizer does not keep all whitespace, what is left without any."""
    return "".join(text.split()) if keeps_no_space(renderer) else text


def keeps_no_space(renderer):
    return "<|pad|>" not in renderer.tokenizer.special and renderer.close == "<|end|>"


def squeezed(text):
    return "".join(text.split())


@given(data=st.data(), context=CONTEXTS)
def test_sampled_ids_are_never_touched(renderer, data, context):
    turns = data.draw(st.lists(st.tuples(OBSERVATION, sampled_ids(renderer)), min_size=1, max_size=5))
    played = play(renderer, context, data.draw(TEXT), turns, last=data.draw(TEXT))
    # Whatever was sampled, the policy reads the conversation as the template shows it; only the whitespace around a
    # reply may be its own where the template trims it.
    rendered = renderer.tokenizer.render(played.views[-1])
    assert squeezed(played.shown) == squeezed(rendered)
    if renderer.close != "<|eot_id|>":
        assert plain(renderer, played.shown) == plain(renderer, rendered)


@given(data=st.data())
@pytest.mark.parametrize("style", ["tiny", "smollm2", "llama3", "bytes"])
def test_append_never_forks_for_ordinary_text(renderers, style, data):
    renderer = renderers(style)
    turns = data.draw(st.lists(st.tuples(OBSERVATION, TEXT | WORDS), min_size=1, max_size=5))
    closed = [(o, renderer.encode_reply(t)) for o, t in turns]
    played = play(renderer, "append", "You play a game.", closed, last="The end.")
    assert len(played.row.segments) == 1
    if style != "llama3" or all(t == t.strip() for _, t in turns):
        assert played.shown == renderer.tokenizer.render(played.messages)


@given(data=st.data())
def test_append_never_forks_for_wild_ids(renderers, data):
    for style in ("tiny", "smollm2", "llama3", "bytes"):
        renderer = renderers(style)
        turns = data.draw(st.lists(st.tuples(OBSERVATION, sampled_ids(renderer)), min_size=1, max_size=4))
        assert len(play(renderer, "append", "s", turns, last="o").row.segments) == 1


@given(data=st.data())
def test_stripped_thinking_forks_exactly_where_there_was_some(renderers, data):
    renderer = renderers("qwen3")
    thought = st.builds("<think>\n{}\n</think>\n\n{}".format, WORDS, WORDS)
    opened_by_the_prompt = st.builds("{}</think>{}".format, WORDS, WORDS)
    replies = data.draw(st.lists(thought | opened_by_the_prompt | WORDS, min_size=1, max_size=5))
    played = play(renderer, "append", "s", [("o", renderer.encode_reply(r)) for r in replies], last="o")
    held = [i for i, m in enumerate(played.messages[2::2]) if "</think>" in m["content"]]
    edits = [s.edit for s in played.row.segments[1:]]
    assert [e.turn for e in edits] == [i + 1 for i in held]
    for i, edit in zip(held, edits, strict=True):
        s, start, _, ids, *_ = played.spans[i]
        assert edit.kept == start
        assert edit.dropped == len(ids)
        assert edit.before == renderer.tokenizer.decode(ids)[:400]
        answer = played.messages[2 + 2 * i]["content"].split("</think>")[-1].lstrip("\n")
        rest = f"{answer}<|im_end|>\n<|im_start|>user\no<|im_end|>\n<|im_start|>assistant\n"
        assert edit.after == rest[:400]
        assert renderer.tokenizer.decode(played.row.segments[s + 1].ids[start:]).startswith(rest)
    assert played.shown == renderer.tokenizer.render(played.messages)


def test_thinking_example(renderers):
    """Two turns, written out: the row forks once and each sampled token is trained in one segment."""
    renderer = renderers("qwen3")
    first, second = renderer.encode_reply("<think>\nhm\n</think>\n\ngo north"), renderer.encode_reply("go south")
    played = play(renderer, "append", "s", [("a", first), ("b", second)], last="c")
    one, two = played.row.segments
    assert [i for i, m in zip(one.ids, one.mask, strict=True) if m] == first
    assert [i for i, m in zip(two.ids, two.mask, strict=True) if m] == second
    assert "<think>" not in renderer.tokenizer.decode(two.ids)
    assert two.edit.before == "<think>\nhm\n</think>\n\ngo north<|im_end|>"
    assert two.edit.after.startswith("go north<|im_end|>\n<|im_start|>user\nb<|im_end|>")


@given(data=st.data())
def test_windows_and_workspaces_fork_and_stay_exact(renderer, data):
    context = data.draw(st.sampled_from(["window:0", "window:1", "workspace"]))
    turns = data.draw(st.lists(st.tuples(WORDS, WORDS), min_size=3, max_size=5))
    closed = [(f"{i} {o}", renderer.encode_reply(f"<report>{i}</report>{t}")) for i, (o, t) in enumerate(turns)]
    played = play(renderer, context, "s", closed, last="end")
    first = 2 if context == "window:1" else 1
    assert [s.edit.turn for s in played.row.segments[1:]] == list(range(first, len(turns) + 1))
    assert squeezed(played.shown) == squeezed(renderer.tokenizer.render(played.views[-1]))


@given(data=st.data())
def test_context_limit_leaves_the_row_as_it_was(renderer, data):
    context = data.draw(CONTEXTS)
    turns = data.draw(st.lists(st.tuples(OBSERVATION, sampled_ids(renderer)), min_size=1, max_size=3))
    played = play(renderer, context, "s", turns)
    played.messages.append(Message(role="user", content=renderer.escape(data.draw(OBSERVATION))))
    view = played.context.view(played.messages)
    fits = copy.deepcopy(played.row)
    fits.prompt(view, 9)
    needed = len(fits.segment)
    before = copy.deepcopy(played.row)
    played.row.context_limit = needed - 1
    with pytest.raises(ContextFull, match=rf"{needed} tokens, the context holds {needed - 1}"):
        played.row.prompt(view, 9)
    assert played.row.segments == before.segments
    assert played.row._pieces == before._pieces
    played.row.context_limit = needed
    played.row.prompt(view, 9)
    assert played.row.segments == fits.segments


class WholeRow(Row):
    """A row that looks at all its pieces for every prompt."""

    def _match(self, text, images):
        self._prompt_pieces = 0
        return super()._match(text, images)


@given(data=st.data(), context=CONTEXTS)
def test_looking_at_new_pieces_only_finds_what_looking_at_all_finds(renderer, data, context):
    system = data.draw(TEXT)
    turns = data.draw(st.lists(st.tuples(OBSERVATION, sampled_ids(renderer)), min_size=1, max_size=5))
    rows = []
    for kind in (Row, WholeRow):
        played = Played(renderer, kind(renderer), make_context(context, renderer.escape, 99))
        played.messages.append(Message(role="system", content=renderer.escape(system)))
        for observation, ids in turns:
            played.turn(observation, ids)
        played.turn("the end")
        rows.append(played.row)
    assert rows[0].segments == rows[1].segments
    assert rows[0]._pieces == rows[1]._pieces


def test_a_long_conversation_looks_at_each_piece_once(renderers):
    """Turns cost the same however many there were before (apart from the template, which renders all of them)."""

    class Counted(Row):
        looks = 0

        def _ends_closed(self, i):
            self.looks += 1
            return super()._ends_closed(i)

    renderer = renderers("bytes")
    row, messages, ids = Counted(renderer), [Message(role="system", content="s")], renderer.encode_reply("go")
    for turn in range(300):
        messages.append(Message(role="user", content=f"room {turn}"))
        row.prompt(messages, turn)
        row.sampled(ids, [0.0] * len(ids), 0)
        messages.append(Message(role="assistant", content="go"))
    assert len(row.segments) == 1
    assert row.looks == 299


@given(data=st.data())
def test_a_report_cannot_fake_a_turn(renderer, data):
    """The policy's own report moves into a user message, where it is text like any other."""
    special = set(renderer.tokenizer.special.values())
    spelled = "".join(data.draw(st.lists(st.sampled_from(list(renderer.tokenizer.special)) | WORDS, max_size=6)))
    counts = []
    for report in ("harmless", spelled):
        ids = [*byte_ids(renderer, f"<report>{report}</report>".encode()), renderer.close_id]
        played = play(renderer, "workspace", "s", [("a", ids)], last="b")
        assert "<report>" in played.shown
        counts.append([i for i in played.row.segment.ids if i in special])
    assert counts[0] == counts[1]


def test_context_limit_of_the_first_prompt(renderer):
    row = Row(renderer, context_limit=1)
    with pytest.raises(ContextFull):
        row.prompt([Message(role="system", content="s"), Message(role="user", content="o")], 0)
    assert row.segments == []


@given(data=st.data())
def test_text_from_outside_cannot_fake_a_turn(renderer, data):
    tokens = list(renderer.tokenizer.special)
    halves = [part for t in tokens for part in (t, t[:1], t[:-1], t[1:], t[: len(t) // 2], t[len(t) // 2 :])]
    evil = "".join(data.draw(st.lists(st.sampled_from(halves) | WORDS, max_size=8)))
    special = set(renderer.tokenizer.special.values())
    assert not special & set(renderer.tokenizer.encode(renderer.escape(evil)))
    assert not special & set(renderer.encode_reply(evil)[:-1])
    good, bad = (play(renderer, "append", s, [(s, renderer.encode_reply("x"))], last=s) for s in ("harmless", evil))
    counts = [[i for i in played.row.segment.ids if i in special] for played in (good, bad)]
    assert counts[0] == counts[1]


@given(TEXT)
def test_escape_leaves_other_text_alone(renderer, text):
    assume(not any(t in text for t in renderer.tokenizer.special))
    assert renderer.escape(text) == text


def test_escape_of_half_a_surrogate_pair_and_of_a_one_letter_token(renderer):
    assert renderer.tokenizer.encode(renderer.escape("a\ud800b")) == renderer.tokenizer.encode("a?b")

    class OneLetter(ByteTokenizer):
        special = {**ByteTokenizer.special, "~": 258}  # noqa: RUF012

    odd = Renderer(OneLetter())
    assert 258 not in odd.tokenizer.encode(odd.escape("a~b~~"))


@given(TEXT | WORDS)
def test_replies_round_trip(renderer, text):
    ids = renderer.encode_reply(text)
    assert ids[-1] == renderer.close_id
    assert renderer.close_id not in ids[:-1]
    assert renderer.decode_reply(ids) == renderer.decode_reply(ids[:-1])
    assert plain(renderer, renderer.decode_reply(ids)) == plain(renderer, renderer.escape(text))


def test_prompt_twice_without_an_answer(renderer):
    """A turn whose generation failed is asked for again: nothing is added, and another question replaces it."""
    row = Row(renderer)
    system, ask = Message(role="system", content="s"), Message(role="user", content="o")
    row.prompt([system, ask], 0)
    once = list(row.segment.ids)
    row.prompt([system, ask], 0)
    assert row.segment.ids == once
    assert len(row.segments) == 1
    row.prompt([system, Message(role="user", content="p")], 0)
    other = renderer.tokenizer.render([system, Message(role="user", content="p")])
    assert plain(renderer, renderer.tokenizer.decode(row.segment.ids)) == plain(renderer, other)


HEADER = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
BAD_TEMPLATES = {
    "no special token closes": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: ",
        "no special token",
    ),
    "a space stands before the close": (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }} <|end|>{% endfor %}<|assistant|>",
        "no special token",
    ),
    "drops replies": (
        "{% for m in messages if m.role != 'assistant' %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "<|assistant|>",
        "assistant message",
    ),
    "shows replies twice": (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ m.content }}<|end|>{% endfor %}<|assistant|>",
        "exactly once",
    ),
    "drops all but the first question": (
        "{% for m in messages[:3] %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>",
        "drops",
    ),
    "drops the system message": (
        "{% for m in messages if m.role != 'system' %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>",
        "system",
    ),
    "drops the first question": (
        "{% for m in messages if m != messages[1] %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>",
        "drops",
    ),
    "raises on a system role": (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + HEADER,
        "System role not supported",
    ),
    "is no Jinja": ("{% for m in messages %}{{ m.content }}", "chat template"),
    "is empty": ("", "no chat template"),
    "is missing": (None, "no chat template"),
    "renders nothing": ("{# nothing #}", "assistant message"),
    "never asks for an answer": (HEADER, "generation prompt"),
}


@pytest.mark.parametrize("case", BAD_TEMPLATES)
def test_templates_that_cannot_be_rendered_incrementally(tokenizers, case):
    template, message = BAD_TEMPLATES[case]
    with pytest.raises(TemplateError, match=message) as caught:
        Renderer(HFTokenizer(tokenizers(template)))
    assert "template" in str(caught.value)


@given(data=st.data())
@pytest.mark.parametrize("style", ["tiny", "smollm2", "qwen3", "phi3", "phi3 without thoughts", "bytes"])
def test_ids_are_those_of_the_whole_text(renderers, style, data):
    """For replies that are tokenised as the tokenizer does, turn by turn is the same as all at once.

    In the style of Phi-3 a text starts with a space of its own, and special tokens swallow the whitespace after them.
    """
    renderer = renderers(style)
    clean = WORDS.filter(lambda t: t == t.strip())
    played = Played(renderer, Row(renderer), make_context(data.draw(CONTEXTS), renderer.escape, 99))
    played.messages.append(Message(role="system", content="s"))
    thoughts = st.sampled_from(["", "hm</think>"]) if style in ("qwen3", "phi3 without thoughts") else st.just("")
    reply_text = st.builds(str.__add__, thoughts, clean)
    for observation, reply in data.draw(st.lists(st.tuples(clean, reply_text), min_size=1, max_size=4)):
        asked = Message(role="user", content=renderer.escape(observation))
        whole = renderer.tokenizer.render([*played.messages, asked])
        ids = renderer.tokenizer.encode(f"{whole}{renderer.escape(reply)}{renderer.close}")
        played.turn(observation, ids[len(renderer.tokenizer.encode(whole)) :])
    played.turn("o")
    assert played.row.segment.ids == renderer.tokenizer.encode(renderer.tokenizer.render(played.views[-1]))


def test_a_template_that_removes_spelled_tokens_forks(tokenizers):
    """A reply may end with the letters of the closing token instead of the token: it does not end the turn."""
    template = HEADER.replace("{{ m.content }}", "{{ m.content | replace('<|end|>', '') }}")
    renderer = Renderer(HFTokenizer(tokenizers(template + "{% if add_generation_prompt %}<|assistant|>{% endif %}")))
    played = play(renderer, "append", "s", [("a", byte_ids(renderer, b"go<|end|>"))], last="b")
    assert len(played.row.segments) == 2
    assert played.shown == renderer.tokenizer.render(played.messages)


def test_a_generation_prompt_that_history_does_not_show_forks(tokenizers):
    """Qwen3 without thinking opens the answer with an empty thought, and does not show it later."""
    template = HEADER + "{% if add_generation_prompt %}<|assistant|><think></think>{% endif %}"
    renderer = Renderer(HFTokenizer(tokenizers(template)))
    replies = [renderer.encode_reply(t) for t in ("one", "two")]
    played = play(renderer, "append", "s", [("a", replies[0]), ("b", replies[1])], last="c")
    assert [s.edit.turn for s in played.row.segments[1:]] == [1, 2]
    assert played.shown == renderer.tokenizer.render(played.messages)
