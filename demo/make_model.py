"""Makes the demo model: a tiny LLaMA trained on TinyStories, and the texts it writes itself.

    pip install torch transformers tokenizers safetensors
    python make_model.py STORIES_DIR OUT_DIR        # STORIES_DIR holds *.jsonl, one {"text": ...} per story

Writes OUT_DIR/model (a Hugging Face directory, bf16), OUT_DIR/train.txt and OUT_DIR/test.txt (sampled at temperature 1), and prints
the figures that README.md quotes. The texts are the model's own, so no story of the data set is in the repository, and the float
model is by construction the best model of them. One thread, fixed seeds: the same machine and library versions give the same bytes.
"""
import argparse, glob, json, math, os, random, time
import torch, torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

END = "<|endoftext|>"
VALIDATION = 200  # the last stories are held out
BLOCK = 256  # perplexity: non-overlapping blocks of one tokenization
CONFIG = {  # every width is a multiple of 128, so that groups of 32, 64 and 128 fit every linear
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "vocab_size": 1024,
    "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 512,
    "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False, "bos_token_id": 0, "eos_token_id": 0, "use_cache": True,
}


def read_stories(folder):
    """The stories, each without blank lines inside: a blank line is what separates two stories."""
    lines = [line for path in sorted(glob.glob(os.path.join(folder, "*.jsonl"))) for line in open(path, encoding="utf-8")]
    texts = [json.loads(line)["text"] for line in lines if line.strip()]
    return ["\n".join(part.strip() for part in text.split("\n") if part.strip()) for text in texts]


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2)
        f.write("\n")


def make_tokenizer(stories, folder):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator(stories, trainers.BpeTrainer(vocab_size=CONFIG["vocab_size"], special_tokens=[END],
                                                         initial_alphabet=alphabet, show_progress=False))
    tok.save(os.path.join(folder, "tokenizer.json"), pretty=False)
    write_json(os.path.join(folder, "tokenizer_config.json"), {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END, "add_bos_token": False,
        "clean_up_tokenization_spaces": False, "model_max_length": CONFIG["max_position_embeddings"]})
    return tok


def encode(tok, text):
    return torch.tensor(tok.encode(text).ids)


def windows(tok, stories, seq, rnd):
    """One epoch: the stories in a new order, half of them ended by END and half by a blank line, cut into windows of seq tokens."""
    order = rnd.sample(stories, len(stories))
    ids = encode(tok, END + "".join(story + rnd.choice((END, "\n\n")) for story in order))[rnd.randrange(seq):]
    return ids[: len(ids) // seq * seq].reshape(-1, seq)


def batches(tok, stories, batch, seq, seed):
    rnd = random.Random(seed)
    while True:
        epoch = windows(tok, stories, seq, rnd)
        for i in range(0, len(epoch) - batch + 1, batch):
            yield epoch[i : i + batch]


def loss_of(model, tokens, reduction="mean"):
    logits = model(tokens).logits[:, :-1].float()
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1), reduction=reduction)


@torch.no_grad()
def perplexity(model, ids):
    model.eval()
    blocks = ids[: len(ids) // BLOCK * BLOCK].reshape(-1, BLOCK)
    nll = sum(loss_of(model, part, "sum").item() for part in blocks.split(16))
    return math.exp(nll / (len(blocks) * (BLOCK - 1)))


def add_dropout(model, p):
    """Dropout on the embedding and on what each block adds to the residual stream; a few epochs of 0.6 M tokens overfit without."""
    hook = lambda module, _, out: F.dropout(out, p, model.training)
    points = [model.model.embed_tokens]
    points += [part for layer in model.model.layers for part in (layer.self_attn.o_proj, layer.mlp.down_proj)]
    return [point.register_forward_hook(hook) for point in points]


def train(model, tok, stories, held_out, o):
    """AdamW, warm-up and cosine; returns the weights that did best on the held-out stories."""
    hooks = add_dropout(model, o.dropout)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    opt = torch.optim.AdamW([{"params": decayed, "weight_decay": o.decay}, {"params": plain, "weight_decay": 0.0}], lr=o.lr, betas=(0.9, 0.95))
    warmup = max(1, o.steps // 20)
    rate = lambda k: min((k + 1) / warmup, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * k / o.steps)))
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, rate)
    ids, best, best_state, start = encode(tok, "\n\n".join(held_out)), math.inf, None, time.time()
    for step, tokens in enumerate(batches(tok, stories, o.batch, o.seq, o.seed), 1):
        model.train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        schedule.step()
        opt.zero_grad(set_to_none=True)
        if step % o.check_every == 0 or step == o.steps:
            ppl = perplexity(model, ids)
            print(f"step {step} loss {loss.item():.3f} held-out perplexity {ppl:.3f} {time.time() - start:.0f} s", flush=True)
            if ppl < best:
                best, best_state = ppl, {name: p.detach().clone() for name, p in model.state_dict().items()}
        if step == o.steps:
            break
    for hook in hooks:
        hook.remove()
    return best_state


def save_model(state, folder):
    tensors = {name: p.to(torch.bfloat16).contiguous() for name, p in state.items() if name != "lm_head.weight"}  # tied
    save_file(tensors, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    write_json(os.path.join(folder, "config.json"), CONFIG)
    write_json(os.path.join(folder, "generation_config.json"), {"bos_token_id": 0, "eos_token_id": 0, "do_sample": True, "temperature": 1.0})


@torch.no_grad()
def write_text(model, tok, path, size, seed):
    """Samples stories, each from END to the next END or blank line, until they fill `size` bytes; unfinished ones are dropped."""
    torch.manual_seed(seed)
    model.eval()
    stories, length = [], 0
    while length < size:
        start = torch.zeros(64, 1, dtype=torch.long)
        out = model.generate(start, attention_mask=torch.ones_like(start), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                             max_length=CONFIG["max_position_embeddings"], pad_token_id=0)
        for row in out[:, 1:].tolist():
            text = tok.decode(row, skip_special_tokens=False)
            story, end, _ = text.replace(END, "\n\n", 1).partition("\n\n")
            if end and story.strip() and "\ufffd" not in story and length < size:
                stories.append(story.strip())
                length += len(stories[-1].encode()) + 2
    with open(path, "w", encoding="utf-8", newline="\n") as f:
        f.write("\n\n".join(stories) + "\n")
    return len(stories)


def arguments():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("stories"), p.add_argument("out")
    p.add_argument("--steps", type=int, default=3500), p.add_argument("--batch", type=int, default=8)
    p.add_argument("--seq", type=int, default=512), p.add_argument("--lr", type=float, default=4e-3)
    p.add_argument("--decay", type=float, default=0.1), p.add_argument("--dropout", type=float, default=0.05)
    p.add_argument("--check-every", type=int, default=250), p.add_argument("--seed", type=int, default=0)
    p.add_argument("--train-bytes", type=int, default=420_000), p.add_argument("--test-bytes", type=int, default=70_000)
    return p.parse_args()


def main():
    o = arguments()
    torch.set_num_threads(1)
    torch.manual_seed(o.seed)
    folder = os.path.join(o.out, "model")
    os.makedirs(folder, exist_ok=True)
    stories = read_stories(o.stories)
    stories, held_out = stories[:-VALIDATION], stories[-VALIDATION:]
    tok = make_tokenizer(stories, folder)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).float()
    save_model(train(model, tok, stories, held_out, o), folder)

    # from here on the model is what a reader of the directory gets: bf16 weights, computed in f32
    model, auto = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)
    for name, size, seed in (("train.txt", o.train_bytes, 1), ("test.txt", o.test_bytes, 2)):
        print(name, write_text(model, tok, os.path.join(o.out, name), size, seed), "stories", flush=True)
    test = open(os.path.join(o.out, "test.txt"), encoding="utf-8").read()
    for name, text in (("held-out stories", "\n\n".join(held_out)), ("test.txt", test)):
        ids = torch.tensor(auto(text).input_ids)
        assert ids.tolist() == tok.encode(text).ids, "AutoTokenizer reads tokenizer.json differently"
        print(f"{name}: {len(ids)} tokens, perplexity {perplexity(model, ids):.3f}")
    print("parameters", sum(p.numel() for p in model.parameters()))


main()
