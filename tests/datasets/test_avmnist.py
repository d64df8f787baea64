"""avmnist: all layouts say the same, pairs keep to their rules, and what is missing or unsafe is refused."""

import gzip
import io
import urllib.error
import wave
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from mmx.errors import DataError
from mmx_datasets import avmnist_pairs, avmnist_prepare, download
from mmx_datasets.avmnist import AvMnist
from mmx_datasets.avmnist_files import Images
from mmx_datasets.avmnist_hard import Cut
from mmx_datasets.avmnist_pairs import smil_pairs
from mmx_datasets.avmnist_sounds import Recording

IMAGES = {"train": 40, "test": 60}
TAKES = (0, 5, 10)
SPEAKERS = ("jackson", "theo")


@pytest.fixture(autouse=True)
def small_is_whole(monkeypatch):
    monkeypatch.setattr(avmnist_pairs, "ALL_IMAGES", IMAGES)
    monkeypatch.setattr(avmnist_pairs, "ALL_RECORDINGS", 60)
    monkeypatch.setattr(avmnist_prepare, "ALL_RECORDINGS", 60)


@pytest.fixture(scope="module")
def data():
    """Images {part: (labels, pixels)} and clips {Recording: samples}."""
    generator = np.random.default_rng(0)
    images = {
        part: (
            generator.permutation(np.arange(count, dtype=np.uint8) % 10),
            generator.integers(0, 256, (count, 28, 28), dtype=np.uint8),
        )
        for part, count in IMAGES.items()
    }
    clips = {
        Recording(digit, speaker, take): generator.integers(
            -999, 999, 500 + 3000 * take % 9000, dtype=np.int16
        )
        for digit in range(10)
        for speaker in SPEAKERS
        for take in TAKES
    }
    return images, clips


def write_image_npz(root, images):
    arrays = {}
    for part, (labels, pixels) in images.items():
        arrays |= {f"{part}_labels": labels, f"{part}_images": pixels}
    np.savez(root / "mnist.npz", **arrays)


def idx_bytes(array):
    sizes = np.array(array.shape, dtype=">i4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def idx_files(images):
    for part, (labels, pixels) in images.items():
        name = {"train": "train", "test": "t10k"}[part]
        yield f"{name}-labels-idx1-ubyte", idx_bytes(labels)
        yield f"{name}-images-idx3-ubyte", idx_bytes(pixels)


def write_idx(root, images):
    (root / "MNIST" / "raw").mkdir(parents=True)
    for name, content in idx_files(images):
        (root / "MNIST" / "raw" / name).write_bytes(content)


def write_idx_gz(root, images):
    for name, content in idx_files(images):
        (root / f"{name}.gz").write_bytes(gzip.compress(content))


def write_png(root, images):
    for part, (labels, pixels) in images.items():
        for number, (label, image) in enumerate(zip(labels, pixels, strict=True)):
            folder = root / {"train": "training", "test": "testing"}[part] / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number}.png")


def write_sound_npz(root, clips):
    names = sorted(clips, reverse=True)
    lengths = [len(clips[name]) for name in names]
    np.savez(
        root / "fsdd.npz",
        wave=np.concatenate([clips[name] for name in names]),
        offset=np.cumsum([0, *lengths]),
        label=np.array([name.digit for name in names], dtype=np.uint8),
        speaker=np.array([SPEAKERS.index(name.speaker) for name in names], dtype=np.uint8),
        take=np.array([name.take for name in names], dtype=np.uint8),
        speaker_names=np.array(SPEAKERS),
    )


def wav_bytes(samples, rate=8000):
    memory = io.BytesIO()
    with wave.open(memory, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return memory.getvalue()


def wav_name(name):
    return f"{name.digit}_{name.speaker}_{name.take}.wav"


def write_wav(root, clips):
    (root / "recordings").mkdir()
    for name, samples in clips.items():
        (root / "recordings" / wav_name(name)).write_bytes(wav_bytes(samples))


@pytest.fixture
def root(tmp_path, data):
    write_image_npz(tmp_path, data[0])
    write_sound_npz(tmp_path, data[1])
    return tmp_path


def same(one, other):
    return (one.id, one.target) == (other.id, other.target) and all(
        torch.equal(one.inputs[m], other.inputs[m]) for m in ("image", "audio")
    )


class NoNetwork:
    """Stands in for urlopen where there is no network."""

    def __init__(self):
        self.asked = []

    def __call__(self, url, timeout=None):
        self.asked.append(url)
        raise urllib.error.URLError("Name or service not known")


class Served:
    """Stands in for urlopen: gives each url's last part its bytes."""

    def __init__(self, files):
        self.files = files

    def __call__(self, url, timeout=None):
        if url.rsplit("/", 1)[-1] not in self.files:
            raise urllib.error.URLError("not found")
        answer = io.BytesIO(self.files[url.rsplit("/", 1)[-1]])
        answer.geturl = lambda: url
        return answer


def fsdd_archive(clips, extra=()):
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as file:
        file.writestr("fsdd-26eb9aa/README.md", "read me")
        for name, samples in clips.items():
            file.writestr(f"fsdd-26eb9aa/recordings/{wav_name(name)}", wav_bytes(samples))
        for member in extra:
            file.writestr(member, b"bad")
    return memory.getvalue()


# Layouts


@pytest.mark.parametrize("write_images", [write_idx, write_idx_gz, write_png])
@pytest.mark.parametrize("write_sounds", [write_sound_npz, write_wav])
def test_all_layouts_give_equal_samples(root, tmp_path_factory, data, write_images, write_sounds):
    other = tmp_path_factory.mktemp("other")
    write_images(other, data[0])
    write_sounds(other, data[1])
    for split in ("train", "val", "test"):
        one, two = (AvMnist(root=str(place)).split(split) for place in (root, other))
        assert len(one) == len(two) > 0
        assert all(same(a, b) for a, b in zip(one, two, strict=True))


def test_a_folder_avmnist_inside_root_is_found(root):
    (root.parent / "all" / "avmnist").mkdir(parents=True)
    for name in ("mnist.npz", "fsdd.npz"):
        (root / name).rename(root.parent / "all" / "avmnist" / name)
    assert AvMnist(root=str(root.parent / "all")).split("val")


def test_samples_hold_what_the_files_hold(root, data):
    images, clips = data
    for sample in AvMnist(root=str(root)).split("test"):
        recording, image = sample.id.split("+")
        digit, speaker, take = recording.removeprefix("fsdd/").split("_")
        labels, pixels = images["test"]
        number = int(image.removeprefix("mnist/test/"))
        clip = clips[Recording(int(digit), speaker, int(take))][:8000]
        assert sample.target == int(digit) == labels[number]
        assert np.allclose(sample.inputs["image"].numpy()[0] * 255, pixels[number], atol=1e-4)
        assert np.allclose(sample.inputs["audio"].numpy()[: len(clip)] * 32768, clip, atol=1e-2)


def test_clips_are_cut_or_padded_to_one_second(root):
    lengths = {tuple(sample.inputs["audio"].shape) for sample in AvMnist(root=str(root)).split("train")}
    assert lengths == {(8000,)}


# The official rule


def test_takes_below_five_are_for_test_and_the_next_are_held_out(root):
    takes = {
        split: {
            int(sample.id.split("+")[0].rsplit("_", 1)[1]) for sample in AvMnist(root=str(root)).split(split)
        }
        for split in ("train", "val", "test")
    }
    assert takes == {"train": {10}, "val": {5}, "test": {0}}


def test_no_image_is_used_twice_outside_test(root):
    dataset = AvMnist(root=str(root))
    images = [sample.id.split("+")[1] for split in ("train", "val") for sample in dataset.split(split)]
    assert len(images) == len(set(images)) == 40
    assert all(image.startswith("mnist/train/") for image in images)


def test_a_test_recording_meets_as_many_images_as_asked_for(root):
    for each in (1, 3):
        samples = AvMnist(root=str(root), images_per_test_recording=each).split("test")
        assert len(samples) == len({sample.id for sample in samples}) == 20 * each
        assert all("+mnist/test/" in sample.id for sample in samples)


def test_the_pairing_changes_with_its_seed_only(root):
    first, again, other = (
        [sample.id for sample in AvMnist(root=str(root), pairing_seed=seed).split("train")]
        for seed in (0, 0, 1)
    )
    assert first == again != other


# SMIL's rule


@pytest.fixture(scope="module")
def smil():
    labels = (np.arange(1500) % 10).astype(np.uint8)
    images = {part: Images(labels, np.zeros((1500, 28, 28), np.uint8)) for part in IMAGES}
    speakers = ("george", "jackson", "nicolas", "theo")
    names = [Recording(d, s, t) for d in range(10) for s in speakers for t in range(50)]
    return images, names


@pytest.fixture
def smil_whole(monkeypatch):
    monkeypatch.setattr(avmnist_pairs, "ALL_IMAGES", {"train": 1500, "test": 1500})


@pytest.mark.usefixtures("smil_whole")
def test_smil_has_105_training_and_45_test_pairs_a_class(smil):
    splits = smil_pairs(*smil, val_takes=5, audio_share=1.0)
    counts = {split: np.bincount([pair.digit for pair in pairs]).tolist() for split, pairs in splits.items()}
    assert counts == {"train": [90] * 10, "val": [15] * 10, "test": [45] * 10}


@pytest.mark.usefixtures("smil_whole")
def test_smil_takes_images_in_string_order(smil):
    splits = smil_pairs(*smil, val_takes=5, audio_share=1.0)
    ordered = sorted(str(number) for number in range(0, 1500, 10))
    learn = {pair.image for split in ("train", "val") for pair in splits[split] if pair.digit == 0}
    assert learn == {int(name) for name in ordered[:105]}
    assert [pair.image for pair in splits["test"] if pair.digit == 0] == [int(name) for name in ordered[-45:]]


@pytest.mark.usefixtures("smil_whole")
def test_smil_pairs_in_blocks_of_one_speaker(smil):
    test = smil_pairs(*smil, val_takes=5, audio_share=1.0)["test"]
    heard = [smil[1][pair.clip] for pair in test if pair.digit == 3]
    assert heard == [Recording(3, s, t) for s in ("jackson", "nicolas", "theo") for t in range(15)]


@pytest.mark.usefixtures("smil_whole")
@pytest.mark.parametrize(("share", "count"), [(0.05, 6), (0.10, 12), (0.15, 15), (0.20, 21), (1.0, 105)])
def test_smil_keeps_sound_for_a_multiple_of_three_a_class(smil, share, count):
    splits = smil_pairs(*smil, val_takes=5, audio_share=share)
    heard = [pair for split in ("train", "val") for pair in splits[split] if pair.clip is not None]
    assert np.bincount([pair.digit for pair in heard]).tolist() == [count] * 10
    assert all(smil[1][pair.clip].take >= 15 and smil[1][pair.clip].digit == pair.digit for pair in heard)


@pytest.mark.usefixtures("smil_whole")
def test_smil_test_pairs_all_have_sound(smil):
    test = smil_pairs(*smil, val_takes=5, audio_share=0.05)["test"]
    assert all(pair.clip is not None and smil[1][pair.clip].take < 15 for pair in test)


@pytest.mark.usefixtures("smil_whole")
def test_smil_without_one_of_its_recordings_is_refused(smil):
    images, names = smil
    with pytest.raises(DataError, match="fsdd/4_theo_49"):
        smil_pairs(images, [n for n in names if n != Recording(4, "theo", 49)], val_takes=5, audio_share=1.0)


def test_sounds_cannot_be_left_out_under_the_official_rule(root):
    with pytest.raises(DataError, match="audio_share"):
        AvMnist(root=str(root), audio_share=0.5)


# Hard


def test_hard_is_the_same_every_time(root):
    one, other = (AvMnist(root=str(root), difficulty="hard").split("test") for _ in range(2))
    assert all(same(a, b) for a, b in zip(one, other, strict=True))


def test_hard_keeps_ids_pairs_and_ranges(root):
    plain, hard = (AvMnist(root=str(root), difficulty=d).split("train") for d in ("plain", "hard"))
    assert [sample.id for sample in plain] == [sample.id for sample in hard]
    assert all(s.inputs["image"].min() >= 0 and s.inputs["image"].max() <= 1 for s in hard)
    assert all(s.inputs["audio"].abs().max() <= 1 for s in hard)


def test_hard_sound_is_five_decibels_below_its_noise(root, data):
    plain, hard = (AvMnist(root=str(root), difficulty=d).split("train")[0] for d in ("plain", "hard"))
    length = min(8000, len(data[1][Recording(0, "jackson", 10)]))
    noise = hard.inputs["audio"] - plain.inputs["audio"]
    ratio = plain.inputs["audio"][:length].square().mean() / noise.square().mean()
    assert 10 * float(torch.log10(ratio)) == pytest.approx(-5.0, abs=0.3)


def test_the_cut_keeps_the_fewest_components_with_the_share():
    images = np.random.default_rng(0).standard_normal((500, 4)) * [4.0, 3.0, 1.0, 1.0]
    assert [len(Cut.fit(images, share).components) for share in (0.5, 0.8, 0.999)] == [1, 2, 4]


# What is missing or broken


def test_an_empty_root_is_told_what_to_place_where(tmp_path):
    with pytest.raises(DataError) as told:
        AvMnist(root=str(tmp_path / "nowhere"))
    for part in (
        "mnist.npz",
        "train-images-idx3-ubyte.gz",
        "fsdd.npz",
        "recordings/",
        str(tmp_path / "nowhere"),
    ):
        assert part in str(told.value)
    assert f"mmx data prepare avmnist --root {tmp_path / 'nowhere'}" in str(told.value)


def test_missing_sounds_alone_are_told(root):
    (root / "fsdd.npz").unlink()
    with pytest.raises(DataError, match="spoken digits"):
        AvMnist(root=str(root))


@pytest.mark.parametrize("name", ["mnist.npz", "fsdd.npz"])
def test_a_damaged_file_is_named(root, name):
    (root / name).write_bytes((root / name).read_bytes()[:2000])
    with pytest.raises(DataError, match=name):
        AvMnist(root=str(root)).split("train")


def test_pickled_arrays_are_refused(root):
    np.savez(root / "mnist.npz", train_labels=np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"mnist\.npz"):
        AvMnist(root=str(root)).split("train")


def test_a_recording_at_another_rate_is_refused(tmp_path, data):
    write_image_npz(tmp_path, data[0])
    write_wav(tmp_path, data[1])
    (tmp_path / "recordings" / "0_jackson_10.wav").write_bytes(wav_bytes(np.zeros(9, np.int16), rate=16000))
    with pytest.raises(DataError, match="16000 Hz"):
        AvMnist(root=str(tmp_path)).split("train")


def test_incomplete_data_are_refused(root, monkeypatch):
    monkeypatch.setattr(avmnist_pairs, "ALL_RECORDINGS", 3000)
    with pytest.raises(DataError, match="60 recordings instead of 3000"):
        AvMnist(root=str(root)).split("train")


def test_unknown_splits_are_refused(root):
    with pytest.raises(DataError, match="'dev'"):
        AvMnist(root=str(root)).split("dev")


# Preparing


def test_prepare_without_a_network_says_what_to_place_where(tmp_path, monkeypatch):
    network = NoNetwork()
    monkeypatch.setattr("urllib.request.urlopen", network)
    with pytest.raises(DataError) as told:
        AvMnist.prepare(tmp_path)
    assert len(network.asked) == 2
    for part in ("Name or service not known", "t10k-labels-idx1-ubyte.gz", "mnist.npz", str(tmp_path)):
        assert part in str(told.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_prepare_leaves_what_is_there_alone(root, monkeypatch):
    network = NoNetwork()
    monkeypatch.setattr("urllib.request.urlopen", network)
    assert AvMnist.prepare(root).count("already") == 2
    assert network.asked == []


@pytest.fixture
def served(data, monkeypatch):
    """Everything that prepare asks for, from memory."""
    files = {f"{name}.gz": gzip.compress(content) for name, content in idx_files(data[0])}
    md5 = {name: download.hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(avmnist_prepare, "MNIST_MD5", md5)
    files[avmnist_prepare.FSDD_COMMIT] = fsdd_archive(data[1])
    monkeypatch.setattr("urllib.request.urlopen", Served(files))
    return files


@pytest.mark.usefixtures("served")
def test_prepare_fetches_both_and_the_dataset_reads_them(tmp_path):
    assert "60" in AvMnist.prepare(tmp_path)
    assert len(AvMnist(root=str(tmp_path)).split("train")) == 20
    assert AvMnist.prepare(tmp_path).count("already") == 2


def test_prepare_goes_on_where_it_was_interrupted(tmp_path, served):
    archive = served.pop(avmnist_prepare.FSDD_COMMIT)
    with pytest.raises(DataError, match="fsdd"):
        AvMnist.prepare(tmp_path)
    images = {name: served.pop(name) for name in list(served)}
    served[avmnist_prepare.FSDD_COMMIT] = archive
    assert images
    assert "MNIST images: already" in AvMnist.prepare(tmp_path)


def test_a_wrong_checksum_is_refused(tmp_path, served):
    served["t10k-labels-idx1-ubyte.gz"] += b"x"
    with pytest.raises(DataError, match="md5"):
        AvMnist.prepare(tmp_path)
    assert not (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").exists()


def test_an_archive_that_lacks_recordings_is_refused(tmp_path, served, data):
    served[avmnist_prepare.FSDD_COMMIT] = fsdd_archive(dict(list(data[1].items())[:50]))
    with pytest.raises(DataError, match="50 recordings instead of 60"):
        AvMnist.prepare(tmp_path)
    assert not (tmp_path / "fsdd" / "recordings").exists()


@pytest.mark.parametrize("member", ["../outside.wav", "/outside.wav", "fsdd/recordings/../../outside.wav"])
def test_an_archive_that_would_leave_its_folder_is_refused(tmp_path, served, data, member):
    served[avmnist_prepare.FSDD_COMMIT] = fsdd_archive(data[1], extra=[member])
    with pytest.raises(DataError, match="would leave its folder"):
        AvMnist.prepare(tmp_path / "inside")
    assert not list(tmp_path.rglob("outside.wav"))
    assert not (tmp_path / "inside" / "fsdd" / "recordings").exists()


def test_an_archive_that_is_none_is_refused(tmp_path, served):
    served[avmnist_prepare.FSDD_COMMIT] = b"<html>no such page</html>"
    with pytest.raises(DataError, match="no whole zip"):
        AvMnist.prepare(tmp_path)


def test_only_https_is_asked(tmp_path):
    with pytest.raises(DataError, match="no https address"):
        download.fetch(["http://example.org/file"], tmp_path / "file")


def test_a_redirect_away_from_https_is_refused(tmp_path, monkeypatch):
    def redirected(url, timeout=None):
        answer = io.BytesIO(b"x")
        answer.geturl = lambda: "http://example.org/file"
        return answer

    monkeypatch.setattr("urllib.request.urlopen", redirected)
    with pytest.raises(DataError, match="no https address"):
        download.fetch(["https://example.org/file"], tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
