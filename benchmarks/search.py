"""Exact search, ours against faiss ``IndexFlatIP`` called as transformers' ``RagRetriever`` calls it: 8 questions at a time.

Both search the same random unit-scale vectors; faiss holds them in float32, we in the stored precision. The results
are compared first: every passage that one found and the other did not must have the same score to float32 rounding.

    python benchmarks/search.py --count 200000 --dim 768 --batch-sizes 2 8 32 --device cuda
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
import torch

from ragtrain.index.exact import Hits, Searcher

if TYPE_CHECKING:
    from collections.abc import Callable

RETRIEVAL_BATCH_SIZE = 8  # RagConfig.retrieval_batch_size


def main() -> None:
    """Measure, and print one JSON document."""
    arguments = parse()
    generator = np.random.default_rng(arguments.seed)
    # Made in portions: the float64 numbers of a large matrix would take more memory than both indexes.
    vectors = np.empty((arguments.count, arguments.dim), dtype=arguments.storage)
    for start in range(0, arguments.count, 50_000):
        rows = vectors[start : start + 50_000]
        rows[:] = generator.standard_normal(rows.shape, dtype=np.float32)
    flat = faiss.IndexFlatIP(arguments.dim)
    for start in range(0, arguments.count, 50_000):
        flat.add(vectors[start : start + 50_000].astype(np.float32))
    searcher = Searcher(vectors, arguments.device)
    rows_out = []
    for batch_size in arguments.batch_sizes:
        queries = torch.from_numpy(generator.standard_normal((batch_size, arguments.dim), dtype=np.float32))
        here = queries.to(arguments.device)
        check(
            searcher.search(here, arguments.n_docs),
            *retrieve(flat, queries.numpy(), arguments.n_docs),
            queries,
            vectors,
        )
        ours = milliseconds(lambda q=here: searcher.search(q, arguments.n_docs).ids.cpu(), arguments.repeats)  # type: ignore[misc]
        theirs = milliseconds(lambda q=queries: retrieve(flat, q.numpy(), arguments.n_docs), arguments.repeats)  # type: ignore[misc]
        rows_out.append({"batch_size": batch_size, "ours_ms": ours, "faiss_ms": theirs, "ratio": theirs / ours})
    report: dict[str, Any] = {
        "count": arguments.count, "dim": arguments.dim, "storage": arguments.storage, "n_docs": arguments.n_docs,
        "device": torch.cuda.get_device_name() if arguments.device.startswith("cuda") else platform.machine(),
        "threads": {"torch": torch.get_num_threads(), "faiss": faiss.omp_get_max_threads()},
        "versions": {"torch": torch.__version__, "faiss": faiss.__version__, "python": platform.python_version()},
        "results_equal": True, "median_of": arguments.repeats, "search": rows_out,
    }  # fmt: skip
    json.dump(report, sys.stdout, indent=2)
    sys.stdout.write("\n")


def parse() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5_000, help="vectors")
    parser.add_argument("--dim", type=int, default=128, help="length of a vector")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[2, 8, 32], help="questions at a time")
    parser.add_argument("--n-docs", type=int, default=5, help="passages for each question")
    parser.add_argument("--storage", choices=["float16", "float32"], default="float16", help="precision of our vectors")
    parser.add_argument("--device", default="cpu", help="where we search; faiss is always on the CPU")
    parser.add_argument("--threads", type=int, default=0, help="threads for both; 0 leaves the default")
    parser.add_argument("--repeats", type=int, default=5, help="the median of as many runs is reported")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
        faiss.omp_set_num_threads(arguments.threads)
    return arguments


def retrieve(index: faiss.IndexFlatIP, queries: np.ndarray, n_docs: int) -> tuple[np.ndarray, np.ndarray]:
    """Search as ``RagRetriever._main_retrieve`` does; return scores and ids."""
    found = [
        index.search(queries[start : start + RETRIEVAL_BATCH_SIZE], n_docs)
        for start in range(0, len(queries), RETRIEVAL_BATCH_SIZE)
    ]
    return np.concatenate([scores for scores, _ in found]), np.concatenate([ids for _, ids in found])


def check(hits: Hits, scores: np.ndarray, ids: np.ndarray, queries: torch.Tensor, vectors: np.ndarray) -> None:
    """End the process unless both found the same, up to passages whose scores are equal to rounding."""
    scale = float(queries.norm(dim=1).max()) * vectors.shape[1] ** 0.5
    if not np.allclose(hits.scores.cpu().numpy(), scores, atol=1e-5 * scale, rtol=0):
        sys.exit("the scores differ")
    differing = np.argwhere(hits.ids.cpu().numpy() != ids)
    for row, _ in differing:
        for position in set(hits.ids[row].tolist()) ^ set(ids[row].tolist()):
            score = float(vectors[position].astype(np.float64) @ queries[row].double().numpy())
            if abs(score - scores[row, -1]) > 1e-5 * scale:
                sys.exit(f"question {row}: only one of the two found passage {position}")


def milliseconds(run: Callable[[], object], repeats: int) -> float:
    """Return the median milliseconds of a call, after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


if __name__ == "__main__":
    main()
