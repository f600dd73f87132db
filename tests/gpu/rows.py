"""Rows of the tables of `check`, from standard input.

    rows.py linear GPU     of a line of the example `linear`: milliseconds, rate, and part of the roofline that it reaches
    rows.py kernels GPU    the same of a line of the example `kernels`
    rows.py metrics NAME   of a metrics.jsonl

Below each call its kernels, by the GPU's own clock.
"""

import json
import statistics
import sys

# bf16 and f32 FLOP/s and bytes/s, from NVIDIA's data sheets, by part of the name that nvidia-smi gives.
PEAKS = {"A100": (312e12, 19.5e12, 2.04e12), "H100": (989e12, 67e12, 3.35e12), "4090": (165e12, 82.6e12, 1.01e12)}
# Parts of them that are counted on, as in common/src/compute/cuda/README.md.
PRODUCTS, BANDWIDTH = 0.65, 0.8
RANK = 32
# Kernels of a linear: bytes and f32 FLOPs of a weight. Φ0 or integers read, Ŵ or integers written, dŴ read and dZ written, A·B.
OF_A_WEIGHT = {
    "round_weight_i8": (2, 2 * RANK),
    "weight_of_integers": (3, 0),
    "weight_gradient_i8": (7, 0),
}
# Bytes and f32 FLOPs of a byte that the whole call counts. The L³ search takes 1250 instructions for a weight of two bytes.
OF_A_BYTE = {
    "swiglu_forward": (1, 0),
    "swiglu_backward": (10 / 12, 0),
    "cross_entropy": (1, 0),
    "fit_min_max": (1, 0),
    "fit_cubes": (1, 1250),
}


class Table:
    def __init__(self, gpu):
        self.peaks = next((peaks for part, peaks in PEAKS.items() if part in gpu), None)

    def row(self, name, milliseconds, products, floats, moved, together=sum):
        """Of a call with so many FLOPs of bf16 products and of f32, and bytes that it moves; one after the other."""
        rate = reached = "–"
        if products:
            rate = f"{products / milliseconds / 1e9:.1f} TFLOP/s"
        elif moved:
            rate = f"{moved / milliseconds / 1e6:.0f} GB/s"
        if self.peaks and (products or moved):
            bf16, f32, memory = self.peaks
            seconds = together([(products / bf16 + floats / f32) / PRODUCTS, moved / memory / BANDWIDTH])
            reached = f"{100 * seconds * 1e3 / milliseconds:.0f} %"
        print(f"| {name} | {milliseconds:.3f} | {rate} | {reached} |")

    def kernels(self, found, of_call):
        """`of_call`: FLOPs of products and of f32, and bytes, of all calls of a kernel by its name; None if they are not known.
        A kernel moves and computes at once."""
        for name, kernel in found["kernels"].items():
            calls, words = kernel["calls"], name.split()
            counted = of_call(name) or (0, 0, 0)
            if words[0] == "product":
                m, n, k = (int(words[i]) for i in (1, 3, 5))
                counted = (calls * 2 * m * n * k, 0, 0)
            shown = f"↳ {name}" + (f", {calls} ×" if calls > 1 else "")
            self.row(shown, kernel["ms"], *counted, together=max)


def linear(gpu):
    found, table = json.load(sys.stdin), Table(gpu)
    rows, n, k = found["shape"]
    weights, product = n * k, 2 * rows * n * k
    rounding = 2 * weights * RANK
    # FLOPs of products and of A·B where Z is made; bytes of Φ0 or integers, of Ŵ written, of dŴ written and read, and of dZ.
    calls = {
        "round": (0, rounding, 2 * weights),
        "forward": (product, rounding, 3 * weights),
        "forward_rounded": (product, 0, 3 * weights),
        "dx": (product, 0, 3 * weights),
        "backward": (2 * product + 2 * rounding, 0, 14 * weights),
    }
    for call, counted in calls.items():
        table.row(f"[{n}, {k}] {call}", found[call]["median"], *counted)

    def of_call(name):
        moved, floats = OF_A_WEIGHT.get(name, (0, 0))
        return 0, floats * weights, moved * weights

    table.kernels(found, of_call)


def kernels_of(found):
    return [name for name in found["kernels"] if not name.startswith("copying")]


def kernels(gpu):
    table = Table(gpu)
    for op, found in json.load(sys.stdin).items():
        counted = (found["flops"], 0, 0 if found["flops"] else found["bytes"])
        table.row(op, found["ms"], *counted)

        def of_call(name):
            if name in OF_A_BYTE:
                moved, floats = OF_A_BYTE[name]
                return 0, floats * found["bytes"], moved * found["bytes"]
            # A kernel that is alone is the call.
            return counted if [name] == kernels_of(found) else None

        table.kernels(found, of_call)


def metrics(name):
    steps = [json.loads(line) for line in sys.stdin]
    rate = statistics.median(step["tokens_per_s"] for step in steps)
    peak = max(step["peak_rss"] for step in steps) / 2**20
    print(f"| {name} | {steps[0]['loss']:.4f} | {steps[-1]['loss']:.4f} | {rate:.0f} | {peak:.0f} |")


{"linear": linear, "kernels": kernels, "metrics": metrics}[sys.argv[1]](sys.argv[2])
