"""The calculator against Python's own arithmetic, and the sandbox against programs that want out."""

import math
import os
import re
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils import get_json_schema

from isentrope.errors import UserError
from isentrope.train import locked, tools
from isentrope.train.games import Reply, spec
from isentrope.train.rewards import OutOfTime, time_limit
from isentrope.train.tools import LARGEST, Sandbox, calculator, python

# --- the calculator

NUMBERS = st.integers(0, 999)
EXPRESSIONS = st.recursive(
    NUMBERS.map(str), lambda inner: st.tuples(inner, st.sampled_from(["+", "-", "*"]), inner).map(lambda parts: f"({' '.join(parts)})"), max_leaves=8
)


@given(EXPRESSIONS)
@settings(deadline=None)
def test_whole_numbers_are_exact(expression):
    assert calculator(expression) == str(eval(expression))


@given(st.integers(-999, 999), st.integers(1, 999))
@settings(deadline=None)
def test_quotients_and_remainders(a, b):
    assert float(calculator(f"{a} / {b}")) == pytest.approx(float(Fraction(a, b)), rel=1e-11)
    assert (calculator(f"{a} // {b}"), calculator(f"{a} % {b}")) == (str(a // b), str(a % b))


@given(st.text(max_size=40) | st.text("0123456789+-*/%(). eE", max_size=220))
@settings(deadline=None, max_examples=300)
def test_any_text_is_answered_with_a_number_or_an_error(text):
    answer = calculator(text)
    assert answer.startswith("error: ") or abs(float(answer)) <= LARGEST
    assert len(answer) < 80


@pytest.mark.parametrize(
    ("expression", "answer"),
    [
        ("9**9**9", "error: too large"),
        ("9**9**9**9**9", "error: too large"),
        ("(-2)**9999999999", "error: too large"),
        ("0.5**-99999999", "error: too large"),
        ("1e999", "error: too large"),
        ("2**166", str(2**166)),
        ("2**167", "error: too large"),
        ("(-8)**0.5", "error: not a real number"),
        ("0**-1", "error: division by zero"),
        ("1e40 % 0", "error: division by zero"),
        ("1 +", "error: not an expression"),
        ("", "error: not an expression"),
        ("1 if 1 else 2", "error: only numbers, + - * / // % ** and brackets"),
        ("().__class__", "error: only numbers, + - * / // % ** and brackets"),
        ("(" * 100 + "1" + ")" * 99, "error: not an expression"),
        ("1+" * 100 + "1", "error: longer than 200 characters"),
        ("6 / 2", "3"),
    ],
)
def test_what_it_does_not_calculate_it_says_at_once(expression, answer):
    begun = time.process_time()
    assert calculator(expression) == answer
    assert time.process_time() - begun < 0.1


def test_its_limit_is_the_largest_number():
    assert calculator(f"{LARGEST} - 1") == "error: too large"
    assert calculator(f"{LARGEST - 1}") == str(LARGEST - 1)


@pytest.mark.parametrize("tool", [calculator, python])
def test_transformers_reads_both_as_tools(tool):
    schema = get_json_schema(tool)["function"]
    assert schema["name"] == tool.__name__
    ((name, argument),) = schema["parameters"]["properties"].items()
    assert argument["type"] == "string"
    assert argument["description"]
    assert schema["parameters"]["required"] == [name]


# --- the sandbox

closes = pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine not in locked.MACHINES, reason="the filter of system calls is Linux's, on x86-64 and aarch64"
)


@closes
def test_a_program_calculates_and_prints():
    assert python("import math\nprint(math.factorial(20))\nprint('é')") == f"{math.factorial(20)}\né\n"
    assert python("x = 1") == "(nothing was printed)"
    assert python("".join(f"import {name}\n" for name in locked.MODULES)) == "(nothing was printed)"


@closes
def test_equal_programs_give_equal_outputs():
    program = "import random\nprint(random.random(), set('abcdefgh'))"
    assert python(program) == python(program)


NOT_PERMITTED = "PermissionError: [Errno 1] Operation not permitted"


@closes
@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("open('/etc/passwd').read()", f"{NOT_PERMITTED}: '/etc/passwd' (line 1)\n"),
        ("import os\nos.listdir('/')", f"{NOT_PERMITTED}: '/' (line 2)\n"),
        ("import os\nos.stat('/')", f"{NOT_PERMITTED}: '/' (line 2)\n"),
        ("import os\nos.getcwd()", f"{NOT_PERMITTED} (line 2)\n"),
        ("import os\nos.fork()", f"{NOT_PERMITTED} (line 2)\n"),
        ("import os\nos.execv('/bin/sh', ['sh'])", f"{NOT_PERMITTED} (line 2)\n"),
        ("import os\nos.kill(os.getppid(), 9)", f"{NOT_PERMITTED} (line 2)\n"),
        ("import os\nprint(os.system('true') == 0)", "False\n"),
        ("import socket", "ModuleNotFoundError: No module named 'socket' (line 1)\n"),
        ("import subprocess", "ModuleNotFoundError: No module named 'subprocess' (line 1)\n"),
        ("import numpy", "ModuleNotFoundError: No module named 'numpy' (line 1)\n"),
        ("import torch", "ModuleNotFoundError: No module named 'torch' (line 1)\n"),
        ("print(input())", "EOFError: EOF when reading a line (line 1)\n"),
        ("def f():\n    1 / 0\n\nf()", "ZeroDivisionError: division by zero (line 2)\n"),
        ("a =", "SyntaxError: invalid syntax (<program>, line 1)\n"),
        ("print('a')\nraise SystemExit(3)", "a\n"),
        ("class E(Exception):\n    def __str__(self): raise self\nraise E", "(nothing was printed)"),
    ],
)
def test_a_program_cannot_get_out(program, said):
    assert python(program) == said


LIBC = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"


@closes
@pytest.mark.parametrize(
    "call",
    ["socket(2, 1, 0)", "open(b'/etc/passwd', 0)", "fork()", "unlink(b'/tmp/x')", "ptrace(0, 0, 0, 0)", "setrlimit(0, bytes(16))", "madvise(0, 4096, 4)"],
)
def test_machine_code_meets_the_same_filter(call):
    """Past Python's modules, by the C library itself."""
    assert python(f"{LIBC}print(libc.{call}, ctypes.get_errno())") == "-1 1\n"


@closes
def test_a_written_file_does_not_appear(tmp_path):
    assert python(f"open({str(tmp_path / 'x')!r}, 'w').write('x')").startswith(NOT_PERMITTED)
    assert list(tmp_path.iterdir()) == []


@closes
def test_the_folder_of_the_caller_and_the_variables_are_unknown(tmp_path, monkeypatch):
    (tmp_path / "secret.py").write_text("value = 1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", "word")
    assert python("import secret").startswith("ModuleNotFoundError")
    assert python("import os\nprint(os.environ.get('SECRET'))") == "None\n"


@closes
def test_bombs_end():
    assert python("x = [0] * 10**9") == "MemoryError (line 1)\n"
    assert python("x = []\nwhile True: x.append('a' * 10**6)") == "MemoryError (line 2)\n"
    forks = "import os\nn = 0\nfor _ in range(100):\n    try: os.fork()\n    except OSError: n += 1\nprint(n)"
    assert python(forks) == "100\n"


@closes
def test_endless_programs_end_by_computing_and_by_waiting():
    short = Sandbox(cpu=1, wait=30.0)
    assert short.run("print(1)\nwhile True: pass") == "1\nerror: no end within 1 s of computing"
    assert short.run("while True:\n    try: 1 / 0\n    except BaseException: pass") == "error: no end within 1 s of computing"
    assert Sandbox(wait=0.5).run("import time\nprint(2)\ntime.sleep(60)") == "2\nerror: no end within 0.5 s"


@closes
def test_endless_output_is_cut():
    said = Sandbox(output=50).run("while True: print('ab')")
    assert said.startswith("ab\nab\n")
    assert len(said) == 50 + len("\nerror: more output than this is not shown\n")
    assert Sandbox(output=50).run("print('a' * 10)") == "a" * 10 + "\n"


@closes
def test_a_crash_is_told():
    assert Sandbox(cpu=1).run(f"{LIBC}libc.memset(0, 0, 1)") == f"error: ended by {signal.SIGSEGV.name}"


class Programs:
    """A game whose actions are programs; it pays who prints the seed."""

    def reset(self, seed: int) -> str:
        self.seed = seed
        return f"print {seed}"

    def step(self, action: str) -> Reply:
        said = Sandbox(wait=5.0).run(action)
        return Reply(said, done=said == f"{self.seed}\n", reward=float(said == f"{self.seed}\n"))


@closes
def test_a_game_runs_programs():
    game = spec("isentrope.train.tools_test:Programs").game()
    game.reset(7)
    assert game.step("print(8)") == Reply("8\n")
    assert game.step("print(") == Reply("SyntaxError: '(' was never closed (<program>, line 1)\n")
    assert game.step("print(3 + 4)") == Reply("7\n", done=True, reward=1.0)


@closes
def test_the_time_limit_of_a_game_ends_a_program():
    """The limit of one call of a game rings while the program sleeps; the program is not waited for."""
    begun = time.monotonic()
    with pytest.raises(OutOfTime), time_limit(0.5):
        Sandbox(wait=60.0).run("import time\ntime.sleep(60)")
    assert time.monotonic() - begun < 20


@given(st.text(max_size=60))
@settings(deadline=None, max_examples=5)
@closes
def test_any_text_is_answered(text):
    assert isinstance(python(text), str)


def test_what_cannot_be_closed_does_not_run(monkeypatch):
    """A machine without numbers, a kernel that refuses, an interpreter that is not there: the program's print never comes."""

    def answered(code: int, said: bytes):
        return lambda command, stdout, **_: (stdout.write(b"it ran"), subprocess.CompletedProcess(command, code, stderr=said))[1]

    for code, said in ((1, b"KeyError: 'riscv64'"), (1, b"OSError: [Errno 22] prctl(22): Invalid argument"), (0, b"")):
        monkeypatch.setattr(tools.subprocess, "run", answered(code, said))
        with pytest.raises(UserError, match=r"cannot be closed in on this machine, so none is run.*seccomp filters.*Or take the calculator"):
            python("print('it ran')")
    monkeypatch.undo()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(UserError, match="could not be started"):
        python("print('it ran')")


def test_the_numbers_of_the_calls_are_the_kernel_s():
    """Against the headers of this machine, where they are installed: those of its own architecture, and the generic ones, which are aarch64's."""
    headers = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "/usr/include/asm-generic/unistd.h"}
    for machine, (_, numbers) in locked.MACHINES.items():
        assert len(numbers) == len(set(numbers)) == len(locked.CALLS)
        if Path(headers[machine]).is_file():
            told = dict(re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)\s", Path(headers[machine]).read_text(encoding="utf-8")))
            assert {call: int(told[call]) for call in locked.CALLS} == dict(zip(locked.CALLS, numbers, strict=True))


@closes
@pytest.mark.parametrize("broken", ["numbers", "machine"])
def test_the_locked_program_itself_refuses_without_its_filter(tmp_path, broken):
    """The self-test is real: a filter that lets a folder be opened, or a machine that it does not know, ends before the program."""
    source = (tools._LOCKED).read_text(encoding="utf-8")
    changed = {
        "numbers": source.replace("(LOAD, 0, 0, NUMBER)]", "(LOAD, 0, 0, NUMBER), (RETURN, 0, 0, ALLOW)]"),
        "machine": source.replace('"x86_64": (', '"other": (').replace('"aarch64": (', '"another": ('),
    }[broken]
    assert changed != source
    file = tmp_path / "locked.py"
    file.write_text(changed, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-P", "-s", "-S", str(file), "2", str(256 << 20), "2000"], input=b"print('it ran')", capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, b"")
    assert {"numbers": b"yet a folder can be opened", "machine": b"KeyError: "}[broken] in done.stderr
