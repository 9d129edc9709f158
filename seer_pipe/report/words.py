"""What a cluster is called: the words that its images have in common and others have not."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

WORD = re.compile(r"[^\W\d_]{3,24}")
SHARE, WORDS = 0.2, 3  # of a cluster's images that a word of its name is with, at least; words of a name, at most


def words(text: str) -> list[str]:
    """Those of at least three letters, in lower case, each once."""
    return list(dict.fromkeys(WORD.findall(text.lower())))


def names(texts: Sequence[Sequence[str]]) -> list[str]:
    """Of each cluster, by the texts of its images: the words with the highest share of its images times the logarithm
    of how many times that is the share of all images; empty where none is with SHARE of them and commoner than there.
    """
    per_cluster = [Counter(word for text in cluster for word in words(text)) for cluster in texts]
    whole: Counter[str] = Counter()
    for counts in per_cluster:
        whole.update(counts)
    images = sum(map(len, texts))

    def best(counts: Counter[str], count: int) -> str:
        worth = {
            word: times / count * math.log(times / count / (whole[word] / images))
            for word, times in counts.items()
            if times >= max(2, SHARE * count)
        }
        ranked = sorted((word for word in worth if worth[word] > 0), key=lambda word: (-worth[word], word))
        return ", ".join(ranked[:WORDS])

    return [best(counts, len(cluster)) for counts, cluster in zip(per_cluster, texts, strict=True)]
