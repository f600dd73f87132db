#!/usr/bin/env python3
"""Makes adapter.safetensors: a linear with fixed 3-bit integers and a low-rank adapter beside them, its output and its
gradients by PyTorch's autograd, with and without dropout. The masks are computed here from their definition
(common/src/compute/dropout.rs says it in words).

    python3 tests/data/make_adapter.py        needs torch, safetensors and numpy
"""
import os

import numpy as np
import torch
from safetensors.numpy import save_file

ROWS, N, K, RANK, GROUP, BITS = 33, 40, 96, 5, 32, 3
FACTOR, P, KEY = 4.0, 0.25, (0x12345678, 0x9ABCDEF0)


def mix(x):
    x = x.astype(np.uint64)
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


def mask():
    row = mix(np.arange(ROWS, dtype=np.uint64) ^ KEY[0]) ^ KEY[1]
    column = (np.arange(K, dtype=np.uint64) * 0x9E3779B9) & 0xFFFFFFFF
    bits = mix(column[None, :] ^ row[:, None])
    return (bits >= int(P * 2**32)).astype(np.float64)


def run(out, name, values, keep):
    leaves = {key: torch.tensor(value, dtype=torch.float64, requires_grad=True) for key, value in values.items()}
    scale = leaves["scale"].repeat_interleave(GROUP, dim=1)
    zero = torch.tensor(out["zero"], dtype=torch.float64).repeat_interleave(GROUP, dim=1)
    w = scale * (torch.tensor(out["integers"], dtype=torch.float64) - zero)
    dropped = leaves["x"] if keep is None else leaves["x"] * torch.tensor(keep) / (1 - P)
    y = leaves["x"] @ w.T + FACTOR * (dropped @ leaves["b"].T) @ leaves["a"].T
    (y * torch.tensor(out["dy"], dtype=torch.float64)).sum().backward()
    out[f"{name}.y"] = y.detach().numpy()
    for key, leaf in leaves.items():
        out[f"{name}.d{key}"] = leaf.grad.numpy()


def main():
    rng = np.random.default_rng(5)
    # Exact in bf16, so that both types compute with these very operands.
    exact = lambda *shape: torch.tensor(rng.uniform(-1, 1, shape)).bfloat16().double().numpy()
    groups = K // GROUP
    out = {
        "integers": rng.integers(-4, 4, (N, K)).astype(np.float64),
        "zero": rng.integers(-2, 3, (N, groups)).astype(np.float64),
        "dy": exact(ROWS, N),
    }
    values = {
        "x": exact(ROWS, K),
        "scale": torch.tensor(rng.uniform(0.02, 0.05, (N, groups))).bfloat16().double().numpy(),
        "a": exact(N, RANK) / 8,
        "b": exact(RANK, K),
    }
    out.update(values)
    run(out, "plain", values, None)
    run(out, "dropped", values, mask())
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "adapter.safetensors")
    metadata = {"factor": str(FACTOR), "p": str(P), "key": f"{KEY[0]} {KEY[1]}"}
    save_file({key: value.astype(np.float32) for key, value in out.items()}, path, metadata)


if __name__ == "__main__":
    main()
