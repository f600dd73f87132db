// C[M, N] = A[M, K] B[N, K]^T in bf16 with f32 accumulation: tiles of 16 x 8 by one warp, copied to shared memory in
// the background, two stages deep. M, N, K are multiples of 16.
typedef unsigned short bf16;
typedef unsigned u32;

__device__ u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }

__device__ void copy_16(void *to, const void *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

extern "C" __global__ void product(float *c, const bf16 *a, const bf16 *b, int n, int k) {
    __shared__ __align__(16) bf16 tile_a[2][16 * 16], tile_b[2][16 * 16];
    int lane = threadIdx.x, row0 = blockIdx.y * 16, col0 = blockIdx.x * 8;
    const bf16 *from_a = a + (row0 + lane / 2) * k + lane % 2 * 8;
    const bf16 *from_b = b + (col0 + lane / 2) * k + lane % 2 * 8;
    float d[4] = {0.f, 0.f, 0.f, 0.f};
    copy_16(&tile_a[0][lane * 8], from_a);
    if (lane < 16) copy_16(&tile_b[0][lane * 8], from_b);
    asm volatile("cp.async.commit_group;");
    for (int at = 0, stage = 0; at < k; at += 16, stage ^= 1) {
        if (at + 16 < k) {
            copy_16(&tile_a[stage ^ 1][lane * 8], from_a + at + 16);
            if (lane < 16) copy_16(&tile_b[stage ^ 1][lane * 8], from_b + at + 16);
        }
        asm volatile("cp.async.commit_group;");
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncwarp();
        u32 fa[4], fb[2];
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(fa[0]), "=r"(fa[1]), "=r"(fa[2]), "=r"(fa[3])
                     : "r"(shared_address(&tile_a[stage][(lane % 16) * 16 + lane / 16 * 8])));
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                     : "=r"(fb[0]), "=r"(fb[1])
                     : "r"(shared_address(&tile_b[stage][(lane % 8) * 16 + lane / 8 % 2 * 8])));
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                     "{%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[0]), "r"(fb[1]));
        __syncwarp();
    }
    float *to = c + (row0 + lane / 4) * n + col0 + lane % 4 * 2;
    to[0] = d[0];
    to[1] = d[1];
    to[8 * n] = d[2];
    to[8 * n + 1] = d[3];
}

// One 16 x 8 x 16 product of f16, B given as [K, N] and transposed by ldmatrix.
extern "C" __global__ void transposed(float *c, const bf16 *a, const bf16 *b) {
    __shared__ __align__(16) bf16 tile_a[16 * 16], tile_b[16 * 8];
    int lane = threadIdx.x;
    for (int i = lane; i < 256; i += 32) tile_a[i] = a[i];
    for (int i = lane; i < 128; i += 32) tile_b[i] = b[i];
    __syncwarp();
    u32 fa[4], fb[2];
    float d[4] = {1.f, 2.f, 3.f, 4.f};
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(fa[0]), "=r"(fa[1]), "=r"(fa[2]), "=r"(fa[3])
                 : "r"(shared_address(&tile_a[(lane % 16) * 16 + lane / 16 * 8])));
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(fb[0]), "=r"(fb[1])
                 : "r"(shared_address(&tile_b[(lane % 16) * 8])));
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[0]), "r"(fb[1]));
    float *to = c + lane / 4 * 8 + lane % 4 * 2;
    to[0] = d[0];
    to[1] = d[1];
    to[64] = d[2];
    to[65] = d[3];
}
