"""The law of checkpoints: whoever is broken off and built anew carries on to the same bits."""

import copy
from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Any

import torch

from mmx import evaluate
from mmx.builtin.procedures.joint import Joint
from mmx.config import TrainingSpec
from mmx.contracts import Presence, Procedure
from mmx.data import Split
from mmx.errors import InputError
from mmx.model import MultimodalModel
from mmx.registry import Offer, Registry
from mmx.testing import world
from mmx.train import Figures, Fit, Monitor, fit

TRAINING = TrainingSpec(epochs=3, batch_size=4, learning_rate=0.01, precision="float32")
ABSENT = {"m0": [1, 1, 1, 0, 1, 0, 1], "m1": [1, 0, 1, 1, 1, 1, 0]}
HINT = "keep it in parameters, persistent buffers or, if it is a procedure, in `state_dict`"


class _Break(Exception):  # noqa: N818 no error: it stands for a crash
    pass


class _Notebook:
    """Keeps what is written as a file would."""

    def __init__(self) -> None:
        self.written = b""

    def read(self) -> dict[str, Any] | None:
        return torch.load(BytesIO(self.written), weights_only=True) if self.written else None

    def write(self, state: Mapping[str, Any]) -> None:
        buffer = BytesIO()
        torch.save(dict(state), buffer)
        self.written = buffer.getvalue()

    def drop(self, reason: str) -> None:
        raise AssertionError(f"what it has written it does not take back: {reason}")


def training_resumes_to_the_bit(registry: Registry, offer: Offer) -> None:
    """Broken off after each epoch and carried on by a model and a procedure that are built anew, training
    comes to the figures and weights of a training that was not."""
    goal, expected = train(registry, offer)
    memory = _Notebook()
    for epoch in range(TRAINING.epochs):
        try:
            train(registry, offer, memory, epoch)
        except _Break:
            continue
        raise AssertionError("an epoch was lost")
    model, found = train(registry, offer, memory)
    assert found.history == expected.history, f"later epochs hang on what was forgotten; {HINT}"
    assert found.best_epoch == expected.best_epoch
    state = model.state_dict()
    differ = [n for n, t in goal.state_dict().items() if not torch.equal(t, state[n])]
    assert not differ, f"{differ} hang on what was forgotten; {HINT}"


def train(
    registry: Registry, offer: Offer, memory: _Notebook | None = None, last: int | None = None
) -> tuple[MultimodalModel, Fit]:
    """Train with everything built anew; break off after the epoch `last`."""
    model, procedure = next(built(registry, offer), (None, None))
    assert model is not None and procedure is not None, "nothing goes together with it"
    split = Split(world.Rows(model.modalities), "train", model.modalities)
    # An adapter by pattern is for rows of one.
    there: Presence = {m: torch.tensor(rows, dtype=torch.bool) for m, rows in ABSENT.items()}
    presence = split.natural if offer.kind == "adapter" else there
    device = torch.device("cpu")

    def on_epoch(epoch: int, figures: Figures) -> bool:
        if epoch == last:
            raise _Break
        return False

    fitted = fit(
        model, procedure, split, presence, TRAINING, Monitor("val/loss", higher_is_better=False),
        lambda: evaluate.validate(model, split, presence, device, 8), 0, device, on_epoch, memory,
    )  # fmt: skip
    return model, fitted


def built(registry: Registry, offer: Offer) -> Iterator[tuple[MultimodalModel, Procedure]]:
    """Build the component with whatever it goes together with, of two modalities."""
    strategies = [offer] if offer.kind == "strategy" else world.partners(registry, "strategy")
    if offer.kind == "procedure":
        strategies = world.strategies_for(registry, offer)
    fusions = [offer] if offer.kind == "fusion" else world.partners(registry, "fusion")
    for strategy, fusion in ((s, f) for s in strategies for f in fusions):
        adapter = offer if offer.kind == "adapter" else None
        try:
            model = world.assemble(registry, strategy, fusion, 2, adapter=adapter)
            procedure: Procedure = Joint(world.task())
            if offer.kind == "procedure":
                known = {"modalities": model.modalities, "task": world.task(), "pattern": None, "seed": 0}
                procedure = world.build(registry, offer, {**known, "teacher": copy.deepcopy(model)})
            procedure.check(model)
        except InputError:
            continue  # refused with a reason: they do not go together
        yield model, procedure
