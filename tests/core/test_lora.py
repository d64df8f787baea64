"""What LoRA and the stack under it get wrong unless one looks: pitfalls P5.1 to P5.9, each with a test."""

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from mmx.builtin.adapters.bitfit import BitFit
from mmx.builtin.adapters.frozen import Frozen
from mmx.builtin.adapters.full import Full
from mmx.builtin.adapters.lora import Lora
from mmx.builtin.fusions.mean import Mean
from mmx.contracts import Adapter, Encoder, Tokens
from mmx.errors import InputError
from mmx.model import MultimodalModel
from mmx.sweep import Plan
from mmx.tasks import SingleLabel
from mmx_strategies.skip import Skip

WIDTH = 8


class Wrapped(Encoder):
    """Any module as an encoder of one token."""

    kind: ClassVar[str] = "vector"
    lora_targets: ClassVar[str] = r"inside.*"

    def __init__(self, inside: nn.Module, call: Callable[[nn.Module, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.width = WIDTH
        self.inside = inside
        self.call = call or (lambda module, raw: module(raw))

    def forward(self, raw: Tensor, prompts: Any = None) -> Tokens:
        """Encode."""
        values = self.call(self.inside, raw).flatten(1)[:, None]
        return Tokens(values, torch.ones(values.shape[:2], dtype=torch.bool))


def attend(module: nn.Module, raw: Tensor) -> Tensor:
    sequence = raw.unflatten(1, (3, WIDTH))
    return module(sequence, sequence, sequence, need_weights=False)[0]


def adapted(inside: nn.Module, lora: Lora, **more: Any) -> Wrapped:
    encoder = Wrapped(inside, **more)
    lora.apply(encoder)
    return encoder


def shake(encoder: nn.Module) -> None:
    """Give the second factor weights, as training does."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_()


def moves(encoder: Wrapped, raw: Tensor) -> dict[str, float]:
    """Tell by how much shaking LoRA moves the output, in training and in evaluation."""
    found = {}
    with torch.no_grad():
        before = {mode: encoder.train(mode)(raw).values for mode in (True, False)}
        shake(encoder)
        for mode in (True, False):
            found["train" if mode else "eval"] = float(
                (encoder.train(mode)(raw).values - before[mode]).abs().max()
            )
    return found


def model_of(**encoders: Encoder) -> MultimodalModel:
    return MultimodalModel(encoders, Skip(), Mean(WIDTH, SingleLabel(2)), WIDTH)


def trains(module: nn.Module) -> set[str]:
    return {n for n, p in module.named_parameters() if p.requires_grad}


# P5.1


def test_multihead_attention_as_target_moves_the_output() -> None:
    attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
    encoder = adapted(attention, Lora(rank=2, targets="inside"), call=attend)
    assert min(moves(encoder, torch.randn(4, 3 * WIDTH)).values()) > 1e-3


# P5.2


@pytest.mark.parametrize(
    "targets", [r"inside\.linear[12]", r"inside\.self_attn", r"inside\.(linear1|self_attn)"]
)
def test_transformer_layer_moves_in_evaluation_without_gradients(targets: str) -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True)

    def call(module: nn.Module, raw: Tensor) -> Tensor:
        return module(raw.unflatten(1, (3, WIDTH)))

    encoder = adapted(layer, Lora(rank=2, targets=targets), call=call)
    assert min(moves(encoder, torch.randn(4, 3 * WIDTH)).values()) > 1e-3


def test_importing_the_model_switches_the_fast_path_off() -> None:
    assert not torch.backends.mha.get_fastpath_enabled()


# P5.3


def test_two_models_of_one_plan_share_no_weight(plan_toy: Callable[..., Plan]) -> None:
    plan = plan_toy({"adapter": {"name": "lora", "rank": 2}})
    first, second = (plan.bench.model(plan.cells[0].spec) for _ in range(2))
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1.0)
    assert {p.data_ptr() for p in first.parameters()}.isdisjoint(p.data_ptr() for p in second.parameters())
    third = plan.bench.model(plan.cells[0].spec).state_dict()
    assert all(torch.equal(t, third[n]) for n, t in second.state_dict().items())


# P5.4 and P5.5


def test_freezing_is_decided_for_each_encoder_and_the_head_trains() -> None:
    encoders = {m: Wrapped(nn.Linear(WIDTH, WIDTH)) for m in ("a", "b", "c", "d")}
    adapters: dict[str, Adapter] = {"a": Lora(rank=2), "b": Full(), "c": Frozen(), "d": BitFit()}
    for m, adapter in adapters.items():
        adapter.apply(encoders[m])
    model = model_of(**encoders)
    assert all("lora_" in n for n in trains(model.encoders["a"])) and trains(model.encoders["a"])
    assert trains(model.encoders["b"]) == {"inside.weight", "inside.bias"}
    assert trains(model.encoders["c"]) == set()
    assert trains(model.encoders["d"]) == {"inside.bias"}
    assert trains(model.fusion) == {n for n, _ in model.fusion.named_parameters()}


def test_projector_to_the_common_width_trains() -> None:
    narrow = Wrapped(nn.Linear(WIDTH, WIDTH // 2))
    narrow.width = WIDTH // 2
    Frozen().apply(narrow)
    assert trains(model_of(a=narrow).projectors) == {"a.weight", "a.bias"}


# P5.6


def normed(adapter: Adapter, affine: bool = True) -> Wrapped:
    norm = nn.BatchNorm1d(WIDTH, affine=affine)
    encoder = Wrapped(nn.Sequential(nn.Linear(WIDTH, WIDTH), norm, nn.Linear(WIDTH, WIDTH)))
    adapter.apply(encoder)
    return encoder


def statistics_after_training(encoder: Wrapped) -> Tensor:
    model = model_of(a=encoder)
    model.train()
    with torch.no_grad():
        model.encoders["a"](5 + torch.randn(16, WIDTH))
    return encoder.inside[1].running_mean  # type: ignore[index,union-attr]


@pytest.mark.parametrize("adapter", [Lora(rank=2, targets=r"inside\.[02]"), Frozen()], ids=["lora", "frozen"])
def test_statistics_of_a_frozen_batch_norm_stay_put_in_training(adapter: Adapter) -> None:
    assert float(statistics_after_training(normed(adapter)).abs().max()) == 0


@pytest.mark.parametrize("affine", [True, False], ids=["with weights", "without weights"])
def test_statistics_of_a_fine_tuned_batch_norm_move(affine: bool) -> None:
    assert float(statistics_after_training(normed(Full(), affine)).abs().max()) > 0


def test_statistics_are_part_of_what_is_kept() -> None:
    assert any("running_mean" in n for n in model_of(a=normed(Full())).trained_state())


def test_kept_state_is_what_trains_and_no_frozen_weight() -> None:
    encoder = adapted(nn.Linear(WIDTH, WIDTH), Lora(rank=2))
    state = model_of(a=encoder).trained_state()
    assert not any("base_layer" in n for n in state)
    assert sum("lora_" in n for n in state) == 2 and "fusion.head.weight" in state


# P5.7


@pytest.mark.parametrize("rank", [0, -1])
def test_rank_below_one_is_refused_with_advice(rank: int) -> None:
    with pytest.raises(InputError, match="frozen"):
        Lora(rank=rank)


def count(encoder: nn.Module) -> int:
    return sum(p.numel() for n, p in encoder.named_parameters() if "lora_" in n)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(WIDTH, 5),
    "convolution": lambda: nn.Conv2d(3, 6, 3),
    "embedding": lambda: nn.Embedding(10, WIDTH),
    "attention": lambda: nn.MultiheadAttention(WIDTH, 2, batch_first=True),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_rank_above_the_width_is_capped_and_adds_no_parameters(layer: str) -> None:
    counts = [count(adapted(LAYERS[layer](), Lora(rank=r, targets="inside"))) for r in (4, 64, 512)]
    assert counts[0] < counts[1] == counts[2]


def test_capped_rank_is_the_smaller_width() -> None:
    encoder = adapted(nn.Linear(WIDTH, 5), Lora(rank=64))
    assert count(encoder) == 5 * (WIDTH + 5)


def test_grouped_convolution_takes_the_multiple_of_its_groups_below_the_rank() -> None:
    convolution = nn.Conv1d(8, 8, 3, groups=4, padding=1)

    def call(module: nn.Module, raw: Tensor) -> Tensor:
        return module(raw.unflatten(1, (8, 1)))

    encoder = adapted(convolution, Lora(rank=6), call=call)
    ranks = {p.shape[0] for n, p in encoder.named_parameters() if "lora_A" in n}
    assert ranks == {4}
    assert min(moves(encoder, torch.randn(4, WIDTH)).values()) > 1e-4


def test_rank_below_the_groups_of_a_convolution_is_refused() -> None:
    with pytest.raises(InputError, match="4 groups"):
        adapted(nn.Conv1d(8, 8, 3, groups=4), Lora(rank=2))


@pytest.mark.parametrize(
    "layer", [nn.GRU(WIDTH, WIDTH), nn.LSTM(WIDTH, WIDTH), nn.ConvTranspose2d(3, 3, 2)], ids=type
)
def test_layer_that_peft_cannot_adapt_is_refused_by_name(layer: nn.Module) -> None:
    with pytest.raises(InputError, match=rf"'inside' is a {type(layer).__name__}"):
        adapted(layer, Lora(rank=2, targets="inside"))


# P5.8


class Stack(nn.Module):
    """Names that are endings of each other."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(WIDTH, WIDTH)
        self.layer = nn.ModuleDict({"map": nn.Linear(WIDTH, WIDTH), "other": nn.Linear(WIDTH, WIDTH)})
        self.heatmap = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Apply all."""
        return self.heatmap(self.layer["other"](self.layer["map"](self.map(x))))


def adapted_maps(targets: Any) -> set[str]:
    encoder = adapted(Stack(), Lora(rank=2, targets=targets))
    return {n.split(".lora_A")[0] for n in trains(encoder) if "lora_A" in n}


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (r"inside\.map", ["inside.map"]),
        (r".*\.map", ["inside.map", "inside.layer.map"]),
        (["map"], ["inside.map", "inside.layer.map"]),
        (["layer.map", "heatmap"], ["inside.layer.map", "inside.heatmap"]),
        (r"inside\.(layer\.other|heatmap)", ["inside.layer.other", "inside.heatmap"]),
    ],
    ids=str,
)
def test_targets_hit_what_they_say_and_nothing_else(targets: Any, expected: list[str]) -> None:
    assert adapted_maps(targets) == set(expected)


@pytest.mark.parametrize("targets", ["map", "nothing", [], ["eatmap"]], ids=str)
def test_targets_that_match_nothing_are_refused(targets: Any) -> None:
    with pytest.raises(InputError, match="match no module"):
        adapted_maps(targets)


def test_targets_that_are_no_regex_are_refused() -> None:
    with pytest.raises(InputError, match="no regex"):
        adapted_maps("inside(")


def test_each_map_has_its_own_cap() -> None:
    stack = Stack()
    stack.map = nn.Linear(2, WIDTH)
    encoder = adapted(stack, Lora(rank=6, targets=r"inside\.(map|layer\.map)"))
    ranks = {n.split(".lora_A")[0]: p.shape[0] for n, p in encoder.named_parameters() if "lora_A" in n}
    assert ranks == {"inside.map": 2, "inside.layer.map": 6}


# P5.9


@pytest.mark.parametrize("rank", [1, 4, 8, 64])
def test_scale_does_not_depend_on_the_rank(rank: int) -> None:
    encoder = adapted(nn.Linear(WIDTH, WIDTH), Lora(rank=rank, alpha_per_rank=3.0))
    assert encoder.inside.scaling["default"] == pytest.approx(3.0)  # type: ignore[index,union-attr]


def test_lora_starts_at_the_encoder_it_was_given() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(WIDTH, WIDTH)
    raw = torch.randn(3, WIDTH)
    before = linear(raw)
    assert torch.equal(adapted(linear, Lora(rank=2))(raw).values[:, 0], before)


def test_bitfit_without_a_bias_is_refused() -> None:
    with pytest.raises(InputError, match="no biases"):
        BitFit().apply(Wrapped(nn.Linear(WIDTH, WIDTH, bias=False)))


# ----------------------------------------------------------------------------------------------- folding


def _shaken(module: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)


FOLDED: dict[str, tuple[nn.Module, str, torch.Tensor]] = {
    "linear": (nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 5)), "[02]", torch.randn(3, 6)),
    "convolution": (nn.Sequential(nn.Conv2d(2, 4, 3)), "0", torch.randn(2, 2, 5, 5)),
    "embedding": (nn.Sequential(nn.Embedding(7, 6)), "0", torch.tensor([[1, 2, 6]])),
}


@pytest.mark.parametrize(("module", "targets", "raw"), FOLDED.values(), ids=list(FOLDED))
def test_folding_leaves_plain_weights_and_equal_outputs(
    module: nn.Module, targets: str, raw: torch.Tensor
) -> None:
    plain = set(module.state_dict())
    adapter = Lora(rank=2, targets=targets)
    adapter.apply(module)
    _shaken(module)
    with torch.no_grad():
        before = module.eval()(raw)
        adapter.fold(module)
        assert torch.allclose(module(raw), before, atol=1e-5)
    assert set(module.state_dict()) == plain


def test_folding_undoes_multihead_attention() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    module = Attending()
    plain = set(module.state_dict())
    adapter = Lora(rank=2, targets="attention")
    adapter.apply(module)
    _shaken(module)
    raw = torch.randn(2, 3, 8)
    with torch.no_grad():
        before = module.eval()(raw)
        adapter.fold(module)
        assert torch.allclose(module(raw), before, atol=1e-5)
    assert set(module.state_dict()) == plain


def test_what_names_no_targets_must_be_told_some() -> None:
    with pytest.raises(InputError, match="names no targets"):
        Lora().apply(nn.Sequential(nn.Linear(2, 2)))


def test_a_grouped_convolution_is_not_folded() -> None:
    module = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
    adapter = Lora(rank=2, targets="0")
    adapter.apply(module)
    with pytest.raises(InputError, match="cannot merge '0', a grouped convolution"):
        adapter.fold(module)
