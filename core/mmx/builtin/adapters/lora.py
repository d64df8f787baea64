"""Low-rank adaptation, by peft."""

import re
import warnings
from collections.abc import Sequence

from torch import nn

from mmx.contracts import Adapter
from mmx.errors import InputError
from mmx.targets import targeted

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SUPPORTED = (nn.Linear, nn.Embedding, nn.MultiheadAttention, *_CONVOLUTIONS)


class Lora(Adapter):
    """Freeze the encoder and add (α/r)·B·A to the chosen maps, B = 0 at the start.

    `alpha_per_rank` is α/r, so that a sweep over ranks does not change the scale too. `targets`: "default"
    (the encoder author's regex), a regex over module names, or a list of name endings. A rank above what a
    map can hold is capped there, and rounded down to a multiple of a grouped convolution's groups.
    Source: Hu et al. (ICLR 2022).
    """

    def __init__(
        self,
        rank: int = 8,
        alpha_per_rank: float = 2.0,
        targets: str | Sequence[str] = "default",
        dropout: float = 0.0,
    ) -> None:
        if rank < 1:
            raise InputError(f"adapter 'lora': rank {rank} is below 1; for no LoRA write adapter: frozen")
        self.rank = rank
        self.alpha_per_rank = alpha_per_rank
        self.targets = targets
        self.dropout = dropout

    def apply(self, module: nn.Module) -> None:
        """Inject the adapters in place (InputError where nothing, or nothing supported, is targeted)."""
        from peft import LoraConfig, inject_adapter_in_model

        chosen = targeted("lora", module, self.targets)
        ranks = {name: self._rank(name, inner) for name, inner in chosen.items()}
        # Longest names first: peft takes the first pattern that is an ending of a module's name.
        ordered = sorted(ranks, key=len, reverse=True)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha_per_rank * self.rank,
            lora_dropout=self.dropout,
            target_modules="|".join(re.escape(name) for name in ordered),
            rank_pattern={re.escape(name): ranks[name] for name in ordered},
            alpha_pattern={re.escape(name): self.alpha_per_rank * ranks[name] for name in ordered},
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inject_adapter_in_model(config, module)

    def fold(self, module: nn.Module) -> None:
        """Merge W + (α/r)·B·A into W and take the adapters out.

        Raises InputError for grouped convolutions, which peft cannot merge.
        """
        from peft.tuners.lora import LoraLayer

        wrapped = {n: inner for n, inner in module.named_modules() if isinstance(inner, LoraLayer)}
        for name, inner in wrapped.items():
            if any(name.startswith(f"{outer}.") for outer in wrapped):
                continue  # the output map of nn.MultiheadAttention, which is unwrapped with the rest
            parent, _, own = name.rpartition(".")
            if getattr(inner.get_base_layer(), "groups", 1) > 1:
                raise InputError(f"adapter 'lora': peft cannot merge '{name}', a grouped convolution")
            if hasattr(inner, "unload_and_optionally_merge_module"):
                plain = inner.unload_and_optionally_merge_module(True, False, None)
            else:
                inner.merge()
                plain = inner.get_base_layer()
            setattr(module.get_submodule(parent), own, plain)

    def _rank(self, name: str, module: nn.Module) -> int:
        """Cap the rank at what the map can hold."""
        if not isinstance(module, _SUPPORTED):
            kinds = ", ".join(kind.__name__ for kind in _SUPPORTED)
            raise InputError(
                f"adapter 'lora': '{name}' is a {type(module).__name__}, which peft cannot adapt; "
                f"target {kinds}"
            )
        if isinstance(module, nn.MultiheadAttention):
            return min(self.rank, module.embed_dim)
        if isinstance(module, nn.Embedding):
            return min(self.rank, module.num_embeddings, module.embedding_dim)
        weight = module.weight.flatten(1)
        rank = min(self.rank, *weight.shape)
        groups = module.groups if isinstance(module, _CONVOLUTIONS) else 1
        if groups > 1 and rank < groups:
            raise InputError(
                f"adapter 'lora': '{name}' has {groups} groups and takes no rank below that; "
                f"leave it out of targets"
            )
        return rank - rank % groups
