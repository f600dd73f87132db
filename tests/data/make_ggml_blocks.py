"""Makes ggml_blocks.gguf: for each block type some blocks and, as F32, the values that the PyPI package `gguf` reads from
them. Run with `pip install gguf==0.19.0 numpy`; the bytes depend on the seed only.

Types that the package can write are quantized from normal variates, with a row of zeros and an outlier; the K types are
random bytes with scales that are finite (one of them negative, one subnormal in f16).
"""

import os

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import GGUFWriter
from gguf.quants import dequantize, quantize

rng = np.random.default_rng(20)
path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "ggml_blocks.gguf")
w = GGUFWriter(path, "none")


def values(n):
    x = rng.standard_normal((3, n), dtype=np.float32)
    x[1] = 0
    x[2, 5] = 40
    return x


def put(name, raw, ty):
    w.add_tensor(name, raw, raw_dtype=ty)
    w.add_tensor(f"{name}.values", dequantize(raw, ty).reshape(3, -1).astype(np.float32))


for ty in (T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0):
    put(ty.name, quantize(values(32), ty), ty)

x = values(32)
w.add_tensor("F32", x)
w.add_tensor("F32.values", x)
w.add_tensor("F16", x.astype(np.float16))
w.add_tensor("F16.values", x.astype(np.float16).astype(np.float32))
put("BF16", quantize(x, T.BF16), T.BF16)

halves = np.array([[0.013, 0.37], [-0.0021, 0.011], [3e-6, 5e-7]], dtype=np.float16)  # d, dmin of the three blocks
for ty, size, at, count in (
    (T.Q4_K, 144, 0, 4),
    (T.Q5_K, 176, 0, 4),
    (T.Q6_K, 210, 208, 2),
    (T.Q2_K, 84, 80, 4),
    (T.Q3_K, 110, 108, 2),
):
    raw = rng.integers(0, 256, (3, size), dtype=np.uint8)
    raw[:, at : at + count] = np.ascontiguousarray(halves).view(np.uint8)[:, :count]
    put(ty.name, raw, ty)

# What a writer of Q8_0 is compared with; the ties of the first row round away from zero.
x = values(64)
x[0, :4] = [127, 0.5, -1.5, 2.5]
w.add_tensor("quantized.from", x)
w.add_tensor("quantized.to", quantize(x, T.Q8_0), raw_dtype=T.Q8_0)

w.write_header_to_file()
w.write_kv_data_to_file()
w.write_tensors_to_file()
w.close()
