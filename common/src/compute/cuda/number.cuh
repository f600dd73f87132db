// The number types of kernels: no header of CUDA's is included, so that NVRTC needs no include path.
#pragma once

typedef unsigned char u8;
typedef signed char i8;
typedef short i16;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;
typedef unsigned short bf16;

#define INFINITE __int_as_float(0x7f800000)

static __device__ __forceinline__ float widen(bf16 x) { return __uint_as_float((u32)x << 16); }

// Half to even.
static __device__ __forceinline__ bf16 narrow(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}

static __device__ __forceinline__ float widen_half(unsigned short x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}

// A floating-point tensor as stored; the numbers are those of `Stored` in memory.rs.
enum Stored { F32 = 0, F16 = 1, BF16 = 2 };

static __device__ __forceinline__ float stored_at(const void *x, i32 stored, i64 at) {
    if (stored == F32) return ((const float *)x)[at];
    const unsigned short bits = ((const unsigned short *)x)[at];
    return stored == F16 ? widen_half(bits) : widen(bits);
}

// Index of this thread among all of a one-dimensional grid.
static __device__ __forceinline__ i64 thread_index() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }
