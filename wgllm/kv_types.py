"""The types in which a KV cache may hold its numbers. Imports nothing, so that `--help` can name them."""

KV_BITS = {"f32": 32.0, "f16": 16.0, "q8_0": 8.5, "q4_0": 4.5}
"""Bits that a number of each type takes, its share of a block's scale included."""

KV_TYPES = tuple(KV_BITS)
