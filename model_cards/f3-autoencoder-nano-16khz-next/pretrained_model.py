"""What all models of the family have in common: how they are loaded, and what stays frozen."""

from typing import Any

from .hub_code import HubCodeMixin
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel


HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token")  # also for what a checkpoint refers to


class F3PreTrainedModel(HubCodeMixin, PreTrainedModel):
    main_input_name = "input_values"
    input_modalities = ("audio",)

    def frozen_modules(self) -> list[nn.Module]:
        """The children that no training of this model may change."""
        return []

    def freeze(self) -> None:
        """Freezes them, and those of the models inside; the constructor and `from_pretrained` do so."""
        for model in self.modules():
            for frozen in getattr(model, "frozen_modules", list)():
                frozen.requires_grad_(False)

    def fill_missing(self, **hub_options: Any) -> None:
        """Called by `from_pretrained`: loads what checkpoints of this class leave out."""

    def post_init(self):
        super().post_init()
        self.freeze()

    def _adjust_missing_and_unexpected_keys(self, loading_info) -> None:
        super()._adjust_missing_and_unexpected_keys(loading_info)
        # what `from_pretrained` tells of a model with an adapter is about the adapter alone
        self._missing_weights = sorted(loading_info.missing_keys)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ):
        """
        As in Transformers, with two differences. A checkpoint that does not hold all weights is refused, not completed
        with random ones; only a new head, on top of a base model that is complete, starts at random. And what is frozen
        comes back frozen. Who passes `output_loading_info=True` or a `state_dict` judges for themselves.

        Raises:
            `OSError`: when a weights file cannot be read to its end.
            `RuntimeError`: when weights are missing or have another shape.
        """
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
            )
        except SafetensorError as error:
            raise OSError(
                f"the weights in {pretrained_model_name_or_path!r} are damaged ({error}): download or save them again"
            ) from error
        model.fill_missing(**{name: kwargs[name] for name in HUB_OPTIONS if name in kwargs})
        model.freeze()
        missing = vars(model).pop("_missing_weights")
        if output_loading_info:
            return model, {**info, "missing_keys": info["missing_keys"] | set(missing)}
        if kwargs.get("state_dict") is not None:
            return model
        if model.base_model is not model:
            missing = [name for name in missing if name.startswith(f"{cls.base_model_prefix}.")]
        if missing:
            raise RuntimeError(
                f"the checkpoint {pretrained_model_name_or_path!r} lacks {len(missing)} weights of {cls.__name__} "
                f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}): download or save it again, or check "
                "that its config.json belongs to it"
            )
        return model
