"""W_Z, scales and zero points of a wrapped model or checkpoint, computed from its tensors as the design defines them.

Z = Φ0 + (α/r)·A·B, where C = 0 and, for i ascending, C = fma(A[n,i], B[i,k], C), Z = fma(α/r, C, Φ0), all in f32;
W_Z = clip(round half to even(Z)); s = the master, at least 2^-17, rounded to bf16. Nothing here is taken from the tools.
"""
import json
import os
import re

import numpy
import torch
from safetensors import safe_open

F32, F64 = numpy.float32, numpy.float64
MIN_SCALE = 2.0**-17


def fma(a, b, c):
    """a·b + c rounded once to f32. The product is exact in f64; the sum is rounded to odd there (Boldo and Melquiond),
    so that rounding it again to f32 gives what one rounding would."""
    product, c = a.astype(F64) * b.astype(F64), c.astype(F64)
    total = product + c
    part = total - product
    lost = (product - (total - part)) + (c - part)
    bits = total.view(numpy.int64)
    outward = (lost > 0) == (total > 0)
    odd = numpy.where((lost != 0) & (bits & 1 == 0), bits + numpy.where(outward, 1, -1), bits)
    return odd.view(F64).astype(F32)


class Scheme:
    def __init__(self, word):
        bits, group, zero = re.fullmatch(r"w(\d)(?:pc|g(\d+))([sz]?)", word).groups()
        self.bits, self.group = int(bits), int(group) if group else None
        self.asymmetric, self.signed = zero == "z", zero == "s"
        self.qmin, self.qmax = -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1

    def groups(self, k):
        return 1 if self.group is None else k // self.group


class Linear:
    """codes i64 [N, K] signed, scale f32 [N, G], zero i64 [N, G] on the signed grid, all 0 if symmetric."""

    def __init__(self, codes, scale, zero):
        self.codes, self.scale, self.zero = codes, scale, zero

    def weight(self):
        """Ŵ = s·(W_Z − z) in f32."""
        n, k = self.codes.shape
        grouped = self.codes.reshape(n, self.scale.shape[1], -1) - self.zero[:, :, None]
        return (self.scale[:, :, None] * grouped.astype(F32)).reshape(n, k)


class Source:
    """wrapped/, or checkpoint/ with the wrapped model that it trains."""

    def __init__(self, directory):
        stage = self.stage(directory)
        self.trained = None
        if stage["kind"] == "checkpoint":
            self.trained = safe_open(os.path.join(directory, "trained.safetensors"), "np")
            path = next(i["path"] for i in stage["inputs"] if i["role"] == "wrapped")
            directory = os.path.join(directory, path)
            stage = self.stage(directory)
        if stage["kind"] != "wrapped":
            raise ValueError(f"this is {stage['kind']}, expected wrapped or a checkpoint")
        self.scheme, arguments = Scheme(stage["scheme"]), stage["arguments"]
        self.phi, self.rank = arguments["phi"], arguments["rank"]
        self.factor = F32(arguments["alpha"]) / F32(self.rank)
        with open(os.path.join(directory, "config.json")) as file:
            self.config = json.load(file)
        path = os.path.join(directory, "wrapped.safetensors")
        self.file, self.torch_file = safe_open(path, "np"), safe_open(path, "pt")
        names = list(self.file.keys())
        self.linears = sorted(n.removesuffix(".phi") for n in names if n.endswith(".phi"))
        parts = (".phi", ".scale", ".zero_point", ".lora_a", ".lora_b")
        self.floats = sorted(n for n in names if not n.endswith(parts))

    @staticmethod
    def stage(directory):
        with open(os.path.join(directory, "stage.json")) as file:
            return json.load(file)

    def float(self, name):
        return self.torch_file.get_tensor(name)

    def downcast(self, packed, k):
        """Φ0 [N, K] of its packed rows."""
        bits, fraction = self.scheme.bits, 8 - self.scheme.bits
        if self.phi == "q":
            return packed.view(numpy.int8).astype(F32) / F32(2**fraction)
        if self.phi == "bf16":
            return (packed.view(numpy.uint16).astype(numpy.uint32) << 16).view(F32)
        if self.phi == "f32":
            return packed.view(F32)
        if bits > 4:
            return packed.view(numpy.int8).astype(F32)
        nibbles = numpy.stack([packed & 15, packed >> 4], axis=2).reshape(len(packed), -1)[:, :k]
        return ((nibbles.astype(numpy.int8) ^ 8) - 8).astype(F32)

    def linear(self, name):
        start = lambda part: self.file.get_tensor(f"{name}.{part}")
        trained = start if self.trained is None else lambda part: self.trained.get_tensor(f"{name}.{part}")
        a, b = trained("lora_a"), trained("lora_b")
        z = self.downcast(start("phi"), b.shape[1])
        if a.any():
            c = numpy.zeros_like(z)
            for i in range(self.rank):
                c = fma(a[:, i:i + 1], b[i:i + 1], c)
            z = fma(self.factor, c, z)
        codes = numpy.clip(numpy.rint(z), self.scheme.qmin, self.scheme.qmax).astype(numpy.int64)
        master = torch.from_numpy(trained("scale")).clamp(min=MIN_SCALE)
        scale = master.to(torch.bfloat16).to(torch.float32).numpy()
        zero = numpy.zeros(scale.shape, numpy.int64)
        if self.scheme.asymmetric or self.scheme.signed:
            zero = start("zero_point").astype(numpy.int64)
        if self.scheme.signed:
            return self.as_stored(codes, scale, zero)
        return Linear(codes, scale, zero)

    @staticmethod
    def as_stored(codes, scale, zero):
        """s·(W_Z + 1) is −s·(−1 − W_Z): files say a zero point of −1 by a negative scale."""
        n, k = codes.shape
        turned = numpy.repeat(zero == -1, k // scale.shape[1], axis=1)
        codes = numpy.where(turned, -1 - codes, codes)
        return Linear(codes, numpy.where(zero == -1, -scale, scale), numpy.zeros_like(zero))
