"""Exact search, ours against faiss ``IndexFlatIP``, over the same random vectors, interleaved in one run.

``RagRetriever``  as transformers calls faiss: ``datasets``' ``FaissIndex.search_batch`` with 8 questions at a time
                  (``RagConfig.retrieval_batch_size``) and faiss's default thresholds
``faiss, BLAS``   one call for the whole batch, through matrix products (``distance_compute_blas_threshold`` 1)

Results are compared before anything is timed: the same ids, but for passages whose scores are equal to rounding, and the
same scores to 1e-4. Floors are measured in the same run: the float32 product of that size, the product that we make, and
reading each matrix once from memory. A table goes to stderr, JSON to stdout.

    python benchmarks/search.py --count 200000 --dim 768 --batch-sizes 1 8 32 64
    python benchmarks/search.py --count 200000 --dim 768 --device cuda
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
from datasets.search import FaissIndex

from ragtrain import report
from ragtrain.index import coarse
from ragtrain.index.exact import Hits, Searcher

if TYPE_CHECKING:
    from collections.abc import Callable

RETRIEVAL_BATCH_SIZE = 8  # RagConfig.retrieval_batch_size
BLOCK = 50_000

#: Seconds by the clock asked for, of every timed call.
Times = dict[str, list[float]]


def main() -> None:
    """Measure, print a table and one JSON document."""
    arguments = parse()
    generator = np.random.default_rng(arguments.seed)
    vectors = make_vectors(arguments, generator)
    flat = faiss.IndexFlatIP(arguments.dim)
    for start in range(0, arguments.count, BLOCK):
        flat.add(vectors[start : start + BLOCK].astype(np.float32))
    started = time.perf_counter()
    searcher = Searcher(vectors, arguments.device)
    loading = time.perf_counter() - started
    rows = [measure(size, arguments, generator, (vectors, flat, searcher)) for size in arguments.batch_sizes]
    cuda = arguments.device.startswith("cuda")
    document: dict[str, Any] = {
        "count": arguments.count, "dim": arguments.dim, "storage": arguments.storage, "n_docs": arguments.n_docs,
        "kind": arguments.kind, "clock": arguments.clock,
        "device": torch.cuda.get_device_name() if cuda else platform.machine(),
        "threads": {"torch": torch.get_num_threads(), "faiss": faiss.omp_get_max_threads()},
        "versions": {"torch": torch.__version__, "faiss": faiss.__version__, "python": platform.python_version()},
        "eight_bits": searcher._coarse is not None, "loading_s": loading, "memory_bytes": memory(searcher),
        "faiss_bytes": arguments.count * arguments.dim * 4,
        "results_equal": True, "repeats": arguments.repeats, "search": rows,
    }  # fmt: skip
    show(document)
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")


def parse() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5_000, help="vectors")
    parser.add_argument("--dim", type=int, default=128, help="length of a vector")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32, 64], help="questions at a time")
    parser.add_argument("--n-docs", type=int, default=5, help="passages for each question")
    parser.add_argument("--storage", choices=["float16", "float32"], default="float16", help="precision of our vectors")
    parser.add_argument(
        "--kind", choices=["normal", "topics"], default="normal",
        help="independent numbers, or topics around a common mean as text encoders make them",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="where we search; faiss is always on the CPU")
    parser.add_argument("--threads", type=int, default=0, help="threads for both; 0 leaves the default")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each, one after the other in turn")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: where the machine is shared")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
        faiss.omp_set_num_threads(arguments.threads)
    return arguments


def make_vectors(arguments: argparse.Namespace, generator: np.random.Generator) -> np.ndarray:
    """Return (count, dim) vectors, made in portions: all at once in float64 they would take the memory of both indexes."""
    vectors = np.empty((arguments.count, arguments.dim), dtype=arguments.storage)
    topics = generator.standard_normal((1000, arguments.dim), dtype=np.float32)
    mean = generator.standard_normal(arguments.dim, dtype=np.float32)
    for start in range(0, arguments.count, BLOCK):
        rows = vectors[start : start + BLOCK]
        noise = generator.standard_normal(rows.shape, dtype=np.float32)
        if arguments.kind == "topics":
            noise += mean + topics[generator.integers(0, len(topics), len(rows))]
        rows[:] = noise
    return vectors


def measure(
    size: int,
    arguments: argparse.Namespace,
    generator: np.random.Generator,
    indexes: tuple[np.ndarray, faiss.IndexFlatIP, Searcher],
) -> dict[str, Any]:
    """Return times of one batch size, after the results were compared."""
    vectors, flat, searcher = indexes
    queries = generator.standard_normal((size, arguments.dim), dtype=np.float32)
    if arguments.kind == "topics":  # a question is near some passage
        queries += vectors[generator.integers(0, len(vectors), size)]
    here, k = torch.from_numpy(queries).to(arguments.device), arguments.n_docs
    theirs = FaissIndex(custom_index=flat)
    default = faiss.cvar.distance_compute_blas_threshold

    def ours() -> Hits:
        hits = searcher.search(here, k)
        hits.ids.cpu()
        return hits

    def rag_retriever() -> tuple[np.ndarray, np.ndarray]:
        parts = [theirs.search_batch(chunk, k) for chunk in np.split(queries, range(8, size, RETRIEVAL_BATCH_SIZE))]
        return np.concatenate([p.total_scores for p in parts]), np.concatenate([p.total_indices for p in parts])

    def blas() -> tuple[np.ndarray, np.ndarray]:
        faiss.cvar.distance_compute_blas_threshold = 1
        try:
            found: tuple[np.ndarray, np.ndarray] = flat.search(queries, k)
        finally:
            faiss.cvar.distance_compute_blas_threshold = default
        return found

    check(ours(), *rag_retriever(), queries, vectors)
    check(ours(), *blas(), queries, vectors)
    runs: dict[str, Callable[[], object]] = {"ours": ours, "RagRetriever": rag_retriever, "faiss, BLAS": blas}
    runs |= floors(searcher, flat, here)
    times = in_turn(runs, arguments.repeats, arguments.clock)
    row: dict[str, Any] = {"batch_size": size, "ms": {name: spread(values, 1000) for name, values in times.items()}}
    for name in ("RagRetriever", "faiss, BLAS"):
        ratios = [a / b for a, b in zip(times[name], times["ours"], strict=True)]
        row[f"times faster than {name}"] = spread(ratios, 1)
    row["share of the float32 product"] = row["ms"]["float32 product"]["median"] / row["ms"]["ours"]["median"]
    row["share of our product"] = row["ms"]["our product"]["median"] / row["ms"]["ours"]["median"]
    return row


def floors(searcher: Searcher, flat: faiss.IndexFlatIP, queries: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Return what bounds a search from below: products and reads of the whole matrix, with nothing chosen."""
    whole = torch.from_numpy(faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d))
    cpu = queries.cpu()
    runs: dict[str, Callable[[], object]] = {
        "float32 product": lambda: cpu @ whole.T,
        "float32 read": lambda: whole.sum(),
    }
    resident = searcher._resident
    if searcher._coarse is not None:
        codes = torch.randint(0, 256, queries.shape, dtype=torch.uint8)
        lots = searcher._coarse._lots
        # As many bytes as the packed matrix has, which cannot be summed itself.
        eight = torch.zeros(flat.ntotal * flat.d // 4)
        runs["our product"] = lambda: [
            coarse._integer_product(part, packed, scales)
            for part in torch.split(codes, coarse.QUESTIONS)
            for _, _, packed, scales in lots
        ]
        runs["our read"] = lambda: eight.sum()
    elif resident is not None:
        narrow = queries.to(resident.dtype)

        def product() -> None:
            torch.mm(narrow, resident.T)
            if resident.is_cuda:
                torch.cuda.synchronize()

        runs["our product"], runs["our read"] = product, lambda: resident.sum().item()
    else:
        runs["our product"], runs["our read"] = runs["float32 product"], runs["float32 read"]
    return runs


def check(hits: Hits, scores: np.ndarray, ids: np.ndarray, queries: np.ndarray, vectors: np.ndarray) -> None:
    """End the process unless both found the same, up to passages whose scores are equal to rounding."""
    found = hits.scores.cpu().numpy()
    scale = np.abs(scores).max()
    if not np.allclose(found, scores, atol=1e-5 * scale, rtol=1e-4):
        sys.exit("the scores differ")
    for row in np.flatnonzero((hits.ids.cpu().numpy() != ids).any(axis=1)):
        for position in set(hits.ids[row].tolist()) ^ set(ids[row].tolist()):
            score = float(vectors[position].astype(np.float64) @ queries[row].astype(np.float64))
            if abs(score - scores[row, -1]) > 1e-5 * scale:
                sys.exit(f"question {row}: only one of the two found passage {position}")


def in_turn(runs: dict[str, Callable[[], object]], repeats: int, clock: str) -> Times:
    """Return seconds of each call, taken in turn so that a busy moment meets all of them; the first round warms up."""
    now = time.perf_counter if clock == "wall" else time.process_time
    times: Times = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            started = now()
            run()
            if repeat:
                times[name].append(now() - started)
    return times


def spread(values: list[float], unit: float) -> dict[str, float]:
    """Return median, smallest and largest."""
    return {"median": unit * statistics.median(values), "least": unit * min(values), "most": unit * max(values)}


def memory(searcher: Searcher) -> dict[str, int]:
    """Return the bytes of the vectors that a searcher holds, and of their eight-bit copy."""
    resident = 0 if searcher._resident is None else searcher._resident.nbytes
    return {"vectors": resident, "eight_bits": searcher.count * searcher.dim if searcher._coarse is not None else 0}


def show(document: dict[str, Any]) -> None:
    """Print the table."""
    names = list(document["search"][0]["ms"])
    threads, clock = document["threads"]["torch"], document["clock"]
    rows = []
    for row in document["search"]:
        ratios = [row[f"times faster than {name}"] for name in ("RagRetriever", "faiss, BLAS")]
        rows.append([
            row["batch_size"], *(f"{row['ms'][name]['median']:.1f}" for name in names),
            *(f"{r['median']:.2f} [{r['least']:.2f}, {r['most']:.2f}]" for r in ratios),
            f"{row['share of our product']:.0%}",
        ])  # fmt: skip
    report.table(
        f"{document['count']:,} × {document['dim']} {document['kind']}, {threads} thread(s), {clock} ms, median of "
        f"{document['repeats']} [least, most]",
        ["batch", *names, "RagRetriever / ours", "BLAS / ours", "share of our product"],
        rows,
    )


if __name__ == "__main__":
    main()
