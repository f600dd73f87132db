"""What the figures were taken on."""
import datetime
import os
import platform
import re
import subprocess

FLAGS = ["avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8"]


def cpuinfo(field):
    try:
        with open("/proc/cpuinfo") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith(field)), "")
    except OSError:
        return ""


def clock():
    """Of the time stamp counter, in Hz; none if the system does not say. Cores under load may run faster."""
    mhz = cpuinfo("cpu MHz")
    return float(mhz) * 1e6 if mhz else None


def first_line(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[0]
    except (OSError, IndexError):
        return "unknown"


def describe():
    flags = cpuinfo("flags").split()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    return {
        "cpu": f"{cpuinfo('model name') or platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GB",
        "flags": " ".join(flag for flag in FLAGS if flag in flags) or "none of interest",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "built": first_line("rustc", "--version"),
        "clock": clock(),
    }


def name():
    """Of the processor and the last of its instruction sets that matter: a folder of results."""
    best = next((flag for flag in reversed(FLAGS) if flag in cpuinfo("flags").split()), "")
    cpu = re.sub(r"\(\w+\)", "", cpuinfo("model name")) or platform.machine()
    return re.sub(r"[^a-z0-9]+", "-", f"{cpu} {best}".lower()).strip("-")


def now():
    commit = first_line("git", "-C", os.path.dirname(os.path.abspath(__file__)), "rev-parse", "--short", "HEAD")
    return {"date": f"{datetime.date.today()}, {commit}", "load": round(os.getloadavg()[0], 1)}
