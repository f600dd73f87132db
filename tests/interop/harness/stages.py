"""The tools at work: a model folded at a scheme in every format, the ids of a text, and what `eval` says."""
import json
import os
import shutil
import struct
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.normpath(os.path.join(HERE, "..", "..", ".."))
TOOLS = os.path.join(ROOT, os.environ.get("CARGO_TARGET_DIR", "target"), "release")
FORMATS = ["compressed-tensors", "int-quantized", "gptq", "gptq-v2", "awq", "gguf"]


class Refused(Exception):
    """A tool ended with an error: its line."""


def tool(name, *arguments):
    done = subprocess.run([os.path.join(TOOLS, name), *arguments, "-q"], capture_output=True, text=True)
    if done.returncode != 0:
        raise Refused((done.stderr.strip().splitlines() or [f"{name} ended with {done.returncode}"])[-1])
    return done.stdout


def model(directory):
    """SmolLM2-135M-Instruct: LRQAT_SMOLLM2, or fetched."""
    given = os.environ.get("LRQAT_SMOLLM2")
    if given:
        return os.path.abspath(given)
    subprocess.run([os.path.join(ROOT, "pipelines", "fetch-smollm2"), directory], check=True)
    return next(os.path.join(directory, name) for name in os.listdir(directory) if name.endswith(".gguf"))


def wrap(source, scheme, directory):
    """Round to nearest, wrapped: it folds by the same arithmetic as a trained checkpoint. Always made again."""
    shutil.rmtree(directory, ignore_errors=True)
    scales, wrapped = os.path.join(directory, "scales"), os.path.join(directory, "wrapped")
    tool("ptq-init", source, "--scheme", scheme, "-o", scales)
    tool("lr-wrap", scales, "-o", wrapped)
    return wrapped


def targets(wrapped):
    """What `fold` says of each format: {format: {engine: (loads, note)}}."""
    said = json.loads(tool("fold", wrapped, "--list-targets", "--json"))["targets"]
    return {t["format"]: {e["engine"]: (e["loads"], e.get("note", "")) for e in t["engines"]} for t in said}


def fold(wrapped, form, directory):
    tool("fold", wrapped, "--format", form, "-o", directory)


def perplexity(folded, text, ctx, blocks):
    call = [folded, "--ppl", text, "--ctx", str(ctx), "--max-blocks", str(blocks), "--compute", "f32", "--json"]
    return json.loads(tool("eval", *call))["artefacts"][0]["ppl"][text]["ppl"]


def token_ids(wrapped, text, count, directory):
    """The first ids of the text: `shard` makes them as `eval` does."""
    shutil.rmtree(directory, ignore_errors=True)
    tool("shard", text, "--tokenizer", wrapped, "-o", directory)
    return tokens(directory, count)


def tokens(shards, count):
    """The first ids of the first shard."""
    with open(os.path.join(shards, "tokens-00000.safetensors"), "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        start, end = header["tokens"]["data_offsets"]
        file.seek(start, os.SEEK_CUR)
        count = min(count, (end - start) // 4)
        return list(struct.unpack(f"<{count}I", file.read(4 * count)))


def tensor_bytes(directory):
    """Of all tensors of its safetensors files."""
    total = 0
    for name in os.listdir(directory):
        if name.endswith(".safetensors"):
            with open(os.path.join(directory, name), "rb") as file:
                header = struct.unpack("<Q", file.read(8))[0]
            total += os.path.getsize(os.path.join(directory, name)) - 8 - header
    return total
