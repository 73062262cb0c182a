"""What surrounds the steps of stage 0: data, schedule, averaged weights, held-out figures, checkpoints, log."""

import copy
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from configuration_f3.configuration_autoencoder import F3AutoencoderConfig
from feature_extraction_f3.feature_extraction_f3 import F3FeatureExtractor
from modeling_f3.latent_bottleneck import draw_noise
from modeling_f3.modeling_autoencoder import F3AutoencoderModel
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.utils.hub import cached_file

from .audio_dataset import load_audio_dataset, with_source_weights
from .autoencoder_step import AutoencoderStep, Batch, LossWeights
from .checkpoints import latest_checkpoint, load_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint
from .crops import RandomCrops
from .discriminator import MultiScaleDiscriminator
from .held_out import HeldOut
from .losses import IntelligibilityLoss, LoudnessLoss, MultiScaleSpectralLoss
from .machine import in_bf16, machine
from .muon import MuonWithAdamW, hidden_matrices
from .recognition_loss import RecognitionLoss


DISCRIMINATOR = "discriminator.safetensors"  # beside the weights of the autoencoder
MAGNITUDE_SHARE = 0.03  # of the weights of the losses without phase at the first step


class AutoencoderTrainer:
    """
    Trains an autoencoder as [`~f3_training.autoencoder.AutoencoderArguments`] say, on a new model of `config` or else of
    the arguments' preset.
    """

    model_class = F3AutoencoderModel

    def __init__(self, arguments, config: F3AutoencoderConfig | None = None):
        self.started = time.monotonic()
        if arguments.mixed_precision == "bf16" and not in_bf16(True):
            arguments = replace(arguments, mixed_precision="no")
        self.arguments = arguments
        self.output_dir = Path(arguments.output_dir)
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # or the processes of a machine without any would not be joined
            mixed_precision=arguments.mixed_precision,
            log_with="tensorboard",
            project_dir=arguments.output_dir,
            # steps without discriminators leave them without gradients
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        torch.manual_seed(arguments.seed)  # initial weights
        model = self._initial_model(config)
        model.encoder.requires_grad_(not arguments.freeze_encoder)
        self.config = model.config
        self.average = copy.deepcopy(model).eval().requires_grad_(False).to(self.accelerator.device)
        self.step = 0
        self.minutes_before = 0.0  # of training, by the runs that this one goes on from
        self.history: list[dict] = []
        self.updates = self._prepare(model)
        self._resume()

    def train(self) -> F3AutoencoderModel:
        """Runs until the schedule ends or the time is over and returns the averaged model."""
        arguments, accelerator = self.arguments, self.accelerator
        if accelerator.is_main_process:
            accelerator.init_trackers("log")
        held_out = HeldOut(arguments, self.config.sampling_rate) if accelerator.is_main_process else None
        batches = iter(self._batches())
        progress = tqdm(total=arguments.max_steps, initial=self.step, disable=not accelerator.is_main_process)
        while self.step < arguments.max_steps and not self._out_of_time():
            losses = self._one_step(next(batches).to(accelerator.device))
            progress.update()
            if self.step % arguments.logging_steps == 0:
                self._log(losses, progress)
            if held_out and self.step % arguments.evaluation_steps == 0:
                self._evaluate(held_out)
            if self.step % arguments.save_steps == 0:
                self._save()
        progress.close()
        if held_out and (not self.history or self.history[-1]["step"] != self.step):
            self._evaluate(held_out)
        self._save()
        for tracker in accelerator.trackers:  # without the process group, see `leave_together`
            tracker.finish()
        return self.average

    def _one_step(self, samples: torch.Tensor) -> dict[str, torch.Tensor]:
        rate = self.learning_rate_factor()
        for optimizer, full_rate in (
            (self.updates.optimizer, self.arguments.learning_rate),
            (self.updates.discriminator_optimizer, self.arguments.discriminator_learning_rate),
        ):
            for group in optimizer.param_groups:
                group["lr"] = full_rate * rate
        losses = self.updates(self._batch(samples))
        self.step += 1
        self._average_weights()
        return losses

    def learning_rate_factor(self) -> float:
        """Linear warm-up, constant, linear decay to zero in the last `decay_steps`."""
        warmup = (self.step + 1) / max(1, self.arguments.warmup_steps)
        decay = (self.arguments.max_steps - self.step) / max(1, self.arguments.decay_steps)
        return min(1.0, warmup, decay)

    def _batch(self, samples: torch.Tensor) -> Batch:
        """Everything random about a step, drawn for the global batch from seed and step, then cut to this process."""
        arguments = self.arguments
        size = arguments.batch_size * self.accelerator.num_processes
        first = self.accelerator.process_index * arguments.batch_size
        generator = torch.Generator().manual_seed(arguments.seed * 1_000_003 + self.step)
        frames = -(-samples.shape[1] // self.config.hop_length)
        noise = self._draw_noise((size, frames, self.config.latent_dim), generator)[
            first : first + arguments.batch_size
        ]
        judged_samples = int(samples.shape[1] * arguments.judged_share)
        starts = torch.randint(0, samples.shape[1] - judged_samples + 1, (size,), generator=generator).tolist()
        judging = self.step >= arguments.discriminator_start and self.step % arguments.discriminator_every == 0
        judged = [(item, starts[first + item]) for item in self._judged_items(noise)] if judging else []
        share = min(1.0, MAGNITUDE_SHARE + self.step / max(1, arguments.magnitude_ramp_steps))
        return Batch(samples, noise.to(samples.device), judged, judged_samples, share)

    def _judged_items(self, noise: torch.Tensor) -> list[int]:
        """
        Of the process, chosen such that two processes show the discriminators what one with the double batch shows. Those without
        noise are not equally many in each, and their means count alike.
        """
        noisy = self.updates.noisy_weights
        if noisy.adversarial == noisy.feature_matching == 0:
            without_noise = torch.nonzero(~noise.flatten(1).any(1)).flatten().tolist()
            return without_noise or [0]  # a process that left them out would keep the others waiting
        return list(range(0, len(noise), round(1 / self.arguments.judged_share)))

    def _draw_noise(self, shape: tuple[int, int, int], generator: torch.Generator) -> torch.Tensor:
        """alpha * e of Eq. 2, with a gamma that rises."""
        gamma = self.config.noise_scale * min(1.0, self.step / max(1, self.arguments.noise_ramp_steps))
        return draw_noise(shape, gamma, self.config.clean_probability, generator)

    def _average_weights(self) -> None:
        """Exponential moving average; the first steps average over what there is."""
        decay = min(self.arguments.ema_decay, (1 + self.step) / (10 + self.step))
        current = self.accelerator.unwrap_model(self.updates.autoencoder).parameters()
        torch._foreach_lerp_(list(self.average.parameters()), [weight.detach() for weight in current], 1 - decay)

    def _initial_model(self, config: F3AutoencoderConfig | None) -> F3AutoencoderModel:
        if self.arguments.init_from:
            return self.model_class.from_pretrained(self.arguments.init_from)
        return self.model_class(config or F3AutoencoderConfig.preset(self.arguments.preset))

    def _initial_discriminator(self) -> MultiScaleDiscriminator:
        """What learned beside the autoencoder of `--init_from`, if that is there, else new ones."""
        arguments = self.arguments
        discriminator = MultiScaleDiscriminator(channels=arguments.discriminator_channels)
        trained = arguments.init_from and cached_file(
            arguments.init_from, DISCRIMINATOR, _raise_exceptions_for_missing_entries=False
        )
        if trained:
            try:
                discriminator.load_state_dict(load_file(trained))
            except RuntimeError as error:
                raise ValueError(
                    f"the discriminators of {arguments.init_from} are not of --discriminator_channels {arguments.discriminator_channels}"
                ) from error
        return discriminator

    def _prepare(self, model: F3AutoencoderModel) -> AutoencoderStep:
        arguments = self.arguments
        discriminator = self._initial_discriminator()
        optimizer = MuonWithAdamW(
            *hidden_matrices(model, ends=("stem", "head")),
            lr=arguments.learning_rate,
            weight_decay=arguments.weight_decay,
        )
        discriminator_optimizer = torch.optim.AdamW(
            discriminator.parameters(), lr=arguments.discriminator_learning_rate, betas=(0.8, 0.99)
        )
        prepared = self.accelerator.prepare(model.train(), discriminator.train(), optimizer, discriminator_optimizer)
        distances = [
            kind(self.config.sampling_rate).to(self.accelerator.device)
            for kind in (MultiScaleSpectralLoss, IntelligibilityLoss, LoudnessLoss)
        ]
        if arguments.torch_compile:
            for module in (model.encoder, model.decoder, *distances):
                module.compile()
        return self._step(*prepared, *distances)

    def _step(self, *parts) -> AutoencoderStep:
        return AutoencoderStep(
            self.accelerator,
            *parts,
            *self._loss_weights(),
            max_grad_norm=self.arguments.max_grad_norm,
            anchor=self._anchor(),
            recognition_loss=self._recognition_loss(),
        )

    def _loss_weights(self) -> tuple[LossWeights, LossWeights]:
        """
        Of items without noise and with it: what `--loss_weights` gives, and the defaults for the others; the same but for what
        `--noisy_loss_weights` gives. `drift` has an option of its own, for it needs an anchor.
        """
        weights = LossWeights(**self._given_weights("loss_weights"), drift=self.arguments.drift_weight)
        return weights, replace(weights, **self._given_weights("noisy_loss_weights"))

    def _given_weights(self, option: str) -> dict[str, float]:
        given = json.loads(getattr(self.arguments, option) or "{}")
        names = vars(LossWeights()).keys() - {"drift"}
        unknown = given.keys() - names
        if unknown:
            raise ValueError(
                f"--{option}: no loss is called {', '.join(sorted(unknown))}, they are {', '.join(sorted(names))}"
            )
        return given

    def _anchor(self) -> F3AutoencoderModel | None:
        """The pretrained autoencoder at whose latents the new ones are held, if at any."""
        if self.arguments.drift_weight == 0:
            return None
        if not self.arguments.init_from:
            raise ValueError(
                "--drift_weight holds the latents at those of a pretrained autoencoder: pass it as --init_from"
            )
        anchor = self.model_class.from_pretrained(self.arguments.init_from)
        return anchor.eval().requires_grad_(False).to(self.accelerator.device)

    def _recognition_loss(self) -> RecognitionLoss | None:
        """What `--recognizer` hears, if there is one."""
        if self.arguments.recognizer is None:
            return None
        return RecognitionLoss(self.arguments.recognizer, self.config.sampling_rate).to(self.accelerator.device)

    def _batches(self) -> DataLoader:
        """A worker process decodes ahead; it is told where to begin, so nothing about it needs to be saved."""
        arguments = self.arguments
        dataset = load_audio_dataset(
            arguments.dataset, arguments.train_split, streaming=arguments.streaming, name=arguments.dataset_name
        )
        if arguments.source_weights:
            dataset = with_source_weights(dataset, json.loads(arguments.source_weights))
        crops = RandomCrops(
            dataset,
            self.config.sampling_rate,
            int(arguments.crop_seconds * self.config.sampling_rate),
            arguments.batch_size,
            seed=arguments.seed,
            first_step=self.step,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        return DataLoader(crops, batch_size=None, num_workers=1, prefetch_factor=4)

    def _minutes(self) -> float:
        """Since this run began."""
        return (time.monotonic() - self.started) / 60

    def _out_of_time(self) -> bool:
        """Decided by the main process for all."""
        minutes = torch.tensor(self._minutes(), device=self.accelerator.device)
        if self.accelerator.num_processes > 1:
            torch.distributed.broadcast(minutes, 0)
        return self.arguments.max_minutes is not None and minutes.item() >= self.arguments.max_minutes

    def _log(self, losses: dict[str, torch.Tensor], progress: tqdm) -> None:
        means = {name: float(value) for name, value in self.accelerator.reduce(losses, "mean").items()}
        means["skipped_updates"] = self.updates.skipped
        means["learning_rate"] = self.arguments.learning_rate * self.learning_rate_factor()
        self.accelerator.log({f"train/{name}": value for name, value in means.items()}, step=self.step)
        shown = (*vars(self.updates.weights), "discriminator", "grad_norm")
        progress.set_postfix({name: f"{means[name]:.3f}" for name in shown if name in means}, refresh=False)

    def _evaluate(self, held_out: HeldOut) -> None:
        scores = held_out.score(self.average)
        if not scores:
            return
        self.history.append({"step": self.step, "minutes": self.minutes_before + self._minutes(), **scores})
        tqdm.write("held-out " + json.dumps({name: round(value, 4) for name, value in self.history[-1].items()}))
        self.accelerator.log({f"held_out/{name}": value for name, value in scores.items()}, step=self.step)
        held_out.show(self.average, self.accelerator.get_tracker("tensorboard", unwrap=True), self.step)

    def _save(self) -> None:
        """A checkpoint to resume from, then the averaged model for use."""
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        unwrap, updates = self.accelerator.unwrap_model, self.updates
        parts = {
            "autoencoder": unwrap(updates.autoencoder).state_dict(),
            "average": self.average.state_dict(),
            "discriminator": unwrap(updates.discriminator).state_dict(),
            "optimizer": optimizer_tensors(updates.optimizer),
            "discriminator_optimizer": optimizer_tensors(updates.discriminator_optimizer),
        }
        minutes = self.minutes_before + self._minutes()
        progress = {"minutes": minutes, "skipped": updates.skipped, "history": self.history}
        save_checkpoint(self.output_dir, self.step, parts, progress)
        self.average.save_pretrained(self.output_dir / "model")
        save_file(parts["discriminator"], self.output_dir / "model" / DISCRIMINATOR)
        F3FeatureExtractor(sampling_rate=self.config.sampling_rate).save_pretrained(self.output_dir / "model")
        record = {"arguments": vars(self.arguments), "steps": self.step, "processes": self.accelerator.num_processes}
        record |= {**machine(), **progress}
        (self.output_dir / "training.json").write_text(json.dumps(record, indent=2))

    def _resume(self) -> None:
        checkpoint = latest_checkpoint(self.output_dir)
        if checkpoint is None:
            return
        parts, progress = load_checkpoint(checkpoint)
        unwrap, updates = self.accelerator.unwrap_model, self.updates
        unwrap(updates.autoencoder).load_state_dict(parts["autoencoder"])
        self.average.load_state_dict(parts["average"])
        unwrap(updates.discriminator).load_state_dict(parts["discriminator"])
        restore_optimizer(updates.optimizer, parts["optimizer"])
        restore_optimizer(updates.discriminator_optimizer, parts["discriminator_optimizer"])
        self.step, self.history, updates.skipped = progress["step"], progress["history"], progress["skipped"]
        self.minutes_before = progress["minutes"]
