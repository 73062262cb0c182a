from f3_training import benchmark_codecs
from tiny import tiny_model


def test_ratios_are_against_the_fastest_of_the_others():
    results = {"F3 nano": {"ms_per_second": 10.0}, "A": {"ms_per_second": 50.0}, "B": {"ms_per_second": 40.0}}
    assert benchmark_codecs.ratios(results) == {"F3 nano": 4.0}


def test_the_table_is_sorted_by_speed_and_names_its_conditions():
    row = {"parameters": 5e6, "sampling_rate": 16_000}
    codecs = {"EnCodec": {**row, "ms_per_second": 75.0}, "F3 nano": {**row, "ms_per_second": 10.0}}
    text = benchmark_codecs.markdown({"conditions": {"threads": 2}, "codecs": codecs, "ratios": {"F3 nano": 7.5}})
    assert text.index("| F3 nano") < text.index("| EnCodec") and "threads 2" in text and "7.50 times" in text


def test_every_codec_returns_sound_and_is_timed(monkeypatch):
    def f3_tiny():
        model = tiny_model()
        return model, lambda audio: model.decode(**model.encode(audio)).audio_values

    monkeypatch.setattr(benchmark_codecs, "CODECS", {"F3 tiny": f3_tiny, "EnCodec": benchmark_codecs.encodec})
    results = benchmark_codecs.time_codecs(None, seconds=0.2, rounds=1)
    assert results["F3 tiny"]["sampling_rate"] == 800 and results["EnCodec"]["sampling_rate"] == 24_000
    assert all(0 < row["fastest_ms_per_second"] <= row["ms_per_second"] for row in results.values())
