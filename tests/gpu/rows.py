"""Rows of the tables of `check`, from standard input.

    rows.py linear GPU     of a line of the example `linear`: milliseconds, rate, and part of the roofline that it reaches
    rows.py kernels GPU    the same of a line of the example `kernels`
    rows.py metrics NAME   of a metrics.jsonl
"""

import json
import statistics
import sys

# bf16 and f32 FLOP/s and bytes/s, from NVIDIA's data sheets, by part of the name that nvidia-smi gives.
PEAKS = {"A100": (312e12, 19.5e12, 2.04e12), "H100": (989e12, 67e12, 3.35e12), "4090": (165e12, 82.6e12, 1.01e12)}
# Parts of them that are counted on, as in common/src/compute/cuda/README.md.
PRODUCTS, BANDWIDTH = 0.65, 0.8


def row(gpu, name, milliseconds, products, floats, moved):
    """Of a call with so many FLOPs of bf16 products and of f32, and bytes that it moves."""
    peaks = next((peaks for part, peaks in PEAKS.items() if part in gpu), None)
    rate = f"{products / milliseconds / 1e9:.1f} TFLOP/s" if products else f"{moved / milliseconds / 1e6:.0f} GB/s"
    reached = "–"
    if peaks:
        seconds = (products / peaks[0] + floats / peaks[1]) / PRODUCTS + moved / peaks[2] / BANDWIDTH
        reached = f"{100 * seconds * 1e3 / milliseconds:.0f} %"
    print(f"| {name} | {milliseconds:.3f} | {rate} | {reached} |")


def linear(gpu):
    found = json.load(sys.stdin)
    rows, n, k = found["shape"]
    weights, product, rank = n * k, 2 * rows * n * k, 32
    rounding = 2 * weights * rank
    # FLOPs of products and of A·B where Z is made; bytes of Φ0 or integers, of Ŵ written, of dŴ written and read, and of dZ.
    calls = {
        "round": (0, rounding, 2 * weights),
        "forward": (product, rounding, 3 * weights),
        "forward_rounded": (product, 0, 3 * weights),
        "dx": (product, 0, 3 * weights),
        "backward": (2 * product + 2 * rounding, 0, 14 * weights),
    }
    for call, counted in calls.items():
        row(gpu, f"[{n}, {k}] {call}", found[call]["median"], *counted)


def kernels(gpu):
    for name, found in json.load(sys.stdin).items():
        row(gpu, name, found["ms"], found["flops"], 0, 0 if found["flops"] else found["bytes"])


def metrics(name):
    steps = [json.loads(line) for line in sys.stdin]
    rate = statistics.median(step["tokens_per_s"] for step in steps)
    peak = max(step["peak_rss"] for step in steps) / 2**20
    print(f"| {name} | {steps[0]['loss']:.4f} | {steps[-1]['loss']:.4f} | {rate:.0f} | {peak:.0f} |")


{"linear": linear, "kernels": kernels, "metrics": metrics}[sys.argv[1]](sys.argv[2])
