"""BENCHMARKS.md from the results that are there, a section for each processor, and its charts."""
import json
import os
import subprocess

from . import machine, stages

BENCH = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RESULTS = os.path.join(BENCH, "results")
CHART = "growth.svg"
# Row: work, unit of the rate, what is aimed at: least ratio, largest part of the peer's memory.
WORK = {
    "qat-step": ("`qat-step` SmolLM2-135M w4pc r32, 4 × 512, bf16", "tokens/s", 2.5, None),
    "qat-step-least": ("the same, `--memory least`", "tokens/s", 2.5, 0.25),
    "qat-step-f32": ("the first, `--compute f32`", "tokens/s", 1.2, None),
    "lora": ("adapters of rank 8 on a GPTQ w4g64 model, `--lr-scale 0`, 4 × 512, against LoRA on the float model", "tokens/s", 1.0, None),
    "eval-float": ("`eval --ppl`, float SmolLM2, ctx 2048", "tokens/s", 3.0, None),
    "eval-folded": ("`eval --ppl`, folded w4g64, against llama.cpp on the same Q4_0 file", "tokens/s", 1.0, None),
    "ptq-init w4pc": ("`ptq-init --fit lp:3`, w4pc", "weights/s", 15.0, None),
    "ptq-init w4g64": ("`ptq-init --fit lp:3`, w4g64", "weights/s", 15.0, None),
    "product-0": ("matrix kernel, bf16, 1024 × 576 × 1536", "GFLOP/s", 1.1, None),
    "product-1": ("matrix kernel, bf16, 1024 × 4096 × 4096", "GFLOP/s", 1.1, None),
}
HEAD = """# Benchmarks

Written by `make bench`: what is measured and how, in [tests/bench/README.md](tests/bench/README.md).

Rates are medians of whole processes, ours and the peer's run in turn; the ratio is the median of the pairs' ratios, its
least and largest behind it. The peer's rate is of its inner loop alone, without starting Python and loading the model; ours
is of the training steps after the first, and elsewhere of the whole process. "Whole" is the ratio of the processes' times.
Memory is the peak resident set, mapped file pages included, in GB of 10^9 bytes; the peer's is its leanest variant's.
Load is the system's before and after: beyond the number of cores others were at work too.
"""


def work():
    return os.path.abspath(os.environ.get("BENCH_DIR") or os.path.join(stages.ROOT, "target", "bench"))


def keep(name, result):
    """A row measured on this machine."""
    folder = os.path.join(RESULTS, machine.name())
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, f"{name}.json"), "w") as file:
        json.dump(result, file, indent=1)
        file.write("\n")


def read(folder):
    found = {}
    for name in sorted(os.listdir(folder)):
        if not name.endswith(".json"):
            continue
        with open(os.path.join(folder, name)) as file:
            result = json.load(file)
        found[name.removesuffix(".json")] = result
        for part in result.get("parts", []):
            found[f"{name.removesuffix('.json')} {part['scheme']}"] = part | {"machine": result["machine"]}
    return found


def number(value):
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}".replace(",", " ")


def gb(value):
    return f"{value / 1e9:.2f}"


def ratio(three):
    return f"**{three[0]:.2f}** ({three[1]:.2f}–{three[2]:.2f})"


def main_table(found):
    lines = ["| work | aim | ratio | ours | peer | whole | memory: ours, peer | load | date |",
             "|---|---|---|---|---|---|---|---|---|"]
    for name, (title, unit, aim, memory) in WORK.items():
        r = found.get(name)
        if r is None:
            continue
        aims = f"{aim:g} ×" + (f", {memory:g} of the memory" if memory else "")
        if "failed" in r:
            lines.append(f"| {title} | {aims} | {r['failed']} |||||{r['load']} | {r['date']} |")
            continue
        ours = f"{number(r['ours']['rate'][0])} {unit}"
        load = f"{r['load']}–{r['load_after']}"
        if "peer" not in r:
            why = "none installed" if not r["tried"] else "none ran"
            lines.append(f"| {title} | {aims} | – | {ours} | {why} | – | {gb(r['ours']['peak'][0])} | {load} | {r['date']} |")
            continue
        peer = f"{number(r['peer']['rate'][0])} ({r['peer']['said']['version']}, {r['peer']['label']})"
        held = f"{gb(r['ours']['peak'][0])}, {gb(r['leanest'])}: {r['memory']:.2f}"
        lines.append(f"| {title} | {aims} | {ratio(r['ratio'])} | {ours} | {peer} | {ratio(r['whole'])} | {held} | {load} "
                     f"| {r['date']} |")
    return lines


def fits(found):
    """The L^p search in time per weight and candidate: it is bound by arithmetic."""
    lines = []
    for name in ("ptq-init w4pc", "ptq-init w4g64"):
        r = found.get(name)
        if r is None or "failed" in r:
            continue
        each = r["ours"]["cpu_seconds"][0] / r["weights"]
        cycles = r["machine"].get("clock")
        cycles = f", {each * cycles:.1f} cycles of the time stamp counter" if cycles else ""
        lines.append(f"- {name}: {each * 1e9:.1f} ns of processor time a weight{cycles}, for 100 candidates; file to file.")
    return lines and ["", *lines]


def variants(found):
    lines = ["", "### What the peers were tried with", "", "| work | variant | rate | memory | |", "|---|---|---|---|---|"]
    for name, (title, unit, _, _) in WORK.items():
        tried = found.get(name, {}).get("tried", [])
        ours = found.get(name, {}).get("ours", {})
        if "ppl" in ours.get("said", {}):
            tried = [{"label": "ours", "rate": ours["rate"][0], "peak": ours["peak"][0], "said": ours["said"]}, *tried]
        for t in tried:
            if "failed" in t:
                lines.append(f"| {title} | {t['label']} | – | – | {t['failed'].replace('|', '/')} |")
                continue
            ppl = f"ppl {t['said']['ppl']:.3f}" if "ppl" in t["said"] else ""
            lines.append(f"| {title} | {t['label']} | {number(t['rate'])} {unit} | {gb(t['peak'])} | {ppl} |")
    return lines if len(lines) > 5 else []


def growth(r, chart):
    lines = ["", "### How cost grows", "", f"![time and memory]({chart})", "", f"Measured on {r['date']}, load {r['load']}.", ""]
    lines += ["| threads | tokens/s |", "|---|---|"]
    lines += [f"| {threads} | {number(rate)} |" for threads, rate in r["by_threads"]]
    lines += ["", "| tokens a step | s | ms a token |", "|---|---|---|"]
    lines += [f"| {tokens} | {seconds:.2f} | {1000 * seconds / tokens:.3f} |" for tokens, seconds in r["tokens"]]
    lines += ["", "| | peak, GB | plan, GB | |", "|---|---|---|---|"]
    for what, unit in (("layers", "layers, 1 × 512"), ("length", "tokens, batch 1")):
        for count, peak, plan in r[what]:
            lines.append(f"| {count} {unit} | {peak / 1e9:.3f} | {plan / 1e9:.3f} | {100 * (peak / plan - 1):+.1f} % |")
    return lines


def large(r):
    lines = ["", f"### {r['title']}", "", f"Measured on {r['date']}, load {r['load']}. {r['note']}", ""]
    lines += ["| run | s | read, GB/s | peak, GB | plan, GB | |", "|---|---|---|---|---|---|"]
    for s in r["runs"]:
        plan = f"{s['plan'] / 1e9:.2f} | {100 * (s['peak'] / s['plan'] - 1):+.1f} %" if s.get("plan") else "– | "
        read = f"{s['read'] / s['seconds'] / 1e9:.2f}" if s.get("read") else "–"
        lines.append(f"| {s['label']} | {s['seconds']:.1f} | {read} | {gb(s['peak'])} | {plan} |")
    return lines


def section(folder, beside, python):
    """What was measured on a machine."""
    found = read(folder)
    # Of the newest row: the system may have changed since the others.
    described = max(found.values(), key=lambda r: r.get("date", ""))["machine"]
    model = ", ".join(sorted({r["model"] for r in found.values() if "model" in r})) or "none"
    yield from (f"## {described['cpu']}", "", f"{described['flags']}; {described['system']}; {described['built']}.")
    yield from (f"SmolLM2-135M-Instruct from `{model}`.", "", *main_table(found), *fits(found))
    if "tokens" in found.get("growth", {}):
        chart = os.path.join(folder, CHART)
        draw(os.path.join(folder, "growth.json"), chart, python)
        yield from growth(found["growth"], os.path.relpath(chart, beside))
    if "large" in found:
        yield from large(found["large"])
    yield from variants(found)


def write(path, python):
    lines = HEAD.splitlines()
    for name in sorted(os.listdir(RESULTS)):
        lines += ["", *section(os.path.join(RESULTS, name), os.path.dirname(path), python)]
    with open(path, "w") as file:
        file.write("\n".join(lines) + "\n")
    print("\n".join(lines))


def draw(source, chart, python):
    """Anew where it is older than its figures."""
    if python and not (os.path.exists(chart) and os.path.getmtime(chart) >= os.path.getmtime(source)):
        subprocess.run([python, os.path.join(BENCH, "harness", "chart.py"), source, chart], check=False)
