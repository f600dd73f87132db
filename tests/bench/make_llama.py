#!/usr/bin/env python3
"""Makes a LLaMA of seeded random weights with a small tokenizer: LLaMA-2-7B's shape (13.5 GB), or fewer of its layers.

    tests/bench/make_llama.py DIR [--shape llama2-7b|smollm2-135m] [--layers N] [--seed 0]

bf16 safetensors in shards of at most 5 GB with an index, as such models come; needs numpy. Weights are normal with
variance 1/K, so that activations neither vanish nor explode. The tokenizer is the demo model's, the vocabulary as large
as the shape says: the ids beyond the tokenizer's are never met.
"""
import argparse
import json
import os
import shutil
import struct

import numpy

DEMO = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "demo", "model")
# d, ffn, layers, heads, kv heads, vocabulary, tied embeddings, rope theta, epsilon
SHAPES = {
    "llama2-7b": (4096, 11008, 32, 32, 32, 32000, False, 10000.0, 1e-5),
    "smollm2-135m": (576, 1536, 30, 9, 3, 49152, True, 100000.0, 1e-5),
}
SHARD = 5_000_000_000


def config(shape, layers):
    d, ffn, full, heads, kv_heads, vocabulary, tied, theta, epsilon = SHAPES[shape]
    with open(os.path.join(DEMO, "config.json")) as file:
        made = json.load(file)
    made.update(hidden_size=d, intermediate_size=ffn, num_hidden_layers=layers or full, num_attention_heads=heads,
                num_key_value_heads=kv_heads, head_dim=d // heads, vocab_size=vocabulary, tie_word_embeddings=tied,
                rope_theta=theta, rms_norm_eps=epsilon, max_position_embeddings=4096)
    return made


def shapes(c):
    """Name and shape of every tensor, in the order of the model."""
    d, ffn, vocabulary = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    wide, narrow = c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
    yield "model.embed_tokens.weight", (vocabulary, d)
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for name, n, k in (("q", wide, d), ("k", narrow, d), ("v", narrow, d), ("o", d, wide)):
            yield f"{layer}self_attn.{name}_proj.weight", (n, k)
        for name, n, k in (("gate", ffn, d), ("up", ffn, d), ("down", d, ffn)):
            yield f"{layer}mlp.{name}_proj.weight", (n, k)
        yield f"{layer}input_layernorm.weight", (d,)
        yield f"{layer}post_attention_layernorm.weight", (d,)
    yield "model.norm.weight", (d,)
    if not c["tie_word_embeddings"]:
        yield "lm_head.weight", (vocabulary, d)


def size(shape):
    return 2 * int(numpy.prod(shape))


def values(random, shape):
    """As bf16, in parts: a whole embedding in f32 would take half a gigabyte."""
    if len(shape) == 1:
        yield numpy.full(shape, 0x3F80, numpy.uint16)
        return
    rows, k = shape
    for first in range(0, rows, 1024):
        part = random.standard_normal((min(1024, rows - first), k), dtype=numpy.float32)
        part *= numpy.float32(k) ** numpy.float32(-0.5)
        yield (part.view(numpy.uint32) >> 16).astype(numpy.uint16)


def shards(tensors):
    """Cut so that none is larger than SHARD."""
    whole, filled = [[]], 0
    for name, shape in tensors:
        if filled + size(shape) > SHARD:
            whole.append([])
            filled = 0
        whole[-1].append((name, shape))
        filled += size(shape)
    return whole


def write(path, tensors, seed):
    header, at = {}, 0
    for name, shape in tensors:
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size(shape)]}
        at += size(shape)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors:
            # Of each tensor its own: a model of fewer layers has the same first ones.
            for part in values(numpy.random.default_rng([seed, *name.encode()]), shape):
                file.write(part.tobytes())
    return at


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("directory")
    p.add_argument("--shape", choices=SHAPES, default="llama2-7b")
    p.add_argument("--layers", type=int)
    p.add_argument("--seed", type=int, default=0)
    o = p.parse_args()
    part = o.directory + ".part"
    shutil.rmtree(part, ignore_errors=True)
    os.makedirs(part)
    c = config(o.shape, o.layers)
    whole = shards(shapes(c))
    place, total = {}, 0
    for i, tensors in enumerate(whole, 1):
        name = f"model-{i:05}-of-{len(whole):05}.safetensors" if len(whole) > 1 else "model.safetensors"
        total += write(os.path.join(part, name), tensors, o.seed)
        place.update({tensor: name for tensor, _ in tensors})
    if len(whole) > 1:
        with open(os.path.join(part, "model.safetensors.index.json"), "w") as file:
            json.dump({"metadata": {"total_size": total}, "weight_map": place}, file, indent=1)
    with open(os.path.join(part, "config.json"), "w") as file:
        json.dump(c, file, indent=1)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(DEMO, name), part)
    os.rename(part, o.directory)


main()
