"""Loads a folded model in Hugging Face transformers and compares its perplexity with eval's own.

    pip install torch transformers compressed-tensors
    make build
    python tests/transformers/check.py run/demo-w3pc/folded --text demo/test.txt --ctx 256 --blocks 20

Not part of `make test`: it needs torch. Exits 1 if the two differ by more than 0.5 %. Prints a generated text for the eye.
Models with a zero point load with compressed-tensors 0.17; 0.18 to 0.20 do not load their own packed zero points.
"""
import argparse
import json
import math
import os
import subprocess
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

EVAL = os.path.join(os.path.dirname(__file__), "..", "..", "target", "release", "eval")


def own_perplexity(o):
    call = [EVAL, o.folded, "--ppl", o.text, "--ctx", str(o.ctx), "--max-blocks", str(o.blocks), "--json"]
    report = json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout)
    return report["artefacts"][0]["ppl"][o.text]["ppl"]


@torch.no_grad()
def perplexity(model, ids, ctx, blocks):
    nll = 0.0
    for i in range(blocks):
        block = ids[i * ctx:(i + 1) * ctx][None]
        logits = model(block).logits[0, :-1].float()
        nll += torch.nn.functional.cross_entropy(logits, block[0, 1:]).item()
    return math.exp(nll / blocks)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("folded")
    p.add_argument("--text", required=True)
    p.add_argument("--ctx", type=int, default=2048)
    p.add_argument("--blocks", type=int, default=4)
    o = p.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(o.folded)
    model = AutoModelForCausalLM.from_pretrained(o.folded).eval()
    ids = tokenizer(open(o.text, encoding="utf-8").read(), return_tensors="pt").input_ids[0]
    theirs, own = perplexity(model, ids, o.ctx, o.blocks), own_perplexity(o)
    text = tokenizer.decode(model.generate(ids[None, :16], max_new_tokens=24, do_sample=False)[0])
    print(f"{o.folded}: transformers {theirs:.4f}, eval {own:.4f}, {100 * (theirs / own - 1):+.3f} %")
    print(repr(text))
    sys.exit(0 if abs(theirs / own - 1) <= 5e-3 else 1)


main()
