"""
The common tests that Transformers runs on its own models, applied to the audio language model and the flow head.
`test_official_common.py` runs this file, in a process where `tests` is the test package of Transformers.
"""

import inspect
import json
import tempfile
import unittest
from unittest.mock import patch

import torch
from modeling_f3 import F3AudioLMConfig, F3AudioLMForConditionalGeneration, F3FlowHead, F3FlowHeadConfig
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin
from tiny import (
    noise,
    tiny_flow_config,
    tiny_language_model,
    tiny_listener_config,
    tiny_residual_config,
    tiny_tokenizer_config,
)


# What does not apply. Every entry must exist upstream, and nothing else is skipped by us.
SKIPPED = {
    "test_generation_tester_mixin_inheritance": "the tests of generation are not in the source distribution",
    "test_model_base_model_prefix": "there is no base model of our own inside: the language model is any of Transformers",
}


class AudioLMTester:
    """What the common tests ask a model's tests for."""

    batch_size = 3
    seq_length = 11
    hidden_size = 24
    num_hidden_layers = 2
    num_attention_heads = 4
    is_training = True
    with_audio = True

    def get_config(self) -> F3AudioLMConfig:
        return F3AudioLMConfig(
            audio_config=tiny_tokenizer_config(latent_noise_scale=0.0),
            text_config=tiny_language_model().config,
            flow_config=tiny_flow_config(),
            residual_config=tiny_residual_config(),
            listener_config=tiny_listener_config(),
            connector_hidden_size=20,
            audio_start_token_id=250,
            audio_token_id=251,
            audio_end_token_id=252,
            save_language_model=True,
        )

    def prepare_config_and_inputs_for_common(self):
        row = [7, 250, 251, 251, 251, 251, 252, 20, 21, 22, 23]  # eight latent frames are four audio tokens
        if not self.with_audio:
            row = [7, 8, 9, 10, 11, 12, 13, 20, 21, 22, 23]
        ids = torch.tensor([[*row[:-1], row[-1] + item] for item in range(self.batch_size)])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.with_audio:
            inputs["input_values"] = noise(self.batch_size, 1, 8 * 32)
        return self.get_config(), inputs


class F3AudioLMTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (F3AudioLMForConditionalGeneration,)
    test_resize_embeddings = False
    test_all_params_have_gradient = False  # autoencoder and language model are frozen

    def setUp(self):
        self.model_tester = AudioLMTester()
        # this one makes a batch of its own out of the main input alone
        self.model_tester.with_audio = "eager_matches_sdpa_inference" not in self._testMethodName
        if self._testMethodName in SKIPPED:
            self.skipTest(SKIPPED[self._testMethodName])

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels:
            inputs["labels"] = torch.where(inputs["input_ids"] // 10 == 2, inputs["input_ids"], -100)
        return inputs

    def test_config(self):
        values = json.loads(self.model_tester.get_config().to_json_string())
        names = ("audio_config", "text_config", "flow_config", "residual_config", "listener_config")
        names += ("connector_hidden_size", "audio_start_token_id", "audio_token_id", "audio_end_token_id")
        ConfigTester(
            self,
            config_class=F3AudioLMConfig,
            has_text_modality=False,
            common_properties=["sampling_rate"],
            **{name: values[name] for name in names},
        ).run_common_tests()

    def test_can_init_all_missing_weights(self):
        # Upstream skips models that are old by the copyright line of their file; ours has none and is not.
        with tempfile.NamedTemporaryFile("w", suffix=".py") as dated:
            dated.write("# Copyright 2026\n")
            dated.flush()
            with patch.object(inspect, "getfile", return_value=dated.name):
                super().test_can_init_all_missing_weights()

    def test_every_skip_names_a_test(self):
        assert all(hasattr(ModelTesterMixin, name) for name in SKIPPED)


class FlowHeadConfigTest(unittest.TestCase):
    def test_config(self):
        ConfigTester(
            self,
            config_class=F3FlowHeadConfig,
            has_text_modality=False,
            common_properties=["hidden_size"],
            **tiny_flow_config(),
        ).run_common_tests()

    def test_it_is_a_model_that_saves_all_its_weights(self):
        with tempfile.TemporaryDirectory() as folder:
            model = F3FlowHead(F3FlowHeadConfig(**tiny_flow_config()))
            model.save_pretrained(folder)
            loaded = F3FlowHead.from_pretrained(folder)
        for name, weight in model.state_dict().items():
            self.assertTrue(torch.equal(loaded.state_dict()[name], weight), name)
