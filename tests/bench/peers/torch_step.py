"""A step of LR-QAT in PyTorch, from the equations: W = s·clip(round(Φ0 + A·B/r)), straight-through; A, B and s train with AdamW."""
import argparse
import math

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import models


class Round(torch.autograd.Function):
    """Straight through."""

    @staticmethod
    def forward(ctx, z):
        return torch.round(z)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class LowRankLinear(torch.nn.Module):
    def __init__(self, weight, bits, rank, recompute):
        super().__init__()
        self.low, self.high, self.rank, self.recompute = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, rank, recompute
        weight = weight.float()
        scale = weight.abs().amax(1, keepdim=True) / self.high
        self.unit = 2.0 ** (bits - 8)
        phi = torch.round((weight / scale).clamp(self.low, self.high) / self.unit)
        self.register_buffer("phi", phi.to(torch.int8))
        self.scale = torch.nn.Parameter(scale)
        self.a = torch.nn.Parameter(torch.zeros(weight.shape[0], rank))
        self.b = torch.nn.Parameter((torch.rand(rank, weight.shape[1]) * 2 - 1) / math.sqrt(weight.shape[1]))

    def quantized(self, x):
        z = self.phi.float() * self.unit + (self.a @ self.b) / self.rank
        integers = Round.apply(z).clamp(self.low, self.high)
        return F.linear(x, (self.scale * integers).to(x.dtype))

    def forward(self, x):
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self.quantized, x, use_reentrant=False, preserve_rng_state=False)
        return self.quantized(x)


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("model")
    p.add_argument("--bits", type=int, default=4)
    p.add_argument("--rank", type=int, default=32)
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--seq", type=int, default=512)
    p.add_argument("--steps", type=int, default=4)
    p.add_argument("--dtype", choices=models.DTYPES, default="bf16")
    p.add_argument("--recompute", choices=["none", "linear", "block"], default="block")
    p.add_argument("--compile", action="store_true")
    p.add_argument("--threads", type=int, required=True)
    return p.parse_args()


def main():
    o = arguments()
    torch.manual_seed(0)
    torch.set_num_threads(o.threads)
    model = models.load(o.model, o.dtype)
    for _, module, name in list(models.linears(model)):
        linear = LowRankLinear(getattr(module, name).weight.data, o.bits, o.rank, o.recompute == "linear")
        setattr(module, name, linear)
    if o.recompute == "block":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    scales = [p for name, p in model.named_parameters() if name.endswith(".scale")]
    factors = [p for p in trained if all(p is not s for s in scales)]
    adam = torch.optim.AdamW([{"params": factors, "lr": 1e-3}, {"params": scales, "lr": 1e-5}], betas=(0.9, 0.95),
                             weight_decay=0.0)
    models.train(o, model, trained, adam)


main()
