"""Scale and shift: where it starts, whom a set belongs to, what trains, and what folding leaves behind."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmx.builtin.fusions.mean_logits import MeanLogits
from mmx.builtin.fusions.transformer import TransformerFusion
from mmx.contracts import Encoder, Fusion, Tokens
from mmx.errors import InputError
from mmx.model import FUSION, MultimodalModel
from mmx.testing import world
from mmx_encoders.mlp import Mlp
from mmx_encoders.tiny_ast import TinyAst
from mmx_encoders.tiny_vit import TinyVit
from mmx_strategies.scale_shift import ScaleShift
from mmx_strategies.skip import Skip

NAMES = ("m0", "m1")
BOTH, FIRST, SECOND = frozenset(NAMES), frozenset({"m0"}), frozenset({"m1"})
ROWS = 4


class Wrapped(Encoder):
    """Any module as an encoder of one token."""

    kind: ClassVar[str] = "vector"
    lora_targets: ClassVar[str] = r"inside.*"

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.width = world.WIDTH
        self.inside = inside

    def forward(self, raw: Tensor, prompts: Any = None) -> Tokens:
        """Encode."""
        values = self.inside(raw).flatten(1)[:, None]
        return Tokens(values, torch.ones(values.shape[:2], dtype=torch.bool))


class Frames(Encoder):
    """Two frames a row, folded into the batch."""

    kind: ClassVar[str] = "vector"
    lora_targets: ClassVar[str] = "linear"

    def __init__(self) -> None:
        super().__init__()
        self.width = world.WIDTH
        self.linear = nn.Linear(world.FEATURES // 2, world.WIDTH)
        self.norm = nn.BatchNorm1d(world.WIDTH)

    def forward(self, raw: Tensor, prompts: Any = None) -> Tokens:
        """Encode each half as a token."""
        values = self.norm(self.linear(raw.unflatten(1, (2, -1)).flatten(0, 1)))
        values = values.unflatten(0, (-1, 2))
        return Tokens(values, torch.ones(values.shape[:2], dtype=torch.bool))


LAYERS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "linear": lambda: (nn.Linear(6, 5), torch.randn(3, 4, 6)),
    "linear without bias": lambda: (nn.Linear(6, 5, bias=False), torch.randn(3, 6)),
    "convolution 1d": lambda: (nn.Conv1d(4, 6, 3), torch.randn(3, 4, 7)),
    "convolution 2d": lambda: (nn.Conv2d(4, 6, 3, padding=1), torch.randn(3, 4, 5, 5)),
    "grouped convolution": lambda: (nn.Conv2d(4, 6, 3, groups=2), torch.randn(3, 4, 5, 5)),
    "convolution without bias": lambda: (nn.Conv2d(4, 6, 1, bias=False), torch.randn(3, 4, 5, 5)),
    "convolution 3d": lambda: (nn.Conv3d(2, 3, 2), torch.randn(3, 2, 3, 3, 3)),
    "layer norm": lambda: (nn.LayerNorm(6), torch.randn(3, 4, 6)),
    "layer norm over two axes": lambda: (nn.LayerNorm((4, 6)), torch.randn(3, 4, 6)),
    "layer norm without weights": lambda: (nn.LayerNorm(6, elementwise_affine=False), torch.randn(3, 6)),
    "layer norm without bias": lambda: (nn.LayerNorm(6, bias=False), torch.randn(3, 6)),
    "batch norm 1d": lambda: (nn.BatchNorm1d(6), torch.randn(3, 6)),
    "batch norm 2d": lambda: (nn.BatchNorm2d(6), torch.randn(3, 6, 4, 4)),
    "batch norm without weights": lambda: (nn.BatchNorm2d(6, affine=False), torch.randn(3, 6, 4, 4)),
    "group norm": lambda: (nn.GroupNorm(2, 6), torch.randn(3, 6, 4)),
}
every_layer = pytest.mark.parametrize("layer", LAYERS)


def adapter(pattern: frozenset[str] | None = BOTH, modality: str | None = "m0", **options: Any) -> ScaleShift:
    return ScaleShift(NAMES, pattern, modality, **options)


def applied(module: nn.Module, pattern: frozenset[str] | None = BOTH, **options: Any) -> ScaleShift:
    made = adapter(pattern, **options)
    made.apply(module)
    return made


def presence(**rows: list[int]) -> dict[str, Tensor]:
    return {m: torch.tensor(p, dtype=torch.bool) for m, p in rows.items()}


def vectors(module: nn.Module, key: str = "") -> dict[str, nn.Parameter]:
    """Give the vectors of one set, or of all."""
    return {
        n: p
        for n, p in module.named_parameters()
        if ".scale_shift." in f".{n}" and (not key or n.split(".")[-1] == key)
    }


def shake(module: nn.Module, key: str = "", seed: int = 0) -> None:
    """Give a set values, as training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for vector in vectors(module, key).values():
            vector.copy_(torch.randn(vector.shape, generator=generator))


def trains(module: nn.Module) -> set[str]:
    return {n for n, p in module.named_parameters() if p.requires_grad}


def inside(layer: str) -> tuple[nn.Sequential, Tensor]:
    """Put a layer of LAYERS, with weights of its own, into a module; give an input too."""
    torch.manual_seed(0)
    made, raw = LAYERS[layer]()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return nn.Sequential(made).eval(), raw


def model_of(
    pattern: frozenset[str] = FIRST, fusion: Fusion | None = None, encoder: type[Encoder] | None = None
) -> MultimodalModel:
    """Build a model all of whose parts are adapted for a pattern."""
    torch.manual_seed(0)
    adapters = {m: ScaleShift(NAMES, pattern, m) for m in NAMES} | {FUSION: ScaleShift(NAMES, pattern)}
    encoders: dict[str, Encoder] = {m: (encoder or world.PromptableEncoder)() for m in NAMES}
    head = fusion or TransformerFusion(NAMES, world.WIDTH, world.task(), depth=1, heads=2)
    for m in NAMES:
        adapters[m].apply(encoders[m])
    adapters[FUSION].apply(head)
    return MultimodalModel(encoders, Skip(), head, world.WIDTH, adapters)


def plain() -> MultimodalModel:
    """Build the same model without adapters."""
    torch.manual_seed(0)
    encoders: dict[str, Encoder] = {m: world.PromptableEncoder() for m in NAMES}
    head = TransformerFusion(NAMES, world.WIDTH, world.task(), depth=1, heads=2)
    return MultimodalModel(encoders, Skip(), head, world.WIDTH).eval()


def train(model: nn.Module, loss: Callable[[], Tensor], steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def train_alone(model: MultimodalModel) -> None:
    """Train on rows that have the first modality alone."""
    batch = world.batch_of({"m0": [1] * ROWS, "m1": [0] * ROWS})
    train(model.train(), lambda: model(batch).logits.square().mean())
    model.eval()


COMPLETE: Mapping[str, list[int]] = {"m0": [1] * ROWS, "m1": [1] * ROWS}

# Where it starts

ENCODERS: dict[str, tuple[Callable[[], Encoder], Tensor]] = {
    "promptable": (world.PromptableEncoder, world.EXAMPLES["vector"]),
    "plain": (world.PlainEncoder, world.EXAMPLES["vector"]),
    "mlp": (lambda: Mlp(world.EXAMPLES["vector"], units=8), world.EXAMPLES["vector"]),
    "tiny_vit": (lambda: TinyVit(pretrained=False), world.EXAMPLES["image"]),
    "tiny_ast": (lambda: TinyAst(pretrained=False), world.EXAMPLES["audio"]),
}


@pytest.mark.parametrize("per_pattern", [True, False])
@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_an_adapted_encoder_starts_at_the_one_it_was_given(name: str, per_pattern: bool) -> None:
    torch.manual_seed(0)
    make, example = ENCODERS[name]
    encoder, raw = make().eval(), torch.stack([example, 0.5 * example])
    before = encoder(raw).values
    made = applied(encoder, per_pattern=per_pattern)
    assert torch.equal(encoder(raw).values, before)
    made.select(presence(m0=[1, 1], m1=[0, 1]))
    assert torch.equal(encoder(raw).values, before)


@pytest.mark.parametrize("case", world.presences(2))
@torch.no_grad()
def test_a_whole_model_starts_at_the_one_without_adapters(case: str) -> None:
    batch = world.batch_of(world.presences(2)[case])
    assert torch.equal(model_of().eval()(batch).logits, plain()(batch).logits)


# What trains


def test_only_vectors_of_the_trainings_pattern_train() -> None:
    model = model_of(FIRST)
    assert trains(model) == set(vectors(model, "m0"))
    assert {n.split(".")[0] for n in trains(model.encoders)} == {"m0"} and trains(model.fusion)


def test_every_vector_that_trains_gets_gradient_from_its_rows() -> None:
    encoder = world.PromptableEncoder()
    applied(encoder, BOTH)
    target = torch.randn(ROWS, 4, world.WIDTH)
    (encoder(torch.randn(ROWS, world.FEATURES)).values - target).square().mean().backward()
    missed = {n for n, p in vectors(encoder, "m0+m1").items() if p.grad is None or not p.grad.any()}
    assert all(n.endswith("key.scale_shift.beta.m0+m1") for n in missed)  # softmax ignores it


def test_nothing_of_an_encoder_trains_whose_modality_the_pattern_lacks() -> None:
    encoder = world.PlainEncoder()
    made = applied(encoder, SECOND)
    assert not trains(encoder)
    made.calibrate()
    made.fold(encoder)
    assert set(encoder.state_dict()) == set(world.PlainEncoder().state_dict())


def test_an_encoder_has_a_set_for_each_pattern_with_its_modality_and_a_fusion_for_all() -> None:
    names = world.names(3)
    found = {}
    for modality in ("m1", None):
        layer = nn.Sequential(nn.Linear(2, 2))
        ScaleShift(names, frozenset(names), modality).apply(layer)
        found[modality] = {n.split(".")[-1] for n in vectors(layer)}
    assert found["m1"] == {"m1", "m0+m1", "m1+m2", "m0+m1+m2"}
    assert found[None] == found["m1"] | {"m0", "m2", "m0+m2"}


def test_vectors_are_named_after_the_layer_and_what_is_present() -> None:
    encoder = world.PlainEncoder()
    applied(encoder)
    assert {n: tuple(p.shape) for n, p in vectors(encoder, "m0+m1").items()} == {
        "linear.scale_shift.gamma.m0+m1": (world.WIDTH // 2,),
        "linear.scale_shift.beta.m0+m1": (world.WIDTH // 2,),
    }


@pytest.mark.parametrize("kind", ["gamma", "beta"])
def test_scale_alone_and_shift_alone_have_half_the_vectors(kind: str) -> None:
    encoder = world.PlainEncoder()
    applied(encoder, scale=kind == "gamma", shift=kind == "beta")
    assert trains(encoder) == {f"linear.scale_shift.{kind}.m0+m1"}
    assert all(f".{kind}." in n for n in vectors(encoder))


def test_one_pattern_of_a_residual_network_costs_less_than_a_hundredth() -> None:
    encoder = Wrapped(torchvision.models.resnet18(weights=None))
    size = sum(p.numel() for p in encoder.parameters())
    applied(encoder)
    share = sum(p.numel() for p in encoder.parameters() if p.requires_grad) / size
    assert 0.001 < share < 0.01


# Whose set it is


def test_training_one_pattern_leaves_the_outputs_of_the_others_as_they_were() -> None:
    model = model_of(FIRST)
    train_alone(model)
    with torch.no_grad():
        alone = world.batch_of({"m0": [1] * ROWS, "m1": [0] * ROWS})
        assert not torch.allclose(model(alone).logits, plain()(alone).logits, atol=1e-3)
        for rows in (COMPLETE, {"m0": [0] * ROWS, "m1": [1] * ROWS}):
            other = world.batch_of(rows)
            assert torch.equal(model(other).logits, plain()(other).logits)


def test_a_next_phase_of_another_pattern_keeps_the_sets_trained_before() -> None:
    first, second = model_of(FIRST), model_of(SECOND)
    train_alone(first)
    second.load_state_dict(first.state_dict())
    other = world.batch_of({"m0": [0] * ROWS, "m1": [1] * ROWS})
    train(second.train(), lambda: second(other).logits.square().mean())
    alone = world.batch_of({"m0": [1] * ROWS, "m1": [0] * ROWS})
    with torch.no_grad():
        assert torch.equal(second.eval()(alone).logits, first(alone).logits)
        assert not torch.allclose(second(other).logits, first(other).logits, atol=1e-3)


@torch.no_grad()
def test_rows_of_different_patterns_get_what_they_get_alone() -> None:
    model = model_of().eval()
    for i, key in enumerate(("m0", "m1", "m0+m1")):
        shake(model, key, seed=i)
    mixed = {"m0": [1, 1, 0, 0, 1], "m1": [0, 1, 1, 1, 0]}
    together = model(world.batch_of(mixed)).logits
    inputs = world.batch_of(mixed).inputs
    for row in range(5):
        one = world.batch_of({m: p[row : row + 1] for m, p in mixed.items()})
        one.inputs.update({m: raw[row : row + 1] for m, raw in inputs.items()})  # type: ignore[attr-defined]
        assert torch.allclose(model(one).logits[0], together[row], atol=1e-5)
    assert not torch.allclose(together, plain()(world.batch_of(mixed)).logits, atol=1e-2)


@torch.no_grad()
def test_each_row_is_scaled_and_shifted_by_its_own_set() -> None:
    layer = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Flatten())
    raw = torch.randn(3, 2, 4, 4)
    before = layer[0](raw)
    made = applied(layer)
    shake(layer, "m0")
    made.select(presence(m0=[1, 1, 0], m1=[0, 1, 1]))
    gamma, beta = vectors(layer, "m0").values()
    expected = before.clone()
    expected[0] = gamma[:, None, None] * before[0] + beta[:, None, None]
    assert torch.allclose(layer[0](raw), expected, atol=1e-6)


@torch.no_grad()
def test_one_set_for_all_rows_ignores_who_is_present() -> None:
    encoder = world.PromptableEncoder().eval()
    made = applied(encoder, None, per_pattern=False)
    shake(encoder)
    raw = torch.randn(2, world.FEATURES)
    before = encoder(raw).values
    made.select(presence(m0=[1, 1], m1=[0, 1]))
    assert torch.equal(encoder(raw).values, before) and not made.by_pattern
    assert {n.split(".")[-1] for n in trains(encoder)} == {"all"}


@torch.no_grad()
def test_frames_folded_into_the_batch_get_their_rows_set() -> None:
    encoder = Frames().eval()
    made = applied(encoder)
    shake(encoder, "m0", seed=1)
    shake(encoder, "m0+m1", seed=2)
    raw = torch.randn(3, world.FEATURES)
    there = presence(m0=[1, 1, 1], m1=[0, 1, 0])
    made.select(there)
    together = encoder(raw).values
    for row in range(3):
        made.select({m: p[row : row + 1] for m, p in there.items()})
        assert torch.allclose(encoder(raw[row : row + 1]).values[0], together[row], atol=1e-6)


def test_rows_that_cannot_be_told_apart_are_refused_by_layer() -> None:
    layer = nn.Sequential(nn.Linear(2, 2))
    made = applied(layer)
    made.select(presence(m0=[1, 1], m1=[0, 1]))
    with pytest.raises(InputError, match=r"layer '0'.*2 rows"):
        layer(torch.randn(3, 2))


def test_lower_precision_stays_what_it_is() -> None:
    layer = nn.Sequential(nn.Linear(2, 2))
    applied(layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(3, 2)).dtype == torch.bfloat16


@torch.no_grad()
def test_a_copied_model_has_its_own_sets_and_its_own_rows() -> None:
    model = model_of(BOTH).eval()
    complete, alone = world.batch_of(COMPLETE), world.batch_of({"m0": [1] * ROWS, "m1": [0] * ROWS})
    before = model(complete).logits
    twin = copy.deepcopy(model)
    shake(twin, "m0+m1")
    moved = twin(complete).logits
    assert torch.equal(model(complete).logits, before) and not torch.allclose(moved, before, atol=1e-2)
    encoder, raw = twin.encoders["m0"], complete.inputs["m0"]
    expected = encoder(raw).values
    model(alone)
    assert torch.equal(encoder(raw).values, expected)
    for m in NAMES:
        twin.adapters[m].fold(twin.encoders[m])
    twin.adapters[FUSION].fold(twin.fusion)
    assert torch.allclose(twin(complete).logits, moved, atol=1e-4)
    assert vectors(model) and not vectors(twin)


# Folding


def assert_folds(layer: str, pattern: frozenset[str] | None, seed: int, **options: Any) -> None:
    module, raw = inside(layer)
    keys = set(module.state_dict())
    made = applied(module, pattern, **options)
    shake(module, seed=seed)
    with torch.no_grad():
        before = module(raw)
        made.fold(module)
        assert torch.allclose(module(raw), before, atol=1e-5, rtol=1e-4)
    grown = set(module.state_dict()) - keys
    assert keys <= set(module.state_dict()) and grown <= {"0.bias", "0.weight"}
    assert not grown or "without" in layer
    assert not module[0]._forward_hooks and not list(module[0].children())


@every_layer
def test_folded_weights_give_equal_outputs_under_plain_names(layer: str) -> None:
    assert_folds(layer, BOTH, seed=1)


@every_layer
def test_one_set_for_all_rows_folds_too(layer: str) -> None:
    assert_folds(layer, None, seed=1, per_pattern=False)


@pytest.mark.parametrize("option", ["scale", "shift"])
@every_layer
def test_scale_alone_and_shift_alone_fold_too(layer: str, option: str) -> None:
    assert_folds(layer, BOTH, seed=1, **{option: False})


@settings(deadline=None, max_examples=25)
@given(layer=st.sampled_from(sorted(LAYERS)), seed=st.integers(0, 2**31))
def test_any_values_fold(layer: str, seed: int) -> None:
    assert_folds(layer, BOTH, seed)


@torch.no_grad()
def test_a_trained_model_folds_to_a_plain_one_of_the_trainings_pattern() -> None:
    model = model_of(FIRST)
    with torch.enable_grad():
        train_alone(model)
    alone = world.batch_of({"m0": [1] * ROWS, "m1": [0] * ROWS})
    before = model(alone).logits
    for m in NAMES:
        model.adapters[m].fold(model.encoders[m])
    model.adapters[FUSION].fold(model.fusion)
    base = plain()
    base.load_state_dict(model.state_dict())
    assert torch.allclose(base(alone).logits, before, atol=1e-5)


def test_folding_the_start_changes_no_weight_and_adds_no_bias() -> None:
    module, _ = inside("linear without bias")
    before = {n: t.clone() for n, t in module.state_dict().items()}
    made = applied(module)
    made.fold(module)
    assert set(module.state_dict()) == set(before)
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())


# What is left alone


@pytest.mark.parametrize("name", ["head", "heads"])
def test_heads_are_frozen_and_not_adapted(name: str) -> None:
    module = nn.ModuleDict({"norm": nn.LayerNorm(2), name: nn.ModuleDict({"a": nn.Linear(2, 2)})})
    applied(module, modality=None)
    assert trains(module) == {"norm.scale_shift.gamma.m0+m1", "norm.scale_shift.beta.m0+m1"}
    assert all(n.startswith("norm.") for n in vectors(module))


def test_a_fusion_that_is_all_head_is_frozen_and_otherwise_as_it_was() -> None:
    fusion = MeanLogits(NAMES, world.WIDTH, world.task())
    made = applied(fusion, modality=None)
    made.calibrate()
    assert not trains(fusion) and not vectors(fusion)
    made.fold(fusion)


def test_maps_inside_of_multihead_attention_are_left_out() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    applied(layer)
    assert {n.split(".")[0] for n in vectors(layer)} == {"linear1", "linear2", "norm1", "norm2"}


def test_statistics_of_a_batch_norm_stay_put_in_training() -> None:
    model = model_of(BOTH, encoder=Frames)
    model.train()
    model(world.batch_of(COMPLETE))
    for m in NAMES:
        assert not model.encoders[m].norm.running_mean.any()  # type: ignore[union-attr,operator]


# The budget


class Chain(nn.Module):
    """Three maps in a row, of 8, 2 and 4 features."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.slim, self.last = nn.Linear(2, 8), nn.Linear(8, 2), nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Apply all."""
        return self.last(self.slim(self.wide(x)))


def calibrated(budget: float, gradients: Mapping[str, float]) -> tuple[Chain, ScaleShift]:
    """Let the calibration see the same gradient for every value of a layer."""
    chain = Chain()
    made = applied(chain, budget=budget)
    for name, vector in vectors(chain, "m0+m1").items():
        vector.grad = torch.full_like(vector, gradients[name.split(".")[0]])
    made.calibrate()
    return chain, made


@pytest.mark.parametrize(
    ("budget", "gradients", "kept"),
    [
        (0.9, {"wide": 3.0, "slim": 2.0, "last": 1.0}, {"wide", "slim"}),
        (0.5, {"wide": 1.0, "slim": 3.0, "last": 2.0}, {"slim", "last"}),
        (0.5, {"wide": 3.0, "slim": 1.0, "last": 2.0}, {"slim", "last"}),
        (0.3, {"wide": 3.0, "slim": 1.0, "last": 2.0}, {"last"}),
        (0.01, {"wide": 3.0, "slim": 1.0, "last": 2.0}, {"wide"}),
    ],
    ids=["the first two fit", "small ones first", "too wide is passed over", "one fits", "none fits"],
)
def test_a_budget_keeps_the_most_sensitive_layers_that_fit(
    budget: float, gradients: Mapping[str, float], kept: set[str]
) -> None:
    chain, _ = calibrated(budget, gradients)
    assert {n.split(".")[0] for n in trains(chain)} == kept


def test_a_budget_is_kept_within_by_real_gradients_and_the_rest_stays_at_the_start() -> None:
    torch.manual_seed(0)
    encoder = world.PromptableEncoder()
    made = applied(encoder, budget=0.3)
    every, raw = vectors(encoder, "m0+m1"), torch.randn(ROWS, world.FEATURES)

    def loss() -> Tensor:
        return (encoder(raw).values - 1).square().mean()

    loss().backward()
    made.calibrate()
    size = sum(p.numel() for p in every.values())
    assert 0.2 * size < sum(p.numel() for p in every.values() if p.requires_grad) <= 0.3 * size
    encoder.zero_grad(set_to_none=True)
    train(encoder, loss)
    for name, vector in every.items():
        start = torch.full_like(vector, float(".gamma." in name))
        moved = not torch.equal(vector, start)
        assert moved == vector.requires_grad or name.endswith("key.scale_shift.beta.m0+m1")


def test_without_gradients_a_budget_changes_nothing() -> None:
    chain = Chain()
    made = applied(chain, budget=0.3)
    before = trains(chain)
    made.calibrate()
    assert trains(chain) == before


def test_calibration_batches_are_asked_for_by_a_budget_alone() -> None:
    assert adapter().calibration_batches == 0
    assert adapter(budget=0.5).calibration_batches == 8
    assert adapter(budget=0.5, calibration_batches=3).calibration_batches == 3


# What is refused


def test_rows_of_different_patterns_in_training_are_refused_with_reason() -> None:
    with pytest.raises(InputError, match=r"one availability pattern.*modalities: .*rate: 0.*per_pattern"):
        adapter(None)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"scale": False, "shift": False}, "nothing is left"),
        ({"budget": 0.0}, "budget 0.0"),
        ({"budget": 1.5}, "budget 1.5"),
        ({"budget": float("nan")}, "budget nan"),
        ({"budget": 0.5, "calibration_batches": 0}, "calibration_batches"),
        ({"targets": "linear("}, "no regex"),
    ],
    ids=["neither", "no budget", "too much", "nan", "no batches", "no regex"],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        adapter(**options)


def test_targets_choose_the_layers() -> None:
    encoder = world.PromptableEncoder()
    applied(encoder, targets=r".*\.norm[12]")
    assert {n.split(".scale_shift")[0] for n in vectors(encoder)} == {
        f"transformer.blocks.{i}.norm{j}" for i in (0, 1) for j in (1, 2)
    }


@pytest.mark.parametrize("modality", ["m0", None], ids=["encoder", "fusion"])
def test_targets_that_match_no_layer_are_refused(modality: str | None) -> None:
    with pytest.raises(InputError, match="targets 'nothing' match no layer of PlainEncoder"):
        applied(world.PlainEncoder(), modality=modality, targets="nothing")


def test_an_encoder_without_layers_is_refused() -> None:
    with pytest.raises(InputError, match="there is no layer of Wrapped"):
        applied(Wrapped(nn.Identity()))
