"""Hugging Face transformers: reads compressed-tensors by itself, GPTQ and AWQ through gptqmodel, GGUF by dequantizing."""
from . import protocol

protocol.without_compilation()

import os

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

GGUF = "model.gguf"


@torch.no_grad()
def main():
    job = protocol.job()
    # Of a GGUF everything is taken from the one file, as somebody would who was given only that.
    which = {"gguf_file": GGUF} if os.path.exists(os.path.join(job.model, GGUF)) else {}
    tokenizer = AutoTokenizer.from_pretrained(job.model, **which)
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32, device_map="cpu", **which).eval()
    logits_of = lambda block: model(torch.tensor([block])).logits[0].float().numpy()
    nll = job.nll(logits_of)
    prompt = tokenizer(job.prompt, return_tensors="pt")
    made = model.generate(**prompt, max_new_tokens=protocol.NEW_TOKENS, do_sample=False)
    weights_only = {}
    if job.format == "int-quantized":
        # The activations left in float: what compressed-tensors adds to a layer, it does only while this is set.
        for module in model.modules():
            module.quantization_enabled = False
        weights_only["weights_only_nll"] = job.nll(logits_of)
    protocol.answer(
        nll,
        dtype=str(model.dtype).removeprefix("torch."),
        note=type(model.model.layers[0].self_attn.q_proj).__name__,
        ids_differ=job.differing(tokenizer(job.read_text()).input_ids),
        sentence=tokenizer.decode(made[0], skip_special_tokens=True),
        versions=protocol.versions("transformers", "torch", "compressed-tensors", "gptqmodel", "optimum", "gguf"),
        **weights_only,
    )


main()
