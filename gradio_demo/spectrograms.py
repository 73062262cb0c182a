"""Pictures of sound."""

import numpy as np
from f3_training.reconstruction_report import draw_spectrograms
from matplotlib.figure import Figure


def spectrograms(waveforms: dict[str, np.ndarray], rate: int) -> Figure:
    """Waveforms `[N]` by title, beside each other."""
    figure = Figure(figsize=(12, 2.6), layout="constrained")
    axes = figure.subplots(1, len(waveforms), squeeze=False, sharex=True, sharey=True)[0]
    draw_spectrograms(axes, waveforms, rate)
    for axis in axes:
        axis.set_xlabel("s")
    return figure
