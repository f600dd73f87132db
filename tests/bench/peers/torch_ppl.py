"""Perplexity in transformers, on given token ids: blocks in batches, the head and the loss by chunks of rows.

Prints tokens/s of the blocks alone; --warm runs one batch before, which compiles.
"""
import argparse
import json
import math
import time

import torch
import torch.nn.functional as F

import models

ROWS = 512


def main():
    p = argparse.ArgumentParser()
    p.add_argument("model")
    p.add_argument("ids")
    p.add_argument("--ctx", type=int, default=2048)
    p.add_argument("--blocks", type=int, required=True)
    p.add_argument("--batch", type=int, default=1)
    p.add_argument("--dtype", choices=models.DTYPES, default="bf16")
    p.add_argument("--compile", action="store_true")
    p.add_argument("--threads", type=int, required=True)
    o = p.parse_args()
    torch.set_num_threads(o.threads)
    model = models.load(o.model, o.dtype).eval()
    with open(o.ids) as file:
        ids = torch.tensor(json.load(file)[:o.ctx * o.blocks]).reshape(o.blocks, o.ctx)

    def nll(block):
        hidden = model.model(block, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
        targets = block[:, 1:].flatten()
        total = 0.0
        for at in range(0, len(targets), ROWS):
            logits = model.lm_head(hidden[at:at + ROWS]).float()
            total = total + F.cross_entropy(logits, targets[at:at + ROWS], reduction="sum")
        return total

    nll = torch.compile(nll) if o.compile else nll
    with torch.inference_mode():
        if o.compile:
            nll(ids[:o.batch])
        begun = time.monotonic()
        total = sum(nll(block).item() for block in ids.split(o.batch))
        seconds = time.monotonic() - begun
    ppl = math.exp(total / (o.blocks * (o.ctx - 1)))
    print(json.dumps({"tokens_per_s": ids.numel() / seconds, "ppl": ppl, **models.facts()}))


main()
