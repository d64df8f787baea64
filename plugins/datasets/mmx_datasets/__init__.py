"""Datasets: one file each; this catalogue imports none of them."""

from mmx import Component, hookimpl

DIGITS_PAPER = """@misc{alpaydin1998optical,
  title = {Optical Recognition of Handwritten Digits},
  author = {Alpaydin, Ethem and Kaynak, Cenk},
  year = {1998},
  howpublished = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49}
}"""

AVMNIST_PAPER = """@inproceedings{ma2021smil,
  title = {{SMIL}: Multimodal Learning with Severely Missing Modality},
  author = {Ma, Mengmeng and Ren, Jian and Zhao, Long and Tulyakov, Sergey and Wu, Cathy and Peng, Xi},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  volume = {35},
  number = {3},
  pages = {2302--2310},
  year = {2021}
}"""

TOY_WORLD_PAPER = """@article{williams2010nonnegative,
  title = {Nonnegative Decomposition of Multivariate Information},
  author = {Williams, Paul L. and Beer, Randall D.},
  journal = {arXiv preprint arXiv:1004.2515},
  year = {2010}
}"""


@hookimpl
def register_datasets() -> list[Component]:
    """Offer the built-in datasets."""
    return [
        Component(
            "digits",
            "mmx_datasets.digits:Digits",
            summary="handwritten digits (scikit-learn) paired with spoken digits (espeak-ng); "
            "comes with the package",
            paper=DIGITS_PAPER,
        ),
        Component(
            "avmnist",
            "mmx_datasets.avmnist:AvMnist",
            summary="MNIST images paired with Free Spoken Digit recordings, plain or hard; "
            "`mmx data prepare avmnist`",
            paper=AVMNIST_PAPER,
        ),
        Component(
            "toy_world",
            "mmx_datasets.toy_world:ToyWorld",
            summary="vectors of 2 or more modalities with known redundant, unique and synergistic "
            "information, and their Bayes accuracy",
            paper=TOY_WORLD_PAPER,
        ),
        Component(
            "manifest",
            "mmx_datasets.manifest:Manifest",
            summary="your own table (CSV, Parquet, JSON Lines) of files, texts and numbers; "
            "empty cells are natural absence",
            example={"table": "data/manifest.csv", "columns": {"image": "image", "text": "text"}},
        ),
    ]
