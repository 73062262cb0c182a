import logging

import numpy as np
import pytest
import torch
from feature_extraction_f3.resampling import resample
from modeling_f3 import F3AutoencoderConfig, F3FeatureExtractor
from tiny import noise
from transformers import AutoFeatureExtractor
from transformers.utils import logging as transformers_logging


RATE = 16_000
WAVEFORM = noise(160).numpy()


@pytest.fixture
def extractor() -> F3FeatureExtractor:
    return F3FeatureExtractor(sampling_rate=RATE)


@pytest.fixture
def warned(caplog):
    """What the library warned about, repeated warnings included."""
    transformers_logging.enable_propagation()
    transformers_logging.get_logger("transformers").warning_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        yield caplog
    transformers_logging.disable_propagation()


@pytest.mark.parametrize(
    "audio",
    [
        WAVEFORM,
        WAVEFORM.astype(np.float64),
        torch.from_numpy(WAVEFORM),
        torch.from_numpy(WAVEFORM).requires_grad_(),
        WAVEFORM.tolist(),
        WAVEFORM[None],
        torch.from_numpy(WAVEFORM)[None],
        [WAVEFORM],
        [WAVEFORM.tolist()],
        {"array": WAVEFORM, "sampling_rate": RATE},
        [{"array": WAVEFORM, "sampling_rate": RATE, "path": None}],
    ],
)
def test_every_way_to_hold_a_waveform_gives_the_same_tensor(extractor, audio):
    features = extractor(audio, sampling_rate=RATE)
    assert torch.equal(features["input_values"], torch.from_numpy(WAVEFORM)[None, None])
    assert torch.equal(features["padding_mask"], torch.ones(1, 160, dtype=features["padding_mask"].dtype))
    assert list(features) == extractor.model_input_names


def test_half_precision_is_widened(extractor):
    for dtype in (torch.bfloat16, torch.float16):
        features = extractor(torch.from_numpy(WAVEFORM).to(dtype), sampling_rate=RATE)
        assert features["input_values"].dtype == torch.float32


def test_decoders_of_the_datasets_library_are_read(extractor):
    class Decoder:
        def get_all_samples(self):
            return type("Samples", (), {"data": torch.from_numpy(WAVEFORM)[None], "sample_rate": RATE})

    assert torch.equal(extractor(Decoder())["input_values"], torch.from_numpy(WAVEFORM)[None, None])


def test_a_batch_is_padded_at_the_end(extractor):
    features = extractor([WAVEFORM, WAVEFORM[:1], WAVEFORM[:99]], sampling_rate=RATE)
    assert features["input_values"].shape == (3, 1, 160)
    assert features["padding_mask"].sum(1).tolist() == [160, 1, 99]
    assert torch.equal(features["input_values"][2, 0, :99], torch.from_numpy(WAVEFORM[:99]))
    assert not features["input_values"][2, 0, 99:].any() and not features["padding_mask"][2, 99:].any()


def test_padding_and_truncation_options(extractor):
    pair = [WAVEFORM, WAVEFORM[:20]]
    padded = extractor(pair, sampling_rate=RATE, padding="max_length", max_length=200)
    assert padded["input_values"].shape == (2, 1, 200)
    multiple = extractor(pair, sampling_rate=RATE, pad_to_multiple_of=128)
    assert multiple["input_values"].shape == (2, 1, 256)
    cut = extractor(pair, sampling_rate=RATE, truncation=True, max_length=50)
    assert cut["input_values"].shape == (2, 1, 50) and cut["padding_mask"].sum(1).tolist() == [50, 20]
    ragged = extractor(pair, sampling_rate=RATE, padding=False, return_tensors=None)
    assert [samples.shape for samples in ragged["input_values"]] == [(1, 160), (1, 20)]
    with pytest.raises(ValueError, match="padding=True"):
        extractor(pair, sampling_rate=RATE, padding=False)
    with pytest.raises(ValueError, match="max_length"):
        extractor(pair, sampling_rate=RATE, truncation=True)


def test_kinds_of_tensors(extractor):
    array = extractor(WAVEFORM, sampling_rate=RATE, return_tensors="np")
    assert isinstance(array["input_values"], np.ndarray) and array["input_values"].dtype == np.float32
    without_mask = extractor(WAVEFORM, sampling_rate=RATE, return_attention_mask=False)
    assert list(without_mask) == ["input_values"]


def test_another_rate_is_refused_and_the_fix_is_named(extractor):
    with pytest.raises(ValueError, match="got 44100 Hz, this model expects 16000 Hz: .*resample=True"):
        extractor(WAVEFORM, sampling_rate=44_100)
    with pytest.raises(ValueError, match=r"audio\[1\]: got 8000 Hz"):
        extractor([{"array": WAVEFORM, "sampling_rate": RATE}, {"array": WAVEFORM, "sampling_rate": 8000}])
    with pytest.raises(ValueError, match="pass only one"):
        extractor({"array": WAVEFORM, "sampling_rate": 8000}, sampling_rate=RATE)
    with pytest.raises(ValueError, match="needs the rate"):
        extractor(WAVEFORM, resample=True)
    for rate in ("16000", 0, -1, True):
        with pytest.raises(ValueError, match="positive number of hertz"):
            extractor(WAVEFORM, sampling_rate=rate)


def test_an_unknown_rate_is_warned_about_once(extractor, warned):
    extractor(WAVEFORM)
    extractor(WAVEFORM)
    assert warned.text.count("sampling_rate was not passed") == 1


def test_unscaled_floats_are_warned_about(extractor, warned):
    extractor(WAVEFORM * 20_000, sampling_rate=RATE)
    assert "divide PCM by 32768" in warned.text


def test_resampling_on_demand(extractor):
    features = extractor(WAVEFORM, sampling_rate=44_100, resample=True)
    assert features["input_values"].shape == (1, 1, -(-160 * 160 // 441))
    mixed = [{"array": WAVEFORM, "sampling_rate": 8000}, {"array": WAVEFORM, "sampling_rate": RATE}]
    features = extractor(mixed, resample=True)
    assert features["padding_mask"].sum(1).tolist() == [320, 160]
    assert torch.equal(features["input_values"][1, 0, :160], torch.from_numpy(WAVEFORM))


def test_several_channels_are_refused_unless_asked_for(extractor):
    stereo = np.stack([WAVEFORM, -0.5 * WAVEFORM])
    with pytest.raises(ValueError, match="2 channels .*to_mono=True"):
        extractor(stereo, sampling_rate=RATE)
    mixed = extractor(stereo, sampling_rate=RATE, to_mono=True)["input_values"]
    torch.testing.assert_close(mixed[0, 0], torch.from_numpy(stereo.mean(0)))
    with pytest.raises(ValueError, match="transpose"):
        extractor(stereo.T, sampling_rate=RATE, to_mono=True)
    with pytest.raises(ValueError, match="1-D waveform"):
        extractor(stereo[None], sampling_rate=RATE)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint8])
def test_integer_samples_are_refused_and_the_divisor_is_named(extractor, dtype):
    with pytest.raises(TypeError, match=f"{np.dtype(dtype)}.*32768"):
        extractor(np.ones(10, dtype), sampling_rate=RATE)


@pytest.mark.parametrize("audio", [None, "speech.wav", b"RIFF", WAVEFORM > 0, WAVEFORM + 1j, ["a", "b"], object()])
def test_what_is_not_audio_is_refused(extractor, audio):
    with pytest.raises(TypeError, match="audio"):
        extractor(audio, sampling_rate=RATE)


@pytest.mark.parametrize(
    "audio", [[], np.zeros(0), torch.zeros(1, 0), [WAVEFORM, []], {"array": [], "sampling_rate": 1}]
)
def test_no_audio_is_refused(extractor, audio):
    with pytest.raises(ValueError, match="empty"):
        extractor(audio)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_refused(extractor, value):
    broken = WAVEFORM.copy()
    broken[7] = value
    with pytest.raises(ValueError, match=r"audio\[1\] has 1 NaN or infinite samples of 160"):
        extractor([WAVEFORM, broken], sampling_rate=RATE)


def test_undecoded_and_ragged_recordings_are_refused(extractor):
    with pytest.raises(ValueError, match="decode it first"):
        extractor({"bytes": b"", "path": "a.wav"})
    with pytest.raises(ValueError, match="equally long"):
        extractor([[[0.1, 0.2], [0.1]]], sampling_rate=RATE)


def test_arguments_are_spelled_right_or_refused(extractor):
    with pytest.raises(TypeError, match="sample_rate"):
        extractor(WAVEFORM, sample_rate=RATE)


@pytest.mark.parametrize(
    "wrong", [{"sampling_rate": 0}, {"sampling_rate": "16000"}, {"feature_size": 2}, {"padding_side": "left"}]
)
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        F3FeatureExtractor(**wrong)


def test_input_is_left_as_it_was(extractor):
    waveform = WAVEFORM.copy()
    features = extractor(waveform, sampling_rate=RATE)
    features["input_values"].zero_()
    assert np.array_equal(waveform, WAVEFORM)


def test_save_and_load(extractor, tmp_path):
    F3AutoencoderConfig.preset("nano").save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    for loaded in (
        F3FeatureExtractor.from_pretrained(tmp_path),
        AutoFeatureExtractor.from_pretrained(tmp_path),
        F3FeatureExtractor.from_dict(extractor.to_dict()),
    ):
        assert type(loaded) is F3FeatureExtractor
        assert loaded.to_dict() == extractor.to_dict()


@pytest.mark.parametrize("source, target", [(44_100, 16_000), (8_000, 24_000), (48_000, 16_000), (22_050, 24_000)])
def test_resampling_keeps_what_both_rates_can_hold(source, target):
    resampled = resample(tone(1000, source), source, target)
    assert resampled.shape == (target,)
    middle = slice(target // 10, -target // 10)
    torch.testing.assert_close(resampled[middle], tone(1000, target)[middle], atol=1e-4, rtol=0)


def test_resampling_removes_what_the_lower_rate_cannot_hold():
    assert resample(tone(9000, 24_000), 24_000, 16_000)[1000:-1000].abs().max() < 1e-3


def tone(frequency: int, rate: int) -> torch.Tensor:
    """One second."""
    return torch.sin(2 * torch.pi * frequency * torch.arange(rate, dtype=torch.float64) / rate + 0.3).float()


def test_resampling_equals_torchaudio():
    try:
        from torchaudio.functional import resample as reference
    except (ImportError, OSError):
        pytest.skip("torchaudio is not installed")
    waveform = noise(2, 5000)
    for source, target in ((44_100, 16_000), (16_000, 24_000)):
        expected = reference(waveform, source, target, lowpass_filter_width=32, rolloff=0.97)
        torch.testing.assert_close(resample(waveform, source, target), expected, atol=1e-5, rtol=0)
