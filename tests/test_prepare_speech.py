from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from f3_training import prepare_speech
from f3_training.audio_dataset import decode_audio
from f3_training.synthetic_speech import Spoken, examples, words
from f3_training.word_ends import Pronounced, pronounced, word_ends


def test_examples_become_sentences():
    line = '00 v 01 | expel air; "exhale when you lift the weight"; "why did you leave early?"; "too short"; "with 3 digits in it"'
    assert list(examples(line)) == ["Exhale when you lift the weight.", "Why did you leave early?"]
    assert list(examples('00 n | an "odd" word, "no more" than two')) == []


def test_entries_of_the_index_become_words(tmp_path, monkeypatch):
    folder = tmp_path / "usr/share/wordnet"
    folder.mkdir(parents=True)
    for part in ("noun", "verb", "adj", "adv"):
        (folder / f"index.{part}").write_text(
            "  1 This software is\nbee n 1\nhot_dog n 2\nat a 1\n3-d n 1\n" + part + " n 1\n"
        )
    monkeypatch.setattr("f3_training.synthetic_speech.unpack", lambda package, cache: tmp_path)
    assert sorted(words(tmp_path)) == ["Adj.", "Adv.", "Bee.", "Noun.", "Verb."]


def test_words_end_in_the_middle_of_the_gaps_between_them():
    phonemes = [
        ("^", 0.1),
        ("ð", 0.1),
        ("ə", 0.1),
        (" ", 0.2),
        ("ɹ", 0.1),
        ("ˈ", 0.1),
        ("u", 0.1),
        ("ː", 0.1),
        ("m", 0.1),
    ]
    parts = pronounced([*phonemes, (".", 0.2)])
    assert [part.sounds for part in parts] == [2, 3] and [part.end for part in parts] == pytest.approx([0.4, 1.2])
    assert word_ends(["The", "room."], parts, len) == pytest.approx([0.4, 1.2])


def test_words_that_are_run_together_share_their_time_by_their_sounds():
    sounds = {"end": 3, "of": 2, "the": 2, "sea": 2}.get
    parts = [Pronounced(3, 0.5), Pronounced(4, 0.9), Pronounced(2, 1.5)]
    assert word_ends(["end", "of", "the", "sea"], parts, sounds) == pytest.approx([0.5, 0.7, 0.9, 1.5])


def test_where_the_parts_are_none_of_the_words_nothing_is_said_about_ends():
    assert word_ends(["up--the"], [Pronounced(2, 0.2), Pronounced(2, 0.4)], len) == []
    assert word_ends(["a"] * 4, [Pronounced(4, 1.0)], len) == []


@pytest.fixture
def calls(monkeypatch):
    """An engine that says every sentence in a tenth of a second a word, and remembers it."""
    said = []

    def say(text: str):
        said.append(text)
        words = len(text.split())
        return Spoken(np.full(800 * words, 0.1, dtype=np.float32), 8000, [0.1 * (index + 1) for index in range(words)])

    class Pool(SimpleNamespace):
        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    def context(_):
        def start(num_workers, load, arguments):
            load(*arguments)
            return Pool(map=lambda function, items, chunksize: [function(item) for item in items])

        return SimpleNamespace(Pool=start)

    monkeypatch.setattr(prepare_speech.multiprocessing, "get_context", context)
    monkeypatch.setattr(prepare_speech, "VOICES", {"robot": SimpleNamespace(load=lambda cache: say, licence="CC0-1.0")})
    for name, start in (("sentences", "One two three"), ("words", "Four")):
        texts = [f"{start} {index:03d}." for index in range(40)]
        monkeypatch.setitem(prepare_speech.TEXTS, name, lambda cache, texts=texts: texts)
    monkeypatch.setattr(prepare_speech, "HELD_OUT", 5)
    monkeypatch.setattr(prepare_speech, "SHARD_TEXTS", 4)
    return said


def test_speech_is_written_until_the_hours_are_full_and_read_without_code(calls, tmp_path):
    prepare_speech.prepare(["robot"], 3 / 3600, tmp_path, tmp_path, 1)
    splits = {split: load_dataset(str(tmp_path), split=split) for split in ("train", "validation", "test")}
    assert [len(splits[split]) for split in splits] == [8, 5, 5]  # 0.4 s each: two shards are 3.2 s
    texts = [set(rows["text"]) for rows in splits.values()]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
    row = splits["train"][0]
    assert row["source"] == row["speaker"] == "robot" and row["kind"] == "speech" and row["language"] == "en"
    assert len(decode_audio(row["audio"], 8000)) == 3200 and row["duration"] == pytest.approx(0.4)
    assert row["word_ends"] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_few_hours_of_several_voices_say_different_sentences(calls, tmp_path, monkeypatch):
    voice = prepare_speech.VOICES["robot"]
    monkeypatch.setattr(prepare_speech, "VOICES", {"robot": voice, "android": voice})
    prepare_speech.prepare(["robot", "android"], 3 / 3600, tmp_path, tmp_path, 1)
    rows = load_dataset(str(tmp_path), split="train")
    texts = {name: {row["text"] for row in rows if row["speaker"] == name} for name in ("robot", "android")}
    assert len(texts["robot"]) == len(texts["android"]) == 8 and not texts["robot"] & texts["android"]
    held_out = load_dataset(str(tmp_path), split="test")
    assert not set(held_out["text"]) & set(rows["text"])


def test_what_is_there_already_is_not_said_again(calls, tmp_path):
    prepare_speech.prepare(["robot"], 3 / 3600, tmp_path, tmp_path, 1)
    said = len(calls)
    (tmp_path / "data" / "robot" / "train-00001.parquet").unlink()
    prepare_speech.prepare(["robot"], 3 / 3600, tmp_path, tmp_path, 1)
    assert len(calls) == said + 4
    prepare_speech.prepare(["robot"], 4 / 3600, tmp_path, tmp_path, 1)
    assert len(calls) == said + 8
    shards = sorted((tmp_path / "data" / "robot").glob("train-*"))
    assert [pq.read_metadata(shard).num_rows for shard in shards] == [4, 4, 4]


def test_speech_that_is_added_later_is_read_as_well(calls, tmp_path):
    for hours, rows in ((3 / 3600, 8), (6 / 3600, 16)):
        prepare_speech.prepare(["robot"], hours, tmp_path, tmp_path, 1)
        assert len(load_dataset(str(tmp_path), split="train")) == rows


def test_words_may_be_said_in_place_of_sentences(calls, tmp_path):
    prepare_speech.prepare(["robot"], 1 / 3600, tmp_path, tmp_path, 1, texts="words")
    assert all(text.startswith("Four") for text in load_dataset(str(tmp_path), split="train")["text"])
