"""A step of fine-tuning the float model by LoRA with the package `peft`: AdamW on adapters of all linears, the model in bf16."""
import argparse

import peft
import torch

import models


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
    model = peft.get_peft_model(model, peft.LoraConfig(r=o.rank, lora_alpha=4 * o.rank, target_modules=list(models.LINEARS)))
    if o.recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    models.train(o, model, trained, adam)


main()
