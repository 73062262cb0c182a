"""What helpers of stage 1 share: a loss beside the model's own, for as long as they are attached."""

import torch
from modeling_f3.model_outputs import F3Output
from modeling_f3.modeling_f3 import F3Model
from torch import nn
from transformers import PreTrainedModel


class Helper:
    """
    Lets a model learn something from its representations as well: `losses` of them are added to the model's own loss, and
    its output has each under its name in `loss_names`. Batches without what the helper is about have none.

    Args:
        model: calls of it take what `name` names, a tensor of the batch, which is `given` to `losses`.
        tokenizer: the part of the model that makes the representations.
        name: of the tensor.
        weight: of the losses.
        own_weight: of the loss that the model has without the helper; at zero, training does not compute it.
    """

    loss_names: tuple[str, ...]

    def __init__(self, model: PreTrainedModel, tokenizer: F3Model, name: str, weight: float, own_weight: float = 1.0):
        self.model, self.name, self.weight, self.own_weight = model, name, weight, own_weight
        self.given = self.heard = None
        self.hooks = [
            model.register_forward_pre_hook(self._take, with_kwargs=True),
            tokenizer.register_forward_hook(self._hear),
            model.register_forward_hook(self._add_loss),
        ]

    def losses(self, heard: F3Output) -> tuple[torch.Tensor, ...]:
        """Scalars, of the output of the tokenizer and what is `given`."""
        raise NotImplementedError

    def detach(self) -> None:
        """Leaves the model as it was, but for what it has learned."""
        for hook in self.hooks:
            hook.remove()

    def _take(self, module: nn.Module, inputs: tuple, options: dict) -> tuple[tuple, dict]:
        self.given = options.pop(self.name, None)
        if self.own_weight == 0 and module.training:
            options["return_loss"] = False
        return inputs, options

    def _hear(self, module: nn.Module, inputs: tuple, output: F3Output) -> None:
        self.heard = output

    def _add_loss(self, module: nn.Module, inputs: tuple, output) -> None:
        if self.given is not None:
            losses = self.losses(self.heard)
            for name, loss in zip(self.loss_names, losses, strict=True):
                setattr(output, name, loss)
            own = 0.0 if output.loss is None else self.own_weight * output.loss
            output.loss = own + self.weight * sum(losses)
        self.given = self.heard = None
