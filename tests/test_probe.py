"""Promises of the probes: nothing of the test is known from training, and the figures mean what they say."""

import io
import json
from collections import Counter

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset, concatenate_datasets
from f3_training import probe as probe_module
from f3_training import xares_encoder
from f3_training.probe import accuracy_table, build_parser, metadata, pooled_features, probe, probe_accuracy
from f3_training.probe_tasks import TASKS, TEST_SHARE, Example, ProbeTask, select_examples, split_examples
from f3_training.xares_encoder import F3XaresEncoder
from tiny import TINY, TINY_ENCODER, noise, tiny_tokenizer
from torch import nn


RATE = TINY["sampling_rate"]
HERTZ = {"low": 50, "middle": 120, "high": 300}
PITCH = ProbeTask("pitch", lambda row: row["text"], lambda row: row["speaker"], "speakers", min_examples=4)


def row(**columns) -> dict:
    known = {"text": "", "caption": "", "speaker": "", "language": "", "kind": "speech", "source": "", "split": "train"}
    return {"path": "source/clip-000.flac", "duration": 1.0, **known, **columns}


def examples(rows: int, classes: int, groups: int, seed: int = 0) -> dict[int, Example]:
    rng = np.random.default_rng(seed)
    return {index: Example(str(rng.integers(classes)), str(rng.integers(groups))) for index in range(rows)}


def tones(split: str, speakers: int = 6) -> Dataset:
    """Tones of three pitches, each once by every speaker, who has a length and a loudness of their own."""
    rows = []
    for speaker in range(speakers):
        for pitch, hertz in HERTZ.items():
            time = np.arange(int((0.5 + 0.1 * speaker) * RATE)) / RATE
            file = io.BytesIO()
            soundfile.write(file, 0.1 * (1 + speaker) * np.sin(2 * np.pi * hertz * time), RATE, format="WAV")
            name = f"{split}/{speaker}/{pitch}-000.wav"
            columns = row(text=pitch, speaker=f"{split}{speaker}", duration=len(time) / RATE, split=split)
            del columns["path"]
            rows.append({**columns, "audio": {"bytes": file.getvalue(), "path": name}})
    return Dataset.from_list(rows).cast_column("audio", Audio(decode=False))


@pytest.fixture
def mixture(tmp_path, monkeypatch):
    monkeypatch.setattr(probe_module, "MIN_STEPS", 100)
    for split in ("train", "validation", "test"):
        tones(split).to_parquet(tmp_path / "mixture" / f"{split}-00000.parquet")
    return tmp_path / "mixture"


def command(mixture, output, *options: str) -> dict:
    names = []
    for seed, name in enumerate(("one", "other")):
        folder = output.parent / f"model{seed}"
        if not folder.is_dir():
            tiny_tokenizer(seed=seed).save_pretrained(folder)
        names.append(f"{name}={folder}")
    arguments = ["--dataset", str(mixture), "--features", *names, "--output_dir", str(output), *options]
    return probe(build_parser().parse_args(arguments), [PITCH])


@pytest.mark.parametrize("groups", [2, 5, 100])
def test_groups_never_straddle_and_every_class_of_the_test_is_in_train(groups):
    for seed in range(5):
        known = examples(rows=300, classes=4, groups=groups, seed=seed)
        train, test = split_examples(known, seed)
        assert train and test and not set(train) & set(test)
        assert not {known[index].group for index in train} & {known[index].group for index in test}
        assert {known[index].label for index in test} == {known[index].label for index in train}


def test_no_class_gives_more_than_its_share_to_the_test_where_groups_are_small():
    known = {index: Example(str(index % 3), str(index // 4)) for index in range(120)}
    _, test = split_examples(known, seed=0)
    counts = Counter(known[index].label for index in test)
    assert len(counts) == 3 and max(counts.values()) <= TEST_SHARE * 40 < max(counts.values()) + 5


def test_of_groups_that_are_all_too_large_the_smallest_is_the_test():
    known = {index: Example(str(index % 2), "a" if index < 60 else "b") for index in range(100)}
    assert split_examples(known, seed=3) == (list(range(60)), list(range(60, 100)))


def test_a_split_that_leaves_nothing_to_tell_apart_is_refused():
    known = {index: Example(str(index % 2), str(index % 2)) for index in range(10)}
    with pytest.raises(ValueError, match="two classes on both sides"):
        split_examples(known, seed=0)


def test_a_selection_is_as_even_over_classes_and_groups_as_the_rows_allow():
    speakers = ["loud"] * 80 + ["quiet"] * 10 + ["shy"] * 10
    rows = [row(path=f"a/{i}-000.flac", text=text, speaker=s) for text in "ab" for i, s in enumerate(speakers)]
    known = select_examples(PITCH, rows, max_items=60)
    counts = Counter((example.label, example.group) for example in known.values())
    assert counts == {(text, speaker): 10 for text in "ab" for speaker in ("loud", "quiet", "shy")}


def test_classes_that_cannot_be_held_out_are_left_out():
    rows = [row(path=f"a/{i}-000.flac", text="ab"[i % 2], speaker=str(i % 4)) for i in range(20)]
    rare = [row(path=f"b/{i}-000.flac", text="rare", speaker=str(i)) for i in range(3)]
    alone = [row(path=f"c/{i}-000.flac", text="alone", speaker="0") for i in range(20)]
    known = select_examples(PITCH, rows + rare + alone, max_items=100)
    assert {example.label for example in known.values()} == {"a", "b"}
    assert select_examples(PITCH, alone, max_items=100) == {}


@pytest.mark.parametrize(
    "name, known, label, group",
    [
        ("digit", row(path="tuxpaint_effects/symbols/math/3_pt_BR-000.flac"), "3", "pt"),
        ("digit", row(path="tuxpaint_effects/symbols/math/3-000.flac"), "3", "en"),
        ("digit", row(path="asterisk_es/digits/7-000.flac", language="es"), "7", "es"),
        ("digit", row(path="asterisk_es/digits/70-000.flac", language="es"), None, None),
        ("letter", row(path="klettres/nds/alpha/q-000.flac", text="Q", language="nds"), "q", "nds"),
        ("letter", row(path="klettres/ru/alpha/a-000.flac", text="А", language="ru"), None, None),
        ("letter", row(path="asterisk_es/digits/and-000.flac", text="y", language="es"), None, None),
        ("Mandarin rime", row(source="gcin", text="ㄅㄧㄠ3", speaker="gcin/5"), "ㄧㄠ", "gcin/5"),
        ("prompt", row(path="hedgewars/voices/Robot/Uh-oh-000.flac", source="hedgewars", language="en", speaker="hedgewars/Robot"), "uh-oh", "hedgewars/Robot"),
        ("speaker", row(source="queen", speaker="queen/bob", text="Well, yes!"), "queen/bob", "well yes"),
        ("voice type", row(speaker="fillets_cs/big_fish", language="cs"), "big_fish", "cs"),
        ("language", row(source="tuxpaint", language="ca"), "ca", "tuxpaint"),
        ("speech/music/effect", row(source="fillets_music", kind="music"), "music", "fillets"),
        ("speech/music/effect", row(path="tuxpaint_effects/symbols/math/3-000.flac", kind="effect"), None, None),
        ("music source", row(path="colobot/Hv2-003.flac", source="colobot", kind="music"), "colobot", "colobot/Hv2"),
        ("music piece", row(path="wesnoth/sad-001.flac", source="wesnoth"), "wesnoth/sad", "wesnoth/sad-001.flac"),
        ("captioned sound", row(path="tuxpaint_effects/animals/birds/hen-000.flac", caption="A hen."), "bird", "A hen."),
        ("game sound", row(path="openarena/sound/weapons/rail-000.flac", source="openarena"), "weapon", "openarena"),
    ],
)  # fmt: skip
def test_tasks_read_their_labels_and_groups_off_the_columns(name, known, label, group):
    (task,) = (task for task in TASKS if task.name == name)
    assert (task.label(known) or None) == label
    if label:
        assert task.group(known) == group


def test_features_that_hold_the_label_are_read_and_random_ones_get_chance():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (400,), generator=generator)
    told = torch.randn(400, 16, generator=generator) + 4 * torch.nn.functional.one_hot(labels, 16)
    random = torch.randn(400, 16, generator=generator)
    accuracies = [probe_accuracy(x[:300], labels[:300], x[300:], labels[300:], seed=0) for x in (told, random)]
    assert accuracies[0] > 0.97 and 0.1 < accuracies[1] < 0.4


def test_pooled_features_ignore_padding_and_what_comes_after_the_first_seconds(monkeypatch):
    monkeypatch.setattr(probe_module, "MAX_SECONDS", 1)
    dataset, models = tones("train", speakers=8), {"tiny": tiny_tokenizer()}
    together = pooled_features(models, dataset, range(len(dataset)))
    for index in (0, 7, 23):  # 0.5 s, 0.7 s and 1.2 s
        for name, vectors in pooled_features(models, dataset, [index]).items():
            torch.testing.assert_close(vectors[index], together[name][index], atol=1e-5, rtol=1e-4)
    monkeypatch.setattr(probe_module, "MAX_SECONDS", 2)
    assert not torch.allclose(pooled_features(models, dataset, [23])["z"][23], together["z"][23], atol=1e-3)


def test_the_report_has_a_row_for_each_of_the_features_and_a_column_for_each_task(mixture, tmp_path):
    report = command(mixture, tmp_path / "out", "--seed", "5")
    assert report == json.loads((tmp_path / "out" / "probe.json").read_text())
    lines = accuracy_table(report)
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| chance", "| log-mel", "| z", "| one", "| other"]
    assert lines[0] == "| features | D | pitch | mean |" and "| z | 4 |" in lines[4] and "| one | 16 |" in lines[5]
    runs = report["tasks"]["pitch"]["runs"]
    assert [run["seed"] for run in runs] == [5, 6, 7]
    for run in runs:
        assert (run["classes"], run["train"], run["test"]) == (3, 39, 15) and run["chance"] == pytest.approx(1 / 3)
        assert run["accuracy"]["log-mel"] > 0.9
    text = (tmp_path / "out" / "probe.md").read_text()
    assert all(line in text for line in lines) and "| pitch | 3 | 39 | 15 |" in text
    assert str(tmp_path) not in text + json.dumps(report)


def test_the_same_seed_gives_the_same_figures_and_another_seed_other_splits(mixture, tmp_path):
    first, again = (command(mixture, tmp_path / f"out{i}")["tasks"] for i in range(2))
    assert first == again
    known = select_examples(PITCH, metadata(concatenate_datasets([tones("train"), tones("test")])), max_items=100)
    assert split_examples(known, seed=0) == split_examples(known, seed=0) != split_examples(known, seed=1)


def test_what_cannot_be_probed_is_refused_before_anything_is_encoded(mixture, tmp_path):
    with pytest.raises(ValueError, match="no rows for any task"):
        command(mixture, tmp_path / "out", "--max_items_per_task", "5")
    with pytest.raises(ValueError, match="no column caption"):
        metadata(tones("train").remove_columns("caption"))
    arguments = ["--dataset", str(mixture), "--output_dir", str(tmp_path / "out"), "--features"]
    with pytest.raises(ValueError, match="several features are called 'z'"):
        probe(build_parser().parse_args([*arguments, f"z={tmp_path}"]), [PITCH])
    with pytest.raises(SystemExit):
        build_parser().parse_args([*arguments, "unnamed"])


@pytest.fixture
def xares_model(tmp_path, monkeypatch):
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.setenv("F3_MODEL", str(tmp_path / "model"))


def test_x_ares_accepts_the_encoder(xares_model):
    (name,) = (name for name in dir(xares_encoder) if name.endswith("Encoder"))
    encoder = getattr(xares_encoder, name)()
    assert isinstance(encoder, nn.Module) and type(encoder).__name__.endswith("Encoder")
    assert encoder.output_dim == TINY_ENCODER["hidden_size"] and encoder.sampling_rate == RATE
    assert encoder(noise(2, 50_000)).shape == (2, -(-50_000 // 32), encoder.output_dim)


def test_the_encoder_s_hop_is_the_time_between_its_frames_for_batches_and_single_waveforms(xares_model):
    encoder, waveform = F3XaresEncoder(), noise(10 * RATE)
    single = encoder(waveform)
    assert single.shape[1] * encoder.hop_size_in_ms == pytest.approx(10_000)
    torch.testing.assert_close(encoder(torch.stack([waveform, -waveform]))[:1], single, atol=1e-5, rtol=1e-4)


def test_an_encoder_without_a_model_is_refused(monkeypatch):
    monkeypatch.delenv("F3_MODEL", raising=False)
    with pytest.raises(ValueError, match="F3_MODEL"):
        F3XaresEncoder()
