"""What is installed, what it runs on, and how to repair what cannot work.

Versions are read from the packages' metadata: a package that is broken enough not to import is still listed. Only torch
is imported, because nothing else knows the devices.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import os
import platform
import re
import shutil
import sys
from typing import TYPE_CHECKING, Any

import ragtrain
from ragtrain import report
from ragtrain.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ragtrain.config.commands import DoctorConfig

logger = logging.getLogger("ragtrain")

SUPPORTED: Mapping[str, str] = {
    "torch": ">=2.8",
    "transformers": ">=5,<6",
    "accelerate": ">=1.10",
    "bm25s": ">=0.3",
    "datasets": ">=4.0",
    "peft": ">=0.17",
    "evaluate": ">=0.4.5",
    "jinja2": ">=3.1",
    "matplotlib": ">=3.9",
    "numpy": ">=2.0",
    "psutil": ">=5.9",
    "pydantic": ">=2.11",
    "pyyaml": ">=6.0",
    "regex": ">=2024.11",
    "rich": ">=14.0",
    "rouge-score": ">=0.1.2",
    "sacrebleu": ">=2.4",
    "safetensors": ">=0.6",
    "sentencepiece": ">=0.2",
    "tensorboard": ">=2.19",
    "typer": ">=0.20",
}
"""What every installation has; the same bounds as in ``pyproject.toml``, which a test compares."""

EXTRAS: Mapping[str, tuple[str, str]] = {
    "cpu": ("faiss-cpu", "faiss on the CPU"),
    "gpu": ("faiss-gpu", "faiss on CUDA, Linux only"),
    "quant": ("bitsandbytes", "bases of 8 or 4 bits, AdamW in 8 bits"),
    "dev": ("pytest", "tests, lint and types"),
}
"""Each extra: the distribution it is recognised by, and what it brings."""

RIVALS: Mapping[str, str] = {"cpu": "faiss-gpu", "gpu": "faiss-cpu"}
"""What has to go before an extra may come: both install the module ``faiss``."""

LITTLE_DISK_GIB = 5.0
"""Below this a checkpointed run of a base-size model may not fit."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that cannot work (``is_conflict``) or that is worth knowing, and the command that changes it."""

    message: str
    fix: str | None = None
    is_conflict: bool = True


@dataclasses.dataclass(frozen=True)
class DoctorResult:
    """The state of an installation. ``versions`` has null for what is missing; sizes are in GiB."""

    versions: Mapping[str, str | None]
    cpu: Mapping[str, Any]
    gpus: Sequence[Mapping[str, Any]]
    mps: bool
    extras: Mapping[str, Mapping[str, Any]]
    disk: Mapping[str, Any]
    findings: Sequence[Finding]

    @property
    def exit_code(self) -> int:
        """2 when something cannot work, else 0."""
        return ConfigError.exit_code if any(finding.is_conflict for finding in self.findings) else 0

    def to_json(self) -> dict[str, Any]:
        """Return everything as one JSON object."""
        return {**dataclasses.asdict(self), "ok": self.exit_code == 0}


def run(config: DoctorConfig) -> DoctorResult:
    """Look at the installation, show it and return it.

    Args:
        config: Names the folder whose file system is asked for its free space.
    """
    findings: list[Finding] = []
    versions = _versions()
    torch = _import_torch(versions, findings)
    gpus = _gpus(torch, findings)
    result = DoctorResult(
        versions=versions,
        cpu=_cpu(torch),
        gpus=gpus,
        mps=torch is not None and bool(torch.backends.mps.is_available()),
        extras={name: _extra(name) for name in EXTRAS},
        disk=_disk(config.path, findings),
        findings=findings,
    )
    findings += check_versions(versions) + check_faiss(faiss_distributions(), has_gpu=bool(gpus))
    _show(result)
    return result


def check_versions(versions: Mapping[str, str | None]) -> list[Finding]:
    """Return a finding for each base package that is missing or outside its supported range."""
    findings = []
    for name, bounds in SUPPORTED.items():
        version = versions.get(name)
        fix = f"pip install '{name}{bounds}'"
        if version is None:
            findings.append(Finding(f"{name} is not installed; {bounds} is needed", fix))
        elif not within(version, bounds):
            findings.append(Finding(f"{name} {version} is installed; {bounds} is supported", fix))
    return findings


def within(version: str, bounds: str) -> bool:
    """Return whether a version meets bounds such as ``>=5,<6``; only the release numbers are compared."""
    release = _release(version)
    for bound in bounds.split(","):
        limit = _release(bound.lstrip("<>="))
        length = max(len(release), len(limit))
        have, want = (numbers + (0,) * (length - len(numbers)) for numbers in (release, limit))
        if (bound.startswith(">=") and have < want) or (bound.startswith("<") and have >= want):
            return False
    return True


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in match.group().split(".")) if match else ()


def faiss_distributions() -> list[str]:
    """Return the installed distributions that bring the module ``faiss``."""
    return sorted(
        {
            name
            for distribution in importlib.metadata.distributions()
            if (name := (distribution.metadata["Name"] or "").lower().replace("_", "-")).startswith("faiss")
        }
    )


def check_faiss(distributions: Sequence[str], *, has_gpu: bool) -> list[Finding]:
    """Return a finding when several distributions install the module ``faiss`` over one another."""
    extra = "gpu" if has_gpu and sys.platform == "linux" else "cpu"
    if len(distributions) > 1:
        names = " and ".join(distributions)
        fix = f"pip uninstall -y {' '.join(distributions)} && pip install 'ragtrain[{extra}]'"
        return [Finding(f"{names} are both installed and overwrite each other's module faiss", fix)]
    if not distributions:
        message = "faiss is not installed: exact search works without it, --index-type faiss-flat does not"
        return [Finding(message, f"pip install 'ragtrain[{extra}]'", is_conflict=False)]
    return []


def _versions() -> dict[str, str | None]:
    names = (*SUPPORTED, *(faiss_distributions() or ["faiss"]))
    return {"ragtrain": ragtrain.__version__, "python": platform.python_version(), **{n: _version(n) for n in names}}


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _import_torch(versions: Mapping[str, str | None], findings: list[Finding]) -> Any:  # noqa: ANN401 - a module
    try:
        import torch
    except (ImportError, OSError) as error:
        # A missing torch is reported with the versions; a torch that is there and does not load is another matter.
        if versions.get("torch") is not None:
            said = str(error).partition("\n")[0]
            fix = f"pip install --force-reinstall 'torch{SUPPORTED['torch']}'"
            findings.append(Finding(f"torch is installed and cannot be imported: {said}", fix))
        return None
    return torch


def _cpu(torch: Any) -> dict[str, Any]:  # noqa: ANN401 - a module
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    return {
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": usable,
        "threads": None if torch is None else torch.get_num_threads(),
        "memory_gib": _gib(pages) if pages > 0 else None,
    }


def _gpus(torch: Any, findings: list[Finding]) -> list[dict[str, Any]]:  # noqa: ANN401 - a module
    if torch is None:
        return []
    if not torch.cuda.is_available():
        if torch.version.cuda is not None and shutil.which("nvidia-smi"):
            message = f"torch is built for CUDA {torch.version.cuda} and sees no GPU, although nvidia-smi is there"
            findings.append(Finding(message, "nvidia-smi", is_conflict=False))
        return []
    gpus = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        gpus.append(
            {
                "name": properties.name,
                "memory_gib": _gib(total),
                "free_gib": _gib(free),
                "capability": f"{properties.major}.{properties.minor}",
                # bf16 arithmetic in hardware came with compute capability 8.0; before it torch only emulates.
                "bf16": properties.major >= 8,
                "cuda": torch.version.cuda,
            }
        )
    return gpus


def _extra(name: str) -> dict[str, Any]:
    distribution, brings = EXTRAS[name]
    version = _version(distribution)
    rival = RIVALS.get(name)
    first = f"pip uninstall -y {rival} && " if rival is not None and _version(rival) is not None else ""
    install = None if version is not None else f"{first}pip install 'ragtrain[{name}]'"
    return {
        "brings": brings,
        "present": version is not None,
        "instead_of": rival if first else None,
        "install": install,
    }


def _disk(path: Path, findings: list[Finding]) -> dict[str, Any]:
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    free = _gib(usage.free)
    if free < LITTLE_DISK_GIB:
        findings.append(Finding(f"only {free} GiB are free at {folder}; checkpoints may not fit", is_conflict=False))
    return {"path": str(folder), "free_gib": free, "total_gib": _gib(usage.total)}


def _gib(size: int) -> float:
    return round(size / 2**30, 1)


def _extra_line(extra: Mapping[str, Any]) -> str:
    if extra["present"]:
        return f"{extra['brings']}: present"
    state = f"not needed beside {extra['instead_of']}; to change" if extra["instead_of"] else "missing"
    return f"{extra['brings']}: {state}: {extra['install']}"


def _show(result: DoctorResult) -> None:
    report.panel("Versions", [(name, version or "missing") for name, version in result.versions.items()])
    cpu = result.cpu
    devices: list[tuple[str, object]] = [
        ("cpu", f"{cpu['machine']}, {cpu['cores']} cores, {cpu['threads']} threads, {cpu['memory_gib']} GiB")
    ]
    for number, gpu in enumerate(result.gpus):
        bf16 = "bf16" if gpu["bf16"] else "no bf16, fp16 only"
        free = f"{gpu['free_gib']} of {gpu['memory_gib']} GiB free"
        devices.append((f"cuda:{number}", f"{gpu['name']}, {free}, {bf16}, CUDA {gpu['cuda']}"))
    if not result.gpus:
        devices.append(("cuda", "none"))
    devices.append(("mps", "yes" if result.mps else "none"))
    devices.append(("disk", f"{result.disk['free_gib']} of {result.disk['total_gib']} GiB free, {result.disk['path']}"))
    report.panel("Devices", devices)
    report.panel("Extras", [(name, _extra_line(extra)) for name, extra in result.extras.items()])
    for finding in result.findings:
        if finding.is_conflict:
            report.error(ConfigError(finding.message, hint=finding.fix))
        else:
            logger.info("note: %s%s", finding.message, f" ({finding.fix})" if finding.fix else "")
    if result.exit_code == 0:
        logger.info("nothing conflicts")
