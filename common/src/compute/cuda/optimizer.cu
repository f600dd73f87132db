// Over all trained tensors in one launch: Σ g² of each, and AdamW. A block takes a part of one tensor.

#include "number.cuh"
#include "reduce.cuh"

#define MAX_WARPS 8

// A part of a tensor; `Part` in optimizer.rs.
struct Part {
    float *p;
    const float *g;
    // f32 or bf16.
    void *m;
    void *v;
    i32 len;
    // Rate of the step over 1 − β1ᵗ.
    float rate;
};

// Σ g² of each part, in f64.
extern "C" __global__ void square_sums(const Part *parts, double *sums) {
    __shared__ double shared[MAX_WARPS];
    const Part part = parts[blockIdx.x];
    double sum = 0;
    for (i32 i = threadIdx.x; i < part.len; i += blockDim.x) sum += (double)part.g[i] * (double)part.g[i];
    sum = over_block<Sum>(sum, shared);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

static __device__ __forceinline__ float moment(const void *x, i32 half, i32 i) {
    return half ? widen(((const bf16 *)x)[i]) : ((const float *)x)[i];
}

static __device__ __forceinline__ void set_moment(void *x, i32 half, i32 i, float value) {
    if (half)
        ((bf16 *)x)[i] = narrow(value);
    else
        ((float *)x)[i] = value;
}

// AdamW without weight decay: m = β1·m + (1−β1)·g; v = β2·v + (1−β2)·g²; p −= rate · m / (√v/root2 + ε), g being the
// clipped gradient and root2 = √(1−β2ᵗ). Moments in bf16 (`half`) are rounded as they are stored.
extern "C" __global__ void adamw(const Part *parts, i32 half, float grad_factor, float beta1, float beta2, float epsilon, float root2) {
    const Part part = parts[blockIdx.x];
    for (i32 i = threadIdx.x; i < part.len; i += blockDim.x) {
        const float g = part.g[i] * grad_factor;
        const float m = beta1 * moment(part.m, half, i) + (1.0f - beta1) * g;
        const float v = beta2 * moment(part.v, half, i) + (1.0f - beta2) * g * g;
        set_moment(part.m, half, i, m);
        set_moment(part.v, half, i, v);
        part.p[i] -= part.rate * m / (sqrtf(v) / root2 + epsilon);
    }
}
