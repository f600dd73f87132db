// C (+)= α·op(X)·op(Y) in bf16 with sums in f32, on tensor cores: for machines without cuBLASLt. C is row-major [m, n];
// X is [m, k], or [k, m] to be transposed, Y is [k, n], or [n, k] to be transposed. A block of four warps makes a tile
// of 64 × 64; a warp a quarter of it, by mma.sync m16n8k16.

#include "mma.cuh"

#define TILE 64
#define DEPTH 32
#define THREADS 128
// Elements of 16 bytes, which are loaded at once.
#define CHUNK 8
// A row of a tile in shared memory is longer by this, so that ldmatrix finds eight rows in different banks.
#define PAD 8

// A part of X or Y: [outer, inner] of the stored matrix, of which `inner` is contiguous.
template <int OUTER, int INNER> struct Stage {
    static const int STRIDE = INNER + PAD;
    static const int SIZE = OUTER * STRIDE;

    // Fills the stage from (outer, inner) of the matrix on, with zeros beyond its extents.
    static __device__ __forceinline__ void load(
        bf16 *stage, const bf16 *x, i64 leading, i64 outer, i64 inner, i64 outers, i64 inners, bool aligned
    ) {
#pragma unroll
        for (int i = threadIdx.x; i < OUTER * INNER / CHUNK; i += THREADS) {
            const int row = i / (INNER / CHUNK), column = i % (INNER / CHUNK) * CHUNK;
            bf16 *to = stage + row * STRIDE + column;
            const bf16 *from = x + (outer + row) * leading + inner + column;
            const bool inside = outer + row < outers;
            if (inside && aligned && inner + column + CHUNK <= inners) {
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
            } else {
#pragma unroll
                for (int e = 0; e < CHUNK; e++) to[e] = inside && inner + column + e < inners ? from[e] : 0;
            }
        }
    }
};

// `Shape` in product.rs.
struct Shape {
    i32 m;
    i32 n;
    i32 k;
    // From a row of the stored matrix to the next.
    i32 x_leading;
    i32 y_leading;
    i32 c_leading;
    float alpha;
    // 1: add to C
    i32 accumulate;
};

// 16-byte loads are allowed.
static __device__ __forceinline__ bool chunked(const bf16 *x, i32 leading) {
    return (u64)x % (CHUNK * sizeof(bf16)) == 0 && leading % CHUNK == 0;
}

template <bool X_TRANSPOSED, bool Y_TRANSPOSED, typename Store>
static __device__ __forceinline__ void product(const bf16 *x, const bf16 *y, const Shape &s, Store store) {
    typedef Stage<X_TRANSPOSED ? DEPTH : TILE, X_TRANSPOSED ? TILE : DEPTH> XStage;
    typedef Stage<Y_TRANSPOSED ? TILE : DEPTH, Y_TRANSPOSED ? DEPTH : TILE> YStage;
    __shared__ __align__(16) bf16 x_stages[2][XStage::SIZE];
    __shared__ __align__(16) bf16 y_stages[2][YStage::SIZE];
    const i64 first_m = (i64)blockIdx.y * TILE, first_n = (i64)blockIdx.x * TILE;
    const bool x_aligned = chunked(x, s.x_leading), y_aligned = chunked(y, s.y_leading);
    auto load = [&](int stage, i64 depth) {
        if (X_TRANSPOSED) XStage::load(x_stages[stage], x, s.x_leading, depth, first_m, s.k, s.m, x_aligned);
        else XStage::load(x_stages[stage], x, s.x_leading, first_m, depth, s.m, s.k, x_aligned);
        if (Y_TRANSPOSED) YStage::load(y_stages[stage], y, s.y_leading, first_n, depth, s.n, s.k, y_aligned);
        else YStage::load(y_stages[stage], y, s.y_leading, depth, first_n, s.k, s.n, y_aligned);
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warp_m = warp / 2 * 32, warp_n = warp % 2 * 32;
    float c[2][4][4];
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) c[i][j][0] = c[i][j][1] = c[i][j][2] = c[i][j][3] = 0;
    }
    const int steps = (s.k + DEPTH - 1) / DEPTH;
    load(0, 0);
    for (int step = 0; step < steps; step++) {
        if (step + 1 < steps) {
            load((step + 1) % 2, (i64)(step + 1) * DEPTH);
            asm volatile("cp.async.wait_group 1;" ::: "memory");
        } else {
            asm volatile("cp.async.wait_group 0;" ::: "memory");
        }
        __syncthreads();
        const bf16 *xs = x_stages[step % 2], *ys = y_stages[step % 2];
#pragma unroll
        for (int depth = 0; depth < DEPTH; depth += 16) {
            // The four 8 × 8 matrices of a lane's load: `low` goes with i % 2, `high` with i / 2.
            const int low = lane / 8 % 2 * 8, high = lane / 16 * 8, row = lane % 8;
            u32 a[2][4], b[2][4];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int m = warp_m + i * 16;
                const bf16 *at = X_TRANSPOSED ? xs + (depth + high + row) * XStage::STRIDE + m + low
                                              : xs + (m + low + row) * XStage::STRIDE + depth + high;
                if (X_TRANSPOSED) load_transposed(a[i], shared_address(at));
                else load_matrices(a[i], shared_address(at));
            }
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const int n = warp_n + j * 16;
                const bf16 *at = Y_TRANSPOSED ? ys + (n + high + row) * YStage::STRIDE + depth + low
                                              : ys + (depth + low + row) * YStage::STRIDE + n + high;
                if (Y_TRANSPOSED) load_matrices(b[j], shared_address(at));
                else load_transposed(b[j], shared_address(at));
            }
#pragma unroll
            for (int i = 0; i < 2; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) multiply_add(c[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const i64 m = first_m + warp_m + i * 16 + lane / 4 + e / 2 * 8;
                const i64 n = first_n + warp_n + j * 8 + lane % 4 * 2 + e % 2;
                if (m < s.m && n < s.n) store(m * s.c_leading + n, s.alpha * c[i][j][e]);
            }
        }
    }
}

#define PRODUCTS(NAME, X_TRANSPOSED, Y_TRANSPOSED)                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME##_bf16(const bf16 *x, const bf16 *y, Shape s, bf16 *c) {   \
        product<X_TRANSPOSED, Y_TRANSPOSED>(                                                                              \
            x, y, s, [&](i64 at, float value) { c[at] = narrow(s.accumulate ? widen(c[at]) + value : value); }            \
        );                                                                                                                \
    }                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME##_f32(const bf16 *x, const bf16 *y, Shape s, float *c) {   \
        product<X_TRANSPOSED, Y_TRANSPOSED>(                                                                              \
            x, y, s, [&](i64 at, float value) { c[at] = s.accumulate ? c[at] + value : value; }                           \
        );                                                                                                                \
    }

PRODUCTS(product, false, false)
PRODUCTS(product_yt, false, true)
PRODUCTS(product_xt, true, false)
