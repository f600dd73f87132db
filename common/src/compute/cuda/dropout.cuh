// The mask of an adapter's input: the function of dropout.rs, to the bit.
#pragma once

#include "number.cuh"

// `Dropout` in adapter.rs.
struct Dropout {
    u32 key[2];
    u32 threshold;
    // 1/(1 - p)
    float scale;
};

static __device__ __forceinline__ u32 dropout_mix(u32 x) {
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

static __device__ __forceinline__ float dropout_factor(const Dropout &d, i64 row, i32 column) {
    const u32 of_row = dropout_mix((u32)row ^ d.key[0]) ^ d.key[1];
    return dropout_mix((u32)column * 0x9e3779b9u ^ of_row) < d.threshold ? 0.0f : d.scale;
}
