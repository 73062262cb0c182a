"""
The common tests that Transformers runs on its own models, applied to the autoencoder and its feature extractor.
`test_official_common.py` runs this file, in a process where `tests` is the test package of Transformers.
"""

import inspect
import json
import tempfile
import unittest
from unittest.mock import patch

import torch
from modeling_f3 import F3AutoencoderConfig, F3AutoencoderModel, F3FeatureExtractor
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin
from tests.test_sequence_feature_extraction_common import SequenceFeatureExtractionTestMixin
from tiny import TINY, noise, tiny_config


# What does not apply to an autoencoder. Every entry must exist upstream, and nothing else is skipped by us.
SKIPPED = {
    "test_attention_outputs": "there is no attention",
    "test_hidden_states_output": "maps of different rates and widths are not one stack of hidden states",
    "test_inputs_embeds": "waveforms are not embedded",
    "test_model_get_set_embeddings": "waveforms are not embedded",
    "test_retain_grad_hidden_states_attentions": "neither hidden states nor attentions are returned",
    "test_resize_tokens_embeddings": "there is no vocabulary",
    "test_resize_embeddings_untied": "there is no vocabulary",
}


class AutoencoderTester:
    """What the common tests ask a model's tests for."""

    batch_size = 3
    is_training = False  # the losses of stage 0 need a discriminator and are not part of the model

    def get_config(self) -> F3AutoencoderConfig:
        return tiny_config()

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"input_values": noise(self.batch_size, 1, 200)}


class F3AutoencoderModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (F3AutoencoderModel,)
    test_resize_embeddings = False
    has_attentions = False

    def setUp(self):
        self.model_tester = AutoencoderTester()
        if self._testMethodName in SKIPPED:
            self.skipTest(SKIPPED[self._testMethodName])

    def test_config(self):
        ConfigTester(
            self,
            config_class=F3AutoencoderConfig,
            has_text_modality=False,
            common_properties=["sampling_rate", "hop_length", "frame_rate", "latent_dim"],
            **json.loads(json.dumps(TINY)),
        ).run_common_tests()

    def test_can_init_all_missing_weights(self):
        # Upstream skips models that are old by the copyright line of their file; ours has none and is not.
        with tempfile.NamedTemporaryFile("w", suffix=".py") as dated:
            dated.write("# Copyright 2026\n")
            dated.flush()
            with patch.object(inspect, "getfile", return_value=dated.name):
                super().test_can_init_all_missing_weights()

    def test_model_outputs_equivalence(self):
        # Upstream asks every model for hidden states, and subtracts all outputs, equal or not, to word its message:
        # latents_mask is boolean.
        forward = F3AutoencoderModel.forward

        def forgiving(model, *args, output_hidden_states=None, **kwargs):
            return forward(model, *args, **kwargs)

        def subtract(first, second):
            return torch.sub(first.int(), second.int()) if first.dtype == torch.bool else torch.sub(first, second)

        with patch.object(F3AutoencoderModel, "forward", forgiving), patch.object(torch.Tensor, "__sub__", subtract):
            super().test_model_outputs_equivalence()

    def test_every_skip_names_a_test(self):
        assert all(hasattr(ModelTesterMixin, name) for name in SKIPPED)


class FeatureExtractorTester:
    """What the common tests ask a feature extractor's tests for."""

    batch_size = 7
    min_seq_length = 400
    max_seq_length = 2000
    feature_size = 1
    seq_length_diff = (max_seq_length - min_seq_length) // (batch_size - 1)

    def prepare_feat_extract_dict(self) -> dict:
        return {"feature_size": 1, "sampling_rate": 16_000, "padding_value": 0.0}

    def prepare_inputs_for_common(self, equal_length: bool = False, numpify: bool = False) -> list:
        lengths = range(self.min_seq_length, self.max_seq_length, self.seq_length_diff)
        waveforms = [noise(self.max_seq_length if equal_length else length, seed=length) for length in lengths]
        return [waveform.numpy() if numpify else waveform.tolist() for waveform in waveforms[: self.batch_size]]


class F3FeatureExtractionTest(SequenceFeatureExtractionTestMixin, unittest.TestCase):
    feature_extraction_class = F3FeatureExtractor

    def setUp(self):
        self.feat_extract_tester = FeatureExtractorTester()

    def test_call(self):
        """The call itself, which upstream leaves to each model's own tests."""
        extractor = F3FeatureExtractor(**self.feat_extract_dict)
        waveforms = self.feat_extract_tester.prepare_inputs_for_common(numpify=True)
        features = extractor(waveforms, sampling_rate=16_000)
        self.assertEqual(features["padding_mask"].sum(1).tolist(), [len(waveform) for waveform in waveforms])
        for index, waveform in enumerate(waveforms):
            single = extractor(waveform, sampling_rate=16_000)["input_values"][0]
            self.assertTrue(torch.equal(features["input_values"][index, :, : len(waveform)], single))
