// Functions whose built-in form fails for large arguments on some devices: tanh as a quotient of exponentials becomes
// NaN, and where compilers may assume that nothing is infinite, so may 1 / (1 + exp(-x)).

fn safe_tanh(x: f32) -> f32 {
    return tanh(clamp(x, -10.0, 10.0));  // 1 - tanh 10 is 4e-9, less than half of the last place
}

fn safe_silu(x: f32) -> f32 {
    return x / (1.0 + exp(min(-x, 80.0)));
}

// The fit of wgllm/backends/numpy.py.
fn erf(x: f32) -> f32 {
    let z = min(x * x, 16.0);
    var p = 1.9748325e-6 * z + 2.8804145e-4;
    p = ((p * z + 4.0036407e-3) * z + 5.346746e-2) * z;
    p = (p + 0.19624884) * z + 1.1283790;
    var q = 3.7480888e-5 * z + 1.2163590e-3;
    q = ((q * z + 1.5444411e-2) * z + 0.11647637) * z;
    q = (q + 0.50725216) * z + 1.0;
    return select(sign(x), clamp(x, -4.0, 4.0) * p / q, abs(x) < 4.0);
}

fn gelu_erf(x: f32) -> f32 {
    return (erf(x * 0.7071067811865476) + 1.0) * x * 0.5;  // 1 / √2
}

fn safe_gelu_tanh(x: f32) -> f32 {
    return (safe_tanh((x * x * x * 0.044715 + x) * 0.7978845608028654) + 1.0) * x * 0.5;  // √(2/π)
}
