"""Latent strategies: the speeches of a role as a few clusters of vectors, and what the others hear of them.

Each role's speeches are clustered by k-means on their own (the role's latent strategies), and those of all roles
together (the public codes). A listener is told a public code drawn from the distribution that a speaker's latent
strategy has over them: the number of the latent strategy would give the role away.

An encoder hears little of *not*: "is a Werewolf" and "is not a Werewolf" lie in one cluster. With ``arguments`` a
cluster is parted into speeches that accuse somebody, clear somebody, and do neither (`agentgym.arguments`), and whom
they accuse or clear is a decision of its own in the game over latent strategies, which all hear.

| equation | function |
|---|---|
| k_ρ(i) = k_ρ(1) + i − 1 | `cluster_counts` |
| min Σ_x w_x ‖e(x) − μ_c(x)‖², w_x how often x was said | `agentgym.clusters.kmeans` |
| c(x) = argmin_j ‖e(x) − μ_j‖² | `Latents.assign`, `Latents.codes` |
| share of public code j among the speeches of (role, latent) | `Latents.codebook` |

Source: Xu et al. 2025 (LSPO); the paper leaves open what is heard. With one more cluster every role is
clustered anew, so a latent strategy of one iteration is not that of the same number in another.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from agentgym.arguments import stance
from agentgym.clusters import Clusters, kmeans
from agentgym.embeddings import Encoder
from agentgym.errors import ConfigError

COLLAPSED = 0.2
"""Nats of cluster entropy below which one cluster has swallowed nearly all speeches."""
_PLAYER = re.compile(r"\bplayer[ _]?(\d+)\b", re.IGNORECASE)


def relative(text: str, speaker: int, n: int) -> str:
    """A speech without the names of seats, so that speeches do not cluster by whom they mention.

    Args:
        text: What was said, with seats as ``player_3``, ``Player 3`` or ``player3``.
        speaker: The seat that said it; it becomes ``me``, every other ``someone``.
        n: Number of seats; higher numbers name none and stay.
    """

    def tag(match: re.Match[str]) -> str:
        seat = int(match[1])
        return match[0] if seat >= n else "me" if seat == speaker else "someone"

    return _PLAYER.sub(tag, text)


def cluster_counts(iteration: int, first: Sequence[int] = (3, 2, 2, 2)) -> tuple[int, ...]:
    """Number of latent strategies of each role.

    Args:
        iteration: From 1 on.
        first: Those of iteration 1, by role.
    """
    if iteration < 1:
        raise ConfigError(f"iteration starts at 1, not {iteration}")
    return tuple(k + iteration - 1 for k in first)


class Latents:
    """The latent strategies of every role, and the public codes.

    Texts are what `relative` makes of speeches wherever they are taken.

    Attributes:
        encoder: Makes their vectors.
        roles: Clusters of each role.
        public: Clusters of all roles together.
        arguments: Whether clusters are parted by stance.
        counts: Number of latent strategies of each role.
        stances: Stance of each of them, None without arguments; `agentgym.envs.werewolf_rules.Stances`.
        codebook: ``codebook[role][latent][code]``, the share of a public code among the speeches of a latent strategy.
            A role without speech has one latent strategy, with the shares of all speeches.
    """

    def __init__(self, encoder: Encoder, roles: Sequence[Clusters], public: Clusters, arguments: bool = False):
        """Count the codebook."""
        self.encoder, self.roles, self.public, self.arguments = encoder, tuple(roles), public, arguments
        self.counts = tuple(len(role.centroids) for role in roles)
        self.stances = tuple(tuple(role.stances.tolist()) for role in roles) if arguments else None
        code = dict(zip(public.texts, public.labels.tolist(), strict=True))
        book = []
        for role in roles:
            said = np.zeros((len(role.centroids), len(public.centroids)))
            np.add.at(said, (role.labels, np.array([code[text] for text in role.texts], np.intp)), role.weights)
            if not role.texts:
                said[0] = public.shares()
            book.append(tuple(tuple(map(float, row / row.sum())) for row in said))
        self.codebook: tuple[tuple[tuple[float, ...], ...], ...] = tuple(book)

    def assign(self, role: int, texts: Sequence[str]) -> np.ndarray:
        """The latent strategy of each speech of a role ``[n]``, int: the nearest, of the same stance if there is one.

        Raises:
            ConfigError: The encoder is not the one that the latents were fitted with.
        """
        return self._nearest(self.roles[role], texts)

    def codes(self, texts: Sequence[str]) -> np.ndarray:
        """The public code of each speech ``[n]``, int; errors as `assign`."""
        return self._nearest(self.public, texts)

    def _nearest(self, clusters: Clusters, texts: Sequence[str]) -> np.ndarray:
        if not len(texts):
            return np.zeros(0, np.intp)
        vectors, centroids = self.encoder.encode(texts), clusters.centroids
        if vectors.shape[1] != centroids.shape[1]:
            raise ConfigError(
                f"the encoder {self.encoder.name} gives {vectors.shape[1]} numbers a text, "
                f"the latents were fitted with {centroids.shape[1]}: load them with the same encoder"
            )
        far = (centroids**2).sum(1) - 2 * vectors @ centroids.T
        if self.arguments and clusters is not self.public:
            same = np.array([stance(text) for text in texts])[:, None] == clusters.stances
            far = np.where(same | ~same.any(1, keepdims=True), far, np.inf)
        nearest: np.ndarray = far.argmin(1)
        return nearest

    def metrics(self) -> dict[str, float]:
        """How the speeches of each role, and of all (``public``), are spread.

        ``latents/<role>_entropy`` of its clusters in nats, ``_largest``: share of the largest, ``_inertia``: the
        weighted sum of squared distances, ``_short``: clusters that are missing for want of distinct speeches.
        """
        found = {}
        for clusters in (*self.roles, self.public):
            found[f"latents/{clusters.name}_entropy"] = clusters.entropy()
            found[f"latents/{clusters.name}_largest"] = float(clusters.shares().max())
            found[f"latents/{clusters.name}_inertia"] = float(clusters.weights @ clusters.distances)
            distinct = len(np.unique(clusters.centroids, axis=0))
            found[f"latents/{clusters.name}_short"] = float(clusters.wanted - distinct)
        return found

    def collapsed(self) -> tuple[str, ...]:
        """Names of the roles that speak, should have several latent strategies, and have less than `COLLAPSED` nats."""
        return tuple(r.name for r in self.roles if r.texts and r.wanted > 1 and r.entropy() < COLLAPSED)

    def examples(self, role: int, latent: int, n: int) -> list[str]:
        """Up to ``n`` distinct speeches of a latent strategy, those nearest to the centroid first.

        Raises:
            ConfigError: The role has no such latent strategy.
        """
        clusters = self.roles[role]
        if not 0 <= latent < self.counts[role]:
            raise ConfigError(f"latent {latent}: {clusters.name} has {self.counts[role]}, numbered from 0")
        members = np.flatnonzero(clusters.labels == latent)
        nearest = members[np.argsort(clusters.distances[members], kind="stable")][:n]
        return [clusters.texts[i] for i in nearest]


def fit(
    speeches: Mapping[int, Sequence[str]],
    counts: Sequence[int],
    encoder: Encoder,
    seed: int,
    public_codes: int = 8,
    restarts: int = 10,
    roles: Sequence[str] = ("werewolf", "seer", "doctor", "villager"),
    arguments: bool = False,
) -> Latents:
    """Cluster the speeches of each role, and those of all.

    Args:
        speeches: Role -> everything it said, as `relative` makes it; what comes twice counts twice.
        counts: Latent strategies of each role, see `cluster_counts`.
        encoder: Makes vectors of speeches.
        seed: Of k-means.
        public_codes: Number of public codes K_pub.
        restarts: Starts of k-means.
        roles: Names of the roles, for metrics.
        arguments: Part the clusters of roles by stance.

    Raises:
        ConfigError: A wrong argument, or nothing was said at all.
        EngineError: The encoder gives no vectors.
        MissingDependency: scikit-learn is not installed.
    """
    if len(counts) != len(roles) or min(counts) < 1:
        raise ConfigError(f"counts must be at least 1 for each of {', '.join(roles)}, not {tuple(counts)!r}")
    if public_codes < 1 or restarts < 1:
        raise ConfigError(f"public_codes and restarts must be at least 1, not {public_codes} and {restarts}")
    if strange := set(speeches) - set(range(len(roles))):
        raise ConfigError(f"speeches of unknown roles {sorted(strange)}: roles are 0 to {len(roles) - 1}")
    said = [Counter(speeches.get(role, ())) for role in range(len(roles))]
    pool = sum(said, Counter[str]())
    if not pool:
        raise ConfigError("speeches hold no speech: nothing can be clustered")
    vectors, place = encoder.encode(list(pool)), {text: i for i, text in enumerate(pool)}

    def cluster(name: str, times: Counter[str], k: int) -> Clusters:
        points = vectors[np.array([place[text] for text in times], np.intp)]
        weights = np.array(list(times.values()), float)
        centroids, labels = np.zeros((1, vectors.shape[1]), vectors.dtype), np.zeros(0, np.intp)
        if times:
            centroids, labels, _ = kmeans(points, k, seed, restarts, weights=weights)
        distances = ((points - centroids[labels]) ** 2).sum(1)
        return Clusters(name, k, centroids, tuple(times), weights, labels, distances, np.zeros(len(centroids), np.intp))

    found = [cluster(name, times, k) for name, times, k in zip(roles, said, counts, strict=True)]
    if arguments:
        found = [role.by_stance(np.array([stance(text) for text in role.texts], np.intp)) for role in found]
    return Latents(encoder, found, cluster("public", pool, public_codes), arguments)
