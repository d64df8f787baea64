"""The small world in which components are tried: made-up data, encoders that take prompts or do not."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from mmx.builtin.adapters.lora import Lora
from mmx.contracts import (
    Adapter,
    Batch,
    Dataset,
    Encoder,
    EncoderFacts,
    Fusion,
    Modality,
    Presence,
    Sample,
    Strategy,
    Task,
    Tokens,
)
from mmx.model import MultimodalModel
from mmx.protocols import derive_seed
from mmx.registry import Offer, Registry
from mmx.registry.signature import construct
from mmx.tasks import SingleLabel
from mmx.transformer import LORA_TARGETS, Transformer

WIDTH = 16
FEATURES = 12
CLASSES = 3
EXAMPLES: Mapping[str, Tensor] = {
    "vector": torch.linspace(-1, 1, FEATURES),
    "image": torch.linspace(0, 1, 3 * 28 * 28).reshape(3, 28, 28),
    "audio": torch.sin(torch.arange(8000) * 0.3),
    "text": torch.tensor([2, 5, 6, 7, 8, 9, 3, 0, 0]),
}
"""One raw input of each kind of modality that encoders are tried on; text is ids of tokens, 0 the padding."""


def rows_like(example: Tensor, count: int = 4) -> Tensor:
    """Make rows that differ: louder or brighter ones, and texts in another order."""
    if not example.is_floating_point():
        text, padding = example[example != 0], example[example == 0]
        return torch.stack([torch.cat([text.roll(row), padding]) for row in range(count)])
    generator = torch.Generator().manual_seed(1)
    return torch.stack([example * (1 + torch.rand(1, generator=generator)) for _ in range(count)])


class PromptableEncoder(Encoder):
    """A vector cut into three tokens, through a transformer that takes prompts."""

    kind: ClassVar[str] = "vector"
    lora_targets: ClassVar[str] = LORA_TARGETS
    accepts_prompts: ClassVar[bool] = True
    prompt_layers = 2

    def __init__(self) -> None:
        super().__init__()
        self.width = WIDTH
        self.embed = nn.Linear(FEATURES // 3, WIDTH)
        self.class_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.transformer = Transformer(WIDTH, depth=2, heads=2)

    def class_embedding(self) -> Tensor:
        """Give the class token."""
        return self.class_token[0, 0]

    def forward(self, raw: Tensor, prompts: Any = None) -> Tokens:
        """Encode as a class token and three more."""
        own = self.embed(raw.unflatten(1, (3, -1)))
        x = torch.cat([self.class_token.expand(len(raw), -1, -1), own], dim=1)
        values = self.transformer(x, None, prompts)
        return Tokens(values, torch.ones(values.shape[:2], dtype=torch.bool, device=raw.device))


class PlainEncoder(Encoder):
    """A vector to two tokens; it takes no prompts, and its width is not the others'."""

    kind: ClassVar[str] = "vector"
    lora_targets: ClassVar[str] = "linear"

    def __init__(self) -> None:
        super().__init__()
        self.width = WIDTH // 2
        self.linear = nn.Linear(FEATURES // 2, self.width)

    def forward(self, raw: Tensor, prompts: Any = None) -> Tokens:
        """Encode each half as a token."""
        del prompts
        values = self.linear(raw.unflatten(1, (2, -1)))
        return Tokens(values, torch.ones(values.shape[:2], dtype=torch.bool, device=raw.device))


def names(count: int) -> tuple[str, ...]:
    """Name some modalities."""
    return tuple(f"m{i}" for i in range(count))


def partners(registry: Registry, kind: str) -> list[Offer]:
    """Give the components of a kind that can be used here, for others to be tried with."""
    return [offer for offer in registry.offers if offer.kind == kind and not offer.lack]


def strategies_for(registry: Registry, procedure: Offer) -> list[Offer]:
    """Give the strategies that a procedure is tried with: the one of nothing standing in, then those of its
    own module, without which it may be of no use."""
    first, *others = partners(registry, "strategy")
    return [first, *(other for other in others if _module(other) == _module(procedure))]


def _module(offer: Offer) -> str:
    return offer.component.path.partition(":")[0]


def one_of_each_sort(registry: Registry, fusions: Sequence[Offer]) -> list[Offer]:
    """Give the first fusion that takes prompts, and the first that does not."""
    sorts: dict[bool, Offer] = {}
    for offer in fusions:
        cls = registry.load_class(offer.kind, f"{offer.distribution}:{offer.component.name}")
        sorts.setdefault(bool(getattr(cls, "accepts_prompts", False)), offer)
    return list(sorts.values())


def build(registry: Registry, offer: Offer, known: Mapping[str, Any]) -> Any:
    """Build any component with its defaults and what its catalogue line gives as an example."""
    name = f"{offer.distribution}:{offer.component.name}"
    return construct(registry.load_class(offer.kind, name), offer.component.example, known)


def known_for(
    modalities: Sequence[str], encoders: Mapping[str, Encoder], fusion_layers: int
) -> dict[str, Any]:
    """Give what the engine would tell a strategy or fusion."""
    return {
        "modalities": tuple(modalities),
        "width": WIDTH,
        "task": SingleLabel(classes=CLASSES),
        "seed": 0,
        "encoders": {m: EncoderFacts.of(e) for m, e in encoders.items()},
        "fusion_layers": fusion_layers,
    }


def assemble(
    registry: Registry,
    strategy: Offer,
    fusion: Offer,
    count: int,
    plain: bool = False,
    seed: int = 0,
    adapter: Offer | None = None,
) -> MultimodalModel:
    """Build a model of `count` modalities around a strategy and a fusion, by default with LoRA.

    Another adapter is told that every row has all modalities.
    """
    torch.manual_seed(derive_seed(seed, "world"))
    kind = PlainEncoder if plain else PromptableEncoder
    encoders: dict[str, Encoder] = {m: kind() for m in names(count)}
    adapters: dict[str, Adapter] = {m: Lora(rank=2) for m in encoders}
    if adapter is not None:
        told = {"modalities": names(count), "pattern": frozenset(encoders), "seed": seed}
        adapters = {m: build(registry, adapter, {**told, "modality": m}) for m in encoders}
    for m, encoder in encoders.items():
        adapters[m].apply(encoder)
    for m in encoders:
        adapters[m].meet({n: other for n, other in adapters.items() if n != m})
    known = known_for(names(count), encoders, 0)
    head: Fusion = build(registry, fusion, known)
    known["fusion_layers"] = head.prompt_layers if head.accepts_prompts else 0
    middle: Strategy = build(registry, strategy, known)
    return MultimodalModel(encoders, middle, head, WIDTH, adapters)


def batch_of(presence: Mapping[str, Sequence[int]], absent_value: float = 0.0, seed: int = 0) -> Batch:
    """Make a batch with the given presence; absent inputs hold `absent_value`."""
    generator = torch.Generator().manual_seed(seed)
    there: Presence = {m: torch.tensor(p, dtype=torch.bool) for m, p in presence.items()}
    rows = len(next(iter(there.values())))
    inputs = {}
    for m, present in there.items():
        raw = torch.randn(rows, FEATURES, generator=generator)
        inputs[m] = torch.where(present[:, None], raw, absent_value)
    target = torch.randint(CLASSES, (rows,), generator=generator)
    return Batch(inputs, there, target, [f"s{i}" for i in range(rows)])


def presences(count: int) -> dict[str, dict[str, list[int]]]:
    """Give the cases that matter: nobody lacks anything, some do, each alone, one modality gone for all."""
    m = names(count)
    cases = {"complete": {n: [1, 1, 1, 1] for n in m}}
    if count > 1:
        cases["some"] = {n: [1, int(i == 0), int(i == 1), int(i > 0)] for i, n in enumerate(m)}
        cases["one gone for all"] = {n: [int(i > 0)] * 4 for i, n in enumerate(m)}
        cases["one left for all"] = {n: [int(i == 0)] * 4 for i, n in enumerate(m)}
    return cases


class Rows(Dataset):
    """Seven complete samples, the same in every split but for their ids."""

    in_memory = True

    def __init__(self, modalities: tuple[str, ...]) -> None:
        self.modalities = dict.fromkeys(modalities, "vector")
        self.task = task()

    def split(self, name: str) -> list[Sample]:
        """Give the samples."""
        batch = batch_of({m: [1] * 7 for m in self.modalities})
        inputs = cast(dict[Modality, Tensor], batch.inputs)
        return [
            Sample(f"{name}{i}", {m: inputs[m][i] for m in self.modalities}, int(batch.target[i]))
            for i in range(7)
        ]


def task() -> Task:
    """Give the world's task."""
    return SingleLabel(classes=CLASSES)
