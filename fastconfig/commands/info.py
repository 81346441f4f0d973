"""``fastconfig info``: versions, devices, and which backend serves them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from .. import environment
from ..backends import explain

VARIABLE = "FASTCONFIG_BACKEND"


def gather() -> dict[str, Any]:
    """The contents of ``fastconfig info`` as JSON."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    served: dict[str, Any] = {}
    for device_type in ("cpu", "cuda") if count else ("cpu",):
        try:
            explained = explain(device_type)
        except ValueError as error:  # the variable names none
            served[device_type] = {"backend": None, "error": str(error)}
            continue
        serving = next((name for name, reason in explained if reason is None), None)
        others = {name: reason or f"{serving} is preferred" for name, reason in explained if name != serving}
        served[device_type] = {"backend": serving, "others": others}
    return {
        "versions": environment.versions(),
        "cpu": environment.processor(),
        "cores": environment.cores(),
        "torch_threads": torch.get_num_threads(),
        "cuda_devices": [torch.cuda.get_device_name(index) for index in range(count)],
        "backends": served,
        VARIABLE: os.environ.get(VARIABLE),
        "compiled_code": _folder(),
    }


def _folder() -> str | None:
    try:
        from ..kernels.numba.cache import folder

        return str(folder())
    except (ImportError, OSError):  # without Numba, or a home
        return None


def show(as_json: bool) -> None:
    """Print it, as a table or as JSON."""
    found = gather()
    if as_json:
        print(json.dumps(found, indent=1))
        return
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, version in found["versions"].items():
        table.add_row(name, version or "not installed")
    table.add_section()
    table.add_row("CPU", f"{found['cpu']}, {found['cores']} cores")
    table.add_row("torch threads", str(found["torch_threads"]))
    for index, name in enumerate(found["cuda_devices"]):
        table.add_row(f"cuda:{index}", name)
    if not found["cuda_devices"]:
        table.add_row("CUDA", "no device that PyTorch can use")
    table.add_section()
    for device_type, served in found["backends"].items():
        for row in _rows(device_type, served):
            table.add_row(*row)
    if found[VARIABLE] is not None:
        table.add_row(VARIABLE, found[VARIABLE] or "empty, which counts as unset")
    if found["compiled_code"]:
        table.add_row("compiled code", found["compiled_code"])
    Console().print(table)


def _rows(device_type: str, served: dict[str, Any]) -> Sequence[tuple[str, str]]:
    """Which backend serves a device first, then why each other one does not."""
    name = f"backend for {device_type}"
    if "error" in served:
        return [(name, f"none: {served['error']}")]
    others = [("", f"not {other}: {reason}") for other, reason in served["others"].items()]
    return [(name, served["backend"] or "none"), *others]
