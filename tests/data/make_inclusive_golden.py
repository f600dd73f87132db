"""The LR-QAT cases of shared/golden by PyTorch with the contract's gradient at the ends of the grid.

    pip install torch==2.15.0 transformers==5.23.0 safetensors numpy
    python make_inclusive_golden.py ../../../shared         # rewrites inclusive_golden.safetensors beside this file
    python make_inclusive_golden.py ../../../shared FILE    # every gradient and integer (3.6 MB, not kept here)

Runs shared/golden/make_golden.py, seeds included, with one function replaced: the gradient of the clamp passes where
qmin <= round(Z) <= qmax, ends included. All that comes before dA and dB must therefore equal the files of shared/golden
to the bit, which is checked before anything is written. Needs the versions those files were made with.

    <case>/grad.<lin>.lora_a, .lora_b   f32   gradients at the start, of the linears in KEPT
    <case>/losses                       f32 [11]   loss before each of ten steps and after the last
    <case>/final.<lin>.codes            i8 [N,K]   integers after ten steps, of the linears in KEPT
"""
import ast, os, sys, types
import torch
from safetensors.torch import load_file, save_file

HERE = os.path.dirname(os.path.abspath(__file__))
KEPT = ("layers.0.self_attn.k_proj", "layers.2.self_attn.o_proj", "layers.4.mlp.down_proj")

class InclusiveClamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, low, high):
        ctx.save_for_backward((low <= x) & (x <= high))
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx, dy):
        return dy * ctx.saved_tensors[0], None, None

def run(path, **replaced):
    """What the script at `path` would have saved, by the name of the file."""
    script = ast.parse(open(path).read())
    main = script.body.pop()
    assert ast.unparse(main) == "main()"
    saved = {}
    def keep(tensors, path, **_): saved[os.path.basename(path).removesuffix(".safetensors")] = tensors
    scope = {"__name__": "golden", "__file__": path}
    exec(compile(script, path, "exec"), scope)
    scope |= replaced | {"save_file": keep}
    scope["main"]()
    return scope["CASES"], saved

def same_bits(a, b): return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))

def from_ends(name): return name.endswith((".lora_a", ".lora_b")) and name.startswith("grad.")

def before_ends(name): return not (from_ends(name) or name.startswith("final.") or name == "losses")

def check(file, ours, golden):
    """All that the gradient at the ends cannot change."""
    assert ours.keys() == golden.keys()
    names = [name for name in ours if before_ends(name)]
    for name in names: assert same_bits(ours[name], golden[name]), f"{file}: {name} differs from shared/golden"
    if "losses" in ours: assert same_bits(ours["losses"][:1], golden["losses"][:1])
    changed = [name for name in ours if from_ends(name) and not same_bits(ours[name], golden[name])]
    print(f"{file}: {len(names)} tensors equal to the bit, {len(changed)} gradients of A and B differ")

def ends(case, bits, rank):
    """How many codes are at the lower and the upper end and how many beyond each, in the kept linears."""
    low, high = -2 ** (bits - 1), 2 ** (bits - 1) - 1
    for name in (f"model.{name}" for name in KEPT):
        z = torch.round(case[f"{name}.phi"] + case[f"{name}.lora_a"] @ case[f"{name}.lora_b"] / rank)
        counts = [int(x.sum()) for x in (z == low, z == high, z < low, z > high)]
        assert min(counts[:2]) > 0, f"{name}: no codes at an end"
        print(f"  {name}: at the ends {counts[:2]}, beyond them {counts[2:]}, of {z.numel()}")

def is_kept(name, everything):
    if name == "losses": return True
    if everything: return name.startswith("grad.") or name.endswith(".codes")
    return (from_ends(name) or name.endswith(".codes")) and any(linear in name for linear in KEPT)

def main():
    shared, everything = sys.argv[1], len(sys.argv) > 2
    inclusive = types.SimpleNamespace(**vars(torch) | {"clamp": InclusiveClamp.apply})
    cases, saved = run(f"{shared}/golden/make_golden.py", torch=inclusive)
    for file, tensors in saved.items(): check(file, tensors, load_file(f"{shared}/golden/{file}.safetensors"))
    for case, (bits, _, _, rank, _) in cases.items():
        print(case)
        ends(saved[case], bits, rank)
    out = {f"{case}/{name}": saved[case][name].contiguous() for case in cases for name in saved[case] if is_kept(name, everything)}
    save_file(out, sys.argv[2] if everything else os.path.join(HERE, "inclusive_golden.safetensors"))

main()
