"""Models that build in milliseconds and still have every part of a real one."""

import torch
from modeling_f3 import F3AutoencoderConfig, F3AutoencoderModel, F3Config, F3FeatureExtractor, F3Model


# 800 Hz, hop 32: strides in both axes, plain stages, taps in time everywhere.
TINY = {
    "sampling_rate": 800,
    "stft_window": 32,
    "stft_hop": 16,
    "stem_kernel": (3, 4),
    "stem_stride": 2,
    "encoder_channels": 4,
    "encoder_stages": ((2, 2, 6), (1, 1, 6)),
    "encoder_projection": 8,
    "decoder_channels": 6,
    "decoder_stages": ((1, 1, 6), (2, 2, 4)),
    "decoder_projection": 8,
    "projection_kernel": 3,
    "latent_dim": 4,
}

# The other branches: a window of four hops, an uncompressed spectrum, an odd stride, a longer lookahead, no stem stride.
TINY_LADDER = {
    **TINY,
    "stft_window": 48,
    "stft_hop": 12,
    "spectrum_exponent": 1.0,
    "stem_kernel": (7, 7),
    "stem_stride": 1,
    "encoder_stages": ((1, 3, 6), (2, 2, 6), (2, 1, 8)),
    "decoder_stages": ((2, 1, 8), (2, 2, 6), (1, 3, 4)),
    "decoder_lookahead": 2,
    "projection_kernel": 1,
    "hidden_act": "elu",
}


def tiny_config(**overrides) -> F3AutoencoderConfig:
    return F3AutoencoderConfig(**{**TINY, **overrides})


def tiny_model(seed: int = 0, **overrides) -> F3AutoencoderModel:
    """In evaluation mode, with weights drawn from `seed`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return F3AutoencoderModel(tiny_config(**overrides)).eval()


def tiny_feature_extractor() -> F3FeatureExtractor:
    return F3FeatureExtractor(sampling_rate=TINY["sampling_rate"])


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Samples of a loud, reproducible signal."""
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# The tokenizer on top of TINY: every part of a real one, a window that tests soon leave behind.
TINY_ENCODER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "sliding_window": 6,
}


def tiny_tokenizer_config(**overrides) -> F3Config:
    values = {"num_codebooks": 2, "codebook_size": 16, "codebook_dim": 3, "num_future_frames": 3, **overrides}
    return F3Config(autoencoder_config=dict(TINY), encoder_config=dict(TINY_ENCODER), **values)


def tiny_tokenizer(model_class=F3Model, seed: int = 0, **overrides):
    """In evaluation mode, with weights drawn from `seed`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model_class(tiny_tokenizer_config(**overrides)).eval()
