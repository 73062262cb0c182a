"""Item records to means, tables and pictures."""

import json
import statistics
from collections import Counter
from importlib import metadata
from pathlib import Path

import numpy as np

from .reconstruction_metrics import stft


PLOT_WINDOW = 512  # samples under a column of the spectrograms
# score -> heading, which way is better, decimals
COLUMNS = {
    "pesq": ("PESQ-wb", "↑", 2),
    "stoi": ("STOI", "↑", 3),
    "si_sdr": ("SI-SDR (dB)", "↑", 1),
    "mcd": ("MCD", "↓", 2),
    "multi_scale_mel": ("mel distance", "↓", 3),
    "stft_phase_error": ("phase error (rad)", "↓", 3),
    "speaker_similarity": ("speaker sim.", "↑", 3),
    "distill_mos": ("DistillMOS", "↑", 2),
    "wer": ("WER (%)", "↓", 1),
}
PACKAGES = (
    "torch", "transformers", "datasets", "soxr", "pesq", "pystoi", "mel-cepstral-distance", "av", "faster-whisper",
    "ctranslate2", "librosa", "webrtcvad-wheels",
)  # fmt: skip


def write_report(output: Path, records: list[dict], examples: list[tuple], conditions: dict) -> dict:
    """Write every file of an evaluation into `output`; returns what `metrics.json` holds."""
    report = {"conditions": conditions | {"versions": versions()}} | summarize(records)
    (output / "metrics.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    with (output / "items.jsonl").open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    text = markdown(report)
    (output / "report.md").write_text(text, encoding="utf-8")
    plot_spectrograms(examples, conditions["sampling_rate"], output / "spectrograms.png")
    if report["noise"]:
        plot_noise(report["noise"], output / "noise.png")
    print(text)
    return report


def versions() -> dict[str, str]:
    """Versions of the packages that figures depend on, of those installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def summarize(records: list[dict]) -> dict:
    """Means by kind, and within a kind by source and by language; the noise curve over all speech."""
    kinds = _grouped(records, "kind")
    kinds = {kind: kinds[kind] for kind in sorted(kinds, key=lambda kind: (kind != "speech", kind))}
    return {
        "by_kind": {kind: means(rows) for kind, rows in kinds.items()},
        "by_source": {kind: _group_means(rows, "source") for kind, rows in kinds.items()},
        "by_language": {kind: _group_means(rows, "language") for kind, rows in kinds.items()},
        "noise": noise_curve(records),
    }


def means(records: list[dict]) -> dict:
    """Size of a group and, by system and score, the mean, over how many items, and why not over the rest."""
    systems = {system: {} for record in records for system in record["scores"]}
    for system, scores in systems.items():
        for name in COLUMNS:
            rows = [record for record in records if name in record["scores"].get(system, {})]
            if rows:
                scores[name] = _mean(
                    [row["scores"][system][name] for row in rows],
                    Counter(row["undefined"][system][name] for row in rows if name in row["undefined"][system]),
                )
        transcribed = [record for record in records if system in record["word_errors"]]
        if transcribed:
            errors = sum(record["word_errors"][system] for record in transcribed)
            words = sum(record["words"] for record in transcribed)
            scores["wer"] = {"mean": 100 * errors / words, "items": len(transcribed), "errors": errors, "words": words}
        rates = [record["kbit_per_second"][system] for record in records if system in record["kbit_per_second"]]
        if rates:
            scores["kbit_per_second"] = _mean(rates, Counter())
    seconds = round(sum(record["seconds"] for record in records), 1)
    return {"items": len(records), "seconds": seconds, "systems": systems}


def _mean(values: list[float | None], undefined: Counter) -> dict:
    """Mean of the defined values with the half-width of its 95 % interval (normal, items as the sample)."""
    defined = [value for value in values if value is not None]
    spread = statistics.stdev(defined) if len(defined) > 1 else None
    return {
        "mean": statistics.fmean(defined) if defined else None,
        "ci95": None if spread is None else 1.96 * spread / len(defined) ** 0.5,
        "items": len(defined),
        "undefined": dict(undefined),
    }


def _grouped(records: list[dict], column: str) -> dict[str, list[dict]]:
    groups = {}
    for record in sorted(records, key=lambda record: record[column]):
        groups.setdefault(record[column], []).append(record)
    return groups


def _group_means(records: list[dict], column: str) -> dict[str, dict]:
    return {group or "unknown": means(rows) for group, rows in _grouped(records, column).items()}


def noise_curve(records: list[dict]) -> list[dict]:
    """Means of the scores at each noise level, in the order of the levels."""
    points = {}
    for record in records:
        for point in record["noise"]:
            points.setdefault(point["alpha"], []).append(point)
    return [
        {"alpha": alpha}
        | {
            name: _mean([row[name] for row in rows], Counter("not defined" for row in rows if row[name] is None))
            for name in ("pesq", "stoi")
        }
        for alpha, rows in sorted(points.items())
    ]


def markdown(report: dict) -> str:
    """All tables of a report."""
    lines = ["# Reconstruction of held-out recordings", "", _conditions(report["conditions"]), ""]
    for kind, group in report["by_kind"].items():
        lines += [f"## {kind}: {group['items']} items, {group['seconds']:.0f} s", ""]
        lines += [*score_table({"": group}, ""), "", *_undefined_notes(group), ""]
        for column, heading in (("by_source", "source"), ("by_language", "language")):
            groups = report[column][kind]
            if len(groups) > 1:
                lines += [f"### {kind} by {heading}", "", *score_table(groups, heading), ""]
    if report["noise"]:
        lines += ["## Speech decoded from noisy latents z + α·ε", "", *_noise_table(report["noise"]), ""]
        lines += ["![scores against noise](noise.png)", ""]
    return "\n".join([*lines, "![original and reconstructed spectrograms](spectrograms.png)", ""])


def _conditions(conditions: dict) -> str:
    values = conditions | {
        "size": conditions["parameters"] / 1e6,
        "left_out": "".join(f"; {count} {reason}" for reason, count in conditions["skipped"].items()),
    }
    return (
        "{model} ({size:.2f} M parameters, {latent_rate_hz:g} Hz × {latent_dim}, {sampling_rate} Hz) on {items} random "
        "items, {seconds:.0f} s, of {dataset}, split {split}, seed {seed}{left_out}. Encoding and decoding took "
        "{model_seconds_per_second:.3f} s per second of audio ({device}, {threads} threads). Opus rows are a familiar "
        "level, not a contest at equal rate: F3's latents are continuous and have no bit rate."
    ).format(**values)


def score_table(groups: dict[str, dict], heading: str) -> list[str]:
    """One row per group and system; the column of group names is left out when `heading` is empty."""
    shown = [name for name in COLUMNS if any(name in s for g in groups.values() for s in g["systems"].values())]
    titles = [heading, "items"] if heading else []
    titles += ["system", *(f"{COLUMNS[name][0]} {COLUMNS[name][1]}" for name in shown)]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for label, group in groups.items():
        for system, scores in group["systems"].items():
            cells = [_cell(scores.get(name), COLUMNS[name][2]) for name in shown]
            if any(cells):
                lead = [label, str(group["items"])] if heading else []
                lines.append(f"| {' | '.join([*lead, system, *cells])} |")
    return lines


def _cell(score: dict | None, decimals: int) -> str:
    return "" if score is None or score["mean"] is None else f"{score['mean']:.{decimals}f}"


def _undefined_notes(group: dict) -> list[str]:
    """A line for every score that some items don't have."""
    notes = []
    for system, scores in group["systems"].items():
        for name, score in scores.items():
            for reason, count in score.get("undefined", {}).items():
                notes.append(f"- {COLUMNS[name][0]} of {system} without {count} of {group['items']} items: {reason}.")
    wer = next((scores["wer"] for scores in group["systems"].values() if "wer" in scores), None)
    if wer:
        notes.append(f"- WER is over the {wer['items']} English items with a text, {wer['words']} words.")
    return notes


def _noise_table(curve: list[dict]) -> list[str]:
    rows = [f"| {p['alpha']:g} | {_cell(p['pesq'], 2)} | {_cell(p['stoi'], 3)} | {p['stoi']['items']} |" for p in curve]
    return ["| α | PESQ-wb ↑ | STOI ↑ | items |", "|---|---|---|---|", *rows]


def plot_spectrograms(examples: list[tuple[str, str, np.ndarray, np.ndarray]], rate: int, path: Path) -> None:
    """Originals on the left, reconstructions on the right; examples are (kind, name, original, decoded)."""
    from matplotlib.figure import Figure  # draws with Agg, without the global state of pyplot

    figure = Figure(figsize=(12, 2.6 * len(examples)), layout="constrained")
    axes = figure.subplots(len(examples), 2, squeeze=False, sharex="row", sharey=True)
    for row, (kind, name, original, decoded) in zip(axes, examples, strict=True):
        titled = {f"original: {kind}, {name}": original, f"reconstruction: {kind}, {name}": decoded}
        draw_spectrograms(row, titled, rate)
    for axis in axes[-1]:
        axis.set_xlabel("s")
    figure.savefig(path, dpi=75)


def draw_spectrograms(axes, waveforms: dict[str, np.ndarray], rate: int) -> None:
    """Waveforms `[N]` by title, one in each of the axes, all over 80 dB below the loudest of the first."""
    levels = [20 * np.log10(np.abs(stft(samples, PLOT_WINDOW)) + 1e-9) for samples in waveforms.values()]
    top = levels[0].max()
    for axis, (title, samples), image in zip(axes, waveforms.items(), levels, strict=True):
        extent = (0, len(samples) / rate, 0, rate / 2)
        axis.imshow(image, origin="lower", aspect="auto", extent=extent, vmin=top - 80, vmax=top, cmap="magma")
        axis.set_title(title, fontsize=9)
    axes[0].set_ylabel("Hz")


def plot_noise(curve: list[dict], path: Path) -> None:
    """PESQ and STOI over the noise level, with the 95 % interval of the mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    for axis, name in zip(figure.subplots(1, 2), ("pesq", "stoi"), strict=True):
        points = [(point["alpha"], point[name]) for point in curve if point[name]["mean"] is not None]
        axis.errorbar(
            [alpha for alpha, _ in points],
            [score["mean"] for _, score in points],
            [score["ci95"] or 0 for _, score in points],
            marker="o",
            capsize=3,
        )
        axis.set_xlabel("noise level α")
        axis.set_ylabel(COLUMNS[name][0])
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=75)
