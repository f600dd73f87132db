#!/usr/bin/env python3
"""Writes distillation.safetensors: losses against a teacher and their gradients by PyTorch, in f32 from f64 arithmetic.

Needs torch and safetensors. Seeded, so a second run writes the same values:

    python make_distillation.py distillation.safetensors
"""

import sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(0)
ROWS, V = 6, 101
CE, KL, SCALE = 0.25, 0.75, 0.5
tensors = {}


def values(factor):
    return (torch.randn(ROWS, V) * factor).double()


def keep(name, value):
    tensors[name] = value.detach().float().contiguous()


def f16(x):
    return x.float().half().double()


logits, teacher = values(3.0), values(4.0)
targets = torch.randint(0, V, (ROWS,))
targets[2] = teacher[2].argmax()  # among the largest
targets[4] = -100  # ignore_index: neither term
counts = targets != -100
log_p = teacher.log_softmax(-1)


def weighted(name, divergence):
    """One divergence a row, of which those without a target count 0; the gradient of the weighted sum of both terms."""
    x = logits.clone().requires_grad_()
    ce = F.cross_entropy(x, targets, reduction="none")
    kl = divergence(x.log_softmax(-1)) * counts
    (SCALE * (CE * ce + KL * kl)).sum().backward()
    keep(f"{name}.kl", kl)
    keep(f"{name}.dlogits", x.grad)
    keep("ce", ce)


def threshold(p, k):
    """The weight c of a draw: the sum of min(p / c, 1) is k. By bisection."""
    low, high = 0.0, 1.0
    for _ in range(200):
        c = (low + high) / 2
        low, high = (c, high) if (p / c).clamp(max=1).sum() > k else (low, c)
    return c


def drawn(k):
    """k ids of a row: those of at least the threshold, and the others at even distances of their cumulated probability."""
    weights, kept = torch.zeros_like(log_p), torch.zeros_like(log_p)
    for row, (a, start) in enumerate(zip(log_p, draws)):
        p = a.exp()
        large = p >= threshold(p, k)
        n = int(k - large.sum())
        others = p.masked_fill(large, 0)
        cumulated = others.cumsum(0)
        points = (torch.arange(n) + start) / n * cumulated[-1]
        found = torch.searchsorted(cumulated, points, right=True)
        assert len(set(found.tolist())) == n and not large[found].any()
        mass = f16(others.sum().log()).exp()
        stored = f16(a)
        total = stored[large].exp().sum() + mass
        weights[row, large] = stored[large].exp() / total
        weights[row, found] = mass / n / total
        kept[row] = stored - total.log()
        counts_of_draws.append(n)

    return lambda own: (weights * (kept - own)).sum(-1)


weighted("whole", lambda own: F.kl_div(own, log_p, log_target=True, reduction="none").sum(-1))
draws = torch.randint(0, 1024, (ROWS,)).double() / 1024
counts_of_draws = []
for k in (1, 5, 30):
    weighted(f"top_{k}", drawn(k))
print("draws of each row:", counts_of_draws)
keep("draws", draws)
keep("weights", torch.tensor([CE, KL, SCALE]))
keep("targets", targets)
keep("logits", logits)
keep("teacher", teacher)
keep("log_p", log_p)

# INT2.1's weighting (arXiv 2306.08162, LREC/lrec.py): the divergence by "batchmean" over [batch, positions, v], beside
# the mean cross entropy of all tokens.
batch, w_kl, w_ce = 2, 0.5, 120.0
positions = ROWS // batch
own = logits.log_softmax(-1)
tokens = logits.argsort(-1)[:, V // 2]
shape = (batch, positions, V)
kl = F.kl_div(own.reshape(shape), log_p.reshape(shape), log_target=True, reduction="batchmean")
ce = F.cross_entropy(logits, tokens)
per_token = F.kl_div(own, log_p, log_target=True, reduction="none").sum(-1).mean()
keep("paper.weights", torch.tensor([w_kl, w_ce, positions]))
keep("paper.terms", torch.stack((per_token, ce)))
keep("paper.loss", (w_kl * kl + w_ce * ce).reshape(1))
save_file(tensors, sys.argv[1])
