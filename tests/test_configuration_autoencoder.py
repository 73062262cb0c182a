import json

import pytest
import torch
from configuration_f3.configuration_autoencoder import PRESETS, F3AutoencoderConfig
from huggingface_hub.errors import StrictDataclassError
from modeling_f3 import F3AutoencoderModel
from tiny import TINY, TINY_LADDER, tiny_config
from transformers import AutoConfig


def parameter_count(config: F3AutoencoderConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in F3AutoencoderModel(config).parameters())


def test_presets_have_the_promised_sizes():
    assert parameter_count(F3AutoencoderConfig()) >= 25_000_000
    assert parameter_count(F3AutoencoderConfig.preset("s24")) == pytest.approx(29_600_000, rel=0.02)
    assert parameter_count(F3AutoencoderConfig.preset("nano")) <= 6_000_000


@pytest.mark.parametrize("name, rate", [("base", 24_000), ("s24", 24_000), ("nano", 16_000)])
def test_presets_give_64_dimensions_25_times_a_second(name, rate):
    config = F3AutoencoderConfig.preset(name)
    assert (config.sampling_rate, config.latent_dim, config.frame_rate) == (rate, 64, 25.0)


def test_base_is_the_default():
    assert F3AutoencoderConfig.preset("base").to_dict() == F3AutoencoderConfig().to_dict()


def test_preset_takes_overrides_and_rejects_unknown_names():
    assert F3AutoencoderConfig.preset("nano", noise_scale=0.5).noise_scale == 0.5
    with pytest.raises(ValueError, match="base, s24, nano"):
        F3AutoencoderConfig.preset("mini")


@pytest.mark.parametrize("values", [*PRESETS.values(), TINY, TINY_LADDER])
def test_round_trip_through_dict_json_and_folder(values, tmp_path):
    config = F3AutoencoderConfig(**values)
    config.save_pretrained(tmp_path)
    copies = [
        F3AutoencoderConfig.from_dict(config.to_dict()),
        F3AutoencoderConfig.from_dict(json.loads(config.to_json_string(use_diff=False))),
        F3AutoencoderConfig.from_pretrained(tmp_path),
        AutoConfig.from_pretrained(tmp_path),
    ]
    for copy in copies:
        assert type(copy) is F3AutoencoderConfig
        for name in values:
            assert as_lists(getattr(copy, name)) == as_lists(getattr(config, name)), name
        assert (copy.hop_length, copy.num_bins, copy.latent_bins) == (
            config.hop_length,
            config.num_bins,
            config.latent_bins,
        )


def as_lists(value):
    return [as_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize(
    "wrong",
    [
        {"sampling_rate": "16000"},
        {"sampling_rate": 16000.5},
        {"latent_dim": None},
        {"spectrum_exponent": "0.3"},
        {"encoder_stages": 3},
        {"encoder_stages": ((2, 2), (1, 1, 6))},
        {"encoder_stages": (("2", 2, 6), (1, 1, 6))},
        {"decoder_stages": "rows"},
        {"stem_kernel": (3,)},
        {"stem_kernel": 3},
        {"hidden_act": "relu"},
        {"noise_scale": [1.0]},
    ],
)
def test_wrong_types_name_the_field(wrong):
    with pytest.raises(StrictDataclassError, match=next(iter(wrong))):
        tiny_config(**wrong)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"sampling_rate": 0}, "sampling_rate"),
        ({"latent_dim": 1}, "latent_dim"),
        ({"spectrum_exponent": 0.0}, "spectrum_exponent"),
        ({"spectrum_exponent": 1.5}, "spectrum_exponent"),
        ({"normalization_eps": 0.0}, "normalization_eps"),
        ({"noise_scale": -1.0}, "noise_scale"),
        ({"clean_probability": 1.2}, "clean_probability"),
        ({"decoder_lookahead": 0}, "decoder_lookahead"),
        ({"projection_kernel": 0}, "projection_kernel"),
        ({"stft_window": 40}, "stft_window"),
        ({"stft_window": 16}, "stft_window"),
        ({"stem_kernel": (3, 1)}, "stem_kernel"),
        ({"stem_stride": 3, "stem_kernel": (3, 5)}, "divisible"),
        ({"encoder_stages": ((2, 2, 0), (1, 1, 6))}, "encoder_stages"),
        ({"encoder_stages": ((4, 2, 6), (1, 1, 6))}, "time strides"),
        ({"decoder_stages": ((1, 2, 6), (2, 2, 4))}, "frequency strides"),
        ({"stft_window": 64, "stft_hop": 16, "stem_kernel": (3, 4)}, "lookahead"),
    ],
)
def test_values_out_of_range_name_the_field(wrong, message):
    with pytest.raises(StrictDataclassError, match=message):
        tiny_config(**wrong)


def test_a_field_set_later_is_checked_too():
    config = tiny_config()
    with pytest.raises(StrictDataclassError, match="latent_dim"):
        config.latent_dim = "64"


def test_a_tampered_file_is_refused(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    settings = json.loads(file.read_text())

    file.write_text(json.dumps({**settings, "latent_dim": -4}))
    with pytest.raises(StrictDataclassError, match="latent_dim"):
        F3AutoencoderConfig.from_pretrained(tmp_path)

    file.write_text(file.read_text()[:-20])
    with pytest.raises(OSError, match="valid JSON"):
        F3AutoencoderConfig.from_pretrained(tmp_path)
