// Mathematics as NVRTC lowers it: every function of f32 that a kernel may call, compared with f64 on the host.
#define COLUMNS 26

extern "C" __global__ void math(float *out, const float *in, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float v = in[i], p = fabsf(v);
    float *r = out + i * COLUMNS;
    r[0] = sinf(v);
    r[1] = cosf(v * 1000.f);  // large arguments take the long reduction
    r[2] = powf(p, 1.7f);
    r[3] = tanhf(v);
    r[4] = erff(v);
    r[5] = log1pf(p);
    r[6] = expm1f(v);
    r[7] = fmodf(v, 0.7f);
    r[8] = rintf(v);
    r[9] = (float)(int)v;
    r[10] = (float)__float2int_rn(v);
    r[11] = (float)lrintf(v * 100.f);
    r[12] = floorf(v);
    r[13] = ceilf(v);
    r[14] = truncf(v);
    r[15] = roundf(v);
    r[16] = cbrtf(v);
    r[17] = logf(p);
    r[18] = exp2f(v);
    r[19] = expf(v);
    r[20] = rsqrtf(p);
    r[21] = 1.f / v;
    r[22] = sqrtf(p);
    r[23] = (float)(sqrt((double)p) * 1e3 / 3.0);
    r[24] = v / 3.f;
    r[25] = v / (1.f + expf(-v));
}
