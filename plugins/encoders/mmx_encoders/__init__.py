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

RESNET = """@inproceedings{he2016deep,
  title={Deep Residual Learning for Image Recognition},
  author={He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian},
  booktitle={Conference on Computer Vision and Pattern Recognition},
  year={2016}
}"""
MOBILENETS = """@inproceedings{sandler2018mobilenetv2,
  title={{MobileNetV2}: Inverted Residuals and Linear Bottlenecks},
  author={Sandler, Mark and Howard, Andrew and Zhu, Menglong and Zhmoginov, Andrey and Chen, Liang-Chieh},
  booktitle={Conference on Computer Vision and Pattern Recognition},
  year={2018}
}
@inproceedings{howard2019searching,
  title={Searching for {MobileNetV3}},
  author={Howard, Andrew and Sandler, Mark and Chu, Grace and others},
  booktitle={International Conference on Computer Vision},
  year={2019}
}"""
CONVNEXT = """@inproceedings{liu2022convnet,
  title={A {ConvNet} for the 2020s},
  author={Liu, Zhuang and Mao, Hanzi and Wu, Chao-Yuan and others},
  booktitle={Conference on Computer Vision and Pattern Recognition},
  year={2022}
}"""
SWIN = """@inproceedings{liu2021swin,
  title={Swin Transformer: Hierarchical Vision Transformer using Shifted Windows},
  author={Liu, Ze and Lin, Yutong and Cao, Yue and others},
  booktitle={International Conference on Computer Vision},
  year={2021}
}"""

TIMM = """@misc{wightman2019timm,
  title={{PyTorch} Image Models},
  author={Wightman, Ross},
  year={2019},
  howpublished={GitHub repository huggingface/pytorch-image-models}
}"""

TRANSFORMERS = """@inproceedings{wolf2020transformers,
  title={Transformers: State-of-the-Art Natural Language Processing},
  author={Wolf, Thomas and Debut, Lysandre and Sanh, Victor and others},
  booktitle={Empirical Methods in Natural Language Processing: System Demonstrations},
  year={2020}
}"""
SMIL = """@inproceedings{ma2021smil,
  title={{SMIL}: Multimodal Learning with Severely Missing Modality},
  author={Ma, Mengmeng and Ren, Jian and Zhao, Long and Tulyakov, Sergey and Wu, Cathy and Peng, Xi},
  booktitle={AAAI Conference on Artificial Intelligence},
  year={2021}
}"""
KWT = """@inproceedings{berg2021keyword,
  title={Keyword Transformer: A Self-Attention Model for Keyword Spotting},
  author={Berg, Axel and O'Connor, Mark and Cruz, Miguel Tairum},
  booktitle={Interspeech},
  year={2021}
}"""
YAMNET = """@inproceedings{hershey2017cnn,
  title={{CNN} Architectures for Large-Scale Audio Classification},
  author={Hershey, Shawn and Chaudhuri, Sourish and Ellis, Daniel P. W. and others},
  booktitle={International Conference on Acoustics, Speech and Signal Processing},
  year={2017}
}"""
SPEECH = """@inproceedings{baevski2020wav2vec,
  title={wav2vec 2.0: A Framework for Self-Supervised Learning of Speech Representations},
  author={Baevski, Alexei and Zhou, Henry and Mohamed, Abdelrahman and Auli, Michael},
  booktitle={Advances in Neural Information Processing Systems},
  year={2020}
}
@article{hsu2021hubert,
  title={{HuBERT}: Self-Supervised Speech Representation Learning by Masked Prediction of Hidden Units},
  author={Hsu, Wei-Ning and Bolte, Benjamin and Tsai, Yao-Hung Hubert and others},
  journal={IEEE/ACM Transactions on Audio, Speech, and Language Processing},
  year={2021}
}
@article{chen2022wavlm,
  title={{WavLM}: Large-Scale Self-Supervised Pre-Training for Full Stack Speech Processing},
  author={Chen, Sanyuan and Wang, Chengyi and Chen, Zhengyang and others},
  journal={IEEE Journal of Selected Topics in Signal Processing},
  year={2022}
}"""
TINY_SPEECH = {
    "extractor_conv_layer_config": [[16, 10, 5], [16, 3, 4], [16, 2, 4], [16, 2, 4]],
    "encoder_embed_dim": 32,
    "encoder_pos_conv_kernel": 16,
    "encoder_pos_conv_groups": 2,
    "encoder_num_layers": 2,
    "encoder_num_heads": 2,
    "encoder_ff_interm_features": 64,
}
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@hookimpl
def register_encoders() -> list[Component]:
    """Offer the built-in encoders."""
    return [
        Component("mlp", "mmx_encoders.mlp:Mlp", summary="perceptron on a feature vector"),
        Component("lenet", "mmx_encoders.lenet:LeNet", summary="LeNet-5, not pretrained", paper=SMIL),
        Component(
            "mfcc_net",
            "mmx_encoders.mfcc_net:MfccNet",
            summary="convolutions on 20 x 20 cepstral coefficients of sound, not pretrained",
            paper=SMIL,
            requires=("torchaudio",),
        ),
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
        Component(
            "torchvision",
            "mmx_encoders.torchvision_image:TorchvisionImage",
            summary="torchvision's ResNet, MobileNet, ConvNeXt, Swin and ViT; images of any size",
            paper="\n".join([RESNET, MOBILENETS, CONVNEXT, SWIN, VIT]),
            requires=("torchvision",),
            example={"model": "mobilenet_v3_small", "weights": "none", "size": 64},
        ),
        Component(
            "timm",
            "mmx_encoders.timm_image:TimmImage",
            summary="any image network of timm by name; `pip install 'mmx[timm]'`",
            paper=TIMM,
            requires=("timm",),
            example={"model": "test_vit", "weights": "none", "size": 32},
        ),
        Component(
            "transformers_image",
            "mmx_encoders.transformers_image:TransformersImage",
            summary="an image backbone of Hugging Face transformers (ViT, DINOv2, CLIP, SigLIP, …)",
            paper=TRANSFORMERS,
            requires=("transformers",),
            example={"weights": "none", "config": {"model_type": "vit", "image_size": 32, **TINY}},
        ),
        Component(
            "transformers_text",
            "mmx_encoders.transformers_text:TransformersText",
            summary="a text backbone of Hugging Face transformers (BERT, MiniLM, CLIP, …), on token ids",
            paper=TRANSFORMERS,
            requires=("transformers",),
            example={"weights": "none", "config": {"model_type": "bert", "vocab_size": 64, **TINY}},
        ),
        Component(
            "transformers_audio",
            "mmx_encoders.transformers_audio:TransformersAudio",
            summary="an audio backbone of Hugging Face transformers (AST, Whisper, wav2vec 2.0, …)",
            paper=TRANSFORMERS,
            requires=("transformers",),
            example={
                "weights": "none",
                "config": {
                    "model_type": "audio-spectrogram-transformer",
                    "max_length": 64,
                    "num_mel_bins": 32,
                    **TINY,
                },
            },
        ),
        Component(
            "kwt",
            "mmx_encoders.kwt:Kwt",
            summary="Keyword Transformer: spoken commands, one second",
            paper=KWT,
            example={"weights": "none"},
        ),
        Component(
            "yamnet",
            "mmx_encoders.yamnet:Yamnet",
            summary="YAMNet: sounds of every kind, a token each 0.48 s",
            paper=YAMNET,
            example={"weights": "none"},
        ),
        Component(
            "torchaudio",
            "mmx_encoders.torchaudio_speech:TorchaudioSpeech",
            summary="torchaudio's wav2vec 2.0, HuBERT and WavLM pipelines",
            paper=SPEECH,
            requires=("torchaudio",),
            example={"model": "WAV2VEC2_BASE", "weights": "none", "config": TINY_SPEECH},
        ),
    ]
