"""
When the autoencoder of a tokenizer learns on, its latents change, and what learned from them would have to learn anew. Instead,
the representation encoder follows: it learns to hear in the new latents what it heard in the former ones of the same audio, so
that connectors, listeners and heads on its representations keep what they know. It begins with what least squares can tell of the
former latents.
"""

import copy

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from modeling_f3.model_outputs import F3Output
from modeling_f3.modeling_autoencoder import F3AutoencoderModel
from modeling_f3.modeling_f3 import F3Model, draw_latent_noise
from transformers import PreTrainedModel

from .helper import Helper
from .latents_batches import LatentsCollator
from .latents_cache import LatentsCacheError, latents_of


FORMER = "former_latents"
WEIGHT = 10.0  # of a relative error of some percent, beside cross-entropies of some nat
SAME = ("frames", "source", "text")  # of a row, whatever its latents


class Following(Helper):
    """
    The mean square by which the representations differ from those of the `former` tokenizer, relative to how much these vary.

    Args:
        model: calls of it take `former_latents` `[B, T, D]`, beside the latents of the same audio by the new autoencoder.
        tokenizer: the part of the model that follows.
        former: what it was before it got the new autoencoder.
        speaks: the model says latents of the former kind, so it has to hear both kinds.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: F3Model, former: F3Model, speaks: bool):
        super().__init__(model, tokenizer, FORMER, WEIGHT)
        self.tokenizer, self.former, self.speaks = tokenizer, former, speaks

    @property
    def loss_names(self) -> tuple[str, ...]:
        return ("following_loss", "former_loss") if self.speaks else ("following_loss",)

    def losses(self, heard: F3Output) -> tuple[torch.Tensor, ...]:
        latents, mask = self.given, heard.latents_mask
        with torch.no_grad():
            wanted = self.former.to(latents.device)(latents=latents, latents_mask=mask).last_hidden_state[mask].float()
        found = [heard.last_hidden_state]
        if self.speaks:
            noise = draw_latent_noise(latents.shape, self.tokenizer.config) if self.tokenizer.training else None
            # not called, which would tell other helpers that this is what was heard
            again = self.tokenizer.forward(latents=latents, latents_mask=mask, noise=noise)
            found.append(again.last_hidden_state)
        spread = wanted.var(0).mean()
        return tuple((each[mask].float() - wanted).square().mean() / spread for each in found)


def exchange_autoencoder(tokenizer: F3Model, autoencoder: F3AutoencoderModel, keep_decoder: bool) -> F3Model:
    """
    Gives the tokenizer another autoencoder, or only the weights of its encoder. Returns what the tokenizer was before.

    Raises:
        `ValueError`: for an encoder with other layers; the tokenizer is as it was then.
    """
    former = copy.deepcopy(tokenizer).eval().requires_grad_(False)
    weights, new = former.autoencoder.encoder.state_dict(), autoencoder.encoder.state_dict()
    if {name: weight.shape for name, weight in weights.items()} != {name: weight.shape for name, weight in new.items()}:
        raise ValueError(
            "the encoder of the autoencoder has other layers than that of the model: one that learned on from it "
            "(f3_training.autoencoder --init_from) can be followed; for another, train a new encoder"
        )
    if keep_decoder:
        tokenizer.autoencoder.encoder.load_state_dict(new)
    else:
        tokenizer.autoencoder, tokenizer.config.autoencoder_config = autoencoder, autoencoder.config
        tokenizer.freeze()
    return former


@torch.no_grad()
def read_estimates(model: PreTrainedModel, tokenizer: F3Model, latents: torch.Tensor, former: torch.Tensor) -> None:
    """
    Lets the encoder, and the quantiser if there is one, read estimates of the former latents instead of the new ones: what least
    squares make of these, `latents` [N, D] and `former` [N, D] being the same frames. An affine map, so that layers which begin
    with another absorb it. Codes then mean what they meant.
    """
    rows = torch.cat([latents, torch.ones(len(latents), 1)], dim=1)
    solution = least_squares(rows, former)
    weight, bias = solution[:-1], solution[-1]  # of z @ weight + bias
    projection = tokenizer.encoder.projection
    projection.bias.add_(projection.weight @ bias)
    projection.weight.copy_(projection.weight @ weight.T)
    if model.prediction is not None and model.prediction.quantizer.is_calibrated:
        quantizer, deviation = model.prediction.quantizer, latents.std(dim=0)
        weight = deviation[:, None] * weight / quantizer.deviation
        quantizer.projections.copy_(torch.einsum("de,gec->gdc", weight, quantizer.projections))
        offset = (quantizer.mean - bias) / quantizer.deviation
        quantizer.mean.copy_(deviation * least_squares(weight.T, offset))
        quantizer.deviation.copy_(deviation)


def least_squares(inputs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """
    The smallest x that brings inputs @ x nearest to what is wanted, in fp32. Normalised latents sum to zero, so there are many, and
    large ones would not bear the 16 bits of published weights. Sums that are not zero only for the 16 bits of a latents cache count
    as zero too.
    """
    solved = torch.linalg.lstsq(inputs.double(), wanted.double().view(len(wanted), -1), rcond=1e-3, driver="gelsd")
    return solved.solution.view(-1, *wanted.shape[1:]).float()


def paired(rows: Dataset, former: Dataset) -> Dataset:
    """
    `rows` with the latents of the same audio, in the rows `former`, as another column, `former_latents`.

    Raises:
        `LatentsCacheError`: when the rows are not the same.
    """
    if any(rows[name][:] != former[name][:] for name in SAME):
        raise LatentsCacheError(
            "the latents and the former ones are not of the same rows: write both from one dataset, with one list of folders each"
        )
    former = former.select_columns(["latents"]).rename_column("latents", FORMER).with_format(None)
    pairs = concatenate_datasets([rows.with_format(None), former], axis=1)
    return pairs.with_format("numpy", columns=["latents", FORMER], output_all_columns=True)


class PairsCollator:
    """The batches of a [`LatentsCollator`], with the `former_latents` of the same frames beside the others."""

    def __init__(self, collator: LatentsCollator):
        self.collator = collator

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        both = [np.concatenate([latents_of(row), np.asarray(row[FORMER], np.float32)], axis=1) for row in rows]
        batch = self.collator([{**row, "latents": latents} for row, latents in zip(rows, both)])
        latents, former = batch["latents"].chunk(2, dim=-1)
        return {**batch, "latents": latents.contiguous(), FORMER: former.contiguous()}
