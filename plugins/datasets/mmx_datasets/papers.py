"""Papers of the datasets, as BibTeX; the catalogue and the data cards give them."""

CREMA_D_PAPER = """@article{cao2014cremad,
  title = {{CREMA-D}: Crowd-Sourced Emotional Multimodal Actors Dataset},
  author = {Cao, Houwei and Cooper, David G. and Keutmann, Michael K. and Gur, Ruben C. and Nenkova, Ani and
            Verma, Ragini},
  journal = {IEEE Transactions on Affective Computing}, volume = {5}, number = {4}, pages = {377--390},
  year = {2014}
}"""

KINETICS_SOUNDS_PAPER = """@inproceedings{arandjelovic2017look,
  title = {Look, Listen and Learn},
  author = {Arandjelovi{\\'c}, Relja and Zisserman, Andrew},
  booktitle = {Proceedings of the IEEE International Conference on Computer Vision}, pages = {609--617},
  year = {2017}
}"""

AVE_PAPER = """@inproceedings{tian2018audio,
  title = {Audio-Visual Event Localization in Unconstrained Videos},
  author = {Tian, Yapeng and Shi, Jing and Li, Bochen and Duan, Zhiyao and Xu, Chenliang},
  booktitle = {Proceedings of the European Conference on Computer Vision}, year = {2018}
}"""

FOOD101_PAPER = """@inproceedings{wang2015recipe,
  title = {Recipe Recognition with Large Multimodal Food Dataset},
  author = {Wang, Xin and Kumar, Devinder and Thome, Nicolas and Cord, Matthieu and
            Precioso, Fr{\\'e}d{\\'e}ric},
  booktitle = {IEEE International Conference on Multimedia and Expo Workshops}, year = {2015}
}"""

MM_IMDB_PAPER = """@inproceedings{arevalo2017gated,
  title = {Gated Multimodal Units for Information Fusion},
  author = {Arevalo, John and Solorio, Thamar and Montes-y-G{\\'o}mez, Manuel and Gonz{\\'a}lez, Fabio A.},
  booktitle = {International Conference on Learning Representations, Workshop Track}, year = {2017}
}"""

MVSA_PAPER = """@inproceedings{niu2016sentiment,
  title = {Sentiment Analysis on Multi-View Social Data},
  author = {Niu, Teng and Zhu, Shiai and Pang, Lei and El Saddik, Abdulmotaleb},
  booktitle = {MultiMedia Modeling}, pages = {15--27}, year = {2016}
}"""

HATEFUL_MEMES_PAPER = """@inproceedings{kiela2020hateful,
  title = {The Hateful Memes Challenge: Detecting Hate Speech in Multimodal Memes},
  author = {Kiela, Douwe and Firooz, Hamed and Mohan, Aravind and Goswami, Vedanuj and Singh, Amanpreet and
            Ringshia, Pratik and Testuggine, Davide},
  booktitle = {Advances in Neural Information Processing Systems}, volume = {33}, year = {2020}
}"""

CMU_MOSI_PAPER = """@article{zadeh2016mosi,
  title = {{MOSI}: Multimodal Corpus of Sentiment Intensity and Subjectivity Analysis in Online Opinion
           Videos},
  author = {Zadeh, Amir and Zellers, Rowan and Pincus, Eli and Morency, Louis-Philippe},
  journal = {arXiv preprint arXiv:1606.06259}, year = {2016}
}"""

CMU_MOSEI_PAPER = """@inproceedings{zadeh2018multimodal,
  title = {Multimodal Language Analysis in the Wild: {CMU-MOSEI} Dataset and Interpretable Dynamic Fusion
           Graph},
  author = {Zadeh, Amir and Liang, Paul Pu and Poria, Soujanya and Cambria, Erik and Morency, Louis-Philippe},
  booktitle = {Proceedings of the Annual Meeting of the Association for Computational Linguistics},
  pages = {2236--2246}, year = {2018}
}"""

IEMOCAP_PAPER = """@article{busso2008iemocap,
  title = {{IEMOCAP}: Interactive Emotional Dyadic Motion Capture Database},
  author = {Busso, Carlos and Bulut, Murtaza and Lee, Chi-Chun and Kazemzadeh, Abe and Mower, Emily and
            Kim, Samuel and Chang, Jeannette N. and Lee, Sungbok and Narayanan, Shrikanth S.},
  journal = {Language Resources and Evaluation}, volume = {42}, pages = {335--359}, year = {2008}
}"""

UCF101_PAPER = """@article{soomro2012ucf101,
  title = {{UCF101}: A Dataset of 101 Human Actions Classes From Videos in The Wild},
  author = {Soomro, Khurram and Zamir, Amir Roshan and Shah, Mubarak},
  journal = {arXiv preprint arXiv:1212.0402}, year = {2012}
}"""

NYUD_PAPER = """@inproceedings{silberman2012indoor,
  title = {Indoor Segmentation and Support Inference from {RGBD} Images},
  author = {Silberman, Nathan and Hoiem, Derek and Kohli, Pushmeet and Fergus, Rob},
  booktitle = {Proceedings of the European Conference on Computer Vision}, pages = {746--760}, year = {2012}
}"""

MCUBES_PAPER = """@inproceedings{liang2022multimodal,
  title = {Multimodal Material Segmentation},
  author = {Liang, Yupeng and Wakaki, Ryosuke and Nobuhara, Shohei and Nishino, Ko},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  pages = {19800--19808}, year = {2022}
}"""
