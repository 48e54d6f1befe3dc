"""Tokenizers: ids as the reference has them, special tokens, odd texts, and vocabularies that are no vocabularies."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.limits import soon
from tests.unit.tokenizer_tables import TOK, bpe_metadata, cases, rename, spm_metadata, tokenizer
from wgllm.errors import ModelFileError, ModelNotFoundError, UsageError, WgllmError
from wgllm.tokenizer import load_tokenizer
from wgllm.tokenizer.pretokenizers import PRE_TOKENIZERS

VOCAB = Path(os.environ.get("WGLLM_VOCAB_DIR") or Path(__file__).parents[2].parent / "shared/reference/vocab")
BORDER = "\n__ggml_vocab_test__\n"


class TestReference:
    @pytest.mark.parametrize("name", ["bpe", "spm", "spm-gemma"])
    def test_tokenizer_json(self, name: str) -> None:
        tok = load_tokenizer(TOK / name / "tokenizer.json")
        for case in cases(name):
            ids = tok.tokenize(case["text"], add_special=False, parse_special=True)
            assert ids == case["ids"], case["text"]
            assert tok.detokenize(ids) == case["decoded"]

    @pytest.mark.parametrize("name", ["spm", "spm-gemma"])
    def test_tokenizer_model(self, name: str) -> None:
        tok = load_tokenizer(TOK / name / "tokenizer.model")
        for case in cases(name):
            ids = tok.tokenize(case["text"], add_special=False)
            assert ids == case["sp_ids"], case["text"]
            assert tok.detokenize(ids) == case["sp_decoded"]

    @pytest.mark.parametrize("name", ["spm", "spm-gemma"])
    def test_gguf_tables_of_a_sentencepiece_model(self, name: str) -> None:
        tok = tokenizer(spm_metadata(name))
        for case in cases(name):
            if "<end_of_turn>" in case["text"]:
                continue  # user-defined in the model file, a control token in GGUF
            assert tok.tokenize(case["text"], add_special=False) == case["sp_ids"], case["text"]
            assert tok.detokenize(case["sp_ids"]) == case["sp_decoded"]

    def test_gguf_tables_of_a_bpe(self) -> None:
        tok = tokenizer(bpe_metadata())
        compared = 0
        for case in cases("bpe"):
            if unicodedata.is_normalized("NFC", case["text"]):  # the original normalizes, GGUF can't say so
                assert tok.tokenize(case["text"], parse_special=True) == case["ids"], case["text"]
                compared += 1
        assert compared >= 30

    @pytest.mark.skipif(not VOCAB.is_dir(), reason=f"no llama.cpp vocabularies at {VOCAB} (WGLLM_VOCAB_DIR)")
    @pytest.mark.parametrize(
        "name", ["deepseek-coder", "gpt-2", "llama-bpe", "llama-spm", "phi-3", "starcoder"]
    )
    def test_llama_cpp_vocabulary(self, name: str) -> None:
        path = VOCAB / f"ggml-vocab-{name}.gguf"
        texts = Path(f"{path}.inp").read_bytes().decode().split(BORDER)
        lines = Path(f"{path}.out").read_text().split("\n")  # the last text is empty, and so is its line
        tok = load_tokenizer(path)
        assert len(texts) == len(lines) > 40
        for text, line in zip(texts, lines, strict=True):
            ids = list(map(int, line.split()))
            assert tok.tokenize(text, add_special=False) == ids, text
            assert tok.tokenize(text, add_special=False, parse_special=True) == ids, text
            decoded = tok.detokenize(ids)
            assert decoded == text


class TestLoading:
    def test_directory(self) -> None:
        tok = load_tokenizer(TOK / "spm")
        assert (tok.bos_id, tok.eos_id, tok.unk_id, tok.pad_id) == (1, 2, 0, None)
        assert tok.add_bos and not tok.add_eos
        assert tok.vocab_size == 512
        assert tok.chat_template is not None and "message['role']" in tok.chat_template
        assert tok.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}
        assert tok.path == TOK / "spm" / "tokenizer.json"

    def test_a_model_without_tokenizer_takes_the_files_beside_it(self, tmp_path: Path) -> None:
        from wgllm.formats.model_file import ModelFile
        from wgllm.tokenizer import tokenizer_from_model

        shutil.copy(TOK / "spm" / "tokenizer.model", tmp_path)
        tok = tokenizer_from_model(ModelFile(tmp_path / "model.safetensors", {}, {}))
        assert tok.path == tmp_path / "tokenizer.model"
        assert tok.tokenize("Hello", add_special=True)[0] == tok.bos_id

    def test_settings_of_a_directory(self, tmp_path: Path) -> None:
        shutil.copy(TOK / "spm" / "tokenizer.model", tmp_path)
        config = {
            "add_bos_token": False,
            "add_eos_token": True,
            "eos_token": {"content": "<|done|>"},
            "added_tokens_decoder": {
                "512": {"content": "<|done|>", "special": True},
                "514": {"content": "<think>", "special": False},
            },
            "chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}],
        }
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [512, 7, 9999, "x"]}))
        tok = load_tokenizer(tmp_path)
        assert tok.vocab_size == 515
        assert tok.eos_id == 512 and tok.token_text(514) == "<think>"
        assert tok.eog_ids == {2, 512, 7}
        assert tok.chat_template == "D"
        assert tok.tokenize("a<|done|>", parse_special=True) == [
            *tok.tokenize("a", add_special=False),
            512,
            512,
        ]
        assert 514 in tok.tokenize("a <think>") and 512 not in tok.tokenize("<|done|>", add_special=False)

    def test_added_tokens_beyond_the_embedding_are_left_out(self, tmp_path: Path) -> None:
        for name in ("tokenizer.json", "tokenizer.model"):
            folder = tmp_path / name.replace(".", "-")
            folder.mkdir()
            shutil.copy(TOK / "spm-gemma" / name, folder)
            if name.endswith("json"):
                data = json.loads((folder / name).read_text(encoding="utf-8"))
                data["added_tokens"] += [{"id": 512, "content": "<row>"}, {"id": 513, "content": "<image>"}]
                (folder / name).write_text(json.dumps(data))
            else:
                decoder = {str(i): {"content": t} for i, t in ((512, "<row>"), (513, "<image>"))}
                (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
            assert load_tokenizer(folder).vocab_size == 514
            tok = load_tokenizer(folder, n_rows=513)
            assert tok.vocab_size == 513 and tok.token_text(512) == "<row>"
            assert max(tok.tokenize("an <image>", parse_special=True)) < 512

    def test_tokens_that_only_the_settings_know_are_added(self, tmp_path: Path) -> None:
        shutil.copy(TOK / "bpe" / "tokenizer.json", tmp_path)
        decoder = {
            "511": {"content": "<|im_end|>", "special": True},
            "512": {"content": "<|done|>", "special": True, "rstrip": True},
        }
        (tmp_path / "tokenizer_config.json").write_text(
            json.dumps({"added_tokens_decoder": decoder, "eos_token": "<|done|>"})
        )
        tok = load_tokenizer(tmp_path)
        assert tok.vocab_size == 513 and tok.eos_id == 512
        assert tok.tokenize("<|done|>", parse_special=True) == [512]
        decoder["9" * 5000] = {"content": "x"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
        assert load_tokenizer(tmp_path).vocab_size == 512

    @pytest.mark.parametrize(
        "files",
        [
            {"chat_template.jinja": "T", "tokenizer_config.json": '{"chat_template": "other"}'},
            {"tokenizer_config.json": '{"chat_template": "T"}'},
            {"tokenizer_config.json": '{"chat_template": [{"name": "rag", "template": "T"}]}'},
            {"chat_template.json": '{"chat_template": "T"}'},
            {"chat_templates/default.jinja": "T", "chat_templates/rag.jinja": "R"},
            {"additional_chat_templates/default.jinja": "T"},
        ],
    )
    def test_where_chat_templates_stand(self, tmp_path: Path, files: dict[str, str]) -> None:
        shutil.copy(TOK / "spm" / "tokenizer.model", tmp_path)
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
        assert load_tokenizer(tmp_path).chat_template == "T"

    def test_errors_name_what_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFoundError, match="no tokenizer at"):
            load_tokenizer(tmp_path / "nothing")
        with pytest.raises(ModelNotFoundError, match=r"no tokenizer\.json, tokenizer\.model or single GGUF"):
            load_tokenizer(tmp_path)
        (tmp_path / "tokenizer.json").write_text("{")
        with pytest.raises(ModelFileError, match=r"tokenizer\.json: file: is not JSON"):
            load_tokenizer(tmp_path)
        (tmp_path / "tokenizer.json").write_text('{"model": {"type": "WordPiece", "vocab": {}}}')
        with pytest.raises(ModelFileError, match=r"model\.type: 'WordPiece' is none of BPE and Unigram"):
            load_tokenizer(tmp_path)
        (tmp_path / "tokenizer.model").write_bytes(b"\x0a\xff\xff\xff\xff\x0f")
        with pytest.raises(ModelFileError, match="pieces: is not a SentencePiece model"):
            load_tokenizer(tmp_path / "tokenizer.model")

    def test_only_the_library_that_is_needed_is_imported(self) -> None:
        code = (
            "import sys; from wgllm.tokenizer import load_tokenizer\n"
            "assert not {'sentencepiece', 'tokenizers'} & set(sys.modules)\n"
            f"load_tokenizer({str(TOK / 'spm' / 'tokenizer.model')!r})\n"
            "assert 'sentencepiece' in sys.modules and 'tokenizers' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])

    def test_every_pre_tokenizer_compiles(self) -> None:
        names = (
            "smollm qwen2 llama-bpe llama3 llama-v3 smaug-bpe gpt-2 deepseek-llm deepseek-coder falcon starcoder "
            "refact command-r mpt olmo phi-2 default"
        )
        assert set(names.split()) <= PRE_TOKENIZERS.keys()
        text = "I'M 12345 £4.50?\r\n\n \t def f(x):  # été 中文"
        for name in PRE_TOKENIZERS:
            tok = tokenizer(bpe_metadata() | {"tokenizer.ggml.pre": name})
            assert tok.detokenize(tok.tokenize(text)) == text, name


class TestSpecialTokens:
    @pytest.mark.parametrize("name", ["bpe", "spm", "spm-gemma"])
    def test_control_tokens_in_a_text_are_text(self, name: str) -> None:
        tok = load_tokenizer(TOK / name)
        names = [text for text, i in tok.special_tokens.items() if tok.is_control(i)]
        metadata = tokenizer(bpe_metadata() if name == "bpe" else spm_metadata(name))
        for each in (tok, metadata):
            for text in names:
                inside = f"a {text}b{text}"
                i = each.special_tokens[text]
                assert i not in each.tokenize_parts([(inside, False)])[1:]
                assert each.tokenize(inside, parse_special=True).count(i) >= 2
                assert each.detokenize(each.tokenize_parts([(inside, False)], add_special=False)) == inside
        assert not set(metadata.tokenize("".join(names), add_special=False)) & metadata.eog_ids

    def test_user_defined_tokens_are_always_found(self) -> None:
        meta = rename(rename(bpe_metadata(), 400, "<tool_call>", 4), 401, "<table>", 4)
        meta["tokenizer.ggml.merges"] = []
        tok = tokenizer(meta)
        assert 400 in tok.tokenize("x<tool_call>") and 401 in tok.tokenize("x<table>")
        assert not tok.is_control(400) and tok.token_bytes(400) == b"<tool_call>"
        # Text from outside can't write those that look like structure.
        assert tok.special_tokens.keys() >= {"<tool_call>"} and "<table>" not in tok.special_tokens
        assert 400 not in tok.tokenize_parts([("x<tool_call>", False)])
        assert 401 in tok.tokenize_parts([("x<table>", False)])

    def test_the_longest_token_wins(self) -> None:
        meta = rename(rename(bpe_metadata(), 400, "<|im", 3), 401, "<|im_start|>x", 3)
        meta["tokenizer.ggml.merges"] = []
        ids = tokenizer(meta).tokenize("<|im_start|>x<|im_start|><|im<|", parse_special=True)
        assert ids[:3] == [401, 510, 400] and len(ids) == 5

    def test_parts_meet_as_one_text(self) -> None:
        tok = load_tokenizer(TOK / "spm")
        whole = tok.tokenize("<s>Hello, wor</s>ld", parse_special=True)
        parts = [("<s>Hel", True), ("lo, ", False), ("wor</s>l", True), ("d", False)]
        assert tok.tokenize_parts(parts) == whole
        assert tok.tokenize_parts([("<", True), ("s>", True)], add_special=False) == tok.tokenize(
            "<s>", add_special=False
        )

    def test_space_before_each_text_of_a_sentencepiece_vocabulary(self) -> None:
        tok = tokenizer(spm_metadata())
        hello = tok.tokenize("Hello", add_special=False)
        assert tok.tokenize("Hello</s>Hello", add_special=False, parse_special=True) == [*hello, 2, *hello]
        tok = tokenizer(spm_metadata() | {"tokenizer.ggml.add_space_prefix": False})
        assert tok.tokenize(" Hello", add_special=False) == hello
        assert tok.detokenize(hello) == " Hello"

    def test_extra_white_space_is_removed_where_the_file_says_so(self) -> None:
        plain = tokenizer(spm_metadata())
        tok = tokenizer(spm_metadata() | {"tokenizer.ggml.remove_extra_whitespaces": True})
        assert tok.tokenize("  a   b ") == plain.tokenize("a b")
        assert plain.tokenize("  a   b ") != plain.tokenize("a b")

    def test_white_space_after_the_special_tokens_of_phi_3(self) -> None:
        meta = rename(spm_metadata(), 300, "<|user|>", 3) | {"general.name": "Phi 3 mini"}
        plain, phi = tokenizer(meta), tokenizer(meta | {"general.name": "Phi-3-mini"})
        text = "<|user|>\n Hi<s> x"
        assert phi.tokenize(text, parse_special=True) == plain.tokenize("<|user|>Hi<s> x", parse_special=True)
        assert plain.tokenize(text, parse_special=True) != plain.tokenize(
            "<|user|>Hi<s> x", parse_special=True
        )

    def test_bos_and_eos(self) -> None:
        meta = spm_metadata() | {"tokenizer.ggml.add_eos_token": True}
        ids = tokenizer(meta).tokenize("a")
        assert ids[0] == 1 and ids[-1] == 2
        assert tokenizer(meta | {"tokenizer.ggml.add_bos_token": False}).tokenize("") == [2]
        assert tokenizer(bpe_metadata()).tokenize("") == []
        # llama-bpe files need not say that they want BOS.
        llama = bpe_metadata() | {"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.bos_token_id": 509}
        assert tokenizer(llama).tokenize("a")[0] == 509

    def test_end_of_generation(self) -> None:
        assert tokenizer(bpe_metadata()).eog_ids == {509, 511}
        assert tokenizer(spm_metadata()).eog_ids == {2}
        meta = rename(bpe_metadata(), 400, "<|eot_id|>", 4)
        meta["tokenizer.ggml.merges"] = []
        meta = rename(rename(meta, 401, "<|repo_name|>", 3), 402, "<|end|>", 1)
        meta |= {"tokenizer.ggml.eom_token_id": 403, "tokenizer.ggml.fim_pad_token_id": 404}
        tok = tokenizer(meta)
        assert tok.eog_ids == {400, 401, 403, 404, 509, 511}
        assert tok.is_control(400)  # an end token that the file calls user-defined
        # HTML's strikethrough ends nothing.
        html = rename(rename(bpe_metadata(), 400, "<s>", 4), 401, "</s>", 4) | {"tokenizer.ggml.merges": []}
        assert tokenizer(html).eog_ids == {509, 511}
        harmony = bpe_metadata() | {"tokenizer.ggml.merges": []}
        for i, text in enumerate(("<|return|>", "<|call|>", "<|end|>")):
            rename(harmony, 400 + i, text, 3)
        assert tokenizer(harmony).eog_ids == {400, 401, 509, 511}

    def test_ids_outside_the_vocabulary(self) -> None:
        tok = tokenizer(bpe_metadata())
        for i in (-1, 512, 1 << 40):
            for call in (tok.token_bytes, tok.is_control, tok.token_text, lambda i: tok.detokenize([i])):
                with pytest.raises(UsageError, match="outside the vocabulary of 512 tokens"):
                    call(i)


class TestOddTexts:
    @pytest.mark.parametrize("name", ["bpe", "spm", "spm-gemma"])
    def test_surrogates_and_control_characters(self, name: str) -> None:
        tok = load_tokenizer(TOK / name)
        for text, kept in (
            ("a\ud800b", "a\ufffdb"),
            ("\udc80", "\ufffd"),
            ("\ud83d\ude00!", "😀!"),
            ("a\x00b\x7f\x1b[0m", "a\x00b\x7f\x1b[0m"),
            ("\ufeff\u200d\u2028\uffff\U0010ffff", "\ufeff\u200d\u2028\uffff\U0010ffff"),
        ):
            assert tok.detokenize(tok.tokenize(text, add_special=False)) == kept

    @pytest.mark.parametrize("make", [bpe_metadata, spm_metadata])
    @pytest.mark.parametrize("text", ["a", " ", "\n ", "ab1!", "中", "<|"])
    def test_long_texts_take_linear_time(self, make: Callable[[], dict[str, Any]], text: str) -> None:
        tok = tokenizer(make())
        long = text * (300_000 // len(text))
        with soon():
            ids = tok.tokenize(long, add_special=False, parse_special=True)
        assert tok.detokenize(ids) == long


BAD_SPM: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("scores[7]: is nan", lambda m: m["scores"].__setitem__(7, np.nan)),
    ("scores[0]: is -inf", lambda m: m["scores"].__setitem__(0, -np.inf)),
    ("scores: has 511 elements for 512 tokens", lambda m: m.update(scores=m["scores"][:-1])),
    ("scores: is missing", lambda m: m.pop("scores")),
    ("scores: is not an array of numbers", lambda m: m.update(scores=np.array(["a"] * 512))),
    ("token_type: has 513 elements", lambda m: m.update(token_type=np.ones(513, np.int32))),
    ("token_type: has a value that is not a token type", lambda m: m["token_type"].__setitem__(3, 9)),
    ("token_type: marks 255 tokens as bytes", lambda m: m["token_type"].__setitem__(100, 1)),
    ("token_type: marks 257 tokens as bytes", lambda m: m["token_type"].__setitem__(400, 6)),
    ("tokens: has", lambda m: m["tokens"].__setitem__(5, m["tokens"][400])),
    ("tokens[300]: is empty", lambda m: m["tokens"].__setitem__(300, "")),
    ("tokens: is empty", lambda m: m.update(tokens=[])),
    ("tokens: is missing", lambda m: m.pop("tokens")),
    ("tokens: is not an array of strings", lambda m: m.update(tokens=[1, 2])),
    ("bos_token_id: 512 is outside the vocabulary", lambda m: m.update(bos_token_id=512)),
    ("eos_token_id: 4294967294 is outside", lambda m: m.update(eos_token_id=0xFFFFFFFE)),
    ("unknown_token_id: 9999 is outside", lambda m: m.update(unknown_token_id=9999)),
    ("bos_token_id: is not a token id", lambda m: m.update(bos_token_id="1")),
    ("add_bos_token: is not a boolean", lambda m: m.update(add_bos_token=1)),
    ("model: 'bert' is unknown", lambda m: m.update(model="bert")),
    ("model: is missing", lambda m: m.pop("model")),
]

BAD_BPE: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("pre: 'gpt-9' is unknown; known: default, gpt-2, smollm", lambda m: m.update(pre="gpt-9")),
    ("pre: is not a string", lambda m: m.update(pre=5)),
    ("merges: is missing", lambda m: m.pop("merges")),
    ("merges: is not an array of strings", lambda m: m.update(merges=np.ones(4))),
    ("merges[3]: 'ab' is not two tokens", lambda m: m["merges"].__setitem__(3, "ab")),
    ("merges[3]: 'a b c' is not two tokens", lambda m: m["merges"].__setitem__(3, "a b c")),
    ("merges: unusable: Token `zz` out of vocabulary", lambda m: m["merges"].__setitem__(3, "zz a")),
    ("eos_token_id: -7 is outside", lambda m: m.update(eos_token_id=-7)),
]


class TestBadVocabularies:
    @pytest.mark.parametrize(("message", "spoil"), BAD_SPM, ids=[message for message, _ in BAD_SPM])
    def test_sentencepiece(self, message: str, spoil: Callable[[dict[str, Any]], Any]) -> None:
        self.check(spm_metadata(), message, spoil)

    @pytest.mark.parametrize(("message", "spoil"), BAD_BPE, ids=[message for message, _ in BAD_BPE])
    def test_bpe(self, message: str, spoil: Callable[[dict[str, Any]], Any]) -> None:
        self.check(bpe_metadata(), message, spoil)

    def check(self, meta: dict[str, Any], message: str, spoil: Callable[[dict[str, Any]], Any]) -> None:
        short = {key.removeprefix("tokenizer.ggml."): value for key, value in meta.items()}
        spoil(short)
        with pytest.raises(ModelFileError, match=re.escape(f"m.gguf: tokenizer.ggml.{message}")) as error:
            tokenizer({f"tokenizer.ggml.{key}": value for key, value in short.items()})
        assert error.value.exit_code == 4
        assert "\n" not in str(error.value)

    def test_fillers_of_real_files_do_no_harm(self) -> None:
        meta = bpe_metadata()
        sound = tokenizer(bpe_metadata()).tokenize("a b", add_special=False)
        tokens = meta["tokenizer.ggml.tokens"]
        spare = len(tokens)
        meta["tokenizer.ggml.tokens"] = [*tokens, "", "[PAD]", "[PAD]"]
        types = np.append(np.asarray(meta["tokenizer.ggml.token_type"]), [0, 0, 5])  # 0: undefined
        meta["tokenizer.ggml.token_type"] = types.astype(np.int32)
        meta["tokenizer.ggml.bos_token_id"] = 0xFFFFFFFF  # what converters write for none
        made = tokenizer(meta)
        assert made.tokenize("a b", add_special=False) == sound
        assert made.bos_id is None
        assert made.detokenize([spare, spare + 1]) == "[PAD]"

    def test_what_no_token_covers(self) -> None:
        meta = spm_metadata()
        del meta["tokenizer.ggml.unknown_token_id"]
        assert tokenizer(meta).unk_id == 0  # by its type
        meta["tokenizer.ggml.token_type"][0] = 3
        assert tokenizer(meta).unk_id is None  # bytes cover everything
        for name in ("tokens", "scores", "token_type"):
            key = f"tokenizer.ggml.{name}"
            meta[key] = meta[key][300:]
        meta |= {"tokenizer.ggml.bos_token_id": 5, "tokenizer.ggml.eos_token_id": 6}
        with pytest.raises(
            ModelFileError, match="unknown_token_id: is missing, and there are no byte tokens"
        ):
            tokenizer(meta)
        tok = tokenizer(meta | {"tokenizer.ggml.unknown_token_id": 7})
        assert tok.tokenize("\x01", add_special=False)[-1] == 7

    def test_a_library_that_would_abort_is_not_asked(self, tmp_path: Path) -> None:
        data = json.loads((TOK / "bpe" / "tokenizer.json").read_text(encoding="utf-8"))
        data["model"]["continuing_subword_prefix"] = "é" * 9
        (tmp_path / "tokenizer.json").write_text(json.dumps(data))
        with pytest.raises(ModelFileError, match=r"model\.continuing_subword_prefix: is not supported"):
            load_tokenizer(tmp_path)

    def test_mutations_give_errors_or_tokenizers(self) -> None:
        rng = np.random.default_rng(20)
        texts = ["", "a", "▁", " ", "<unk>", "<0x41>", "\x00", "a b", "\U0010ffff", "x" * 70_000]
        accepted = 0
        for _ in range(600):
            meta = spm_metadata() if rng.random() < 0.5 else bpe_metadata()
            key = str(rng.choice(list(meta)))
            value = meta[key]
            if isinstance(value, list):
                for i in rng.integers(0, len(value), 3):
                    value[i] = (
                        value[rng.integers(len(value))] if rng.random() < 0.5 else str(rng.choice(texts))
                    )
            elif isinstance(value, np.ndarray):
                value[rng.integers(0, len(value), 3)] = rng.choice([0, 1, 2, 3, 4, 5, 6, 7, 1 << 30])
            else:
                meta[key] = [None, -1, 1 << 63, "", "\x1b[2J", [], 1.5][rng.integers(7)]
            try:
                tok = tokenizer(meta)
                for text in ("Hello <s> 中  \n", "\x00\ud800"):
                    assert tok.detokenize(tok.tokenize(text, parse_special=True)) is not None
                accepted += 1
            except WgllmError as error:
                assert error.exit_code == 4 and str(error).isprintable()
        assert 50 < accepted < 500
