"""Weights come from a file or a hub, never with code, and what cannot be had is told."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mmx.errors import InputError
from mmx_encoders.torchvision_image import TorchvisionImage
from mmx_encoders.weights import read_state

IMAGES = torch.rand(1, 3, 64, 64)


def small(weights: str) -> TorchvisionImage:
    return TorchvisionImage("mobilenet_v3_small", weights=weights, size=64).eval()


@pytest.fixture(scope="module")
def whole() -> dict[str, Tensor]:
    """Give the state of a whole network, head and all, as the library saves it."""
    from torchvision.models import mobilenet_v3_small

    return dict(mobilenet_v3_small(weights=None).state_dict())


@pytest.fixture
def anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point torch's cache to an empty folder."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path


def test_safetensors_and_state_dicts_load_alike_and_the_head_is_left_out(
    whole: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file(whole, tmp_path / "w.safetensors")
    torch.save(whole, tmp_path / "w.pth")
    torch.save({"state_dict": whole, "epoch": 3}, tmp_path / "nested.pt")
    first, second, third = (
        small(str(tmp_path / n))(IMAGES).values for n in ("w.safetensors", "w.pth", "nested.pt")
    )
    assert torch.equal(first, second) and torch.equal(first, third)


def test_half_precision_is_loaded_as_single(whole: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(
        {n: t.half() if t.is_floating_point() else t for n, t in whole.items()}, tmp_path / "w.safetensors"
    )
    assert {p.dtype for p in small(str(tmp_path / "w.safetensors")).parameters()} == {torch.float32}


def test_weights_of_another_model_are_refused_by_name(whole: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(whole, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"not of this model: the file lacks 'bn1\.bias'.*has besides"):
        TorchvisionImage("resnet18", weights=str(tmp_path / "w.safetensors"))


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match=r"no weights at 'nowhere\.safetensors'"):
        small("nowhere.safetensors")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    for name in ("w.safetensors", "w.pth"):
        (tmp_path / name).write_bytes(b"no weights at all")
        with pytest.raises(InputError, match="cannot read"):
            read_state(str(tmp_path / name))


def test_code_in_a_file_is_never_run(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(InputError, match=r"as tensors alone.*state_dict\(\)"):
        read_state(str(tmp_path / "module.pt"))


class _Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.mark,)  # type: ignore[return-value]


def test_a_file_that_would_run_code_is_refused_without_advice_to_trust_it(tmp_path: Path) -> None:
    torch.save({"weight": _Trap(tmp_path / "mark")}, tmp_path / "trap.pt")
    with pytest.raises(InputError, match="code in it is not run") as caught:
        read_state(str(tmp_path / "trap.pt"))
    assert not (tmp_path / "mark").exists()
    assert "weights_only" not in str(caught.value)


def test_a_state_that_was_saved_inside_data_parallel_fits(whole: dict[str, Tensor], tmp_path: Path) -> None:
    wrapped = {f"module.{n}": t for n, t in whole.items()}
    torch.save({"model_state_dict": wrapped, "epoch": 3}, tmp_path / "w.pt")
    assert read_state(str(tmp_path / "w.pt")).keys() == whole.keys()


def test_an_ending_in_capitals_is_known(whole: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(whole, tmp_path / "W.SAFETENSORS")
    assert read_state(str(tmp_path / "W.SAFETENSORS")).keys() == whole.keys()


def test_a_file_without_a_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match="no state dict"):
        read_state(str(tmp_path / "list.pt"))


def test_without_a_network_both_ways_are_named(anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **options: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    with pytest.raises(InputError, match=r"no route.*connect once.*weights: PATH"):
        small("hub")


def test_offline_the_hub_is_not_asked(anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("it was asked"))
    with pytest.raises(InputError, match=r"offline.*weights: PATH"):
        small("IMAGENET1K_V1")


def test_what_the_hub_once_gave_is_used_offline(
    anew: Path, whole: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import MobileNet_V3_Small_Weights

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (anew / "checkpoints").mkdir()
    torch.save(whole, anew / "checkpoints" / MobileNet_V3_Small_Weights.DEFAULT.url.rpartition("/")[2])
    encoder = small("hub")
    torch.testing.assert_close(
        encoder.network.state_dict()["features.0.0.weight"], whole["features.0.0.weight"]
    )
