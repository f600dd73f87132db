// Every space and width of memory, calls of functions, and parameters by value.
typedef unsigned u32;
typedef unsigned short u16;
struct __align__(16) Four { float x, y, z, w; };
struct Shape { int rows; long long stride; u16 flags[3]; };

__constant__ float TABLE[5] = {1.f, 10.f, 100.f, 1000.f, 10000.f};
__device__ u32 COUNTER = 5;

__device__ __noinline__ float polynomial(float x, const float *c, int n) {
    float r = 0.f;
    for (int i = 0; i < n; i++) r = r * x + c[i];
    return r;
}

extern "C" __global__ void spaces(float *out, const Four *in, const signed char *bytes, Shape shape, int n) {
    extern __shared__ float dynamic[];
    __shared__ u16 still[64];
    int t = threadIdx.x;
    float own[8];
    for (int k = 0; k < 8; k++) own[(k + t) & 7] = (float)k;
    Four v = in[t];
    dynamic[t] = v.x + bytes[t];
    still[t] = (u16)(shape.flags[1] + t);
    __syncthreads();
    int back = blockDim.x - 1 - t;
    float *row = out + shape.stride * t;
    row[0] = dynamic[back];
    row[1] = still[back];
    row[2] = own[t & 7];
    row[3] = TABLE[t % 5];
    row[4] = polynomial(v.y, own, 4);
    row[5] = polynomial(v.z, TABLE, 5);
    row[6] = shape.rows + n;
    float *where = t & 1 ? dynamic + t : (float *)&in[t].w;
    row[7] = *where;
    ((double *)row)[4] = v.w * 3.0;
    ((Four *)row)[3] = Four{v.w, v.z, v.y, v.x};
    if (t == 0) row[11] = COUNTER + 1;
    else row[11] = 0.f;
}

// Instructions of memory that C++ does not write by itself.
extern "C" __global__ void cached(float *out, const float *in) {
    int t = threadIdx.x;
    float a, b, c, d;
    asm("ld.global.nc.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(a), "=f"(b), "=f"(c), "=f"(d) : "l"(in + 4 * t));
    asm volatile("st.global.cs.v2.f32 [%0], {%1, %2};" ::"l"(out + 4 * t), "f"(d), "f"(c) : "memory");
    asm volatile("st.relaxed.gpu.global.f32 [%0 + 8], %1;" ::"l"(out + 4 * t), "f"(b) : "memory");
    asm volatile("st.volatile.global.f32 [%0 + 12], %1;" ::"l"(out + 4 * t), "f"(a) : "memory");
}

// The sum of all blocks, made by the block that comes last: orders blocks by a fence and an atomic.
extern "C" __global__ void last_block(float *out, float *partial, u32 *arrived, const float *in) {
    __shared__ bool last;
    int t = threadIdx.x;
    if (t == 0) {
        float s = 0.f;
        for (int k = 0; k < 32; k++) s += in[blockIdx.x * 32 + k];
        partial[blockIdx.x] = s;
        __threadfence();
        last = atomicAdd(arrived, 1u) == gridDim.x - 1;
        __threadfence();
    }
    __syncthreads();
    if (last && t == 1) {
        float s = 0.f;
        for (int k = 0; k < gridDim.x; k++) s += partial[k];
        *out = s;
    }
}
