"""Tiny random models of every kind that is read, with their logits by transformers in f32.

    pip install torch transformers safetensors
    python make_tiny_models.py       # rewrites tiny/ beside this file

tiny/<model>/                 config.json and weights; logits of the weights as stored, computed in f32 (eager attention)
tiny/<model>/logits.safetensors    tokens<i> i64 [t], logits<i> f32 [t, v]: sequences of different lengths
"""
import json, os, shutil
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tiny")
DIMS = dict(vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, rms_norm_eps=1e-5, attention_dropout=0.0)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)

def default(theta): return dict(rope_type="default", rope_theta=theta)

MODELS = {  # name: config, stored type, bytes of a shard, form of the rotary settings
    # A window shorter than the sequences, a head_dim of its own (4·6 ≠ 16), f16, several shards, an untied head.
    "mistral_window": (MistralConfig(**DIMS, head_dim=6, sliding_window=5, max_position_embeddings=64, tie_word_embeddings=False,
                                     rope_parameters=default(10000.0)), torch.float16, 4000, 5),
    # One head_dim of 16 has wavelengths of all three kinds: kept, interpolated, stretched. rope_scaling as LLaMA-3.1 has it.
    "llama3_rope": (LlamaConfig(**DIMS, head_dim=16, max_position_embeddings=64, tie_word_embeddings=False,
                                rope_parameters=LLAMA3 | {"rope_theta": 100.0}), torch.float32, 10**9, 4),
    # Linear scaling, a tied head, bf16, rope_parameters as transformers 5 writes them.
    "linear_rope": (LlamaConfig(**DIMS, max_position_embeddings=64, tie_word_embeddings=True,
                                rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=10000.0)), torch.bfloat16, 10**9, 5),
}

def main():
    shutil.rmtree(HERE, ignore_errors=True)
    for seed, (name, (config, dtype, shard, form)) in enumerate(MODELS.items()):
        torch.manual_seed(seed)
        kind = LlamaForCausalLM if config.model_type == "llama" else MistralForCausalLM
        model = kind(config)
        for p in model.parameters():  # large enough that positions, heads and norms all show in the logits
            p.data = torch.randn(p.shape) * (0.3 if p.ndim > 1 else 0.2) + (0.0 if p.ndim > 1 else 1.0)
        path = os.path.join(HERE, name)
        model.to(dtype).save_pretrained(path, max_shard_size=shard)
        for extra in ("generation_config.json", "README.md"):
            if os.path.exists(f"{path}/{extra}"): os.remove(f"{path}/{extra}")
        settings = json.load(open(f"{path}/config.json"))
        if form == 4:
            rope = settings.pop("rope_parameters")
            settings["rope_theta"], settings["rope_scaling"] = rope.pop("rope_theta"), rope
            settings["torch_dtype"] = settings.pop("dtype")
        json.dump(settings, open(f"{path}/config.json", "w"), indent=1)
        # Read back, since .float() would not undo the rounding of the rotary table.
        model, out = kind.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval(), {}
        for i, length in enumerate((40, 1, 17)):
            tokens = torch.randint(config.vocab_size, (length,))
            with torch.no_grad():
                out[f"tokens{i}"], out[f"logits{i}"] = tokens, model(tokens[None]).logits[0].contiguous()
        save_file(out, f"{path}/logits.safetensors")
        print(name, {k: round(v.std().item(), 3) for k, v in out.items() if k.startswith("logits")})
main()
