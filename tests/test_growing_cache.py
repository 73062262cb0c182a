import torch
from modeling_f3.growing_cache import GrowingLayer, growing_cache
from transformers import LlamaConfig, MistralConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


def test_a_growing_layer_holds_what_a_dynamic_one_does():
    growing, plain = GrowingLayer(), DynamicLayer()
    for length in (3, 1, 1, 7, 1, 30, 1):
        new = torch.randn(2, 4, length, 8), torch.randn(2, 4, length, 6)
        for found, wanted in zip(growing.update(*new), plain.update(*new)):
            assert torch.equal(found, wanted)
        assert growing.get_seq_length() == plain.get_seq_length()


def test_a_token_is_written_where_there_is_room_and_nothing_else_is_moved():
    layer, places = GrowingLayer(), set()
    for _ in range(100):
        keys, _ = layer.update(torch.randn(1, 1, 1, 4), torch.randn(1, 1, 1, 4))
        places.add(keys.data_ptr())
    assert len(places) <= 6  # room for 2, 6, 14, 30, 62 and 126 tokens, where memory may be taken again


def test_only_layers_that_hold_everything_are_replaced():
    config = MistralConfig(num_hidden_layers=2, sliding_window=5, vocab_size=8)
    assert [type(layer) for layer in growing_cache(config).layers] == [DynamicSlidingWindowLayer] * 2
    config = LlamaConfig(num_hidden_layers=3, vocab_size=8)
    assert [type(layer) for layer in growing_cache(config).layers] == [GrowingLayer] * 3
