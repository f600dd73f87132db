// Ŵ in bf16 from whatever form the weight is stored in, and the gradients of s and Z from dŴ. A region of a weight
// [n, k] is written densely: rows from `row` on, columns from `column` on.

#include "grid.cuh"
#include "reduce.cuh"

// The forms that hold a grid; `Grid` in weight.rs. Group i of row n has the scale n·groups + i.
struct Grid {
    // Masters, which the forward pass rounds, or the scales themselves.
    const float *scale;
    // NULL: 0
    const float *zero;
    i32 group;
    i32 groups;
    float qmin;
    float qmax;
    i32 masters;
    i32 unused;
};

static __device__ __forceinline__ float scale_at(const Grid &grid, i64 at) {
    return grid.masters ? forward_scale(grid.scale[at]) : grid.scale[at];
}

// What Z is made of; `Real` in weight.rs.
struct Real {
    const u8 *phi;
    const float *a;
    const float *b;
    i64 row_bytes;
    i32 kind;
    float unit;
    i32 rank;
    float factor;
};

// `Region` in weight.rs.
struct Region {
    i32 row;
    i32 rows;
    i32 column;
    i32 columns;
    // Of the whole weight.
    i32 k;
};

static __device__ __forceinline__ float weight_of(const Grid &grid, i64 row, i32 column, float code) {
    const i64 at = row * grid.groups + column / grid.group;
    return dequantize(code, grid.zero ? grid.zero[at] : 0.0f, scale_at(grid, at));
}

// Rows and columns of a thread, in registers; its columns are THREADS apart.
#define ROWS 8
#define COLUMNS 4
#define THREADS 128
// So many times ROWS rows are a block's, one after another: what they read of B stays in the nearest cache.
#define TALL 4

// Z of a block's part of the region: store(row, column, at, z) of every element, `at` its place in the region. Needs
// rank·ROWS floats of dynamic shared memory. C = 0, and for i ascending C = fma(A[n,i], B[i,k], C); Z = fma(α/r, C, Φ0).
template <typename Store> static __device__ __forceinline__ void for_each_real(const Real &w, const Region &region, Store store) {
    extern __shared__ float a[]; // [rank, ROWS]
    const i32 first = blockIdx.x * THREADS * COLUMNS + threadIdx.x;
    for (i32 tall = 0; tall < TALL; tall++) {
        const i32 from = (blockIdx.y * TALL + tall) * ROWS;
        if (from >= region.rows) return;
        __syncthreads();
        for (i32 i = threadIdx.x; i < w.rank * ROWS; i += THREADS) {
            const i32 row = from + i % ROWS;
            a[i] = row < region.rows ? w.a[(i64)(region.row + row) * w.rank + i / ROWS] : 0.0f;
        }
        __syncthreads();
        float c[ROWS][COLUMNS];
#pragma unroll
        for (i32 r = 0; r < ROWS; r++) {
#pragma unroll
            for (i32 j = 0; j < COLUMNS; j++) c[r][j] = 0;
        }
        for (i32 i = 0; i < w.rank; i++) {
            float b[COLUMNS];
#pragma unroll
            for (i32 j = 0; j < COLUMNS; j++) {
                const i32 column = first + j * THREADS;
                b[j] = column < region.columns ? w.b[(i64)i * region.k + region.column + column] : 0.0f;
            }
#pragma unroll
            for (i32 r = 0; r < ROWS; r++) {
#pragma unroll
                for (i32 j = 0; j < COLUMNS; j++) c[r][j] = __fmaf_rn(a[i * ROWS + r], b[j], c[r][j]);
            }
        }
#pragma unroll
        for (i32 r = 0; r < ROWS; r++) {
            const i64 row = region.row + from + r;
            const u8 *phi = w.phi + row * w.row_bytes;
#pragma unroll
            for (i32 j = 0; j < COLUMNS; j++) {
                const i32 column = region.column + first + j * THREADS;
                if (from + r >= region.rows || first + j * THREADS >= region.columns) continue;
                const float z = __fmaf_rn(w.factor, c[r][j], phi_at(phi, w.kind, w.unit, column));
                store(row, column, (i64)(from + r) * region.columns + first + j * THREADS, z);
            }
        }
    }
}

// round(Z): a step beyond the grid says that it is clipped, and on which side.
template <typename T> static __device__ __forceinline__ void round_weight(const Real &w, const Grid &grid, const Region &region, T *to) {
    for_each_real(w, region, [&](i64 row, i32 column, i64 at, float z) {
        to[at] = (T)code(z, grid.qmin - 1.0f, grid.qmax + 1.0f);
    });
}

// For up to 7 bits.
extern "C" __global__ void __launch_bounds__(THREADS) round_weight_i8(Real w, Grid grid, Region region, i8 *to) {
    round_weight(w, grid, region, to);
}

extern "C" __global__ void __launch_bounds__(THREADS) round_weight_i16(Real w, Grid grid, Region region, i16 *to) {
    round_weight(w, grid, region, to);
}

extern "C" __global__ void __launch_bounds__(THREADS, 5) weight_of_real(Real w, Grid grid, Region region, bf16 *to) {
    for_each_real(w, region, [&](i64 row, i32 column, i64 at, float z) {
        to[at] = narrow(weight_of(grid, row, column, code(z, grid.qmin, grid.qmax)));
    });
}

// Of round(Z) [n, k], clipped or not.
extern "C" __global__ void weight_of_integers(const i8 *integers, Grid grid, Region region, bf16 *to, i64 len) {
    const i64 at = thread_index();
    if (at >= len) return;
    const i64 row = region.row + at / region.columns;
    const i32 column = region.column + at % region.columns;
    to[at] = narrow(weight_of(grid, row, column, code((float)integers[row * region.k + column], grid.qmin, grid.qmax)));
}

// W_Z − qmin in rows of whole words, b bits each, least significant first, across word borders.
static __device__ __forceinline__ float code_at(const u32 *codes, i32 bits, i32 words, i64 row, i32 column) {
    const u32 *packed = codes + row * words;
    const i64 bit = (i64)column * bits;
    const i32 word = bit / 32, shift = bit % 32;
    u64 window = packed[word];
    if (shift + bits > 32) window |= (u64)packed[word + 1] << 32;
    return (float)((u32)(window >> shift) & ((1u << bits) - 1));
}

// Of folded integers.
extern "C" __global__ void weight_of_codes(
    const u32 *codes, i32 bits, i32 words, Grid grid, Region region, bf16 *to, i64 len
) {
    const i64 at = thread_index();
    if (at >= len) return;
    const i64 row = region.row + at / region.columns;
    const i32 column = region.column + at % region.columns;
    to[at] = narrow(weight_of(grid, row, column, code_at(codes, bits, words, row, column) + grid.qmin));
}

// W_Z of folded integers in bytes.
extern "C" __global__ void integers_of_codes(
    const u32 *codes, i32 bits, i32 words, Grid grid, Region region, i8 *to, i64 len
) {
    const i64 at = thread_index();
    if (at >= len) return;
    const i64 row = region.row + at / region.columns;
    const i32 column = region.column + at % region.columns;
    to[at] = (i8)(code_at(codes, bits, words, row, column) + grid.qmin);
}

// Of floats.
extern "C" __global__ void weight_of_floats(const void *w, i32 stored, Region region, bf16 *to, i64 len) {
    const i64 at = thread_index();
    if (at >= len) return;
    const i64 row = region.row + at / region.columns;
    to[at] = narrow(stored_at(w, stored, row * region.k + region.column + at % region.columns));
}

// From G = dŴ, of whole rows: ds += Σ G·(W_Z − z), dZ = G·s·1[qmin ≤ round(Z) ≤ qmax]. A warp per scale. All pointers
// are those of the first row.
template <typename T> static __device__ __forceinline__ void weight_gradient(
    const float *dw, const T *integers, const Grid &grid, i64 scales, float *ds, bf16 *dz
) {
    const i64 at = thread_index() / LANES;
    if (at >= scales) return;
    const i32 lane = threadIdx.x % LANES;
    const float scale = scale_at(grid, at), zero = grid.zero ? grid.zero[at] : 0.0f;
    float sum = 0;
    for (i32 i = lane; i < grid.group; i += LANES) {
        const i64 weight = at * grid.group + i;
        const float rounded = (float)integers[weight], clipped = code(rounded, grid.qmin, grid.qmax), g = dw[weight];
        sum += g * (clipped - zero);
        dz[weight] = narrow(rounded == clipped ? g * scale : 0.0f);
    }
    sum = over_warp<Sum>(sum);
    if (lane == 0) ds[at] += sum;
}

extern "C" __global__ void weight_gradient_i8(const float *dw, const i8 *integers, Grid grid, i64 scales, float *ds, bf16 *dz) {
    weight_gradient(dw, integers, grid, scales, ds, dz);
}

extern "C" __global__ void weight_gradient_i16(const float *dw, const i16 *integers, Grid grid, i64 scales, float *ds, bf16 *dz) {
    weight_gradient(dw, integers, grid, scales, ds, dz);
}
