"""Recorded cases of CANON's released advantages (sheet `canon`): every output divided by the maximum length, a group of one keeps its reward."""

from dataclasses import replace

from isentrope.control.advantages import spread
from isentrope.control.papers.canon import Canon
from isentrope.control.step import Rollouts
from isentrope.verify.cases import Case, Outputs, answers

SLUG = "canon"


@answers(SLUG, "advantage*")
def advantage(case: Case) -> Outputs:
    mask = case.mask()
    reward = case["token_rewards"].sum(-1)
    rollouts = Rollouts.of(mask, reward=reward, group=case["group"], advantage=reward[:, None], signals={"old.entropy": case["entropy"]})
    entropy, divisor = Canon(variant="code"), case.param("max_length_divisor")
    length = replace(entropy, metric="length")
    links = {"random_by_position": (replace(entropy, metric="arbitrary"), 0), "annealed": (replace(entropy, schedule="accuracy"), 0)}
    for kind, link in (("entropy", entropy), ("length", length)):
        links |= {f"{kind}_lam{round(100 * share)}": (replace(link, inter=share), 0) for share in case.param("lambdas")}
        links[f"{kind}_alpha"] = (replace(link, alpha=case.param("alpha")), 0)
    schedule = case.param("schedule")
    cycle = (schedule["total"] - schedule["warmup"]) // schedule["cycles"]
    for name, form in (("cos1", "cosine-falling"), ("cos2", "cosine-rising")):
        link = replace(entropy, schedule=form, warmup=schedule["warmup"], cycle=cycle)
        links |= {f"{name}_step{step}": (link, step) for step in schedule["steps"]}
    return {name: spread(link.advantage(rollouts, {"updates": step}).squeeze(1), mask) / divisor for name, (link, step) in links.items()}
