"""
Muon for convolutional networks: momentum whose matrices are orthogonalised before they are applied (Keller Jordan, 2024),
with learning rates scaled as in Moonlight (arXiv 2502.16982), and AdamW for what is not a hidden matrix.

`torch.optim.Muon` takes two-dimensional parameters only; here a convolution's weight is the matrix [first dimension, rest].
"""

import torch

from .machine import fast_in_bf16


NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # slope at zero as steep as possible; five iterations end within 0.7 ... 1.2


class MuonWithAdamW(torch.optim.Optimizer):
    """
    Args:
        matrices: parameters of two or more dimensions, updated by Muon.
        others: all other parameters, updated by AdamW.
        lr: learning rate of both; Muon's updates are scaled to the size that AdamW's typically have.
        momentum: of Muon.
        betas, eps: of AdamW.
        weight_decay: decoupled, of both.
    """

    def __init__(self, matrices, others, lr, momentum=0.95, betas=(0.8, 0.99), eps=1e-8, weight_decay=0.01):
        groups = [{"params": list(matrices), "orthogonal": True}, {"params": list(others), "orthogonal": False}]
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        """Updates every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            update = self._orthogonal_update if group["orthogonal"] else self._adam_update
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(group["lr"] * update(parameter, group))
        return loss

    def _orthogonal_update(self, parameter: torch.Tensor, group: dict) -> torch.Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
        matrix = parameter.grad.lerp(state["momentum"], group["momentum"]).flatten(1)  # Nesterov
        scale = 0.2 * max(matrix.shape) ** 0.5  # the root mean square of AdamW's updates
        return scale * orthogonalize(matrix).view_as(parameter)

    def _adam_update(self, parameter: torch.Tensor, group: dict) -> torch.Tensor:
        state = self.state[parameter]
        if not state:
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["step"] = torch.tensor(0)
        state["step"] += 1
        first, second = group["betas"]
        state["mean"].lerp_(parameter.grad, 1 - first)
        state["square"].lerp_(parameter.grad.square(), 1 - second)
        step = state["step"].item()
        deviation = (state["square"] / (1 - second**step)).sqrt() + group["eps"]
        return state["mean"] / (1 - first**step) / deviation


def orthogonalize(matrix: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """U V^T of `matrix` = U S V^T, approximately, by Newton-Schulz iterations in bf16 where that is fast."""
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(torch.bfloat16 if fast_in_bf16() else torch.float32)
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)


def hidden_matrices(model: torch.nn.Module, ends: tuple[str, ...]) -> tuple[list, list]:
    """
    The weights of two or more dimensions of the layers that `ends` don't name, and all other parameters; frozen ones are left
    out.
    """
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        hidden = parameter.ndim >= 2 and not any(end in name.split(".") for end in ends)
        (matrices if hidden else others).append(parameter)
    return matrices, others
