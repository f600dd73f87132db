"""Ours and the peer's, in turn: what the machine does besides hits both, and a ratio is taken of each pair."""
import statistics
import sys

from . import machine, processes


class Variant:
    """A way to do the work: a label and the command; `rate(sample)` is what is compared, more being better."""

    def __init__(self, label, command, rate, before=None):
        self.label, self.command, self.rate, self.before = label, command, rate, before

    def measure(self):
        if self.before:
            self.before()
        sample = processes.run(self.command)
        sample.rate = self.rate(sample)
        say(f"  {self.label}: {sample.rate:.4g} in {sample.seconds:.1f} s, {sample.peak / 1e9:.2f} GB")
        return sample


def say(*words):
    print("bench:", *words, file=sys.stderr, flush=True)


def spread(values):
    """Median, least, largest."""
    return [statistics.median(values), min(values), max(values)]


def summary(samples):
    return {
        "rate": spread([s.rate for s in samples]),
        "seconds": spread([s.seconds for s in samples]),
        "cpu_seconds": spread([s.cpu_seconds for s in samples]),
        "peak": spread([s.peak for s in samples]),
        "said": told(samples[-1]),
    }


def told(sample):
    """Of what a program said, what the report repeats."""
    said = sample.said if isinstance(sample.said, dict) else {}
    kept = {key: said[key] for key in ("version", "ppl") if key in said}
    for artefact in said.get("artefacts", []):
        kept["ppl"] = next(iter(artefact["ppl"].values()))["ppl"]
    return kept


def try_all(variants):
    """One run of each of the peer's variants: those that ran, the fastest first, and how they did."""
    ran, tried = [], []
    for variant in variants:
        try:
            sample = variant.measure()
        except processes.Failed as e:
            say(f"  {variant.label}: {e}")
            tried.append({"label": variant.label, "failed": str(e)})
            continue
        ran.append((sample.rate, variant))
        tried.append({"label": variant.label, "rate": sample.rate, "seconds": sample.seconds, "peak": sample.peak,
                      "said": told(sample)})
    return [variant for _, variant in sorted(ran, key=lambda pair: -pair[0])], tried


def compare(ours, variants, repeats):
    """Ours beside the peer's fastest variant. Without a peer, ours alone."""
    result = machine.now() | {"repeats": repeats}
    ours.measure()  # Before the peer's many, so that a mistake of ours shows at once.
    ranked, result["tried"] = try_all(variants)
    ours_samples, peer_samples = [], []
    for i in range(repeats):
        turn = [(ours, ours_samples)] + [(variant, peer_samples) for variant in ranked[:1]]
        for variant, samples in turn if i % 2 == 0 else reversed(turn):
            samples.append(variant.measure())
    result["ours"] = summary(ours_samples) | {"label": ours.label}
    if peer_samples:
        pairs = list(zip(ours_samples, peer_samples))
        result["peer"] = summary(peer_samples) | {"label": ranked[0].label}
        result["ratio"] = spread([a.rate / b.rate for a, b in pairs])
        result["whole"] = spread([b.seconds / a.seconds for a, b in pairs])
        leanest = min([t["peak"] for t in result["tried"] if "peak" in t] + [s.peak for s in peer_samples])
        result["leanest"] = leanest
        result["memory"] = result["ours"]["peak"][0] / leanest
    result["load_after"] = machine.now()["load"]
    return result
