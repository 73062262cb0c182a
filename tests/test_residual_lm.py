import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from modeling_f3 import F3AudioLMForConditionalGeneration
from tiny import noise, tiny_audio_lm, tiny_flow_config, tiny_processor, tiny_residual_config


@pytest.fixture
def model(tmp_path) -> F3AudioLMForConditionalGeneration:
    speaker = tiny_audio_lm(tmp_path, flow_config=tiny_flow_config(), residual_config=tiny_residual_config())
    torch.nn.init.normal_(speaker.flow_head.velocity.weight, std=0.3)
    return speaker


def spoken(model) -> torch.Tensor:
    options = {"max_new_patches": 4, "stop_threshold": 1.0, "generator": torch.Generator().manual_seed(0)}
    return model.generate(**tiny_processor().apply_speech_request("hi"), **options).latents[0]


def test_a_new_one_changes_nothing_that_is_said_until_it_has_learned(model):
    before = spoken(model)
    torch.nn.init.normal_(model.residual_lm.residual.weight, std=0.3)
    after = spoken(model)
    model.residual_lm = None
    torch.testing.assert_close(spoken(model), before, atol=1e-5, rtol=0)
    assert not torch.allclose(after, before, atol=1e-2)


def test_what_the_model_writes_does_not_depend_on_it(model):
    question = tiny_processor().apply_transcription_request(noise(400).numpy(), sampling_rate=800)
    before = model(**question).logits
    torch.nn.init.normal_(model.residual_lm.residual.weight)
    torch.testing.assert_close(model(**question).logits, before, atol=1e-5, rtol=0)


def test_it_is_saved_and_loaded_with_the_model(model, tmp_path):
    torch.nn.init.normal_(model.residual_lm.residual.weight, std=0.3)
    model.save_pretrained(tmp_path / "saved")
    loaded = F3AudioLMForConditionalGeneration.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(spoken(loaded), spoken(model), atol=1e-4, rtol=0)


def test_without_a_flow_head_it_is_refused(tmp_path):
    with pytest.raises(StrictDataclassError, match="give flow_config as well"):
        tiny_audio_lm(tmp_path, residual_config=tiny_residual_config())
