// Functions whose built-in form fails for large arguments on some devices: tanh as a quotient of exponentials becomes
// NaN, and where compilers may assume that nothing is infinite, so may 1 / (1 + exp(-x)).

fn safe_tanh(x: f32) -> f32 {
    return tanh(clamp(x, -10.0, 10.0));  // 1 - tanh 10 is 4e-9, less than half of the last place
}

fn safe_silu(x: f32) -> f32 {
    return x / (1.0 + exp(min(-x, 80.0)));
}

fn safe_gelu_tanh(x: f32) -> f32 {
    return (safe_tanh((x * x * x * 0.044715 + x) * 0.7978845608028654) + 1.0) * x * 0.5;  // √(2/π)
}
