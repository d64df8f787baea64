"""Missing-aware prompts: one set a pattern, chosen a row, at the input or in the attention."""

from typing import Any

import pytest
import torch

from mmx.contracts import EncoderFacts, Prompts, Tokens
from mmx.errors import InputError
from mmx.protocols import all_patterns
from mmx.registry import Registry
from mmx.testing import world
from mmx_strategies.missing_aware_prompts import Prompt

WIDTH = 6


def strategy(count: int = 2, layers: int = 2, accepts: bool = True, **options: Any) -> Prompt:
    torch.manual_seed(0)
    facts = {m: EncoderFacts(WIDTH, accepts, layers) for m in world.names(count)}
    return Prompt(world.names(count), WIDTH, facts, **{"length": 4, **options})


def everyone(count: int) -> dict[str, torch.Tensor]:
    """Give every pattern a row."""
    patterns = all_patterns(world.names(count))
    return {m: torch.tensor([m in p for p in patterns]) for m in world.names(count)}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_pattern_that_has_the_modality_has_a_set_of_its_own(count: int) -> None:
    model = strategy(count)
    presence = everyone(count)
    for m in world.names(count):
        chosen = model.prompts(m, presence).values[presence[m]]  # type: ignore[union-attr]
        assert len({tuple(row.flatten().tolist()) for row in chosen}) == len(chosen) == 2 ** (count - 1)


def test_rows_of_one_pattern_share_their_set_wherever_they_stand() -> None:
    presence = {"m0": torch.tensor([True] * 4), "m1": torch.tensor([True, False, False, True])}
    chosen = strategy().prompts("m0", presence).values  # type: ignore[union-attr]
    assert torch.equal(chosen[0], chosen[3]) and torch.equal(chosen[1], chosen[2])
    assert not torch.equal(chosen[0], chosen[1])


@pytest.mark.parametrize(("depth", "layers", "expected"), [(1, 3, 1), (2, 3, 2), (6, 3, 3)])
def test_sets_are_as_deep_as_there_are_layers(depth: int, layers: int, expected: int) -> None:
    chosen = strategy(layers=layers, depth=depth).prompts("m0", everyone(2))
    assert isinstance(chosen, Prompts) and chosen.values.shape == (3, expected, 4, WIDTH)


def test_encoder_that_takes_plain_prompts_gets_the_first_layers() -> None:
    chosen = strategy(layers=0).prompts("m0", everyone(2))
    assert isinstance(chosen, torch.Tensor) and chosen.shape == (3, 4, WIDTH)


@pytest.mark.parametrize(("level", "front"), [("input", 8), ("attention", 0)])
def test_outputs_of_input_prompts_are_taken_off_and_attention_keeps_the_count(level: Any, front: int) -> None:
    model = strategy(level=level)
    presence = everyone(2)
    values = torch.randn(3, front + 5, WIDTH)
    tokens = {m: Tokens(values, p[:, None].expand(-1, front + 5)) for m, p in presence.items()}
    filled = model.fill(tokens, presence, None)
    assert all(torch.equal(t.values, values[:, front:]) for t in filled.tokens.values())
    assert not filled.losses and filled.prompts is None


@pytest.mark.parametrize("level", ["input", "attention"])
@pytest.mark.parametrize("where", ["encoder", "fusion", "both"])
def test_fusion_sees_as_many_tokens_as_the_encoders_own(registry: Registry, level: str, where: str) -> None:
    fusion = registry.find("fusion", "transformer")
    model = world.assemble(registry, registry.find("strategy", "skip"), fusion, 2)
    facts = {m: EncoderFacts(e.width, e.accepts_prompts, e.prompt_layers) for m, e in model.encoders.items()}
    model.strategy = Prompt(model.modalities, world.WIDTH, facts, 2, 4, 6, level, where)  # type: ignore[arg-type]
    seen: list[int] = []
    model.fusion.register_forward_hook(
        lambda m, given, out: seen.extend(t.values.shape[1] for t in given[0].values())
    )
    model.eval()(world.batch_of({m: [1, 1] for m in model.modalities}))
    assert seen == [4, 4]


@pytest.mark.parametrize("where", ["fusion", "both"])
def test_fusion_gets_one_set_for_each_pattern(where: Any) -> None:
    model = strategy(3, where=where, fusion_layers=2)
    presence = everyone(3)
    front = 8 if where == "both" else 0
    tokens = {
        m: Tokens(torch.zeros(7, front + 1, WIDTH), p[:, None].expand(-1, front + 1))
        for m, p in presence.items()
    }
    prompts = model.fill(tokens, presence, None).prompts
    assert prompts is not None and prompts.values.shape == (7, 2, 4, WIDTH)
    assert len({tuple(row.flatten().tolist()) for row in prompts.values}) == 7


def test_prompts_in_the_fusion_leave_the_encoders_alone() -> None:
    model = strategy(where="fusion", fusion_layers=2, accepts=False)
    assert model.prompts("m0", everyone(2)) is None and not model.encodes_by_pattern


@pytest.mark.parametrize("where", ["encoder", "both"])
def test_prompts_in_the_encoders_must_be_encoded_by_pattern(where: Any) -> None:
    assert strategy(where=where, fusion_layers=2).encodes_by_pattern


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "encoder": ({"accepts": False, "layers": 0}, r"encoder of 'm0' takes no prompts.*where=fusion"),
    "attention": ({"layers": 0, "level": "attention"}, "at its input only"),
    "fusion": ({"where": "fusion"}, "fusion takes no prompts.*transformer"),
    "both": ({"where": "both"}, "fusion takes no prompts"),
    "odd": ({"level": "attention", "length": 3}, "even"),
    "none": ({"length": 0}, "at least 1"),
    "depth": ({"depth": 0}, "at least 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_with_the_reason(case: str) -> None:
    options, told = REFUSED[case]
    with pytest.raises(InputError, match=told):
        strategy(**options)


def test_plan_refuses_prompts_for_encoders_that_take_none(plan_toy: Any) -> None:
    with pytest.raises(InputError, match=r"strategy\.where=fusion"):
        plan_toy({"strategy": "prompt"})


def test_plan_refuses_prompts_for_a_fusion_that_takes_none(plan_toy: Any) -> None:
    with pytest.raises(InputError, match="fusion: transformer"):
        plan_toy({"strategy": {"name": "prompt", "where": "fusion"}, "fusion": "mean"})


def test_sets_do_not_start_alike() -> None:
    sets = strategy(3).sets["m0"].detach()
    assert len({tuple(row.tolist()) for row in sets.flatten(0, 2)}) == sets.flatten(0, 2).shape[0]


@pytest.mark.parametrize(
    ("level", "rows"), [("input", [[0], [1], [2]]), ("attention", [[0, 2], [1, 3], [0, 2]])]
)
def test_the_released_start_is_zeros_with_a_row_of_ones_for_each_pattern(level: Any, rows: list[Any]) -> None:
    model = strategy(where="fusion", fusion_layers=2, level=level, start="released")
    presence = everyone(2)  # complete, m0 alone, m1 alone
    tokens = {m: Tokens(torch.zeros(3, 1, WIDTH), p[:, None]) for m, p in presence.items()}
    prompts = model.fill(tokens, presence, None).prompts
    assert prompts is not None
    expected = torch.zeros(3, 2, 4, WIDTH)
    for pattern, ones in enumerate(rows):
        expected[pattern, :, ones] = 1.0
    assert torch.equal(prompts.values, expected)


def test_released_sets_of_an_encoder_begin_with_the_complete_pattern() -> None:
    chosen = strategy(start="released").prompts("m1", everyone(2))
    assert isinstance(chosen, Prompts)
    complete, alone = chosen.values[0], chosen.values[2]
    assert bool((complete[:, 0] == 1).all()) and bool((alone[:, 1] == 1).all())
    assert float(chosen.values[[0, 2]].sum()) == 2 * 2 * WIDTH


def test_tokens_that_start_alike_stay_alike_which_noise_avoids(registry: Registry) -> None:
    fusion = registry.find("fusion", "transformer")
    apart = {}
    for start in ("released", "noise"):
        model = world.assemble(registry, registry.find("strategy", "skip"), fusion, 2)
        facts = {m: EncoderFacts.of(e) for m, e in model.encoders.items()}  # type: ignore[arg-type]
        model.strategy = Prompt(model.modalities, world.WIDTH, facts, 2, 4, 6, "input", "fusion", start)  # type: ignore[arg-type]
        batch = world.batch_of({m: [1, 1, 1, 1] for m in model.modalities})
        optimizer = torch.optim.SGD(model.strategy.parameters(), lr=1.0)
        for _ in range(3):
            optimizer.zero_grad()
            world.task().loss(model(batch).logits, batch.target).backward()
            optimizer.step()
        learned = model.strategy.sets["fusion"][2, 0].detach()  # type: ignore[index]
        apart[start] = not torch.allclose(learned[1], learned[3], atol=1e-6)
    assert apart == {"released": False, "noise": True}


@pytest.mark.parametrize("where", ["encoder", "fusion"])
def test_unaware_prompts_are_one_set_whoever_is_absent(where: Any) -> None:
    model = strategy(3, where=where, fusion_layers=2, aware=False)
    assert not model.encodes_by_pattern and all(len(s) == 1 for s in model.sets.values())
    presence = everyone(3)
    tokens = {m: Tokens(torch.zeros(7, 9, WIDTH), p[:, None].expand(-1, 9)) for m, p in presence.items()}
    found = model.fill(tokens, presence, None).prompts if where == "fusion" else model.prompts("m1", presence)
    assert isinstance(found, Prompts)
    assert len(found.values) == 7 and bool((found.values == found.values[:1]).all())
