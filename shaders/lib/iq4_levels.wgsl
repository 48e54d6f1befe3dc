// The levels of the IQ4 formats, from -127 to 113.
//!include "lib/levels.wgsl"
const LEVELS = vec4<u32>(0x3F2D1801u, 0x766A5D4Fu, 0xA6998D81u, 0xF1D9C5B5u);
