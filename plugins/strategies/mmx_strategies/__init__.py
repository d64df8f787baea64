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

_SSF = """@article{reza2024adaptation,
  title = {Robust Multimodal Learning with Missing Modalities via Parameter-Efficient Adaptation},
  author = {Reza, Md Kaykobad and Prater-Bennette, Ashley and Asif, M. Salman},
  journal = {IEEE Transactions on Pattern Analysis and Machine Intelligence},
  volume = {47},
  number = {2},
  pages = {742--754},
  year = {2025},
  doi = {10.1109/TPAMI.2024.3476487}
}"""
_MLA = """@inproceedings{zhang2024mla,
  title = {Multimodal Representation Learning by Alternating Unimodal Adaptation},
  author = {Zhang, Xiaohui and Yoon, Jaehong and Bansal, Mohit and Yao, Huaxiu},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year = {2024}
}"""
_UMT = """@inproceedings{du2023umt,
  title = {On Uni-Modal Feature Learning in Supervised Multi-Modal Learning},
  author = {Du, Chenzhuang and Teng, Jiaye and Li, Tingle and others},
  booktitle = {International Conference on Machine Learning},
  year = {2023},
  note = {arXiv:2305.01233}
}"""
_OGM_GE = """@inproceedings{peng2022ogmge,
  title = {Balanced Multimodal Learning via On-the-fly Gradient Modulation},
  author = {Peng, Xiaokang and Wei, Yake and Deng, Andong and Wang, Dong and Hu, Di},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year = {2022}
}"""
_QMF = """@inproceedings{zhang2023qmf,
  title = {Provable Dynamic Fusion for Low-Quality Multimodal Data},
  author = {Zhang, Qingyang and Wu, Haitao and Zhang, Changqing and Hu, Qinghua and Fu, Huazhu and
            Zhou, Joey Tianyi and Peng, Xi},
  booktitle = {International Conference on Machine Learning},
  year = {2023}
}"""
_JOINT_EMBEDDING = """@inproceedings{kim2024jointembedding,
  title = {Missing Modality Prediction for Unpaired Multimodal Learning via Joint Embedding of
           Unimodal Models},
  author = {Kim, Donggeun and Kim, Taesup},
  booktitle = {European Conference on Computer Vision},
  year = {2024},
  note = {arXiv:2407.12616}
}"""

_SBNET = """@inproceedings{saeed2023sbnet,
  title = {Single-branch Network for Multimodal Training},
  author = {Saeed, Muhammad Saad and Nawaz, Shah and Khan, Muhammad Haris and Zaheer, Muhammad Zaigham and
            Nandakumar, Karthik and Yousaf, Muhammad Haroon and Mahmood, Arif},
  booktitle = {IEEE International Conference on Acoustics, Speech and Signal Processing},
  year = {2023}
}
@article{saeed2024srmm,
  title = {Modality Invariant Multimodal Learning to Handle Missing Modalities: A Single-Branch Approach},
  author = {Saeed, Muhammad Saad and Nawaz, Shah and others},
  journal = {arXiv preprint arXiv:2408.07445},
  year = {2024}
}"""
_WANDER = """@inproceedings{guo2025wander,
  title = {A Wander Through the Multimodal Landscape: Efficient Transfer Learning via Low-rank Sequence
           Multimodal Adapter},
  author = {Guo, Zirun and Cheng, Xize and Wu, Yangyang and Jin, Tao},
  booktitle = {AAAI Conference on Artificial Intelligence},
  year = {2025},
  note = {arXiv:2412.08979}
}"""

_ALL_STAGE = """@article{zhao2024allstage,
  title = {Dealing with All-stage Missing Modality: Towards A Universal Model with Robust Reconstruction and
           Personalization},
  author = {Zhao, Yunpeng and Chen, Cheng and Pang, Qing You and Li, Quanzheng and Tang, Carol and
            Ang, Beng-Ti and Jin, Yueming},
  journal = {arXiv preprint arXiv:2406.01987},
  year = {2024}
}"""


_SMIL = """@inproceedings{ma2021smil,
  title = {{SMIL}: Multimodal Learning with Severely Missing Modality},
  author = {Ma, Mengmeng and Ren, Jian and Zhao, Long and Tulyakov, Sergey and Wu, Cathy and Peng, Xi},
  booktitle = {AAAI Conference on Artificial Intelligence},
  year = {2021}
}"""

_SHASPEC = """@inproceedings{wang2023shaspec,
  title = {Multi-modal Learning with Missing Modality via Shared-Specific Feature Modelling},
  author = {Wang, Hu and Chen, Yuanhong and Ma, Congbo and Avery, Jodie and Hull, Louise and
            Carneiro, Gustavo},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year = {2023}
}"""
_MMIN = """@inproceedings{zhao2021mmin,
  title = {Missing Modality Imagination Network for Emotion Recognition with Uncertain Missing Modalities},
  author = {Zhao, Jinming and Li, Ruichen and Jin, Qin},
  booktitle = {Annual Meeting of the Association for Computational Linguistics},
  year = {2021}
}"""

_MORA = """@inproceedings{zhao2026mora,
  title = {{MoRA}: Missing Modality Low-Rank Adaptation for Visual Recognition},
  author = {Zhao, Shu and Ahuja, Nilesh and Yu, Tan and Shen, Tianyi and Narayanan, Vijaykrishnan},
  booktitle = {International Conference on Learning Representations},
  year = {2026},
  note = {arXiv:2511.06225}
}"""


@hookimpl
def register_strategies() -> list[Component]:
    """Offer the built-in strategies."""
    return [
        Component("skip", "mmx_strategies.skip:Skip", "nothing stands in; the fusion reads what is there"),
        Component("zero_fill", "mmx_strategies.zero_fill:ZeroFill", "a zero token stands in"),
        Component("mean_fill", "mmx_strategies.mean_fill:MeanFill", "the mean summary token stands in"),
        Component(
            "modality_dropout",
            "mmx_strategies.modality_dropout:ModalityDropout",
            "modalities are hidden in training; nothing stands in",
        ),
        Component("mask_token", "mmx_strategies.u2a:MaskToken", "a token predicted from what is there", _U2A),
        Component(
            "joint_embedding",
            "mmx_strategies.joint_embedding:JointEmbedding",
            "read-only prompts predict the absent summary token",
            _JOINT_EMBEDDING,
        ),
        Component(
            "prompt", "mmx_strategies.missing_aware_prompts:Prompt", "prompts tell who is absent", _MAP
        ),
        Component(
            "autoencoder", "mmx_strategies.autoencoder:Autoencoder", "features predicted by an autoencoder"
        ),
        Component(
            "smil", "mmx_strategies.smil:Smil", "mixed prototypes stand in, features regularised", _SMIL
        ),
        Component(
            "all_stage",
            "mmx_strategies.all_stage:AllStage",
            "reconstructed tokens stand in, scaled and shifted by the pattern",
            _ALL_STAGE,
        ),
        Component(
            "shaspec",
            "mmx_strategies.shaspec:ShaSpec",
            "features that all modalities share stand in",
            _SHASPEC,
        ),
        Component("mmin", "mmx_strategies.mmin:Mmin", "a cascade of autoencoders imagines", _MMIN),
    ]


@hookimpl
def register_fusions() -> list[Component]:
    """Offer the fusions of published methods."""
    return [
        Component(
            "entropy", "mmx_strategies.mla:EntropyFusion", "one shared head, weighed by certainty", _MLA
        ),
        Component(
            "wander", "mmx_strategies.wander:Wander", "a low-rank product of all modalities' tokens", _WANDER
        ),
        Component("confidence", "mmx_strategies.qmf:ConfidenceFusion", "heads weighed by their energy", _QMF),
        Component(
            "single_branch",
            "mmx_strategies.single_branch:SingleBranch",
            "one branch that all modalities share, mean of its logits",
            _SBNET,
        ),
    ]


@hookimpl
def register_adapters() -> list[Component]:
    """Offer the adapters of published methods."""
    return [
        Component("mora", "mmx_strategies.mora:Mora", "low-rank factors that encoders share", _MORA),
        Component(
            "scale_shift",
            "mmx_strategies.scale_shift:ScaleShift",
            "every layer's features scaled and shifted, one set an availability pattern",
            _SSF,
        ),
    ]


@hookimpl
def register_procedures() -> list[Component]:
    """Offer the procedures of published methods."""
    return [
        Component("alternating", "mmx_strategies.mla:Alternating", "one step a modality, in turn", _MLA),
        Component(
            "co_distillation",
            "mmx_strategies.co_distillation:CoDistillation",
            "the completed input teaches the observed one",
            _ALL_STAGE,
        ),
        Component(
            "distillation",
            "mmx_strategies.mmlora:Distillation",
            "uni-modal teachers guide the encoders",
            _UMT,
        ),
        Component(
            "ogm_ge", "mmx_strategies.ogm_ge:OgmGe", "the leading modality's gradients shrink", _OGM_GE
        ),
        Component(
            "modality_switching",
            "mmx_strategies.single_branch:ModalitySwitching",
            "modalities enter by turns; classes at right angles",
            _SBNET,
            example={"order": "items"},  # two drawn batches need not show every modality
        ),
        Component("smil", "mmx_strategies.smil:Meta", "steps on what lacks something, through those", _SMIL),
        Component(
            "mmin", "mmx_strategies.mmin:Imagination", "the phase before tells what is to be imagined", _MMIN
        ),
        Component("qmf", "mmx_strategies.qmf:Qmf", "losses of each modality, confidence by history", _QMF),
    ]
