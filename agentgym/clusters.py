"""k-means of weighted points, and the clusters of a set of texts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from agentgym.errors import ConfigError, missing

_SAME = 1e-8


class KMeans(NamedTuple):
    """Centroids ``[k, d]``, the cluster of each point ``[n]``, and the weighted sum of squared distances."""

    centroids: np.ndarray
    labels: np.ndarray
    inertia: float


def kmeans(
    points: np.ndarray,
    k: int,
    seed: int,
    restarts: int = 10,
    init: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> KMeans:
    """k-means by Lloyd's algorithm on one thread, so that a seed gives the same clusters again.

    Args:
        points: ``[n, d]``.
        k: Clusters; as many as there are distinct points, if those are fewer.
        seed: Of the starts by k-means++.
        restarts: Starts; the one that ends with the least inertia counts.
        init: ``[k, d]`` to start from instead, once.
        weights: How much each point counts ``[n]``, 1 without.

    Raises:
        ConfigError: There is no point, k < 1, or ``init`` does not fit.
        MissingDependency: scikit-learn is not installed.
    """
    try:
        import sklearn.cluster
        from threadpoolctl import threadpool_limits
    except ModuleNotFoundError as error:
        raise missing(str(error.name), "embeddings") from error
    if k < 1 or not len(points):
        raise ConfigError(f"k-means needs a point and k of at least 1, not {len(points)} points and k = {k}")
    if init is not None and init.shape != (k, points.shape[1]):
        raise ConfigError(f"init must hold a start [{points.shape[1]}] for each of {k} clusters, not {init.shape}")
    start, starts = (init, 1) if init is not None else ("k-means++", restarts)
    k = k if init is not None else _distinct(points, k)
    with threadpool_limits(1):
        fitted = sklearn.cluster.KMeans(k, init=start, n_init=starts, random_state=seed, tol=0)
        fitted.fit(points, sample_weight=weights)
    used, labels = np.unique(fitted.labels_, return_inverse=True)
    return KMeans(fitted.cluster_centers_[used], labels, float(fitted.inertia_))


@dataclass(frozen=True)
class Clusters:
    """The clusters of one set of speeches.

    Attributes:
        name: Of the role, or ``public``.
        wanted: Clusters asked for; there are fewer where there are fewer distinct speeches.
        centroids: ``[k, d]``; one of zeros where there is no speech.
        texts: The distinct speeches ``[m]``.
        weights: How often each was said ``[m]``.
        labels: The cluster of each ``[m]``.
        distances: Its squared distance from the centroid ``[m]``.
        stances: Whether the speeches of a cluster accuse a seat (1), clear one (-1) or neither (0) ``[k]``.
    """

    name: str
    wanted: int
    centroids: np.ndarray
    texts: tuple[str, ...]
    weights: np.ndarray
    labels: np.ndarray
    distances: np.ndarray
    stances: np.ndarray

    def by_stance(self, stances: np.ndarray) -> Clusters:
        """Every cluster parted by the stances of its speeches ``[m]``; the parts keep its centroid."""
        if not self.texts:
            return self
        parts, labels = np.unique(np.stack([self.labels, stances], 1), axis=0, return_inverse=True)
        return replace(self, centroids=self.centroids[parts[:, 0]], labels=labels.reshape(-1), stances=parts[:, 1])

    def shares(self) -> np.ndarray:
        """What part of the speeches each cluster has ``[k]``; zeros where there is no speech."""
        said = np.bincount(self.labels, self.weights, len(self.centroids))
        return said / max(said.sum(), 1)

    def entropy(self) -> float:
        """Of the shares, in nats."""
        some = self.shares()
        some = some[some > 0]
        return float(-(some * np.log(some)).sum()) + 0.0


def _distinct(points: np.ndarray, most: int) -> int:
    """Number of distinct points ``[n, d]``, counted up to ``most``; equal is what differs by rounding alone."""
    far, count, scale = np.full(len(points), np.inf), 0, max(float((points**2).sum(1).max()), 1.0)
    while count < most and far.max() > _SAME * scale:
        far = np.minimum(far, ((points - points[far.argmax()]) ** 2).sum(1))
        count += 1
    return count
