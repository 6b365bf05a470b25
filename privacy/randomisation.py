r"""Randomisation: epsilon-differential privacy of released attributes, per subject and in total.

Each subject's vector is randomised once, attribute by attribute, by a channel :math:`W`: truth *x* is released as *v*
with probability :math:`W_{xv} / 2^{64}`, the weights being whole numbers, so that one 64-bit word decides exactly and
there is no rounding between the probability that is claimed and the one that is used (compare [4]_). A channel's
privacy loss is that of its realised weights, and losses of independent channels on one vector add up [1]_:

.. math::
    \varepsilon_a = \max_{v, x, x'} \log \frac{W_{xv}}{W_{x'v}}, \qquad
    \varepsilon = \sum_a \varepsilon_a

**What epsilon covers.** Take two tables that differ in the quasi-identifier vector of one subject, in any number of its
attributes, with who is in the table, everybody's photo counts and sensitive values alike. Every set of released
vectors is at most :math:`e^\varepsilon` times as probable from one as from the other, and so is whatever is computed
from the released vectors alone.

**What it does not cover.** Who is in the table. The domains: which values occur is taken as public. Sensitive values,
and what is decided by them: a keep-or-flip choice of PPAS (draw it with ``private_choice``, whose own epsilon is added,
or take it from public data) and every plan that is made to meet l or t. Pixels rendered from an original. Several
photos of one person, unless they were reduced to one vector first, as here. It gives no k-anonymity either: at 1 per
bit, 40 random bits are unique.

**Where the words come from.** ``digest`` is HMAC-SHA256 under the run key (``RunKey.digest`` fits); SHAKE-256
stretches it to one word per attribute. The name that is hashed is the subject *and its true vector*, the purpose names
the channels. So the same question always gets the same answer, in any order of work, while another vector of the same
subject (a grown dataset) or another epsilon gets an independent one. With the subject alone, two releases would share
their flips, and their difference would show the truth. Assumed: HMAC-SHA256 is a pseudo-random function, SHAKE-256 a
pseudo-random generator (so epsilon holds against whoever cannot break them), and the run key stays secret.

.. [1] C. Dwork, A. Roth, "The algorithmic foundations of differential privacy", 2014, theorem 3.16.
.. [2] S. Warner, "Randomized response", JASA 60(309), 1965; P. Kairouz, K. Bonawitz, D. Ramage, "Discrete distribution
   estimation under local privacy", ICML 2016 (k-ary).
.. [3] F. McSherry, K. Talwar, "Mechanism design via differential privacy", FOCS 2007.
.. [4] I. Mironov, "On significance of the least significant bits for differential privacy", CCS 2012.
.. [5] P. Kairouz, S. Oh, P. Viswanath, "The composition theorem for differential privacy", ICML 2015.
.. [6] T. Zhang, "Privacy-preserving machine learning through data obfuscation", arXiv:1807.01860, 2018.
.. [7] T. Li, L. Lin, "AnonymousNet: natural face de-identification with measurable privacy", CVPR workshops 2019.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from facecrowd.privacy.attributes import Attribute
from facecrowd.privacy.cells import Cells
from facecrowd.privacy.classes import PartialHistogram
from facecrowd.privacy.errors import LengthError, PolicyError

Digest: TypeAlias = Callable[[str, bytes], bytes]
"""(purpose, name) to 32 pseudo-random bytes: a keyed hash, as ``RunKey.digest``."""

WORD = 2**64
LARGEST_DOMAIN = 1024
"""A channel has the square of its values."""


@dataclass(frozen=True, eq=False)
class Channel:
    """One attribute's randomisation.

    Attributes
    ----------
    weights : tuple of m tuples of m int
        ``weights[x][v]``: how many of the 2⁶⁴ words release v where x is true. Rows sum to 2⁶⁴.
    """

    weights: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """The number of values."""
        return len(self.weights)

    @cached_property
    def epsilon(self) -> float:
        """The realised privacy loss, natural logarithm."""
        worst = 0.0
        for column in zip(*self.weights, strict=True):
            most, least = max(column), min(column)
            worst = max(worst, math.log1p((most - least) / least) if least else math.inf)
        return worst

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """(m, m): truth in rows, released value in columns."""
        return np.array([[weight / WORD for weight in row] for row in self.weights])

    def draw(self, codes: NDArray[np.int32], words: NDArray[np.uint64]) -> NDArray[np.int32]:
        """What is released for each truth, by one word each: (N,) and (N,) to (N,)."""
        released = np.empty_like(codes)
        for truth, row in enumerate(self.weights):
            here = codes == truth
            ends = np.cumsum(np.array(row[:-1], dtype=np.uint64), dtype=np.uint64)
            released[here] = np.searchsorted(ends, words[here], side="right")
        return released


def randomised_response(size: int, epsilon: float) -> Channel:
    r"""Keep the truth, or release one of the other values, all equally likely [2]_.

    .. math:: P(v \mid x) = \frac{e^{\varepsilon [v = x]}}{e^\varepsilon + m - 1}

    The share of each other value is rounded up to a whole number of words, so the realised epsilon is never above the
    asked one (and never above 44, where every other value has a single word).

    Parameters
    ----------
    size : int
        m, the number of values; 2 for a binary attribute.
    epsilon : float
        Positive.
    """
    _positive(epsilon)
    if size == 1:
        return Channel(((WORD,),))
    # the factor covers the rounding of exp; above the uniform share there would be more lies than truth
    share = WORD / (math.exp(min(epsilon, 700.0)) + size - 1) * (1 + 2.0**-48)
    other = min(math.floor(share) + 1, WORD // size)
    keep = WORD - (size - 1) * other
    return Channel(tuple(tuple(keep if v == x else other for v in range(size)) for x in range(size)))


def exponential_mechanism(distance: ArrayLike, epsilon: float) -> Channel:
    r"""Prefer values near the truth: for ordered, numeric and hierarchical attributes [3]_.

    .. math:: P(v \mid x) \propto e^{-\lambda d_{xv}}

    McSherry and Talwar's :math:`\lambda = \varepsilon / 2\Delta` allows for any distance. Here the channel is known, so
    :math:`\lambda` is the largest (by bisection) whose realised loss is at most epsilon; with all values equally far
    that is ``randomised_response``.

    Parameters
    ----------
    distance : array, shape (m, m)
        From the truth (rows) to the released value (columns), symmetric, 0 on the diagonal only.
    epsilon : float
        Positive.
    """
    _positive(epsilon)
    d = np.asarray(distance, dtype=np.float64)
    if d.ndim != 2 or d.shape[0] != d.shape[1] or not np.allclose(d, d.T) or (np.diag(d) != 0).any():
        raise LengthError(f"the distance has shape {d.shape}; give a symmetric square with a diagonal of 0")
    if len(d) == 1:
        return Channel(((WORD,),))

    def channel(scale: float) -> Channel:
        p = np.exp(-scale * d)
        p /= p.sum(axis=1, keepdims=True)
        rows = []
        for x, row in enumerate(p.tolist()):
            weights = [max(1, int(share * WORD)) for share in row]
            weights[x] += WORD - sum(weights)
            rows.append(tuple(weights))
        return Channel(tuple(rows))

    # with v = x and v = x' in turn the loss is at least scale · d(x, x'), so it is over epsilon at the upper end
    low, high = 0.0, epsilon / float(d.max())
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _loss(d, middle) <= epsilon * (1 - 1e-12) else (low, middle)
    found = channel(low)
    while found.epsilon > epsilon and low > 0:  # weights of a few words round by more than the margin
        low *= 1 - 2.0**-10 if low > 1e-300 else 0.0
        found = channel(low)
    return found


def attribute_distance(attribute: Attribute) -> NDArray[np.float64]:
    r"""The distance between an attribute's values, in [0, 1], (m, m).

    .. math::
        \frac{|x - y|}{x_{max} - x_{min}} \text{ (numeric)}, \quad
        \frac{|i - j|}{m - 1} \text{ (ordered, in codes)}, \quad
        \frac{\text{level of the lowest common ancestor}}{\text{height}} \text{ (hierarchy)}, \quad
        [x \ne y] \text{ (else)}
    """
    m = attribute.size
    if attribute.kind in ("numeric", "ordered") and m > 1:
        x = np.asarray(attribute.values, dtype=np.float64) if attribute.kind == "numeric" else np.arange(float(m))
        return np.abs(x[:, None] - x[None, :]) / (x.max() - x.min())
    if attribute.hierarchy is not None:
        of = {labels[0]: labels for labels in attribute.hierarchy.levels}
        paths = [of[str(value)] for value in attribute.values]
        height = max(len(paths[0]) - 1, 1)
        together = np.array(
            [[next(i for i, same in enumerate(map(str.__eq__, a, b)) if same) for b in paths] for a in paths]
        )
        return together / height
    return 1.0 - np.eye(m)


def attribute_channel(attribute: Attribute, epsilon: float) -> Channel:
    """Randomised response for binary and plain categorical attributes, the exponential mechanism for the others.

    Raises
    ------
    PolicyError
        If the attribute has more than ``LARGEST_DOMAIN`` values.
    """
    if attribute.size > LARGEST_DOMAIN:
        raise PolicyError(
            f"attribute {attribute.name!r} has {attribute.size} values; round or group it to at most {LARGEST_DOMAIN} "
            "before it is randomised"
        )
    if attribute.size <= 2 or (attribute.kind in ("binary", "categorical") and attribute.hierarchy is None):
        return randomised_response(attribute.size, epsilon)
    return exponential_mechanism(attribute_distance(attribute), epsilon)


@dataclass(frozen=True, eq=False)
class Randomised:
    """One randomised vector per subject.

    Attributes
    ----------
    cells : Cells
        The same people, photos and sensitive values under the randomised vectors.
    subjects : pyarrow.Array, length S
    codes : ndarray of int32, shape (S, A)
        The randomised vector of each subject.
    channels : tuple of A Channel
    """

    cells: Cells
    subjects: pa.Array
    codes: NDArray[np.int32]
    channels: tuple[Channel, ...]

    @property
    def epsilon(self) -> float:
        """The total privacy loss per subject; exact, since channels are independent: the worst cases meet."""
        return math.fsum(channel.epsilon for channel in self.channels)

    def accounted(self, delta: float) -> float:
        """``accounted_epsilon`` of these channels: the epsilon that holds but for a probability of delta."""
        return accounted_epsilon([channel.epsilon for channel in self.channels], delta)


def randomise(cells: Cells, epsilon: float, digest: Digest, *, shares: Mapping[str, float] | None = None) -> Randomised:
    """Randomise every subject's vector, once, for a total of epsilon.

    Parameters
    ----------
    cells : Cells
        One vector per subject (``per_subject``).
    epsilon : float
        In total per subject, split over the attributes that have more than one value.
    digest : Digest
    shares : mapping of attribute to its share of epsilon, optional
        Any positive numbers; equal by default.

    Raises
    ------
    PolicyError
        If a subject has several vectors, epsilon is not positive, or shares do not fit the attributes.
    """
    _positive(epsilon)
    truth = subject_codes(cells)
    split = _split(cells.attributes, epsilon, shares)
    channels = tuple(
        attribute_channel(attribute, part) if part else Channel(((WORD,),))
        for attribute, part in zip(cells.attributes, split, strict=True)
    )
    mark = hashlib.sha256()
    for attribute, channel in zip(cells.attributes, channels, strict=True):
        mark.update(repr((attribute.name, attribute.values, channel.weights)).encode())
    drawn = words(digest, f"randomise {mark.hexdigest()}", _names(cells.partial.subjects, truth), truth.shape[1])
    codes = np.stack([c.draw(truth[:, a], drawn[:, a]) for a, c in enumerate(channels)], axis=1)
    return Randomised(recoded(cells, codes), cells.partial.subjects, codes, channels)


def subject_codes(cells: Cells) -> NDArray[np.int32]:
    """The vector of each subject, (S, A), in the order of ``cells.partial.subjects``.

    Raises
    ------
    PolicyError
        If a subject has several.
    """
    if not cells.additive:
        raise PolicyError(
            "a subject has several quasi-identifier vectors, and each would be randomised on its own; "
            "use per_subject: true, one vector per subject"
        )
    return cells.codes[cell_of_subject(cells)]


def cell_of_subject(cells: Cells) -> NDArray[np.int64]:
    """The cell of each subject, (S,), where each has one (``cells.additive``)."""
    found = np.empty(len(cells.partial.subjects), dtype=np.int64)
    found[cells.partial.cell_subject] = cells.partial.cell_class
    return found


def recoded(cells: Cells, codes: NDArray[np.int32], apart: NDArray[np.int64] | None = None) -> Cells:
    """The same people, photos and sensitive values under other vectors, one per subject.

    Parameters
    ----------
    codes : ndarray of int32, shape (S, A)
    apart : ndarray of int64, shape (S,), optional
        Subjects with different numbers get different cells though their vectors are equal.
    """
    keys = codes if apart is None else np.column_stack([codes, apart])
    distinct, cell = np.unique(keys, axis=0, return_inverse=True)
    cell = cell.reshape(-1).astype(np.int64)
    distinct = np.ascontiguousarray(distinct[:, : codes.shape[1]], dtype=np.int32)
    columns = {
        attribute.name: _column(attribute).take(pa.array(distinct[:, a]))
        for a, attribute in enumerate(cells.attributes)
    }
    old = cells.partial
    target = cell[old.cell_subject]
    order = np.lexsort((old.cell_value, old.cell_subject, target))
    triple = np.stack([target[order], old.cell_subject[order], old.cell_value[order]])
    first = np.ones(len(order), dtype=bool)
    first[1:] = (triple[:, 1:] != triple[:, :-1]).any(axis=0)
    rows = np.add.reduceat(old.cell_rows[order], np.flatnonzero(first))
    kept = triple[:, first]
    partial = PartialHistogram(pa.table(columns), old.subjects, old.values, kept[0], kept[1], kept[2], rows)
    return replace(cells, codes=distinct, partial=partial)


def words(digest: Digest, purpose: str, names: Sequence[bytes], count: int) -> NDArray[np.uint64]:
    """``count`` 64-bit words per name, (N, count): SHAKE-256 of ``digest(purpose, name)``.

    Two hashes per name, 5 µs: 0.05 s for 10,000 subjects, whatever the number of their photos.
    """
    stream = b"".join(hashlib.shake_256(digest(purpose, name)).digest(8 * count) for name in names)
    return np.frombuffer(stream, dtype="<u8").astype(np.uint64, copy=False).reshape(len(names), count)


def private_choice(score: float, sensitivity: float, epsilon: float, word: int) -> bool:
    r"""Whether a score is positive, chosen with an epsilon of its own.

    .. math:: P(\text{yes}) = \frac{1}{1 + e^{-\varepsilon \, \text{score} / \Delta}}

    The noisy maximum of two alternatives with logistic noise, that is the exponential mechanism [3]_ where only one
    alternative has a score that depends on the data: :math:`\log P` changes by at most epsilon when the score changes
    by :math:`\Delta` (and by 1e-6 for whole words: no chance is under 1e-13).

    Parameters
    ----------
    score : float
    sensitivity : float
        The most that one subject can change the score.
    epsilon : float
    word : int
        64 random bits.
    """
    _positive(epsilon)
    odds = max(-30.0, min(30.0, epsilon * score / sensitivity))
    # the smaller of the two chances is the one that floats near 2⁶⁴ cannot hold
    rarer = int(WORD / (1.0 + math.exp(abs(odds))))
    return word >= rarer if odds > 0 else word < rarer


@dataclass(frozen=True, eq=False)
class Rates:
    """Estimated shares of an attribute's values.

    Attributes
    ----------
    rate : ndarray of float64, shape (m,)
        Sums to 1; unbiased, so a rare value may get less than 0.
    standard_error : ndarray of float64, shape (m,)
        Of the randomisation and of sampling together.
    """

    rate: NDArray[np.float64]
    standard_error: NDArray[np.float64]


def debias(counts: ArrayLike, channel: Channel) -> Rates:
    r"""The true rates behind randomised counts.

    With :math:`o` the observed rates, :math:`E[o] = W^T \pi`, so

    .. math::
        \hat\pi = (W^T)^{-1} o, \qquad
        \operatorname{Cov} \hat\pi = (W^T)^{-1} \, \frac{\operatorname{diag}(o) - o o^T}{n} \, W^{-1}

    Parameters
    ----------
    counts : array, shape (m,)
        Subjects per randomised value.
    channel : Channel

    Raises
    ------
    LengthError
        If there is not one count per value.
    PolicyError
        If the channel forgets the truth (an epsilon of 0), so that nothing can be estimated.
    """
    observed = np.asarray(counts, dtype=np.float64)
    if observed.shape != (channel.size,):
        raise LengthError(f"{observed.shape} counts are given for {channel.size} values; give one each")
    n = observed.sum()
    matrix = channel.probabilities.T
    if np.linalg.cond(matrix) > 1e12:
        raise PolicyError("the randomisation left nothing of the truth, so no rate can be estimated; raise epsilon")
    inverse = np.linalg.inv(matrix)
    o = observed / n
    covariance = inverse @ ((np.diag(o) - np.outer(o, o)) / n) @ inverse.T
    return Rates(inverse @ o, np.sqrt(np.maximum(np.diag(covariance), 0.0)))


def accounted_epsilon(epsilons: Sequence[float], delta: float) -> float:
    r"""The epsilon of a composition for a given delta, by Google's ``dp-accounting``.

    Every mechanism of loss :math:`\varepsilon_a` is dominated by binary randomised response of the same loss [5]_, so
    their privacy loss distributions are convolved. At ``delta = 0`` it is the plain sum: the library's convolution
    leaves a tail of about 1e-15.

    Parameters
    ----------
    epsilons : sequence of float
        The loss of each channel.
    delta : float
        In [0, 1).
    """
    spent = [epsilon for epsilon in epsilons if epsilon > 0]
    if delta <= 0 or not spent:
        return math.fsum(spent)
    # its import takes seconds and most runs need only the sum
    from dp_accounting.pld import privacy_loss_distribution

    total = None
    for epsilon in dict.fromkeys(spent):
        # its noise parameter is the chance to answer at random, twice the chance to lie
        one = privacy_loss_distribution.from_randomized_response(2.0 / (1.0 + math.exp(epsilon)), 2)
        times = spent.count(epsilon)
        many = one.self_compose(times) if times > 1 else one
        total = many if total is None else total.compose(many)
    assert total is not None
    return min(float(total.get_epsilon_for_delta(delta)), math.fsum(spent))


def epsilon_each(total: float, count: int, delta: float = 0.0) -> float:
    """The epsilon that each of ``count`` attributes may spend so that they compose to (total, delta).

    ``total / count`` at delta 0; above, more (by bisection on ``accounted_epsilon``).
    """
    _positive(total)
    low, high = total / count, total
    if delta <= 0 or count == 1:
        return low
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if accounted_epsilon([middle] * count, delta) <= total else (low, middle)
    return low


def obfuscate(
    values: ArrayLike,
    names: Sequence[bytes],
    digest: Digest,
    *,
    gamma: float,
    sigma: float,
    mirror: bool = False,
    low: float = 0.0,
    high: float = 1.0,
) -> NDArray[np.float64]:
    r"""The paper's randomisation of numeric features ([6]_; [7]_, section 3.2). **No formal guarantee.**

    Of each row a random share gamma of the features gets Gaussian noise, :math:`x + N(0, \sigma)`, or with ``mirror``
    :math:`low + high - x + N(0, \sigma)` (the paper's :math:`255 - x_i`); the others are released as they are, which is
    why no epsilon can be given.

    Parameters
    ----------
    values : array, shape (N, F)
    names : sequence of N bytes
        What each row's draw is keyed by.
    gamma : float
        In [0, 1]; round(gamma · F) features per row.
    sigma : float
        Standard deviation, in the unit of the values.
    low, high : float
        The range of the values; noise is not clipped to it.
    """
    x = np.asarray(values, dtype=np.float64)
    chosen, noise = _chosen(x.shape, names, digest, gamma, "obfuscate")
    return np.where(chosen, (low + high - x if mirror else x) + sigma * ndtri(noise), x)


def obfuscate_codes(
    codes: NDArray[np.int32], sizes: Sequence[int], names: Sequence[bytes], digest: Digest, *, gamma: float
) -> NDArray[np.int32]:
    """The same for categorical attributes: a random share gamma of each row's attributes takes another value, all
    others equally likely (a flip, for binary ones). **No formal guarantee**: exactly that many are false, so an
    adversary who knows all attributes but one can tell the last for certain.

    Parameters
    ----------
    codes : ndarray of int32, shape (N, F)
    sizes : sequence of F int
        Values per attribute.
    """
    chosen, draw = _chosen(codes.shape, names, digest, gamma, "obfuscate codes")
    m = np.asarray(sizes, dtype=np.int64)
    step = 1 + np.floor(draw * np.maximum(m - 1, 1)).astype(np.int64)
    return np.where(chosen & (m > 1), (codes + step) % m, codes).astype(np.int32)


def synthesise(
    values: ArrayLike, count: int, digest: Digest, *, gamma: float, sigma: float, low: float = 0.0, high: float = 1.0
) -> NDArray[np.float64]:
    """New rows in the paper's manner ([7]_, section 3.2): an original drawn at random, mirrored and noised by
    ``obfuscate``. **No formal guarantee**: what is not mirrored is copied from one person.

    Returns
    -------
    ndarray of float64, shape (count, F)
    """
    x = np.asarray(values, dtype=np.float64)
    names = [b"synthetic %d" % i for i in range(count)]
    origin = (words(digest, "synthesise", names, 1)[:, 0] % np.uint64(len(x))).astype(np.int64)
    return obfuscate(x[origin], names, digest, gamma=gamma, sigma=sigma, mirror=True, low=low, high=high)


def _chosen(
    shape: tuple[int, ...], names: Sequence[bytes], digest: Digest, gamma: float, purpose: str
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Which features of each row are randomised, and a uniform number in (0, 1) for each."""
    if not 0 <= gamma <= 1:
        raise PolicyError(f"gamma is {gamma:g}; it is a share of the features, from 0 to 1")
    if len(shape) != 2 or len(names) != shape[0]:
        raise LengthError(f"values of shape {shape} have {len(names)} names; give a name per row of a table")
    features = shape[1]
    drawn = words(digest, purpose, names, 2 * features)
    rank = np.argsort(np.argsort(drawn[:, :features], axis=1, kind="stable"), axis=1, kind="stable")
    uniform = ((drawn[:, features:] >> np.uint64(12)).astype(np.float64) + 0.5) / 2.0**52
    return rank < round(gamma * features), uniform


def _positive(epsilon: float) -> None:
    if not epsilon > 0:
        raise PolicyError(f"epsilon is {epsilon:g}; it must be positive")


def _split(attributes: Sequence[Attribute], epsilon: float, shares: Mapping[str, float] | None) -> list[float]:
    """Each attribute's part; a constant attribute needs none."""
    names = [attribute.name for attribute in attributes]
    if shares is not None and (set(shares) != set(names) or not all(share > 0 for share in shares.values())):
        raise PolicyError(f"shares of epsilon name {sorted(shares)}; give a positive one for each of {names}")
    share = [0.0 if a.size == 1 else 1.0 if shares is None else float(shares[a.name]) for a in attributes]
    # the margin keeps the sum of the parts from rounding above the total
    return [epsilon * s / sum(share) * (1 - 2.0**-50) if s else 0.0 for s in share]


def _names(subjects: pa.Array, codes: NDArray[np.int32]) -> list[bytes]:
    """Vector and subject: vectors have one length, so the two cannot run into each other."""
    vectors = np.ascontiguousarray(codes, dtype="<i4")
    return [row.tobytes() + str(name).encode() for row, name in zip(vectors, subjects.to_pylist(), strict=True)]


def _column(attribute: Attribute) -> pa.Array:
    """An attribute's values; as text where those of its hierarchy and of the table have different types."""
    mixed = len({type(value) for value in attribute.values}) > 1
    return pa.array([str(value) for value in attribute.values] if mixed else list(attribute.values))


def _loss(d: NDArray[np.float64], scale: float) -> float:
    log_p = -scale * d
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    return float((log_p.max(axis=0) - log_p.min(axis=0)).max())
