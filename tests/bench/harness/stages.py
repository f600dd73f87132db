"""The tools at work, as in tests/interop: where they lie, the model, the ids of a text."""
import importlib.util
import os

HERE = os.path.dirname(os.path.abspath(__file__))
INTEROP = os.path.normpath(os.path.join(HERE, "..", "..", "interop", "harness"))


def borrow(name):
    spec = importlib.util.spec_from_file_location(f"interop_{name}", os.path.join(INTEROP, f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


environments = borrow("environments")
stages = borrow("stages")
ROOT, TOOLS, model, token_ids = stages.ROOT, stages.TOOLS, stages.model, stages.token_ids
