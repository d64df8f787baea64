"""All-stage: the losses against hand-written references, what stands in, and what the pattern makes of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mmx.builtin.fusions.mean_logits import MeanLogits
from mmx.builtin.fusions.transformer import TransformerFusion
from mmx.contracts import Filled, Modality, Presence, Step, TokenMap, Tokens
from mmx.errors import InputError
from mmx.model import MultimodalModel
from mmx.tasks import Regression
from mmx.testing import world
from mmx_strategies.all_stage import AllStage
from mmx_strategies.co_distillation import CoDistillation
from mmx_strategies.hyper_network import pattern_embeddings, sentence
from mmx_strategies.skip import Skip
from mmx_strategies.token_autoencoder import Moments
from mmx_strategies.zero_fill import ZeroFill

WIDTH = 8
SOME = {"m0": [1, 1, 0, 1], "m1": [1, 0, 1, 1]}


def strategy_of(count: int = 2, **options: Any) -> AllStage:
    torch.manual_seed(0)
    return AllStage(world.names(count), WIDTH, **options)


def there(presence: Mapping[str, Sequence[int]]) -> Presence:
    return {m: torch.tensor(p, dtype=torch.bool) for m, p in presence.items()}


def tokens_of(presence: Mapping[str, Sequence[int]], count: int = 3, seed: int = 0) -> dict[str, Tokens]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for m, present in there(presence).items():
        valid = present[:, None].expand(-1, count)
        values = torch.randn(len(present), count, WIDTH, generator=generator)
        found[m] = Tokens(torch.where(valid[:, :, None], values, 0.0), valid)
    return found


def hidden(tokens: TokenMap, presence: Presence) -> dict[str, Tokens]:
    """Take away what a strategy has hidden."""
    found = {}
    for m, (values, valid) in tokens.items():
        kept = valid & presence[m][:, None]
        found[m] = Tokens(torch.where(kept[:, :, None], values, 0.0), kept)
    return found


def model_of(strategy: Any = None, fusion: Any = None, count: int = 2) -> MultimodalModel:
    names = world.names(count)
    strategy = strategy_of(count) if strategy is None else strategy
    torch.manual_seed(1)
    head = (fusion or TransformerFusion)(names, WIDTH, world.task())
    return MultimodalModel({m: world.PlainEncoder() for m in names}, strategy, head, WIDTH).train()


# ------------------------------------------------------------------------------------------------- hiding


@pytest.mark.parametrize("count", [1, 2, 3])
def test_from_none_to_all_but_one_are_dropped_each_as_often(count: int) -> None:
    given = there({m: [1] * 3000 for m in world.names(count)})
    left = torch.stack(list(strategy_of(count).hide(given).values()))
    shares = [float((left.sum(dim=0) == kept).float().mean()) for kept in range(count + 1)]
    assert shares == pytest.approx([0.0, *[1 / count] * count], abs=0.04)
    assert left.float().mean(dim=1).tolist() == pytest.approx([float(left.float().mean())] * count, abs=0.04)


def test_row_loses_only_what_it_has_and_never_all() -> None:
    given = there({m: p * 200 for m, p in SOME.items()})
    left = strategy_of().hide(given)
    assert all(bool((left[m] <= given[m]).all()) for m in SOME)
    assert bool((left["m0"] | left["m1"]).all())
    assert 0.09 < float((~left["m0"] & given["m0"]).float().mean()) < 0.16


def test_nothing_is_dropped_where_that_is_switched_off() -> None:
    given = there(SOME)
    assert strategy_of(drop=False).hide(given) == given


# -------------------------------------------------------------------------------------- the autoencoder


def test_tokens_that_are_there_stay_and_others_are_rebuilt_as_many_as_training_had() -> None:
    strategy = strategy_of(hyper="none").train()
    full = tokens_of({m: [1] * 4 for m in SOME})
    strategy.fill(full, there({m: [1] * 4 for m in SOME}), full)
    presence = there(SOME)
    tokens = hidden(full, presence)
    found = strategy.eval().fill(tokens, presence, None).tokens
    for m in SOME:
        kept = tokens[m].valid
        assert torch.equal(found[m].values[kept], tokens[m].values[kept])
        assert bool(found[m].valid.all()) and found[m].values.shape == (4, 3, WIDTH)
        assert bool((found[m].values[~kept] != 0).any(dim=1).all())


def test_what_is_rebuilt_follows_what_is_there() -> None:
    strategy, presence = strategy_of(hyper="none").eval(), there({"m0": [1, 1], "m1": [0, 0]})
    first, second = (
        strategy.fill(tokens_of({"m0": [1, 1], "m1": [0, 0]}, seed=s), presence, None) for s in (0, 1)
    )
    assert not torch.allclose(first.tokens["m1"].values, second.tokens["m1"].values, atol=1e-3)


def test_no_gradient_of_the_task_passes_what_is_rebuilt() -> None:
    strategy, presence = strategy_of(hyper="none").train(), there({"m0": [1, 1], "m1": [0, 0]})
    tokens = tokens_of({"m0": [1, 1], "m1": [0, 0]})
    assert not strategy.fill(tokens, presence, tokens).tokens["m1"].values.requires_grad


def recorded(strategy: AllStage, tokens: TokenMap, presence: Presence, targets: TokenMap) -> Any:
    """Fill, and give the autoencoder's places too."""
    seen: list[Any] = []
    handle = strategy.autoencoder.register_forward_hook(lambda *call: seen.append(call[2]))
    filled = strategy.train().fill(tokens, presence, targets)
    handle.remove()
    return seen[0], filled


def test_error_is_over_what_was_masked_or_dropped_and_has_a_truth() -> None:
    strategy = strategy_of(reconstruction=2.0)
    truth, presence = tokens_of(SOME), there({"m0": [1, 1, 0, 0], "m1": [0, 0, 1, 1]})
    places, filled = recorded(strategy, hidden(truth, presence), presence, truth)
    errors = []
    for m in SOME:
        for row in range(4):
            for place in range(3):
                masked = bool(places[m].masked[row, place])
                assert not masked or bool(presence[m][row])
                if SOME[m][row] and (masked or not bool(presence[m][row])):
                    far = places[m].rebuilt[row, place] - truth[m].values[row, place]
                    errors.append(float(far.square().mean().detach()))
    assert len(errors) > 6
    found = float(filled.losses["reconstruction"].detach())
    assert found == pytest.approx(2 * sum(errors) / len(errors), rel=1e-4)


def test_truth_has_no_gradient_and_what_is_read_has() -> None:
    strategy, presence = strategy_of(), there({"m0": [1], "m1": [0]})
    leaves = {m: torch.randn(1, 3, WIDTH, requires_grad=True) for m in SOME}
    truth = {m: Tokens(v * 1, torch.ones(1, 3, dtype=torch.bool)) for m, v in leaves.items()}
    strategy.train().fill(hidden(truth, presence), presence, truth).losses["reconstruction"].backward()
    assert leaves["m1"].grad is None or not bool(leaves["m1"].grad.any())
    assert leaves["m0"].grad is not None and bool(leaves["m0"].grad.any())


def test_about_the_asked_share_is_masked_and_each_row_keeps_a_token() -> None:
    strategy, presence = strategy_of(mask_rate=0.7), there({m: [1] * 400 for m in SOME})
    tokens = tokens_of({m: [1] * 400 for m in SOME})
    places, _ = recorded(strategy, tokens, presence, tokens)
    masked = torch.cat([places[m].masked for m in SOME], dim=1)
    assert not bool(masked.all(dim=1).any())
    assert float(masked.float().mean()) == pytest.approx(0.7 - 0.7**6 / 6, abs=0.03)


def test_evaluation_masks_nothing_and_has_no_losses() -> None:
    tokens = tokens_of(SOME)
    strategy = strategy_of().eval()
    first, second = (strategy.fill(tokens, there(SOME), None) for _ in range(2))
    assert not first.losses
    assert all(torch.equal(first.tokens[m].values, second.tokens[m].values) for m in SOME)


# ----------------------------------------------------------------------------- what has no ground truth


def test_moments_are_those_of_all_that_was_learned_in_equal_parts_at_first() -> None:
    moments, values = Moments(WIDTH, momentum=1.0), torch.randn(50, WIDTH)
    moments.learn(values)
    other = 2 * torch.randn(30, WIDTH) + 1
    mean, spread = values.mean(dim=0), values.std(dim=0, unbiased=False)
    expected = (other.mean(dim=0) - mean).square().mean()
    expected = expected + (other.std(dim=0, unbiased=False) - spread).square().mean()
    assert float(moments.distance(other)) == pytest.approx(float(expected), rel=1e-3)
    assert float(moments.distance(values)) < 1e-5


def test_start_at_zero_does_not_pull_the_moments() -> None:
    moments = Moments(WIDTH, momentum=0.05)
    moments.learn(3 + torch.randn(500, WIDTH))
    assert float((moments.mean / moments.weight).mean()) == pytest.approx(3, abs=0.1)


def test_distribution_is_of_rows_that_never_had_the_modality() -> None:
    strategy = strategy_of(distribution=0.5, momentum=1.0)
    truth, presence = tokens_of(SOME), there({"m0": [1, 1, 0, 0], "m1": [0, 0, 1, 1]})
    places, filled = recorded(strategy, hidden(truth, presence), presence, truth)
    expected = sum(
        float(strategy.moments[m].distance(places[m].rebuilt[row]).detach())
        for m, row in (("m0", 2), ("m1", 1))
    )
    assert float(filled.losses["distribution"].detach()) == pytest.approx(0.5 * expected, rel=1e-4)


def test_complete_rows_have_no_distribution_loss() -> None:
    everyone = {m: [1] * 4 for m in SOME}
    tokens = tokens_of(everyone)
    losses = strategy_of().train().fill(tokens, there(everyone), tokens).losses
    assert float(losses["distribution"]) == 0 and float(losses["reconstruction"].detach()) > 0


def test_modality_that_no_row_ever_had_costs_nothing() -> None:
    tokens = tokens_of({"m0": [1, 1], "m1": [0, 0]})
    tokens["m1"] = Tokens(torch.zeros(2, 0, WIDTH), torch.zeros(2, 0, dtype=torch.bool))
    filled = strategy_of().train().fill(tokens, there({"m0": [1, 1], "m1": [0, 0]}), tokens)
    assert float(filled.losses["distribution"]) == 0
    assert filled.tokens["m1"].values.shape[1] == 1  # nothing is known of how many it has


# ---------------------------------------------------------------------------------- the hyper-network


def moved(strategy: AllStage) -> AllStage:
    """Take the network away from its start."""
    assert strategy.hyper is not None
    torch.nn.init.normal_(strategy.hyper.outer.weight, std=0.3)
    return strategy


@pytest.mark.parametrize("hyper", ["text", "table"])
def test_scales_and_shifts_are_nothing_at_the_start_and_the_patterns_own_later(hyper: Any) -> None:
    plain = strategy_of(hyper="none", reconstruction=0.0).eval()
    strategy = strategy_of(hyper=hyper, reconstruction=0.0).eval()
    tokens = tokens_of({"m0": [1, 1, 1], "m1": [1, 0, 0]})
    presence = there({"m0": [1, 1, 1], "m1": [1, 0, 0]})
    same = strategy.fill(tokens, presence, None).tokens["m0"].values
    assert torch.equal(same, plain.fill(tokens, presence, None).tokens["m0"].values)
    later = moved(strategy).fill(tokens, presence, None).tokens["m0"].values
    alone, complete = (strategy.hyper.table[code] for code in (1, 3))
    for row, embedding in enumerate([complete, alone, alone]):
        hidden_layer = torch.nn.functional.gelu(strategy.hyper.inner(embedding))
        gamma, beta = strategy.hyper.outer(hidden_layer)[: 2 * WIDTH].chunk(2)
        assert torch.allclose(later[row], (1 + gamma) * tokens["m0"].values[row] + beta, atol=1e-5)


def test_sentences_tell_patterns_apart_and_do_not_hang_on_the_seed() -> None:
    table = pattern_embeddings(("image", "audio"), None)
    assert sentence(("image", "audio"), ["audio"]) == "image absent, audio present"
    apart = torch.cdist(table, table) + 99 * torch.eye(4)
    assert float(apart.min()) > 1
    torch.manual_seed(7)
    assert torch.equal(table, pattern_embeddings(("image", "audio"), None))


def test_users_own_embeddings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "patterns.safetensors"
    save_file({"m0": torch.ones(5), "m1": 2 * torch.ones(5), "m0+m1": 3 * torch.ones(5)}, path)
    table = strategy_of(embeddings=str(path)).hyper.table
    assert table[:, 0].tolist() == [0, 1, 2, 3] and table.shape == (4, 5)
    with pytest.raises(InputError, match=r"no vector 'm2'"):
        strategy_of(3, embeddings=str(path))
    save_file({"m0": torch.ones(5)}, tmp_path / "one.safetensors")
    with pytest.raises(InputError, match="cannot be read"):
        strategy_of(embeddings=str(tmp_path / "nowhere"))


# ------------------------------------------------------------------------------------- co-distillation


def step_of(model: MultimodalModel, presence: Mapping[str, Sequence[int]], **options: Any) -> Step:
    procedure = CoDistillation(world.task(), **options)
    procedure.check(model)
    torch.manual_seed(3)
    (step,) = procedure.steps(model, world.batch_of(presence))
    return step


def test_losses_are_those_of_both_paths_by_hand() -> None:
    model, presence = model_of(fusion=MeanLogits), {m: p * 2 for m, p in SOME.items()}
    step = step_of(model, presence, weight=0.5, temperature=3.0)
    batch = world.batch_of(presence)
    torch.manual_seed(3)
    visible = model.strategy.hide(batch.presence)
    assert any(bool((batch.presence[m] & ~visible[m]).any()) for m in SOME)
    torch.manual_seed(3)
    output = model(batch)
    student = model.fusion(hidden(output.tokens, visible))
    p, q = (torch.softmax(z.detach() / 3, dim=1) for z in (output.logits, student))
    expected = {
        "task_completed": world.task().loss(output.logits, batch.target),
        "task_observed": world.task().loss(student, batch.target),
        "distillation": 0.5 * 9 * (p * (p / q).log()).sum(dim=1).mean(),
        **output.losses,
    }
    assert {n: float(v.detach()) for n, v in step.losses.items()} == pytest.approx(
        {n: float(v.detach()) for n, v in expected.items()}, rel=1e-4
    )
    assert float(step.loss.detach()) == pytest.approx(sum(float(v.detach()) for v in expected.values()))


def test_features_are_what_enters_the_one_head() -> None:
    model, seen = model_of(), []
    model.fusion.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    step = step_of(model, SOME, features=2.0)
    expected = 2 * (seen[0] - seen[1]).square().mean()
    assert float(step.losses["features"].detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    assert "features" not in step_of(model_of(fusion=MeanLogits), SOME).losses


def test_teacher_is_not_moved_by_what_it_teaches() -> None:
    model, entered = model_of(), []
    model.fusion.register_forward_hook(lambda *call: entered.append(call[2]))
    step = step_of(model, SOME)
    for name in ("distillation", "features"):
        (teacher,) = torch.autograd.grad(step.losses[name], entered[0], retain_graph=True, allow_unused=True)
        assert teacher is None


def test_complete_rows_have_nothing_to_teach() -> None:
    everyone = {m: [1] * 4 for m in SOME}
    step = step_of(model_of(strategy_of(drop=False)), everyone)
    assert float(step.losses["distillation"].detach()) == pytest.approx(0, abs=1e-6)
    assert float(step.losses["features"].detach()) == pytest.approx(0, abs=1e-6)


def test_what_only_stands_in_is_the_teachers_alone() -> None:
    model = model_of(ZeroFill())
    step = step_of(model, SOME)
    batch = world.batch_of(SOME)
    student = model.fusion(hidden(model(batch).tokens, batch.presence))
    found = float(step.losses["task_observed"].detach())
    assert found == pytest.approx(float(world.task().loss(student, batch.target).detach()), rel=1e-5)


def test_task_without_classes_has_the_squared_error() -> None:
    procedure = CoDistillation(Regression())
    assert float(procedure._distance(torch.tensor([[1.0]]), torch.tensor([[3.0]]))) == 4


def test_strategys_own_losses_are_added() -> None:
    class Extra(Skip):
        def fill(self, tokens: TokenMap, presence: Presence, targets: TokenMap | None) -> Filled:
            return Filled(super().fill(tokens, presence, targets).tokens, {"extra": torch.tensor(5.0)})

    assert float(step_of(model_of(Extra()), SOME).losses["extra"]) == 5


# -------------------------------------------------------------------------------- switches, refusals


def test_answers_from_what_is_there_rebuild_nothing_in_evaluation() -> None:
    tokens, presence = tokens_of(SOME), there(SOME)
    found = strategy_of(answers="observed", hyper="none").eval().fill(tokens, presence, None).tokens
    assert all(torch.equal(found[m].valid, tokens[m].valid) for m in SOME)
    training = strategy_of(answers="observed").train().fill(tokens, presence, tokens).tokens
    assert all(bool(training[m].valid[:, 0].all()) for m in SOME)


def test_without_reconstruction_nothing_stands_in_and_nothing_hidden_is_encoded() -> None:
    strategy = strategy_of(reconstruction=0.0)
    assert strategy.autoencoder is None and not strategy.uses_targets
    tokens = tokens_of(SOME)
    filled = strategy.train().fill(tokens, there(SOME), tokens)
    assert not filled.losses and all(torch.equal(filled.tokens[m].valid, tokens[m].valid) for m in SOME)


def test_distribution_loss_can_be_switched_off() -> None:
    tokens = tokens_of(SOME)
    assert list(strategy_of(distribution=0.0).train().fill(tokens, there(SOME), tokens).losses) == [
        "reconstruction"
    ]


@pytest.mark.parametrize(
    ("option", "value"),
    [("reconstruction", -1.0), ("distribution", -0.5), ("mask_rate", 1.0), ("depth", 0), ("heads", 3)],
)
def test_options_out_of_range_are_refused(option: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{option} {value}"):
        strategy_of(**{option: value})


def test_embeddings_without_text_are_refused() -> None:
    with pytest.raises(InputError, match="hyper: text"):
        strategy_of(hyper="table", embeddings="x.safetensors")


@pytest.mark.parametrize(("option", "value"), [("weight", -1.0), ("features", -1.0), ("temperature", 0.0)])
def test_weights_of_distillation_out_of_range_are_refused(option: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{option} {value}"):
        CoDistillation(world.task(), **{option: value})


def test_strategy_that_hides_needs_no_other_tie_to_it() -> None:
    model = model_of(Hiding())
    step, batch = step_of(model, SOME), world.batch_of(SOME)
    seen = model.strategy.hide(batch.presence)
    student = model.fusion(hidden(model(batch).tokens, seen))
    found = float(step.losses["task_observed"].detach())
    assert found == pytest.approx(float(world.task().loss(student, batch.target).detach()), rel=1e-5)


class Hiding(ZeroFill):
    """Hides m1 wherever m0 is there, and fills with zeros."""

    def hide(self, presence: Presence) -> Presence:
        return {"m0": presence["m0"], "m1": presence["m1"] & ~presence["m0"]}


def test_prompts_are_refused() -> None:
    with pytest.raises(InputError, match="all_stage"):
        CoDistillation(world.task()).check(model_of(Prompted()))


class Prompted(ZeroFill):
    """Says something inside the encoders."""

    def prompts(self, modality: Modality, presence: Presence) -> None:
        return None
