"""A sweep for each component that is as short as it can be, and valid: a test plans it."""

from collections.abc import Mapping
from typing import Any

import yaml

from mmx.errors import InputError
from mmx.hookspecs import Component
from mmx.registry.signature import REQUIRED, options

TOY: dict[str, Any] = {
    "dataset": {"name": "toy_world", "train_size": 128},
    "encoders": {"m0": "mlp", "m1": "mlp"},
    "adapter": "full",
    "strategy": "zero_fill",
}
DIGITS: dict[str, Any] = TOY | {"dataset": "digits", "encoders": {"image": "tiny_vit", "audio": "tiny_ast"}}
MISSING: dict[str, Any] = {"protocol": "per_modality", "train": {"rate": 0.3}, "eval": {"rates": [0.0, 0.5]}}
TEXT = {"name": "transformers_text", "model": "models/minilm"}
ENCODERS: dict[str, Any] = {
    "image": "tiny_vit",
    "audio": {"name": "tiny_ast", "sample_rate": 16000},
    "text": TEXT,
    "vector": "mlp",
}
TOKENIZER = "models/minilm/tokenizer.json"
ALONE = [{"modalities": ["m0"]}, {"modalities": ["m1"]}]
PARTNERS: dict[tuple[str, str], dict[str, Any]] = {
    ("adapter", "mora"): {"dataset": DIGITS["dataset"], "encoders": DIGITS["encoders"]},
    ("adapter", "part"): {"adapter": {"name": "part", "targets": r"layers\.1\..*"}},
    ("adapter", "scale_shift"): {
        "adapter": "full",
        "training": {"phases": [{"adapter": "full"}, {"adapter": "scale_shift", "modalities": ["m0"]}]},
    },
    ("fusion", "confidence"): {"strategy": "skip"},
    ("fusion", "entropy"): {"strategy": "skip"},
    ("fusion", "mean_logits"): {"strategy": "skip"},
    ("procedure", "alternating"): {"strategy": "skip", "fusion": "entropy"},
    ("procedure", "distillation"): {
        "strategy": "skip",
        "fusion": "mean_logits",
        "procedure": "joint",
        "training": {"phases": [*ALONE, {"procedure": "distillation", "restart": True}]},
    },
    ("procedure", "mmin"): {
        "strategy": "mmin",
        "procedure": "joint",
        "training": {"phases": [{"strategy": "skip"}, {"procedure": "mmin"}]},
    },
    ("procedure", "modality_switching"): {"strategy": "skip", "fusion": "single_branch"},
    ("procedure", "qmf"): {"strategy": "skip", "fusion": "confidence"},
    ("strategy", "prompt"): {"strategy": {"name": "prompt", "where": "fusion"}, "fusion": "transformer"},
    ("protocol", "patterns"): {
        "missing": MISSING
        | {"protocol": {"name": "patterns", "probabilities": {"m0": 0.2, "m1": 0.1, "m0.m1": 0.7}}}
    },
}
"""What a component goes together with, where that is not what the shortest sweep has."""
MODELS = {
    "torchvision": {"model": "resnet18"},
    "torchaudio": {"model": "WAV2VEC2_BASE"},
    "transformers_image": {"model": "facebook/dinov2-small"},
    "transformers_text": {"model": "models/minilm"},
    "transformers_audio": {"model": "MIT/ast-finetuned-audioset-10-10-0.4593"},
    "kwt": {"weights": "none"},
    "yamnet": {"weights": "none"},
}
TABLE: dict[str, Any] = {
    "table": "my-data/table.csv",
    "columns": {"photo": "image", "report": "text"},
}


def sweep_text(kind: str, component: Component, cls: Any) -> str:
    """Write the sweep."""
    body = _sweep(kind, component, cls)
    data = {"schema": 1, "name": f"try-{component.name.replace('_', '-')}", **body}
    data.setdefault("missing", MISSING)
    # Two epochs are enough to see that it runs; phases keep theirs.
    data["training"] = {"epochs": 2, **data.get("training", {})}
    return yaml.safe_dump(
        _in_order(data), sort_keys=False, default_flow_style=None, width=100, allow_unicode=True
    )


def _sweep(kind: str, component: Component, cls: Any) -> dict[str, Any]:
    if kind == "dataset":
        return _of_dataset(component, cls)
    if kind == "encoder":
        return _of_encoder(component, cls)
    partners = PARTNERS.get((kind, component.name), {})
    if kind == "protocol":
        return TOY | {"missing": MISSING | {"protocol": component.name}} | partners
    return TOY | {kind: component.name} | partners


def _of_encoder(component: Component, cls: Any) -> dict[str, Any]:
    """Pair it with a small encoder of another kind."""
    given = MODELS.get(component.name) or (component.example if lacks_default(cls) else {})
    named = _named(component.name, given)
    if cls.kind == "vector":
        return TOY | {"encoders": {"m0": named, "m1": named}}
    if cls.kind == "text":
        data = {"name": "mm_imdb", "root": "data/mm_imdb", "tokenizer": TOKENIZER}
        return TOY | {"dataset": data, "encoders": {"image": "tiny_vit", "text": named}, "adapter": "lora"}
    # The recordings of `digits` have 8,000 samples a second.
    rate = {"sample_rate": 8000} if "sample_rate" in options(cls) else {}
    named = _named(component.name, {**given, **rate})
    return DIGITS | {"encoders": DIGITS["encoders"] | {cls.kind: named}, "adapter": "lora"}


def _of_dataset(component: Component, cls: Any) -> dict[str, Any]:
    known = options(cls)
    given: dict[str, Any] = {}
    if component.name == "manifest":
        given = dict(TABLE)
    elif "root" in known:
        given = {"root": f"data/{component.name}"}
    if "visual_as" in known:  # no encoder here reads films
        given["visual_as"] = "image"
    if "tokenizer" in known:
        given["tokenizer"] = TOKENIZER
    kinds = {m: kind for m, kind in _modalities(cls, given).items() if kind in ENCODERS}
    encoders = {m: ENCODERS[kind] for m, kind in kinds.items()}
    if "sample_rate" not in known:
        encoders = {m: "tiny_ast" if kinds[m] == "audio" else e for m, e in encoders.items()}
    return TOY | {"dataset": _named(component.name, given), "encoders": encoders, "adapter": "lora"}


def _modalities(cls: Any, given: Mapping[str, Any]) -> Mapping[str, str]:
    """Ask the class, or an object of it, whose data need not be there."""
    told = getattr(cls, "modalities", None)
    if isinstance(told, Mapping):
        return told
    if "columns" in given:
        return given["columns"]
    if streams := getattr(cls, "streams", ()):
        return dict.fromkeys(streams, given.get("visual_as", "video"))
    try:
        return cls(**given).modalities
    except InputError:
        return {"audio": "audio", "visual": "image"}


def _named(name: str, given: Mapping[str, Any]) -> Any:
    return {"name": name, **given} if given else name


def _in_order(data: Mapping[str, Any]) -> dict[str, Any]:
    """Order the keys as the pages do."""
    first = ["schema", "name", "tracker", "dataset", "encoders", "adapter", "strategy", "fusion", "procedure"]
    return {k: data[k] for k in [*first, "training", "missing"] if k in data}


def lacks_default(cls: Any) -> list[str]:
    """Name the options that must be given."""
    return [name for name, option in options(cls).items() if option.default is REQUIRED]
