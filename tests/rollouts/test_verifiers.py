from __future__ import annotations

import copy
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from ipvrm_lightning.rollouts.answers import final_answer
from ipvrm_lightning.rollouts.verifiers import ExactMatch, MathVerifier, Submission, Verdict, Verifier, judge
from ipvrm_lightning.rollouts.worker_pool import MEMORY_LIMIT, TIME_LIMIT, WORKER_DIED, Outcome, WorkerPool
from ipvrm_lightning.types import PromptExample

#: A power tower: evaluating it never ends and cannot be interrupted from within.
HOSTILE = r"\boxed{9^{9^{9^9}}}"


def submit(response: str, ground_truth: str) -> Submission:
    return Submission([{"role": "user", "content": "?"}], response, ground_truth)


def verdict(verifier: Verifier, response: str, ground_truth: str) -> Verdict:
    (one,) = verifier.verify([submit(response, ground_truth)])
    return one


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    # one worker, so that a case costs no more than itself
    verifier = MathVerifier(workers=1, time_limit=20.0)
    yield verifier
    verifier.close()


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{142}.", "142"),
        (r"first \boxed{1}, no: $\boxed{\frac{1}{2}}$, which is right", r"\frac{1}{2}"),
        (r"\boxed{ \{1, \{2\}\} }", r"\{1, \{2\}\}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{7} and, cut off, \boxed{8", "7"),
        (r"\boxed{7}. Put it in \boxed{}.", "7"),
        (r"\boxed{7}. Put it in \boxed{ }.", "7"),
        (r"} so \boxed{7}}", "7"),
        (r"\boxed{4}, Answer: 3", "4"),
        ("Answer: 12.4", "12.4"),
        ("Answer: **12**", "12"),
        ("**Answer:** $12$\nThis follows from $3 \\cdot 4$.", "12"),
        ("**Final Answer**: 12 because 3 times 4 is 12", "12"),
        ("Final Answer: The final answer is $\\frac{1}{2}$. I hope it is correct.", r"\frac{1}{2}"),
        ("The answer to both parts is 7, which is odd.", "7"),
        ("The answers are $3$ and $5$.", "3 and 5"),
        ("Answer:\n\\[\n  x^2\n\\]\nDone.", "x^2"),
        ("The answer is 3.5. The other answer is 4.", "4"),
        (r"**Answer:** The least \(n\) such that \(n^2 \geq K\) is \(n = 10\).", "n = 10"),
        (r"Answer: The values of $x$ for which $f(x) = g(x)$ are $x = 5$ and $x = -2$.", "x = 5 and x = -2"),
        (r"The answer is that there are $3$ of them.", "3"),
        (r"Answer: There are $2$ of them if $a$ is $3$.", "2"),
        (r"The answer is $3$, as $3$ is $1 + 2$.", "3"),
        (r"so \fbox{12}, not 13", "12"),
        ("Answer: 12 apples, as $x$ is $3$.", "12 apples, as $x$ is $3$"),
        ("48 / 2 = 24, so 72 in all.\n#### 72\n", "72"),
        ("The answer is 5.\n#### 1,234", "1,234"),
        ("#### Answer: 5", "5"),
        ("#### Step 1\nAdd.\n#### 2\nDone.", None),
        ("Answer: 5\n\n#### QED", "5"),
        (r"\boxed{3}" "\n#### 4", "3"),
        (r"<think>Perhaps \boxed{3}?</think> The answer is 4.", "4"),
        (r"Perhaps \boxed{3}? No. </think> \boxed{1}? </think> So \boxed{2}.", "2"),
        (r"Perhaps. </think> \boxed{1}? </think> The answer is 2.", "2"),
        (r"<think>Surely \boxed{3}.</think> As I said.", "3"),
        ("<think>The answer is 3 </think>\n4", "3"),
        ("Nothing to see here.", None),
        ("", None),
        (r"\boxed{", None),
    ],
)
def test_the_answer_is_boxed_last_or_announced_last(response: str, answer: str | None) -> None:
    assert final_answer(response) == answer


@pytest.mark.parametrize(
    "pattern", [r"\boxed{", "answer ", "$", r"\(", "Answer: ", "{", r"\[ ", "\n#### 1", "#### 1 ", "</think>"]
)
def test_finding_the_answer_takes_no_longer_on_purpose(pattern: str) -> None:
    began = time.monotonic()
    final_answer(("Answer: " + pattern * 20_000)[:20_000])
    final_answer((pattern * 20_000)[:20_000])
    assert time.monotonic() - began < 5


def test_exact_match() -> None:
    exact = ExactMatch()
    assert exact.verify([submit("It is\n\\boxed{a  b}", " a b "), submit("x\n 42 \n\n", "42"), submit("", "42")]) == [
        Verdict(True, "a b", None),
        Verdict(True, "42", None),
        Verdict(False, None, None),
    ]
    assert not verdict(exact, "Answer: 0.5", "1/2").correct
    assert verdict(exact, r"\boxed{$7.$}", " 7").correct and verdict(exact, "7", "$7$.").correct
    assert not verdict(exact, "Answer: YES", "yes").correct
    assert verdict(ExactMatch(use_last_line=False), "42", "42").answer is None
    assert verdict(ExactMatch(ignore_case=True), "the answer is YES.", "yes").correct
    assert verdict(ExactMatch(response_characters=10), r"\boxed{1}" + " " * 10, "1").answer is None


@pytest.mark.parametrize(
    ("response", "truth"),
    [
        (r"\boxed{142}", "142.0"),
        ("Answer: 142", "142.0"),
        (r"The answer is $\frac{142}{1}$. This is text after it, 7.", "142.0"),
        (r"\boxed{0.5}", r"\frac{1}{2}"),
        (r"\boxed{\dfrac12}", "0.5"),
        (r"\boxed{1/2}", "0.5"),
        (r"\boxed{-1/3}", "-1./3"),
        (r"\boxed{\{3, 1, 2\}}", r"\{1,2,3\}"),
        (r"\boxed{3, 1}", "1,3"),
        ("The answers are $3$ and $1$.", "1, 3"),
        (r"\boxed{(1, 2]}", "(1,2]"),
        (r"\boxed{(-\infty, 2)}", r"(-\infty,2)"),
        (r"\boxed{5\text{ cm}}", "5"),
        (r"\boxed{12.40}", r"12.4 \mathrm{~km}"),
        ("Answer: 42 apples", "42"),
        (r"\boxed{50\%}", "0.5"),
        (r"\boxed{50}", r"50\%"),
        (r"\boxed{1,234,567}", "1234567"),
        (r"\boxed{1\,234}", "1234"),
        (r"\boxed{1{,}234}", "1234"),
        (r"\boxed{1} or \boxed{2}", "2"),
        (r"\boxed{\frac{\sqrt{2}}{2}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{x = 5}", "5"),
        (r"\boxed{(x+1)^2}", "x^2+2x+1"),
        (r"\boxed{\text{Evelyn}}", "Evelyn"),
        (r"\boxed{E_1, E_2}", "E_1,E_2"),
        (r"\boxed{n^2-n-1}", r"$m_{\max }=n^{2}-n-1$"),
        (r"\boxed{4.5 \times 10^{33}}", "4.5e33"),
        (r"\boxed{1.0 \cdot 10^{-5}}", "1e-5"),
        ("Answer: \u22125", "-5"),
        ("Answer: ½", "0.5"),
        ("Answer: √2", r"\sqrt{2}"),
        ("Answer: π", r"\pi"),
        ("Answer: 90°", r"90^\circ"),
        ("#### 72", "72"),
        ("#### $18", "18"),
        (r"\boxed{x > 5}", r"(5,\infty)"),
        (r"\boxed{x \ge \frac{1}{2}}", r"[0.5,\infty)"),
        (r"\boxed{(5, \infty)}", "x>5"),
        (r"\boxed{1 \le x < 2}", "[1,2)"),
        (r"\boxed{x \ne 3}", r"(-\infty,3)\cup(3,\infty)"),
        (r"\boxed{\varnothing}", r"\emptyset"),
        ("Answer: ∅", r"\varnothing"),
        (r"\boxed{3 1/2}", "3.5"),
        (r"\boxed{-\frac{7}{2}}", "$-3 1/2$"),
        ("\\boxed{1\0" + "42}", "142"),
        ("\ud800 \\boxed{7}", "7"),
        ("x" * 1_000_000 + r"\boxed{142}", "142"),
    ],
)
def test_right_answers_in_other_words(verifier: MathVerifier, response: str, truth: str) -> None:
    found = verdict(verifier, response, truth)
    assert found.correct and found.answer and found.problem is None, found


@pytest.mark.parametrize(
    ("response", "truth"),
    [
        (r"\boxed{143}", "142.0"),
        (r"\boxed{0.333}", r"\frac{1}{3}"),
        (r"\boxed{2} no, \boxed{3}", "2"),
        (r"\boxed{(3, 1)}", "(1,3)"),
        (r"\boxed{\{1,2\}}", r"\{1,2,3\}"),
        (r"\boxed{[1, 2]}", "(1,2]"),
        (r"\boxed{1, 234}", "1234"),
        (r"\boxed{-5}", "5"),
        (r"\boxed{1.325e-27}", "2.88e-19"),
        (r"\boxed{0}", "1e-8"),
        (r"\boxed{4.5 \times 10^{32}}", "4.5e33"),
        (r"\boxed{E_1, E_3}", "E_1,E_2"),
        (r"\boxed{5%}", "0.5"),
        (r"\boxed{x \ge 5}", r"(5,\infty)"),
        (r"\boxed{x < 5}", r"(5,\infty)"),
        (r"\boxed{x > 6}", r"(5,\infty)"),
        (r"\boxed{1 < x < 4}", r"(1,2)\cup(3,4)"),
        (r"\boxed{1 < x < 2}", "[1,2)"),
        (r"\boxed{1 < x < 2}", "1,2"),
        (r"\boxed{1 < x < 2}", "(1,2)"),
        (r"\boxed{1 < x < 2}", r"\{1\}\cup\{2\}"),
        (r"\boxed{x > 5}", "5"),
        (r"\boxed{0}", r"\varnothing"),
        (r"\boxed{\{\varnothing\}}", r"\emptyset"),
        (r"\boxed{3 1/2}", "1.5"),
        (r"\boxed{3 1/2}", "31/2"),
        (r"\boxed{31/2}", "3 1/2"),
        (r"\boxed{3 1/2}", "3"),
        (r"\boxed{-3 1/2}", "-2.5"),
        (r"\boxed{10 123/4}", "40.75"),
        (r"\boxed{\frac{1}{", "1"),
        (r"\boxed{142}" + "x" * 1_000_000, "142"),
        ("142", "142"),
        ("", "142"),
    ],
)
def test_wrong_answers(verifier: MathVerifier, response: str, truth: str) -> None:
    found = verdict(verifier, response, truth)
    assert not found.correct and found.problem is None, found


def test_a_worked_solution_as_ground_truth_counts_by_its_answer(verifier: MathVerifier) -> None:
    gsm8k = "48/2 = <<48/2=24>>24 clips in May.\n48+24 = <<48+24=72>>72 altogether.\n#### 1,072"
    of_math = r"Its sign is negative: $-\frac{1}{2}$. So the answer is $\boxed{-\frac{1}{2}}$ and not 3."
    rows = [("1072", gsm8k), ("24", gsm8k), ("72", gsm8k), ("-0.5", of_math), ("0.5", of_math), ("3", of_math)]
    found = verifier.verify([submit(rf"\boxed{{{answer}}}", truth) for answer, truth in rows])
    assert [one.correct for one in found] == [True, False, False, True, False, False]
    exact = ExactMatch().verify([submit(rf"\boxed{{{answer}}}", gsm8k) for answer in ("1,072", "72")])
    assert [one.correct for one in exact] == [True, False]
    verifier.check([PromptExample([1], "?", gsm8k, "tests", "p")])


def test_equal_answers_vote_together(verifier: MathVerifier) -> None:
    answers = [
        verdict(verifier, rf"\boxed{{{text}}}", "1").answer for text in (r"\dfrac{1}{2}", r"\frac12", "0.5", "½")
    ]
    assert set(answers) == {r"\frac{1}{2}"}


@pytest.mark.parametrize("truth", ["", "  ", "???", r"\frac{"])
def test_a_ground_truth_that_cannot_be_read_is_an_error(verifier: MathVerifier, truth: str) -> None:
    with pytest.raises(ValueError) as caught:
        verifier.verify([submit(r"\boxed{1}", "1"), submit("no answer", truth)])
    assert str(caught.value) == f"ground truth cannot be read: {truth!r}"
    assert verdict(verifier, r"\boxed{1}", "1").correct


def test_ground_truths_are_checked_before_there_are_answers(verifier: MathVerifier) -> None:
    def prompts(*truths: str) -> list[PromptExample]:
        return [PromptExample([1], "?", truth, "tests", f"p{number}") for number, truth in enumerate(truths)]

    good = prompts("1", "E_1, E_3", r"\text{yes}", "∞")  # the last is mathematics, though no text
    verifier.check(good)
    for truth in ("???", r"\frac{"):
        with pytest.raises(ValueError, match=r"^prompt 'p1': ground truth cannot be read: ") as caught:
            verifier.check(prompts("2", truth, "3"))
        assert repr(truth) in str(caught.value)
    never = MathVerifier(workers=1)
    never.check(good[:3])
    assert never._pool is None  # what is plain to see starts no worker
    ExactMatch().check(prompts("???"))


def test_real_ground_truths(verifier: MathVerifier, shared_dir: Path) -> None:
    table = pytest.importorskip("pandas").read_parquet(shared_dir / "data" / "policy_eval" / "val.parquet")
    sources = table["data_source"].tolist()
    truths = [row["ground_truth"] for row in table["reward_model"]]
    same = verifier.verify([submit(rf"so \boxed{{{truth}}}.", truth) for truth in truths])
    assert Counter(source for source, one in zip(sources, same, strict=True) if one.correct) == {
        "olympiad-bench": 675,
        "math-500": 500,
        "minerva-math": 272,
        "aimo-aime2024": 90,
        "aimo-amc": 83,
    }
    # equal texts are equal whatever is read in them; numbers in another form, and wrong ones, are not
    numbers = [truth for truth in truths if re.fullmatch(r"\$?-?\d+(\.\d+)?\$?", truth)]
    assert len(numbers) == 1015
    doubled = [rf"Answer: $\frac{{{2 * Fraction(number.strip('$'))}}}{{2}}$" for number in numbers]
    assert all(one.correct for one in verifier.verify(list(map(submit, doubled, numbers))))
    wrong = [rf"Answer: $\frac{{{2 * Fraction(number.strip('$')) + 1}}}{{2}}$" for number in numbers]
    assert not any(one.correct for one in verifier.verify(list(map(submit, wrong, numbers))))


def test_a_hostile_answer_costs_its_own_time_and_no_other_answer() -> None:
    verifier = MathVerifier(workers=2, time_limit=1.0, memory_limit=512)
    rows = [submit(r"\boxed{1}", "1") for _ in range(20)]
    rows[3] = rows[11] = submit(HOSTILE, "1")
    verdicts = verifier.verify(rows)
    assert [index for index, one in enumerate(verdicts) if not one.correct] == [3, 11]
    assert verdicts[3] == Verdict(False, "9^{9^{9^9}}", "time limit")
    assert verdict(verifier, r"\boxed{1}", "1").correct
    verifier.close()


def test_workers_start_late_are_reused_and_end() -> None:
    verifier = MathVerifier(workers=1)
    copies = [copy.deepcopy(verifier), pickle.loads(pickle.dumps(verifier))]
    assert verifier._pool is None
    assert verdict(verifier, r"\boxed{1}", "1").correct
    assert verifier._pool is not None
    first = verifier._pool.process_ids
    assert verdict(verifier, r"\boxed{2}", "2").correct
    assert verifier._pool.process_ids == first
    # killed while idle: replaced without costing an answer anything
    os.kill(first[0], signal.SIGKILL)
    assert verdict(verifier, r"\boxed{2}", "2") == Verdict(True, "2", None)
    last = verifier._pool.process_ids
    mapped = Path(f"/proc/{last[0]}/maps")
    if mapped.exists():
        assert "libtorch" not in mapped.read_text()
    verifier.close()
    with pytest.raises(ProcessLookupError):
        os.kill(last[0], 0)
    assert verdict(copies[1], r"\boxed{2}", "2").correct
    assert pickle.loads(pickle.dumps(copies[1]))._pool is None
    for one in [verifier, *copies]:
        one.close()


def test_workers_end_with_their_process() -> None:
    script = (
        "import os, signal\n"
        "from ipvrm_lightning.rollouts.verifiers import MathVerifier, Submission\n"
        "verifier = MathVerifier(workers=1)\n"
        "verifier.verify([Submission('', 'Answer: 1', '1')])\n"
        "print(verifier._pool.process_ids[0], flush=True)\n"
    )
    # once by itself, once killed: no guard around the main script, which is no file either
    for last_line in ("", "os.kill(os.getpid(), signal.SIGKILL)"):
        done = subprocess.run([sys.executable, "-c", script + last_line], stdout=subprocess.PIPE, text=True)
        worker = int(done.stdout)
        for _ in range(100):
            try:
                os.kill(worker, 0)
            except ProcessLookupError:
                break
            time.sleep(0.1)
        else:
            pytest.fail(f"worker {worker} outlived its process")


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module whose tasks are names of what to do."""
    (tmp_path / "strange_tasks.py").write_text(
        "import os, signal\n"
        "from ipvrm_lightning.rollouts.worker_pool import serve\n"
        "def do(task):\n"
        "    if task == 'eat':\n"
        "        bytearray(2**34)\n"
        "    if task == 'die' or task.startswith('/') and not os.path.exists(task):\n"
        "        open(task, 'w').close() if task != 'die' else None\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return task + '!'\n"
        "def main():\n"
        "    serve(do, 'try', 'try!')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "strange_tasks"


def test_dead_workers_cost_one_answer_a_second_try(tasks: str, tmp_path: Path) -> None:
    pool = WorkerPool(module=tasks, size=2, time_limit=20.0, memory_limit=512)
    once = str(tmp_path / "died once")
    assert pool.run(["a", "die", once, "eat", "b"]) == [
        Outcome("a!", None),
        Outcome(None, WORKER_DIED),
        Outcome(once + "!", None),
        Outcome(None, MEMORY_LIMIT),
        Outcome("b!", None),
    ]
    assert pool.run([]) == []
    pool.close()


def test_a_busy_machine_makes_no_answer_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work counts, not time: one that waits for its turn is done, one that works for ever or waits for ever is not."""
    main = """
        def do(task):
            while task == "work":
                pass
            time.sleep({"wait": 1.5, "sleep": 1000}.get(task, 0))
            return task
        serve(do, "try", "try")
    """
    module = module_of_tasks(tmp_path, monkeypatch, "at_work", main)
    pool = WorkerPool(module=module, size=2, time_limit=0.5, memory_limit=512)
    outcomes = pool.run(["wait", "work", "sleep", "wait", "a"])
    late, done = Outcome(None, TIME_LIMIT), [Outcome(task, None) for task in ("wait", "a")]
    assert outcomes == [done[0], late, late, *done]
    pool.close()


def test_a_task_that_is_kept_from_the_processor_is_done_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = """
        serve(lambda task: sum(range(10**7)) and task, "try", "try")
    """
    module = module_of_tasks(tmp_path, monkeypatch, "stopped", main)
    pool = WorkerPool(module=module, size=1, time_limit=1.5, memory_limit=512)
    assert pool.run(["a"]) == [Outcome("a", None)]
    (worker,) = pool.process_ids
    os.kill(worker, signal.SIGSTOP)
    threading.Timer(2.5, os.kill, (worker, signal.SIGCONT)).start()
    assert pool.run(["b"]) == [Outcome("b", None)] and pool.process_ids == [worker]
    pool.close()


def test_a_worker_whose_pool_is_no_more_ends_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its parent's SIGPROF ignored, which processes inherit."""
    main = """
        def do(task):
            if task != "try":
                open(task, "w").close()
            while task != "try":
                pass
        serve(do, "try", None)
    """
    module, at_work = module_of_tasks(tmp_path, monkeypatch, "orphan", main), tmp_path / "at_work"
    script = (
        "import os, signal, threading, time\n"
        "from ipvrm_lightning.rollouts.worker_pool import WorkerPool\n"
        "def end():\n"
        f"    while not os.path.exists({str(at_work)!r}):\n"
        "        time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "signal.signal(signal.SIGPROF, signal.SIG_IGN)\n"
        f"pool = WorkerPool(module={module!r}, size=1, time_limit=2.0, memory_limit=512)\n"
        "pool.run(['try'])\n"
        "print(pool.process_ids[0], flush=True)\n"
        "threading.Thread(target=end, daemon=True).start()\n"
        f"pool.run([{str(at_work)!r}])\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == -signal.SIGKILL and at_work.exists()
    for _ in range(350):
        if not is_running(int(done.stdout)):
            return
        time.sleep(0.1)
    pytest.fail("the worker outlived its pool")


def is_running(process: int) -> bool:
    """Whether a process is there and has not ended: one that has is a zombie until its parent, here PID 1, asks."""
    try:
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except FileNotFoundError:  # it has just gone, or there is no /proc, as on macOS
        return not Path("/proc").is_dir()
    return state not in ("Z", "X")


def test_workers_that_do_not_start_are_an_error() -> None:
    pool = WorkerPool(module="no_such_module", size=1, time_limit=1.0, memory_limit=512)
    with pytest.raises(RuntimeError, match="no_such_module: 3 workers in a row did not start, exit code 1"):
        pool.run(["a"])
    with pytest.raises(RuntimeError, match="did not start"):
        MathVerifier(workers=1, memory_limit=16).verify([submit("Answer: 1", "1")])


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system binds no process to cores")
def test_workers_are_no_more_than_the_cores_this_process_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert MathVerifier().workers == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert MathVerifier().workers == min(8, len(allowed))


def module_of_tasks(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, main: str) -> str:
    imports = "import contextlib, resource, sys, time\nfrom ipvrm_lightning.rollouts.worker_pool import serve\n"
    (folder / f"{name}.py").write_text(f"{imports}def main():\n{textwrap.indent(textwrap.dedent(main), '    ')}")
    monkeypatch.syspath_prepend(folder)
    return name


def test_the_exit_code_is_that_of_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of one that takes a second to end after it has hung up."""
    main = """
        with contextlib.suppress(ValueError):
            serve(int, "no number", 0)
        time.sleep(1)
        sys.exit(3)
    """
    module = module_of_tasks(tmp_path, monkeypatch, "slow_end", main)
    pool = WorkerPool(module=module, size=1, time_limit=9.0, memory_limit=512)
    with pytest.raises(RuntimeError, match="3 workers in a row did not start, exit code 3"):
        pool.run(["1"])


def test_macos_has_no_memory_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker in which the system behaves as XNU does."""
    main = """
        def refuse(what, limits):
            if what == resource.RLIMIT_AS:
                raise ValueError("current limit exceeds maximum limit")
        sys.platform, resource.setrlimit = "darwin", refuse
        serve(int, "1", 1)
    """
    module = module_of_tasks(tmp_path, monkeypatch, "on_macos", main)
    pool = WorkerPool(module=module, size=1, time_limit=9.0, memory_limit=512)
    assert pool.run(["7"]) == [Outcome(7, None)]
    pool.close()


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="workers: expected at least 1, found 0"):
        MathVerifier(workers=0)
    with pytest.raises(ValueError, match="time_limit: expected more than 0 s, found 0"):
        MathVerifier(time_limit=0)
    with pytest.raises(ValueError, match="response_characters: expected at least 1, found 0"):
        ExactMatch(response_characters=0)


class Says(Verifier):
    """Says whatever it is told to."""

    def __init__(self, verdicts: Callable[[], Any]) -> None:
        self.verdicts = verdicts

    def verify(self, submissions: Sequence[Submission]) -> list[Verdict]:
        found: list[Verdict] = self.verdicts()
        return found


@pytest.mark.parametrize(
    ("verdicts", "message"),
    [
        (lambda: [Verdict(True, None, None)], "prompt 'a' and those judged with it: it gave 1 verdicts on 2 responses"),
        (lambda: [Verdict(True, "1", None), True], "prompt 'b': verdict must be Verdict, found True"),
        (lambda: [Verdict(0.1, None, None)] * 2, "prompt 'a': correct must be bool, found 0.1"),  # type: ignore[arg-type]
        (lambda: [Verdict(True, 1, None)] * 2, "prompt 'a': answer must be str or None, found 1"),  # type: ignore[arg-type]
        (lambda: {}["sandbox"], r"failed on responses to prompt 'a' .*\(KeyError: 'sandbox'\)"),
        (lambda: None, "failed on responses to prompt 'a' .*TypeError"),
    ],
)
def test_verdicts_of_a_verifier_of_ones_own_are_checked(verdicts: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^Says\.verify,? {message}"):
        judge(Says(verdicts), [submit("", "")] * 2, ["a", "b"])
    right = [Verdict(True, "1", None)] * 2
    assert judge(Says(lambda: right), [submit("", "")] * 2, ["a", "b"]) == right
    assert judge(Says(lambda: [Verdict(True)] * 2), [submit("", "")] * 2, ["a", "b"]) == [Verdict(True, None, None)] * 2
    assert judge(Says(verdicts), [], []) == []
