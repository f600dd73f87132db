"""Makes packed.safetensors: random integers and scales, and the tensors that other projects' code packs them into.

    pip install torch==2.15.0 transformers==5.23.0 compressed-tensors==0.20.0 gptqmodel==7.7.0
    python make_packed.py

The bytes depend on the seed only. For each case, a scheme and a shape:

    <scheme>/<N>x<K>/codes   u8  [N,K]   W_Z + 2^(b-1)
    <scheme>/<N>x<K>/scale   f32 [N,G]   eight significant bits: exact in f16 and bf16
    <scheme>/<N>x<K>/zero    f32 [N,G]   on the signed grid, for schemes with z
    <scheme>/<N>x<K>/<format>/l.<tensor>

Formats: pack-quantized and int-quantized by the compressors of compressed-tensors; gptq_v2 by GPTQModel's pack_original
and gptq by its conversion of that, which changes the zero points only; awq by GPTQModel's AwqTorchLinear. What was packed is unpacked again by code of the
same packages (AWQ: by compressed-tensors' converter) and compared before anything is written.
"""

import os

os.environ["GPTQMODEL_DISABLE_PACK_EXT"] = "1"

import torch
from compressed_tensors.compressors.naive_quantized.base import IntQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
from gptqmodel.quantization.config import QuantizeConfig
from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module
from safetensors.torch import save_file

torch.manual_seed(33)
out = {}


def integers(bits, group, z, n, k):
    groups = k // (group or k)
    u = torch.randint(0, 1 << bits, (n, k))
    scale = torch.randint(128, 256, (n, groups)).float() * 2.0 ** torch.randint(-24, -10, (n, groups))
    zero = torch.randint(1, 1 << bits, (n, groups)) if z else torch.full((n, groups), 1 << (bits - 1))
    word = f"w{bits}{f'g{group}' if group else 'pc'}{'z' if z else ''}/{n}x{k}"
    middle = 1 << (bits - 1)
    out[f"{word}/codes"] = u.to(torch.uint8)
    out[f"{word}/scale"] = scale
    if z:
        out[f"{word}/zero"] = (zero - middle).float()
    wide = lambda t: t.repeat_interleave(group or k, dim=1)
    return word, u, scale, zero, (u - wide(zero)).float() * wide(scale)


def compressed_tensors(bits, group, z, n, k, compressor, name):
    word, u, scale, zero, w = integers(bits, group, z, n, k)
    middle = 1 << (bits - 1)
    args = QuantizationArgs(
        num_bits=bits, symmetric=not z, strategy="group" if group else "channel", group_size=group or None
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    state = {"weight": w, "weight_scale": scale, "weight_zero_point": (zero - middle).to(torch.int8)}
    packed = compressor.compress(state, scheme)
    assert torch.equal(compressor.decompress(packed, scheme)["weight"], w)
    if name == "int-quantized":
        assert torch.equal(packed["weight"].long(), u - middle)
    packed["weight_scale"] = packed["weight_scale"].to(torch.bfloat16)
    for key in compressor.compression_param_names(scheme):
        out[f"{word}/{name}/l.{key}"] = packed[key].contiguous()


def linear(w):
    linear = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
    linear.weight.data = w
    return linear


def gptq(bits, group, z, n, k):
    word, u, scale, zero, w = integers(bits, group, z, n, k)
    m = TorchLinear(
        bits=bits, group_size=group or -1, sym=not z, desc_act=False, in_features=k, out_features=n, register_buffers=True
    )
    g_idx = torch.tensor([c // (group or k) for c in range(k)], dtype=torch.int32)
    m.pack_original(linear(w), scale, zero, g_idx)
    for t in ("qweight", "qzeros", "scales", "g_idx"):
        out[f"{word}/gptq_v2/l.{t}"] = getattr(m, t).clone()
    m.post_init()
    assert torch.equal(m.dequantize_weight(), w.T.half())
    convert_gptq_v2_to_v1_format_module(m, QuantizeConfig(bits=bits))
    out[f"{word}/gptq/l.qzeros"] = m.qzeros.clone()
    if bits == 4:
        awq(word, group, n, k, u, scale, zero, w)


def awq(word, group, n, k, u, scale, zero, w):
    m = AwqTorchLinear(bits=4, group_size=group or -1, sym=False, desc_act=False, in_features=k, out_features=n)
    m.pack(linear(w), scale.half(), zero)
    judge = AutoAWQConverter(group_size=group or -1)
    codes, _, zeros = judge._convert_gemm_module(m.qweight, m.scales, m.qzeros)
    assert torch.equal(codes.long() + 8, u) and torch.equal(zeros.long() + 8, zero)
    for t in ("qweight", "qzeros", "scales"):
        out[f"{word}/awq/l.{t}"] = getattr(m, t).clone()


PACK = (PackedQuantizationCompressor, "pack-quantized")
for bits in range(2, 9):
    compressed_tensors(bits, 0, True, 37, 21, *PACK)
    compressed_tensors(bits, 8, False, 5, 40, *PACK)
compressed_tensors(3, 16, True, 12, 48, *PACK)
compressed_tensors(4, 16, True, 12, 48, *PACK)
for group in (0, 16):
    compressed_tensors(8, group, False, 6, 32, IntQuantizationCompressor, "int-quantized")
for bits in (2, 3, 4, 8):
    for group, z in ((0, False), (16, True)):
        gptq(bits, group, z, 32, 32)
gptq(4, 0, True, 32, 32)
gptq(4, 16, False, 32, 32)

path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "packed.safetensors")
save_file(out, path)
print(path, os.path.getsize(path), "bytes,", len(out), "tensors")
