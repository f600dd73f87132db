"""What an engine is asked and how it answers: one JSON object on the command line, one JSON line on standard output.

asked     model    the folded directory            ids     JSON file: the token ids that `eval` reads, `ctx` a block
          ctx, blocks                              text    the text they were made from
          prompt   to be continued greedily
answered  nll, ppl over all predicted positions, dtype computed in, sentence, versions, and what the engine finds worth
          saying in `note`; ids_differ: how many ids the engine's own tokenizer makes differently
"""
import importlib.metadata
import json
import math
import os
import sys

import numpy

NEW_TOKENS = 16


class Job:
    def __init__(self, asked):
        self.__dict__.update(asked)
        with open(self.ids) as file:
            self.ids = json.load(file)

    def cut(self):
        """The blocks, as `eval` cuts them."""
        return [self.ids[i * self.ctx:(i + 1) * self.ctx] for i in range(self.blocks)]

    def differing(self, own):
        """Ids of the blocks that the engine's tokenizer makes otherwise."""
        wanted = self.ids[:self.ctx * self.blocks]
        return sum(a != b for a, b in zip(wanted, own)) + max(0, len(wanted) - len(own))

    def read_text(self):
        with open(self.text, encoding="utf-8", newline="") as file:
            return file.read()

    def nll(self, logits_of):
        """Mean over all predicted positions; `logits_of(block)` gives [ctx, vocabulary]. Summed in float64."""
        total = 0.0
        for block in self.cut():
            logits = numpy.asarray(logits_of(block), dtype=numpy.float64)[:-1]
            logits -= logits.max(axis=1, keepdims=True)
            picked = logits[numpy.arange(len(logits)), block[1:]]
            total -= (picked - numpy.log(numpy.exp(logits).sum(axis=1))).sum()
        return total / (self.blocks * (self.ctx - 1))


def job():
    return Job(json.loads(sys.argv[1]))


def versions(*packages):
    return {name: importlib.metadata.version(name) for name in packages}


def without_compilation():
    """Before torch is imported: compiling the GPTQ kernels takes longer than all that is measured with them."""
    os.environ.update(TORCHDYNAMO_DISABLE="1", GPTQ_TORCH_CACHE_WEIGHTS="1")


def answer(nll, **rest):
    print(json.dumps({"nll": nll, "ppl": math.exp(nll), **rest}), flush=True)
