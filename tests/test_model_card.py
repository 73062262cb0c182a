import json
from pathlib import Path

import numpy as np
import pytest
import torch
from f3_training.model_card import (
    RECORD,
    model_card,
    training_section,
    write_card,
    write_weights,
)
from f3_training.tokenizer_picture import draw
from modeling_f3 import F3AudioLMForConditionalGeneration, F3AutoencoderModel, F3ForPreTraining, F3Model, F3Processor
from safetensors.torch import load_file, save_file
from tiny import noise, tiny_audio_lm, tiny_feature_extractor, tiny_model, tiny_processor, tiny_tokenizer


TRAINING = {
    "arguments": {"batch_size": 8, "crop_seconds": 1.28, "init_from": None, "seed": 0},
    "steps": 70,
    "processes": 1,
    "minutes": 12.4,
    "cores": 2,
    "processor": "x86_64",
    "history": [{"step": 50, "minutes": 9.0, "mel": 0.5}, {"step": 70, "minutes": 12.4, "mel": 0.25, "pesq": 1.5}],
}
STAGE = {
    "arguments": {"max_steps": 4, "sources": None},
    "steps": 4,
    "processor": "x86_64",
    "cores": 2,
    "history": [
        {"step": 0, "minutes": 0.0, "audio_hours": 0.0, "code_ce_1": 2.5},
        {"step": 4, "minutes": 3.0, "audio_hours": 2.0, "code_ce_1": 1.25, "text_ce": 3.0},
    ],
}


def test_published_weights_take_half_the_room_and_load_in_fp32(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "trained")
    tiny_feature_extractor().save_pretrained(tmp_path / "trained")
    write_weights([tmp_path / "trained"], tmp_path / "published")
    stored = load_file(tmp_path / "published" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    published = F3AutoencoderModel.from_pretrained(tmp_path / "published").eval()
    assert {parameter.dtype for parameter in published.parameters()} == {torch.float32}
    audio = noise(1, 1, 800)
    torch.testing.assert_close(published.encode(audio).latents, model.encode(audio).latents, atol=2e-2, rtol=0)
    assert (tmp_path / "published" / "preprocessor_config.json").is_file()


def test_training_figures_come_from_the_record_and_gaps_stay_empty():
    text = training_section(TRAINING)
    assert "70 steps of 10.2 s" in text and "12 minutes" in text
    assert "| 50 | 9 | 0.500 |  |" in text and "| 70 | 12 | 0.250 | 1.500 |" in text


def test_the_card_of_an_autoencoder_has_hub_metadata_and_takes_reports_whole(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    text = model_card(tmp_path, [TRAINING, TRAINING], ["# Reconstruction\n\n## speech\n", "# Speed\n"], "Note.")
    assert text.startswith("---\nlibrary_name: transformers\nlicense: apache-2.0")
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Use", "## Training", "## Reconstruction", "## Speed", "## Limits",
    ]  # fmt: skip
    size = sum(weight.numel() for weight in model.parameters())
    assert "### speech" in text and "Note." in text and f"{size / 1e6:.2f} M parameters" in text


def test_cards_of_tokenizer_and_audio_language_model_take_reports_whole(tmp_path):
    tiny_tokenizer(F3ForPreTraining).save_pretrained(tmp_path / "tokenizer")
    tiny_audio_lm(tmp_path / "parts").save_pretrained(tmp_path / "speaker")
    for folder in ("tokenizer", "speaker"):
        text = model_card(tmp_path / folder, [STAGE, STAGE], ["# Probing\n\n| task |\n\n## More", "# Speech\n"])
        assert [line for line in text.splitlines() if line.startswith("## ")] == [
            "## Use", "## Training", "## Probing", "## Speech", "## Limits",
        ]  # fmt: skip
        assert "### More" in text and '`{"max_steps": 4}`' in text
        assert "| 0 | 0 | 0.0 | 2.500 |  |" in text and "| 4 | 3 | 2.0 | 1.250 | 3.000 |" in text
        assert "in 3 minutes (40 times real time) on 2 cores" in text
        assert "times real time) on one H100." in model_card(tmp_path / folder, [{**STAGE, "accelerator": "H100"}], [])


def test_a_card_can_be_written_again_with_one_report_more(tmp_path):
    tiny_tokenizer(F3ForPreTraining).save_pretrained(tmp_path)
    first, second, runs = tmp_path / "results" / "first.md", tmp_path / "second.md", tmp_path / "training.json"
    (tmp_path / "results").mkdir()
    runs.write_text(json.dumps({**STAGE, "steps": 4}))
    first.write_text("# Probing\n\n44.6\n\n![curve](curve.png)\n")
    (tmp_path / "results" / "curve.png").write_bytes(b"a picture")
    second.write_text("# Codes\n\n1.30\n")
    write_card(tmp_path, [runs], [first, second], "It took two runs.")
    written = (tmp_path / "README.md").read_text()
    write_card(tmp_path, [], [], "")
    assert (tmp_path / "README.md").read_text() == written and "It took two runs." in written
    assert (tmp_path / "curve.png").read_bytes() == b"a picture"
    first.write_text("# Probing\n\n46.7\n\n![curve](curve.png)\n")
    runs.write_text(json.dumps({**STAGE, "steps": 5}))
    write_card(tmp_path, [runs], [first], "It took three.")
    again = (tmp_path / "README.md").read_text()
    assert again.index("4 steps on") < again.index("5 steps on") < again.index("It took three.")
    assert again.split("## Probing")[1] == written.replace("44.6", "46.7").split("## Probing")[1]


@pytest.mark.parametrize("name", ["f3-autoencoder-nano-16khz", "f3-nano-16khz", "f3-audio-lm-nano-16khz"])
def test_a_published_card_says_what_its_record_says(name):
    folder = Path(__file__).parents[1] / "model_cards" / name
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    assert model_card(folder, **record) == (folder / "README.md").read_text(encoding="utf-8")


def test_the_picture_is_of_what_the_model_makes_and_the_card_shows_it(tmp_path):
    model, samples = tiny_tokenizer(F3Model), noise(1600).numpy()
    figure = draw(model, samples)
    _, latents, representations, _ = (np.asarray(axis.images[0].get_array()) for axis in figure.axes)
    encoded = model.encode(torch.from_numpy(samples)[None, None])
    np.testing.assert_allclose(latents, encoded.latents[0].T, atol=1e-6)
    np.testing.assert_allclose(representations, encoded.last_hidden_state[0].detach().T, atol=1e-6)
    model.save_pretrained(tmp_path)
    assert "](tokenizer.png)" not in model_card(tmp_path, [], [])
    figure.savefig(tmp_path / "tokenizer.png")
    assert "](tokenizer.png)" in model_card(tmp_path, [], [])


def test_published_weights_of_every_kind_load_again(tmp_path):
    tokenizer = tiny_tokenizer(F3ForPreTraining)
    tokenizer.save_pretrained(tmp_path / "0")
    tiny_feature_extractor().save_pretrained(tmp_path / "0")
    speaker = tiny_audio_lm(tmp_path / "parts")
    speaker.save_pretrained(tmp_path / "1")
    tiny_processor().save_pretrained(tmp_path / "1")
    for name, model_class, model in (
        ("0", F3ForPreTraining, tokenizer),
        ("1", F3AudioLMForConditionalGeneration, speaker),
    ):
        write_weights([tmp_path / name], tmp_path / f"published-{name}")
        loaded = model_class.from_pretrained(tmp_path / f"published-{name}")
        for key, tensor in model.state_dict().items():
            torch.testing.assert_close(loaded.state_dict()[key], tensor, atol=2e-3, rtol=2e-3)
    assert isinstance(F3Processor.from_pretrained(tmp_path / "published-1"), F3Processor)


def test_of_several_trained_folders_the_mean_is_published(tmp_path):
    for seed in (0, 1):
        tiny_model(seed).save_pretrained(tmp_path / str(seed))
    write_weights([tmp_path / "0", tmp_path / "1"], tmp_path / "mean")
    mean = F3AutoencoderModel.from_pretrained(tmp_path / "mean").state_dict()
    first, second = (tiny_model(seed).state_dict() for seed in (0, 1))
    assert any(not torch.equal(first[name], second[name]) for name in mean)
    for name, weight in mean.items():
        torch.testing.assert_close(weight, (first[name] + second[name]) / 2, atol=2e-3, rtol=2e-3)


def test_a_decoder_of_the_same_latents_takes_the_place_of_the_models(tmp_path):
    other = tiny_model()
    with torch.no_grad():
        other.decoder.head.weight.add_(1)
    other.save_pretrained(tmp_path / "other")
    tokenizer = tiny_tokenizer(F3ForPreTraining)
    tokenizer.model.autoencoder.load_state_dict(tiny_model().state_dict())
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    write_weights([tmp_path / "tokenizer"], tmp_path / "published", decoder=tmp_path / "other")
    published = F3ForPreTraining.from_pretrained(tmp_path / "published").state_dict()
    for name, tensor in tokenizer.state_dict().items():
        wanted = tensor + 1 if name == "model.autoencoder.decoder.head.weight" else tensor
        torch.testing.assert_close(published[name], wanted, atol=2e-3, rtol=2e-3)
    tiny_model(seed=1).save_pretrained(tmp_path / "stranger")
    with pytest.raises(ValueError, match="stranger has another encoder"):
        write_weights([tmp_path / "tokenizer"], tmp_path / "refused", decoder=tmp_path / "stranger")
    assert not (tmp_path / "refused").exists()


def test_a_published_adapter_has_16_bits_and_the_language_model_its_name_on_the_hub(tmp_path):
    speaker = tiny_audio_lm(tmp_path / "parts")
    speaker.save_pretrained(tmp_path / "trained")
    save_file({"lora_A.weight": torch.ones(2, 2)}, tmp_path / "trained" / "adapter_model.safetensors")
    write_weights([tmp_path / "trained"], tmp_path / "published", language_model="someone/language-model")
    assert load_file(tmp_path / "published" / "adapter_model.safetensors")["lora_A.weight"].dtype == torch.float16
    config = json.loads((tmp_path / "published" / "config.json").read_text())
    trained = json.loads((tmp_path / "trained" / "config.json").read_text())
    assert config == {**trained, "text_model_name_or_path": "someone/language-model"}
