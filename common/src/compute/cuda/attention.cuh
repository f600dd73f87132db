// What the kernels of attention.cu are made of: tiles of rows in shared memory, products of them by matrix instructions,
// and who sees whom.
#pragma once

#include "mma.cuh"
#include "reduce.cuh"

#define LOG2_E 1.44269504f
#define LN_2 0.693147181f

#define THREADS 128
// Rows of a block and, forward, keys of a step.
#define TILE 64
// Keys or queries of a step of the gradients: what is summed over them leaves no registers for more.
#define STEP 32
// Rows of a warp, and depth of a product: of a matrix instruction.
#define DEPTH 16
// Elements of 16 bytes, which are loaded at once.
#define CHUNK 8

// Two, the first in the low half.
static __device__ __forceinline__ u32 narrow_pair(float x, float y) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(y), "f"(x));
    return pair;
}

static __device__ __forceinline__ float power_of_2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

static __device__ __forceinline__ float log_2(float x) {
    float y;
    asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 16 × 16 of what a warp has computed, as an operand.
static __device__ __forceinline__ void pack(u32 (&a)[4], const float (&left)[4], const float (&right)[4]) {
    a[0] = narrow_pair(left[0], left[1]);
    a[1] = narrow_pair(left[2], left[3]);
    a[2] = narrow_pair(right[0], right[1]);
    a[3] = narrow_pair(right[2], right[3]);
}

// What this thread loaded has arrived, and all threads are done with what they read before.
static __device__ __forceinline__ void arrive() {
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
}

static __device__ __forceinline__ i32 least(i32 x, i32 y) { return x < y ? x : y; }

// `Shape` in attention.rs.
struct Shape {
    i32 heads;
    i32 kv_heads;
    i32 head_dim;
    // Tokens that a query sees at most, itself among them; 0: all.
    i32 window;
    // 1/√head_dim
    float scale;
};

// 64 rows of a sequence, or its last; `Tile` in attention.rs.
struct Tile {
    i32 row;
    // Rows of the sequence.
    i32 start;
    i32 end;
};

// A head of a [rows, heads·head_dim].
struct Part {
    const bf16 *x;
    i64 width;
    i32 head_dim;
    // Whole chunks, on their boundaries.
    bool aligned;

    __device__ __forceinline__ Part(const bf16 *all, i32 heads, i32 head, i32 head_dim)
        : x(all + (i64)head * head_dim), width((i64)heads * head_dim), head_dim(head_dim),
          aligned(head_dim % CHUNK == 0 && (unsigned long long)all % 16 == 0) {}
};

// Rows of a head in shared memory, HD wide. The chunks of a row are permuted so that the same chunk of eight rows lies in
// different banks.
template <int HD> struct Rows {
    static const u32 CHUNKS = HD / CHUNK;
    static const u32 BYTES = HD * 2;

    // Of an element, or of a chunk.
    static __device__ __forceinline__ u32 place(u32 row, u32 column) {
        const u32 turn = CHUNKS < 8 ? row / (8 / CHUNKS) % CHUNKS : row % 8;
        return row * HD + ((column / CHUNK ^ turn) * CHUNK | column % CHUNK);
    }

    // The address for load_matrices and load_transposed: of the first 16 rows and two chunks. That of the chunks 2i and
    // 2i + 1 differs by ^ 32i.
    static __device__ __forceinline__ u32 address(const bf16 *rows) {
        const u32 lane = threadIdx.x % LANES;
        return shared_address(rows) + 2 * place(lane % DEPTH, lane / DEPTH * CHUNK);
    }

    // Begins to load COUNT rows from `row` on: zeros from row `end` and from column head_dim on.
    template <int COUNT> static __device__ __forceinline__ void load(bf16 *to, const Part &part, i32 row, i32 end) {
        // All threads load so many rows at a time, a whole number of turns.
        const i32 rows = THREADS / CHUNKS;
        const i32 r = threadIdx.x / CHUNKS, column = threadIdx.x % CHUNKS * CHUNK;
        const bf16 *from = part.x + (row + r) * part.width + column;
        const i32 left = column < part.head_dim ? end - row - r : 0;
        to += place(r, column);
        if (part.aligned) {
            const u32 target = shared_address(to);
#pragma unroll
            for (i32 i = 0; i < COUNT / rows; i++) {
                const bool inside = i * rows < left;
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target + i * rows * BYTES),
                             "l"(inside ? from + i * rows * part.width : part.x), "r"(inside ? 16 : 0) : "memory");
            }
        } else {
#pragma unroll 1
            for (i32 i = 0; i < COUNT / rows * CHUNK; i++) {
                const i32 at = i / CHUNK * rows, e = i % CHUNK;
                const bool inside = at < left && column + e < part.head_dim;
                to[at * HD + e] = inside ? from[at * part.width + e] : 0;
            }
        }
    }

    // c [16, 16·PAIRS] += a · bᵀ over the i-th 16 columns, b being 16·PAIRS rows.
    template <int PAIRS>
    static __device__ __forceinline__ void add_scores(float (&c)[2 * PAIRS][4], const u32 (&a)[4], u32 b, i32 i) {
#pragma unroll
        for (i32 n = 0; n < PAIRS; n++) {
            u32 r[4];
            load_matrices(r, (b ^ i * 32) + n * DEPTH * BYTES);
            multiply_add(c[2 * n], a, r[0], r[2]);
            multiply_add(c[2 * n + 1], a, r[1], r[3]);
        }
    }

    // c [16, HD] += a · b, b being the i-th 16 rows.
    static __device__ __forceinline__ void add_rows(float (&c)[HD / 8][4], const u32 (&a)[4], u32 b, i32 i) {
#pragma unroll
        for (i32 n = 0; n < HD / DEPTH; n++) {
            u32 r[4];
            load_transposed(r, (b ^ n * 32) + i * DEPTH * BYTES);
            multiply_add(c[2 * n], a, r[0], r[1]);
            multiply_add(c[2 * n + 1], a, r[2], r[3]);
        }
    }

    // Stores 16 rows of a warp, of which the first is `row`; factor[i] is that of row lane / 4 + 8·i.
    static __device__ __forceinline__ void store(
        bf16 *all, const Part &part, const float (&c)[HD / 8][4], const float (&factor)[2], i32 row, i32 end
    ) {
        const i32 lane = threadIdx.x % LANES;
#pragma unroll
        for (i32 i = 0; i < 2; i++) {
            const i32 r = row + lane / 4 + 8 * i;
            u32 *to = (u32 *)(all + r * part.width + lane % 4 * 2);
            if (r >= end) continue;
#pragma unroll
            for (i32 n = 0; n < HD / 8; n++) {
                if (n * 8 + lane % 4 * 2 >= part.head_dim) continue;
                to[n * 4] = narrow_pair(c[n][2 * i] * factor[i], c[n][2 * i + 1] * factor[i]);
            }
        }
    }
};

// Who sees whom. All are rows of one sequence.
struct Mask {
    i32 window;

    __device__ __forceinline__ Mask(i32 window) : window(window > 0 ? window : 0x7fffffff) {}

    // Some of the queries sees some of the keys.
    __device__ __forceinline__ bool any(i32 query, i32 queries, i32 key, i32 keys) const {
        return key < query + queries && query - (key + keys - 1) < window;
    }

    // All of the queries see all of the keys.
    __device__ __forceinline__ bool all(i32 query, i32 queries, i32 key, i32 keys) const {
        return key + keys <= query + 1 && query + queries - 1 - key < window;
    }

    // −∞ where a query does not see a key. s [16, 8·N] are scores of 16 queries and keys from `query` and `key` on, or of
    // keys and queries if `KEYS_BY_ROWS`.
    template <bool KEYS_BY_ROWS, int N>
    __device__ __forceinline__ void hide(float (&s)[N][4], i32 query, i32 key) const {
        const i32 row = threadIdx.x % LANES / 4, column = threadIdx.x % 4 * 2;
        const i32 ahead = query - key + (KEYS_BY_ROWS ? column - row : row - column);
#pragma unroll
        for (i32 n = 0; n < N; n++) {
#pragma unroll
            for (i32 e = 0; e < 4; e++) {
                const i32 further = e / 2 * 8 - (n * 8 + e % 2);
                // A key ahead of the query is further behind than any window, since the difference has no sign.
                const u32 behind = KEYS_BY_ROWS ? ahead - further : ahead + further;
                if (behind >= (u32)window) s[n][e] = -INFINITE;
            }
        }
    }

    // The first key that the query sees, or one before it at a whole step.
    __device__ __forceinline__ i32 first_key(i32 query, i32 start, i32 step) const {
        const i32 hidden = query - start - (window - 1);
        return start + (hidden > 0 ? hidden / step * step : 0);
    }

    // After the last query that sees one of 64 keys.
    __device__ __forceinline__ i32 last_query(i32 key, i32 end) const {
        return end - key < window ? end : least(end, key + window + (TILE - 1));
    }
};
