"""The listener: which letters are heard, and which of several answers they fit."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from configuration_f3.configuration_audio_lm import FRAMES_PER_TOKEN, F3AudioLMConfig
from torch import nn
from transformers import AutoModel, PreTrainedTokenizerBase

from .connector import in_pairs, token_mask
from .model_outputs import F3Output


LETTERS = " 'abcdefghijklmnopqrstuvwxyz"
MOST_LETTERS = 24  # of a token of the language model


class F3Listener(nn.Module):
    """
    log P(letter | latents z, representations u) at 25 Hz, for CTC: a transformer of Transformers that looks both ways, two
    frames a step. It does not write: of the transcripts that the language model proposes it finds the one that is heard, as
    hybrids of CTC and attention do (arXiv 1609.06773). The language model reads and says the same with it and without.
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
        """Stores the letters of all tokens; of other signs, those that part words are spaces."""
        before = tokenizer.encode("a", add_special_tokens=False)  # a token alone may lose its space
        cut = len(tokenizer.decode(before))
        self.spelling.zero_()
        for token in range(min(len(tokenizer), len(self.spelling))):
            text = tokenizer.decode([*before, token], skip_special_tokens=True)[cut:].lower()
            signs = (sign if sign in LETTERS else " " for sign in text if sign in LETTERS or not sign.isalnum())
            numbers = [1 + LETTERS.index(sign) for sign in signs][:MOST_LETTERS]
            self.spelling[token, : len(numbers)] = torch.tensor(numbers).to(self.spelling)

    def spelled(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Numbers of the letters of a text `[L]`, words apart by single spaces."""
        numbers = self.spelling[token_ids].flatten().long()
        numbers = numbers[numbers > 0]
        space = numbers == 1 + LETTERS.index(" ")
        kept = numbers[~(space & F.pad(space[:-1], (1, 0), value=True))]
        return kept[:-1] if len(kept) and kept[-1] == 1 + LETTERS.index(" ") else kept

    def likelihoods(
        self, scores: torch.Tensor, frames: torch.Tensor, answers: Sequence[Sequence[torch.Tensor]]
    ) -> torch.Tensor:
        """
        Log-likelihood `[A, N]` of N answers to each audio; negative infinity for those with more letters than it has frames.

        Args:
            scores: `[A, T, 1 + letters]`, from `forward`.
            frames: `[A]`, lengths.
            answers: token ids `[L]` of each, or `[A, N, L]`.
        """
        texts = [self.spelled(answer) for several in answers for answer in several]
        times = len(texts) // len(scores)
        losses = F.ctc_loss(
            scores.repeat_interleave(times, 0).transpose(0, 1),
            torch.cat(texts),
            frames.repeat_interleave(times),
            torch.tensor([len(text) for text in texts], device=scores.device),
            reduction="none",
        )
        return -losses.unflatten(0, (-1, times))
