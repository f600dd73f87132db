// bf16 and f16 without the CUDA headers: the conversions and the packed arithmetic of compute capability 8.0.
typedef unsigned short u16;
typedef unsigned u32;

// Eight conversions to a half and four pairs a value: out has 12 words a row.
extern "C" __global__ void narrow(u32 *out, const float *in, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float v = in[i], w = in[(i + 1) % n];
    u16 h;
    u32 *r = out + i * 12;
#define TO_HALF(K, OP) asm(OP " %0, %1;" : "=h"(h) : "f"(v)); r[K] = h;
    TO_HALF(0, "cvt.rn.bf16.f32")
    TO_HALF(1, "cvt.rz.bf16.f32")
    TO_HALF(2, "cvt.rn.relu.bf16.f32")
    TO_HALF(3, "cvt.rn.f16.f32")
    TO_HALF(4, "cvt.rz.f16.f32")
    TO_HALF(5, "cvt.rm.f16.f32")
    TO_HALF(6, "cvt.rp.f16.f32")
    TO_HALF(7, "cvt.rn.sat.f16.f32")
#define TO_PAIR(K, OP) asm(OP " %0, %1, %2;" : "=r"(r[K]) : "f"(w), "f"(v));
    TO_PAIR(8, "cvt.rn.bf16x2.f32")
    TO_PAIR(9, "cvt.rz.bf16x2.f32")
    TO_PAIR(10, "cvt.rn.f16x2.f32")
    TO_PAIR(11, "cvt.rn.relu.bf16x2.f32")
}

// Packed arithmetic of three pairs: out has 14 words a row.
extern "C" __global__ void packed(u32 *out, const u32 *in, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    u32 a = in[i], b = in[(i + 1) % n], c = in[(i + 2) % n];
    u32 *r = out + i * 14;
#define THREE(K, OP) asm(OP " %0, %1, %2, %3;" : "=r"(r[K]) : "r"(a), "r"(b), "r"(c));
#define TWO(K, OP) asm(OP " %0, %1, %2;" : "=r"(r[K]) : "r"(a), "r"(b));
#define ONE(K, OP) asm(OP " %0, %1;" : "=r"(r[K]) : "r"(a));
    THREE(0, "fma.rn.bf16x2")
    THREE(1, "fma.rn.relu.bf16x2")
    TWO(2, "min.bf16x2")
    TWO(3, "max.bf16x2")
    ONE(4, "neg.bf16x2")
    ONE(5, "abs.bf16x2")
    THREE(6, "fma.rn.f16x2")
    TWO(7, "add.f16x2")
    TWO(8, "sub.f16x2")
    TWO(9, "mul.f16x2")
    TWO(10, "max.f16x2")
    THREE(11, "fma.rn.sat.f16x2")
    TWO(12, "max.NaN.bf16x2")
    u16 ah = a, bh = b, ch = c, h;
    asm("fma.rn.bf16 %0, %1, %2, %3;" : "=h"(h) : "h"(ah), "h"(bh), "h"(ch));
    r[13] = h;
}

// Both ways through memory as the kernels do it: a bf16 is widened by a shift, f16 by an instruction.
extern "C" __global__ void widen(float *out, const u16 *in, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(in[i]));
    out[2 * i] = __int_as_float((u32)in[i] << 16);
    out[2 * i + 1] = f;
}
