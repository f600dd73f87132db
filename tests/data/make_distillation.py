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


def bucketed(k):
    """The k largest, and all others as one: log-probabilities in f16, then made to sum up to 1."""
    top = log_p.topk(k)
    rest = log_p.scatter(1, top.indices, -torch.inf).logsumexp(-1, keepdim=True)
    kept = f16(torch.cat((top.values, rest), 1)).log_softmax(-1)

    def divergence(own):
        others = own.scatter(1, top.indices, -torch.inf).logsumexp(-1, keepdim=True)
        own = torch.cat((own.gather(1, top.indices), others), 1)
        return F.kl_div(own, kept, log_target=True, reduction="none").sum(-1)

    return divergence


weighted("whole", lambda own: F.kl_div(own, log_p, log_target=True, reduction="none").sum(-1))
for k in (1, 5, 30):
    weighted(f"top_{k}", bucketed(k))
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
