"""What the peers share: a model from a Hugging Face directory or a GGUF, and its linears."""
import json
import os
import resource
import statistics
import time

import torch
import torch.nn.functional as F
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


def train(o, model, trained, adam):
    """Steps on random tokens; prints tokens/s of the median step, the first left out: it compiles, and touches memory for
    the first time."""
    def loss_of(ids):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), ids[:, 1:].reshape(-1))

    loss_of = torch.compile(loss_of) if o.compile else loss_of
    seconds = []
    for _ in range(o.steps):
        ids = torch.randint(0, model.config.vocab_size, (o.batch, o.seq))
        begun = time.monotonic()
        loss = loss_of(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        seconds.append(time.monotonic() - begun)
    rate = o.batch * o.seq / statistics.median(seconds[1:])
    print(json.dumps({"tokens_per_s": rate, "loss": loss.item(), **facts()}))
