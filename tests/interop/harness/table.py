"""What came out, as Markdown."""
import math

FLOAT, ROUNDED = 0.001, 0.01  # the engines' perplexity may differ from eval's by so much


class Cell:
    """One engine on one folded directory."""

    def __init__(self, engine, scheme, form, claim):
        self.engine, self.scheme, self.form = engine, scheme, form
        self.claims, self.claim_note = claim
        self.answer = self.failure = None

    def judge(self, own, simulated):
        """Fills `against`, `difference` and `limit`. W8A8 has two parts: transformers' weights beside eval, and vLLM's
        kernels beside transformers' simulation of the rounded activations, which eval does not know."""
        self.ppl, self.against, self.limit = self.answer["ppl"], own, FLOAT
        if self.engine == "llama_cpp":
            self.limit = ROUNDED
        if self.form == "int-quantized":
            weights_only = self.answer.get("weights_only_nll")
            if weights_only is not None:
                self.ppl = math.exp(weights_only)
            elif simulated is not None:
                self.against, self.limit = simulated, ROUNDED
        self.difference = self.ppl / self.against - 1

    @property
    def off(self):
        return self.answer is not None and abs(self.difference) > self.limit


class Notes:
    """Numbered, each said once."""

    def __init__(self):
        self.said = []

    def number(self, note):
        if note not in self.said:
            self.said.append(note)
        return f"[{self.said.index(note) + 1}]"

    def lines(self):
        return [f"{i}. {note}" for i, note in enumerate(self.said, 1)]


def cell_text(cell, notes):
    if cell is None:
        return "–"
    if cell.answer is None:
        text = "fails" if cell.claims else "does not load, as `fold` says"
        said = f"; `fold` says that it loads {cell.claim_note}" if cell.claims and cell.claim_note else ""
        return f"{text} {notes.number(cell.failure + said)}"
    text = f"{cell.answer['ppl']:.3f} ({100 * (cell.answer['ppl'] / cell.own - 1):+.3f} %)"
    if cell.form == "int-quantized":
        if "weights_only_nll" in cell.answer:
            said = f"8-bit activations simulated; left in float: {cell.ppl:.3f} ({100 * cell.difference:+.3f} %)"
        else:
            said = f"8-bit activations; beside transformers' simulation of them {100 * cell.difference:+.3f} %"
        text += " " + notes.number(said)
    if not cell.claims:
        text += " " + notes.number(f"loads, though `fold` says that it does not: {cell.claim_note}")
    return f"**{text}**" if cell.off else text


def dtype_of(cells):
    kinds = {}
    for cell in cells:
        kinds.setdefault(cell.answer["dtype"], set()).add(cell.form)
    if len(kinds) < 2:
        return next(iter(kinds), "")
    most = max(kinds, key=lambda kind: len(kinds[kind]))
    return most + "".join(f", {', '.join(sorted(forms))} {kind}" for kind, forms in kinds.items() if kind != most)


def markdown(heading, engines, rows, cells, failures):
    """`rows`: (scheme, format, own perplexity or None, why not); `cells`: by (engine, scheme, format)."""
    notes = Notes()
    answered = {e: [c for c in cells.values() if c.engine == e and c.answer] for e in engines}
    lines = list(heading) + [""]
    lines.append("| scheme | format | `eval`, f32 | " + " | ".join(engines.values()) + " |")
    lines.append("|---|---|---|" + "---|" * len(engines))
    for scheme, form, own, refused in rows:
        if own is None:
            lines.append(f"| {scheme} | {form} | refused {notes.number(refused)} |" + " |" * len(engines))
            continue
        found = [cells.get((e, scheme, form)) for e in engines]
        lines.append(f"| {scheme} | {form} | {own:.3f} | " + " | ".join(cell_text(c, notes) for c in found) + " |")
    lines += ["", *notes.lines(), "", "| engine | computes in | kernel of a linear | ids tokenized otherwise | versions |"]
    lines.append("|---|---|---|---|---|")
    for engine, name in engines.items():
        if engine in failures:
            lines.append(f"| {name} | not installed: {failures[engine]} | | | |")
            continue
        done = answered[engine]
        versions = {k: v for c in done for k, v in c.answer["versions"].items()}
        kernels = ", ".join(sorted({c.answer["note"] for c in done} - {""}))
        differ = sorted({c.answer["ids_differ"] for c in done})
        said = ", ".join(f"{k} {v}" for k, v in versions.items())
        lines.append(f"| {name} | {dtype_of(done)} | {kernels} | {', '.join(map(str, differ))} | {said} |")
    lines += ["", "A greedy sentence of each, as it came:", ""]
    for engine, name in engines.items():
        for cell in answered[engine][:1]:
            lines.append(f"- {name}, {cell.scheme} {cell.form}: {cell.answer['sentence']!r}")
    return "\n".join(lines) + "\n"
