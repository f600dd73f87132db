#!/usr/bin/env python3
"""Writes ops.safetensors: inputs, outputs and gradients of the layers by PyTorch, in f32 from f64 arithmetic.

Needs torch and safetensors. Seeded, so a second run writes the same values:

    python make_ops.py ops.safetensors
"""

import math
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(0)
tensors = {}


def normal(*shape, factor=1.0):
    """Values that are exact in f32, as a leaf in f64."""
    return (torch.randn(*shape) * factor).double().requires_grad_()


def keep(name, **parts):
    for part, value in parts.items():
        tensors[f"{name}.{part}"] = value.detach().float().contiguous()


def rmsnorm(rows, d):
    x, w, dy = normal(rows, d), normal(d), normal(rows, d)
    y = w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))
    y.backward(dy)
    keep(f"rmsnorm_{d}", x=x, w=w, dy=dy, y=y, dx=x.grad)


def rope(heads, head_dim):
    """LlamaRotaryEmbedding and apply_rotary_pos_emb of transformers, which are in f32."""
    positions = torch.tensor([0, 1, 2, 700, 4095], dtype=torch.float32)
    inv_freq = 1.0 / (10000.0 ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
    angles = positions[:, None] * inv_freq[None, :]
    angles = torch.cat((angles, angles), dim=-1)[:, None, :]
    x = torch.randn(len(positions), heads, head_dim)
    rotated = torch.cat((-x[..., head_dim // 2 :], x[..., : head_dim // 2]), dim=-1)
    keep(f"rope_{head_dim}", inv_freq=inv_freq, x=x, y=x * angles.cos() + rotated * angles.sin())


def attention(name, segments, heads, kv_heads, head_dim, window=None):
    rows = segments[-1]
    q, dout = normal(rows, heads, head_dim), normal(rows, heads, head_dim)
    k, v = normal(rows, kv_heads, head_dim), normal(rows, kv_heads, head_dim)
    outs, lses = [], []
    for start, end in zip(segments, segments[1:]):
        queries, keys = torch.arange(end - start)[:, None], torch.arange(end - start)[None, :]
        mask = keys <= queries
        if window is not None:  # sliding_window_overlay of transformers' masking_utils
            mask &= keys > queries - window
        part = [x[start:end].transpose(0, 1) for x in (q, k, v)]
        part[1:] = [x.repeat_interleave(heads // kv_heads, dim=0) for x in part[1:]]
        outs.append(F.scaled_dot_product_attention(*part, attn_mask=mask).transpose(0, 1))
        scores = (part[0] @ part[1].transpose(1, 2) / math.sqrt(head_dim)).masked_fill(~mask, -math.inf)
        lses.append(scores.logsumexp(-1).transpose(0, 1))
    out = torch.cat(outs)
    out.backward(dout)
    keep(name, q=q, k=k, v=v, dout=dout, out=out, lse=torch.cat(lses), dq=q.grad, dk=k.grad, dv=v.grad)


def swiglu(n):
    gate, up, dout = normal(n, factor=4.0), normal(n), normal(n)
    out = F.silu(gate) * up
    out.backward(dout)
    keep("swiglu", gate=gate, up=up, dout=dout, out=out, dgate=gate.grad, dup=up.grad)


def cross_entropy(rows, v):
    logits, other = normal(rows, v, factor=3.0), normal(rows, v, factor=3.0)
    targets = torch.randint(0, v, (rows,))
    targets[1] = -100  # ignore_index
    losses = F.cross_entropy(logits, targets, reduction="none")
    (0.125 * losses).sum().backward()
    kl = F.kl_div(other.log_softmax(-1), logits.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    keep("cross_entropy", logits=logits, targets=targets, losses=losses, dlogits=logits.grad)
    keep("cross_entropy", argmax=logits.argmax(-1), other=other, kl=kl)


rmsnorm(3, 8)
rmsnorm(2, 77)
rope(2, 8)
rope(1, 80)
attention("attention_8", [0, 4, 5, 16], heads=4, kv_heads=2, head_dim=8)
attention("attention_8_window", [0, 4, 5, 16], heads=4, kv_heads=2, head_dim=8, window=4)
attention("attention_64", [0, 2, 7], heads=2, kv_heads=1, head_dim=64)
attention("attention_64_window", [0, 5], heads=2, kv_heads=1, head_dim=64, window=3)
attention("attention_80", [0, 1, 4], heads=2, kv_heads=1, head_dim=80)
swiglu(77)
cross_entropy(5, 101)
save_file(tensors, sys.argv[1])
