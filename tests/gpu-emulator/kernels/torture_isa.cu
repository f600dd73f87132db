// Single instructions with operands from memory, for those that C++ seldom or never becomes.
typedef unsigned u32;
typedef unsigned long long u64;

#define INDEX(W)                                                       \
    int i = blockIdx.x * blockDim.x + threadIdx.x;                     \
    if (i >= n) return;                                                \
    u32 a = in[i], b = in[(i + 1) % n], c = in[(i + 2) % n]; (void)c;  \
    u32 *r = out + i * W;

extern "C" __global__ void bits(u32 *out, const u32 *in, int n) {
    INDEX(21)
#define TWO(K, OP) asm(OP " %0, %1, %2;" : "=r"(r[K]) : "r"(a), "r"(b));
#define THREE(K, OP) asm(OP " %0, %1, %2, %3;" : "=r"(r[K]) : "r"(a), "r"(b), "r"(c));
#define FIELD(K, OP) asm(OP " %0, %1, %2, %3;" : "=r"(r[K]) : "r"(a), "r"(b & 63), "r"(c & 63));
    FIELD(0, "bfe.u32")
    FIELD(1, "bfe.s32")
    asm("bfi.b32 %0, %1, %2, %3, %4;" : "=r"(r[2]) : "r"(a), "r"(b), "r"(c & 63), "r"((c >> 6) & 63));
    asm("lop3.b32 %0, %1, %2, %3, 0xca;" : "=r"(r[3]) : "r"(a), "r"(b), "r"(c));
    asm("lop3.b32 %0, %1, %2, %3, 0x96;" : "=r"(r[4]) : "r"(a), "r"(b), "r"(c));
    THREE(5, "prmt.b32")
    THREE(6, "prmt.b32.f4e")
    THREE(7, "prmt.b32.rc16")
    FIELD(8, "shf.l.clamp.b32")
    FIELD(9, "shf.r.wrap.b32")
    asm("shl.b32 %0, %1, %2;" : "=r"(r[10]) : "r"(a), "r"(b & 63));
    asm("shr.s32 %0, %1, %2;" : "=r"(r[11]) : "r"(a), "r"(b & 63));
    asm("shr.u32 %0, %1, %2;" : "=r"(r[12]) : "r"(a), "r"(b & 63));
    asm("bfind.u32 %0, %1;" : "=r"(r[13]) : "r"(a));
    asm("bfind.s32 %0, %1;" : "=r"(r[14]) : "r"(a));
    asm("bfind.shiftamt.s32 %0, %1;" : "=r"(r[15]) : "r"(a));
    asm("{.reg .pred p, q; setp.lt.and.s32 p|q, %1, %2, 1; selp.u32 %0, 1, 0, p; @q add.u32 %0, %0, 2;}"
        : "=r"(r[16]) : "r"(a), "r"(b));
    asm("set.le.u32.u32 %0, %1, %2;" : "=r"(r[17]) : "r"(a), "r"(b));
    asm("{.reg .pred p; setp.gt.u32 p, %1, %2; setp.lt.xor.s32 p, %1, %3, p; selp.b32 %0, %2, %3, p;}"
        : "=r"(r[18]) : "r"(a), "r"(b), "r"(c));
    asm("sad.s32 %0, %1, %2, %3;" : "=r"(r[19]) : "r"(a), "r"(b), "r"(c));
    asm("{.reg .b16 low, high; mov.u16 low, -3; mov.u16 high, 5; mov.b32 %0, {low, high};}" : "=r"(r[20]));
}

// A sum, a difference and a product of 96 bits by the carry: out has 12 words a row.
extern "C" __global__ void carry(u32 *out, const u32 *in, int n) {
    INDEX(12)
    asm("add.cc.u32 %0, %3, %4; addc.cc.u32 %1, %4, %5; addc.u32 %2, %5, %3;"
        : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]) : "r"(a), "r"(b), "r"(c));
    asm("sub.cc.u32 %0, %3, %4; subc.cc.u32 %1, %4, %5; subc.u32 %2, %5, %3;"
        : "=r"(r[3]), "=r"(r[4]), "=r"(r[5]) : "r"(a), "r"(b), "r"(c));
    asm("{.reg .u32 low, mid, top; mul.lo.u32 low, %3, %4; mul.hi.u32 mid, %3, %4; mad.lo.cc.u32 mid, %3, %5, mid; "
        "madc.hi.u32 top, %3, %5, 0; mov.u32 %0, low; mov.u32 %1, mid; mov.u32 %2, top;}"
        : "=r"(r[6]), "=r"(r[7]), "=r"(r[8]) : "r"(a), "r"(b), "r"(c));
    u64 x = ((u64)a << 32) | b, y = ((u64)b << 32) | c, z;
    asm("{.reg .u64 t; mad.lo.u64 t, %1, %2, %1; mul.hi.u64 %0, t, %2;}" : "=l"(z) : "l"(x), "l"(y));
    r[9] = (u32)z;
    r[10] = (u32)(z >> 32);
    asm("mad.hi.s32 %0, %1, %2, %3;" : "=r"(r[11]) : "r"(a), "r"(b), "r"(c));
}

// Roundings of f32: every operation in every direction. Rows of 24 words.
extern "C" __global__ void rounding(u32 *out, const u32 *in, int n) {
    INDEX(24)
    float x = __int_as_float(a), y = __int_as_float(b), z = __int_as_float(c), f;
#define F2(K, OP) asm(OP " %0, %1, %2;" : "=f"(f) : "f"(x), "f"(y)); r[K] = __float_as_int(f);
#define F3(K, OP) asm(OP " %0, %1, %2, %3;" : "=f"(f) : "f"(x), "f"(y), "f"(z)); r[K] = __float_as_int(f);
#define ALL2(K, OP) F2(K, OP ".rn.f32") F2(K + 1, OP ".rz.f32") F2(K + 2, OP ".rm.f32") F2(K + 3, OP ".rp.f32")
    ALL2(0, "add")
    ALL2(4, "mul")
    ALL2(8, "div")
    F3(12, "fma.rn.f32") F3(13, "fma.rz.f32") F3(14, "fma.rm.f32") F3(15, "fma.rp.f32")
    F2(16, "add.ftz.f32") F2(17, "mul.rn.ftz.f32") F3(18, "fma.rn.sat.f32") F2(19, "sub.rm.f32")
    F2(20, "min.f32") F2(21, "max.f32") F2(22, "max.NaN.f32")
    asm("sqrt.rp.f32 %0, %1;" : "=f"(f) : "f"(x)); r[23] = __float_as_int(f);
}

// Conversions between integers and f32. Rows of 20 words, the last eight two a value.
extern "C" __global__ void convert(u32 *out, const u32 *in, int n) {
    INDEX(20)
    float x = __int_as_float(a), f;
#define TO_INT(K, OP) asm(OP " %0, %1;" : "=r"(r[K]) : "f"(x));
#define TO_FLOAT(K, OP) asm(OP " %0, %1;" : "=f"(f) : "r"(b)); r[K] = __float_as_int(f);
#define TO_LONG(K, OP) asm("{.reg .b64 t; " OP " t, %2; mov.b64 {%0, %1}, t;}" : "=r"(r[K]), "=r"(r[K + 1]) : "f"(x));
    TO_INT(0, "cvt.rni.s32.f32") TO_INT(1, "cvt.rzi.s32.f32") TO_INT(2, "cvt.rmi.s32.f32") TO_INT(3, "cvt.rpi.s32.f32")
    TO_INT(4, "cvt.rzi.u32.f32") TO_INT(5, "cvt.rni.ftz.u32.f32")
    TO_FLOAT(6, "cvt.rn.f32.s32") TO_FLOAT(7, "cvt.rz.f32.s32") TO_FLOAT(8, "cvt.rm.f32.u32") TO_FLOAT(9, "cvt.rp.f32.u32")
    asm("{.reg .u16 t; cvt.rzi.u8.f32 t, %1; cvt.u32.u8 %0, t;}" : "=r"(r[10]) : "f"(x));
    asm("{.reg .s16 t; cvt.rni.s8.f32 t, %1; cvt.s32.s8 %0, t;}" : "=r"(r[11]) : "f"(x));
    TO_LONG(12, "cvt.rzi.s64.f32") TO_LONG(14, "cvt.rni.u64.f32")
    asm("cvt.sat.s32.u32 %0, %1;" : "=r"(r[16]) : "r"(b));
    asm("{.reg .s16 t; cvt.sat.s16.s32 t, %1; cvt.s32.s16 %0, t;}" : "=r"(r[17]) : "r"(b));
    asm("cvt.rmi.f32.f32 %0, %1;" : "=f"(f) : "f"(x)); r[18] = __float_as_int(f);
    asm("cvt.sat.f32.f32 %0, %1;" : "=f"(f) : "f"(x)); r[19] = __float_as_int(f);
}

// The approximate functions and their full-precision brothers. Rows of 10.
extern "C" __global__ void approximate(float *out, const float *in, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float x = in[i], *r = out + i * 10;
#define F1(K, OP) asm(OP " %0, %1;" : "=f"(r[K]) : "f"(x));
    F1(0, "ex2.approx.f32") F1(1, "lg2.approx.f32") F1(2, "rcp.approx.f32") F1(3, "rsqrt.approx.f32")
    F1(4, "sqrt.approx.f32") F1(5, "sin.approx.f32") F1(6, "cos.approx.f32") F1(7, "tanh.approx.f32")
    F1(8, "rcp.rn.f32") F1(9, "sqrt.rn.f32")
}

// All comparisons of f32, a bit each, of neighbours and of a value with itself. Rows of 16.
extern "C" __global__ void compare(u32 *out, const u32 *in, int n) {
    INDEX(16)
    float pairs[4] = {__int_as_float(a), __int_as_float(b), __int_as_float(a), __int_as_float(a)};
#define BIT(K, AT, OP)                                                                              \
    asm("{.reg .pred p; .reg .u32 t; setp." OP ".f32 p, %1, %2; selp.u32 t, 1, 0, p; shl.b32 t, t, " #AT "; or.b32 %0, %3, t;}" \
        : "=r"(r[K]) : "f"(x), "f"(y), "r"(r[K]));
    for (int k = 0; k < 2; k++) {
        float x = pairs[2 * k], y = pairs[2 * k + 1];
        r[8 * k] = r[8 * k + 1] = 0;
        BIT(8 * k, 0, "eq") BIT(8 * k, 1, "ne") BIT(8 * k, 2, "lt") BIT(8 * k, 3, "le") BIT(8 * k, 4, "gt")
        BIT(8 * k, 5, "ge") BIT(8 * k, 6, "num")
        BIT(8 * k + 1, 0, "equ") BIT(8 * k + 1, 1, "neu") BIT(8 * k + 1, 2, "ltu") BIT(8 * k + 1, 3, "leu")
        BIT(8 * k + 1, 4, "gtu") BIT(8 * k + 1, 5, "geu") BIT(8 * k + 1, 6, "nan")
        for (int rest = 2; rest < 8; rest++) r[8 * k + rest] = 0;
    }
}
