"""How far a logit may be from the reference, in one place (absolute)."""

NUMPY_TINY = 1e-4
NUMPY_TINY_GELU = 1e-3
NUMPY_REAL = 5e-4
PERPLEXITY_NLL = 1e-3

# Two ways of computing the same thing in float32 (chunks, fused or not) differ by rounding only.
NUMPY_SAME = 1e-4

# Kernels beside NumPy.
KERNEL_DEQUANTIZE = (
    2.0**-22
)  # of the largest number of a group of 32; 0 where d q + m is rounded twice, as NumPy does
KERNEL_DOT = 1e-6  # of Σ |x w|
KERNEL_ELEMENT = (
    4e-6  # relative and absolute: WGSL grants exp, tanh and division a few units in the last place
)
KERNEL_KV_OTHERWISE = 1e-3  # share of the numbers written to a KV state that may round to the neighbour
