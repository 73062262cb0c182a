from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from datasets import load_from_disk
from f3_training import align_words
from f3_training.align_words import LEAD, ends_of_words


def test_a_word_ends_where_the_attention_turns_to_the_next_one():
    path = [(0, 0), (0, 1), (1, 2), (1, 9), (2, 10), (2, 30), (3, 40), (3, 49)]  # token 3 is the end
    assert ends_of_words(path, [2, 1], 5.0) == pytest.approx([0.2 + LEAD, 0.8 + LEAD])
    assert ends_of_words(path, [2, 1], 0.7) == pytest.approx([0.2 + LEAD, 0.7])


class Whisper:
    """Hears each token for a fifth of a second."""

    model = SimpleNamespace(is_multilingual=True)
    feature_extractor = staticmethod(lambda samples: np.zeros((80, len(samples) // 160)))
    hf_tokenizer = SimpleNamespace(
        token_to_id=lambda token: 1, encode=lambda text, **_: SimpleNamespace(ids=list(text))
    )

    def __init__(self):
        self.model.align = lambda encoded, start, tokens, frames, **_: [
            SimpleNamespace(alignments=[(index, 10 * index) for index in range(len(tokens[0]) + 1)])
        ]

    def encode(self, features):
        assert features.shape == (80, 3000)


def test_a_folder_of_recordings_gets_the_ends_of_its_words(tmp_path, monkeypatch):
    monkeypatch.setattr(align_words, "load_whisper", Whisper)
    voice = tmp_path / "voice"
    voice.mkdir()
    for name, seconds in (("a", 4), ("b", 31), ("c", 1)):
        soundfile.write(voice / f"{name}.wav", np.zeros(8000 * seconds), 8000)
    (voice / "metadata.csv").write_text("file_name,said\na.wav,so be it\nb.wav,too long\nc.wav,\n")
    align_words.align_words(str(voice), tmp_path / "aligned", ["train"], "said", "en")
    rows = load_from_disk(tmp_path / "aligned")["train"]
    assert rows["said"][:2] == ["so be it", "too long"] and rows["word_ends"][1:] == [None, None]
    # " so", " be" and " it" have three letters each, which are the tokens here
    assert rows["word_ends"][0] == pytest.approx([0.6 + LEAD, 1.2 + LEAD, 1.8 + LEAD])
