"""Where weights come from: the package itself, a file of the user's, or a library's hub."""

import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mmx.errors import InputError

Loaded = TypeVar("Loaded")

DICTS = ("state_dict", "model_state_dict", "model")
"""Under which names training scripts keep the weights beside other things."""
WRAPPED = "module."
"""How the names of a model begin that was saved inside DataParallel or DistributedDataParallel."""


def load_shipped(module: nn.Module, name: str) -> None:
    """Load `data/<name>.safetensors` into the module; every tensor must have its place."""
    with as_file(files("mmx_encoders") / "data" / f"{name}.safetensors") as path:
        module.load_state_dict(load_file(path))


def is_offline() -> bool:
    """Tell whether hubs are not to be asked (`--offline`, or the variable of Hugging Face)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}


def read_state(path: str) -> dict[str, Tensor]:
    """Read a state dict from safetensors, or from what `torch.save` wrote; code in a file is never run.

    A dict that has the weights under a name of DICTS is opened, and the prefix of a model that was wrapped
    for several processes is taken off. Raises InputError.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"no weights at '{path}': give the path of a .safetensors file or a state dict")
    try:
        if file.suffix.lower() == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # there is no end of what a damaged or foreign file can raise
        raise InputError(
            f"cannot read '{path}' as tensors alone ({_reason(error)}); save the model's state_dict() there, "
            "best as .safetensors"
        ) from error
    for key in DICTS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        raise InputError(f"'{path}' holds no state dict: save the model's state_dict() there")
    wrapped = state and all(name.startswith(WRAPPED) for name in state)
    return {name.removeprefix(WRAPPED) if wrapped else name: tensor for name, tensor in state.items()}


def load_state(
    module: nn.Module, state: Mapping[str, Tensor], source: str, left_out: Sequence[str] = ()
) -> None:
    """Load a state into the module, in the module's own precision; every parameter must be in it.

    `left_out`: how names begin that may be there for nothing (heads). Raises InputError, which names what
    does not fit.
    """
    own = module.state_dict()
    used = {n: t for n, t in state.items() if n in own or not n.startswith(tuple(left_out))}
    lacking, extra = sorted(own.keys() - used.keys()), sorted(used.keys() - own.keys())
    wrong = [n for n in own.keys() & used.keys() if own[n].shape != used[n].shape]
    if lacking or extra or wrong:
        told = [("lacks", lacking), ("has besides", extra), ("has in another shape", sorted(wrong))]
        parts = "; it ".join(f"{verb} {_some(names)}" for verb, names in told if names)
        raise InputError(
            f"weights '{source}' are not of this model: the file {parts}; check the model's name"
        )
    module.load_state_dict(used)


def from_hub(what: str, load: Callable[[], Loaded]) -> Loaded:
    """Load from a library's hub; where that cannot be, say how to go on without (InputError)."""
    try:
        return load()
    except (OSError, RuntimeError) as error:  # no network is an OSError, a broken download a RuntimeError
        asked = "hubs are not asked (offline)" if is_offline() else first_line(error)
        raise InputError(
            f"the weights of {what} cannot be had from the hub: {asked}; connect once so that they are kept "
            "on this machine, or give a file: weights: PATH"
        ) from error


def torch_hub_state(url: str) -> dict[str, Tensor]:
    """Give the state dict of a URL, from torch's cache if it is there (OSError: offline, and it is not)."""
    cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if is_offline() and not cached.is_file():
        raise OSError(f"{cached.name} is not in torch's cache")
    state: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
        url, map_location="cpu", progress=False, weights_only=True
    )
    return state


def _some(names: Sequence[str]) -> str:
    return ", ".join(f"'{n}'" for n in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _reason(error: Exception) -> str:
    """Say why torch would not read a file; its own text goes on to advise how to run the code in it."""
    if isinstance(error, pickle.UnpicklingError):
        return "it holds more than tensors, and code in it is not run, or it is no such file"
    return first_line(error)


def first_line(error: Exception) -> str:
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return said if " " in said else f"{type(error).__name__}: {said}"
