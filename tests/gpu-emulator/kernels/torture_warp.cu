// What the lanes of a warp do together.
typedef unsigned u32;

extern "C" __global__ void exchange(u32 *out, const int *in) {
    int t = threadIdx.x, v = in[t];
    u32 *r = out + t * 16;
    r[0] = __ballot_sync(~0u, v & 1);
    r[1] = __any_sync(~0u, v == 5);
    r[2] = __all_sync(~0u, v < 1000);
    r[3] = __reduce_add_sync(~0u, (u32)v);
    r[4] = __shfl_down_sync(~0u, v, 3);
    r[5] = __shfl_up_sync(~0u, v, 5);
    r[6] = __shfl_sync(~0u, v, 2, 8);
    r[7] = __match_any_sync(~0u, v & 3);
    r[8] = __shfl_xor_sync(~0u, v, 21);
    r[9] = __reduce_min_sync(~0u, v - 10);
    r[10] = __reduce_max_sync(~0u, (u32)v);
    r[11] = __reduce_xor_sync(~0u, (u32)v);
    r[12] = __activemask();
    r[13] = __uni_sync(~0u, v & 1);
    r[14] = __shfl_down_sync(~0u, v, 6, 16);
    // The two halves of the warp sum on their own, in both branches of divergent code.
    u32 half = t < 16 ? 0x0000ffffu : 0xffff0000u;
    if (t < 16) r[15] = __reduce_add_sync(half, 3u * v);
    else r[15] = __reduce_add_sync(half, 5u * v);
}

// Lanes that loop a different number of times, leave early, and meet again.
extern "C" __global__ void diverge(u32 *out, const int *in) {
    int t = threadIdx.x, sum = 0;
    for (int k = 0; k < in[t]; k++) {
        if (k % 3 == t % 3) continue;
        if (k == 17) break;
        sum += k * (t + 1);
    }
    __syncwarp();
    out[t] = __shfl_xor_sync(~0u, sum, 1);
    if (t >= 24) return;
    out[t] += __shfl_xor_sync(0x00ffffffu, sum, 2);
}

// All atomics on integers, on global and shared words; blocks of 64.
extern "C" __global__ void atomics(u32 *out, const u32 *in) {
    __shared__ u32 word[4];
    int t = threadIdx.x;
    if (t < 4) word[t] = t == 1 ? ~0u : 0;
    __syncthreads();
    u32 v = in[blockIdx.x * blockDim.x + t];
    atomicAdd(&word[0], v);
    atomicMin(&word[1], v);
    atomicMax((int *)&word[2], (int)v);
    atomicXor(&word[3], v);
    __syncthreads();
    if (t == 0) {
        atomicAdd(&out[0], word[0]);
        atomicMin(&out[1], word[1]);
        atomicMax(&out[2], word[2]);
        atomicXor(&out[3], word[3]);
    }
    atomicOr(&out[4], v & 0xff);
    atomicAnd(&out[5], v | 0xff00);
    atomicInc(&out[6], 99);
    atomicDec(&out[7], 49);
    u32 seen = *(volatile u32 *)&out[8 + blockIdx.x], expected;
    do {
        expected = seen;
        seen = atomicCAS(&out[8 + blockIdx.x], expected, expected + v);
    } while (seen != expected);
    atomicAdd((float *)&out[16], (float)(v & 15));
    atomicAdd((unsigned long long *)&out[18], (unsigned long long)v << 20);
    atomicExch(&out[20], 7);
}
