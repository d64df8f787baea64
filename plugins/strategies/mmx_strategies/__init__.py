"""Strategies: one file a published method or control; this catalogue imports none of them."""

from mmx import Component, hookimpl

_U2A = """@article{reza2025cmpt,
  title = {Robust Multimodal Learning via Cross-Modal Proxy Tokens},
  author = {Reza, Md Kaykobad and others},
  journal = {arXiv preprint arXiv:2501.17823},
  year = {2025},
  note = {Version 1: U2A, Unified Unimodal Adaptation for Robust and Efficient Multimodal Learning}
}"""
_MAP = """@inproceedings{lee2023map,
  title = {Multimodal Prompting with Missing Modalities for Visual Recognition},
  author = {Lee, Yi-Lun and Tsai, Yi-Hsuan and Chiu, Wei-Chen and Lee, Chen-Yu},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year = {2023}
}"""


@hookimpl
def register_strategies() -> list[Component]:
    """Offer the built-in strategies."""
    return [
        Component("skip", "mmx_strategies.skip:Skip", "nothing stands in; the fusion reads what is there"),
        Component("zero_fill", "mmx_strategies.zero_fill:ZeroFill", "a zero token stands in"),
        Component("mean_fill", "mmx_strategies.mean_fill:MeanFill", "the mean summary token stands in"),
        Component("mask_token", "mmx_strategies.u2a:MaskToken", "a token predicted from what is there", _U2A),
        Component(
            "prompt", "mmx_strategies.missing_aware_prompts:Prompt", "prompts tell who is absent", _MAP
        ),
    ]
