"""What `pip install` brings: two folders beside the package, data included, and small enough."""

from __future__ import annotations

import importlib
import importlib.resources
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from source_copy import ENVIRONMENT, copy_source

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WHEEL_LIMIT_MIB = 30
TO_MEASURE_ON = ("mini-cogvideox", "mini-ltx")  # models that the repository and the sdist have


def test_every_folder_of_code_is_a_listed_package():
    folders = [init.parent.relative_to(ROOT) for init in (ROOT / "dit_accel").rglob("__init__.py")]
    found = {".".join(folder.parts) for folder in folders}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found | {
        "dit_accel.pipelines",
        "dit_accel.assets",
    }


def test_versions_agree():
    import dit_accel

    assert dit_accel.__version__ == PROJECT["project"]["version"]


def test_the_folders_beside_the_package_import_as_parts_of_it():
    pipelines = importlib.import_module("dit_accel.pipelines")
    assert Path(pipelines.__file__).parent.name == "pipelines"
    assert "AcceleratedWanPipeline" in dir(pipelines)
    with pytest.raises(AttributeError, match="has no attribute 'Missing'"):
        _ = pipelines.Missing
    assert importlib.resources.files("dit_accel.assets").joinpath("__init__.py").is_file()


def test_the_lowest_tested_versions_are_the_lower_bounds():
    extras = PROJECT["project"]["optional-dependencies"]
    bounds = dict(
        re.match(r"([\w-]+)>=([\d.]+)", requirement).groups()
        for requirement in PROJECT["project"]["dependencies"] + extras["report"]
    )
    lines = (ROOT / "requirements" / "lowest.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    del bounds["torch"]  # older CPU builds of torch are not on PyPI
    for name, bound in bounds.items():
        assert f"{pins[name]}.".startswith(f"{bound}."), f"{name}: {pins[name]} is not {bound}"


@pytest.mark.xdist_group("packages")
def test_tests_of_a_group_run_in_one_process(request):
    """A group's name is part of its tests' names then; else every process makes its fixtures."""
    if not request.config.getoption("loadgroup", False):
        pytest.skip("groups are of several processes, with --dist loadgroup")
    assert request.node.nodeid.endswith("@packages")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the sdist, and the wheel that was built from it; the clone stays clean."""
    clone, folder = copy_source(tmp_path_factory.mktemp("clone")), tmp_path_factory.mktemp("dist")
    run = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(folder), str(clone)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    return folder


@pytest.mark.slow
@pytest.mark.xdist_group("packages")
def test_the_wheel_holds_code_pipelines_assets_and_licence(built):
    (wheel,) = built.glob("*.whl")
    assert wheel.stat().st_size < WHEEL_LIMIT_MIB * 2**20
    names = zipfile.ZipFile(wheel).namelist()
    assert {
        "dit_accel/__init__.py",
        "dit_accel/layout/layout.schema.json",
        "dit_accel/metrics/data/cvvdp_parameters.json",
        "dit_accel/metrics/data/LICENSE.cvvdp",
        "dit_accel/models/checkpoints.yaml",
        "dit_accel/cli/__init__.py",
        "dit_accel/pipelines/wan.py",
        "dit_accel/assets/mini-wan/model_index.json",
    } <= set(names)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"dit_accel"}
    assert not [name for name in names if "__pycache__" in name]
    packed = {
        name.removeprefix("dit_accel/assets/")
        for name in names
        if name.startswith("dit_accel/assets/")
    }
    assert {name for name in asset_files() if not name.startswith(TO_MEASURE_ON)} <= packed
    assert not [name for name in packed if name.startswith(TO_MEASURE_ON)]


@pytest.mark.slow
@pytest.mark.xdist_group("packages")
def test_the_sdist_holds_what_the_tests_need_and_no_research(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "LICENSE",
        "README.md",
        "pyproject.toml",
        "pipelines/wan.py",
        "requirements/lowest.txt",
        "scripts/setup_env.sh",
        "tests/conftest.py",
        "tests/tiny.py",
    } <= names
    assert {f"assets/{name}" for name in asset_files()} <= names
    assert not [name for name in names if name.split("/")[0] == "research"]


def asset_files() -> set[str]:
    folder = ROOT / "assets"
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
