"""The listener: which letters are heard."""

import torch
import torch.nn.functional as F
from .configuration_audio_lm import FRAMES_PER_TOKEN, F3AudioLMConfig
from torch import nn
from transformers import AutoModel, PreTrainedTokenizerBase

from .connector import in_pairs, token_mask
from .model_outputs import F3Output


LETTERS = " 'abcdefghijklmnopqrstuvwxyz"
PARTING = ".,?!;:-"  # between words, as a space is
MOST_LETTERS = 24  # of a token of the language model


class F3Listener(nn.Module):
    """
    log P(letter | latents z, representations u) at 25 Hz, for CTC: a transformer of Transformers that looks both ways, two
    frames a step. It does not write: it keeps the language model's beams to what is heard ([`LetterPrefixes`]), as hybrids of
    CTC and attention do (arXiv 1609.06773). The language model reads and says the same with it and without.
    """

    def __init__(self, config: F3AudioLMConfig):
        super().__init__()
        audio, inner = config.audio_config, config.listener_config.hidden_size
        self.representations = nn.Linear(FRAMES_PER_TOKEN * audio.hidden_size, inner)
        self.latents = nn.Linear(FRAMES_PER_TOKEN * audio.autoencoder_config.latent_dim, inner)
        # the dtype being loaded, which Transformers does not tell configurations as deep down as this one
        self.body = AutoModel.from_config(config.listener_config, dtype=torch.get_default_dtype())
        self.body.set_input_embeddings(None)
        self.letters = nn.Linear(inner, FRAMES_PER_TOKEN * (1 + len(LETTERS)))
        # numbers of letters, whole in any precision: weights of one dtype are what Transformers expects
        self.register_buffer("spelling", torch.zeros(config.text_config.vocab_size, MOST_LETTERS))

    def forward(self, audio: F3Output) -> torch.Tensor:
        """Log-probabilities `[A, T, 1 + letters]`, first that of the blank, of latents `[A, T, D]` and representations."""
        dtype, frames = self.latents.weight.dtype, audio.latents.shape[1]
        representations, latents = (in_pairs(x.to(dtype)).flatten(2) for x in (audio.last_hidden_state, audio.latents))
        output = self.body(
            inputs_embeds=self.representations(F.rms_norm(representations, representations.shape[-1:]))
            + self.latents(latents),
            attention_mask=token_mask(audio.latents_mask).long(),
            is_causal=False,
            use_cache=False,
        )
        scores = self.letters(output.last_hidden_state).unflatten(-1, (FRAMES_PER_TOKEN, -1)).flatten(1, 2)
        return scores[:, :frames].float().log_softmax(-1)

    def learn_spelling(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """
        Stores the letters of all tokens; signs that part words are spaces. Tokens with anything else, such as digits or letters
        of other languages, are not to be written, and left without any.
        """
        before = tokenizer.encode("a", add_special_tokens=False)  # a token alone may lose its space
        cut = len(tokenizer.decode(before))
        self.spelling.zero_()
        for token in range(min(len(tokenizer), len(self.spelling))):
            text = tokenizer.decode([*before, token], skip_special_tokens=True)[cut:].lower()
            if len(text) <= MOST_LETTERS and set(text) <= set(LETTERS + PARTING):
                numbers = [1 + LETTERS.index(" " if sign in PARTING else sign) for sign in text]
                self.spelling[token, : len(numbers)] = torch.tensor(numbers).to(self.spelling)
