"""Promises of stage 0, kept on a toy autoencoder."""

import io
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from datasets import Audio, Dataset
from f3_training import machine
from f3_training.autoencoder import AutoencoderArguments
from f3_training.autoencoder_step import AutoencoderStep, Batch, LossWeights
from f3_training.autoencoder_trainer import AutoencoderTrainer
from f3_training.checkpoints import latest_checkpoint, load_checkpoint
from f3_training.discriminator import MultiScaleDiscriminator
from f3_training.losses import IntelligibilityLoss, LoudnessLoss, MultiScaleSpectralLoss
from modeling_f3 import F3AutoencoderModel
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import TINY, tiny_model
from transformers import WhisperConfig, WhisperModel


RATE = 8000
AUTOENCODER = {"sampling_rate": RATE, "stft_window": 64, "stft_hop": 32, "stem_stride": 4, "stem_kernel": (3, 8)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset of chirps and the untrained autoencoder that every run starts from."""
    root = tmp_path_factory.mktemp("stage0")
    cells = []
    for index in range(8):
        time = np.arange(2 * RATE) / RATE
        samples = 0.5 * np.sin(2 * np.pi * (200 + 150 * index + 200 * time) * time)
        buffer = io.BytesIO()
        soundfile.write(buffer, samples.astype(np.float32), RATE, format="FLAC")
        cells.append({"bytes": buffer.getvalue(), "path": f"{index}.flac"})
    Dataset.from_dict({"audio": cells}).cast_column("audio", Audio(decode=False)).save_to_disk(root / "data")
    tiny_model(**AUTOENCODER).save_pretrained(root / "start")
    return root


def arguments(folder, name, **options) -> AutoencoderArguments:
    defaults = {
        "dataset": str(folder / "data"),
        "init_from": str(folder / "start"),
        "output_dir": str(folder / name),
        "validation_split": "",
        "max_steps": 6,
        "batch_size": 4,
        "crop_seconds": 0.4,
        "warmup_steps": 2,
        "noise_ramp_steps": 2,
        "discriminator_start": 2,
        "discriminator_channels": 4,
        "mixed_precision": "no",
    }
    return AutoencoderArguments(**{**defaults, **options})


def train(*args, **options) -> AutoencoderTrainer:
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = AutoencoderTrainer(arguments(*args, **options))
    trainer.train()
    return trainer


def run_in_a_process(folder, name, launcher=(), before="", **options) -> subprocess.CompletedProcess:
    """As users run it; `before` is executed first."""
    given = [f"--{key}={value}" for key, value in vars(arguments(folder, name, **options)).items() if value is not None]
    script = folder / "run.py"
    script.write_text(f"import sys\n{before}\nfrom f3_training.autoencoder import train\ntrain()\n")
    command = [sys.executable, *launcher, str(script), *given]
    # sums depend on the number of threads in their last bits
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def weights(folder, name) -> dict[str, torch.Tensor]:
    return load_file(folder / name / "model" / "model.safetensors")


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], **tolerance) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], **{"rtol": 0, "atol": 0, **tolerance}, msg=name)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(folder, streaming):
    name = "streamed" if streaming else "drawn"
    train(folder, f"{name}-whole", streaming=streaming)
    train(folder, f"{name}-parts", streaming=streaming, max_steps=3)
    train(folder, f"{name}-parts", streaming=streaming)
    assert_same(weights(folder, f"{name}-whole"), weights(folder, f"{name}-parts"))


def test_a_run_killed_in_the_middle_of_a_save_resumes_to_the_same_weights(folder):
    assert run_in_a_process(folder, "unharmed", save_steps=2).returncode == 0
    kill_at_second_save = """
import os, signal
from f3_training import checkpoints
saved = []
def save_file(tensors, path, save=checkpoints.save_file):
    saved.append(path)
    if len(saved) > 6:  # five files a checkpoint
        os.kill(os.getpid(), signal.SIGKILL)
    save(tensors, path)
checkpoints.save_file = save_file
"""
    died = run_in_a_process(folder, "killed", before=kill_at_second_save, save_steps=2)
    assert died.returncode == -signal.SIGKILL
    assert latest_checkpoint(folder / "killed").name == "checkpoint-2"
    assert any(path.name.startswith("building-") for path in (folder / "killed").iterdir())
    assert run_in_a_process(folder, "killed", save_steps=2).returncode == 0
    assert_same(weights(folder, "unharmed"), weights(folder, "killed"))
    assert not any(path.name.startswith("building-") for path in (folder / "killed").iterdir())


def test_two_processes_train_as_one_with_the_double_batch(folder):
    train(folder, "one", max_steps=5, batch_size=8, logging_steps=1)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")  # on a free port
    done = run_in_a_process(folder, "two", launcher, max_steps=5, batch_size=4, logging_steps=1)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("total", "mel", "discriminator", "feature_matching"):
        one, two = (logged(folder / run, f"train/{name}") for run in ("one", "two"))
        assert one.keys() == two.keys() and len(one) >= 1
        assert two == pytest.approx(one, rel=2e-3)


def logged(run, name: str) -> dict[int, float]:
    """Step to value of a scalar."""
    events = EventAccumulator(str(run / "log"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def test_time_over_leaves_a_usable_model_and_the_checkpoint_to_go_on_from(folder):
    trainer = train(folder, "short", max_minutes=0.0)
    assert trainer.step == 0
    model = F3AutoencoderModel.from_pretrained(folder / "short" / "model")
    assert model.encode(torch.zeros(1, 1, 100)).latents.shape[-1] == TINY["latent_dim"]
    assert train(folder, "short", max_steps=2).step == 2


def test_learning_shows_in_the_loss(folder):
    trainer = train(folder, "learning", max_steps=150, discriminator_start=1000, learning_rate=1e-2)
    start = F3AutoencoderModel.from_pretrained(folder / "start")
    loss = MultiScaleSpectralLoss(RATE)
    batch = next(iter(trainer._batches()))
    distances = []
    for model in (start, trainer.average):
        with torch.inference_mode():
            distances.append(sum(loss(model(batch[:, None]).audio_values[:, 0], batch).values()).mean().item())
    assert distances[1] < 0.8 * distances[0]


def test_a_frozen_encoder_keeps_the_latents_while_the_decoder_learns(folder):
    train(folder, "decoder", freeze_encoder=True, weight_decay=0.1)
    before, after = load_file(folder / "start" / "model.safetensors"), weights(folder, "decoder")
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith("encoder.")} <= kept
    assert not [name for name in kept if name.startswith("decoder.") and name.endswith(".weight")]


def test_latents_held_at_those_of_the_start_stay_nearer_to_them_than_free_ones(folder):
    start = F3AutoencoderModel.from_pretrained(folder / "start")
    drifts = []
    for name, weight in (("free", 0.0), ("held", 1000.0)):
        trainer = train(folder, name, max_steps=40, learning_rate=1e-2, drift_weight=weight)
        batch = next(iter(trainer._batches()))[:, None]
        with torch.inference_mode():
            drifts.append((trainer.average.encode(batch).latents - start.encode(batch).latents).square().mean().item())
    assert 0 < drifts[1] < 0.5 * drifts[0]


def test_latents_cannot_be_held_at_those_of_a_new_model(folder):
    with pytest.raises(ValueError, match="--init_from"):
        train(folder, "nowhere", init_from=None, preset="nano", drift_weight=1.0)


def test_held_out_figures_reach_history_and_log(folder):
    trainer = train(folder, "held-out", max_steps=2, evaluation_steps=1, validation_split="train", evaluation_items=2)
    history = json.loads((folder / "held-out" / "training.json").read_text())["history"]
    assert [row["step"] for row in history] == [1, 2] == [row["step"] for row in trainer.history]
    assert history[-1]["mel"] > 0
    logs = list((folder / "held-out" / "log").rglob("events.*"))
    assert logs and sum(os.path.getsize(path) for path in logs) > 10_000  # pictures and sound included


def test_checkpoints_hold_no_pickles(folder):
    train(folder, "files", max_steps=1)
    kinds = {path.suffix for path in (folder / "files").rglob("*") if path.is_file() and "log" not in path.parts}
    assert kinds <= {".safetensors", ".json", ".py"}
    parts, progress = load_checkpoint(latest_checkpoint(folder / "files"))
    assert progress["step"] == 1 and parts["discriminator"]


def test_fine_tuning_goes_on_with_the_discriminators_that_it_finds(folder):
    first = train(folder, "first")
    learned = first.updates.discriminator.state_dict()
    assert_same(
        learned,
        AutoencoderTrainer(
            arguments(folder, "second", init_from=str(folder / "first/model"))
        ).updates.discriminator.state_dict(),
    )
    with pytest.raises(ValueError, match="--discriminator_channels 8"):
        AutoencoderTrainer(arguments(folder, "third", init_from=str(folder / "first/model"), discriminator_channels=8))


def test_weights_of_losses_are_those_that_are_given_and_else_the_defaults(folder):
    given = arguments(folder, "weighed", loss_weights='{"loudness": 2, "mel": 1.5}')
    weights = AutoencoderTrainer(given).updates.weights
    assert weights == LossWeights(loudness=2, mel=1.5) != LossWeights()
    for unknown in ("loudnes", "drift"):
        with pytest.raises(ValueError, match=f"no loss is called {unknown}, they are adversarial, "):
            AutoencoderTrainer(arguments(folder, unknown, loss_weights=f'{{"{unknown}": 2}}'))


def test_items_with_noise_may_have_weights_of_their_own(folder):
    given = {"loss_weights": '{"loudness": 2}', "noisy_loss_weights": '{"mel": 3}', "drift_weight": 4.0}
    updates = AutoencoderTrainer(arguments(folder, "noisy", **given)).updates
    assert updates.weights == LossWeights(loudness=2, drift=4)
    assert updates.noisy_weights == LossWeights(loudness=2, drift=4, mel=3)
    with pytest.raises(ValueError, match="--noisy_loss_weights: no loss is called"):
        AutoencoderTrainer(arguments(folder, "unknown", noisy_loss_weights='{"loudnes": 2}'))


def test_discriminators_are_not_shown_noisy_items_that_they_do_not_teach(folder):
    unjudged = {"noisy_loss_weights": '{"adversarial": 0, "feature_matching": 0}'}
    every = {"discriminator_every": 1, "noise_ramp_steps": 1}
    trainer = train(folder, "unjudged", batch_size=16, max_steps=1, **unjudged, **every)
    for trainer.step in range(10, 15):
        shown = trainer._batch(torch.zeros(16, 3200))
        clean = torch.nonzero(shown.noisiness == 0).flatten().tolist()
        assert 0 < len(clean) < 16 and [item for item, _ in shown.judged] == clean


def test_a_recognizer_teaches_where_there_is_one(folder):
    layers = {f"{part}_{name}": 1 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    WhisperModel(WhisperConfig(vocab_size=60_000, d_model=8, **layers)).save_pretrained(folder / "whisper")
    only = json.dumps(dict.fromkeys(vars(LossWeights()).keys() - {"drift", "recognition"}, 0))
    options = {"loss_weights": only, "magnitude_ramp_steps": 1, "max_steps": 1}
    trained = train(folder, "heard", recognizer=str(folder / "whisper"), **options)
    start = F3AutoencoderModel.from_pretrained(folder / "start")
    assert not torch.equal(trained.average.decoder.head.weight, start.decoder.head.weight)
    told = trained.updates(trained._batch(torch.randn(4, 3200)))
    assert told["total"].item() == pytest.approx(LossWeights().recognition * told["recognition"].item())


@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16"), (False, "no")])
def test_bf16_gives_way_where_it_is_slow(folder, monkeypatch, fast, precision):
    monkeypatch.setattr(machine, "fast_in_bf16", lambda: fast)
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = AutoencoderTrainer(arguments(folder, f"precision-{precision}", mixed_precision="bf16"))
    assert trainer.accelerator.mixed_precision == trainer.arguments.mixed_precision == precision


@pytest.fixture
def step():
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState(cpu=True)
    autoencoder, discriminator = tiny_model(**AUTOENCODER).train(), MultiScaleDiscriminator(channels=4)
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.1) for module in (autoencoder, discriminator)]
    losses = (kind(RATE) for kind in (MultiScaleSpectralLoss, IntelligibilityLoss, LoudnessLoss))
    return AutoencoderStep(
        Accelerator(), autoencoder, discriminator, *optimizers, *losses, LossWeights(), LossWeights(), 50.0
    )


def batch(step, samples=None) -> Batch:
    samples = 0.1 * torch.randn(2, 3200) if samples is None else samples
    frames = 3200 // step.autoencoder.config.hop_length
    return Batch(samples, torch.zeros(2, frames, TINY["latent_dim"]), judged=[(0, 0), (1, 100)], judged_samples=1600)


def test_a_loss_without_weight_is_told_and_teaches_nothing(step):
    step.weights = LossWeights(**dict.fromkeys(vars(LossWeights()), 0.0) | {"waveform": 1.0})
    step.loudness_loss.register_forward_hook(lambda module, given, loss: loss * torch.nan)
    told = step(batch(step))
    assert torch.isnan(told["loudness"]) and torch.isfinite(told["total"]) and step.skipped == 0


def test_the_more_noise_the_more_its_weights_count(step):
    step.noisy_weights = LossWeights(**dict.fromkeys(vars(LossWeights()), 0.0) | {"waveform": 7.0})
    step.weights = LossWeights(**dict.fromkeys(vars(LossWeights()), 0.0) | {"waveform": 2.0})
    noisy = batch(step)
    for alphas, weights in (((0.0, 0.0), (2, 2)), ((0.25, 0.5), (4.5, 7)), ((0.5, 1.0), (7, 7))):
        noisy.noise = torch.tensor(alphas).view(2, 1, 1).expand(noisy.noise.shape)
        total = step.total({"waveform": torch.tensor([1.0, 3.0])}, noisy)
        assert total.item() == pytest.approx((weights[0] + 3 * weights[1]) / 2)


def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(step):
    before = [
        {name: value.clone() for name, value in module.state_dict().items()}
        for module in (step.autoencoder, step.discriminator)
    ]
    step(batch(step, torch.full((2, 3200), float("nan"))))
    assert step.skipped == 2  # the discriminators' update and the autoencoder's
    for state, module in zip(before, (step.autoencoder, step.discriminator)):
        assert_same(state, module.state_dict())
    step(batch(step))
    assert step.skipped == 2


def test_discriminators_get_no_gradient_from_the_autoencoder(step):
    gradients = []
    original = step.update

    def update(loss, module, optimizer):
        norm = original(loss, module, optimizer)
        gradients.append([parameter.grad.clone() for parameter in step.discriminator.parameters()])
        return norm

    step.update = update
    step(batch(step))
    assert len(gradients) == 2
    assert all(torch.equal(own, later) for own, later in zip(*gradients))


def test_steps_without_discriminators_leave_them_untouched(step):
    before = {name: value.clone() for name, value in step.discriminator.state_dict().items()}
    quiet = batch(step)
    quiet.judged = []
    losses = step(quiet)
    assert "adversarial" not in losses and losses["total"] > 0
    assert_same(before, step.discriminator.state_dict())
