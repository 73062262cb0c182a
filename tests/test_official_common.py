"""
The official common tests of Transformers on our classes. They are part of the source distribution of the installed
version, which is downloaded when this runs (and kept in pytest's cache); nothing of it is copied into this repository.
"""

import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import pytest
import transformers


ROOT = Path(__file__).parent.parent

# What the common tests import that the source distribution leaves out: mixins of tests that do not concern us, and the
# settings that every configuration must accept.
STUBS = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": 'config_common_kwargs = {"return_dict": False, "output_hidden_states": True}\n',
}


@pytest.fixture(scope="session")
def upstream(request, tmp_path_factory) -> Path:
    """A folder whose `tests` are those of the installed Transformers."""
    cache = request.config.cache.mkdir(f"transformers-{transformers.__version__}")
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
    download += ["--no-binary", ":all:", "--dest", cache, f"transformers=={transformers.__version__}"]
    if not list(cache.glob("*.tar.gz")):
        done = subprocess.run(download, capture_output=True, text=True)
        if done.returncode != 0 and not os.environ.get("CI"):
            pytest.skip(f"the tests of Transformers cannot be downloaded here: {done.stderr.strip()[-200:]}")
        assert done.returncode == 0, done.stderr
    folder = tmp_path_factory.mktemp("upstream")
    with tarfile.open(next(cache.glob("*.tar.gz"))) as archive:
        for member in archive.getmembers():
            _, _, path = member.name.partition("/")
            if member.isfile() and path.startswith("tests/") and path.endswith(".py"):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(archive.extractfile(member).read())
    for path, content in {**STUBS, "__init__.py": ""}.items():
        file = folder / "tests" / path
        file.parent.mkdir(exist_ok=True)
        (file.parent / "__init__.py").touch()
        file.write_text(content)
    return folder


@pytest.mark.parametrize(
    "name, at_least",
    [
        ("official_common_autoencoder.py", 70),
        ("official_common_tokenizer.py", 180),
        ("official_common_audio_lm.py", 95),
    ],
)
def test_official_common_tests_pass(upstream, name, at_least, record_property):
    (upstream / "tests" / f"test_{name}").write_text((ROOT / "tests" / name).read_text())
    report = upstream / f"{name}.xml"
    run = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", upstream, "-p", "no:cacheprovider", "-q"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (upstream, ROOT, ROOT / "tests"))),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [*run, f"--junitxml={report}", upstream / "tests" / f"test_{name}"],
        cwd=upstream,
        env=environment,
        capture_output=True,
        text=True,
    )
    cases = list(ET.parse(report).iter("testcase")) if report.exists() else []
    skipped = Counter(skip.get("message") for case in cases for skip in case.findall("skipped"))
    passed = sum(not len(case.findall("skipped") + case.findall("failure") + case.findall("error")) for case in cases)
    reasons = "\n".join(f"{count:3} x {reason}" for reason, count in skipped.most_common())
    counts = f"{passed} of {len(cases)} passed, {skipped.total()} skipped:"
    record_property(f"official tests, {name}", f"{counts}\n{reasons}")
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    assert passed >= at_least
    assert all(skipped), "a test was skipped without a reason"
