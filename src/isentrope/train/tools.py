"""Tools that a policy may call: a calculator, and Python in a sandbox. Text in, text out.

Both are what TRL's and transformers' `tools=[...]` want, and plain functions to a game. Whatever a model writes is answered: a bad input gets a short text
that begins with "error" (of a program: with the name of what it raised), never an exception.

    calculator   + - * / // % ** and brackets, by walking the syntax tree. Numbers stay below 1e50, so nothing takes long.
    python       a program in a process of its own: 2 s of computing, 8 s in all, 256 MB, 2,000 bytes of output; no file, no network, no other process.

What the sandbox is: the kernel's own filter of system calls (seccomp), without root, containers or further packages, on Linux on x86-64 (tested) or aarch64
(its numbers stand in the kernel's header; not tried). `isentrope/train/locked.py` is the whole of what runs inside. Where the filter cannot be had, or is
seen not to hold, nothing is run and UserError says why. What it is not: a wall against somebody who knows a fault of the kernel or measures time through
shared hardware; a program that must be assumed to be an attack belongs into a virtual machine. Programs may import the modules of `locked.MODULES` and
nothing that is installed (no numpy). Equal programs give equal outputs, but for clocks and addresses.

>>> calculator("12 * (3 + 4)"), calculator("7 / 2"), calculator("9**9**9"), calculator("1 / 0")
('84', '3.5', 'error: too large', 'error: division by zero')
"""

import ast
import math
import operator
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from isentrope.errors import UserError

LARGEST = 10**50
"""Size of a number that the calculator no longer holds."""
_LOCKED = Path(__file__).with_name("locked.py")


class _Refused(Exception):
    """An expression that is not calculated; the message says why."""


def _power(base: int | float, exponent: int | float) -> int | float | complex:
    """The power, refused before it is calculated where it would be too large."""
    if abs(base) > 1 and exponent * math.log10(abs(base)) > math.log10(LARGEST) + 1:
        raise _Refused("too large")
    return base**exponent


_BINARY = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod, ast.Pow: _power,
}  # fmt: skip
_UNARY = {ast.UAdd: operator.pos, ast.USub: operator.neg}


def calculator(expression: str) -> str:
    """Calculates an arithmetic expression of numbers, + - * / // % ** and brackets.

    Args:
        expression: The expression, for example "12 * (3 + 4)".

    Returns:
        The value, or a text that begins with "error".
    """
    if len(expression) > 200:
        return "error: longer than 200 characters"
    if not re.fullmatch(r"[0-9eE.+\-*/%()\s]*", expression):
        return "error: only numbers, + - * / // % ** and brackets"
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "error: not an expression"
    except ZeroDivisionError:
        return "error: division by zero"
    except OverflowError:
        return "error: too large"
    except _Refused as refused:
        return f"error: {refused}"
    return str(value) if isinstance(value, int) else f"{value:.12g}"


def _value(node: ast.expr) -> int | float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        value = node.value
    elif isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        value = _BINARY[type(node.op)](_value(node.left), _value(node.right))
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        value = _UNARY[type(node.op)](_value(node.operand))
    else:
        raise _Refused("not an expression")
    if isinstance(value, complex):
        raise _Refused("not a real number")
    if not abs(value) < LARGEST:
        raise _Refused("too large")
    return value


@dataclass(frozen=True)
class Sandbox:
    """Runs Python programs that a model wrote, one process each.

    cpu: seconds of computing. wait: seconds of wall time. memory: bytes of address space, of which the interpreter takes about 17 MB. output: bytes.
    """

    cpu: int = 2
    wait: float = 8.0  # below the 10 s that a game has for a step
    memory: int = 256 << 20
    output: int = 2000

    def run(self, code: str) -> str:
        """What the program printed, and why it ended if not by itself.

        Raises UserError where this machine cannot close a program in; nothing of it has run then.
        """
        command = [sys.executable, "-P", "-s", "-S", "-X", "utf8", str(_LOCKED), str(self.cpu), str(self.memory), str(self.output)]
        with tempfile.TemporaryFile() as printed:  # not a pipe: the limit of a file's size ends endless output
            try:
                done = subprocess.run(
                    command, input=code.encode(errors="replace"), stdout=printed, stderr=subprocess.PIPE, timeout=self.wait, check=False, cwd="/",
                    env={"PYTHONHASHSEED": "0"},
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                end = f"error: no end within {self.wait:g} s"
            except (OSError, subprocess.SubprocessError) as error:
                raise _open(f"it could not be started: {error}") from error
            else:
                if done.stderr != b"locked":
                    raise _open(done.stderr.decode(errors="replace")[-500:] or f"it ended with {done.returncode}")
                end = self._end(done.returncode)
            printed.seek(0)
            said = printed.read(self.output)
        text = said.decode(errors="replace") + ("\nerror: more output than this is not shown\n" if len(said) == self.output else "")
        return (text + end) or "(nothing was printed)"

    def _end(self, code: int) -> str:
        if code == -signal.SIGXCPU:
            return f"error: no end within {self.cpu} s of computing"
        return f"error: ended by {signal.Signals(-code).name}" if code < 0 else ""


def python(code: str) -> str:
    """Runs a Python program and returns what it prints. It has no files and no network, and of the modules only those for calculating and text.

    Args:
        code: The program. It prints its result, for example "print(sum(range(10)))".

    Returns:
        What the program printed, with the error that ended it, if any.
    """
    return Sandbox().run(code)


def _open(why: str) -> UserError:
    return UserError(
        f"tool python: a program cannot be closed in on this machine, so none is run ({why}). It needs Linux on x86-64 or aarch64 with seccomp filters; "
        "inside a container, allow prctl(PR_SET_SECCOMP). Or take the calculator."
    )
