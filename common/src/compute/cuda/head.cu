// What is computed of logits [rows, v]: cross entropy with its gradient for training, log-probabilities and divergence
// for evaluation. A block per row; sums in f64.

#include "reduce.cuh"

#define MAX_WARPS 32
#define NO_TARGET 0xffffffffu

struct Min {
    static __device__ __forceinline__ u32 of(u32 x, u32 y) { return x < y ? x : y; }
};

static __device__ __forceinline__ float largest(const float *x, i32 v, float *shared) {
    float max = -INFINITE;
    for (i32 i = threadIdx.x; i < v; i += blockDim.x) max = fmaxf(max, x[i]);
    return over_block<Max>(max, shared);
}

// Σ e^(x − max)
static __device__ __forceinline__ double exponentials(const float *x, i32 v, float max, double *shared) {
    double sum = 0;
    for (i32 i = threadIdx.x; i < v; i += blockDim.x) sum += expf(x[i] - max);
    return over_block<Sum>(sum, shared);
}

// losses = −ln p(target), and, if wanted, dlogits = grad_scale·(p − onehot(target)); both 0 without a target.
extern "C" __global__ void cross_entropy(
    const float *logits, i32 v, const u32 *targets, float grad_scale, bf16 *dlogits, float *losses
) {
    __shared__ float maxima[MAX_WARPS];
    __shared__ double sums[MAX_WARPS];
    const i64 row = blockIdx.x;
    const u32 target = targets[row];
    logits += row * v;
    if (target == NO_TARGET) {
        if (threadIdx.x == 0) losses[row] = 0;
        for (i32 i = threadIdx.x; dlogits && i < v; i += blockDim.x) dlogits[row * v + i] = 0;
        return;
    }
    const float max = largest(logits, v, maxima);
    const double sum = exponentials(logits, v, max, sums);
    if (threadIdx.x == 0) losses[row] = (float)(log(sum) + ((double)max - (double)logits[target]));
    const float factor = (float)((double)grad_scale / sum);
    for (i32 i = threadIdx.x; dlogits && i < v; i += blockDim.x) {
        const float p = factor * expf(logits[i] - max);
        dlogits[row * v + i] = narrow(i == target ? p - grad_scale : p);
    }
}

// ln Σ e^logit, ln p(target), and the first of the largest logits.
extern "C" __global__ void log_probs(
    const float *logits, i32 v, const u32 *targets, double *lse, double *log_prob, u32 *top
) {
    __shared__ float maxima[MAX_WARPS];
    __shared__ double sums[MAX_WARPS];
    __shared__ u32 places[MAX_WARPS];
    const i64 row = blockIdx.x;
    logits += row * v;
    const float max = largest(logits, v, maxima);
    const double sum = exponentials(logits, v, max, sums);
    u32 place = NO_TARGET;
    for (i32 i = threadIdx.x; i < v; i += blockDim.x) {
        if (logits[i] == max) place = Min::of(place, i);
    }
    place = over_block<Min>(place, places);
    if (threadIdx.x == 0) {
        lse[row] = (double)max + log(sum);
        log_prob[row] = (double)logits[targets[row]] - lse[row];
        top[row] = place;
    }
}

// Σ p_ref·(ln p_ref − ln p)
extern "C" __global__ void divergence(
    const float *reference, const float *logits, i32 v, const double *reference_lse, const double *lse, double *kl
) {
    __shared__ double sums[MAX_WARPS];
    const i64 row = blockIdx.x;
    reference += row * v;
    logits += row * v;
    const double offset = lse[row] - reference_lse[row];
    double sum = 0;
    for (i32 i = threadIdx.x; i < v; i += blockDim.x) {
        // A probability of 0 counts 0, whatever the other distribution says (0·ln 0 = 0).
        const double p = (double)expf((float)((double)reference[i] - reference_lse[row]));
        if (p > 0) sum += p * ((double)reference[i] - (double)logits[i] + offset);
    }
    sum = over_block<Sum>(sum, sums);
    if (threadIdx.x == 0) kl[row] = sum;
}

// y[i] = x[rows[i]]
extern "C" __global__ void gather_rows(const bf16 *x, const u32 *rows, i32 d, bf16 *y, i64 len) {
    const i64 i = thread_index();
    if (i < len) y[i] = x[(i64)rows[i / d] * d + i % d];
}
