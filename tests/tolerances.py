"""How far a logit may be from the reference, in one place (absolute)."""

NUMPY_TINY = 1e-4
NUMPY_TINY_GELU = 1e-3
NUMPY_REAL = 5e-4
PERPLEXITY_NLL = 1e-3

# Two ways of computing the same thing in float32 (chunks, fused or not) differ by rounding only.
NUMPY_SAME = 1e-4
