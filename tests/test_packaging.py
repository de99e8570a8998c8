"""What `pip install .` puts into an environment."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    # From a copy: a build leaves files beside setup.py, and old ones there would be packed again.
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in files.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(out),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_every_run_file_and_module_is_in_it(wheel):
    packed = set(wheel.namelist())
    for top, pattern in (("gin_configs", "*.gin"), ("pretrain", "*.py"), ("tasks", "*.py")):
        wanted = {str(path.relative_to(ROOT)) for path in (ROOT / top).rglob(pattern)}
        assert wanted and wanted <= packed, wanted - packed


def test_no_top_level_module_is_called_tests_or_scripts(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist() if ".dist-info" not in name}
    assert tops == {"pretrain", "tasks", "gin_configs"}
