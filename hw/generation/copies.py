"""Measures how much of a text is copied from another one."""

from typing import Any


def copied(text: str, source: str, n: int = 20) -> dict[str, Any]:
    """Measures how much of a text occurs verbatim in another one.

    The result is exact. The time is O(len(text) + len(source)), and the memory beside the arguments is
    O(n len(text)). The suffix automaton of `text` reads `source` once. At each character it knows the longest
    substring of `text` that ends there.

    Args:
      text: a sample.
      source: the text that may contain copied parts.
      n: the length of the sequences that we look up.

    Returns:
      `longest`: the length of the longest common substring. `copy`: the first such substring in `source`.
      `share`: the share of the len(text) − n + 1 sequences of n characters in `text` that occur in `source`;
      None if `text` has no such sequence.

    Source: Blumer et al. 1985, "The smallest automaton recognizing the subwords of a text".
    """
    # State s stands for all substrings of `text` with the same set of end positions. The longest one has
    # depth[s] characters. link[s] is the state of its longest suffix with more end positions. State 0 stands
    # for the empty substring.
    follow: list[dict[str, int]] = [{}]
    link, depth = [0], [0]
    last = 0
    for symbol in text:
        new = len(follow)
        follow.append({})
        depth.append(depth[last] + 1)
        link.append(0)
        at = last
        while symbol not in follow[at]:
            follow[at][symbol] = new
            if at == 0:
                break
            at = link[at]
        else:
            old = follow[at][symbol]
            if depth[old] == depth[at] + 1:
                link[new] = old
            else:
                # The shorter substrings of `old` now have one more end position, so they get a new state.
                clone = len(follow)
                follow.append(dict(follow[old]))
                depth.append(depth[at] + 1)
                link.append(link[old])
                while follow[at].get(symbol) == old:
                    follow[at][symbol] = clone
                    if at == 0:
                        break
                    at = link[at]
                link[old] = link[new] = clone
        last = new

    at = matched = longest = end = 0
    found = set()
    for position, symbol in enumerate(source, start=1):
        after = follow[at].get(symbol)
        while after is None and at:
            at = link[at]
            matched = depth[at]
            after = follow[at].get(symbol)
        if after is None:
            continue  # `text` does not have this symbol, so the match has length 0.
        at = after
        matched += 1
        if matched > longest:
            longest, end = matched, position
        if matched >= n:
            found.add(source[position - n : position])
    grams = [text[i : i + n] for i in range(len(text) - n + 1)]
    share = sum(gram in found for gram in grams) / len(grams) if grams else None
    return {"longest": longest, "copy": source[end - longest : end], "share": share}
