"""How far a logit may be from the reference, in one place (absolute)."""

NUMPY_TINY = 1e-4
NUMPY_TINY_GELU = 1e-3
NUMPY_REAL = 5e-4
PERPLEXITY_NLL = 1e-3

# Two ways of computing the same thing in float32 (chunks, fused or not) differ by rounding only.
NUMPY_SAME = 1e-4

# What rounding the KV cache may change in the logits of the tiny models (q4_0 changes them much).
KV_ROUNDING = {"f16": 5e-2, "q8_0": 1.0, "q4_0": 20.0}

# WebGPU beside the reference, by the type of the KV cache; tiny models are nearer.
WEBGPU_TINY = 5e-4
WEBGPU_TINY_GELU = 1e-3
WEBGPU_F32_KV = 5e-3
WEBGPU_F16_KV = 5e-2
# Beside itself with the rows of a step, the shards or the segments cut otherwise.
WEBGPU_SAME = 1e-4

# NumPy's operators beside float64, relative and absolute.
NUMPY_ELEMENT = 2e-6

# Kernels beside NumPy.
# Of the largest number of a group of 32; 0 where d q + m is rounded twice, as NumPy does.
KERNEL_DEQUANTIZE = 2.0**-22
# Of Σ |x w|.
KERNEL_DOT = 1e-6
# Relative and absolute: WGSL grants exp, tanh and division a few units in the last place.
KERNEL_ELEMENT = 4e-6
# Share of the numbers written to a KV state that may round to the neighbour.
KERNEL_KV_OTHERWISE = 1e-3

# Of the largest number of a result, in a browser, by KV type: a cell that rounds to the neighbour shows in what is
# read of it.
WEB_CASE = {"f32": 2e-5, "f16": 5e-4, "q8_0": 2e-2, "q4_0": 2e-2}
# Of the largest value, for fused attention.
KERNEL_ATTENTION = 1.6e-5
