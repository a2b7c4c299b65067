"""What `/metrics` says, and what is made of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Scrape:
    """Every sample of one moment."""

    samples: Mapping[tuple[str, frozenset[tuple[str, str]]], float]

    @classmethod
    def of(cls, text: str) -> "Scrape":
        """Read the text format."""
        return cls(
            {
                (sample.name, frozenset(sample.labels.items())): sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            }
        )

    def has(self, name: str) -> bool:
        """Say whether there is a sample of this name."""
        return any(key[0] == name for key in self.samples)

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of all samples of a name that carry `labels`."""
        wanted = set(labels.items())
        return sum(
            value
            for (found, carried), value in self.samples.items()
            if found == name and wanted <= carried
        )

    def buckets(self, name: str) -> dict[float, float]:
        """Return how many observations of a histogram are at or below each bound."""
        found: dict[float, float] = {}
        for (sample, labels), value in self.samples.items():
            if sample == f"{name}_bucket":
                bound = float(dict(labels)["le"])
                found[bound] = found.get(bound, 0) + value
        return dict(sorted(found.items()))


def quantile(buckets: Mapping[float, float], share: float) -> float:
    """Return what a share of the observations stay within, even within a bucket; NaN for none."""
    total = buckets.get(math.inf, 0)
    if not total:
        return math.nan
    below, lower = 0.0, 0.0
    for bound, count in buckets.items():
        if count >= share * total:
            if math.isinf(bound):
                return lower
            return lower + (bound - lower) * (share * total - below) / (count - below)
        below, lower = count, bound
    return lower
