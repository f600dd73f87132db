"""The rows of the table: what is measured, how the peers do it, and what is aimed at."""
import json
import os
import shutil
import statistics

from . import pairs, stages
from .pairs import Variant
from .processes import Failed, run

PEERS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "peers")
STEPS = 5  # of a training run; the first is left out
BLOCKS = 8  # of 2048 tokens
PRODUCTS = [(1024, 576, 1536), (1024, 4096, 4096)]  # M × K × N


class Bench:
    """What the rows share: the model, its stages, made once, and the Pythons of the peers."""

    def __init__(self, o, pythons):
        self.o, self.pythons, self.work, self.threads = o, pythons, o.work, str(o.threads)
        self.stages = os.path.join(o.work, "stages")

    def path(self, *names):
        return os.path.join(self.stages, *names)

    def tool(self, name, *arguments, threads=None):
        return [os.path.join(stages.TOOLS, name), *arguments, "-q", "--threads", str(threads or self.threads)]

    def peer(self, script, *arguments, python="torch", threads=None):
        return [self.pythons[python], os.path.join(PEERS, script), *arguments, "--threads", str(threads or self.threads)]

    def made(self, tool, path, *arguments):
        """A stage that others read; an existing one is kept if it was made alike."""
        run(self.tool(tool, *arguments, "--force", "-o", path))
        return path

    def wrapped(self, scheme, *arguments, model=None, name=None):
        name = name or scheme
        scales = self.made("ptq-init", self.path(name, "scales"), model or self.o.model, "--scheme", scheme)
        return self.made("lr-wrap", self.path(name, "wrapped"), scales, *arguments)

    def shards(self, wrapped):
        return self.made("shard", self.path("shards-" + os.path.basename(os.path.dirname(wrapped))), self.o.text,
                         "--tokenizer", wrapped)

    def ids(self, wrapped):
        path = os.path.join(self.work, "ids.json")
        ids = stages.token_ids(wrapped, self.o.text, 2048 * BLOCKS, self.path("ids"))
        with open(path, "w") as file:
            json.dump(ids, file)
        return path, len(ids) // 2048

    def step(self, wrapped, label, *arguments, batch=4, seq=512, steps=STEPS, threads=None):
        """A training run and how its rate is read: the median of its steps after the first."""
        out = self.path("trained")
        command = self.tool("qat-step", wrapped, "--shards", self.shards(wrapped), "--steps", str(steps), "--batch",
                            str(batch), "--seq", str(seq), "--save-every", "0", *arguments, "-o", out, threads=threads)

        def rate(_):
            with open(os.path.join(out, "metrics.jsonl")) as file:
                rates = [json.loads(line)["tokens_per_s"] for line in file]
            return statistics.median(rates[1:] or rates)

        def clear():
            for path in (out, out + ".part"):
                shutil.rmtree(path, ignore_errors=True)

        return Variant(label, command, rate, before=clear)

    def planned(self, wrapped, *arguments):
        call = self.tool("qat-step", wrapped, "--shards", self.shards(wrapped), *arguments, "--plan", "--json")
        return run(call).said["total"]


def inside(key):
    return lambda sample: sample.said[key]


def steps(bench, dtype, *memory):
    wrapped = bench.wrapped("w4pc")
    ours = bench.step(wrapped, " ".join([f"--compute {dtype}", *memory]), "--compute", dtype, *memory)
    variants = []
    if "torch" in bench.pythons:
        for compiled in ([], ["--compile"]):
            for recompute in ("none", "linear", "block"):
                command = bench.peer("torch_step.py", bench.o.model, "--dtype", dtype, "--recompute", recompute,
                                     "--steps", str(STEPS - 1), *compiled)
                label = f"{dtype}, recompute {recompute}" + (", compiled" if compiled else "")
                variants.append(Variant(label, command, inside("tokens_per_s")))
    return pairs.compare(ours, variants, bench.o.repeats)


def adapters(bench):
    """Fine-tuning a model that is quantized already, beside LoRA on the float model."""
    gptq = bench.made("fold", bench.path("w4g64", "gptq"), bench.wrapped("w4g64"), "--format", "gptq")
    scales = bench.made("ptq-init", bench.path("gptq", "scales"), gptq)
    outside = ["--adapter", "outside", "--rank", "8"]
    wrapped = bench.made("lr-wrap", bench.path("gptq", "wrapped"), scales, *outside)
    flags = ["--lr-scale", "0", "--memory", "least"]
    ours = bench.step(wrapped, " ".join(["w4g64, --adapter outside --rank 8", *flags]), *flags)
    variants = []
    if "torch" in bench.pythons:
        for flags, label in ([], "all kept"), (["--recompute"], "recompute block"), (["--compile"], "all kept, compiled"):
            command = bench.peer("torch_lora.py", bench.o.model, "--steps", str(STEPS - 1), *flags)
            variants.append(Variant(f"peft, rank 8, bf16, {label}", command, inside("tokens_per_s")))
    return pairs.compare(ours, variants, bench.o.repeats)


def perplexity(bench):
    ids, blocks = bench.ids(bench.wrapped("w4pc"))
    call = ["eval", bench.o.model, "--ppl", bench.o.text, "--max-blocks", str(blocks), "--json"]
    ours = Variant("eval", bench.tool(*call), lambda sample: 2048 * blocks / sample.seconds)
    variants = []
    if "torch" in bench.pythons:
        for compiled in ([], ["--compile"]):
            for batch in (1, 4):
                command = bench.peer("torch_ppl.py", bench.o.model, ids, "--blocks", str(blocks), "--batch", str(batch),
                                     *compiled)
                label = f"bf16, batch {batch}" + (", compiled" if compiled else "")
                variants.append(Variant(label, command, inside("tokens_per_s")))
    return pairs.compare(ours, variants, bench.o.repeats)


def folded(bench):
    wrapped = bench.wrapped("w4g64")
    gguf = bench.made("fold", bench.path("w4g64", "gguf"), wrapped, "--format", "gguf")
    ids, blocks = bench.ids(wrapped)
    call = ["eval", gguf, "--ppl", bench.o.text, "--max-blocks", str(blocks), "--json"]
    ours = Variant("eval", bench.tool(*call), lambda sample: 2048 * blocks / sample.seconds)
    variants = []
    if "llama_cpp" in bench.pythons:
        for repack in ([], ["--repack"]):
            for batch in (512, 2048):
                command = bench.peer("llama_prompt.py", gguf, ids, "--blocks", str(blocks), "--batch", str(batch),
                                     *repack, python="llama_cpp")
                label = f"n_batch {batch}, " + ("repacked weights" if repack else "use_extra_bufts=False")
                variants.append(Variant(label, command, inside("tokens_per_s")))
    return pairs.compare(ours, variants, bench.o.repeats)


def fit(bench):
    scales, found = {}, []
    for scheme in ("w4pc", "w4g64"):
        scales[scheme] = bench.made("ptq-init", bench.path("fit", scheme), bench.o.model, "--scheme", scheme)
        file = os.path.join(scales[scheme], "scales.safetensors")
        found.append(fit_one(bench, scheme, file))
    return {"parts": found}


def fit_one(bench, scheme, file):
    out = bench.path("fit", "timed")
    weights = count_weights(bench)
    command = bench.tool("ptq-init", bench.o.model, "--scheme", scheme, "--fit", "lp:3", "-o", out)
    ours = Variant(f"ptq-init --scheme {scheme}", command, lambda sample: weights / sample.seconds,
                   before=lambda: shutil.rmtree(out, ignore_errors=True))

    def rate(sample):
        agree = sample.said["agree"]
        if agree < 0.999:
            raise Failed(f"no comparison: only {agree:.1%} of its scales are the least of the search")
        return sample.said["weights_per_s"]

    variants = []
    if "torch" in bench.pythons:
        group = ["--group", scheme.split("g")[1]] if "g" in scheme else []
        ways = [("f32, whole linears", ["--chunk", str(1 << 30)]), ("f32, in cache", ["--chunk", str(1 << 18)]),
                ("f32, compiled", ["--compile", "--chunk", str(1 << 18)]), ("bf16, in cache", ["--dtype", "bf16"])]
        for label, arguments in ways:
            command = bench.peer("torch_fit.py", bench.o.model, *group, *arguments, "--expect", file)
            variants.append(Variant(label, command, rate))
    return pairs.compare(ours, variants, bench.o.repeats) | {"weights": weights, "scheme": scheme}


def count_weights(bench):
    """Of all linears, from the configuration that lr-wrap writes."""
    with open(os.path.join(bench.wrapped("w4pc"), "config.json")) as file:
        c = json.load(file)
    d, f, heads = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"]
    head, kv = c.get("head_dim") or d // heads, c.get("num_key_value_heads") or heads
    return c["num_hidden_layers"] * (2 * d * heads * head + 2 * d * kv * head + 3 * d * f)


def product(bench, shape):
    """`products M K N` is the matrix kernel alone: it prints {"gflops": …} as the peer's script does."""
    program = os.path.join(stages.TOOLS, "examples", "products")
    if not os.path.exists(program):
        raise Failed("no example `products` in this tree")
    shape = [str(n) for n in shape]
    ours = Variant("products", [program, *shape, "--threads", bench.threads], inside("gflops"))
    variants = []
    if "torch" in bench.pythons:
        variants.append(Variant("bf16", bench.peer("torch_product.py", *shape), inside("gflops")))
    return pairs.compare(ours, variants, bench.o.repeats)


def growth(bench):
    """How cost grows: a rate by threads, seconds by tokens, memory by layers and by length beside the plan."""
    if "numpy" not in bench.pythons:
        raise Failed("no Python with numpy to make models with (make bench-peers)")
    wrapped, compute = bench.wrapped("w4pc"), ["--compute", "auto", "--memory", "least"]
    found = {"by_threads": [], "tokens": [], "layers": [], "length": []}
    for threads in dict.fromkeys((1, bench.o.threads)):
        samples = [bench.step(wrapped, f"{threads} threads", *compute, threads=threads).measure() for _ in range(3)]
        found["by_threads"].append([threads, statistics.median(s.rate for s in samples)])
    for batch in (1, 2, 4, 8):
        sample = bench.step(wrapped, f"{batch} × 512", *compute, batch=batch).measure()
        found["tokens"].append([batch * 512, batch * 512 / sample.rate])
    for seq in (256, 512, 1024, 2048):
        sample = bench.step(wrapped, f"1 × {seq}", *compute, batch=1, seq=seq, steps=2).measure()
        plan = bench.planned(wrapped, *compute, "--batch", "1", "--seq", str(seq))
        found["length"].append([seq, sample.peak, plan])
    for layers in (6, 12, 18, 24):
        name = f"layers-{layers}"
        model = bench.path(name, "model")
        shutil.rmtree(model, ignore_errors=True)
        script = os.path.join(os.path.dirname(PEERS), "make_llama.py")
        run([bench.pythons["numpy"], script, model, "--shape", "smollm2-135m", "--layers", str(layers)])
        deep = bench.wrapped("w4pc", model=model, name=name)
        sample = bench.step(deep, f"{layers} layers", *compute, batch=1, seq=512, steps=2).measure()
        plan = bench.planned(deep, *compute, "--batch", "1", "--seq", "512")
        found["layers"].append([layers, sample.peak, plan])
        shutil.rmtree(bench.path(name))
    return pairs.machine.now() | found


ROWS = {
    "qat-step": lambda bench: steps(bench, "bf16"),
    "qat-step-least": lambda bench: steps(bench, "bf16", "--memory", "least"),
    "qat-step-f32": lambda bench: steps(bench, "f32"),
    "lora": adapters,
    "eval-float": perplexity,
    "eval-folded": folded,
    "ptq-init": fit,
    "product-0": lambda bench: product(bench, PRODUCTS[0]),
    "product-1": lambda bench: product(bench, PRODUCTS[1]),
    "growth": growth,
}
