"""Encoders: one file a family; this catalogue imports none of them."""

from mmx import Component, hookimpl

VIT = """@inproceedings{dosovitskiy2021image,
  title={An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale},
  author={Dosovitskiy, Alexey and Beyer, Lucas and Kolesnikov, Alexander and others},
  booktitle={International Conference on Learning Representations},
  year={2021}
}"""
AST = """@inproceedings{gong2021ast,
  title={{AST}: Audio Spectrogram Transformer},
  author={Gong, Yuan and Chung, Yu-An and Glass, James},
  booktitle={Interspeech},
  year={2021}
}"""


@hookimpl
def register_encoders() -> list[Component]:
    """Offer the built-in encoders."""
    return [
        Component("mlp", "mmx_encoders.mlp:Mlp", summary="perceptron on a feature vector"),
        Component(
            "tiny_vit",
            "mmx_encoders.tiny_vit:TinyVit",
            summary="small vision transformer, pretrained on rendered letters; any image size",
            paper=VIT,
        ),
        Component(
            "tiny_ast",
            "mmx_encoders.tiny_ast:TinyAst",
            summary="small audio spectrogram transformer, pretrained on synthetic words; 8 kHz and up",
            paper=AST,
            requires=("torchaudio",),
        ),
    ]
