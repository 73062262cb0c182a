"""Promises of the evaluation command: aligned references, honest counts, reproducible figures."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from f3_training.evaluate_reconstruction import Item, build_parser, evaluate_dataset, evaluate_item
from f3_training.judges import Judges
from f3_training.opus_reference import align, opus_round_trip
from f3_training.reconstruction_report import means
from test_metrics import RATE, noise, voice
from tiny import tiny_model


JUDGES = Judges(
    transcribe=lambda samples, language: "one two three" if len(samples) > RATE else "one",
    embed_speaker=lambda samples: np.array([1.0, np.abs(samples).mean()]),
    predict_mos=lambda samples: 3.0,
)


class Identity:
    """Stands for a perfect model: its latents are the samples."""

    config = SimpleNamespace(sampling_rate=RATE)
    device = torch.device("cpu")

    def encode(self, input_values):
        return SimpleNamespace(latents=input_values, latents_mask=None, audio_lengths=None)

    def decode(self, latents, latents_mask, audio_lengths):
        return SimpleNamespace(audio_values=latents)


def item(samples, **known) -> Item:
    defaults = {"name": "x", "kind": "speech", "source": "s", "language": "en", "text": ""}
    return Item(samples=samples, **(defaults | known))


@pytest.mark.parametrize("rate, bit_rate", [(16_000, 6_000), (16_000, 12_000), (24_000, 12_000), (22_050, 6_000)])
def test_opus_comes_back_aligned_and_as_long_at_about_the_rate_asked_for(rate, bit_rate):
    samples = voice(4.0)[: 3 * rate + 7]
    decoded, bits = opus_round_trip(samples, rate, bit_rate)
    assert decoded.shape == samples.shape
    correlations = [np.corrcoef(samples[10:-10], np.roll(decoded, shift)[10:-10])[0, 1] for shift in range(-8, 9)]
    assert np.argmax(correlations) == 8 and correlations[8] > 0.9
    assert 0.5 * bit_rate < bits / (len(samples) / rate) < 1.2 * bit_rate  # variable: half of this voice is silence


@pytest.mark.parametrize("samples", [10, 700])
def test_opus_takes_clips_shorter_than_its_frame(samples):
    assert opus_round_trip(voice()[4000 : 4000 + samples], RATE, 12_000)[0].shape == (samples,)


@pytest.mark.parametrize("shift", [-5, 0, 5])
def test_alignment_takes_a_shift_out(shift):
    reference = noise(np.zeros(1000), 1.0)
    aligned = align(np.roll(reference, shift), reference, max_shift=8)
    assert np.array_equal(aligned[10:-10], reference[10:-10]) and len(aligned) == 1000


def test_a_perfect_model_gets_perfect_scores_and_the_word_errors_of_the_original():
    record, systems = evaluate_item(Identity(), item(voice(), text="One two."), JUDGES, [0.0, 0.1], seed=0)
    scores = record["scores"]["F3"]
    assert scores["pesq"] > 4.5 and scores["si_sdr"] > 99 and scores["multi_scale_mel"] == 0
    assert scores["speaker_similarity"] == pytest.approx(1)
    assert scores["stft_phase_error"] < 1e-6 < record["scores"]["Opus 6 kbit/s"]["stft_phase_error"]
    assert record["words"] == 2 and set(record["word_errors"].values()) == {1}
    assert set(record["scores"]["original"]) == {"distill_mos"}
    assert all(samples.shape == voice().shape for samples in systems.values())


def test_the_noise_curve_starts_at_the_reconstruction_and_falls():
    record, _ = evaluate_item(Identity(), item(voice()), Judges(), [0.0, 0.01, 0.1], seed=0)
    curve = [(point["alpha"], point["pesq"], point["stoi"]) for point in record["noise"]]
    assert curve[0] == (0.0, record["scores"]["F3"]["pesq"], record["scores"]["F3"]["stoi"])
    assert curve[0][1] > curve[1][1] > curve[2][1] and curve[0][2] > curve[1][2] > curve[2][2]


def test_music_gets_no_speech_scores_and_only_english_text_is_transcribed():
    record, _ = evaluate_item(Identity(), item(voice(), kind="music", text="one"), JUDGES, [0.1], seed=0)
    assert set(record["scores"]["F3"]) == {"si_sdr", "multi_scale_mel", "stft_phase_error"}
    assert record["noise"] == [] and record["word_errors"] == {}
    record, _ = evaluate_item(Identity(), item(voice(), language="cs", text="jedna"), JUDGES, [], seed=0)
    assert record["word_errors"] == {} and record["scores"]["F3"]["distill_mos"] == 3.0


def test_scores_that_are_not_defined_are_counted_and_not_averaged():
    samples = [voice(), voice(1.0, seed=1), voice()[3000:3500], np.zeros(RATE, dtype=np.float32)]
    records = [evaluate_item(Identity(), item(wave), JUDGES, [], seed=0)[0] for wave in samples]
    pesq = means(records)["systems"]["F3"]["pesq"]
    assert pesq["items"] == 2 and pesq["mean"] > 4.5
    assert sum(pesq["undefined"].values()) == 2 and "the original is silent" in pesq["undefined"]


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "sounds"
    folder.mkdir()
    for index in range(3):
        soundfile.write(folder / f"{index}.wav", voice(1.0 + 0.2 * index, seed=index), RATE)
        (folder / f"{index}.txt").write_text("one two three")
    (folder / "broken.wav").write_bytes(b"RIFF, or not")
    return folder


def run(dataset, output, *options: str) -> dict:
    model = output.parent / "model"
    if not model.is_dir():
        # 800 Hz is too little for any metric of speech, so the tiny tables work at the usual rate
        tiny_model(sampling_rate=RATE).save_pretrained(model)
    arguments = ["--model", str(model), "--dataset", str(dataset), "--split", "train", "--output_dir", str(output)]
    return evaluate_dataset(build_parser().parse_args([*arguments, "--language", "en", *options]), JUDGES)


def test_the_report_is_the_mean_of_the_items_and_every_file_is_written(dataset, tmp_path):
    report = run(dataset, tmp_path / "out", "--noise_levels", "0", "0.5")
    assert report == json.loads((tmp_path / "out" / "metrics.json").read_text())
    records = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    speech = report["by_kind"]["speech"]
    assert len(records) == speech["items"] == 3
    assert report["conditions"]["items"] == 3 and report["conditions"]["skipped"] == {"not decodable": 1}
    for system in ("F3", "Opus 6 kbit/s", "Opus 12 kbit/s"):
        expected = np.mean([record["scores"][system]["stoi"] for record in records])
        assert speech["systems"][system]["stoi"]["mean"] == pytest.approx(expected)
    assert speech["systems"]["original"]["wer"] == {"mean": pytest.approx(200 / 9), "items": 3, "errors": 2, "words": 9}
    assert [point["alpha"] for point in report["noise"]] == [0, 0.5]
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| Opus 12 kbit/s |" in text and "| original |" in text and "1 not decodable" in text
    assert str(tmp_path) not in text + (tmp_path / "out" / "metrics.json").read_text()
    assert {"spectrograms.png", "noise.png"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_the_same_seed_gives_the_same_figures_and_another_seed_other_noise(dataset, tmp_path):
    first, again, other = (
        run(dataset, tmp_path / f"out{i}", "--noise_levels", "0.5", "--seed", seed) for i, seed in enumerate("001")
    )
    assert (first["by_kind"], first["noise"]) == (again["by_kind"], again["noise"])
    assert first["noise"] != other["noise"]


def test_max_items_limits_and_a_filter_that_leaves_nothing_is_an_error(dataset, tmp_path):
    (dataset / "broken.wav").unlink()
    assert run(dataset, tmp_path / "out", "--max_items", "2")["conditions"]["items"] == 2
    names = [f"{index}.wav" for index in range(3)]
    rows = "\n".join(["file_name,kind", f"{names[0]},music", *(f"{name},speech" for name in names[1:])])
    (dataset / "metadata.csv").write_text(rows + "\n")
    assert set(run(dataset, tmp_path / "out2", "--kind", "music")["by_kind"]) == {"music"}
    with pytest.raises(ValueError, match="nothing to evaluate"):
        run(dataset, tmp_path / "out3", "--kind", "effect")


@pytest.mark.parametrize("options", [["--max_items", "0"], ["--noise_levels", "-1"], ["--judges", "nobody"]])
def test_options_out_of_range_are_refused(options, capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["--model", "m", "--dataset", "d", "--output_dir", "o", *options])
    assert options[0] in capsys.readouterr().err
