// RMSNorm: y = w∘(x·r), r = 1/√(mean(x²) + ε). A block per row.

#include "reduce.cuh"

#define MAX_WARPS 8

static __device__ __forceinline__ float inverse_root(const float *x, i32 d, float eps, float *shared) {
    float sum = 0;
    for (i32 i = threadIdx.x; i < d; i += blockDim.x) sum += x[i] * x[i];
    return 1.0f / sqrtf(over_block<Sum>(sum, shared) / (float)d + eps);
}

// x [rows, d] → y [rows, d]
extern "C" __global__ void rmsnorm_forward(const float *x, const float *w, float eps, i32 d, bf16 *y) {
    __shared__ float shared[MAX_WARPS];
    x += (i64)blockIdx.x * d;
    y += (i64)blockIdx.x * d;
    const float r = inverse_root(x, d, eps, shared);
    for (i32 i = threadIdx.x; i < d; i += blockDim.x) y[i] = narrow(w[i] * (x[i] * r));
}

// dx += r·(w∘dy) − x·r³·Σ(w∘dy∘x)/d
extern "C" __global__ void rmsnorm_backward(const float *x, const float *w, float eps, i32 d, const float *dy, float *dx) {
    __shared__ float shared[MAX_WARPS];
    x += (i64)blockIdx.x * d;
    dy += (i64)blockIdx.x * d;
    dx += (i64)blockIdx.x * d;
    const float r = inverse_root(x, d, eps, shared);
    float projection = 0;
    for (i32 i = threadIdx.x; i < d; i += blockDim.x) projection += w[i] * dy[i] * x[i];
    projection = over_block<Sum>(projection, shared);
    const float along_x = -(r * r * r * projection / (float)d);
    for (i32 i = threadIdx.x; i < d; i += blockDim.x) dx[i] += w[i] * dy[i] * r + x[i] * along_x;
}
