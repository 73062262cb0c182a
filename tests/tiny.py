"""Models that build in milliseconds and still have every part of a real one."""

import io
from pathlib import Path
from types import SimpleNamespace

import soundfile
import torch
from accelerate import Accelerator
from modeling_f3 import (
    F3AudioLMForConditionalGeneration,
    F3AutoencoderConfig,
    F3AutoencoderModel,
    F3Config,
    F3FeatureExtractor,
    F3ForPreTraining,
    F3Model,
    F3Processor,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


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


def tiny_text_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte and special tokens as SmolLM2 has them, with a chat format of the usual kind."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>", "<filename>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={token: index for index, token in enumerate(specials + alphabet)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template="{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    )


def tiny_language_model(seed: int = 0) -> LlamaForCausalLM:
    """For the vocabulary of `tiny_text_tokenizer`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=262,
                hidden_size=24,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=256,
                tie_word_embeddings=True,
                initializer_range=0.3,  # what it reads must make a difference to what it says
                bos_token_id=None,
                eos_token_id=2,
                pad_token_id=0,
            )
        ).eval()


def tiny_processor() -> F3Processor:
    return F3Processor(tiny_feature_extractor(), tiny_text_tokenizer(), hop_length=32)


def saved_parts(folder: Path, **tokenizer_options) -> tuple[Path, Path]:
    """Folders of a tokenizer with its heads and of a language model with its text tokenizer."""
    audio, text = folder / "tokenizer", folder / "language-model"
    tiny_tokenizer(F3ForPreTraining, **tokenizer_options).save_pretrained(audio)
    tiny_feature_extractor().save_pretrained(audio)
    tiny_language_model().save_pretrained(text)
    tiny_text_tokenizer().save_pretrained(text)
    return audio, text


def tiny_audio_lm(folder: Path, seed: int = 0, **config) -> F3AudioLMForConditionalGeneration:
    """In evaluation mode; its language model lies in `folder`."""
    audio, text = saved_parts(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return F3AudioLMForConditionalGeneration.from_audio_text_pretrained(
            audio, text, connector_hidden_size=20, **{**tiny_processor().token_ids, **config}
        ).eval()


def write_latents(folder: Path, autoencoder: F3AutoencoderModel, rows: dict[str, list[dict]]) -> None:
    """A latents cache as `f3_training.latents_cache` writes it, of rows `{"audio": samples, ...}` by split."""
    from datasets import Audio, Dataset, DatasetDict
    from f3_training.latents_cache import cache_latents

    def encoded(samples) -> dict:
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, TINY["sampling_rate"], format="FLAC")
        return {"bytes": buffer.getvalue(), "path": "clip.flac"}

    splits = {
        split: Dataset.from_list([{**row, "audio": encoded(row["audio"])} for row in items]).cast_column(
            "audio", Audio(decode=False)
        )
        for split, items in rows.items()
    }
    DatasetDict(splits).save_to_disk(folder / "dataset")
    autoencoder.save_pretrained(folder / "autoencoder")
    cache_latents(
        SimpleNamespace(
            model=str(folder / "autoencoder"), dataset=str(folder / "dataset"), output_dir=str(folder / "latents"),
            splits=list(rows), batch_seconds=10, shard_rows=8,
        ),
        Accelerator(cpu=True),
    )  # fmt: skip


def tiny_residual_config() -> dict:
    """For `tiny_audio_lm(..., flow_config=tiny_flow_config(), residual_config=tiny_residual_config())`."""
    return {
        "model_type": "qwen2",  # that of no other part: the common tests of Transformers tell parts by their types
        "vocab_size": 1,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def tiny_listener_config() -> dict:
    """For `tiny_audio_lm(..., listener_config=tiny_listener_config())`."""
    return {**tiny_residual_config(), "model_type": "qwen3", "head_dim": 8}


def tiny_flow_config() -> dict:
    """For `tiny_audio_lm(..., flow_config=tiny_flow_config())`."""
    return {
        "latent_dim": TINY["latent_dim"],
        "condition_size": 24,
        "representation_size": 20,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
