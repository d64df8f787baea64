"""Finds the devices that a call may use."""

import torch

from mmx.errors import InputError


def find_device(name: str) -> torch.device:
    """Give the device: `auto` is a GPU where there is one (InputError where the asked one is not there)."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device '{name}' cannot be used ({reason}); use auto, cpu or cuda:0") from error
    return device


def device_names(asked: str) -> list[str]:
    """List devices: `auto` is every GPU, or the CPU; several are joined by commas (`cuda:0,cuda:1`)."""
    if asked == "auto":
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]
    return [name.strip() for name in asked.split(",") if name.strip()]
