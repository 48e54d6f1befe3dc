"""Text to token ids and back: ``load_tokenizer``, incremental decoding, stop strings."""

from wgllm.tokenizer.base import Tokenizer
from wgllm.tokenizer.load import load_tokenizer, tokenizer_from_model
from wgllm.tokenizer.stream import IncrementalDecoder, StopScanner

__all__ = ["IncrementalDecoder", "StopScanner", "Tokenizer", "load_tokenizer", "tokenizer_from_model"]
