"""The texts that reference numbers are taken for: lengths at which code goes wrong, and odd content."""

from __future__ import annotations

from tests.checkpoints.material import sentence

#: Lengths in tokens, the special ones of the model included.
LENGTHS = (127, 128, 129, 256, 513)


def texts(limit: int, specials: int) -> dict[str, str]:
    """Texts by name, for a model that reads `limit` tokens and adds `specials` of its own."""
    # Where no blank is before it, "house" is one token for all of the small tokenizers; not every word is.
    long = {f"{n} tokens": f"house {sentence(n - specials - 1)}" for n in LENGTHS}
    return {
        "empty": "",
        "one word": "house",
        "two words": "red tree",
        **long,
        "at the limit": f"house {sentence(limit - specials - 1, 1)}",
        "one over the limit": f"house {sentence(limit - specials, 2)}",
        "far over the limit": sentence(limit + 100, 3),
        "code": "def value(index, list):\n\tif index == 0:\n\t\treturn list[index]\n\treturn None  # none\n",
        "repeated": "red red red tree red red house red tree",
        "unicode": "Größe der Häuser 汉字 漢字 かな λ + Ω ﬁeld ÅNGSTRÖM",
        "emoji": "🙂 run 👩‍👩‍👧 🎉 water 🙂",
        "blank": "  \n\t ",
        "long word": "x1" * 150,
        "address": "https://example.org/house.png",
        "file": "pyproject.toml",
    }
