"""``strtobool``, which build_param.py of magicmind_cloud uses."""

_WORDS = {"y": 1, "yes": 1, "t": 1, "true": 1, "on": 1, "1": 1, "n": 0, "no": 0, "f": 0, "false": 0, "off": 0, "0": 0}


def strtobool(value: str) -> int:
    """Return 1 for a word that means yes, 0 for one that means no.

    Raises:
        ValueError: the text is no such word.
    """
    word = value.lower()
    if word not in _WORDS:
        raise ValueError(f"invalid truth value {word!r}")
    return _WORDS[word]
