// What is computed element by element.

#include "dropout.cuh"
#include "number.cuh"

// y = x as bf16
extern "C" __global__ void round_to_bf16(const float *x, bf16 *y, i64 len) {
    const i64 i = thread_index();
    if (i < len) y[i] = narrow(x[i]);
}

// y = x as f32
extern "C" __global__ void widen_to_f32(const bf16 *x, float *y, i64 len) {
    const i64 i = thread_index();
    if (i < len) y[i] = widen(x[i]);
}

static __device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + __expf(-x)); }

// out = silu(gate)∘up; `out` may be `gate` or `up`.
extern "C" __global__ void swiglu_forward(const bf16 *gate, const bf16 *up, bf16 *out, i64 len) {
    const i64 i = thread_index();
    if (i >= len) return;
    const float g = widen(gate[i]);
    out[i] = narrow(g * sigmoid(g) * widen(up[i]));
}

// gate and up become their gradients.
extern "C" __global__ void swiglu_backward(const bf16 *dout, bf16 *gate, bf16 *up, i64 len) {
    const i64 i = thread_index();
    if (i >= len) return;
    const float g = widen(gate[i]), u = widen(up[i]), d = widen(dout[i]), s = sigmoid(g);
    up[i] = narrow(d * (g * s));
    gate[i] = narrow(d * u * (s * (1.0f + g * (1.0f - s))));
}

// x[row] = table[tokens[row]] in f32; without tokens, the rows of the table as they lie.
extern "C" __global__ void embedding_forward(const void *table, i32 stored, const u32 *tokens, i32 d, float *x, i64 len) {
    const i64 i = thread_index();
    if (i >= len) return;
    const i64 row = i / d;
    x[i] = stored_at(table, stored, (tokens ? (i64)tokens[row] : row) * d + i % d);
}

// y[i] = x[rows[i]]
extern "C" __global__ void gather_rows(const bf16 *x, const u32 *rows, i32 d, bf16 *y, i64 len) {
    const i64 i = thread_index();
    if (i < len) y[i] = x[(i64)rows[i / d] * d + i % d];
}

// y = drop(x), rows of k
extern "C" __global__ void drop(const bf16 *x, Dropout dropout, i32 k, bf16 *y, i64 len) {
    const i64 i = thread_index();
    if (i < len) y[i] = narrow(widen(x[i]) * dropout_factor(dropout, i / k, i % k));
}

// y += drop(x)
extern "C" __global__ void add_dropped_bf16(const bf16 *x, Dropout dropout, i32 k, bf16 *y, i64 len) {
    const i64 i = thread_index();
    if (i < len) y[i] = narrow(widen(y[i]) + widen(x[i]) * dropout_factor(dropout, i / k, i % k));
}

extern "C" __global__ void add_dropped_f32(const bf16 *x, Dropout dropout, i32 k, float *y, i64 len) {
    const i64 i = thread_index();
    if (i < len) y[i] += widen(x[i]) * dropout_factor(dropout, i / k, i % k);
}
