"""Rows of the table of `check`: of a line of the example `linear`, or, with a name, of a metrics.jsonl."""

import json
import statistics
import sys

if len(sys.argv) > 1:
    steps = [json.loads(line) for line in sys.stdin]
    rate = statistics.median(step["tokens_per_s"] for step in steps)
    peak = max(step["peak_rss"] for step in steps) / 2**20
    print(f"| {sys.argv[1]} | {steps[0]['loss']:.4f} | {steps[-1]['loss']:.4f} | {rate:.0f} | {peak:.0f} |")
else:
    found = json.load(sys.stdin)
    rows, n, k = found["shape"]
    weights, product, rank = n * k, 2 * rows * n * k, 32
    # FLOPs of each call: A·B where Z is made, and the products.
    flops = {
        "round": 2 * weights * rank,
        "forward": 2 * weights * rank + product,
        "forward_rounded": product,
        "dx": product,
        "backward": 2 * product + 4 * weights * rank,
    }
    for call, count in flops.items():
        milliseconds = found[call]["median"]
        print(f"| [{n}, {k}] {call} | {milliseconds:.3f} | {count / milliseconds / 1e9:.1f} TFLOP/s |")
