"""Machines of tests with as many GPUs as a test likes."""

from __future__ import annotations

from pathlib import Path


def pretend_gpus(folder: Path, listed: int | str) -> None:
    """An nvidia-smi that lists so many GPUs, or what it is told to; without any it fails."""
    text = (
        listed
        if isinstance(listed, str)
        else "".join(f"GPU {i}: H200 (UUID: GPU-{i}a)\n" for i in range(listed))
    )
    smi = folder / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\n" if text else "#!/bin/sh\nexit 9\n")
    smi.chmod(0o755)
