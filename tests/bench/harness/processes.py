"""Whole processes: how long they took, what they held at most, what they said."""
import json
import os
import signal
import subprocess
import tempfile
import threading
import time

TIME_LIMIT = 3600  # seconds of one process


class Failed(Exception):
    """A process ended with an error: its last line."""


class Sample:
    """One run of a process. `said` is the JSON object on its standard output."""

    def __init__(self, seconds, usage, said):
        self.seconds, self.said = seconds, said
        self.cpu_seconds = usage.ru_utime + usage.ru_stime
        self.peak = usage.ru_maxrss * 1024  # of this process alone, pages of mapped files included


def why(program, status, errors):
    if status < 0:
        return f"{program} was killed by {signal.Signals(-status).name}"
    lines = [line.strip().removeprefix(f"{program}: ") for line in errors.splitlines() if line.strip()]
    return f"{program}: {(lines or [f'status {status}'])[-1][:300]}"


def run(command):
    environ = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+", errors="replace") as errors:
        begun = time.monotonic()
        process = subprocess.Popen(command, stdout=output, stderr=errors, env=environ)
        alarm = threading.Timer(TIME_LIMIT, process.kill)
        alarm.start()
        _, status, usage = os.wait4(process.pid, 0)
        alarm.cancel()
        seconds = time.monotonic() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            errors.seek(0)
            raise Failed(why(os.path.basename(command[0]), process.returncode, errors.read()))
        output.seek(0)
        text = output.read()
    return Sample(seconds, usage, json.loads(text[text.index("{"):]) if "{" in text else {})
