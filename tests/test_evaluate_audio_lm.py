"""Promises of the two evaluations of the audio language model: honest counts, and figures that can be made again."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from f3_training import evaluate_speech as speech_module
from f3_training.audio_dataset import AudioDatasetError
from f3_training.evaluate_speech import cosine, evaluate_speech, mean_embedding
from f3_training.evaluate_speech import means as speech_means
from f3_training.evaluate_transcription import build_parser as transcription_parser
from f3_training.evaluate_transcription import evaluate_transcription, texts_in, transcripts
from f3_training.judges import Judges
from f3_training.reconstruction_metrics import UndefinedScoreError
from peft import LoraConfig
from tiny import noise, tiny_audio_lm, tiny_flow_config, tiny_model, tiny_processor, write_latents


TEXTS = ("one two", "three", "four five six")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that speaks, sentences in a voice, and their latents."""
    root = tmp_path_factory.mktemp("evaluation")
    model = tiny_audio_lm(root, flow_config=tiny_flow_config())
    model.audio_model.autoencoder.load_state_dict(tiny_model().state_dict())
    with torch.no_grad():
        model.flow_head.velocity.weight.normal_()  # a new one starts at zero, whatever its conditions
    model.save_pretrained(root / "speaker")
    tiny_processor().save_pretrained(root / "speaker")
    rows = [
        {"kind": "speech", "language": "en", "text": text, "caption": "", "source": source, "duration": 0.5 + index}
        for source in ("joe", "ann")
        for index, text in enumerate(TEXTS)
    ]
    samples = [noise(400 + 100 * (index % 3), seed=index).numpy() for index in range(len(rows))]
    write_latents(root, tiny_model(), {"test": [{**row, "audio": wave} for row, wave in zip(rows, samples)]})
    return root


def test_the_word_error_rate_is_that_of_the_answers(folder, tmp_path, monkeypatch):
    answers = {"one two": "one", "three": "three", "four five six": "four five six seven eight"}
    monkeypatch.setattr(
        "f3_training.evaluate_transcription.transcripts",
        lambda model, processor, rows, language, num_beams: [answers[row["text"]] for row in rows],
    )
    report = evaluate_transcription(arguments_of_transcription(folder, tmp_path))
    assert report["all"] == {"items": 6, "words": 12, "errors": 6, "wer": 0.5}
    assert report["sources"]["joe"]["errors"] == 3 == report["sources"]["ann"]["errors"]
    assert "| joe | 3 | 6 | 50.0 |" in (tmp_path / "transcription.md").read_text()
    records = [json.loads(line) for line in (tmp_path / "transcription.jsonl").read_text().splitlines()]
    assert {record["text"]: record["written"] for record in records} == answers
    assert str(folder) not in (tmp_path / "transcription.json").read_text()


def test_the_frozen_language_model_writes_without_the_adapter(tmp_path, folder, monkeypatch):
    model = tiny_audio_lm(tmp_path)
    ids = torch.tensor([[70, 71, 72]])
    before = model.language_model(ids).logits
    model.add_adapter(LoraConfig(target_modules=r"language_model\..*q_proj", r=2, init_lora_weights=False))
    model.save_pretrained(tmp_path / "speaker")
    tiny_processor().save_pretrained(tmp_path / "speaker")
    seen = []

    def look(model, processor, rows, language, num_beams):
        seen.append(model.language_model(ids).logits)
        return [row["text"] for row in rows]

    monkeypatch.setattr("f3_training.evaluate_transcription.transcripts", look)
    for more in ([], ["--frozen_language_model"]):
        options = ["--model", tmp_path / "speaker", "--datasets", folder / "dataset", "--output_dir", tmp_path, *more]
        evaluate_transcription(transcription_parser().parse_args([str(option) for option in options]))
    assert (seen[0] - before).abs().max() > 1e-3
    torch.testing.assert_close(seen[-1], before)
    assert "frozen language model" in (tmp_path / "transcription.md").read_text()


def arguments_of_transcription(folder, output, *more: str):
    options = ["--model", folder / "speaker", "--datasets", folder / "dataset", "--output_dir", output, *more]
    return transcription_parser().parse_args([str(option) for option in options])


def test_answers_do_not_depend_on_the_batch(folder):
    model = tiny_audio_lm(folder / "again", flow_config=tiny_flow_config())
    rows = texts_in(str(folder / "dataset"), arguments_of_transcription(folder, folder))
    assert [row["duration"] for row in rows] == sorted(row["duration"] for row in rows) and len(rows) == 6
    rows = list(rows)[:2]
    together = transcripts(model, tiny_processor(), rows, "en", 3)
    alone = transcripts(model, tiny_processor(), rows[:1], "en", 3)[0]  # the shorter one may say less
    assert len(alone) > 3 and together[0][: len(alone) - 1] == alone[:-1]


def test_every_source_has_its_share_of_the_recordings(folder):
    rows = texts_in(str(folder / "dataset"), arguments_of_transcription(folder, folder, "--max_items", "1"))
    assert sorted(rows["source"]) == ["ann", "joe"]


def test_a_dataset_without_texts_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="has a text in 'cs'"):
        evaluate_transcription(arguments_of_transcription(folder, tmp_path, "--language", "cs"))
    with pytest.raises(AudioDatasetError):
        evaluate_transcription(arguments_of_transcription(folder, tmp_path, "--split", "dev"))


def test_speech_is_judged_by_what_is_heard(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(speech_module, "STEPS", (1, 2))
    monkeypatch.setattr(speech_module, "SCALES", (1.0, 2.0))
    monkeypatch.setattr(speech_module, "LENGTHS", (1, 2, 3))
    judges = Judges(
        transcribe=lambda samples, language: "one two three",
        embed_speaker=lambda samples: np.array([1.0, 0.0]),
        predict_mos=lambda samples: 3.5,
    )
    parser = speech_module.build_parser()
    options = {"model": "speaker", "dataset": "dataset", "latents": "latents"}
    given = [part for name, value in options.items() for part in (f"--{name}", str(folder / value))]
    given += ["--voice", "joe", "--max_items", "2", "--grid_items", "1", "--output_dir", str(tmp_path)]
    report = evaluate_speech(parser.parse_args(given), judges)
    default = report["default"]
    assert default["wer"] == pytest.approx((1 + 2) / 3)  # against "one two" and "three"
    assert default["mos"] == 3.5 and default["similarity"] == pytest.approx(1.0)
    references = report["references"]
    assert references.keys() == {"recordings", "recordings, encoded and decoded"}
    assert all(part["wer"] == default["wer"] and "stopped" not in part for part in references.values())
    assert [(row["steps"], row["guidance"]) for row in report["grid"]] == [(1, 1.0), (1, 2.0), (2, 1.0), (2, 2.0)]
    assert 0 < report["first_sound"]["seconds"] <= report["first_sound"]["longest"]
    lengths = report["by_length"]
    assert [row["sentences"] for row in lengths] == [1, 2]  # there are no three
    assert all(row["real_time_factor"] > 0 and row["seconds"] > 0 for row in lengths)
    losses = report["flow_loss"]
    assert losses.keys() == {"all", "without hidden state", "without representation", "without previous patch"}
    assert len(set(losses.values())) > 1
    assert (tmp_path / "0.wav").is_file() and "DistillMOS" in (tmp_path / "speech.md").read_text()
    with pytest.raises(ValueError, match="no row has the source 'eve': there are ann, joe"):
        evaluate_speech(parser.parse_args([*given, "--voice", "eve"]), judges)


def test_recordings_are_judged_beside_what_the_autoencoder_makes_of_them(folder):
    rows = speech_module.of_voice(speech_module.load_audio_dataset(folder / "dataset", "test"), "joe")
    model = tiny_audio_lm(folder / "third", flow_config=tiny_flow_config())
    original, decoded = speech_module.recordings_of(model, rows).values()
    assert [text for _, text in original] == list(TEXTS) == [text for _, text in decoded]
    for (samples, _), (through, _) in zip(original, decoded):
        encoded = model.audio_model.autoencoder.encode(samples[None, None])
        expected = model.audio_model.autoencoder.decode(**encoded).audio_values[0, 0]
        assert samples.shape == through.shape and torch.equal(through, expected)


def test_means_leave_out_what_could_not_be_judged_and_say_so():
    common = {"seconds": 2.0, "model_seconds": 1.0, "errors": 1, "words": 4, "mos": 3.0}
    records = [
        {**common, "similarity": 0.8, "finish_reason": "stop"},
        {**common, "similarity": None, "finish_reason": "length"},
    ]
    found = speech_means(records)
    assert found["similarity"] == 0.8 and found["without_similarity"] == 1 and found["stopped"] == 0.5
    assert found["wer"] == 0.25 and found["real_time_factor"] == 0.5

    def embed(samples):
        if len(samples) < 2:
            raise UndefinedScoreError("too short")
        return samples

    assert cosine(mean_embedding([np.ones(1), np.ones(3)], embed), np.ones(3)) == pytest.approx(1.0)


def test_what_is_taken_away_is_missing(folder):
    model = tiny_audio_lm(folder / "other", flow_config=tiny_flow_config())
    with torch.no_grad():
        model.flow_head.velocity.weight.normal_()
    seen = []
    original = model.flow_head.forward

    def forward(*inputs, **options):
        seen.append(options["has_condition"])
        return original(*inputs, **options)

    model.flow_head.forward = forward
    row = {
        "kind": "speech",
        "language": "en",
        "text": "hi",
        "caption": "",
        "frames": 12,
        "latents": noise(12, 4).numpy(),
    }
    rows = Dataset.from_list([{**row, "latents": row["latents"].tolist()}])
    losses = speech_module.flow_losses(model.eval(), tiny_processor(), rows)
    assert bool(seen[0].any()) and not bool(seen[1].any())
    assert losses["all"] != losses["without hidden state"]
    assert not model.flow_head._forward_pre_hooks
