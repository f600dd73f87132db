"""The formats in safetensors files, read by compressed-tensors' own functions; GPTQ by the formulas of GPTQModel's torch
kernel (`BaseQuantLinear.dequantize_weight` of nn_modules/qlinear/__init__.py), which are short enough to write again."""
import glob
import os

import numpy
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
from compressed_tensors.quantization import QuantizationConfig
from safetensors import safe_open

from .contract import Linear


class Packed:
    """A folded directory of safetensors files; `linear(name)` gives integers, and `dense(name)`, where the package
    dequantizes by itself, what it makes of them."""

    def __init__(self, directory, quantization):
        self.place = {}
        for path in sorted(glob.glob(os.path.join(directory, "*.safetensors"))):
            file = safe_open(path, "pt")
            self.place.update((name, file) for name in file.keys())
        self.quantization = quantization
        self.unread = set(self.place)

    def get(self, name):
        self.unread.discard(name)
        return self.place[name].get_tensor(name)

    def float(self, name):
        return self.get(name)

    def parts(self, name, suffixes):
        return {s: self.get(f"{name}.{s}") for s in suffixes if f"{name}.{s}" in self.place}


class CompressedTensors(Packed):
    """Formats pack-quantized and int-quantized."""

    def __init__(self, directory, quantization):
        super().__init__(directory, quantization)
        self.parsed = QuantizationConfig.model_validate(quantization)  # refuses unknown keys of a scheme
        (self.rule,) = self.parsed.config_groups.values()

    def said(self):
        weights = self.rule.weights
        return weights.num_bits, weights.group_size if weights.strategy == "group" else None, not weights.symmetric

    def state(self, name):
        state = self.parts(name, ("weight", "weight_packed", "weight_shape", "weight_scale", "weight_zero_point"))
        state["weight_scale"] = state["weight_scale"].float()
        return state

    def linear(self, name):
        state, bits = self.state(name), self.rule.weights.num_bits
        scale, zero = state["weight_scale"], state.get("weight_zero_point")
        if "weight_packed" in state:
            codes = unpack_from_int32(state["weight_packed"], bits, torch.Size(state["weight_shape"].tolist()))
            if zero is not None:
                zero = unpack_from_int32(zero, bits, torch.Size([len(codes), scale.shape[1]]), packed_dim=0)
        else:
            codes = state["weight"]
            assert codes.dtype == torch.int8, f"{name}.weight is {codes.dtype}"
        return signed(codes, scale, zero)

    def dense(self, name):
        compressor = BaseCompressor.get_value_from_registry(self.parsed.format)
        return compressor.decompress(self.state(name), self.rule)["weight"].float().numpy()


class Awq(Packed):
    def __init__(self, directory, quantization):
        super().__init__(directory, quantization)
        self.converter = AutoAWQConverter.from_autoawq_config(quantization)

    def said(self):
        group = self.quantization["group_size"]
        return self.quantization["bits"], None if group == -1 else group, None

    def linear(self, name):
        tensors = {f"{name}.{s}": t for s, t in self.parts(name, ("qweight", "qzeros", "scales")).items()}
        self.converter.validate(tensors)
        made = self.converter.process(tensors)
        shape = torch.Size(made[f"{name}.weight_shape"].tolist())
        scale = made[f"{name}.weight_scale"].float()
        zero = unpack_from_int32(made[f"{name}.weight_zero_point"], 4, scale.shape, packed_dim=0)
        return signed(unpack_from_int32(made[f"{name}.weight_packed"], 4, shape), scale, zero)

    dense = None


class Gptq(Packed):
    def said(self):
        q = self.quantization
        return q["bits"], None if q["group_size"] == -1 else q["group_size"], not q["sym"]

    def linear(self, name):
        bits = self.quantization["bits"]
        parts = self.parts(name, ("qweight", "qzeros", "scales", "g_idx"))
        codes = unpack_rows(parts["qweight"].numpy(), bits).T
        zero = unpack_rows(parts["qzeros"].numpy().T, bits)
        if self.quantization["checkpoint_format"] == "gptq":
            zero = zero + 1
        scale = parts["scales"].float().T
        group = codes.shape[1] // scale.shape[1]
        assert (parts["g_idx"].numpy() == numpy.arange(codes.shape[1]) // group).all(), f"{name}.g_idx"
        half = 2 ** (bits - 1)
        return Linear(codes - half, scale.numpy(), zero - half)

    dense = None


def unpack_rows(words, bits):
    """[words, n] to [values, n]: fields of `bits`, lowest first; three words hold 32 fields of three bits."""
    words = words.astype(numpy.int64) & 0xFFFFFFFF
    if bits != 3:
        fields = [(words >> shift) & (2**bits - 1) for shift in range(0, 32, bits)]
        return numpy.stack(fields, axis=1).reshape(-1, words.shape[1])
    first, second, third = words[0::3], words[1::3], words[2::3]
    fields = [(first >> 3 * j) & 7 for j in range(10)]
    fields.append((first >> 30) | (second & 1) << 2)
    fields += [(second >> 1 + 3 * j) & 7 for j in range(10)]
    fields.append((second >> 31) | (third & 3) << 1)
    fields += [(third >> 2 + 3 * j) & 7 for j in range(10)]
    return numpy.stack(fields, axis=1).reshape(-1, words.shape[1])


def signed(codes, scale, zero):
    zero = torch.zeros_like(scale) if zero is None else zero
    return Linear(codes.long().numpy(), scale.numpy(), zero.long().numpy())
