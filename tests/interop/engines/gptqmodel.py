"""GPTQModel's own loader and its plain torch kernel, in float32."""
from . import protocol

protocol.without_compilation()

import torch
from gptqmodel import BACKEND, GPTQModel


@torch.no_grad()
def main():
    job = protocol.job()
    # Its kernel is loaded in half types only; once loaded it computes in the type that it is given.
    model = GPTQModel.load(job.model, backend=BACKEND.TORCH, device="cpu", dtype=torch.float16)
    inner, tokenizer = model.model.float(), model.tokenizer
    nll = job.nll(lambda block: inner(torch.tensor([block])).logits[0].float().numpy())
    prompt = tokenizer(job.prompt, return_tensors="pt")
    made = inner.generate(**prompt, max_new_tokens=protocol.NEW_TOKENS, do_sample=False)
    protocol.answer(
        nll,
        dtype=str(inner.dtype).removeprefix("torch."),
        note=type(inner.model.layers[0].self_attn.q_proj).__name__,
        ids_differ=job.differing(tokenizer(job.read_text()).input_ids),
        sentence=tokenizer.decode(made[0], skip_special_tokens=True),
        versions=protocol.versions("gptqmodel", "torch", "transformers"),
    )


main()
