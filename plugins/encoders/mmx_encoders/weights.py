"""Weights that ship with the package."""

from importlib.resources import as_file, files

from safetensors.torch import load_file
from torch import nn


def load_shipped(module: nn.Module, name: str) -> None:
    """Load `data/<name>.safetensors` into the module; every tensor must have its place."""
    with as_file(files("mmx_encoders") / "data" / f"{name}.safetensors") as path:
        module.load_state_dict(load_file(path))
