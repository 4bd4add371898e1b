"""How alike two texts are: Jaccard similarity of their letters' 5-grams, proposed by MinHash, computed exactly."""

import re
import unicodedata
from collections.abc import Iterator
from typing import Any

SHINGLE = 5
BANDS, BAND_ROWS = 16, 8  # two texts of similarity 0.8 share a band with probability 0.95, of 0.5 with 0.06
BATCH = 1000
NEIGHBOURS = 8  # earlier members of a band that a text is compared with: keeps a crowded band from costing its square

ASCII_WORD = re.compile(r"[a-z0-9]+")
# A letter of a script that is written without spaces is a word of its own
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")


def words(text: str) -> list[str]:
    """A text's words without case, punctuation, apostrophes and typographic variants."""
    if text.isascii():
        return ASCII_WORD.findall(text.lower().replace("'", ""))
    normal = unicodedata.normalize("NFKC", text).casefold()
    return WORD.findall(normal.replace("'", "").replace("\N{RIGHT SINGLE QUOTATION MARK}", ""))


def shingles(text: str) -> list[str]:
    """Every run of 5 letters of the text, words joined; never empty. Punctuation and spacing do not matter."""
    joined = "".join(words(text)) or text
    return [joined[i : i + SHINGLE] for i in range(len(joined) - SHINGLE + 1)] or [joined]


def similarity(one: str, other: str) -> float:
    """Jaccard similarity of the two texts' shingles, exact, 0 to 1."""
    first, second = set(shingles(one)), set(shingles(other))
    return len(first & second) / len(first | second)


def bands(texts: list[str]) -> Any:
    """Each text's MinHash signature, as 16 band hashes: uint64 (texts, 16). Texts that share one may be alike."""
    import numpy
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue] (compiled, without stubs)

    folded = numpy.empty((len(texts), BANDS), dtype=numpy.uint64)
    prime = numpy.uint64(0x9E3779B97F4A7C15)
    for start in range(0, len(texts), BATCH):
        batch = [shingles(text) for text in texts[start : start + BATCH]]
        matrix = RMinHash.digest_matrix_from_token_sets(batch, num_perm=BANDS * BAND_ROWS, seed=0)
        signatures = numpy.array(matrix.to_rows(), dtype=numpy.uint64).reshape(len(batch), BANDS, BAND_ROWS)
        hashes = numpy.full((len(batch), BANDS), 1, dtype=numpy.uint64)
        for row in range(BAND_ROWS):
            hashes = (hashes ^ signatures[:, :, row]) * prime  # wraps, as a hash may
            hashes ^= hashes >> numpy.uint64(29)
        folded[start : start + len(batch)] = hashes
    return folded


def near_duplicates(texts: list[str], threshold: float) -> dict[int, int]:
    """The texts that are as alike as `threshold` to an earlier one that is kept: index → that one's index.

    MinHash proposes the pairs and their exact similarity decides, so nothing is dropped by an estimate; a pair just
    above the threshold may be missed (one in 20 at 0.8). Cost and memory grow linearly with the texts.
    """
    dropped: dict[int, int] = {}
    for later, earlier in _proposed_pairs(bands(texts)):
        if later not in dropped and earlier not in dropped and similarity(texts[later], texts[earlier]) >= threshold:
            dropped[later] = earlier
    return dropped


def _proposed_pairs(folded: Any) -> Iterator[tuple[int, int]]:
    """Pairs (later, earlier) that share a band, in the order of the later one."""
    import numpy

    count = len(folded)
    pairs = numpy.empty(0, dtype=numpy.int64)
    for band in range(BANDS):
        order = numpy.argsort(folded[:, band], kind="stable")
        hashes = folded[order, band]
        found = [pairs]
        for distance in range(1, NEIGHBOURS + 1):
            together = hashes[distance:] == hashes[:-distance]
            if not together.any():
                break
            found.append(order[distance:][together] * count + order[:-distance][together])
        if len(found) > 1:
            first = numpy.searchsorted(hashes, hashes, side="left")  # the band's first member
            behind = numpy.arange(count) > first
            found.append(order[behind] * count + order[first[behind]])
            pairs = numpy.unique(numpy.concatenate(found))
    for pair in pairs:
        yield divmod(int(pair), count)
