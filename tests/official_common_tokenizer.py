"""
The common tests that Transformers runs on its own models, applied to the tokenizer and its heads.
`test_official_common.py` runs this file, in a process where `tests` is the test package of Transformers.
"""

import inspect
import json
import tempfile
import unittest
from unittest.mock import patch

import torch
from modeling_f3 import F3Config, F3ForAudioClassification, F3ForCTC, F3ForPreTraining, F3Model
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin
from tiny import TINY_ENCODER, noise, tiny_tokenizer_config


# What does not apply to it. Every entry must exist upstream, and nothing else is skipped by us.
SKIPPED = {
    "test_model_get_set_embeddings": "there is no table of embeddings: it reads audio",
    "test_inputs_embeds": "there is no table of embeddings: it reads audio",
    "test_tp_plan_matches_params": "tensor parallelism is not offered",
}


class TokenizerTester:
    """What the common tests ask a model's tests for."""

    batch_size = 3
    seq_length = 7  # latent frames
    hidden_size = TINY_ENCODER["hidden_size"]
    num_hidden_layers = TINY_ENCODER["num_hidden_layers"]
    num_attention_heads = TINY_ENCODER["num_attention_heads"]

    image_size = patch_size = 1  # asked for because `forward` has an argument called noise

    def __init__(self, is_training: bool):
        self.is_training = is_training

    def get_config(self) -> F3Config:
        return tiny_tokenizer_config(vocab_size=9, latent_noise_scale=0.0)

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"input_values": noise(self.batch_size, 1, 32 * self.seq_length)}


class F3ModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (F3Model,)
    is_training = False  # it has no loss
    test_resize_embeddings = False
    test_all_params_have_gradient = False  # the autoencoder is frozen

    def setUp(self):
        self.model_tester = TokenizerTester(self.is_training)
        if self._testMethodName in SKIPPED:
            self.skipTest(SKIPPED[self._testMethodName])

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        inputs.pop("noise", None)
        if return_labels and model_class is F3ForAudioClassification:
            inputs["labels"] = torch.zeros(self.model_tester.batch_size, dtype=torch.long)
        if return_labels and model_class is F3ForCTC:
            inputs["labels"] = torch.ones(self.model_tester.batch_size, 3, dtype=torch.long)
        return inputs

    def test_config(self):
        values = json.loads(tiny_tokenizer_config().to_json_string())
        ConfigTester(
            self,
            config_class=F3Config,
            has_text_modality=False,
            common_properties=["sampling_rate", "hidden_size"],
            **{name: values[name] for name in ("autoencoder_config", "encoder_config")},
        ).run_common_tests()

    def test_model_outputs_equivalence(self):
        # Upstream subtracts all outputs, equal or not, to word its message: latents_mask is boolean.
        def subtract(first, second):
            return torch.sub(first.int(), second.int()) if first.dtype == torch.bool else torch.sub(first, second)

        with patch.object(torch.Tensor, "__sub__", subtract):
            super().test_model_outputs_equivalence()

    def test_can_init_all_missing_weights(self):
        # Upstream skips models that are old by the copyright line of their file; ours has none and is not.
        with tempfile.NamedTemporaryFile("w", suffix=".py") as dated:
            dated.write("# Copyright 2026\n")
            dated.flush()
            with patch.object(inspect, "getfile", return_value=dated.name):
                super().test_can_init_all_missing_weights()

    def test_every_skip_names_a_test(self):
        assert all(hasattr(ModelTesterMixin, name) for name in SKIPPED)


class F3HeadsTest(F3ModelTest):
    all_model_classes = (F3ForPreTraining, F3ForAudioClassification, F3ForCTC)
    is_training = True
