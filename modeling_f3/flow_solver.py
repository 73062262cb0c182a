"""Solving dx / dt = v(x, t) from noise at t = 0 to data at t = 1."""

from collections.abc import Callable

import torch


Velocity = Callable[[torch.Tensor, float], torch.Tensor]


def time_grid(num_steps: int, sway: float = -1.0) -> list[float]:
    """
    num_steps + 1 times from 0 to 1, bent by t + sway (cos(pi t / 2) - 1 + t): evenly spaced at 0, denser near the noise for
    negative values, where the path bends most.

    Raises:
        `ValueError`: for less than one step, or a sway for which times would not increase.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    even = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    times = even + sway * (torch.cos(torch.pi / 2 * even) - 1 + even)
    if bool((times.diff() <= 0).any()):
        raise ValueError(f"sway {sway} lets time run backwards: choose it from -1 to 1.5")
    return times.tolist()


def euler(velocity: Velocity, start: torch.Tensor, times: list[float]) -> torch.Tensor:
    """One evaluation of the velocity per step."""
    state = start
    for now, then in zip(times, times[1:]):
        state = state + (then - now) * velocity(state, now)
    return state


def midpoint(velocity: Velocity, start: torch.Tensor, times: list[float]) -> torch.Tensor:
    """Two evaluations per step, with an error of second order."""
    state = start
    for now, then in zip(times, times[1:]):
        half = state + (then - now) / 2 * velocity(state, now)
        state = state + (then - now) * velocity(half, (now + then) / 2)
    return state


def adams_bashforth(velocity: Velocity, start: torch.Tensor, times: list[float]) -> torch.Tensor:
    """One evaluation per step, with an error of second order: the velocity goes on changing as it did over the last step."""
    state, last = start, None
    for now, then in zip(times, times[1:]):
        current = velocity(state, now)
        change = 0 if last is None else (current - last[1]) / (now - last[0])
        state = state + (then - now) * (current + (then - now) / 2 * change)
        last = now, current
    return state


SOLVERS = {"euler": euler, "midpoint": midpoint, "adams_bashforth": adams_bashforth}


def guided(conditional: torch.Tensor, unconditional: torch.Tensor, scale: float) -> torch.Tensor:
    """
    Classifier-free guidance of velocities [N, P, D]: s v_u + scale (v_c - s v_u), where s of each item brings s v_u as close to
    v_c as it can, so that guidance asks for what differs in direction and not for more of everything (CFG-Zero*, arXiv
    2503.18886). A scale of 1 leaves the conditional velocity as it is.
    """
    overlap, size = ((part * unconditional).flatten(1).sum(1) for part in (conditional, unconditional))
    closest = (overlap / size.clamp(min=1e-8)).view(-1, 1, 1) * unconditional
    return closest + scale * (conditional - closest)
