"""Special tokens: which of them end a generation, and where they stand in a text."""

from __future__ import annotations

import re
from collections.abc import Iterable

from wgllm.tokenizer.vocabulary import TokenType, Vocabulary

# Texts that end a generation wherever they are special (llama.cpp: special_eog_ids).
END_OF_GENERATION = frozenset(
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|calls|> <|flush|> <end_of_turn> <|endoftext|> "
    "<|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> "
    "<｜end▁of▁sentence｜> [e~[".split()
)

# Models were trained to begin another file after these, so a completion of code ends there too.
_FILE_BORDERS = {
    "fim_pad": "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]".split(),
    "fim_rep": "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>".split(),
    "fim_sep": ["<|file_sep|>"],
}

# Structure of a chat that some converters marked as user-defined or even normal. As control tokens they can't
# be written by a user.
_CHAT_STRUCTURE = END_OF_GENERATION | frozenset(
    "<start_of_turn> <|im_start|> <|im_sep|> <|start_header_id|> <|end_header_id|> <|begin_of_text|> <|user|> "
    "<|assistant|> <|system|> <|tool|> <|start|> <|message|> <|channel|> <|constrain|> <｜begin▁of▁sentence｜> "
    "<｜User｜> <｜Assistant｜> <|User|> <|Assistant|> <|EOT|> <bos> <pad> <unk> [INST] [/INST] <|turn>".split()
)

# User-defined tokens that look like structure: <tool_call>, <think>, <|fim_hole|>, [TOOL_CALLS]. Others, such as
# Gemma's <table> and runs of newlines, are ordinary text.
_MARKER = re.compile(r"<[|｜].*|.*[|｜]>|</?\w*_\w*>|</?think>|</?answer>|\[/?[A-Z]{2,}[A-Z_]*\]", re.DOTALL)


def mark_chat_structure(vocabulary: Vocabulary) -> None:
    """Makes control tokens of user-defined ones that no text may write."""
    for text in (*_CHAT_STRUCTURE, "<s>", "</s>"):
        i = vocabulary.index.get(text)
        if i is None or vocabulary.types[i] != TokenType.USER_DEFINED:
            continue
        if text not in ("<s>", "</s>") or _sentence_tags_are_structure(vocabulary):
            vocabulary.types[i] = TokenType.CONTROL


def _sentence_tags_are_structure(vocabulary: Vocabulary) -> bool:
    """Whether ``<s>`` and ``</s>`` bound sentences; in Gemma they are HTML's strikethrough."""
    i = vocabulary.index.get("<s>")
    return i is not None and vocabulary.types[i] == TokenType.CONTROL


def is_marker(text: str) -> bool:
    """Whether a user-defined token looks like structure rather than like text."""
    return _MARKER.fullmatch(text) is not None


def end_of_generation(vocabulary: Vocabulary) -> frozenset[int]:
    """Every token after which the model has nothing more to say, found as llama.cpp finds them."""
    special = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
    names = set(END_OF_GENERATION)
    for role, texts in _FILE_BORDERS.items():
        if role not in vocabulary.ids:
            names.update(next(([text] for text in texts if text in vocabulary.index), []))
    if _sentence_tags_are_structure(vocabulary):
        names.add("</s>")
    found = {text: vocabulary.index[text] for text in names if text in vocabulary.index}
    found = {text: i for text, i in found.items() if vocabulary.types[i] in special}
    # In gpt-oss and Solar <|end|> only ends a message, another one follows; in Gemma 4 </s> is text.
    if "<|call|>" in found or "<|calls|>" in found:
        if "<|return|>" in found or "<|flush|>" in found:
            found.pop("<|end|>", None)
    if "<|tool_response>" in found:
        found.pop("</s>", None)
    roles = ("eos", "eot", "eom", *_FILE_BORDERS)
    return frozenset(found.values()) | {vocabulary.ids[r] for r in roles if r in vocabulary.ids}


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
