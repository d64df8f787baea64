"""Built-in fusions, adapters, procedures, protocols and trackers, offered by the door that strangers use."""

from mmx import Component, hookimpl

_LORA = """@inproceedings{hu2022lora,
  title = {{LoRA}: Low-Rank Adaptation of Large Language Models},
  author = {Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi and
            Wang, Shean and Wang, Lu and Chen, Weizhu},
  booktitle = {International Conference on Learning Representations},
  year = {2022}
}"""
_BITFIT = """@inproceedings{benzaken2022bitfit,
  title = {{BitFit}: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models},
  author = {Ben Zaken, Elad and Goldberg, Yoav and Ravfogel, Shauli},
  booktitle = {Proceedings of the 60th Annual Meeting of the Association for Computational Linguistics},
  year = {2022}
}"""
_MAP = """@inproceedings{lee2023map,
  title = {Multimodal Prompting with Missing Modalities for Visual Recognition},
  author = {Lee, Yi-Lun and Tsai, Yi-Hsuan and Chiu, Wei-Chen and Lee, Chen-Yu},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year = {2023}
}"""


def _here(place: str, summary: str, paper: str = "") -> Component:
    """Describe `kind.module:Class`, named like its module."""
    return Component(place.split(".")[1].split(":", maxsplit=1)[0], f"mmx.builtin.{place}", summary, paper)


@hookimpl
def register_fusions() -> list[Component]:
    """Offer the built-in fusions."""
    return [
        _here("fusions.concat:Concat", "summary tokens side by side, then a linear head"),
        _here("fusions.sum:Sum", "sum of the summary tokens that are there, then a linear head"),
        _here("fusions.mean:Mean", "mean of the summary tokens that are there, then a linear head"),
        _here("fusions.mean_logits:MeanLogits", "late fusion: one head a modality, mean over what is there"),
        _here("fusions.transformer:TransformerFusion", "a transformer over all valid tokens; takes prompts"),
    ]


@hookimpl
def register_adapters() -> list[Component]:
    """Offer the built-in adapters."""
    return [
        _here("adapters.frozen:Frozen", "nothing of the encoder trains (linear probe)"),
        _here("adapters.head_only:HeadOnly", "of the fusion only its head trains, of an encoder nothing"),
        _here("adapters.full:Full", "everything of the encoder trains (fine-tuning)"),
        Component(
            "part",
            "mmx.builtin.adapters.part:Part",
            "the named parameters of the encoder, or of the fusion, train",
            example={"targets": ".*"},
        ),
        _here("adapters.lora:Lora", "low-rank updates of the maps that the encoder's author chose", _LORA),
        _here("adapters.bitfit:BitFit", "only the encoder's biases train", _BITFIT),
    ]


@hookimpl
def register_procedures() -> list[Component]:
    """Offer the built-in procedures."""
    return [_here("procedures.joint:Joint", "one loss over all modalities, one step a batch")]


@hookimpl
def register_protocols() -> list[Component]:
    """Offer the built-in protocols."""
    return [
        _here("protocols.per_modality:PerModality", "each modality of each sample is absent on its own"),
        _here("protocols.per_sample:PerSample", "a share of the samples loses exactly one modality", _MAP),
        _here("protocols.per_cell:PerCell", "a share of all sample-modality cells; each sample keeps one"),
        _here("protocols.missing_table:MissingTable", "an exact number of the samples loses one", _MAP),
        Component(
            "patterns",
            "mmx.builtin.protocols.patterns:Patterns",
            "an explicit distribution over availability patterns",
            example={"probabilities": {"m0": 0.3, "m0.m1": 0.5, "m1": 0.2}},
        ),
    ]


@hookimpl
def register_trackers() -> list[Component]:
    """Offer the built-in tracker."""
    return [_here("trackers.mlflow:Mlflow", "MLflow, on SQLite or a server")]
