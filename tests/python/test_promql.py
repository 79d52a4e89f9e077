"""Prometheus judges our PromQL: the same samples, the same generated questions, the same answers.

Texts of errors may differ; whether there is one, of which kind, and every warning may not. `docs/promql.md` lists what
differs and why: `KNOWN` says the same to this test.
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
from promql_judge import OverHttp, OverPipe, Prometheus, difference, questions, remote_write, samples
from support import of_debian

#: Seeds of the samples and the questions; each is a Prometheus of its own.
SEEDS = {"short": (1, 300), "long": (7, 20_000)}
#: Of so many answers of Prometheus that are no errors some part must hold something, or the questions are bad.
FULL_PART = 0.5

KNOWN = [
    # Prometheus compares histograms with the empty buckets that its chunks put in.
    re.compile(r"changes\(.*(rpc_seconds|signed|both)"),
    re.compile(r"(rpc_seconds|signed|both).* [!=]= .*(rpc_seconds|signed|both)"),
    # It takes the parameter of the first step for all of them where what is aggregated is of a fixed time.
    re.compile(r"(quantile|topk|bottomk|limitk|limit_ratio)[^(]*\([^,]*time\(\)[^,]*,.* @ "),
    # Of equal values it takes those that its hash map gives first, where there was one.
    re.compile(r"(topk|bottomk)[^(]*\([^,]*, .*\("),
]


def judge(folder: Path, seed: int, count: int) -> None:
    series = samples(seed)
    (folder / "samples.json").write_text(json.dumps(series))
    server = Prometheus(of_debian("prometheus") / "prometheus", folder / "prometheus")
    pipe = OverPipe(folder / "samples.json")
    try:
        remote_write(server.url, series)
        theirs = OverHttp(server.url)
        wrong: list[str] = []
        answered = full = 0
        for question in itertools.islice(questions(seed), count):
            answer = theirs.ask(question)
            if answer["status"] == "success":
                answered += 1
                full += bool(answer["data"]["result"])
            found = difference(pipe.ask(question), answer)
            if found and not any(known.search(question["query"]) for known in KNOWN):
                wrong.append(f"{json.dumps(question)}\n    {found}")
        assert not wrong, f"{len(wrong)} of {count} differ:\n" + "\n".join(wrong[:20])
        assert full > FULL_PART * answered, f"{full} of {answered} answers hold anything"
    finally:
        pipe.stop()
        server.stop()


def test_prometheus_gives_the_same_answers(tmp_path: Path) -> None:
    judge(tmp_path, *SEEDS["short"])


@pytest.mark.torture
def test_prometheus_gives_the_same_answers_to_thousands_of_questions(tmp_path: Path) -> None:
    judge(tmp_path, *SEEDS["long"])
