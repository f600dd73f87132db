"""A GGUF, read by the package gguf: it gives weights, not integers, so these are compared as Ŵ = s·(W_Z − z). That is
exact in f32, but for Q4_1, whose m = −(z + 2^(b−1))·s is rounded to f16."""
import os

import gguf
import numpy

# Names by `gguf-py/gguf/tensor_mapping.py`.
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
IN_BLOCK = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


class Gguf:
    def __init__(self, directory, config):
        reader = gguf.GGUFReader(os.path.join(directory, "model.gguf"))
        self.tensors = {t.name: t for t in reader.tensors}
        self.unread = set(self.tensors) - {"rope_freqs.weight"}
        self.heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}

    def tensor(self, name):
        known = NAMES.get(name)
        if known is None:
            _, _, block, part = name.removesuffix(".weight").split(".", 3)
            known = f"blk.{block}.{IN_BLOCK[part]}.weight"
        self.unread.discard(known)
        return self.tensors[known]

    def values(self, name):
        t = self.tensor(name)
        values = gguf.quants.dequantize(t.data, t.tensor_type).astype(numpy.float32)
        return values.reshape(tuple(reversed(t.shape.tolist()))), t.tensor_type.name

    def dense(self, name):
        """[N, K] in the row order of Hugging Face: llama.cpp's converter turns the halves of a head of q and k into
        pairs of neighbours (`LlamaModel.permute`), which is undone here."""
        values, kind = self.values(name + ".weight")
        heads = self.heads.get(name.rsplit(".", 1)[-1])
        if heads:
            n, k = values.shape
            values = values.reshape(heads, n // heads // 2, 2, k).swapaxes(1, 2).reshape(n, k)
        return values, kind


def tolerance(kind, linear, bits):
    """Of every weight of a linear: none, or half a unit in the last place of m."""
    if kind != "Q4_1":
        return numpy.float32(0)
    m = numpy.abs(linear.scale * (linear.zero + 2 ** (bits - 1)))
    step = numpy.maximum(m * 2.0**-11, 2.0**-25) * 1.001  # 0.1 % for the f32 sum
    n, k = linear.codes.shape
    return numpy.repeat(step, k // step.shape[1], axis=1).reshape(n, k)
