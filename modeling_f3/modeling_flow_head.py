"""The flow head: a small bidirectional transformer that makes the next latent patch by flow matching (Eq. 9)."""

import torch
import torch.nn.functional as F
from configuration_f3.configuration_flow_head import F3FlowHeadConfig
from torch import nn
from transformers import initialization as init

from .flow_matching import interpolate, sample_times, target_velocity
from .flow_solver import SOLVERS, guided, time_grid
from .pretrained_model import F3PreTrainedModel


class FlowBlock(nn.Module):
    """Attention among all tokens, then SwiGLU, each after a norm."""

    def __init__(self, config: F3FlowHeadConfig):
        super().__init__()
        width, hidden = config.hidden_size, config.intermediate_size
        self.num_heads = config.num_attention_heads
        self.attention_norm = nn.RMSNorm(width, config.rms_norm_eps)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_output = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.RMSNorm(width, config.rms_norm_eps)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in self.qkv(self.attention_norm(tokens)).chunk(3, dim=-1)
        )
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + self.attention_output(attended)
        gate, up = self.gate_up(self.mlp_norm(tokens)).chunk(2, dim=-1)
        return tokens + self.down(F.silu(gate) * up)


class F3FlowHead(F3PreTrainedModel):
    """
    The velocity of a latent patch on its way from noise to data, given the hidden state H_i of the language model, the
    downsampled representation r_{i-1} of the previous patch and the previous patch itself. The transformer sees
    [H_i + time | r_{i-1} | previous patch | noisy patch], one token for each frame of a patch.
    """

    config: F3FlowHeadConfig
    base_model_prefix = ""
    main_input_name = "noisy_patch"
    auto_classes = ("AutoModel",)
    _no_split_modules = ["FlowBlock"]

    def __init__(self, config: F3FlowHeadConfig):
        super().__init__(config)
        width = config.hidden_size
        self.condition = nn.Linear(config.condition_size, width)
        self.representation = nn.Linear(config.representation_size, width)
        self.previous = nn.Linear(config.latent_dim, width)
        self.noisy = nn.Linear(config.latent_dim, width)
        self.no_condition = nn.Parameter(torch.zeros(width))
        self.no_representation = nn.Parameter(torch.zeros(width))
        self.no_previous = nn.Parameter(torch.zeros(config.patch_size, width))
        self.positions = nn.Parameter(torch.zeros(2 + 2 * config.patch_size, width))
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(FlowBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(width, config.rms_norm_eps)
        self.velocity = nn.Linear(width, config.latent_dim)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, F3FlowHead):
            for parameter in (module.no_condition, module.no_representation, module.no_previous, module.positions):
                init.normal_(parameter, std=self.config.initializer_range)
            init.zeros_(module.velocity.weight)  # the first velocity is none at all

    def forward(
        self,
        noisy_patch: torch.Tensor,
        time: torch.Tensor,
        condition: torch.Tensor,
        representation: torch.Tensor,
        previous_patch: torch.Tensor,
        has_condition: torch.Tensor | None = None,
        has_representation: torch.Tensor | None = None,
        has_previous: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        The velocity `[N, P, D]` at `noisy_patch`.

        Args:
            noisy_patch: `[N, P, D]`.
            time: `[N]`, from 0 (noise) to 1 (data).
            condition: `[N, condition_size]`, H_i.
            representation: `[N, representation_size]`, r_{i-1}.
            previous_patch: `[N, P, D]`.
            has_condition, has_representation, has_previous: `[N]`, false where a learned vector takes the place of what
                is not known: without guidance, at the first patch.
        """
        given = self._given(condition, representation, previous_patch, has_condition, has_representation, has_previous)
        return self._velocity(noisy_patch, time, given)

    def _given(
        self,
        condition: torch.Tensor,
        representation: torch.Tensor,
        previous_patch: torch.Tensor,
        has_condition: torch.Tensor | None,
        has_representation: torch.Tensor | None,
        has_previous: torch.Tensor | None,
    ) -> torch.Tensor:
        """The tokens [N, 2 + P, width] of what a patch is made from, the first without the time: the same at every step."""
        dtype = self.positions.dtype
        condition = _known(self.condition(condition.to(dtype)), has_condition, self.no_condition)
        representation = _known(
            self.representation(representation.to(dtype)), has_representation, self.no_representation
        )
        previous = _known(self.previous(previous_patch.to(dtype)), has_previous, self.no_previous)
        return torch.cat([condition[:, None], representation[:, None], previous], dim=1)

    def _velocity(self, noisy_patch: torch.Tensor, time: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        """That of `noisy_patch` [N, P, D] at `time`, [N] or one for all, [1]."""
        moment = self.time(time_embedding(time, self.config.hidden_size).to(given.dtype))
        noisy = self.noisy(noisy_patch.to(given.dtype))
        tokens = torch.cat([given[:, :1] + moment[:, None], given[:, 1:], noisy], dim=1) + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        return self.velocity(self.norm(tokens[:, -self.config.patch_size :]))

    def loss(
        self,
        patch: torch.Tensor,
        condition: torch.Tensor,
        representation: torch.Tensor,
        previous_patch: torch.Tensor,
        has_previous: torch.Tensor,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """
        Mean squared error of the velocity for each of N patches `[N, P, D]`, the mean of `config.draws_per_patch` draws of
        time, noise and dropout. `has_previous` `[N]` is false for first patches, which have no representation either.
        """
        config, count = self.config, self.config.draws_per_patch * len(patch)
        patch, condition, representation, previous_patch, has_previous = (
            value.repeat(config.draws_per_patch, *[1] * (value.ndim - 1))
            for value in (patch.float(), condition, representation, previous_patch, has_previous)
        )
        noise = torch.randn(patch.shape, generator=generator).to(patch)
        times = sample_times((count,), config.time_mean, config.time_std, generator).to(patch)
        dropped = torch.rand(2, count, generator=generator).to(patch.device)
        velocity = self(
            interpolate(noise, patch, times),
            times,
            condition,
            representation,
            previous_patch,
            has_condition=dropped[0] >= config.condition_dropout,
            has_representation=has_previous & (dropped[1] >= config.representation_dropout),
            has_previous=has_previous,
        )
        errors = (velocity.float() - target_velocity(noise, patch)).square().flatten(1).mean(1)
        return errors.view(config.draws_per_patch, -1).mean(0)

    @torch.no_grad()
    def sample(
        self,
        condition: torch.Tensor,
        representation: torch.Tensor,
        previous_patch: torch.Tensor,
        has_previous: torch.Tensor,
        num_steps: int = 10,
        guidance_scale: float = 2.0,
        guidance_until: float = 1.0,
        noise_temperature: float = 1.0,
        solver: str = "euler",
        sway: float = -1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> torch.Tensor:
        """
        The next patches `[N, P, D]` in fp32.

        Args:
            num_steps: steps of the solver.
            guidance_scale: how far to go from what is likely anyway to what the hidden state asks for; 1 is off.
            guidance_until: time before which it does so. What is said is decided near the noise, and nearer to the data the
                path goes on as the hidden state alone has it (arXiv 2404.07724).
            noise_temperature: variance of the noise to start from.
            solver: `"euler"`, `"midpoint"` or `"adams_bashforth"`.
            sway: see `time_grid`.
            generator: of the noise, on the CPU; one for all items, or a list with one for each, so that an item does not
                depend on its batch.

        Raises:
            `ValueError`: for an unknown solver, or settings out of range.
        """
        if solver not in SOLVERS:
            raise ValueError(f"unknown solver {solver!r}: choose one of {', '.join(SOLVERS)}")
        if noise_temperature < 0 or guidance_scale < 0:
            raise ValueError(
                f"noise_temperature ({noise_temperature}) and guidance_scale ({guidance_scale}) must not be negative"
            )
        shape = (len(condition), self.config.patch_size, self.config.latent_dim)
        if isinstance(generator, list):
            noise = torch.cat([torch.randn(1, *shape[1:], generator=own) for own in generator])
        else:
            noise = torch.randn(shape, generator=generator)
        start = noise_temperature**0.5 * noise.to(condition.device)
        given = self._given(condition, representation, previous_patch, None, has_previous, has_previous)
        without = torch.cat([self.no_condition.expand_as(given[:, :1]), given[:, 1:]], dim=1)
        both = torch.cat([given, without])

        def velocity(state: torch.Tensor, now: float) -> torch.Tensor:
            time = state.new_tensor([now])
            if guidance_scale == 1 or now >= guidance_until:
                return self._velocity(state, time, given).float()
            found = self._velocity(torch.cat([state, state]), time, both).float()
            return guided(*found.chunk(2), guidance_scale)

        return SOLVERS[solver](velocity, start, time_grid(num_steps, sway))


def time_embedding(time: torch.Tensor, width: int) -> torch.Tensor:
    """Sines and cosines `[N, width]` of times `[N]` in [0, 1], at frequencies from 1 to 1000."""
    frequencies = torch.logspace(0, 3, width // 2, device=time.device)
    angles = time.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _known(embedded: torch.Tensor, known: torch.Tensor | None, otherwise: torch.Tensor) -> torch.Tensor:
    """Rows of `embedded` where `known` [N], or all; `otherwise` in place of the others."""
    if known is None:
        return embedded
    return torch.where(known.view(-1, *[1] * (embedded.ndim - 1)), embedded, otherwise)
