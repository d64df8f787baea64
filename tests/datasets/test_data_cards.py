"""Every dataset says what a reader must know before trusting a number on it."""

import json
import sys
from collections.abc import Callable

import pytest

from mmx.cli import main
from mmx.registry import Registry
from mmx_datasets.layout import Layout

PUBLISHED = [
    *("ave", "cmu_mosei", "cmu_mosi", "crema_d", "food101", "hateful_memes", "iemocap"),
    *("kinetics_sounds", "mcubes", "mm_imdb", "mvsa_single", "nyud_v2", "ucf101"),
]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `mmx data info`; give what it prints."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["mmx", "data", "info", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return capsys.readouterr().out

    return run


def test_every_published_dataset_is_known(registry: Registry) -> None:
    found = [o.component.name for o in registry.offers if o.kind == "dataset"]
    layouts = [n for n in found if issubclass(registry.load_class("dataset", n), Layout)]
    assert sorted(layouts) == PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_card_is_complete(name: str, told: Callable[..., str]) -> None:
    facts = json.loads(told(name, "--json"))
    card = facts["card"]
    needed = ("description", "source", "licence", "citation", "sizes", "natural_missing", "splits")
    assert [key for key in needed if not card[key]] == []
    assert set(card["modalities"].values()) <= {"image", "audio", "text", "video", "video or image"}
    assert "@" in facts["paper"] and "checksums" in card


def test_a_card_is_told_where_only_objects_have_one(told: Callable[..., str]) -> None:
    assert "licence: CC0-1.0" in told("toy_world")
    assert "checksums: none known" in told("toy_world")


def test_a_dataset_that_needs_options_is_told_too(told: Callable[..., str]) -> None:
    assert "natural_missing: empty cells" in told("manifest")
