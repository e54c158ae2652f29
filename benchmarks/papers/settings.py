"""The methods' own settings: the papers', and in proportion if a run is shorter than theirs."""

from typing import Any

from .published import Row, setting

SHORT = 0.25  # of the papers' epochs: below, vSAM's controller ends before its rate has risen
RATE = 0.34  # of second passes, on average over the papers' runs


def settings(method: str, row: Row, share: float) -> dict[str, Any]:
    """``share``: of the papers' epochs."""

    def of(name: str, which: str = method) -> Any:
        return setting(which, name, row.network, row.dataset)

    if method.startswith("AUSAM-"):
        ramp = max(1, round(share * of("E_start", "AUSAM")))
        return {"s_min": of("s_min", "AUSAM"), "s_max": of("s_max", "AUSAM"), "warmup_epochs": ramp}
    if method.startswith("vSAM"):
        own = {"alpha": of("alpha", "vSAM")} | ({} if method == "vSAM-A" else {"gamma": of("gamma")})
        return own if share > SHORT else {**own, "alpha": 0.0, "initial_rate": RATE, "sam_epochs": 1}
    if method == "AUSAM+vSAM":  # no paper's
        own = settings("AUSAM-0.5", row, share) | {"gamma": of("gamma", "vSAM")}
        return own if share > SHORT else {**own, "vsam_alpha": 0.0, "initial_rate": RATE, "sam_epochs": 1}
    if method == "ESAM":
        return {"beta": of("beta"), "gamma": of("gamma")}
    if method in ("SAF", "MESA"):
        start = round(share * of("E_start"))
        delay = {"delay": max(1, min(of("E_tilde"), start))} if method == "SAF" else {}
        return {"lam": of("lambda"), "tau": of("tau"), "start_epoch": start, **delay}
    return {}
