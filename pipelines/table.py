"""Prints the report.json of `eval --json` as a table: one column per artefact, one row per measure."""

import json
import os
import sys

KINDS = {"model": "float", "scales": "round-to-nearest", "wrapped": "wrapped", "checkpoint": "LR-QAT", "folded": "folded"}


def rows(artefacts):
    """Yields (measure, one cell per artefact)."""
    texts = list(dict.fromkeys(text for a in artefacts for text in a.get("ppl") or {}))
    for text in texts:
        found = [(a.get("ppl") or {}).get(text) or {} for a in artefacts]
        first = next(f for f in found if f)
        bos = ", BOS" if first.get("bos") else ""
        yield f"perplexity {os.path.basename(text)} (ctx {first['ctx']}, {first['blocks']} blocks{bos})", cells(found, "ppl", "{:.4g}")
        yield "  KL from the reference", cells(found, "kl", "{:.4f}")
        yield "  same top token", cells(found, "top1", "{:.1%}")
    tasks = list(dict.fromkeys(task for a in artefacts for task in a.get("tasks") or {}))
    for task in tasks:
        found = [(a.get("tasks") or {}).get(task) or {} for a in artefacts]
        yield f"{task} acc (n {next(f for f in found if f)['n']})", cells(found, "acc", "{:.2%}", "acc_stderr")
        yield f"{task} acc_norm", cells(found, "acc_norm", "{:.2%}", "acc_norm_stderr")


def cells(found, key, form, error=None):
    return [cell(f, key, form, error) for f in found]


def cell(measures, key, form, error):
    if measures.get(key) is None:
        return "-"
    text = form.format(measures[key])
    return text if error is None or measures.get(error) is None else f"{text} ±{measures[error] * 100:.2f}"


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        artefacts = json.load(file)["artefacts"]
    head = [KINDS.get(a["kind"], a["kind"]) for a in artefacts]
    table = [("", head)] + [(name, line) for name, line in rows(artefacts) if any(c != "-" for c in line)]
    left = max(len(name) for name, _ in table)
    widths = [max(len(line[i]) for _, line in table) for i in range(len(head))]
    for name, line in table:
        print(name.ljust(left), *(c.rjust(w) for c, w in zip(line, widths)), sep="  ")


main()
