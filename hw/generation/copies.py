"""How much of a text is copied from another one."""

from typing import Any


def copied(text: str, source: str, n: int = 20) -> dict[str, Any]:
    """How much of a text stands verbatim in another.

    Exact, in time O(len(text) + len(source)) and, beside the arguments, memory O(n len(text)): `source` is
    walked once through the suffix automaton of `text`, which at each character knows the longest
    substring of `text` that ends there.

    Args:
      text: a sample.
      source: the text that it may have been copied from.
      n: length of the sequences that are looked up.

    Returns:
      `longest`, the length of the longest common substring; `copy`, the first such in `source`; `share`,
      which part of the len(text) − n + 1 sequences of n characters in `text` occur in `source`, None
      if there are none.

    Source: Blumer et al. 1985, "The smallest automaton recognizing the subwords of a text".
    """
    # State s stands for substrings of `text` with the same ends; the longest has depth[s] characters, and
    # link[s] is the state of its longest suffix that also ends elsewhere. State 0: the empty one.
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
                # The shorter ones among old's substrings now have one end more: a state of their own.
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
            continue  # no substring of `text` has this symbol, and nothing is matched
        at = after
        matched += 1
        if matched > longest:
            longest, end = matched, position
        if matched >= n:
            found.add(source[position - n : position])
    grams = [text[i : i + n] for i in range(len(text) - n + 1)]
    share = sum(gram in found for gram in grams) / len(grams) if grams else None
    return {"longest": longest, "copy": source[end - longest : end], "share": share}
