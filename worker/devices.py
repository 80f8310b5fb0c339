"""The accelerators of this machine, asked of the driver: the launcher needs no torch."""

from __future__ import annotations

import shutil
import subprocess


def cuda_devices() -> list[str]:
    """`cuda:0`, `cuda:1`, …; empty where there is no NVIDIA driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        out = subprocess.run(
            [tool, "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [f"cuda:{line.strip()}" for line in out.splitlines() if line.strip().isdigit()]
