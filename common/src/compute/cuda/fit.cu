// The grid of every group of a weight: min-max, or the search of common/src/quant/search.rs. The same scales to the bit:
// what that file and fit.rs beside it round, in their order, is rounded here, and nothing is contracted.

#include "grid.cuh"
#include "reduce.cuh"

#define ALL (~0u)
// Groups of a block, a warp each.
#define WARPS 4
// Candidates of a lane.
#define SIDE 2
#define THRESHOLDS 100
// Weights that are summed up in f32; the sums of parts are added in f64.
#define PART 64
// Sums that a candidate has, one for every fourth weight of a part.
#define CHAINS 4
// |w| of one sign on their way into parts: at most a part less one, and those of a warp.
#define RING (2 * PART)
// Added to a number below 2^22, it rounds it half to even: at the rate of additions, which rintf does not have.
#define WHOLE 12582912.0f
#define SMALLEST_SCALE (1.0f / 131072.0f)

// What is fitted; `Fitted` in fit.rs.
struct Fitted {
    const void *w;
    float *scale;
    // NULL: symmetric
    float *zero;
    i64 groups;
    i32 group;
    i32 stored;
    // Steps that zero points are moved to either side.
    i32 skew;
    float qmin;
    float qmax;
};

struct Pair {
    float scale;
    float zero;
};

struct Min {
    static __device__ __forceinline__ float of(float x, float y) { return fminf(x, y); }
};

// The weights of a group.
struct Group {
    const void *w;
    i64 first;
    i32 len;
    i32 stored;

    __device__ __forceinline__ float at(i32 i) const { return stored_at(w, stored, first + i); }
};

// The least and the largest weight of a group, or zero.
struct Span {
    float min;
    float max;

    // Of scale amax·fraction/qmax, or of scale full·fraction and the zero point of the full range, moved.
    __device__ __forceinline__ Pair grid(const Fitted &to, float fraction, float skew) const {
        if (!to.zero) return {fmaxf(__fdiv_rn(__fmul_rn(fmaxf(max, -min), fraction), to.qmax), SMALLEST_SCALE), 0.0f};
        const float full = fmaxf(__fdiv_rn(__fsub_rn(max, min), __fsub_rn(to.qmax, to.qmin)), SMALLEST_SCALE);
        const float zero = code(__fsub_rn(to.qmin, __fdiv_rn(min, full)), to.qmin, to.qmax);
        return {fmaxf(__fmul_rn(full, fraction), SMALLEST_SCALE), code(__fadd_rn(zero, skew), to.qmin, to.qmax)};
    }

    // By threshold and then by zero point.
    __device__ __forceinline__ Pair candidate(const Fitted &to, i32 at) const {
        const i32 each = 2 * to.skew + 1;
        return grid(to, __fdiv_rn((float)(at / each + 1), (float)THRESHOLDS), (float)(at % each - to.skew));
    }
};

// A distance in units of the scale, to the p: sum + d^p, and s^p.
struct Square {
    static __device__ __forceinline__ float add(float d, float sum) { return __fmaf_rn(d, d, sum); }
    static __device__ __forceinline__ double unit(double s) { return __dmul_rn(s, s); }
};

struct Cube {
    static __device__ __forceinline__ float add(float d, float sum) { return __fmaf_rn(__fmul_rn(d, d), d, sum); }
    static __device__ __forceinline__ double unit(double s) { return __dmul_rn(__dmul_rn(s, s), s); }
};

// Candidates of a lane, and their errors so far.
struct Candidates {
    float inverse[SIDE];
    // The grid's ends above and below zero, in steps.
    float ends[2][SIDE];
    double unit[SIDE];
    double errors[SIDE];
};

// Adds the errors of `len` weights of a part, which zeros fill up to whole quadruples: they add nothing. Is a candidate of
// the warp still within `least`?
template <typename Norm>
static __device__ __forceinline__ bool add_part(const float *part, i32 len, Candidates &c, i32 below, double least) {
    float sums[SIDE][CHAINS] = {};
#pragma unroll 4
    for (i32 i = 0; i < len; i += CHAINS) {
        const float4 four = *(const float4 *)(part + i);
        const float w[CHAINS] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (i32 j = 0; j < SIDE; j++) {
#pragma unroll
            for (i32 chain = 0; chain < CHAINS; chain++) {
                const float t = __fmul_rn(w[chain], c.inverse[j]);
                const float rounded = __fsub_rn(__fadd_rn(t, WHOLE), WHOLE);
                // Beyond the grid's end by more than half a step, the distance to it is the larger one.
                const float d = fmaxf(fabsf(__fsub_rn(t, rounded)), __fsub_rn(t, c.ends[below][j]));
                sums[j][chain] = Norm::add(d, sums[j][chain]);
            }
        }
    }
    bool within = false;
#pragma unroll
    for (i32 j = 0; j < SIDE; j++) {
        const float sum = __fadd_rn(__fadd_rn(sums[j][0], sums[j][1]), __fadd_rn(sums[j][2], sums[j][3]));
        c.errors[j] = __dadd_rn(c.errors[j], __dmul_rn((double)sum, c.unit[j]));
        within |= c.errors[j] <= least;
    }
    return __any_sync(ALL, within);
}

// Adds the errors of the weights of one sign, in their order. False if all candidates are beyond `least`.
template <typename Norm, bool BELOW>
static __device__ __forceinline__ bool add_side(const Group &group, float *ring, Candidates &c, double least) {
    const i32 lane = threadIdx.x % LANES;
    i32 held = 0, done = 0;
    for (i32 from = 0; from < group.len; from += LANES) {
        const bool inside = from + lane < group.len;
        const float w = inside ? group.at(from + lane) : 0.0f;
        const bool mine = inside && (BELOW ? w < 0 : w >= 0);
        const u32 all = __ballot_sync(ALL, mine);
        if (mine) ring[(held + __popc(all & ((1u << lane) - 1))) % RING] = fabsf(w);
        held += __popc(all);
        if (held - done < PART) continue;
        __syncwarp();
        const bool within = add_part<Norm>(ring + done % RING, PART, c, BELOW, least);
        __syncwarp();
        if (!within) return false;
        done += PART;
    }
    const i32 rest = held - done, whole = (rest + CHAINS - 1) / CHAINS * CHAINS;
    if (rest == 0) return true;
    if (lane < whole - rest) ring[(held + lane) % RING] = 0.0f;
    __syncwarp();
    const bool within = add_part<Norm>(ring + done % RING, whole, c, BELOW, least);
    __syncwarp();
    return within;
}

// The first candidate with the smallest Σ|w − Q(w)|^p, of a group that is not all zeros. Later ones come first: their errors
// are the least mostly, and those of the others are soon beyond them.
template <typename Norm>
static __device__ __forceinline__ Pair search(const Fitted &to, const Group &group, const Span &span, float *ring) {
    const i32 lane = threadIdx.x % LANES, block = SIDE * LANES, count = THRESHOLDS * (2 * to.skew + 1);
    double least = INFINITE;
    i32 chosen = 0;
    for (i32 from = (count - 1) / block * block; from >= 0; from -= block) {
        Candidates c;
#pragma unroll
        for (i32 j = 0; j < SIDE; j++) {
            const i32 at = from + j * LANES + lane;
            const Pair grid = span.candidate(to, at < count ? at : 0);
            c.inverse[j] = __fdiv_rn(1.0f, grid.scale);
            c.ends[0][j] = __fsub_rn(to.qmax, grid.zero);
            c.ends[1][j] = __fsub_rn(grid.zero, to.qmin);
            c.unit[j] = Norm::unit((double)grid.scale);
            c.errors[j] = at < count ? 0.0 : (double)INFINITE;
        }
        if (!add_side<Norm, false>(group, ring, c, least) || !add_side<Norm, true>(group, ring, c, least)) continue;
#pragma unroll
        for (i32 j = 0; j < SIDE; j++) {
            const i32 at = from + j * LANES + lane;
            const double error = c.errors[j];
            if (error < least || (error == least && at < chosen)) least = error, chosen = at;
        }
        for (i32 distance = LANES / 2; distance > 0; distance /= 2) {
            const double other = __shfl_xor_sync(ALL, least, distance);
            const i32 at = __shfl_xor_sync(ALL, chosen, distance);
            if (other < least || (other == least && at < chosen)) least = other, chosen = at;
        }
    }
    return span.candidate(to, chosen);
}

struct MinMax {};

template <typename Norm> struct Best {
    static __device__ __forceinline__ Pair of(const Fitted &to, const Group &group, const Span &span, float *ring) {
        return search<Norm>(to, group, span, ring);
    }
};

template <> struct Best<MinMax> {
    static __device__ __forceinline__ Pair of(const Fitted &to, const Group &, const Span &span, float *) {
        return span.grid(to, 1.0f, 0.0f);
    }
};

// A group that is not all finite has a scale that is no number.
template <typename Norm> static __device__ __forceinline__ void fit(const Fitted &to) {
    __shared__ __align__(16) float rings[WARPS][RING];
    const i32 warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const i64 at = (i64)blockIdx.x * WARPS + warp;
    if (at >= to.groups) return;
    const Group group = {to.w, at * to.group, to.group, to.stored};
    Span span = {0.0f, 0.0f};
    bool finite = true;
    for (i32 i = lane; i < group.len; i += LANES) {
        const float w = group.at(i);
        finite &= fabsf(w) < INFINITE;
        span.min = w < span.min ? w : span.min;
        span.max = w > span.max ? w : span.max;
    }
    span = {over_warp<Min>(span.min), over_warp<Max>(span.max)};
    Pair best = {1.0f, 0.0f};
    if (!__all_sync(ALL, finite)) {
        best.scale = __int_as_float(0x7fc00000);
    } else if (span.min != 0 || span.max != 0) {
        best = Best<Norm>::of(to, group, span, rings[warp]);
    }
    if (lane != 0) return;
    to.scale[at] = best.scale;
    if (to.zero) to.zero[at] = best.zero;
}

extern "C" __global__ void __launch_bounds__(WARPS *LANES) fit_min_max(Fitted to) { fit<MinMax>(to); }

extern "C" __global__ void __launch_bounds__(WARPS *LANES) fit_squares(Fitted to) { fit<Square>(to); }

extern "C" __global__ void __launch_bounds__(WARPS *LANES) fit_cubes(Fitted to) { fit<Cube>(to); }
