"""Reads folded directories by other people's packages and compares every integer, scale and zero point with W_Z, computed
here from the wrapped model or checkpoint that they were folded from.

    python read_back.py SOURCE FOLDED...

Exits 1 at the first difference, naming tensor and element. The other tensors have to be the source's, too.
"""
import json
import os
import sys

import numpy
import torch

from reading.contract import Source
from reading.gguf_file import Gguf, tolerance
from reading.packed import Awq, CompressedTensors, Gptq

READERS = {"compressed-tensors": CompressedTensors, "awq": Awq, "gptq": Gptq}


class Different(Exception):
    pass


def same(what, found, expected, allowed=0):
    found, expected = numpy.asarray(found), numpy.asarray(expected)
    if found.shape != expected.shape:
        raise Different(f"{what}: shape {list(found.shape)}, expected {list(expected.shape)}")
    wrong = numpy.abs(found.astype(numpy.float64) - expected) > allowed
    wrong |= ~numpy.isfinite(found.astype(numpy.float64))
    if wrong.any():
        at = tuple(int(i) for i in numpy.argwhere(wrong)[0])
        raise Different(f"{what}{list(at)}: {found[at]}, expected {expected[at]} ({wrong.sum()} of {wrong.size} differ)")


def check_packed(reader, source):
    scheme = source.scheme
    for said, wanted in zip(reader.said(), (scheme.bits, scheme.group, scheme.asymmetric)):
        if said is not None and said != wanted:
            raise Different(f"config.json: quantization_config says {reader.said()}, the scheme is {vars(scheme)}")
    for name in source.linears:
        linear, wanted = reader.linear(name), source.linear(name)
        same(f"{name}: W_Z", linear.codes, wanted.codes)
        same(f"{name}: scale", linear.scale, wanted.scale)
        same(f"{name}: zero point", linear.zero, wanted.zero)
        if reader.dense:
            same(f"{name}: weight", reader.dense(name), wanted.weight())
    for name in source.floats:
        found, wanted = reader.float(name), source.float(name)
        if found.dtype != wanted.dtype or not torch.equal(found, wanted):
            raise Different(f"{name}: not the tensor of the source")


def check_gguf(reader, source):
    for name in source.linears:
        wanted = source.linear(name)
        values, kind = reader.dense(name)
        same(f"{name} ({kind}): weight", values, wanted.weight(), tolerance(kind, wanted, source.scheme.bits))
    for name in source.floats:
        values, kind = reader.values(name)
        wanted = source.float(name).float()
        allowed = 0
        if kind == "F16":
            wanted = wanted.half().float()
        elif kind == "BF16":
            wanted = wanted.bfloat16().float()
        elif kind == "Q8_0":  # an embedding asked for in 8 bits: half a step, and f16's rounding of the step
            blocks = wanted.reshape(len(wanted), -1, 32).abs().amax(dim=2) / 127
            allowed = (0.5 + 127 * 2.0**-11) * blocks.repeat_interleave(32, dim=1).numpy()
        same(f"{name} ({kind})", values, wanted.numpy(), allowed)


def check(source, folded):
    if os.path.exists(os.path.join(folded, "model.gguf")):
        kind, reader = "gguf", Gguf(folded, source.config)
        check_gguf(reader, source)
    else:
        with open(os.path.join(folded, "config.json")) as file:
            quantization = json.load(file)["quantization_config"]
        kind = quantization["quant_method"]
        reader = READERS[kind](folded, quantization)
        kind = quantization.get("format") or quantization.get("checkpoint_format") or kind
        check_packed(reader, source)
    if reader.unread:
        raise Different(f"tensors that nothing reads: {', '.join(sorted(reader.unread)[:5])}")
    print(f"{folded}: {kind}, {len(source.linears)} linears as computed from the source")


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__.split("\n\n")[1].strip())
    try:
        source = Source(sys.argv[1])
    except (OSError, ValueError) as e:
        sys.exit(f"{sys.argv[1]}: {e}")
    for folded in sys.argv[2:]:
        try:
            check(source, folded)
        except Different as e:
            sys.exit(f"{folded}: {e}")


if __name__ == "__main__":
    main()
