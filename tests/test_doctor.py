"""What doctor finds, what it advises and how it ends."""

from __future__ import annotations

import json
import sys
import tomllib
import types
from pathlib import Path

import pytest

from ragtrain import doctor
from ragtrain.cli import main
from ragtrain.config.commands import DoctorConfig
from ragtrain.doctor import SUPPORTED, check_faiss, check_versions, within

PYPROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def test_bounds_are_those_of_the_package():
    declared = {}
    for requirement in PYPROJECT["dependencies"]:
        name = requirement.split(">")[0]
        declared[name] = requirement.removeprefix(name)
    assert declared == dict(SUPPORTED)


def test_extras_are_those_of_the_package():
    extras = PYPROJECT["optional-dependencies"]
    assert set(extras) == set(doctor.EXTRAS)
    for name, (distribution, _) in doctor.EXTRAS.items():
        assert any(requirement.startswith(distribution) for requirement in extras[name])


@pytest.mark.parametrize(
    ("version", "bounds", "inside"),
    [
        ("2.13.0+cpu", ">=2.8", True),
        ("2.8", ">=2.8.0", True),
        ("2.7.1", ">=2.8", False),
        ("5.0.0", ">=5,<6", True),
        ("6.0.0", ">=5,<6", False),
        ("4.57.1", ">=5,<6", False),
        ("5.1.0.dev0", ">=5,<6", True),
        ("10.0", ">=9.5", True),
    ],
)
def test_within(version, bounds, inside):
    assert within(version, bounds) is inside


def test_wrong_and_missing_versions():
    versions = dict.fromkeys(SUPPORTED, "9999") | {"transformers": "4.57.1", "torch": "2.7.0", "peft": None}
    found = {finding.message: finding.fix for finding in check_versions(versions)}
    assert found == {
        "torch 2.7.0 is installed; >=2.8 is supported": "pip install 'torch>=2.8'",
        "transformers 4.57.1 is installed; >=5,<6 is supported": "pip install 'transformers>=5,<6'",
        "peft is not installed; >=0.17 is needed": "pip install 'peft>=0.17'",
    }


def test_two_faiss():
    (finding,) = check_faiss(["faiss-cpu", "faiss-gpu"], has_gpu=False)
    assert finding.is_conflict
    assert finding.fix == "pip uninstall -y faiss-cpu faiss-gpu && pip install 'ragtrain[cpu]'"
    (finding,) = check_faiss(["faiss-cpu", "faiss-gpu-cu12"], has_gpu=True)
    if sys.platform == "linux":
        assert finding.fix == "pip uninstall -y faiss-cpu faiss-gpu-cu12 && pip install 'ragtrain[gpu]'"


def test_no_faiss_is_no_conflict():
    (finding,) = check_faiss([], has_gpu=False)
    assert not finding.is_conflict
    assert finding.fix == "pip install 'ragtrain[cpu]'"
    assert check_faiss(["faiss-cpu"], has_gpu=True) == []


def fake_distributions(folder, **versions):
    for name, version in versions.items():
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n")
    return [str(folder)]


def test_distributions_are_found_by_metadata(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", fake_distributions(tmp_path, faiss_cpu="1.12.0", faiss_gpu="1.14.3", other="1"))
    assert doctor.faiss_distributions() == ["faiss-cpu", "faiss-gpu"]


def test_conflict_ends_with_2_and_the_fix(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "faiss_distributions", lambda: ["faiss-cpu", "faiss-gpu"])
    monkeypatch.setattr(doctor, "_version", lambda name: "9999" if name != "transformers" else "5.1")
    assert main(["doctor", "--json"]) == 2
    out, err = capsys.readouterr()
    assert "hint: pip uninstall -y faiss-cpu faiss-gpu && pip install 'ragtrain[cpu]'" in err
    result = json.loads(out)
    assert result["ok"] is False
    assert [finding["is_conflict"] for finding in result["findings"]] == [True]


def test_a_sound_installation(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(doctor, "check_versions", lambda versions: [])
    monkeypatch.setattr(doctor, "faiss_distributions", lambda: ["faiss-cpu"])
    assert main(["doctor", "--json", "--path", str(tmp_path / "not" / "there")]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result["ok"] is True
    assert set(result["versions"]) >= {"ragtrain", "python", "torch", "transformers", "faiss-cpu"}
    assert result["cpu"]["cores"] >= 1
    assert result["disk"]["path"] == str(tmp_path)
    assert set(result["extras"]) == {"cpu", "gpu", "quant", "dev"}
    for title in ("Versions", "Devices", "Extras", "nothing conflicts"):
        assert title in err


def test_extras_never_lead_into_the_conflict(monkeypatch):
    installed = {"faiss-cpu": "1.12", "pytest": "9"}
    monkeypatch.setattr(doctor, "_version", installed.get)
    extra = doctor._extra("gpu")
    assert extra["install"] == "pip uninstall -y faiss-cpu && pip install 'ragtrain[gpu]'"
    assert doctor._extra("cpu")["install"] is None
    monkeypatch.setattr(doctor, "_version", {}.get)
    assert doctor._extra("cpu")["install"] == "pip install 'ragtrain[cpu]'"


def test_torch_that_does_not_load(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    findings = []
    assert doctor._import_torch({"torch": "2.13.0"}, findings) is None
    assert "cannot be imported" in findings[0].message
    assert doctor._import_torch({"torch": None}, []) is None
    assert doctor._cpu(None)["threads"] is None
    assert doctor._gpus(None, []) == []


def test_gpus(monkeypatch):
    properties = types.SimpleNamespace(name="Card", major=7, minor=5)
    cuda = types.SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 1,
        get_device_properties=lambda number: properties,
        mem_get_info=lambda number: (2**30, 16 * 2**30),
    )
    torch = types.SimpleNamespace(cuda=cuda, version=types.SimpleNamespace(cuda="12.8"))
    (gpu,) = doctor._gpus(torch, [])
    assert gpu == {
        "name": "Card", "memory_gib": 16.0, "free_gib": 1.0, "capability": "7.5", "bf16": False, "cuda": "12.8",
    }  # fmt: skip


def test_little_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=2**30, total=2**33))
    findings = []
    doctor._disk(tmp_path, findings)
    assert "only 1.0 GiB" in findings[0].message
    assert not findings[0].is_conflict


@pytest.mark.gpu
def test_real_gpus():
    result = doctor.run(DoctorConfig())
    assert result.gpus
    assert result.gpus[0]["memory_gib"] > 1
