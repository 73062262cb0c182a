"""Opus as a familiar yardstick beside a reconstruction: encode and decode in memory, aligned with the original."""

import io

import numpy as np

from .audio_dataset import resample
from .reconstruction_metrics import optional_import


OPUS_RATE = 48_000  # what Opus decodes to, and one of the few rates it encodes
MAX_SHIFT_SECONDS = 0.002


def opus_round_trip(samples: np.ndarray, sampling_rate: int, bit_rate: int) -> tuple[np.ndarray, int]:
    """
    Mono samples `[N]` through Opus at `bit_rate` bits per second, back at the same rate and length, and the payload in
    bits. The container tells the decoder the encoder's delay; what is left of it, a few samples at the lowest rates, is
    found by correlation and taken out, so that scores of waveforms are fair.
    """
    encoded, bits = _encode(resample(samples, sampling_rate, OPUS_RATE), bit_rate)
    decoded = resample(_decode(encoded), OPUS_RATE, sampling_rate)
    return align(decoded, samples, round(MAX_SHIFT_SECONDS * sampling_rate)), bits


def align(samples: np.ndarray, reference: np.ndarray, max_shift: int) -> np.ndarray:
    """`samples` moved by up to `max_shift` to correlate best with `reference`, cut or zero-padded to its length."""
    padded = np.pad(samples, (max_shift, max_shift + max(0, len(reference) - len(samples))))
    shifted = [padded[shift : shift + len(reference)] for shift in range(2 * max_shift + 1)]
    return max(shifted, key=lambda candidate: candidate @ reference)


def _encode(samples: np.ndarray, bit_rate: int) -> tuple[bytes, int]:
    """Ogg file and the size of its audio packets in bits."""
    with optional_import("av"):
        import av

    # "audio" keeps the waveform, "voip" would filter it; variable bit rate and 20 ms frames are the defaults of Opus
    options = {"application": "audio", "vbr": "on", "frame_duration": "20"}
    file, bits = io.BytesIO(), 0
    with av.open(file, "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=OPUS_RATE, layout="mono", options=options)
        stream.bit_rate = bit_rate
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="flt", layout="mono")
        frame.sample_rate = OPUS_RATE
        for source in (frame, None):
            for packet in stream.encode(source):
                bits += 8 * packet.size
                container.mux(packet)
    return file.getvalue(), bits


def _decode(encoded: bytes) -> np.ndarray:
    import av

    with av.open(io.BytesIO(encoded)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
    return np.concatenate(frames, axis=1).mean(axis=0)
