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

// What a row is trained for: ce·CE(target) + kl·KL(teacher ‖ model), all times scale; `Weights` in head.rs.
struct Weights {
    float ce;
    float kl;
    float scale;
};

// Both terms of a row's loss; `RowLoss` in backend.rs.
struct RowLoss {
    float ce;
    float kl;
};

// A row without a target: no loss, no gradient.
static __device__ __forceinline__ void nothing(i32 v, bf16 *dlogits, RowLoss *loss) {
    if (threadIdx.x == 0) *loss = RowLoss{0, 0};
    for (i32 i = threadIdx.x; dlogits && i < v; i += blockDim.x) dlogits[i] = 0;
}

// −ln p(target), and, if wanted, dlogits = scale·ce·(p − onehot(target)).
extern "C" __global__ void cross_entropy(
    const float *logits, i32 v, const u32 *targets, Weights by, bf16 *dlogits, RowLoss *losses
) {
    __shared__ float maxima[MAX_WARPS];
    __shared__ double sums[MAX_WARPS];
    const i64 row = blockIdx.x;
    const u32 target = targets[row];
    logits += row * v;
    if (dlogits) dlogits += row * v;
    if (target == NO_TARGET) return nothing(v, dlogits, losses + row);
    const float max = largest(logits, v, maxima);
    const double sum = exponentials(logits, v, max, sums);
    if (threadIdx.x == 0) losses[row] = RowLoss{(float)(log(sum) + ((double)max - (double)logits[target])), 0};
    const float one = by.ce * by.scale, factor = (float)((double)one / sum);
    for (i32 i = threadIdx.x; dlogits && i < v; i += blockDim.x) {
        const float p = factor * expf(logits[i] - max);
        dlogits[i] = narrow(i == target ? p - one : p);
    }
}

// With a teacher's logits, or log-probabilities, of the same rows:
// dlogits = scale·(ce·(p − onehot(target)) + kl·(p − p_teacher)).
extern "C" __global__ void against_logits(
    const float *logits, const float *teacher, i32 v, const u32 *targets, Weights by, bf16 *dlogits, RowLoss *losses
) {
    __shared__ float maxima[MAX_WARPS];
    __shared__ double sums[MAX_WARPS];
    const i64 row = blockIdx.x;
    const u32 target = targets[row];
    logits += row * v;
    teacher += row * v;
    if (dlogits) dlogits += row * v;
    if (target == NO_TARGET) return nothing(v, dlogits, losses + row);
    const float most = largest(logits, v, maxima), teachers_most = largest(teacher, v, maxima);
    const double all = exponentials(logits, v, most, sums), teachers = exponentials(teacher, v, teachers_most, sums);
    double cross = 0;
    for (i32 i = threadIdx.x; i < v; i += blockDim.x) {
        const float less = teacher[i] - teachers_most, a = expf(less);
        // A probability of 0 counts 0, whatever the model says (0·ln 0 = 0).
        if (a > 0) cross += (double)(a * (less - (logits[i] - most)));
    }
    cross = over_block<Sum>(cross, sums);
    if (threadIdx.x == 0) {
        const double ce = log(all) + ((double)most - (double)logits[target]);
        losses[row] = RowLoss{(float)ce, (float)(cross / teachers + log(all) - log(teachers))};
    }
    const float own = (float)((double)((by.ce + by.kl) * by.scale) / all);
    const float theirs = (float)((double)(by.kl * by.scale) / teachers);
    for (i32 i = threadIdx.x; dlogits && i < v; i += blockDim.x) {
        const float x = own * expf(logits[i] - most) - theirs * expf(teacher[i] - teachers_most);
        dlogits[i] = narrow(i == target ? x - by.ce * by.scale : x);
    }
}

// With `top` weighted ids that stand for a teacher's distribution [rows, top]; no id comes twice, those beyond the
// vocabulary are passed over: kl = Σ weight·(ln p_teacher − ln p), dlogits = scale·(ce·(p − onehot(target)) + kl·(p − weight)).
extern "C" __global__ void against_stored(
    const float *logits, const u32 *ids, const float *weights, const float *log_p, i32 top, i32 v, const u32 *targets,
    Weights by, bf16 *dlogits, RowLoss *losses
) {
    __shared__ float maxima[MAX_WARPS];
    __shared__ double sums[MAX_WARPS];
    const i64 row = blockIdx.x;
    const u32 target = targets[row];
    logits += row * v;
    ids += row * top;
    weights += row * top;
    log_p += row * top;
    if (dlogits) dlogits += row * v;
    if (target == NO_TARGET) return nothing(v, dlogits, losses + row);
    const float most = largest(logits, v, maxima);
    const double all = exponentials(logits, v, most, sums);
    double kl = 0;
    for (i32 i = threadIdx.x; i < top; i += blockDim.x) {
        // A weight of 0 counts 0, whatever the model says.
        if (ids[i] >= v || weights[i] == 0) continue;
        kl += (double)weights[i] * ((double)log_p[i] - (double)(logits[ids[i]] - most) + log(all));
    }
    kl = over_block<Sum>(kl, sums);
    if (threadIdx.x == 0) losses[row] = RowLoss{(float)(log(all) + ((double)most - (double)logits[target])), (float)kl};
    if (!dlogits) return;
    const float own = (float)((double)((by.ce + by.kl) * by.scale) / all), one = by.ce * by.scale;
    for (i32 i = threadIdx.x; i < v; i += blockDim.x) {
        const float x = own * expf(logits[i] - most);
        dlogits[i] = narrow(i == target ? x - one : x);
    }
    __syncthreads();
    for (i32 i = threadIdx.x; i < top; i += blockDim.x) {
        if (ids[i] >= v) continue;
        const float x = own * expf(logits[ids[i]] - most) - by.kl * by.scale * weights[i];
        dlogits[ids[i]] = narrow(ids[i] == target ? x - one : x);
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
