import numpy as np
import soundfile
from f3_training import demo
from tiny import tiny_feature_extractor, tiny_model


def test_demo_writes_sound_of_the_same_length_and_a_picture(tmp_path, capsys):
    tiny_model(sampling_rate=16_000).save_pretrained(tmp_path / "model")
    tiny_feature_extractor().__class__(sampling_rate=16_000).save_pretrained(tmp_path / "model")
    scores = demo.reconstruct(tmp_path / "model", demo.RECORDING, tmp_path / "out")
    original, rate = soundfile.read(tmp_path / "out" / "original.wav")
    reconstructed, _ = soundfile.read(tmp_path / "out" / "reconstructed.wav")
    assert rate == 16_000 and len(original) == len(reconstructed) and np.abs(original).max() > 0.1
    assert (tmp_path / "out" / "spectrogram.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "PESQ-wb" in printed and "Opus 12 kbit/s" in printed
    assert scores["Opus 12 kbit/s"]["stoi"]["mean"] > 0.95


def test_the_embedded_checkpoint_reconstructs_a_recording_it_was_not_trained_on(tmp_path):
    scores = demo.reconstruct(demo.CHECKPOINT, demo.RECORDING, tmp_path)["F3"]
    assert scores["stoi"]["mean"] > 0.85 and scores["pesq"]["mean"] > 1.3
