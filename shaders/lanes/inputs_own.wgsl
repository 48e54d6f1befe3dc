// Each invocation reads the activations for itself.

fn lane_number() -> u32 {
    return 0u;
}

fn inputs_for_all(first: u32, lane: u32) -> Quads {
    return read_inputs(first);
}
