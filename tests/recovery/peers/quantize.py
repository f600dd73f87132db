"""A float model quantized by another program, on the CPU, to a GPTQ directory.

    quantize.py gptq|autoround MODEL IDS.json BITS GROUP OUT

MODEL is a Hugging Face directory or a GGUF, IDS.json the calibration text: a list of sequences of token ids.
"""
import json
import os
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def float_model(path, work):
    """As a Hugging Face directory, which these programs want."""
    if not path.endswith(".gguf"):
        return path
    if not os.path.isdir(work):
        of = {"gguf_file": os.path.basename(path)}
        read = AutoModelForCausalLM.from_pretrained(os.path.dirname(path), dtype=torch.float32, **of)
        tokenizer = AutoTokenizer.from_pretrained(os.path.dirname(path), **of)
        # What was read from a GGUF counts as quantized, and cannot be saved.
        del read.config.quantization_config
        model = AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)
        model.load_state_dict(read.state_dict())
        model.save_pretrained(work + ".part")
        tokenizer.save_pretrained(work + ".part")
        os.rename(work + ".part", work)
    return work


def gptq(model, sequences, bits, group, out):
    # On two cores it takes one worker, and then asks for two.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    from gptqmodel import GPTQModel, QuantizeConfig

    config = QuantizeConfig(bits=bits, group_size=group, sym=True, desc_act=False)
    quantized = GPTQModel.load(model, config)
    quantized.quantize([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in sequences], batch_size=8)
    quantized.save(out)


def autoround(model, sequences, bits, group, out):
    from auto_round import AutoRound

    batches = [torch.tensor(sequences[i : i + 8]) for i in range(0, len(sequences), 8)]
    rounding = AutoRound(
        model, scheme=f"W{bits}A16", group_size=group, sym=True, iters=200, batch_size=8, dataset=batches,
        seqlen=len(sequences[0]), nsamples=len(sequences), device_map="cpu",
    )
    rounding.quantize_and_save(out, format="auto_gptq")
    settle(out)


def settle(out):
    """What AutoRound saved: out of the folder named after the model, and what it did not quantize, kept in f32, in bf16 as
    the other rows have it."""
    (saved,) = [folder for folder, _, files in os.walk(out) if "config.json" in files]
    if saved != out:
        for file in os.listdir(saved):
            os.rename(os.path.join(saved, file), os.path.join(out, file))
        os.rmdir(saved)
    weights = os.path.join(out, "model.safetensors")
    tensors = {name: t.bfloat16() if t.dtype == torch.float32 else t for name, t in load_file(weights).items()}
    save_file(tensors, weights + ".part", metadata={"format": "pt"})
    os.replace(weights + ".part", weights)


def main():
    method, model, ids, bits, group, out = sys.argv[1:]
    with open(ids) as file:
        sequences = json.load(file)
    model = float_model(model, os.path.join(os.path.dirname(os.path.abspath(ids)), "float"))
    {"gptq": gptq, "autoround": autoround}[method](model, sequences, int(bits), int(group), out)


main()
