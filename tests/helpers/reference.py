"""Focus-Scan-Refine (arXiv 2602.05809) in plain loops over Python numbers, to test against."""

from math import floor, sqrt


def minmax(values):
    low, high = min(values), max(values)
    return [1.0] * len(values) if low == high else [(v - low) / (high - low) for v in values]


def cosine(a, b):
    na, nb = sqrt(sum(x * x for x in a)), sqrt(sum(x * x for x in b))
    if na == 0 or nb == 0:
        return float(na == nb)
    return sum(x * y for x, y in zip(a, b, strict=True)) / (na * nb)


def fsr(features, keys, saliency, relevance, budget, alpha=3.0, beta=1.0, rho=0.9, kappa=1.0):
    """Returns index, stage, merged_into, features, focus_count, focus_wanted."""
    n = len(features)
    budget = min(budget, n)
    phi = [s**beta for s in minmax(saliency)]
    if relevance is not None:
        phi = [r**alpha * p for r, p in zip(minmax(relevance), phi, strict=True)]
    order = sorted(range(n), key=lambda i: (-phi[i], i))
    total, running, wanted = sum(phi[i] for i in order), 0.0, 0
    for i in order:
        running += phi[i]
        wanted += 1
        if running >= rho * total:
            break
    focus_count = min(wanted, budget)
    focus = order[:focus_count]
    chosen, scanned = list(focus), []
    while len(chosen) < budget:
        rest = [i for i in range(n) if i not in chosen]
        pick = max(rest, key=lambda i: (min(1 - cosine(keys[i], keys[j]) for j in chosen), -i))
        chosen.append(pick)
        scanned.append(pick)
    merged_into = [-1] * n
    values = {i: list(features[i]) for i in chosen}
    if scanned:
        dropped = []
        for i in set(range(n)) - set(chosen):
            best = max(scanned, key=lambda j: (cosine(keys[i], keys[j]), -scanned.index(j)))
            dropped.append((-cosine(keys[i], keys[best]), i, best))
        for _, i, best in sorted(dropped)[: floor(kappa * len(scanned))]:
            merged_into[i] = best
        for anchor in scanned:
            members = [anchor] + [i for i in range(n) if merged_into[i] == anchor]
            weight = sum(phi[i] for i in members)
            if len(members) > 1 and weight > 0:
                width = range(len(features[0]))
                values[anchor] = [sum(phi[i] * features[i][d] for i in members) / weight for d in width]
    index = sorted(chosen)
    stage = [0 if i in focus else 1 for i in index]
    return index, stage, merged_into, [values[i] for i in index], focus_count, wanted
