"""The transformer that takes prompts: where they stand, who reads them, and that padding is never read."""

from typing import Literal

import pytest
import torch

from mmx.transformer import LORA_TARGETS, Transformer
from mmx.types import Prompts, Tokens, first_token

WIDTH, DEPTH, BATCH, LENGTH = 8, 3, 2, 5


@pytest.fixture
def transformer() -> Transformer:
    torch.manual_seed(0)
    return Transformer(WIDTH, DEPTH, heads=2).eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(BATCH, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1))


def prompts_of(
    layers: int, length: int, level: Literal["input", "attention"] = "input", read_only: bool = False
) -> Prompts:
    values = torch.randn(BATCH, layers, length, WIDTH, generator=torch.Generator().manual_seed(2))
    return Prompts(values, level, read_only)


def test_output_of_plain_prompts_stands_in_front(transformer: Transformer, x: torch.Tensor) -> None:
    out = transformer(x, prompts=torch.randn(BATCH, 2, WIDTH))
    assert out.shape == (BATCH, 2 + LENGTH, WIDTH)


def test_plain_prompts_are_tokens_at_the_input(transformer: Transformer, x: torch.Tensor) -> None:
    prompts = torch.randn(BATCH, 2, WIDTH)
    assert torch.equal(transformer(x, prompts=prompts), transformer(torch.cat([prompts, x], dim=1)))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_deep_input_prompts_add_up(transformer: Transformer, x: torch.Tensor, layers: int) -> None:
    assert transformer(x, prompts=prompts_of(layers, 4)).shape[1] == 4 * layers + LENGTH


def test_prompts_of_more_layers_than_there_are_leave_the_rest_unused(
    transformer: Transformer, x: torch.Tensor
) -> None:
    many = prompts_of(DEPTH + 2, 4)
    fitting = Prompts(many.values[:, :DEPTH])
    assert torch.equal(transformer(x, prompts=many), transformer(x, prompts=fitting))


def test_later_layers_prompts_stand_in_front_of_earlier_ones(
    transformer: Transformer, x: torch.Tensor
) -> None:
    prompts = prompts_of(2, 1)
    state = x
    for layer, block in enumerate(transformer.blocks):
        if layer < 2:
            state = torch.cat([prompts.values[:, layer], state], dim=1)
        state = block(state)
    assert torch.allclose(transformer(x, prompts=prompts), transformer.norm(state), atol=1e-6)


@pytest.mark.parametrize("layers", [1, 3])
def test_attention_prompts_keep_the_length_and_change_the_tokens(
    transformer: Transformer, x: torch.Tensor, layers: int
) -> None:
    out = transformer(x, prompts=prompts_of(layers, 4, "attention"))
    assert out.shape == x.shape
    assert not torch.allclose(out, transformer(x), atol=1e-4)


def test_attention_prompts_are_keys_then_values(transformer: Transformer, x: torch.Tensor) -> None:
    prompts = prompts_of(1, 4, "attention")
    zero_values = prompts.values.clone()
    zero_values[:, :, 2:] = 0
    other_keys = zero_values.clone()
    other_keys[:, :, :2] = -50 * torch.sign(other_keys[:, :, :2])
    outs = [transformer(x, prompts=Prompts(v, "attention")) for v in (zero_values, other_keys)]
    assert not torch.allclose(*outs, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("padded", [False, True])
def test_read_only_prompts_leave_the_other_tokens_as_they_are(
    transformer: Transformer, x: torch.Tensor, layers: int, padded: bool
) -> None:
    valid = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    valid[0, 3:] = not padded
    given = valid if padded else None
    out = transformer(x, given, prompts_of(layers, 2, read_only=True))
    difference = (out[:, 2 * layers :] - transformer(x, given))[valid]
    assert float(difference.detach().abs().max()) < 1e-6


def test_read_only_prompts_read_the_tokens(transformer: Transformer, x: torch.Tensor) -> None:
    prompts = prompts_of(1, 2, read_only=True)
    first, second = (
        transformer(x, prompts=prompts),
        transformer(x + 1.0 * torch.randn_like(x), prompts=prompts),
    )
    assert not torch.allclose(first[:, :2], second[:, :2], atol=1e-4)


def test_read_only_prompts_do_not_read_each_other(transformer: Transformer, x: torch.Tensor) -> None:
    prompts = prompts_of(1, 2, read_only=True)
    changed = prompts.values.clone()
    changed[:, :, 1] *= -1
    first, second = transformer(x, prompts=prompts), transformer(x, prompts=Prompts(changed, read_only=True))
    assert torch.allclose(first[:, 0], second[:, 0], atol=1e-6)
    assert not torch.allclose(first[:, 1], second[:, 1], atol=1e-4)


def test_prompts_that_are_not_read_only_change_the_other_tokens(
    transformer: Transformer, x: torch.Tensor
) -> None:
    out = transformer(x, prompts=prompts_of(1, 2))
    assert not torch.allclose(out[:, 2:], transformer(x), atol=1e-4)


CASES = [None, prompts_of(2, 2), prompts_of(2, 2, "attention"), prompts_of(2, 2, read_only=True)]


@pytest.mark.parametrize("prompts", CASES, ids=["plain", "input", "attention", "read only"])
def test_padding_is_never_read(transformer: Transformer, x: torch.Tensor, prompts: Prompts | None) -> None:
    valid = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    valid[0, 3:] = valid[1, 0] = False
    changed = torch.where(valid[:, :, None], x, 1e3)
    first, second = transformer(x, valid, prompts), transformer(changed, valid, prompts)
    front = first.shape[1] - LENGTH
    kept = torch.cat([torch.ones(BATCH, front, dtype=torch.bool), valid], dim=1)
    assert torch.allclose(first[kept], second[kept], atol=1e-6)


@pytest.mark.parametrize("prompts", CASES, ids=["plain", "input", "attention", "read only"])
def test_padded_row_gives_what_the_short_row_gives(
    transformer: Transformer, x: torch.Tensor, prompts: Prompts | None
) -> None:
    valid = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    valid[:, 3:] = False
    padded, short = transformer(x, valid, prompts), transformer(x[:, :3], None, prompts)
    assert torch.allclose(padded[:, : short.shape[1]], short, atol=1e-5)


def test_lora_targets_are_the_four_attention_maps_of_every_block(transformer: Transformer) -> None:
    import re

    found = [n for n, _ in transformer.named_modules() if re.fullmatch(LORA_TARGETS, n)]
    assert len(found) == 4 * DEPTH


def test_summary_of_an_absent_modality_is_zero_and_not_valid() -> None:
    valid = torch.tensor([[True, True], [False, False]])
    values, there = first_token(Tokens(torch.ones(2, 2, WIDTH), valid))
    assert there.tolist() == [True, False] and float(values[1].abs().sum()) == 0


def test_summary_where_nobody_has_a_token_is_zero() -> None:
    values, there = first_token(Tokens(torch.zeros(2, 0, WIDTH), torch.zeros(2, 0, dtype=torch.bool)))
    assert values.shape == (2, WIDTH) and not bool(there.any())
