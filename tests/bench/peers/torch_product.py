"""Y = X·Wᵀ in bf16 by PyTorch: GFLOP/s of the median of many."""
import argparse
import json
import statistics
import time

import torch

p = argparse.ArgumentParser()
p.add_argument("shape", type=int, nargs=3, metavar=("M", "K", "N"))
p.add_argument("--threads", type=int, required=True)
p.add_argument("--seconds", type=float, default=1.0)
o = p.parse_args()
torch.set_num_threads(o.threads)
m, k, n = o.shape
x, w = torch.randn(m, k).bfloat16(), torch.randn(n, k).bfloat16()
times, begun = [], time.monotonic()
while len(times) < 20 or time.monotonic() - begun < o.seconds:
    at = time.perf_counter()
    torch.nn.functional.linear(x, w)
    times.append(time.perf_counter() - at)
print(json.dumps({"gflops": 2e-9 * m * k * n / statistics.median(times), "version": f"torch {torch.__version__}"}))
