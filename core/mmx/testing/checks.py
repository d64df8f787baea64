"""The laws that components obey, as small named checks over whatever is registered.

Each check takes (registry, offer) and raises AssertionError where the law is broken.
"""

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from mmx.builtin.adapters.full import Full
from mmx.builtin.adapters.lora import Lora
from mmx.contracts import Adapter, Dataset, Encoder, Procedure, Prompts, Sample, Tracker, TrialRecord
from mmx.data import Split
from mmx.evaluate import predict_patterns
from mmx.errors import DataError, InputError
from mmx.model import MultimodalModel
from mmx.protocols import all_patterns, draw_presence
from mmx.registry import Offer, Registry
from mmx.testing import world

Check = Callable[[Registry, Offer], None]
SPLITS = ("train", "val", "test")
COUNTS = (1, 2, 3)


class NotHere(Exception):  # noqa: N818 no error: it says that a check does not apply, and why
    """Says why a check cannot be made here (data that is not on this disk, say)."""


# ---------------------------------------------------------------------------------------------- encoders


def _encoder(registry: Registry, offer: Offer, seed: int = 0) -> tuple[Encoder, Tensor]:
    kind = registry.load_class("encoder", f"{offer.distribution}:{offer.component.name}").kind  # type: ignore[attr-defined]
    if kind not in world.EXAMPLES:
        raise NotHere(f"no made-up input of kind '{kind}'")
    example = world.EXAMPLES[kind]
    torch.manual_seed(seed)
    encoder = world.build(registry, offer, {"example": example, "modality": "m0", "seed": seed})
    generator = torch.Generator().manual_seed(1)
    raw = torch.stack([example * (1 + torch.rand(1, generator=generator)) for _ in range(4)])
    return encoder.eval(), raw


def encoder_gives_valid_finite_tokens(registry: Registry, offer: Offer) -> None:
    """Tokens are (batch, tokens, width), finite, the summary token first and valid."""
    encoder, raw = _encoder(registry, offer)
    values, valid = encoder(raw)
    assert values.shape[0] == 4 and values.shape[2] == encoder.width
    assert valid.shape == values.shape[:2] and bool(valid[:, 0].all())
    assert bool(torch.isfinite(values).all())


def encoder_treats_rows_apart(registry: Registry, offer: Offer) -> None:
    """In evaluation a row's tokens do not depend on who else is in the batch."""
    encoder, raw = _encoder(registry, offer)
    with torch.no_grad():
        assert torch.allclose(encoder(raw).values[:1], encoder(raw[:1]).values, atol=1e-4)


def encoder_takes_the_prompts_that_it_says(registry: Registry, offer: Offer) -> None:
    """Prompts' outputs come back in front, each layer's prompts change the summary, and get gradient."""
    encoder, raw = _encoder(registry, offer)
    plain = encoder(raw).values
    if not encoder.accepts_prompts:
        assert encoder.prompt_layers == 0
        return
    prompted = encoder(raw, prompts=torch.randn(4, 3, encoder.width)).values
    assert prompted.shape[1] == plain.shape[1] + 3
    for level in ("input", "attention") if encoder.prompt_layers else ():
        sets = nn.Parameter(torch.randn(4, encoder.prompt_layers, 2, encoder.width))
        out = encoder(raw, prompts=Prompts(sets, level)).values  # type: ignore[arg-type]
        front = 2 * encoder.prompt_layers * (level == "input")
        assert out.shape[1] == plain.shape[1] + front
        out[:, front].sum().backward()
        assert sets.grad is not None and bool((sets.grad.abs().sum(dim=(0, 2, 3)) > 0).all())


def encoder_moves_under_lora(registry: Registry, offer: Offer) -> None:
    """LoRA at the author's targets changes the output in training and in evaluation, and starts at none."""
    encoder, raw = _encoder(registry, offer)
    with torch.no_grad():
        before = encoder(raw).values
        Lora(rank=2).apply(encoder)
        assert torch.allclose(encoder.eval()(raw).values, before, atol=1e-5)
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
        for mode in (True, False):
            assert not torch.allclose(encoder.train(mode)(raw).values, before, atol=1e-4)


def encoder_trains_everywhere(registry: Registry, offer: Offer) -> None:
    """Fully fine-tuned, every parameter gets gradient within two steps."""
    encoder, raw = _encoder(registry, offer)
    Full().apply(encoder)
    weights = torch.randn(encoder(raw).values.shape, generator=torch.Generator().manual_seed(2))
    _assert_gradient_everywhere(encoder, lambda: (encoder(raw).values * weights).square().mean())


def encoder_is_a_function_of_its_state(registry: Registry, offer: Offer) -> None:
    """Another instance with the same state gives the same tokens; the same seed gives the same weights."""
    first, raw = _encoder(registry, offer, seed=0)
    again, _ = _encoder(registry, offer, seed=0)
    other, _ = _encoder(registry, offer, seed=1)
    with torch.no_grad():
        assert torch.equal(first(raw).values, again(raw).values)
        other.load_state_dict(first.state_dict())
        assert torch.equal(first(raw).values, other(raw).values)


# ------------------------------------------------------------------------- strategies and fusions in a model


def _models(
    registry: Registry, offer: Offer, counts: tuple[int, ...] = COUNTS, seed: int = 0
) -> Iterator[MultimodalModel]:
    """Build the component into models of one to three modalities.

    A strategy meets every fusion, with encoders that take prompts and that do not. A fusion, which every
    strategy meets already, meets every strategy once more with prompts alone.
    """
    partner = "fusion" if offer.kind == "strategy" else "strategy"
    built = 0
    for other in (o for o in registry.offers if o.kind == partner):
        strategy, fusion = (offer, other) if partner == "fusion" else (other, offer)
        for count in counts if partner == "fusion" else counts[-1:]:
            for plain in (False, True) if partner == "fusion" else (False,):
                try:
                    model = world.assemble(registry, strategy, fusion, count, plain, seed)
                except InputError:
                    continue  # refused with a reason: this pair does not go together
                built += 1
                yield model
    assert built, f"no {partner} goes together with it"


def model_answers_whoever_is_absent(registry: Registry, offer: Offer) -> None:
    """Logits are (batch, out) and finite for none, some and all but one absent, in training and evaluation."""
    for model in _models(registry, offer):
        for case, presence in world.presences(len(model.modalities)).items():
            for mode in (True, False):
                logits, losses = model.train(mode)(world.batch_of(presence))
                assert logits.shape == (4, world.CLASSES), case
                assert bool(torch.isfinite(logits).all()), case
                assert all(bool(torch.isfinite(loss)) and loss.ndim == 0 for loss in losses.values()), case
                assert mode or not losses, "losses belong to training"


def model_never_reads_what_is_absent(registry: Registry, offer: Offer) -> None:
    """NaN in place of an absent input changes no logit, no loss and no gradient."""
    for model in _models(registry, offer, counts=(2, 3)):
        for presence in world.presences(len(model.modalities)).values():
            for mode in (True, False):
                results = []
                for filler in (0.0, float("nan")):
                    trial = copy.deepcopy(model).train(mode)
                    torch.manual_seed(0)
                    logits, losses = trial(world.batch_of(presence, filler))
                    (logits.square().mean() + sum(losses.values())).backward()
                    grads = [p.grad for p in trial.parameters() if p.grad is not None]
                    results.append([logits, *losses.values(), *grads])
                clean, probed = results
                assert len(clean) == len(probed)
                assert all(torch.equal(a, b) for a, b in zip(clean, probed, strict=True))


def model_treats_rows_apart(registry: Registry, offer: Offer) -> None:
    """In evaluation a row's logits do not depend on the others, nor on who is absent there."""
    for model in _models(registry, offer):
        model.eval()
        for presence in world.presences(len(model.modalities)).values():
            batch = world.batch_of(presence)
            with torch.no_grad():
                together = model(batch).logits
                for row in range(4):
                    alone = copy.copy(batch).__class__(
                        {m: t[row : row + 1] for m, t in batch.inputs.items()},
                        {m: p[row : row + 1] for m, p in batch.presence.items()},
                        batch.target[row : row + 1],
                        batch.ids[row : row + 1],
                    )
                    assert torch.allclose(model(alone).logits[0], together[row], atol=1e-4)


def model_trains_everywhere(registry: Registry, offer: Offer) -> None:
    """Every trainable parameter gets gradient within two steps of training with modalities missing."""
    for model in _models(registry, offer, counts=(2, 3)):
        model.train()
        torch.manual_seed(0)
        everyone = all_patterns(model.modalities)
        presence = {m: [int(m in p) for p in everyone] * 4 for m in model.modalities}
        batch = world.batch_of(presence)

        def loss(model: MultimodalModel = model, batch: world.Batch = batch) -> Tensor:
            logits, losses = model(batch)
            return world.task().loss(logits, batch.target) + sum(losses.values())

        _assert_gradient_everywhere(model, loss)


def model_evaluates_as_it_runs(registry: Registry, offer: Offer) -> None:
    """Predicting every pattern from one encoding pass gives what running each pattern alone gives."""
    for model in _models(registry, offer, counts=(2, 3)):
        split = Split(_Rows(model.modalities), "test", model.modalities)
        found = predict_patterns(model, split, torch.device("cpu"), batch_size=3)
        rows = torch.arange(len(split))
        for pattern in all_patterns(model.modalities):
            presence = {m: torch.full((len(split),), m in pattern) for m in model.modalities}
            with torch.no_grad():
                logits = model.eval()(split.batch(rows, presence)).logits
            expected = split.task.outputs(logits).numpy()
            assert abs(found.outputs[pattern] - expected).max() < 1e-4, sorted(pattern)


def model_is_a_function_of_seed_and_state(registry: Registry, offer: Offer) -> None:
    """The same seed gives the same numbers; a state loaded elsewhere gives the same predictions."""
    first = _models(registry, offer, seed=0)
    again = _models(registry, offer, seed=0)
    other = _models(registry, offer, seed=1)
    for a, b, c in zip(first, again, other, strict=True):
        batch = world.batch_of(world.presences(len(a.modalities))["complete"])
        torch.manual_seed(0)
        trained = a.train()(batch).logits
        torch.manual_seed(0)
        assert torch.equal(trained, b.train()(batch).logits)
        c.load_state_dict(a.state_dict())
        with torch.no_grad():
            assert torch.equal(a.eval()(batch).logits, c.eval()(batch).logits)


def strategy_hides_but_never_all(registry: Registry, offer: Offer) -> None:
    """Hiding only takes away, and leaves each row at least one modality."""
    for model in _models(registry, offer):
        for presence in world.presences(len(model.modalities)).values():
            given = world.batch_of(presence).presence
            for seed in range(5):
                torch.manual_seed(seed)
                left = model.strategy.train().hide(given)
                assert all(bool((left[m] <= given[m]).all()) for m in given)
                assert bool(torch.stack(list(left.values())).any(dim=0).all())


class _Rows(Dataset):
    """A handful of complete samples."""

    in_memory = True

    def __init__(self, modalities: tuple[str, ...]) -> None:
        self.modalities = dict.fromkeys(modalities, "vector")
        self.task = world.task()

    def split(self, name: str) -> list[Sample]:
        batch = world.batch_of({m: [1] * 7 for m in self.modalities})
        return [
            Sample(f"{name}{i}", {m: batch.inputs[m][i] for m in self.modalities}, int(batch.target[i]))
            for i in range(7)
        ]


# --------------------------------------------------------------------------------- adapters and procedures


def adapter_starts_at_the_pretrained_encoder(registry: Registry, offer: Offer) -> None:
    """Before any step the adapted encoder gives what the plain one gives."""
    torch.manual_seed(0)
    encoder = world.PromptableEncoder().eval()
    raw = torch.randn(3, world.FEATURES)
    with torch.no_grad():
        before = encoder(raw).values
        adapter: Adapter = world.build(registry, offer, {"modality": "m0", "modalities": ("m0",), "seed": 0})
        adapter.apply(encoder)
        assert torch.allclose(encoder.eval()(raw).values, before, atol=1e-5)


def adapter_trains_what_it_frees(registry: Registry, offer: Offer) -> None:
    """Every parameter that it leaves trainable gets gradient, and a step moves the output in evaluation."""
    torch.manual_seed(0)
    encoder = world.PromptableEncoder()
    adapter: Adapter = world.build(registry, offer, {"modality": "m0", "modalities": ("m0",), "seed": 0})
    adapter.apply(encoder)
    if not any(p.requires_grad for p in encoder.parameters()):
        return
    raw = torch.randn(6, world.FEATURES)
    target = torch.randn(6, 4, world.WIDTH)
    before = encoder.eval()(raw).values.detach()
    _assert_gradient_everywhere(encoder.train(), lambda: (encoder(raw).values - target).square().mean())
    assert not torch.allclose(encoder.eval()(raw).values, before, atol=1e-6)


def procedure_yields_steps_that_can_be_taken(registry: Registry, offer: Offer) -> None:
    """Every step's loss is a finite scalar with gradient, and its parts are named."""
    skip = next(o for o in registry.offers if o.kind == "strategy")
    fusion = next(o for o in registry.offers if o.kind == "fusion" and o.component.name == "mean_logits")
    model = world.assemble(registry, skip, fusion, 2)
    known = {"modalities": model.modalities, "task": world.task(), "seed": 0}
    procedure: Procedure = world.build(registry, offer, known)
    for case in world.presences(2).values():
        steps = 0
        for step in procedure.steps(model.train(), world.batch_of(case)):
            assert step.loss.ndim == 0 and bool(torch.isfinite(step.loss)) and step.losses
            step.loss.backward()
            steps += 1
        assert steps


# ------------------------------------------------------------------------- datasets, protocols and trackers


def _dataset(registry: Registry, offer: Offer) -> Dataset:
    try:
        dataset: Dataset = world.build(registry, offer, {})
        dataset.split("test")
    except DataError as error:
        raise NotHere(f"its data is not on this disk: {str(error).splitlines()[0]}") from error
    return dataset


def dataset_splits_share_no_sample(registry: Registry, offer: Offer) -> None:
    """Ids are unique and no id stands in two splits."""
    dataset = _dataset(registry, offer)
    ids = {name: [s.id for s in dataset.split(name)] for name in SPLITS}
    assert all(ids.values())
    everything = [i for found in ids.values() for i in found]
    assert len(set(everything)) == len(everything)


def dataset_samples_fit_their_description(registry: Registry, offer: Offer) -> None:
    """Inputs are finite, of one shape a modality, of declared modalities; targets fit the task; a card is there."""
    dataset = _dataset(registry, offer)
    assert dataset.card is not None and dataset.card.source and dataset.card.licence
    for name in SPLITS:
        split = Split(dataset, name, tuple(dataset.modalities))
        batch = split.batch(torch.arange(min(8, len(split))), split.natural)
        assert set(batch.inputs) == set(dataset.modalities)
        assert all(bool(torch.isfinite(t.float()).all()) for t in batch.inputs.values())
        logits = torch.zeros(len(batch.ids), dataset.task.out)
        assert bool(torch.isfinite(dataset.task.loss(logits, batch.target)))


def dataset_reads_the_same_twice(registry: Registry, offer: Offer) -> None:
    """A second instance gives the same samples, in any order of access."""
    first, again = _dataset(registry, offer).split("val"), _dataset(registry, offer).split("val")
    for i in reversed(range(min(5, len(first)))):
        assert first[i].id == again[i].id
        assert all(torch.equal(first[i].inputs[m], again[i].inputs[m]) for m in first[i].inputs)


def protocol_keeps_its_word(registry: Registry, offer: Offer) -> None:
    """Masks are pure, nested across rates and never take all; weights add to one and agree with the draws."""
    ids = [f"id{i}" for i in range(4000)]
    for count in (2, 3):
        modalities = world.names(count)
        protocol = world.build(registry, offer, {"modalities": modalities, "seed": 0})
        natural = {m: torch.ones(len(ids), dtype=torch.bool) for m in modalities}
        previous = None
        for share in (0.0, 0.2, 0.5, 0.8, 1.0):
            rate = share * protocol.highest_rate(modalities)
            drawn = draw_presence(protocol, rate, ids, natural, seed=3)
            shuffled = protocol.draw(rate, ids[::-1], modalities, 3)
            stacked = torch.stack([drawn[m] for m in modalities])
            assert bool(stacked.any(dim=0).all()), "a mask took all"
            assert all(torch.equal(drawn[m], shuffled[m].flip(0)) for m in modalities), "order mattered"
            if previous is not None:
                assert bool((stacked <= previous).all()), "masks are not nested"
            previous = stacked
            _assert_weights_agree(protocol.weights(rate, modalities), drawn, len(ids))


def _assert_weights_agree(weights: dict[frozenset[str], float], drawn: dict[str, Tensor], count: int) -> None:
    assert abs(sum(weights.values()) - 1) < 1e-9
    assert all(w >= -1e-12 and pattern for pattern, w in weights.items())
    for pattern in all_patterns(tuple(drawn)):
        share = float(torch.stack([drawn[m] == (m in pattern) for m in drawn]).all(dim=0).double().mean())
        expected = weights.get(pattern, 0.0)
        # Five standard deviations of a binomial share.
        assert abs(share - expected) <= 5 * math.sqrt(max(expected * (1 - expected), 1e-12) / count) + 1e-9


def tracker_remembers(registry: Registry, offer: Offer) -> None:
    """A trial's state, parameters, figures, curves and files come back; what is not finite is left out."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        cls = registry.load_class("tracker", f"{offer.distribution}:{offer.component.name}")
        tracker: Tracker = cls(store=f"sqlite:///{folder}/store.db")
        tracker.open_sweep("conformance", {"note": "x"})
        record = TrialRecord("", "point", 1, "running", "", "cell", 2, {"strategy": "skip"})
        log = tracker.open_trial("title", record)
        assert [r.state for r in tracker.records("conformance")] == ["running"]
        log.metrics({"robustness/accuracy_missing_any": 0.5, "bad": float("nan")}, 30)
        log.metrics({"robustness/accuracy_missing_any": 0.4}, 50)
        (folder / "file.txt").write_text("kept", encoding="utf-8")
        log.artifact(folder / "file.txt")
        log.end("done", "because", {"mmx.mask_sha": "abc"})
        (found,) = tracker.records("conformance")
        assert (found.point, found.seed, found.state, found.cell, found.attempt) == (
            "point",
            1,
            "done",
            "cell",
            2,
        )
        assert found.params["strategy"] == "skip" and "bad" not in found.metrics
        assert tracker.history(found.run_id, "robustness/accuracy_missing_any") == {30: 0.5, 50: 0.4}
        tracker.close_sweep({"best": {0: 1.0}}, [folder / "file.txt"], "done")
        assert tracker.find_sweeps() == ["conformance"]
        tracker.retire(found)
        assert tracker.records("conformance") == []


def _assert_gradient_everywhere(module: nn.Module, loss: Callable[[], Tensor]) -> None:
    """Take two small steps; every trainable parameter must have had a gradient that is not zero."""
    trainable = {n: p for n, p in module.named_parameters() if p.requires_grad}
    reached: set[str] = set()
    optimizer = torch.optim.SGD(trainable.values(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss().backward()
        reached |= {n for n, p in trainable.items() if p.grad is not None and bool((p.grad != 0).any())}
        optimizer.step()
    # A key's bias shifts all scores of a query alike, and softmax ignores that: its gradient is zero by law.
    missed = {n for n in set(trainable) - reached if not n.endswith(("key.bias", "key.base_layer.bias"))}
    assert not missed, f"no gradient reaches {sorted(missed)}"


IN_A_MODEL: tuple[Check, ...] = (
    model_answers_whoever_is_absent,
    model_never_reads_what_is_absent,
    model_treats_rows_apart,
    model_trains_everywhere,
    model_evaluates_as_it_runs,
    model_is_a_function_of_seed_and_state,
)
CHECKS: dict[str, tuple[Check, ...]] = {
    "encoder": (
        encoder_gives_valid_finite_tokens,
        encoder_treats_rows_apart,
        encoder_takes_the_prompts_that_it_says,
        encoder_moves_under_lora,
        encoder_trains_everywhere,
        encoder_is_a_function_of_its_state,
    ),
    "strategy": (*IN_A_MODEL, strategy_hides_but_never_all),
    "fusion": IN_A_MODEL,
    "adapter": (adapter_starts_at_the_pretrained_encoder, adapter_trains_what_it_frees),
    "procedure": (procedure_yields_steps_that_can_be_taken,),
    "dataset": (
        dataset_splits_share_no_sample,
        dataset_samples_fit_their_description,
        dataset_reads_the_same_twice,
    ),
    "protocol": (protocol_keeps_its_word,),
    "tracker": (tracker_remembers,),
}
