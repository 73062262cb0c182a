import pytest
import torch
from configuration_f3.configuration_flow_head import F3FlowHeadConfig
from huggingface_hub.errors import StrictDataclassError
from modeling_f3.flow_matching import interpolate, sample_times, target_velocity
from modeling_f3.flow_solver import SOLVERS, guided, time_grid
from modeling_f3.modeling_flow_head import F3FlowHead, time_embedding


TINY_FLOW = {
    "latent_dim": 4,
    "condition_size": 6,
    "representation_size": 5,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def head(seed: int = 0, trained: bool = True, **overrides) -> F3FlowHead:
    """In evaluation mode; `trained` fills the last layer, which starts at zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = F3FlowHead(F3FlowHeadConfig(**{**TINY_FLOW, **overrides})).eval()
        if trained:
            torch.nn.init.normal_(model.velocity.weight, std=0.3)
    return model


def given(count: int, seed: int = 1) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        "condition": torch.randn(count, 6, generator=generator),
        "representation": torch.randn(count, 5, generator=generator),
        "previous_patch": torch.randn(count, 2, 4, generator=generator),
        "has_previous": torch.ones(count, dtype=torch.bool),
    }


def gaussian_velocity(mean: float, deviation: float):
    """The true velocity between N(0, 1) and N(mean, deviation^2), in closed form."""

    def velocity(state: torch.Tensor, now: float) -> torch.Tensor:
        spread = (1 - now) ** 2 + (now * deviation) ** 2
        return mean + (now * deviation**2 - (1 - now)) / spread * (state - now * mean)

    return velocity


@pytest.mark.parametrize("name, order", [("euler", 1), ("midpoint", 2), ("adams_bashforth", 2)])
def test_solvers_carry_noise_to_data_with_the_error_of_their_order(name, order):
    start = torch.linspace(-2, 2, 9, dtype=torch.float64)
    exact = 3.0 + 0.5 * start  # the flow between Gaussians is this map
    errors = [
        (SOLVERS[name](gaussian_velocity(3.0, 0.5), start, time_grid(steps, sway=0)) - exact).abs().max().item()
        for steps in (20, 40)
    ]
    assert errors[1] < errors[0] / 2**order * 1.3 and errors[1] < 0.1


def test_the_velocity_that_is_learned_is_that_of_the_path():
    noise, data = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    times, step = torch.tensor([0.1, 0.5, 0.9]), 1e-3
    moved = interpolate(noise, data, times + step) - interpolate(noise, data, times)
    torch.testing.assert_close(moved / step, target_velocity(noise, data), atol=1e-3, rtol=1e-3)
    assert torch.equal(interpolate(noise, data, torch.zeros(3)), noise)
    assert torch.equal(interpolate(noise, data, torch.ones(3)), data)


def test_times_are_within_the_path_and_where_the_mean_says():
    times = sample_times((20_000,), 0.5, 1.0, torch.Generator().manual_seed(0))
    assert 0 < times.min() and times.max() < 1
    assert times.median().item() == pytest.approx(torch.sigmoid(torch.tensor(0.5)).item(), abs=0.01)


def test_the_grid_begins_at_noise_ends_at_data_and_sways_to_the_noise():
    times = time_grid(10)
    assert times[0] == 0 and times[-1] == pytest.approx(1) and len(times) == 11
    assert times[5] < 0.5 == time_grid(10, sway=0)[5]
    with pytest.raises(ValueError, match="at least 1"):
        time_grid(0)
    with pytest.raises(ValueError, match="backwards"):
        time_grid(10, sway=-3)


def test_the_first_loss_is_that_of_no_velocity_at_all():
    """Which is two, for noise and data of unit variance."""
    generator = torch.Generator().manual_seed(0)
    known = {name: value.repeat(200, *[1] * (value.ndim - 1)) for name, value in given(2).items()}
    patches = torch.randn(400, 2, 4, generator=generator)
    loss = head(trained=False).loss(patches, generator=generator, **known)
    assert loss.shape == (400,) and loss.mean().item() == pytest.approx(2.0, abs=0.1)


def test_a_head_learns_a_patch_by_heart_and_samples_it():
    model, known = head(trained=False, condition_dropout=0.0), given(2)
    patches = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(3))
    optimizer, generator = torch.optim.AdamW(model.parameters(), lr=3e-3), torch.Generator().manual_seed(0)
    for _ in range(300):
        optimizer.zero_grad()
        model.loss(patches, generator=generator, **known).mean().backward()
        optimizer.step()
    sampled = model.sample(**known, guidance_scale=1.0, generator=generator)
    assert (sampled - patches).square().mean() < 0.1 * patches.square().mean()


def test_guidance_of_one_is_the_condition_alone():
    model, known = head(), given(3)
    alone = model.sample(**known, guidance_scale=1.0, generator=torch.Generator().manual_seed(0))
    barely = model.sample(**known, guidance_scale=1.0 + 1e-9, generator=torch.Generator().manual_seed(0))
    strong = model.sample(**known, guidance_scale=3.0, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(alone, barely)
    assert not torch.allclose(alone, strong)
    nothing = torch.zeros(1, 2, 3)
    assert torch.equal(guided(torch.ones(1, 2, 3), nothing, 3.0), torch.full((1, 2, 3), 3.0))


def test_guidance_may_end_before_the_patch_is_reached():
    model, known = head(), given(3)
    options = {"guidance_scale": 3.0, "noise_temperature": 0.0, "sway": 0.0}
    halfway = model.sample(**known, **options, num_steps=1) / 2  # from zero, at the velocity that is guided
    alone = model(halfway, torch.full((3,), 0.5), **known)
    early = model.sample(**known, **options, num_steps=2, guidance_until=0.5)
    torch.testing.assert_close(early, halfway + alone / 2)
    assert not torch.allclose(early, model.sample(**known, **options, num_steps=2))


def test_guidance_asks_for_another_direction_and_not_for_more_of_the_same():
    generator = torch.Generator().manual_seed(0)
    conditional, unconditional = torch.randn(2, 4, 2, 3, generator=generator)
    for scale in (0.0, 2.0, 5.0):
        torch.testing.assert_close(guided(3 * unconditional, unconditional, scale), 3 * unconditional)
    torch.testing.assert_close(guided(conditional, unconditional, 1.0), conditional)
    closest = guided(conditional, unconditional, 0.0)
    added = guided(conditional, unconditional, 2.0) - conditional
    torch.testing.assert_close((added * closest).sum((1, 2)), torch.zeros(4), atol=1e-5, rtol=0)
    alone = guided(conditional[:1], unconditional[:1], 2.0)
    torch.testing.assert_close(guided(conditional, unconditional, 2.0)[:1], alone)


def test_the_same_seed_gives_the_same_patch_and_nothing_else_does():
    model, known = head(), given(3)
    first, again, other = (model.sample(**known, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    state = torch.get_rng_state()
    model.sample(**known, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)


def test_items_of_a_batch_do_not_see_each_other():
    model, known = head(), given(3)
    patches, times = torch.randn(3, 2, 4), torch.tensor([0.1, 0.5, 0.9])
    names = ("condition", "representation", "previous_patch")
    together = model(patches, times, *(known[name] for name in names))
    for item in range(3):
        alone = model(
            patches[item : item + 1], times[item : item + 1], *(known[name][item : item + 1] for name in names)
        )
        torch.testing.assert_close(together[item : item + 1], alone)


@pytest.mark.parametrize("flag, value", [("has_condition", 0), ("has_representation", 1), ("has_previous", 2)])
def test_what_is_not_known_makes_no_difference(flag, value):
    model, patches, times = head(), torch.randn(2, 2, 4), torch.rand(2)
    known = [given(2)[name] for name in ("condition", "representation", "previous_patch")]
    other = list(known)
    other[value] = torch.randn_like(other[value])
    unknown = {flag: torch.zeros(2, dtype=torch.bool)}
    assert torch.equal(model(patches, times, *known, **unknown), model(patches, times, *other, **unknown))
    assert not torch.equal(model(patches, times, *known), model(patches, times, *other))


def test_times_are_told_apart():
    embedded = time_embedding(torch.linspace(0, 1, 101), 16)
    distances = torch.cdist(embedded, embedded) + 10 * torch.eye(101)
    assert embedded.shape == (101, 16) and distances.min() > 0.05


def test_a_head_comes_back_from_its_folder(tmp_path):
    model, known = head(), given(2)
    model.save_pretrained(tmp_path)
    loaded = F3FlowHead.from_pretrained(tmp_path).eval()
    samples = [m.sample(**known, generator=torch.Generator().manual_seed(0)) for m in (model, loaded)]
    torch.testing.assert_close(*samples, atol=1e-5, rtol=0)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="unknown solver 'heun': choose one of euler, midpoint, adams_bashforth"):
        head().sample(**given(1), solver="heun")
    with pytest.raises(ValueError, match="must not be negative"):
        head().sample(**given(1), noise_temperature=-1.0)
    with pytest.raises(StrictDataclassError, match="even multiple"):
        F3FlowHeadConfig(hidden_size=18, num_attention_heads=4)
    with pytest.raises(StrictDataclassError, match="draws_per_patch must be at least 1"):
        F3FlowHeadConfig(draws_per_patch=0)
