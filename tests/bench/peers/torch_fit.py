"""The L^p grid search in PyTorch: per group the first of 100 thresholds amax·i/100 with the least Σ|w − ŵ|^p.

Vectorized over the groups of a linear, --chunk weights at a time so that they stay in the cache. Prints weights/s of the
search alone; with --expect FILE, which part of the scales in that file it agrees with.
"""
import argparse
import json
import time

import safetensors
import torch

import models

THRESHOLDS = 100


def error(w, s, high, p):
    """Σ|w − ŵ|^p of every row, for one scale a row."""
    return (w / s).round_().clamp_(-high - 1, high).mul_(s).sub_(w).abs_().pow_(p).sum(1, keepdim=True)


def fused_error(w, s, high, p):
    """The same without operations in place, for the compiler to fuse."""
    return ((w / s).round().clamp(-high - 1, high) * s - w).abs().pow(p).sum(1, keepdim=True)


def search(w, high, p, error):
    """Scales of the rows of w."""
    amax = w.abs().amax(1, keepdim=True)
    best, scale = torch.full_like(amax, torch.inf), torch.ones_like(amax)
    for i in range(1, THRESHOLDS + 1):
        s = amax * (i / THRESHOLDS) / high
        e = error(w, s, high, p)
        better = e < best
        best, scale = torch.where(better, e, best), torch.where(better, s, scale)
    return scale


def main():
    a = argparse.ArgumentParser()
    a.add_argument("model")
    a.add_argument("--bits", type=int, default=4)
    a.add_argument("--group", type=int, default=0)
    a.add_argument("--p", type=int, default=3)
    a.add_argument("--dtype", choices=models.DTYPES, default="f32")
    a.add_argument("--chunk", type=int, default=1 << 18)
    a.add_argument("--compile", action="store_true")
    a.add_argument("--expect")
    a.add_argument("--threads", type=int, required=True)
    o = a.parse_args()
    torch.set_num_threads(o.threads)
    model = models.load(o.model, "bf16")
    how = torch.compile(fused_error) if o.compile else error
    found, high = {}, 2 ** (o.bits - 1) - 1

    def fit(w):
        w = w.to(models.DTYPES[o.dtype]).reshape(-1, o.group or w.shape[1])
        return torch.cat([search(part, high, o.p, how) for part in w.split(max(1, o.chunk // w.shape[1]))])

    with torch.inference_mode():
        weights = {name: getattr(module, attribute).weight for name, module, attribute in models.linears(model)}
        for w in {w.shape: w for w in weights.values()}.values():  # Compiles, if it does.
            fit(w)
        begun = time.monotonic()
        for name, w in weights.items():
            found[name] = fit(w)
    seconds = time.monotonic() - begun
    agree = None
    if o.expect:
        with safetensors.safe_open(o.expect, "pt") as file:
            close = [(file.get_tensor(f"{n}.scale").flatten() / s.float().flatten() - 1).abs() < 1e-4 for n, s in found.items()]
        agree = torch.cat(close).float().mean().item()
    print(json.dumps({"weights_per_s": sum(w.numel() for w in weights.values()) / seconds, "search_s": seconds, "agree": agree, **models.facts()}))


main()
