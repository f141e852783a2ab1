"""Latent strategies: clusters of speeches, what is heard of them, and their file."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from math import log

import numpy as np
import pytest
import torch
from agentgym.envs.werewolf_rules import DOCTOR, ROLES, SEER, VILLAGER, WOLF, Rules
from agentgym.envs.werewolf_speech import Act, say

from agentgym import store
from agentgym.clusters import Clusters, kmeans
from agentgym.embeddings import make_encoder
from agentgym.errors import ConfigError
from agentgym.latents import Latents, cluster_counts, fit, relative
from agentgym.latents_file import load, save


class Toy:
    """Letters of a text, counted."""

    def __init__(self, name="toy"):
        self.name, self.asked = name, []

    def encode(self, texts):
        self.asked.append(list(texts))
        counts = np.array([[text.lower().count(chr(97 + i)) for i in range(26)] + [1] for text in texts], np.float32)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def small(**settings):
    speeches = {
        WOLF: ["aaa", "aab", "bbb", "bba", "ccc", "aaa"],
        SEER: ["ddd", "ddd", "ddd", "aab"],
        VILLAGER: ["eee"] * 5,
    }
    return fit(speeches, **{"counts": (3, 2, 2, 2), "encoder": Toy(), "seed": 0, "public_codes": 4, **settings})


# ---- words and numbers ----------------------------------------------------------------------------------------


def test_relative():
    said = "player_3 says: Player 2 and player_6 lie, PLAYER_33 and multiplayer_2 do not; I am player_3's friend."
    assert relative(said, 3, 7) == (
        "me says: someone and someone lie, PLAYER_33 and multiplayer_2 do not; I am me's friend."
    )
    assert relative("player_6", 0, 4) == "player_6"
    assert relative("", 0, 7) == ""


def test_schedule():
    counts = [cluster_counts(i) for i in (1, 2, 3)]
    assert counts == [(3, 2, 2, 2), (4, 3, 3, 3), (5, 4, 4, 4)]
    assert [sum(c) for c in counts] == [9, 13, 17]
    assert cluster_counts(2, (1, 5)) == (2, 6)
    with pytest.raises(ConfigError, match="iteration"):
        cluster_counts(0)


def test_kmeans_by_hand():
    points = np.array([[0.0], [1.0], [9.0], [10.0]])
    centroids, labels, inertia = kmeans(points, 2, seed=0, init=np.array([[0.0], [1.0]]))
    np.testing.assert_allclose(centroids, [[0.5], [9.5]])
    assert labels.tolist() == [0, 0, 1, 1]
    assert inertia == pytest.approx(1.0)


def test_kmeans_weighs_points():
    centroids, _, inertia = kmeans(np.array([[0.0], [4.0], [9.0]]), 1, seed=0, weights=np.array([3.0, 1.0, 0.0]))
    np.testing.assert_allclose(centroids, [[1.0]])
    assert inertia == pytest.approx(3 * 1 + 9)


def test_kmeans_keeps_the_best_of_its_starts():
    points = np.random.default_rng(0).random((200, 2))
    once = [kmeans(points, 20, seed=s, restarts=1).inertia for s in range(5)]
    often = [kmeans(points, 20, seed=s, restarts=30).inertia for s in range(5)]
    assert all(best <= one for best, one in zip(often, once, strict=True))
    assert max(often) < np.mean(once)
    np.testing.assert_array_equal(kmeans(points, 20, seed=5).labels, kmeans(points, 20, seed=5).labels)


def test_kmeans_with_fewer_distinct_points_than_clusters():
    points = np.array([[1.0, 0.0]] * 3 + [[1.0, 1e-6], [0.0, 1.0]], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        centroids, labels, _ = kmeans(points, 4, seed=0)
    assert len(centroids) == 2
    assert len(set(labels[:4])) == 1
    assert labels[4] != labels[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k = 0"),
        ({"points": np.zeros((0, 2))}, "0 points"),
        ({"init": np.zeros((3, 2))}, r"2 clusters, not \(3, 2\)"),
    ],
)
def test_kmeans_refuses(change, message):
    with pytest.raises(ConfigError, match=message):
        kmeans(**{"points": np.eye(2), "k": 2, "seed": 0, **change})


# ---- fit ------------------------------------------------------------------------------------------------------


def test_clusters_and_codebook():
    latents = small()
    assert latents.counts == (3, 2, 1, 1)
    groups = latents.assign(WOLF, ["aaa", "aab", "bbb", "bba", "ccc"]).tolist()
    assert groups[0] == groups[1] != groups[2] == groups[3] != groups[4]
    assert sorted(set(groups)) == [0, 1, 2]
    # the pool has distinct texts a a b b c d e and 4 codes: what is heard of a wolf's "a" is what is heard of "aab"
    code = latents.codes(["aaa", "aab"])
    assert code[0] == code[1]
    assert latents.codebook[WOLF][groups[0]][code[0]] == 1.0
    for role, counts in zip(latents.codebook, latents.counts, strict=True):
        assert len(role) == counts
        np.testing.assert_allclose([sum(row) for row in role], 1.0, atol=1e-12)


def test_codebook_counts_how_often():
    """One latent strategy of everything: its distribution over codes is by how often each text was said."""
    latents = fit({0: ["aaa"] * 6 + ["bbb"] * 3 + ["ccc"]}, [1], Toy(), seed=0, public_codes=3, roles=["all"])
    row = latents.codebook[0][0]
    assert [row[code] for code in latents.codes(["aaa", "bbb", "ccc"])] == pytest.approx([0.6, 0.3, 0.1])


def test_codebook_fits_into_the_rules():
    latents = small()
    rules = Rules(latents=latents.counts, codebook=latents.codebook)
    assert rules.codes == 4
    assert rules.codebook == latents.codebook


def test_roles_with_little_or_nothing_to_say():
    latents = small(public_codes=8)
    values = latents.metrics()
    assert [values[f"latents/{name.lower()}_short"] for name in ROLES] == [0, 0, 1, 1]
    assert values["latents/public_short"] == 8 - len(latents.public.centroids) == 1
    pool = Counter(
        latents.codes(["aaa", "aab", "bbb", "bba", "ccc", "aaa", *["ddd"] * 3, "aab", *["eee"] * 5]).tolist()
    )
    assert latents.codebook[DOCTOR] == (tuple(pytest.approx(pool[i] / 15) for i in range(7)),)
    assert latents.assign(DOCTOR, ["aaa", "bbb"]).tolist() == [0, 0]
    assert latents.assign(WOLF, []).tolist() == []
    assert latents.examples(DOCTOR, 0, 3) == []
    assert latents.collapsed() == ("villager",)  # one speech; a role that never spoke is not to blame


def test_metrics_by_hand():
    latents = fit({0: ["aaa"] * 3 + ["bbb"]}, [2], Toy(), seed=0, public_codes=1, roles=["seer"])
    values = latents.metrics()
    assert values["latents/seer_entropy"] == pytest.approx(-(0.75 * log(0.75) + 0.25 * log(0.25)))
    assert values["latents/seer_largest"] == 0.75
    assert values["latents/seer_inertia"] == pytest.approx(0, abs=1e-10)
    # (3, 0, 1) and (0, 3, 1) over sqrt 10: squared distance 1.8, centroid at a quarter: 3 * 1.8 / 16 + 1.8 * 9 / 16
    assert values["latents/public_inertia"] == pytest.approx(1.35)
    assert values["latents/public_entropy"] == values["latents/seer_short"] == 0
    assert all(isinstance(value, float) for value in values.values())


@pytest.mark.parametrize(("often", "collapsed"), [(19, ()), (20, ("seer",))])
def test_collapse_is_named(often, collapsed):
    """Shares 19:1 are 0.1985 nats, 18:1 0.2062; roles that should have one latent strategy are not meant."""
    speeches = {0: ["aaa"] * (often - 1) + ["bbb"], 1: ["ccc"]}
    assert fit(speeches, [2, 1], Toy(), seed=0, roles=["seer", "doctor"]).collapsed() == collapsed


def test_the_nearest_centroid_counts_not_the_most_aligned():
    """Of two letters in equal parts, (0.3, 0.3) is nearest; (1, 0) has the larger product."""
    centroids = np.zeros((2, 27))
    centroids[0, 0], centroids[1, :2] = 1.0, 0.3
    clusters = Clusters("seer", 2, centroids, ("a", "b"), np.ones(2), np.array([0, 1]), np.zeros(2), np.zeros(2, int))
    assert Latents(Toy(), [clusters], clusters).assign(0, ["ab" * 50, "a" * 50]).tolist() == [1, 0]


def test_each_distinct_speech_is_encoded_once():
    latents = small()
    assert latents.encoder.asked == [["aaa", "aab", "bbb", "bba", "ccc", "ddd", "eee"]]


def test_examples_come_nearest_first():
    latents = small(counts=(1, 1, 1, 1))
    texts = ["aaa", "aab", "bbb", "bba", "ccc"]
    centroid = latents.roles[WOLF].centroids[0]
    order = np.argsort(((latents.encoder.encode(texts) - centroid) ** 2).sum(1))
    assert latents.examples(WOLF, 0, 9) == [texts[i] for i in order]
    assert latents.examples(WOLF, 0, 2) == [texts[i] for i in order[:2]]
    with pytest.raises(ConfigError, match="latent 1: werewolf has 1"):
        latents.examples(WOLF, 1, 1)


def test_fit_repeats_with_its_seed():
    first, second = small(), small()
    for a, b in zip((*first.roles, first.public), (*second.roles, second.public), strict=True):
        np.testing.assert_array_equal(a.centroids, b.centroids)
        np.testing.assert_array_equal(a.labels, b.labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": (3, 2)}, "counts .* werewolf, seer"),
        ({"counts": (3, 2, 0, 2)}, "counts"),
        ({"public_codes": 0}, "public_codes"),
        ({"restarts": 0}, "restarts"),
        ({"speeches": {4: ["a"]}}, r"unknown roles \[4\]"),
        ({"speeches": {0: [], 1: []}}, "no speech"),
    ],
)
def test_fit_refuses(change, message):
    settings = {"speeches": {0: ["a"]}, "counts": (1, 1, 1, 1), "encoder": Toy(), "seed": 0, **change}
    with pytest.raises(ConfigError, match=message):
        fit(**settings)


# ---- real speeches --------------------------------------------------------------------------------------------


def test_speech_acts_separate_and_seats_do_not():
    """The grammar of Werewolf in a real encoder: accusations, claims and passes, whoever is named."""
    torch.set_num_threads(1)
    kinds = {
        "accuse": [say(Act("accuse", t)) for t in range(1, 7)] + [say(Act("report_wolf", t)) for t in range(1, 7)],
        "claim": [say(Act(f"claim_{role}")) for role in ("seer", "doctor", "villager")] * 4,
        "pass": [say(Act("pass"))] * 12,
    }
    said = {kind: [relative(text, 0, 7) for text in texts] for kind, texts in kinds.items()}
    speeches = {WOLF: [text for texts in said.values() for text in texts], VILLAGER: said["accuse"] + said["pass"]}
    latents = fit(speeches, (3, 2, 2, 2), make_encoder("minilm"), seed=0, public_codes=3)
    assert set(said["accuse"]) == {"I think someone is a Werewolf.", "I saw that someone is a Werewolf."}
    found = [set(latents.assign(WOLF, texts).tolist()) for texts in said.values()]
    assert sorted(map(len, found)) == [1, 1, 1]
    assert set.union(*found) == {0, 1, 2}
    accuse, claim, silent = (one.pop() for one in found)
    other = ["I suspect that someone is a wolf.", "I'm just a simple Villager.", "I've got nothing to add."]
    assert latents.assign(WOLF, other).tolist() == [accuse, claim, silent]
    assert latents.examples(WOLF, silent, 5) == ["I have nothing to say."]
    assert latents.collapsed() == ()
    # a villager's two strategies are heard as what they are to a wolf
    heard = np.array(latents.codebook[VILLAGER])[latents.assign(VILLAGER, [said["accuse"][0], said["pass"][0]])]
    np.testing.assert_array_equal(heard, np.array(latents.codebook[WOLF])[[accuse, silent]])


def test_what_a_check_found_is_heard(tmp_path):
    """MiniLM puts both reports into one cluster; with arguments they are two strategies, heard as different things."""
    torch.set_num_threads(1)
    good, wolf = (relative(say(Act("claim_seer"), Act(f"report_{side}", 3)), 0, 7) for side in ("good", "wolf"))
    said = {SEER: [good] * 5 + [wolf] * 5 + ["I have nothing to say."] * 5, WOLF: [wolf, "I am a Villager."] * 5}
    encoder = make_encoder("minilm")
    one, _ = fit(said, (2, 2, 1, 1), encoder, seed=0).assign(SEER, [good, wolf]).tolist()
    plain, parted = (fit(said, (2, 2, 1, 1), encoder, seed=0, arguments=on) for on in (False, True))
    assert plain.assign(SEER, [good, wolf]).tolist() == [one, one]
    assert plain.stances is None
    assert (plain.counts, parted.counts) == ((2, 2, 1, 1), (2, 3, 1, 1))
    found = parted.assign(SEER, [good, wolf, "I have nothing to say."]).tolist()
    assert [parted.stances[SEER][z] for z in found] == [-1, 1, 0]
    assert parted.assign(SEER, ["I saw that someone is not a wolf.", "Is someone a wolf?"]).tolist() == found[:2]
    assert parted.assign(WOLF, [good]).tolist()[0] in (0, 1)  # no such strategy: the nearest of all
    rules = Rules(latents=parted.counts, codebook=parted.codebook, stances=parted.stances)
    assert rules.stances[DOCTOR] == (0,)
    assert parted.metrics()["latents/seer_short"] == 0
    save(parted, tmp_path)
    again = load(tmp_path, encoder)
    assert (again.stances, again.codebook, again.arguments) == (parted.stances, parted.codebook, True)
    assert again.assign(SEER, [good, wolf]).tolist() == found[:2]


# ---- the file -------------------------------------------------------------------------------------------------


def test_save_and_load(tmp_path):
    latents = small()
    save(latents, tmp_path / "latents")
    again = load(tmp_path / "latents", Toy())
    assert again.counts == latents.counts
    assert again.codebook == latents.codebook
    assert again.metrics() == latents.metrics()
    assert again.collapsed() == latents.collapsed()
    texts = ["aaa", "abab", "ccc", ""]
    for role in range(4):
        assert again.assign(role, texts).tolist() == latents.assign(role, texts).tolist()
        assert again.examples(role, 0, 5) == latents.examples(role, 0, 5)
    assert again.codes(texts).tolist() == latents.codes(texts).tolist()


def test_save_replaces_whole_or_not_at_all(tmp_path, monkeypatch):
    save(small(), tmp_path)
    before = load(tmp_path, Toy()).counts
    whole = store.atomic_file

    def dies_at_json(path):
        if path.name == "latents.json":
            raise KeyboardInterrupt
        return whole(path)

    monkeypatch.setattr(store, "atomic_file", dies_at_json)
    with pytest.raises(KeyboardInterrupt):
        save(small(counts=(1, 1, 1, 1)), tmp_path)
    monkeypatch.undo()
    assert load(tmp_path, Toy()).counts == before
    save(small(counts=(1, 1, 1, 1)), tmp_path)
    assert load(tmp_path, Toy()).counts == (1, 1, 1, 1)
    assert len(list(tmp_path.iterdir())) == 2


def test_damage_is_told(tmp_path):
    save(small(), tmp_path)
    settings, arrays = tmp_path / "latents.json", next(tmp_path.glob("*.npz"))
    body, data = settings.read_text(), arrays.read_bytes()
    whole = json.loads(body)
    short = [{**whole["clusters"][0], "texts": ["aaa"]}, *whole["clusters"][1:]]
    changed = [{**whole["clusters"][0], "texts": ["zzz", "aab", "bbb", "bba", "ccc"]}, *whole["clusters"][1:]]
    for damage in (
        "",
        body[:-20],
        "[]",
        json.dumps({**whole, "format": 1}),
        json.dumps({**whole, "arrays": "0" * 64}),
        json.dumps({**whole, "clusters": short}),
        json.dumps({**whole, "clusters": changed}),
        json.dumps({**whole, "clusters": []}),
        json.dumps({**whole, "clusters": 5}),
    ):
        settings.write_text(damage)
        with pytest.raises(ConfigError, match="damaged"):
            load(tmp_path, Toy())
    settings.write_text(body)
    arrays.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ConfigError, match="damaged"):
        load(tmp_path, Toy())
    arrays.unlink()
    with pytest.raises(ConfigError, match="damaged"):
        load(tmp_path, Toy())
    with pytest.raises(ConfigError, match="no latents"):
        load(tmp_path / "nothing", Toy())


def test_another_encoder_is_refused(tmp_path):
    save(small(), tmp_path)
    with pytest.raises(ConfigError, match="fitted with the encoder toy, not other"):
        load(tmp_path, Toy("other"))
    with pytest.raises(ConfigError, match="unknown encoder 'toy'"):
        load(tmp_path)
    latents = load(tmp_path, Toy())
    latents.encoder.encode = lambda texts: np.ones((len(texts), 5), np.float32)
    with pytest.raises(ConfigError, match="gives 5 numbers"):
        latents.codes(["a"])
