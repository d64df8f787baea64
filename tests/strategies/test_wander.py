"""Wander: the product against plain loops, its released start that never moves, and ours that does."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmx.builtin.adapters.part import Part
from mmx.contracts import Tokens
from mmx.errors import InputError
from mmx.testing import world
from mmx_strategies.wander import LowRankProduct, Wander, first_present, fitted

WIDTH = 8
LENGTH = 4
SOME = {
    2: {"m0": [1, 1, 0, 1], "m1": [1, 0, 1, 1]},
    3: {"m0": [1, 1, 0, 0, 1], "m1": [1, 0, 1, 0, 1], "m2": [1, 1, 1, 1, 0]},
}
each_fuse = pytest.mark.parametrize("fuse", ["cp", "released"])


def tokens_of(presence: Mapping[str, Sequence[int]], counts: Sequence[int] = (3, 6, 4)) -> dict[str, Tokens]:
    """Make tokens; a modality has as many as `counts` says, and the last one of row 0 is padding."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for (m, present), count in zip(presence.items(), counts, strict=False):
        valid = torch.tensor(present, dtype=torch.bool)[:, None].repeat(1, count)
        valid[0, -1] = False
        values = torch.randn(len(present), count, WIDTH, generator=generator)
        found[m] = Tokens(torch.where(valid[:, :, None], values, 0.0), valid)
    return found


def product_of(count: int = 2, fuse: Any = "cp", **options: Any) -> LowRankProduct:
    """Build the product with weights that are not what it starts from."""
    torch.manual_seed(0)
    given = {"length": LENGTH, "bottleneck": 3, "drank": 2, "trank": 5, "outputs": 3} | options
    module = LowRankProduct(world.names(count), WIDTH, fuse=fuse, **given)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


def fusion_of(count: int = 2, seed: int = 0, **options: Any) -> Wander:
    torch.manual_seed(seed)
    given = {"bottleneck": 3, "drank": 2, "trank": 5, "length": LENGTH} | options
    return Wander(world.names(count), WIDTH, world.task(), **given)


def hidden(module: LowRankProduct, m: str, tokens: Tokens, row: int) -> list[Tensor]:
    """Give H_m token by token; a token that is not there adds nothing."""
    found = []
    for place in range(LENGTH):
        there = place < tokens.values.shape[1] and bool(tokens.valid[row, place])
        down = module.down[m]
        found.append(F.gelu(down(tokens.values[row, place])) if there else torch.zeros(down.out_features))
    return found


def by_hand(module: LowRankProduct, tokens: Mapping[str, Tokens], row: int) -> Tensor:
    """Give Z of one row by the equations, term by term."""
    present = [m for m in tokens if bool(tokens[m].valid[row, 0])]
    kept = {m: hidden(module, m, tokens[m], row) for m in present}

    def part(m: str, time: Tensor, feature: Tensor) -> Tensor:
        mixed = sum(torch.outer(time[t], kept[m][t]) for t in range(LENGTH))
        return torch.as_tensor(mixed @ feature)

    if module.fuse == "released":
        total = torch.ones(())
        for m in present:
            total = total * part(m, module.time[m].sum(dim=0), module.feature[m].sum(dim=0))
    else:
        total = torch.zeros(())
        for j in range(5):
            for i in range(2):
                term = torch.ones(())
                for m in present:
                    term = term * part(m, module.time[m][j], module.feature[m][i])
                total = total + term
    return total if module.gain is None else module.gain * total


# --------------------------------------------------------------------------------------------- the product


@each_fuse
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("start", ["identity", "released"])
def test_product_is_that_of_the_equations_over_what_is_present(fuse: str, count: int, start: str) -> None:
    module, tokens = product_of(count, fuse, start=start), tokens_of(SOME[count])
    found = module(tokens)
    for row in range(len(found)):
        assert torch.allclose(found[row], by_hand(module, tokens, row), rtol=1e-4, atol=1e-3)


def test_cp_is_a_weight_tensor_applied_to_the_outer_product_of_both_modalities() -> None:
    module, tokens = product_of(outputs=1, start="released"), tokens_of({"m0": [1], "m1": [1]})
    (f0, f1), (g0, g1) = (list(p.values()) for p in (module.feature, module.time))
    weight = torch.einsum("jt,iad,ju,ibd->taubd", g0[:, :, 0], f0, g1[:, :, 0], f1)
    h0, h1 = (torch.stack(hidden(module, m, tokens[m], 0)) for m in ("m0", "m1"))
    outer = torch.einsum("ta,ub->taub", h0, h1)
    assert torch.allclose(module(tokens)[0, 0], torch.einsum("taub,taubd->d", outer, weight), atol=1e-3)


def test_ranks_of_the_released_form_say_no_more_than_their_sum() -> None:
    module, tokens = product_of(fuse="released"), tokens_of(SOME[2])
    summed = product_of(fuse="released", drank=1, trank=1)
    state = module.state_dict()
    for name in state:
        if name.startswith(("feature.", "time.")):
            state[name] = state[name].sum(dim=0, keepdim=True)
    summed.load_state_dict(state)
    assert torch.allclose(summed(tokens), module(tokens), rtol=1e-4, atol=1e-3)


def test_ranks_of_the_cp_form_say_more_than_their_sum() -> None:
    module, tokens = product_of(), tokens_of({"m0": [1], "m1": [1]})
    released = product_of(fuse="released")
    released.load_state_dict(module.state_dict())
    assert not torch.allclose(released(tokens), module(tokens), rtol=0.1)


def test_both_forms_are_one_at_rank_one() -> None:
    forms = [product_of(fuse=fuse, drank=1, trank=1) for fuse in ("cp", "released")]
    first, second = (form(tokens_of(SOME[2])) for form in forms)
    assert torch.allclose(first, second, atol=1e-5)


def test_as_published_it_has_as_many_parameters_as_the_release() -> None:
    sizes = {"image": 197, "text": 50}
    parts = [LowRankProduct([m], 768, t, 64, 8, 12, "released", "released", 64) for m, t in sizes.items()]
    assert sum(p.numel() for part in parts for p in part.parameters()) == 1_074_560


@each_fuse
def test_every_token_has_a_part_in_the_product(fuse: str) -> None:
    module, tokens = product_of(fuse=fuse), tokens_of({"m0": [1, 1], "m1": [1, 1]})
    values = tokens["m1"].values.clone()
    values[1, 2:4] = values[1, 2:4].flip(0)
    other = module({**tokens, "m1": Tokens(values, tokens["m1"].valid)})
    same = [torch.allclose(a, b, rtol=1e-3) for a, b in zip(other, module(tokens), strict=True)]
    assert same == [True, False]


@each_fuse
def test_padding_and_what_comes_after_the_fixed_length_change_nothing(fuse: str) -> None:
    module, tokens = product_of(fuse=fuse), tokens_of(SOME[2])
    padded = {m: fitted(t, 9) for m, t in tokens.items()}
    cut = {m: fitted(t, LENGTH) for m, t in tokens.items()}
    longer = {m: Tokens(F.pad(t.values, (0, 0, 0, 2), value=9.0), F.pad(t.valid, (0, 2), value=True))
              for m, t in cut.items()}  # fmt: skip
    for other in (padded, cut, longer):
        assert torch.equal(module(other), module(tokens))


@each_fuse
def test_a_row_without_any_modality_adds_nothing(fuse: str) -> None:
    found = product_of(fuse=fuse)(tokens_of({"m0": [1, 0], "m1": [1, 0]}))
    assert torch.equal(found[1], torch.zeros_like(found[1]))


# ----------------------------------------------------------------------------------------------- the start


def learned(fusion: Wander, presence: Mapping[str, Sequence[int]], steps: int = 3) -> dict[str, bool]:
    """Take some steps; tell of each parameter whether it ever had gradient."""
    tokens, target = tokens_of(presence), torch.arange(len(presence["m0"])) % world.CLASSES
    reached = dict.fromkeys((n for n, _ in fusion.named_parameters()), False)
    for _ in range(steps):
        fusion.zero_grad()
        F.cross_entropy(fusion(tokens), target).backward()
        reached |= {
            n: True for n, p in fusion.named_parameters() if p.grad is not None and bool(p.grad.any())
        }
        with torch.no_grad():
            for p in fusion.parameters():
                p.sub_(0.1 * p.grad if p.grad is not None else 0.0)
    return {n: r for n, r in reached.items() if "attention.key.bias" not in n}


COMPLETE = {"m0": [1, 1, 1, 1], "m1": [1, 1, 1, 1]}


@each_fuse
def test_released_start_never_moves_on_complete_rows(fuse: str) -> None:
    fusion = fusion_of(fuse=fuse, start="released")
    before = {n: p.detach().clone() for n, p in fusion.product.named_parameters()}  # type: ignore[union-attr]
    reached = learned(fusion, COMPLETE)
    assert {n.split(".")[0] for n, r in reached.items() if not r} == {"product"}
    assert not any(r for n, r in reached.items() if n.startswith("product."))
    for name, parameter in fusion.product.named_parameters():  # type: ignore[union-attr]
        assert torch.equal(parameter, before[name])


def test_a_row_with_one_modality_frees_the_released_start() -> None:
    assert all(learned(fusion_of(start="released"), SOME[2]).values())


@each_fuse
def test_our_start_trains_on_complete_rows(fuse: str) -> None:
    assert all(learned(fusion_of(fuse=fuse), COMPLETE).values())


@pytest.mark.parametrize("options", [{}, {"fuse": "released"}, {"fuse": "mlp"}], ids=str)
@pytest.mark.parametrize("count", [2, 3])
def test_start_is_the_base_exactly_whoever_is_absent(options: dict[str, Any], count: int) -> None:
    tokens = tokens_of(SOME[count])
    assert torch.equal(fusion_of(count, **options)(tokens), fusion_of(count, fuse="none")(tokens))


def test_what_starts_at_zero_becomes_about_as_large_as_a_token() -> None:
    for count in (1, 2, 3):
        torch.manual_seed(0)
        module = LowRankProduct(world.names(count), 64, 16, 16, 8, 12)
        torch.nn.init.ones_(module.gain)  # type: ignore[arg-type]
        tokens = Tokens(torch.randn(50, 16, 64), torch.ones(50, 16, dtype=torch.bool))
        size = float(module(dict.fromkeys(world.names(count), tokens)).std().detach())
        assert 0.03 < size < 3


# ---------------------------------------------------------------------------------------------- the fusion


def test_residual_is_the_first_token_of_the_first_modality_that_a_row_has() -> None:
    tokens = tokens_of({"m0": [1, 0, 0], "m1": [1, 1, 0]})
    found = first_present(tokens, ("m0", "m1"))
    assert torch.equal(found[0], tokens["m0"].values[0, 0])
    assert torch.equal(found[1], tokens["m1"].values[1, 0])
    assert torch.equal(found[2], torch.zeros(WIDTH))


def test_head_reads_the_residual_and_the_product() -> None:
    fusion, tokens = fusion_of(depth=0), tokens_of(SOME[2])
    torch.nn.init.normal_(fusion.product.gain)  # type: ignore[union-attr,arg-type]
    product = torch.stack([by_hand(fusion.product, tokens, row) for row in range(4)])[:, 0]  # type: ignore[arg-type]
    expected = fusion.head(first_present(tokens, ("m0", "m1")) + product)
    assert torch.allclose(fusion(tokens), expected, atol=1e-5)


def test_base_lets_the_first_modality_hear_of_the_others() -> None:
    tokens = tokens_of(COMPLETE)
    other = {**tokens, "m1": Tokens(tokens["m1"].values.flip(0), tokens["m1"].valid)}
    for depth, same in ((0, True), (1, False)):
        fusion = fusion_of(fuse="none", depth=depth)
        assert torch.allclose(fusion(other), fusion(tokens)) == same


def test_base_hears_nothing_of_what_is_not_valid() -> None:
    fusion, tokens = fusion_of().eval(), tokens_of(SOME[2])
    noise = {m: Tokens(torch.where(t.valid[:, :, None], t.values, 5.0), t.valid) for m, t in tokens.items()}
    assert torch.allclose(fusion(noise), fusion(tokens), atol=1e-5)


def test_a_row_without_any_modality_has_finite_logits() -> None:
    tokens = tokens_of({"m0": [1, 0], "m1": [1, 0]})
    empty = {m: Tokens(t.values[:, :0], t.valid[:, :0]) for m, t in tokens.items()}
    for given in (tokens, empty):
        assert bool(torch.isfinite(fusion_of()(given)).all())


def test_phases_train_the_base_and_then_the_product_each_with_the_head() -> None:
    fusion = fusion_of()
    for part in ("base", "product"):
        Part(targets=f"({part}|head).*").apply(fusion)
        trains = {n.split(".")[0] for n, p in fusion.named_parameters() if p.requires_grad}
        assert trains == {part, "head"}


def test_control_reads_summary_tokens_and_multiplies_nothing() -> None:
    fusion, tokens = fusion_of(fuse="mlp"), tokens_of(SOME[2])
    assert fusion.product is not None
    for parameter in fusion.product.parameters():
        torch.nn.init.normal_(parameter)
    later = {m: Tokens(t.values + F.pad(torch.ones(1, 1, 1), (0, 0, 1, 0)), t.valid)
             for m, t in fitted_all(tokens, 2).items()}  # fmt: skip
    assert torch.equal(fusion.product(later), fusion.product(fitted_all(tokens, 2)))


def fitted_all(tokens: Mapping[str, Tokens], length: int) -> dict[str, Tokens]:
    return {m: fitted(t, length) for m, t in tokens.items()}


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("name", ["bottleneck", "drank", "trank", "length"])
def test_sizes_below_one_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} 0"):
        fusion_of(**{name: 0})


@pytest.mark.parametrize(
    ("targets", "told"), [("nothing.*", "match no parameter of Wander"), ("(", "is no regex")]
)
def test_targets_that_match_no_parameter_or_are_no_regex_are_refused(targets: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        Part(targets).apply(fusion_of())
