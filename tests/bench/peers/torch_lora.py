"""A step of fine-tuning the float model by LoRA with the package `peft`: AdamW on adapters of all linears, the model in bf16.

Prints tokens/s of the median step, the first left out.
"""
import argparse
import json
import statistics
import time

import peft
import torch
import torch.nn.functional as F

import models

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("model")
    p.add_argument("--rank", type=int, default=8)
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--seq", type=int, default=512)
    p.add_argument("--steps", type=int, default=4)
    p.add_argument("--dtype", choices=models.DTYPES, default="bf16")
    p.add_argument("--recompute", action="store_true", help="keep the inputs of blocks only")
    p.add_argument("--compile", action="store_true")
    p.add_argument("--threads", type=int, required=True)
    return p.parse_args()


def main():
    o = arguments()
    torch.manual_seed(0)
    torch.set_num_threads(o.threads)
    model = models.load(o.model, o.dtype)
    model = peft.get_peft_model(model, peft.LoraConfig(r=o.rank, lora_alpha=4 * o.rank, target_modules=LINEARS))
    if o.recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)

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
    print(json.dumps({"tokens_per_s": rate, "loss": loss.item(), **models.facts()}))


main()
