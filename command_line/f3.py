"""
The command `f3`: sound files to latents and back, to text, and text to sound files.

    f3 encode recordings/ --output latents --model model_cards/f3-autoencoder-nano-16khz
    f3 decode latents/ --output decoded --model model_cards/f3-autoencoder-nano-16khz

Files that are there already are not done again, and a bad one stops no other. Loading of models waits until it is needed,
so that `f3 --help` answers at once.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from .file_jobs import FileJob, claim, file_jobs, run_jobs


app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Audio to latents, to text and back.")
console = Console(stderr=True)

SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff")
LATENTS_SUFFIXES = (".safetensors",)
ANY_SOUND = {"resample": True, "to_mono": True}  # of the feature extractor: files are what they are

Sources = Annotated[list[str], typer.Argument(help="Files, folders, or quoted patterns.")]
Output = Annotated[Path, typer.Option(help="Folder to write to.")]
Model = Annotated[str, typer.Option(envvar="F3_MODEL", help="Folder or name on the Hub.")]
LanguageModel = Annotated[
    str | None,
    typer.Option(envvar="F3_LANGUAGE_MODEL", help="Folder or name on the Hub, if not the one that the model names."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps, ...")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]


@app.command()
def encode(
    sources: Sources,
    output: Output,
    model: Model,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    dataset: Annotated[Path | None, typer.Option(help="Also gather the latents here, for load_from_disk.")] = None,
) -> None:
    """Writes the latents of sound files, as safetensors."""
    from .latents_file import gather, save_latents

    jobs = _jobs(sources, SOUND_SUFFIXES, output, ".safetensors", command="encode", model=model)
    autoencoder, extractor = _autoencoder(_loaded(model, device, dtype)), _feature_extractor(model)

    def work(source: Path, target: Path) -> None:
        inputs = extractor(_recording(source), **ANY_SOUND).to(autoencoder.device, autoencoder.dtype)
        save_latents(autoencoder.encode(**inputs), extractor.sampling_rate, model, target)

    failed = _run_on_all_cores(jobs, work)
    if dataset is not None:
        done = [job for job in jobs if job.target.exists()]
        gather([job.target for job in done], [str(job.source) for job in done], dataset)
    raise typer.Exit(min(failed, 1))


@app.command()
def decode(sources: Sources, output: Output, model: Model, device: Device = "cpu", dtype: Dtype = "float32") -> None:
    """Writes the sound of latents that `encode` wrote, as 16-bit WAV files."""
    import torch

    from .latents_file import load_latents

    jobs = _jobs(sources, LATENTS_SUFFIXES, output, ".wav", command="decode", model=model)
    autoencoder = _autoencoder(_loaded(model, device, dtype))
    rate = autoencoder.config.sampling_rate

    def work(source: Path, target: Path) -> None:
        latents, metadata = load_latents(source)
        if int(metadata["sampling_rate"]) != rate:
            raise ValueError(
                f"latents of {metadata['sampling_rate']} Hz, the model has {rate}: pass {metadata['model']}"
            )
        lengths = torch.tensor([int(metadata["samples"])])
        latents = latents[None].to(autoencoder.device, autoencoder.dtype)
        _write(autoencoder.decode(latents, audio_lengths=lengths).audio_values[0, 0], rate, target)

    raise typer.Exit(min(_run_on_all_cores(jobs, work), 1))


@app.command()
def transcribe(
    sources: Sources,
    output: Output,
    model: Model,
    language: Annotated[str, typer.Option(help="English name of the language spoken.")] = "English",
    language_model: LanguageModel = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Writes what is said in sound files, as text files, and prints it."""
    from modeling_f3.speech_recognition_pipeline import F3SpeechRecognitionPipeline

    made_by = {"command": "transcribe", "model": model, "language": language}
    if language_model is not None:
        made_by["language_model"] = language_model
    jobs = _jobs(sources, SOUND_SUFFIXES, output, ".txt", **made_by)
    network, processor = _audio_lm(model, language_model, device, dtype), _processor(model)
    pipeline = F3SpeechRecognitionPipeline(model=network, processor=processor)

    def work(source: Path, target: Path) -> None:
        text = pipeline(_recording(source), language=language)["text"]
        target.write_text(text + "\n", encoding="utf-8")
        print(text)

    raise typer.Exit(min(run_jobs(jobs, work, console), 1))


@app.command()
def speak(
    text: Annotated[str, typer.Argument(help="What to say.")],
    output: Annotated[Path, typer.Option(help="Sound file to write.")],
    model: Model,
    voice: Annotated[Path | None, typer.Option(help="Recording of a voice to go on in.")] = None,
    voice_text: Annotated[str, typer.Option(help="What is said in it.")] = "",
    steps: Annotated[int | None, typer.Option(help="Steps of the flow solver, if not the model's own.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale, if not the model's own.")] = None,
    seed: int = 0,
    language_model: LanguageModel = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Writes spoken text as a 16-bit WAV file, said sentence by sentence."""
    import torch
    from feature_extraction_f3 import split_sentences

    network, processor = _audio_lm(model, language_model, device, dtype), _processor(model)
    if (device, dtype) == ("cpu", "float32"):
        network.pack_for_cpu()
    rate = processor.feature_extractor.sampling_rate
    prompt = {"voice": None if voice is None else _recording(voice), "voice_text": voice_text}
    generator = torch.Generator().manual_seed(seed)
    options = {"num_flow_steps": steps, "flow_guidance_scale": guidance, "generator": generator}
    said = []
    for sentence in split_sentences(text) or [text]:
        request = processor.apply_speech_request(sentence, **prompt, processor_kwargs=ANY_SOUND)
        spoken = network.generate(**request.to(network.device), **options)
        said.append(spoken.audio[0])
        seconds = spoken.audio_lengths[0].item() / rate
        console.print(f"{sentence} {seconds:.2f} s, ended by {spoken.finish_reasons[0]}", highlight=False, markup=False)
    _write(torch.cat(said), rate, output)


@app.command()
def info(
    model: Annotated[str, typer.Argument(envvar="F3_MODEL", help="Folder or name on the Hub.")],
    language_model: LanguageModel = None,
) -> None:
    """Shows what a model is."""
    from rich.table import Table

    elsewhere = {} if language_model is None else {"text_model_name_or_path": language_model}
    network = _loaded(model, "cpu", "float32", **elsewhere)
    table = Table(show_header=False)
    table.add_row("class", type(network).__name__)
    for name, value in _facts(network).items():
        table.add_row(name, value)
    Console().print(table)


def _facts(network: Any) -> dict[str, str]:
    """What somebody wants to know before using a model."""
    tokenizer, autoencoder = getattr(network, "audio_model", network), _autoencoder(network)
    config = autoencoder.config
    parameters = sum(parameter.numel() for parameter in network.parameters())
    facts = {
        "parameters": f"{parameters / 1e6:.2f} M",
        "sampling rate": f"{config.sampling_rate} Hz",
        "latents": f"{config.frame_rate:g} Hz x {config.latent_dim}",
    }
    if tokenizer is not autoencoder:
        facts["representations"] = f"{config.frame_rate:g} Hz x {tokenizer.config.hidden_size}"
    if network is not tokenizer:
        facts["language model"] = str(network.config.text_model_name_or_path)
        facts["speaks"] = "yes" if network.flow_head is not None else "no"
    return facts


def _jobs(sources: list[str], suffixes: tuple[str, ...], output: Path, suffix: str, **made_by: str) -> list[FileJob]:
    try:
        jobs = file_jobs(sources, suffixes, output, suffix)
        claim(output, made_by)
        return jobs
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _run_on_all_cores(jobs: list[FileJob], work: Callable[[Path, Path], None]) -> int:
    """As many files at once as PyTorch would take threads for one; the layers of a small model leave most of those idle."""
    import torch

    def without_gradients(source: Path, target: Path) -> None:
        with torch.inference_mode():  # a setting of the thread
            work(source, target)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run_jobs(jobs, without_gradients, console, at_once=threads)
    finally:
        torch.set_num_threads(threads)


def _loaded(model: str, device: str, dtype: str, **options: Any) -> Any:
    import modeling_f3  # noqa: F401  (registers the classes of F3)
    import torch
    from transformers import AutoModel

    return AutoModel.from_pretrained(model, dtype=getattr(torch, dtype), **options).to(device).eval()


def _audio_lm(model: str, language_model: str | None, device: str, dtype: str) -> Any:
    return _loaded(model, device, dtype, text_model_name_or_path=language_model).merge_adapter()


def _autoencoder(network: Any) -> Any:
    """The one inside a tokenizer or an audio language model, or the model itself."""
    tokenizer = getattr(network, "audio_model", network)
    return getattr(tokenizer, "autoencoder", tokenizer)


def _feature_extractor(model: str) -> Any:
    from transformers import AutoFeatureExtractor

    return AutoFeatureExtractor.from_pretrained(model)


def _processor(model: str) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(model)


def _recording(path: Path) -> dict[str, Any]:
    """A sound file as the feature extractor takes it."""
    import soundfile

    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return {"array": samples.T, "sampling_rate": rate}


def _write(samples: Any, rate: int, path: Path) -> None:
    import soundfile

    soundfile.write(path, samples.float().cpu().numpy(), rate, format="WAV")
