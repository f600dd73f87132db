// Wrong programs, each with one mistake, and the right ones beside them: all take 256 or 512 floats in and out.
typedef unsigned u32;
typedef unsigned short u16;
#define KERNEL extern "C" __global__ void

KERNEL right(float *o, const float *x) {
    __shared__ float s[256];
    int t = threadIdx.x;
    s[t] = x[t];
    __syncthreads();
    o[t] = s[blockDim.x - 1 - t];
}

KERNEL no_barrier(float *o, const float *x) {
    __shared__ float s[256];
    int t = threadIdx.x;
    s[t] = x[t];
    o[t] = s[blockDim.x - 1 - t];
}

// The buffer is used again while others may still read it.
KERNEL no_barrier_before_reuse(float *o, const float *x) {
    __shared__ float s[256];
    int t = threadIdx.x;
    float sum = 0;
    for (int k = 0; k < 2; k++) {
        s[t] = x[t] + k;
        __syncthreads();
        sum += s[(t + 40) & 255];
    }
    o[t] = sum;
}

KERNEL right_reuse(float *o, const float *x) {
    __shared__ float s[256];
    int t = threadIdx.x;
    float sum = 0;
    for (int k = 0; k < 2; k++) {
        s[t] = x[t] + k;
        __syncthreads();
        sum += s[(t + 40) & 255];
        __syncthreads();
    }
    o[t] = sum;
}

KERNEL divergent_barrier(float *o, const float *x) {
    __shared__ float s[256];
    int t = threadIdx.x;
    s[t] = x[t];
    if (t < 100) {
        __syncthreads();
        s[t] += 1.f;
    }
    o[t] = s[t];
}

KERNEL exit_before_barrier(float *o, const float *x) {
    __shared__ float s[256];
    int t = threadIdx.x;
    if (x[t] > 200.f) return;
    s[t] = x[t];
    __syncthreads();
    o[t] = s[t ^ 1];
}

KERNEL shuffle_after_exit(float *o, const float *x) {
    int t = threadIdx.x;
    float v = x[t];
    if ((t & 31) >= 16) {
        o[t] = v;
        return;
    }
    o[t] = v + __shfl_xor_sync(0xffffffffu, v, 8);
}

KERNEL shuffle_outside_mask(float *o, const float *x) {
    int t = threadIdx.x;
    float v = x[t];
    if ((t & 31) < 16) v += __shfl_sync(0x0000ffffu, v, 20);
    o[t] = v;
}

// Lanes of one warp wait for each other at different places.
KERNEL shuffle_apart(float *o, const float *x) {
    int t = threadIdx.x;
    float v = x[t];
    if (x[t] > 16.f) v += __shfl_xor_sync(0xffffffffu, v, 1);
    else v -= __shfl_xor_sync(0xffffffffu, v, 2);
    o[t] = v;
}

KERNEL no_syncwarp(float *o, const float *x) {
    __shared__ float s[256];
    int t = threadIdx.x;
    s[t] = x[t];
    o[t] = s[t ^ 1];
}

KERNEL right_syncwarp(float *o, const float *x) {
    __shared__ float s[256];
    int t = threadIdx.x;
    s[t] = x[t];
    __syncwarp();
    o[t] = s[t ^ 1];
    __syncwarp();
    s[t ^ 1] = 0.f;
}

// The lower half exchanges after a synchronization of the upper half.
KERNEL syncwarp_of_others(float *o, const float *x) {
    __shared__ float s[256];
    int t = threadIdx.x, low = (t & 31) < 16;
    s[t] = x[t];
    if (!low) __syncwarp(0xffff0000u);
    o[t] = s[t ^ 1];
}

// A warp's synchronization orders nothing between warps.
KERNEL syncwarp_for_barrier(float *o, const float *x) {
    __shared__ float s[32];
    int t = threadIdx.x;
    if (t < 32) s[t] = x[t];
    __syncwarp();
    o[t] = s[t & 31];
}

KERNEL right_syncwarp_of_halves(float *o, const float *x) {
    __shared__ float s[256];
    int t = threadIdx.x;
    s[t] = x[t];
    if ((t & 31) < 16) __syncwarp(0x0000ffffu);
    else __syncwarp(0xffff0000u);
    o[t] = s[t ^ 1];
}

KERNEL shared_beyond(float *o, const float *x) {
    __shared__ float s[256];
    int t = threadIdx.x;
    s[t + 1] = x[t];
    __syncthreads();
    o[t] = s[t];
}

// From one array into the next.
KERNEL shared_into_neighbour(float *o, const float *x) {
    __shared__ float a[256];
    __shared__ float b[256];
    int t = threadIdx.x;
    a[t] = x[t];
    b[t] = x[t];
    __syncthreads();
    o[t] = a[t + (int)x[1]] + b[t + (int)x[1]];
}

KERNEL dynamic_beyond(float *o, const float *x) {
    extern __shared__ float d[];
    int t = threadIdx.x;
    d[t] = x[t];
    __syncthreads();
    o[t] = d[t ^ 1];
}

KERNEL shared_unwritten(float *o, const float *x) {
    __shared__ float s[256];
    int t = threadIdx.x;
    if (t != 17) s[t] = x[t];
    __syncthreads();
    o[t] = s[t];
}

KERNEL misaligned(float *o, const float *x) {
    int t = threadIdx.x;
    float4 v = *(const float4 *)(x + 4 * (t & 31) + 1);
    o[t] = v.x + v.w;
}

KERNEL global_beyond(float *o, const float *x) {
    int t = threadIdx.x;
    o[t] = x[t + 257];
}

KERNEL local_beyond(float *o, const float *x) {
    float own[4];
    int t = threadIdx.x, n = (int)x[t] / 64 + 2;
    for (int k = 0; k < n; k++) own[k] = x[k];
    o[t] = own[(int)x[t] & 1];
}

KERNEL null_pointer(float *o, const float *x) {
    float *p = (float *)(unsigned long long)x[0];
    p[threadIdx.x] = 1.f;
}

// One word for all blocks.
KERNEL blocks_add(float *o, const float *x) {
    if (threadIdx.x == 0) o[0] = o[0] + x[blockIdx.x];
}

KERNEL right_blocks_add(float *o, const float *x) {
    if (threadIdx.x == 0) atomicAdd(&o[0], x[blockIdx.x]);
}

KERNEL block_reads_other(float *o, const float *x) {
    int t = threadIdx.x;
    if (blockIdx.x == 0) o[t] = x[t];
    else o[256 + t] = o[t];
}

// Many blocks read what one of them then writes.
KERNEL block_overwrites(float *o, const float *x) {
    float v = o[1];
    if (blockIdx.x == 3 && threadIdx.x == 0) o[1] = x[1];
    else if (threadIdx.x == 0) o[2 + blockIdx.x] = v;
}

KERNEL threads_share_word(float *o, const float *x) {
    int t = threadIdx.x;
    o[t & ~1] = x[t];
}

// Halves of a word are written by different threads: no race.
KERNEL right_halves(float *o, const float *x) {
    u16 *half = (u16 *)o;
    half[threadIdx.x] = (u16)x[threadIdx.x];
}

// Without a fence the sums of other blocks need not be there.
KERNEL last_block_without_fence(float *o, const float *x) {
    __shared__ bool last;
    if (threadIdx.x == 0) {
        o[1 + blockIdx.x] = x[blockIdx.x];
        last = atomicAdd((u32 *)o + 100, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 1) {
        float sum = 0.f;
        for (int k = 0; k < gridDim.x; k++) sum += o[1 + k];
        o[0] = sum;
    }
}

#define COPY(TO, FROM)                                                                                      \
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"((u32)__cvta_generic_to_shared(TO)), "l"(FROM) \
                 : "memory")

KERNEL right_copy(float *o, const float *x) {
    __shared__ float s[256];
    int t = threadIdx.x;
    COPY(s + t, x + t);
    asm volatile("cp.async.commit_group;");
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    __syncthreads();
    o[t] = s[t ^ 33];
}

KERNEL copy_not_waited_for(float *o, const float *x) {
    __shared__ float s[256];
    int t = threadIdx.x;
    COPY(s + t, x + t);
    asm volatile("cp.async.commit_group;");
    __syncthreads();
    o[t] = s[t ^ 33];
}

KERNEL copy_without_barrier(float *o, const float *x) {
    __shared__ float s[256];
    int t = threadIdx.x;
    COPY(s + t, x + t);
    asm volatile("cp.async.wait_all;" ::: "memory");
    o[t] = s[t ^ 33];
}

KERNEL divides_by_zero(int *o, const float *x) {
    int t = threadIdx.x;
    o[t] = 100 / ((int)x[t] - 77);
}

KERNEL traps(float *o, const float *x) {
    if (x[threadIdx.x] == 40.f) asm volatile("trap;");
    o[threadIdx.x] = 0.f;
}

// Waits for a block that does not run at the same time.
KERNEL waits_for_a_block(float *o, const float *x) {
    volatile float *flag = o;
    if (blockIdx.x == 0) {
        while (*flag == 0.f) {}
    } else {
        *flag = x[1];
    }
}

// The consumer of a stream that has to wait for another.
KERNEL doubles(float *o, const float *x) {
    int t = blockIdx.x * blockDim.x + threadIdx.x;
    o[t] = 2.f * x[t];
}

// Who writes last, of the blocks and of the threads.
KERNEL blocks_number(float *o, const float *x) {
    if (threadIdx.x == 0) o[0] = x[blockIdx.x];
    if (blockIdx.x == 0) o[1] = x[threadIdx.x];
}
