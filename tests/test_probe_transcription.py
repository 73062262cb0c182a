"""Promises of the transcription probe: only a connector learns, and all features get the same chance."""

import json

import pytest
import torch
from datasets import Dataset
from f3_training import evaluate_transcription
from f3_training import probe_transcription as probe_module
from f3_training.probe_transcription import accuracy, build_parser, probe_transcription, with_new_connector
from f3_training.reconstruction_metrics import word_errors
from modeling_f3 import F3ForPreTraining, F3Model
from tiny import noise, saved_parts, tiny_model, tiny_tokenizer, write_latents


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Latents of a little speech, a language model, and two tokenizers, one of them without heads of RQ-MTP."""
    root = tmp_path_factory.mktemp("reading")
    row = {"kind": "speech", "language": "en", "caption": "", "source": "game"}
    rows = [{**row, "text": ("yes", "no")[index % 2], "audio": noise(400, seed=index).numpy()} for index in range(8)]
    write_latents(root, tiny_model(), {"train": rows, "validation": rows[:4]})
    saved_parts(root)
    for name, model_class, seed in (("first", F3ForPreTraining, 1), ("second", F3Model, 2)):
        model = tiny_tokenizer(model_class, seed=seed)
        getattr(model, "model", model).autoencoder.load_state_dict(tiny_model().state_dict())
        model.save_pretrained(root / name)
    return root


def arguments_for(folder, output_dir, *more):
    options = {
        "features": [f"one={folder / 'first'}", f"two={folder / 'second'}"], "latents": [folder / "latents"],
        "datasets": ["game"], "language_model": [folder / "language-model"], "output_dir": [output_dir],
        "max_steps": [10], "batch_size": [4], "evaluation_items": [4],
    }  # fmt: skip
    command = [str(part) for name, values in options.items() for part in (f"--{name}", *values)]
    return build_parser().parse_args([*command, "--no-bf16", *more])


@pytest.fixture
def judged(monkeypatch):
    """The models that are asked for transcripts, each of which gets one word of three wrong more than the one before."""
    asked = []
    rows = Dataset.from_list([{"source": "game", "text": "one two three"}])
    monkeypatch.setattr(evaluate_transcription, "texts_in", lambda path, arguments: rows)

    def transcripts(model, processor, batch, language, num_beams):
        asked.append(model)
        return [" ".join(["one", "two", "three"][len(asked) - 1 :])]

    monkeypatch.setattr(evaluate_transcription, "transcripts", transcripts)
    return asked


def test_nothing_but_the_connector_learns_and_all_features_have_a_row(folder, tmp_path, judged):
    arguments = arguments_for(folder, tmp_path)
    before = {name: with_new_connector(name, path, arguments)[0].state_dict() for name, path in arguments.features}
    report = probe_transcription(arguments)
    assert list(report["features"]) == ["z", "one", "two"] and len(judged) == 3
    for (name, _), model in zip(arguments.features, judged[1:]):
        changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[name][key])}
        assert changed and all(key.startswith("connector.") for key in changed)
        fresh = F3Model.from_pretrained(dict(arguments.features)[name]).encoder.state_dict()
        assert all(torch.equal(model.audio_model.encoder.state_dict()[key], value) for key, value in fresh.items())
    assert [accuracy(found) for found in report["features"].values()] == pytest.approx([1, 2 / 3, 1 / 3])
    assert "| two | 66.7 | 33.3 |" in (tmp_path / "transcription_probe.md").read_text()
    assert str(folder) not in (tmp_path / "transcription_probe.json").read_text()


def test_the_loss_of_texts_is_that_after_the_last_step(folder, tmp_path, judged):
    report = probe_transcription(arguments_for(folder, tmp_path))
    for name, found in report["features"].items():
        last = json.loads((tmp_path / name / "connector" / "training.json").read_text())["history"][-1]
        assert (
            found["text_loss"] == {"own": last["text_ce"], "swapped": last["text_ce_swapped"]} and last["text_ce"] > 0
        )
        row = next(
            line for line in (tmp_path / "transcription_probe.md").read_text().splitlines() if f"| {name} |" in line
        )
        assert row.endswith(f"| {last['text_ce']:.3f} | {last['text_ce_swapped']:.3f} |")


def test_connectors_begin_alike_and_learn_equally_long(folder, tmp_path, judged):
    arguments = arguments_for(folder, tmp_path)
    connectors = [with_new_connector(name, path, arguments)[0].connector for name, path in arguments.features]
    for one, other in zip(*(connector.state_dict().items() for connector in connectors)):
        assert torch.equal(one[1], other[1]), one[0]
    probe_transcription(arguments)
    steps = [
        json.loads((tmp_path / name / "connector" / "training.json").read_text())["steps"]
        for name in ("z", "one", "two")
    ]
    assert steps == [10] * 3


def test_the_row_of_the_latents_reads_no_encoder(folder, tmp_path):
    arguments = arguments_for(folder, tmp_path)
    model, _ = with_new_connector("z", arguments.features[0][1], arguments)
    latents = torch.randn(1, 6, 4)
    assert torch.equal(model.audio_model.encode(latents=latents).last_hidden_state, latents)


def test_a_probe_that_was_stopped_does_not_begin_again(folder, tmp_path, judged, monkeypatch):
    whole = probe_transcription(arguments_for(folder, tmp_path))
    (tmp_path / "transcription_probe.json").unlink()
    monkeypatch.setattr(probe_module, "teach", lambda *_: pytest.fail("trained once more"))
    assert probe_transcription(arguments_for(folder, tmp_path)) == whole


def test_what_was_read_under_other_conditions_is_not_taken_for_done(folder, tmp_path, judged):
    probe_transcription(arguments_for(folder, tmp_path))
    with pytest.raises(ValueError, match="was read with another max_items, seed: choose another --output_dir"):
        probe_transcription(arguments_for(folder, tmp_path, "--max_items", "3", "--seed", "1"))


def test_no_features_take_the_name_of_the_latents(folder, tmp_path):
    arguments = arguments_for(folder, tmp_path, "--features", f"z={folder / 'first'}")
    with pytest.raises(ValueError, match="'z' are the latents, which have a row anyway"):
        probe_transcription(arguments)


def test_writing_more_than_is_said_is_not_worse_than_writing_nothing():
    errors, words = word_errors("yes", "well I do not know what to say")
    assert errors > words and accuracy({"sources": {"game": {"errors": errors, "words": words}}}) == 0
