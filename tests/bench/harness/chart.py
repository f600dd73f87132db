"""The chart of how cost grows, by matplotlib: chart.py RESULT.json CHART.svg"""
import json
import sys

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.hashsalt": "lrqat", "font.size": 9})
from matplotlib import pyplot  # noqa: E402


def memory(axes, points, label):
    counts, peaks, plans = zip(*points)
    axes.plot(counts, [p / 1e9 for p in peaks], "o-", label="measured")
    axes.plot(counts, [p / 1e9 for p in plans], "s--", label="--plan")
    axes.set(xlabel=label, ylabel="peak resident, GB", xlim=0, ylim=0)
    axes.legend()


def main():
    with open(sys.argv[1]) as file:
        found = json.load(file)
    figure, (time, layers, length) = pyplot.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    tokens, seconds = zip(*found["tokens"])
    time.plot(tokens, seconds, "o-")
    time.plot([0, tokens[-1]], [0, seconds[-1]], ":", color="grey", label="in proportion")
    time.set(xlabel="tokens a step (batch × 512)", ylabel="seconds a step", xlim=0, ylim=0)
    time.legend()
    memory(layers, found["layers"], "layers of SmolLM2's width, 1 × 512 tokens")
    memory(length, found["length"], "tokens of a sequence, SmolLM2, batch 1")
    figure.savefig(sys.argv[2], metadata={"Date": None})


main()
