"""The Triton programs against the chunks: on a GPU, and interpreted where Triton is installed without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ragtrain.models.gfm import triton_kernel
from ragtrain.models.gfm.edges import GraphTensors
from ragtrain.models.gfm.kernel import gather_messages

HERE = Path(__file__)


def compare(device: str, message: str, dtype: torch.dtype, *, remove: bool, size: tuple[int, int] = (5, 20)) -> None:
    """Both forms of the same sums and gradients."""
    table = torch.stack([torch.randint(0, top, (60,)) for top in (12, 3, 12)], 1)
    table = torch.unique(table, dim=0)
    graph = GraphTensors.from_triples(table, 14, 3, device)
    head, relation, tail = table[: size[0]].to(device).unbind(1)
    removed = graph.own_edges(head, relation, tail) if remove else None
    x = torch.randn(14, *size).to(device, dtype).requires_grad_()
    z = torch.randn(6, size[1]).to(device, dtype).requires_grad_()
    results = []
    for ours in (True, False):
        usable = triton_kernel.usable
        if not ours:
            triton_kernel.usable = lambda *args: False
        else:
            assert usable(x, z, ("sum",), message)
        try:
            (total,) = gather_messages(graph, x, z, message=message, removed=removed)
            outer = torch.sin(torch.arange(total.numel(), device=device)).view_as(total)
            results.append([total, *torch.autograd.grad((total.float() * outer).sum(), (x, z))])
        finally:
            triton_kernel.usable = usable
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for got, want in zip(*results, strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("remove", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("message", ["distmult", "transe"])
@pytest.mark.parametrize("size", [(5, 20), (3, 600), (1, 8)])
def test_programs_equal_chunks(message: str, dtype: torch.dtype, remove: bool, size: tuple[int, int]) -> None:
    compare("cuda", message, dtype, remove=remove, size=size)


@pytest.mark.gpu
def test_programs_give_the_same_bits_each_time() -> None:
    graph = GraphTensors.from_triples(torch.stack([torch.randint(0, t, (999,)) for t in (50, 3, 50)], 1), 50, 3, "cuda")
    x = torch.randn(50, 4, 64, device="cuda", requires_grad=True)
    z = torch.randn(6, 64, device="cuda", requires_grad=True)
    runs = [torch.autograd.grad(gather_messages(graph, x, z)[0].square().sum(), (x, z)) for _ in range(3)]
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))


def test_interpreted_programs_equal_chunks() -> None:
    """Triton decides when it is imported whether it interprets, hence another process."""
    pytest.importorskip("triton", reason="Triton comes with builds of torch for GPUs")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(HERE)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def main() -> None:
    """Compare with interpreted programs on the processor."""
    triton_kernel.INTERPRETED = True
    for message in ("distmult", "transe"):
        for dtype in (torch.float32, torch.bfloat16):
            for remove in (False, True):
                compare("cpu", message, dtype, remove=remove)


if __name__ == "__main__":
    main()
