"""Datasets: one file each; this catalogue imports none of them."""

from mmx import Component, hookimpl
from mmx_datasets.papers import (
    AVE_PAPER,
    CMU_MOSEI_PAPER,
    CMU_MOSI_PAPER,
    CREMA_D_PAPER,
    FOOD101_PAPER,
    HATEFUL_MEMES_PAPER,
    IEMOCAP_PAPER,
    KINETICS_SOUNDS_PAPER,
    MCUBES_PAPER,
    MM_IMDB_PAPER,
    MVSA_PAPER,
    NYUD_PAPER,
    UCF101_PAPER,
)

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
        Component(
            "crema_d",
            "mmx_datasets.crema_d:CremaD",
            summary="CREMA-D: six acted emotions, voice and face",
            paper=CREMA_D_PAPER,
        ),
        Component(
            "kinetics_sounds",
            "mmx_datasets.kinetics_sounds:KineticsSounds",
            summary="Kinetics-Sounds: 31 actions that are seen and heard",
            paper=KINETICS_SOUNDS_PAPER,
        ),
        Component(
            "ave",
            "mmx_datasets.ave:Ave",
            summary="AVE: 28 kinds of events that are seen and heard",
            paper=AVE_PAPER,
        ),
        Component(
            "food101",
            "mmx_datasets.food101:Food101",
            summary="UPMC Food-101: photos of 101 dishes and titles of their pages",
            paper=FOOD101_PAPER,
        ),
        Component(
            "mm_imdb",
            "mmx_datasets.mm_imdb:MmImdb",
            summary="MM-IMDb: posters and plots, 23 genres, several a film",
            paper=MM_IMDB_PAPER,
        ),
        Component(
            "mvsa_single",
            "mmx_datasets.mvsa_single:MvsaSingle",
            summary="MVSA-Single: tweets with a photo, three sentiments",
            paper=MVSA_PAPER,
        ),
        Component(
            "hateful_memes",
            "mmx_datasets.hateful_memes:HatefulMemes",
            summary="Hateful Memes: picture and text, hateful or not",
            paper=HATEFUL_MEMES_PAPER,
        ),
        Component(
            "cmu_mosi",
            "mmx_datasets.cmu_mosi:CmuMosi",
            summary="CMU-MOSI: opinions in words, voice and face; sentiment to predict",
            paper=CMU_MOSI_PAPER,
        ),
        Component(
            "cmu_mosei",
            "mmx_datasets.cmu_mosi:CmuMosei",
            summary="CMU-MOSEI: opinions in words, voice and face; sentiment to predict",
            paper=CMU_MOSEI_PAPER,
        ),
        Component(
            "iemocap",
            "mmx_datasets.iemocap:Iemocap",
            summary="IEMOCAP: four emotions in conversations, words and voice",
            paper=IEMOCAP_PAPER,
        ),
        Component(
            "ucf101",
            "mmx_datasets.ucf101:Ucf101",
            summary="UCF-101: 101 actions, RGB and optical flow",
            paper=UCF101_PAPER,
        ),
        Component(
            "nyud_v2",
            "mmx_datasets.nyud_v2:NyudV2",
            summary="NYU Depth V2: ten kinds of rooms, colour and depth",
            paper=NYUD_PAPER,
        ),
        Component(
            "mcubes",
            "mmx_datasets.mcubes:MCubeS",
            summary="MCubeS: materials in street scenes; colour, polarisation, near infrared",
            paper=MCUBES_PAPER,
        ),
    ]
