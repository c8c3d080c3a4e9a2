"""The provenance of a run: the device, versions and command that produced it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("jaxrl", "jax", "jaxlib", "flax", "optax", "brax", "mujoco", "mujoco-mjx", "gymnax")


def provenance() -> dict[str, Any]:
    """Return the device, package versions, git commit and command of this process."""
    import jax

    versions = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    device = jax.local_devices()[0]
    return {
        "device": f"{device.platform}: {device.device_kind}",
        "versions": versions,
        "git": _git_commit(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _git_commit() -> str | None:
    """Return the commit of the working directory's repository, if there is one."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
