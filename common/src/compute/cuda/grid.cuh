// THE rounding rule of common/src/quant/grid.rs, for kernels: Z = Φ0 + (α/r)·A·B to the bit, W_Z = clip(round(Z)),
// Ŵ = s·(W_Z − z), and the scale of the forward pass.
#pragma once

#include "number.cuh"

// How Φ0 is stored; `Φ` in weight.rs. Whole numbers of 8 or 4 bits are multiples of `unit`.
enum Phi { PHI_BYTE = 0, PHI_NIBBLE = 1, PHI_BF16 = 2, PHI_F32 = 3 };

// Φ0 of column `at` of a packed row.
static __device__ __forceinline__ float phi_at(const u8 *row, i32 kind, float unit, i32 at) {
    if (kind <= PHI_NIBBLE) {
        // The first of two nibbles is the low one.
        const i32 above = kind == PHI_NIBBLE && at % 2 == 0 ? 28 : 24;
        const u32 byte = row[at >> kind];
        return (float)((i32)(byte << above) >> (24 + 4 * kind)) * unit;
    }
    return kind == PHI_BF16 ? widen(((const bf16 *)row)[at]) : ((const float *)row)[at];
}

// The scale of the forward pass: the master, at least 2^-17, rounded to bf16.
static __device__ __forceinline__ float forward_scale(float master) {
    return widen(narrow(fmaxf(master, 1.0f / 131072.0f)));
}

// Round half to even, then clip. What is no number stays so.
static __device__ __forceinline__ float code(float z, float qmin, float qmax) {
    z = rintf(z);
    z = z < qmin ? qmin : z;
    return z > qmax ? qmax : z;
}

static __device__ __forceinline__ float dequantize(float code, float zero_point, float scale) {
    return __fmul_rn(scale, __fsub_rn(code, zero_point));
}
