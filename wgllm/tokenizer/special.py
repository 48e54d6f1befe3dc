"""Special tokens: which of them end a generation, and where they stand in a text."""

from __future__ import annotations

import re
from collections.abc import Iterable

from wgllm.tokenizer.vocabulary import TokenType, Vocabulary


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Texts that end a generation wherever they are special (llama.cpp: special_eog_ids).
_END_OF_GENERATION = _words(
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|calls|> <|flush|> <end_of_turn> <|endoftext|> "
    "<|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> "
    "<｜end▁of▁sentence｜> [e~["
)

# Models were trained to begin another file after these, so a completion of code ends there too.
_FILE_BORDERS = {
    "fim_pad": _words("<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]"),
    "fim_rep": _words("<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>"),
    "fim_sep": _words("<|file_sep|>"),
}

# Structure of a chat, which some converters marked as user-defined.
_CHAT_STRUCTURE = _END_OF_GENERATION | _words(
    "<start_of_turn> <|im_start|> <|im_sep|> <|start_header_id|> <|end_header_id|> <|begin_of_text|> "
    "<|user|> <|assistant|> <|system|> <|tool|> <|start|> <|message|> <|channel|> <|constrain|> <|turn> "
    "<｜begin▁of▁sentence｜> <｜User｜> <｜Assistant｜> <|User|> <|Assistant|> <|EOT|> <bos> <pad> <unk> "
    "[INST] [/INST]"
)

# User-defined tokens that look like structure: <tool_call>, <think>, <|fim_hole|>, [TOOL_CALLS]. Others, such
# as Gemma's <table> and runs of newlines, are ordinary text.
_MARKER = re.compile(r"<[|｜].*|.*[|｜]>|</?\w*_\w*>|</?think>|</?answer>|\[/?[A-Z]{2,}[A-Z_]*\]", re.DOTALL)

_SPECIAL_TYPES = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)


def chat_structure(vocabulary: Vocabulary) -> set[int]:
    """Tokens that are never shown: control tokens, the unknown token, and turns that are user-defined."""
    names = _CHAT_STRUCTURE | _sentence_tags(vocabulary)
    found = set(vocabulary.of_type(TokenType.CONTROL, TokenType.UNKNOWN))
    for name in names:
        i = vocabulary.index.get(name)
        if i is not None and vocabulary.types[i] == TokenType.USER_DEFINED:
            found.add(i)
    return found


def make_ends_control(vocabulary: Vocabulary) -> None:
    """Makes control tokens of end tokens that a GGUF file has as user-defined, as llama.cpp does."""
    for i in end_of_generation(vocabulary):
        if vocabulary.types[i] == TokenType.USER_DEFINED:
            vocabulary.types[i] = TokenType.CONTROL


def looks_like_structure(text: str) -> bool:
    """Whether a user-defined token of that text is a mark for the model rather than ordinary text."""
    return text in _CHAT_STRUCTURE or _MARKER.fullmatch(text) is not None


def end_of_generation(vocabulary: Vocabulary) -> frozenset[int]:
    """Every token after which the model has nothing more to say, found as llama.cpp finds them."""
    names = set(_END_OF_GENERATION | _sentence_tags(vocabulary)) - {"<s>"}
    for role, texts in _FILE_BORDERS.items():
        if role not in vocabulary.ids:
            names |= texts
    found = {name: vocabulary.index[name] for name in names if name in vocabulary.index}
    found = {name: i for name, i in found.items() if vocabulary.types[i] in _SPECIAL_TYPES}
    # In gpt-oss and Solar <|end|> only ends a message, and another one follows; in Gemma 4 </s> is text.
    if found.keys() & {"<|call|>", "<|calls|>"} and found.keys() & {"<|return|>", "<|flush|>"}:
        found.pop("<|end|>", None)
    if "<|tool_response>" in found:
        found.pop("</s>", None)
    roles = ("eos", "eot", "eom", *_FILE_BORDERS)
    return frozenset(found.values()) | {vocabulary.ids[role] for role in roles if role in vocabulary.ids}


def _sentence_tags(vocabulary: Vocabulary) -> frozenset[str]:
    """``<s>`` and ``</s>`` where they bound sentences; elsewhere they are HTML's strikethrough (Gemma)."""
    i = vocabulary.index.get("<s>")
    bound = i is not None and vocabulary.types[i] == TokenType.CONTROL
    return frozenset(("<s>", "</s>") if bound else ())


class SpecialSplitter:
    """Splits texts at a set of special tokens; where several begin, the longest one wins."""

    def __init__(self, tokens: Iterable[tuple[str, int]]) -> None:
        self._ids = dict(tokens)
        lengths: dict[str, set[int]] = {}
        seconds: dict[str, set[str]] = {}
        for text in self._ids:
            lengths.setdefault(text[0], set()).add(len(text))
            seconds.setdefault(text[0], set()).add(text[1:2])
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        # A pattern of all tokens would take long to compile where there are thousands; two characters
        # already find nearly only true beginnings.
        heads = []
        for first, found in seconds.items():
            head = re.escape(first)
            if "" not in found:
                head += "[" + "".join(re.escape(c) for c in sorted(found)) + "]"
            heads.append(head)
        self._begin = re.compile("|".join(heads)) if heads else None

    def __bool__(self) -> bool:
        return bool(self._ids)

    def split(self, text: str) -> list[str | int]:
        """``text`` as ids of special tokens and the (never empty) texts between them."""
        if self._begin is None or (match := self._begin.search(text)) is None:
            return [text] if text else []
        pieces: list[str | int] = []
        done = 0
        while match is not None:
            at = match.start()
            token = self._longest_at(text, at)
            if token is None:
                match = self._begin.search(text, at + 1)
                continue
            if at > done:
                pieces.append(text[done:at])
            pieces.append(self._ids[token])
            done = at + len(token)
            match = self._begin.search(text, done)
        if done < len(text):
            pieces.append(text[done:])
        return pieces

    def find(self, text: str) -> list[tuple[int, int]]:
        """Where the special tokens stand in ``text``: their [start, end)."""
        spans = []
        at = 0
        while self._begin is not None and (match := self._begin.search(text, at)) is not None:
            token = self._longest_at(text, match.start())
            at = match.start() + (len(token) if token else 1)
            if token:
                spans.append((match.start(), at))
        return spans

    def _longest_at(self, text: str, at: int) -> str | None:
        for length in self._lengths[text[at]]:
            if (candidate := text[at : at + length]) in self._ids:
                return candidate
        return None
