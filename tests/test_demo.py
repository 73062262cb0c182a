import numpy as np
import soundfile
from f3_training import demo
from tiny import noise, tiny_audio_lm, tiny_feature_extractor, tiny_flow_config, tiny_model, tiny_processor


def test_demo_writes_sound_of_the_same_length_and_a_picture(tmp_path, capsys):
    tiny_model(sampling_rate=16_000).save_pretrained(tmp_path / "model")
    tiny_feature_extractor().__class__(sampling_rate=16_000).save_pretrained(tmp_path / "model")
    (tmp_path / "out").mkdir()
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


def test_demo_counts_the_words_that_are_wrong_and_writes_what_is_said(tmp_path, capsys):
    model = tiny_audio_lm(tmp_path, flow_config=tiny_flow_config())
    soundfile.write(tmp_path / "some.wav", 0.1 * noise(400).numpy(), 800)
    text = demo.transcribe(model, tiny_processor(), tmp_path / "some.wav", "one two")
    assert f"heard in some.wav: {text}" in capsys.readouterr().out

    judged = []
    heard = demo.speak(model, tiny_processor(), "one two", lambda *given: judged.append(given) or "one three", tmp_path)
    ((samples, language),) = judged
    assert heard == "one three" and language == "en"
    assert len(samples) == 20 * soundfile.info(tmp_path / "spoken.wav").frames  # 800 to 16,000 Hz
    printed = capsys.readouterr().out
    assert "word error rate 50 % (1 of 2 words)" in printed and "ended by" in printed
    assert (tmp_path / "spoken.png").stat().st_size > 1000
