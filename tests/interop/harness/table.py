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
        """Fills `own`, and `ppl`, `against` and `limit` of what is compared. W8A8 has two parts: transformers' weights
        beside eval, and vLLM's kernels beside transformers' simulation of the rounded activations, which eval does not
        know."""
        self.own = own
        self.ppl, self.against, self.limit = self.answer["ppl"], own, FLOAT
        if self.engine == "llama_cpp":
            self.limit = ROUNDED
        if self.form == "int-quantized":
            weights_only = self.answer.get("weights_only_nll")
            if weights_only is not None:
                self.ppl = math.exp(weights_only)
            elif simulated is not None:
                self.against, self.limit = simulated, ROUNDED

    @property
    def off(self):
        """Is what is compared beyond its limit?"""
        return self.answer is not None and abs(self.ppl / self.against - 1) > self.limit

    @property
    def beyond(self):
        """Is the engine's perplexity further from eval's than the table says, whatever is compared?"""
        limit = ROUNDED if self.form == "int-quantized" else self.limit
        return self.answer is not None and abs(self.answer["ppl"] / self.own - 1) > limit


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


def percent(ratio):
    return f"{round(100 * (ratio - 1), 3) + 0.0:+.3f} %"  # + 0.0: never -0.000


def cell_text(cell, notes):
    if cell is None:
        return "–"
    if cell.answer is None:
        text = "fails" if cell.claims else "does not load, as `fold` says"
        said = f"; `fold` says that it loads {cell.claim_note}" if cell.claims and cell.claim_note else ""
        return f"{text} {notes.number(cell.failure + said)}"
    text = f"{cell.answer['ppl']:.3f} ({percent(cell.answer['ppl'] / cell.own)})"
    if cell.off or cell.beyond:
        text = f"**{text}**"
    if cell.form == "int-quantized":
        what = "the same with activations left in float, beside `eval`"
        if "weights_only_nll" not in cell.answer:
            what = "beside transformers' simulation of 8-bit activations"
        said = f"W8A8, see above; compared instead: {what}: {percent(cell.ppl / cell.against)}"
        text += " " + notes.number(said)
    if not cell.claims:
        text += " " + notes.number(f"loads, though `fold` says that it does not: {cell.claim_note}")
    return text


def w8a8(engines, cells):
    """Why W8A8 is beyond the limit that the table's readers expect, with the figures."""
    found = [cell for cell in cells if cell.form == "int-quantized" and cell.answer and cell.beyond]
    if not found:
        return []
    told = ", ".join(f"{engines[c.engine]} {percent(c.answer['ppl'] / c.own)} at {c.scheme}" for c in found)
    return [
        "",
        f"**W8A8 (int-quantized) is not within 1 % of `eval`**: {told}.",
        "The engines round the activations of each token to 8 bits there, and `eval` never does. So this row does not show",
        "that `eval` tells what these engines give: it shows that the weights are read right (transformers with activations",
        "left in float, beside `eval`: 0.1 %) and that vLLM's kernels do what transformers simulates (1 %). Those two figures",
        "are in the notes.",
    ]


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
    lines += w8a8(engines, cells.values())
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
        for cell in answered[engine][-1:]:
            lines.append(f"- {name}, {cell.scheme} {cell.form}: {cell.answer['sentence']!r}")
    return "\n".join(lines) + "\n"
