// Rotary position embedding: the pair (i, i + hd/2) of each head turns by the angle position · inv_freq[i].

#include "number.cuh"

// x [rows, heads·2·half] in place; cosines and sines [positions, half]. `direction` is 1, or −1 to turn back.
extern "C" __global__ void rope(
    bf16 *x, const i32 *positions, const float *cosines, const float *sines, float direction, i32 heads, i32 half, i64 pairs
) {
    const i64 pair = thread_index();
    if (pair >= pairs) return;
    const i32 i = pair % half;
    const i64 head = pair / half;
    const i64 angle = (i64)positions[head / heads] * half + i;
    const float c = cosines[angle], s = __fmul_rn(direction, sines[angle]);
    bf16 *first = x + head * 2 * half + i;
    const float a = widen(first[0]), b = widen(first[half]);
    // Rounded product by product, as the CPU and PyTorch do.
    first[0] = narrow(__fsub_rn(__fmul_rn(a, c), __fmul_rn(b, s)));
    first[half] = narrow(__fadd_rn(__fmul_rn(b, c), __fmul_rn(a, s)));
}
