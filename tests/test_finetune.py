import io
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset, DatasetDict
from f3_training import finetune_classification, finetune_ctc
from tiny import noise, tiny_feature_extractor, tiny_tokenizer
from transformers import pipeline


def clip(pitch: float, seconds: float) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * pitch * np.arange(int(800 * seconds)) / 800)).astype(np.float32)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folders of a tokenizer and of a dataset of two sounds with names."""
    folder = tmp_path_factory.mktemp("parts")
    tiny_tokenizer().save_pretrained(folder / "model")
    tiny_feature_extractor().save_pretrained(folder / "model")
    rows = {name: [] for name in ("audio", "text", "kind", "language", "duration")}
    for index in range(16):
        samples = clip((50, 200)[index % 2] + index, 0.6 + 0.02 * index)
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, 800, format="FLAC")
        rows["audio"].append({"bytes": buffer.getvalue(), "path": f"{index}.flac"})
        rows["text"].append(("Ab!", "c d")[index % 2])
        rows["kind"].append(("low", "high")[index % 2])
        rows["language"].append("en")
        rows["duration"].append(len(samples) / 800)
    rows = Dataset.from_dict(rows).cast_column("audio", Audio(decode=False))
    DatasetDict(train=rows, validation=rows.select(range(4))).save_to_disk(folder / "dataset")
    return folder


def arguments(parts, output_dir, **values) -> SimpleNamespace:
    common = {"model": str(parts / "model"), "dataset": str(parts / "dataset"), "output_dir": output_dir}
    return SimpleNamespace(**{**common, "batch_size": 8, "learning_rate": 1e-2, "max_seconds": 2.0, **values})


def test_a_tokenizer_learns_to_classify_and_the_pipeline_takes_the_result(parts, tmp_path):
    run = arguments(parts, tmp_path, label_column="kind", max_steps=25)
    assert finetune_classification.finetune(run)["eval_accuracy"] == 1.0
    classify = pipeline("audio-classification", model=str(tmp_path / "model"))
    best = classify({"raw": clip(205, 0.8), "sampling_rate": 800})[0]
    assert best["label"] == "high"


def test_a_tokenizer_learns_to_transcribe_and_the_pipeline_takes_the_result(parts, tmp_path):
    run = arguments(parts, tmp_path, language="en", max_steps=350, learning_rate=5e-3)
    assert finetune_ctc.finetune(run)["eval_loss"] < 0.3
    transcribe = pipeline("automatic-speech-recognition", model=str(tmp_path / "model"))
    assert transcribe({"raw": clip(205, 0.7), "sampling_rate": 800})["text"] == "c d"
    assert transcribe(clip(54, 0.68))["text"] == "ab"


def test_texts_that_audio_has_no_frames_for_are_left_out():
    rows = Dataset.from_dict(
        {
            "audio": ["", "", "", ""],
            "text": ["ok", "far too long", "", "ok"],
            "duration": [0.4, 0.4, 0.4, 9.0],
            "language": ["en"] * 4,
        }
    )
    assert len(finetune_ctc.transcribed(rows, "en", 25, 5.0)) == 1
    assert len(finetune_ctc.transcribed(rows, "fr", 25, 5.0)) == 0


def test_labels_stop_where_the_text_stops(parts, tmp_path):
    tokenizer = finetune_ctc.letters(["a b", "abc"], tmp_path)
    rows = [{"audio": {"array": noise(800).numpy(), "sampling_rate": 800}, "text": text} for text in ("a", "abc")]
    buffer = []
    for row in rows:
        stream = io.BytesIO()
        soundfile.write(stream, row["audio"]["array"], 800, format="FLAC")
        buffer.append({"audio": {"bytes": stream.getvalue(), "path": "x"}, "text": row["text"]})
    labels = finetune_ctc.CTCCollator(tiny_feature_extractor(), tokenizer)(buffer)["labels"]
    assert labels.tolist() == [[3, -100, -100], [3, 4, 5]] and tokenizer.pad_token_id == 0
    assert labels.dtype == torch.int64
