// Integer arithmetic of 32 and 64 bits, and a switch that becomes a jump table.
#define COLUMNS 24

extern "C" __global__ void integer(long long *out, const int *in, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int a = in[i], b = in[(i + 1) % n] | 1;
    unsigned ua = a, ub = b;
    long long la = (long long)a * 2654435761ll, lb = b;
    unsigned long long ula = la;
    long long *r = out + i * COLUMNS;
    r[0] = a / b;
    r[1] = a % b;
    r[2] = ua / ub;
    r[3] = ua % ub;
    r[4] = la / lb;
    r[5] = la % lb;
    r[6] = __umulhi(ua, ub);
    r[7] = __mulhi(a, b);
    r[8] = __popc(a);
    r[9] = __clz(a);
    r[10] = __brev(ua);
    r[11] = la >> 7;
    r[12] = (long long)(ula >> 9);
    r[13] = __ffs(a);
    unsigned long long z = ula;
    z ^= z >> 30;
    z *= 0xbf58476d1ce4e5b9ull;
    z ^= z >> 27;
    r[14] = (long long)z;
    int pick;
    switch (a & 15) {
        case 0: pick = 3; break;
        case 1: pick = a; break;
        case 2: pick = -b; break;
        case 3: pick = a ^ b; break;
        case 4: pick = 77; break;
        case 5: pick = a + b; break;
        case 6: pick = a - b; break;
        case 7: pick = a * b; break;
        case 8: pick = a | b; break;
        case 9: pick = ~a; break;
        case 10: pick = a & b; break;
        case 11: pick = min(a, b); break;
        case 12: pick = max(a, b); break;
        case 13: pick = abs(a); break;
        case 14: pick = a >> 3; break;
        default: pick = 9;
    }
    r[15] = pick;
    r[16] = __byte_perm(ua, ub, 0x3a50 ^ (ua & 0x7777));
    r[17] = __funnelshift_l(ua, ub, ua & 63);
    r[18] = __funnelshift_r(ua, ub, ub & 63);
    r[19] = (long long)__umul64hi(ula, z);
    r[20] = __mul64hi(la, lb);
    r[21] = (short)a * (short)b + (unsigned short)a;
    r[22] = (signed char)a + (unsigned char)b;
    r[23] = __clzll(la) * 100 + __popcll(la);
}
