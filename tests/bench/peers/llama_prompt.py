"""Prompt processing in llama.cpp: blocks of token ids, one after another; logits of the last token only."""
import argparse
import json
import os
import time

import llama_cpp


def without_repacking(defaults=llama_cpp.llama_model_default_params):
    """llama.cpp's --no-repack, which Llama() has no argument for: its AMX kernels (of repacked weights) crash here."""
    params = defaults()
    params.use_extra_bufts = False
    return params


def main():
    p = argparse.ArgumentParser()
    p.add_argument("folded")
    p.add_argument("ids")
    p.add_argument("--ctx", type=int, default=2048)
    p.add_argument("--blocks", type=int, required=True)
    p.add_argument("--batch", type=int, default=512)
    p.add_argument("--repack", action="store_true")
    p.add_argument("--threads", type=int, required=True)
    o = p.parse_args()
    if not o.repack:
        llama_cpp.llama_cpp.llama_model_default_params = without_repacking
    llm = llama_cpp.Llama(os.path.join(o.folded, "model.gguf"), n_ctx=o.ctx, n_batch=o.batch, n_ubatch=o.batch,
                          n_threads=o.threads, n_threads_batch=o.threads, verbose=False)
    with open(o.ids) as file:
        ids = json.load(file)
    begun = time.monotonic()
    for block in range(o.blocks):
        llm.reset()
        llm.eval(ids[block * o.ctx:(block + 1) * o.ctx])
    seconds = time.monotonic() - begun
    version = f"llama-cpp-python {llama_cpp.__version__}"
    print(json.dumps({"tokens_per_s": o.ctx * o.blocks / seconds, "version": version, "threads": o.threads}))


main()
