// What stands for -∞ in scores: WGSL compilers may assume that there are no infinities. exp(HIDDEN - max) is 0, and a
// row in which everything is hidden stays finite.
const HIDDEN: f32 = -3.4028234663852886e38;
