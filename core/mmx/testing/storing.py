"""The law of stored runs: what a run leaves on disk is all that its model is."""

import numpy as np
import torch
from safetensors.torch import load, save

from mmx.assemble import State, take_trained
from mmx.data import Split
from mmx.evaluate import Predictions, predict_patterns
from mmx.model import MultimodalModel
from mmx.registry import Offer, Registry
from mmx.testing import resuming, world

CPU = torch.device("cpu")


def stored_weights_tell_the_whole_model(registry: Registry, offer: Offer) -> None:
    """A model that is built anew and reads what training changed, from safetensors, predicts the same to the
    bit, whoever is absent; so does one that reads the whole state, as after phases."""
    model, _ = resuming.train(registry, offer)
    expected = _predict(model)
    for state in (model.trained_state(), model.state_dict()):
        again, _ = next(resuming.built(registry, offer))
        take_trained(again, _from_disk(state))
        for pattern, outputs in _predict(again).outputs.items():
            same = np.array_equal(outputs, expected.outputs[pattern])
            assert same, f"predictions from {sorted(pattern)} hang on what is not stored; {resuming.HINT}"


def _from_disk(state: State) -> State:
    """Write a state as a trial does, and read it."""
    return load(save({name: tensor.cpu().contiguous() for name, tensor in state.items()}))


def _predict(model: MultimodalModel) -> Predictions:
    return predict_patterns(model, Split(world.Rows(model.modalities), "test", model.modalities), CPU)
