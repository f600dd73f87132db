"""Hugging Face transformers: reads compressed-tensors by itself, GPTQ and AWQ through gptqmodel, GGUF by dequantizing."""
from . import protocol

protocol.without_compilation()

import os

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, AwqConfig, GPTQConfig

GGUF = "model.gguf"


def backend(model):
    """The int4 kernel that gptqmodel takes for a CPU refuses scales per channel only when it is run
    (`_weight_int4pack_mm_cpu`: groups of 32 to 256), so for these another is named."""
    quantization = getattr(AutoConfig.from_pretrained(model), "quantization_config", {})
    if quantization.get("group_size") != -1 or quantization["bits"] != 4:
        return {}
    if quantization["quant_method"] == "awq":
        return {"quantization_config": AwqConfig(backend="torch_awq")}
    return {"quantization_config": GPTQConfig(bits=4, backend="torch")}


@torch.no_grad()
def main():
    job = protocol.job()
    # Of a GGUF everything is taken from the one file, as somebody would who was given only that.
    which = {"gguf_file": GGUF} if os.path.exists(os.path.join(job.model, GGUF)) else {}
    named = {} if which else backend(job.model)
    tokenizer = AutoTokenizer.from_pretrained(job.model, **which)
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32, device_map="cpu", **which, **named)
    model.eval()
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
        note=type(model.model.layers[0].self_attn.q_proj).__name__ + (" (w4pc: backend named)" if named else ""),
        ids_differ=job.differing(tokenizer(job.read_text()).input_ids),
        sentence=tokenizer.decode(made[0], skip_special_tokens=True),
        versions=protocol.versions("transformers", "torch", "compressed-tensors", "gptqmodel", "optimum", "gguf"),
        **weights_only,
    )


main()
