// Sums and maxima over a block, in an order that depends on nothing but the block's size.
#pragma once

#include "number.cuh"

#define LANES 32

struct Sum {
    template <typename T> static __device__ __forceinline__ T of(T x, T y) { return x + y; }
};

struct Max {
    static __device__ __forceinline__ float of(float x, float y) { return fmaxf(x, y); }
};

// Over the lanes of a warp; every lane gets the result.
template <typename Op, typename T> static __device__ __forceinline__ T over_warp(T x) {
    for (int distance = LANES / 2; distance > 0; distance /= 2) x = Op::of(x, __shfl_xor_sync(~0u, x, distance));
    return x;
}

// Over a block of whole warps; every thread gets the result. `shared` has an element per warp.
template <typename Op, typename T> static __device__ __forceinline__ T over_block(T x, T *shared) {
    x = over_warp<Op>(x);
    const int warps = blockDim.x / LANES;
    __syncthreads();
    if (threadIdx.x % LANES == 0) shared[threadIdx.x / LANES] = x;
    __syncthreads();
    x = shared[0];
    for (int warp = 1; warp < warps; warp++) x = Op::of(x, shared[warp]);
    return x;
}
