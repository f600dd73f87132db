"""What the peers share: a model from a Hugging Face directory or a GGUF, and its linears."""
import os
import resource

import torch
from transformers import AutoModelForCausalLM, logging

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}

logging.set_verbosity_error()


def load(path, dtype):
    gguf = {"gguf_file": os.path.basename(path)} if path.endswith(".gguf") else {}
    folder = os.path.dirname(path) if gguf else path
    return AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype], **gguf).requires_grad_(False)


def linears(model):
    """Every linear that is quantized: name, the module that holds it, its attribute."""
    for i, layer in enumerate(model.model.layers):
        for part, module in (("self_attn", layer.self_attn), ("mlp", layer.mlp)):
            for name in LINEARS:
                if hasattr(module, name):
                    yield f"model.layers.{i}.{part}.{name}", module, name


def facts():
    return {"version": f"torch {torch.__version__}", "threads": torch.get_num_threads(),
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
