"""Which triples of a graph are held out where its source holds none out."""

from __future__ import annotations

import numpy as np


def hold_out(triples: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return triples to train on and to validate on.

    No entity and no relation is met in validation alone: a triple that is the only one of an entity or a relation stays.

    Args:
        triples: (E, 3).
        share: of them that is held out, at most.
        seed: of the draw.
    """
    wanted = int(len(triples) * share)
    if not wanted:
        return triples, triples[:0]
    entities = np.bincount(triples[:, [0, 2]].ravel())
    relations = np.bincount(triples[:, 1])
    chosen: list[int] = []
    for place in np.random.default_rng((seed, 7)).permutation(len(triples)):
        head, relation, tail = triples[place]
        if min(entities[head], entities[tail], relations[relation]) < 2 or (head == tail and entities[head] < 3):
            continue
        entities[head] -= 1
        entities[tail] -= 1
        relations[relation] -= 1
        chosen.append(int(place))
        if len(chosen) == wanted:
            break
    kept = np.ones(len(triples), dtype=bool)
    kept[chosen] = False
    return triples[kept], triples[sorted(chosen)]
