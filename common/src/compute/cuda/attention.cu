// Causal attention with grouped queries and an optional sliding window, tile by tile with a running softmax, and its
// gradient from recomputed probabilities (Dao et al., 2022, "FlashAttention", algorithms 1 and 4; Dao, 2023,
// "FlashAttention-2", for the order of loops). The formulas are those of common/src/compute/cpu/attention.
//
// q, out and their gradients are [rows, heads·head_dim], k, v and theirs [rows, kv_heads·head_dim], lse and delta
// [rows, heads]. A block of four warps takes 64 rows of one sequence and one head; a warp takes 16 of them, by mma.sync
// m16n8k16. Probabilities and their gradients are rounded to bf16 where they are operands, sums are f32. Each output is
// summed by one thread in an order that depends on the positions in the sequence only.

#include "attention.cuh"

// out = softmax(scale·q·kᵀ)·v; lse is the logarithm of each softmax's denominator.
template <int HD>
static __device__ __forceinline__ void forward(
    const bf16 *q, const bf16 *k, const bf16 *v, const Tile *tiles, const Shape &shape, bf16 *out, float *lse
) {
    typedef Rows<HD> Rows;
    __shared__ __align__(256) bf16 k_rows[TILE * HD], v_rows[TILE * HD];
    const Tile tile = tiles[blockIdx.y];
    const i32 head = blockIdx.x, kv_head = head / (shape.heads / shape.kv_heads), lane = threadIdx.x % LANES;
    const i32 row = tile.row + threadIdx.x / LANES * DEPTH;
    const Part q_part(q, shape.heads, head, shape.head_dim);
    const Part k_part(k, shape.kv_heads, kv_head, shape.head_dim), v_part(v, shape.kv_heads, kv_head, shape.head_dim);
    const Mask mask(shape.window);
    const u32 k_at = Rows::address(k_rows), v_at = Rows::address(v_rows);
    i32 key = mask.first_key(tile.row, tile.start, TILE);

    // Queries pass through the room of the values into registers.
    Rows::template load<TILE>(v_rows, q_part, tile.row, tile.end);
    Rows::template load<TILE>(k_rows, k_part, key, tile.end);
    arrive();
    u32 query[HD / DEPTH][4];
#pragma unroll
    for (i32 i = 0; i < HD / DEPTH; i++) load_matrices(query[i], (v_at ^ i * 32) + (row - tile.row) * Rows::BYTES);
    __syncthreads();

    const float scale = shape.scale * LOG2_E;
    float sums[HD / 8][4] = {}, max[2] = {-INFINITE, -INFINITE}, total[2] = {0, 0};
    for (; key <= tile.row; key += TILE) {
        // Values arrive while scores are computed, the next keys while values are summed.
        Rows::template load<TILE>(v_rows, v_part, key, tile.end);
        float s[TILE / 8][4] = {};
#pragma unroll
        for (i32 i = 0; i < HD / DEPTH; i++) Rows::template add_scores<TILE / DEPTH>(s, query[i], k_at, i);
        if (!mask.all(row, DEPTH, key, TILE)) mask.hide<false>(s, row, key);
#pragma unroll
        for (i32 i = 0; i < 2; i++) {
            float largest = max[i];
#pragma unroll
            for (i32 n = 0; n < TILE / 8; n++) largest = fmaxf(largest, fmaxf(s[n][2 * i], s[n][2 * i + 1]));
            largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
            // A row that has seen nothing yet has no maximum.
            const float reference = largest == -INFINITE ? 0 : largest * scale;
            const float factor = power_of_2(fmaf(max[i], scale, -reference));
            max[i] = largest;
            float sum = 0;
#pragma unroll
            for (i32 n = 0; n < TILE / 8; n++) {
                s[n][2 * i] = power_of_2(fmaf(s[n][2 * i], scale, -reference));
                s[n][2 * i + 1] = power_of_2(fmaf(s[n][2 * i + 1], scale, -reference));
                sum += s[n][2 * i] + s[n][2 * i + 1];
            }
            total[i] = total[i] * factor + sum;
#pragma unroll
            for (i32 n = 0; n < HD / 8; n++) {
                sums[n][2 * i] *= factor;
                sums[n][2 * i + 1] *= factor;
            }
        }
        arrive();
        if (key < tile.row) Rows::template load<TILE>(k_rows, k_part, key + TILE, tile.end);
#pragma unroll
        for (i32 i = 0; i < TILE / DEPTH; i++) {
            u32 p[4];
            pack(p, s[2 * i], s[2 * i + 1]);
            Rows::add_rows(sums, p, v_at, i);
        }
        arrive();
    }

    float factor[2];
#pragma unroll
    for (i32 i = 0; i < 2; i++) {
        total[i] += __shfl_xor_sync(~0u, total[i], 1);
        total[i] += __shfl_xor_sync(~0u, total[i], 2);
        factor[i] = 1.0f / total[i];
        const i32 r = row + lane / 4 + 8 * i;
        if (lane % 4 == 0 && r < tile.end) {
            lse[(i64)r * shape.heads + head] = fmaf(max[i], shape.scale, log_2(total[i]) * LN_2);
        }
    }
    Rows::store(out + (i64)head * shape.head_dim, q_part, sums, factor, row, tile.end);
}

// delta = Σ out∘dout of each head of each row, a warp each; `len` of them.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_delta(const bf16 *out, const bf16 *dout, i32 head_dim, i64 len, float *delta) {
    const i64 at = (i64)blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES;
    if (at >= len) return;
    const u32 *x = (const u32 *)(out + at * head_dim), *y = (const u32 *)(dout + at * head_dim);
    const i32 lane = threadIdx.x % LANES;
    float sum = 0;
    for (i32 i = lane; i < head_dim / 2; i += LANES) {
        sum = fmaf(widen(x[i]), widen(y[i]), sum);
        sum = fmaf(widen(x[i] >> 16), widen(y[i] >> 16), sum);
    }
    sum = over_warp<Sum>(sum);
    if (lane == 0) delta[at] = sum;
}

// dq = scale·Σ dS·k over keys, with P = e^(scale·q·kᵀ − lse) and dS = P∘(dout·vᵀ − delta).
template <int HD>
static __device__ __forceinline__ void gradient_of_queries(
    const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *dout, const float *lse, const float *delta, const Tile *tiles,
    const Shape &shape, bf16 *dq
) {
    typedef Rows<HD> Rows;
    // Keys and values of a step, and of the next.
    __shared__ __align__(256) bf16 rows[2][2][STEP * HD];
    const Tile tile = tiles[blockIdx.y];
    const i32 head = blockIdx.x, kv_head = head / (shape.heads / shape.kv_heads), lane = threadIdx.x % LANES;
    const i32 row = tile.row + threadIdx.x / LANES * DEPTH;
    const Part q_part(q, shape.heads, head, shape.head_dim), dout_part(dout, shape.heads, head, shape.head_dim);
    const Part k_part(k, shape.kv_heads, kv_head, shape.head_dim), v_part(v, shape.kv_heads, kv_head, shape.head_dim);
    const Mask mask(shape.window);
    const u32 rows_at = Rows::address(rows[0][0]);

    // Queries and dout pass through the same room into registers.
    Rows::template load<TILE>(rows[0][0], q_part, tile.row, tile.end);
    Rows::template load<TILE>(rows[1][0], dout_part, tile.row, tile.end);
    arrive();
    u32 query[HD / DEPTH][4], d_out[HD / DEPTH][4];
#pragma unroll
    for (i32 i = 0; i < HD / DEPTH; i++) {
        load_matrices(query[i], (rows_at ^ i * 32) + (row - tile.row) * Rows::BYTES);
        load_matrices(d_out[i], (rows_at ^ i * 32) + (row - tile.row + TILE) * Rows::BYTES);
    }
    __syncthreads();

    const float scale = shape.scale * LOG2_E;
    float reference[2], d[2];
#pragma unroll
    for (i32 i = 0; i < 2; i++) {
        const i32 r = row + lane / 4 + 8 * i;
        reference[i] = r < tile.end ? lse[(i64)r * shape.heads + head] * LOG2_E : 0;
        d[i] = r < tile.end ? delta[(i64)r * shape.heads + head] : 0;
    }
    float sums[HD / 8][4] = {};
    const i32 first = mask.first_key(tile.row, tile.start, STEP), last = least(tile.end, tile.row + TILE);
    Rows::template load<STEP>(rows[0][0], k_part, first, tile.end);
    Rows::template load<STEP>(rows[0][1], v_part, first, tile.end);
    i32 stage = 0;
    for (i32 key = first; key < last; key += STEP, stage ^= 1) {
        arrive();
        if (key + STEP < last) {
            Rows::template load<STEP>(rows[stage ^ 1][0], k_part, key + STEP, tile.end);
            Rows::template load<STEP>(rows[stage ^ 1][1], v_part, key + STEP, tile.end);
        }
        if (!mask.any(row, DEPTH, key, STEP)) continue;
        const u32 k_at = rows_at + stage * 2 * STEP * Rows::BYTES, v_at = k_at + STEP * Rows::BYTES;
        float s[STEP / 8][4] = {}, dp[STEP / 8][4] = {};
#pragma unroll
        for (i32 i = 0; i < HD / DEPTH; i++) Rows::template add_scores<STEP / DEPTH>(s, query[i], k_at, i);
#pragma unroll
        for (i32 i = 0; i < HD / DEPTH; i++) Rows::template add_scores<STEP / DEPTH>(dp, d_out[i], v_at, i);
        if (!mask.all(row, DEPTH, key, STEP)) mask.hide<false>(s, row, key);
#pragma unroll
        for (i32 n = 0; n < STEP / 8; n++) {
#pragma unroll
            for (i32 e = 0; e < 4; e++) {
                const float p = power_of_2(fmaf(s[n][e], scale, -reference[e / 2]));
                s[n][e] = p * (dp[n][e] - d[e / 2]);
            }
        }
#pragma unroll
        for (i32 i = 0; i < STEP / DEPTH; i++) {
            u32 ds[4];
            pack(ds, s[2 * i], s[2 * i + 1]);
            Rows::add_rows(sums, ds, k_at, i);
        }
    }
    const float factor[2] = {shape.scale, shape.scale};
    Rows::store(dq + (i64)head * shape.head_dim, q_part, sums, factor, row, tile.end);
}

// dk = scale·Σ dSᵀ·q and dv = Σ Pᵀ·dout over the heads that share a head of keys, and over queries.
template <int HD>
static __device__ __forceinline__ void gradient_of_keys(
    const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *dout, const float *lse, const float *delta, const Tile *tiles,
    const Shape &shape, bf16 *dk, bf16 *dv
) {
    typedef Rows<HD> Rows;
    __shared__ __align__(256) bf16 k_rows[TILE * HD], v_rows[TILE * HD], q_rows[STEP * HD], dout_rows[STEP * HD];
    // The first keys of a sequence are seen by most queries: tiles that are the last for queries are the first here.
    const Tile tile = tiles[gridDim.y - 1 - blockIdx.y];
    const i32 kv_head = blockIdx.x, group = shape.heads / shape.kv_heads, lane = threadIdx.x % LANES;
    const i32 row = tile.row + threadIdx.x / LANES * DEPTH;
    const Part k_part(k, shape.kv_heads, kv_head, shape.head_dim), v_part(v, shape.kv_heads, kv_head, shape.head_dim);
    const Mask mask(shape.window);
    const u32 k_at = Rows::address(k_rows) + (row - tile.row) * Rows::BYTES;
    const u32 v_at = Rows::address(v_rows) + (row - tile.row) * Rows::BYTES;
    const u32 q_at = Rows::address(q_rows), dout_at = Rows::address(dout_rows);
    const i32 last = mask.last_query(tile.row, tile.end);
    const float scale = shape.scale * LOG2_E;

    Rows::template load<TILE>(k_rows, k_part, tile.row, tile.end);
    Rows::template load<TILE>(v_rows, v_part, tile.row, tile.end);
    i32 head = kv_head * group, query = tile.row;
    Rows::template load<STEP>(q_rows, Part(q, shape.heads, head, shape.head_dim), query, tile.end);
    float dk_sums[HD / 8][4] = {}, dv_sums[HD / 8][4] = {};
    while (head < (kv_head + 1) * group) {
        // A lane has those of one query; the others get them by shuffles.
        const i64 of_lane = (i64)(query + lane) * shape.heads + head;
        const float reference = query + lane < tile.end ? lse[of_lane] * LOG2_E : 0;
        const float d = query + lane < tile.end ? delta[of_lane] : 0;
        const bool any = mask.any(query, STEP, row, DEPTH);
        arrive();
        // dout arrives while scores are computed, the next queries while dv is summed.
        Rows::template load<STEP>(dout_rows, Part(dout, shape.heads, head, shape.head_dim), query, tile.end);
        float s[STEP / 8][4] = {};
        u32 p[STEP / DEPTH][4];
        if (any) {
#pragma unroll
            for (i32 i = 0; i < HD / DEPTH; i++) {
                u32 key[4];
                load_matrices(key, k_at ^ i * 32);
                Rows::template add_scores<STEP / DEPTH>(s, key, q_at, i);
            }
            if (!mask.all(query, STEP, row, DEPTH)) mask.hide<true>(s, query, row);
#pragma unroll
            for (i32 n = 0; n < STEP / 8; n++) {
#pragma unroll
                for (i32 e = 0; e < 2; e++) {
                    const float of_column = __shfl_sync(~0u, reference, n * 8 + lane % 4 * 2 + e);
                    s[n][e] = power_of_2(fmaf(s[n][e], scale, -of_column));
                    s[n][e + 2] = power_of_2(fmaf(s[n][e + 2], scale, -of_column));
                }
            }
#pragma unroll
            for (i32 i = 0; i < STEP / DEPTH; i++) pack(p[i], s[2 * i], s[2 * i + 1]);
        }
        arrive();
        if (any) {
            float dp[STEP / 8][4] = {};
#pragma unroll
            for (i32 i = 0; i < HD / DEPTH; i++) {
                u32 value[4];
                load_matrices(value, v_at ^ i * 32);
                Rows::template add_scores<STEP / DEPTH>(dp, value, dout_at, i);
            }
#pragma unroll
            for (i32 n = 0; n < STEP / 8; n++) {
#pragma unroll
                for (i32 e = 0; e < 2; e++) {
                    const float of_column = __shfl_sync(~0u, d, n * 8 + lane % 4 * 2 + e);
                    s[n][e] *= dp[n][e] - of_column;
                    s[n][e + 2] *= dp[n][e + 2] - of_column;
                }
            }
#pragma unroll
            for (i32 i = 0; i < STEP / DEPTH; i++) {
                u32 ds[4];
                pack(ds, s[2 * i], s[2 * i + 1]);
                Rows::add_rows(dk_sums, ds, q_at, i);
            }
        }
        __syncthreads();
        query += STEP;
        if (query >= last) {
            query = tile.row;
            head++;
        }
        if (head < (kv_head + 1) * group) {
            Rows::template load<STEP>(q_rows, Part(q, shape.heads, head, shape.head_dim), query, tile.end);
        }
        if (any) {
#pragma unroll
            for (i32 i = 0; i < STEP / DEPTH; i++) Rows::add_rows(dv_sums, p[i], dout_at, i);
        }
    }
    const float dk_factor[2] = {shape.scale, shape.scale}, dv_factor[2] = {1, 1};
    Rows::store(dk + (i64)kv_head * shape.head_dim, k_part, dk_sums, dk_factor, row, tile.end);
    Rows::store(dv + (i64)kv_head * shape.head_dim, v_part, dv_sums, dv_factor, row, tile.end);
}

// Heads of up to HD dimensions. Grids are [heads, tiles], for keys [kv_heads, tiles].
#define KERNELS(HD)                                                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_forward_##HD(                                          \
        const bf16 *q, const bf16 *k, const bf16 *v, const Tile *tiles, Shape shape, bf16 *out, float *lse                 \
    ) {                                                                                                                    \
        forward<HD>(q, k, v, tiles, shape, out, lse);                                                                      \
    }                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_q_##HD(                                       \
        const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *dout, const float *lse, const float *delta,               \
        const Tile *tiles, Shape shape, bf16 *dq                                                                           \
    ) {                                                                                                                    \
        gradient_of_queries<HD>(q, k, v, dout, lse, delta, tiles, shape, dq);                                              \
    }                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_kv_##HD(                                      \
        const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *dout, const float *lse, const float *delta,               \
        const Tile *tiles, Shape shape, bf16 *dk, bf16 *dv                                                                 \
    ) {                                                                                                                    \
        gradient_of_keys<HD>(q, k, v, dout, lse, delta, tiles, shape, dk, dv);                                             \
    }

KERNELS(32)
KERNELS(64)
KERNELS(128)
