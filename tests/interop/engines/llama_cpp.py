"""llama.cpp through llama-cpp-python. Its kernels round activations to 8 bits, a block of 32 at a time."""
import os

import llama_cpp
import numpy

from . import protocol


def without_repacking(defaults=llama_cpp.llama_model_default_params):
    """llama.cpp's --no-repack, which Llama() has no argument for: its AMX kernels (of repacked weights) crash here."""
    params = defaults()
    params.use_extra_bufts = False
    return params


def main():
    job = protocol.job()
    llama_cpp.llama_cpp.llama_model_default_params = without_repacking
    path = os.path.join(job.model, "model.gguf")
    llm = llama_cpp.Llama(path, n_ctx=job.ctx, n_batch=job.ctx, logits_all=True, verbose=False)

    def logits_of(block):
        llm.reset()
        llm.eval(block)
        return numpy.array(llm.scores[:len(block)])

    nll = job.nll(logits_of)
    own = llm.tokenize(job.read_text().encode(), add_bos=llm.metadata.get("tokenizer.ggml.add_bos_token") == "true")
    made = llm(job.prompt, max_tokens=protocol.NEW_TOKENS, temperature=0)["choices"][0]["text"]
    protocol.answer(
        nll,
        dtype="q8 activations",
        note="",
        ids_differ=job.differing(own),
        sentence=job.prompt + made,
        versions=protocol.versions("llama-cpp-python"),
    )


main()
