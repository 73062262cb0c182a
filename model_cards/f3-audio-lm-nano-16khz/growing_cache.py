"""A cache for sequences that grow by a token at a time."""

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer


class GrowingLayer(DynamicLayer):
    """
    Keys and values with room for more, which doubles when it is full. `DynamicLayer` copies all that it holds for every token,
    so that a token costs the more the later it comes. All that is asked of this one is to grow.
    """

    rooms: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes in what is new, `[B, heads, n, head_dim]`, and returns all that there is."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        used = self.get_seq_length()
        end = used + key_states.shape[2]
        self.rooms = tuple(_filled(room, used, new) for room, new in zip(self.rooms, (key_states, value_states)))
        self.keys, self.values = (room[:, :, :end] for room in self.rooms)
        return self.keys, self.values


def _filled(room: torch.Tensor | None, used: int, new: torch.Tensor) -> torch.Tensor:
    end = used + new.shape[2]
    if room is None or end > room.shape[2]:
        larger = new.new_empty(*new.shape[:2], 2 * end, new.shape[3])
        if room is not None:
            larger[:, :, :used] = room[:, :, :used]
        room = larger
    room[:, :, used:end] = new
    return room


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """The cache that Transformers makes for a model, with layers that grow in place of those that hold all there was."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
