"""The program that `isentrope.train.tools.Sandbox` starts: it closes itself in and runs a Python program. Never imported.

    python locked.py CPU_SECONDS MEMORY_BYTES OUTPUT_BYTES  < program  > what it prints

What closes it in is the kernel: a seccomp filter, installed for good before the first line of the program is run, lets through the system calls of
computing (memory, the clock, reading and writing what is open) and answers all others with "not permitted". So a file, a socket, a process or a thread
cannot be had, whoever asks and by whatever means, and no limit can be raised again. Open are the input, which has been read, and the output. "locked" on
the error stream says that the filter stands, and that opening a folder was tried and refused; then that stream is closed too.
"""

import ctypes
import importlib
import os
import platform
import random
import resource
import struct
import sys

MODULES = (
    "abc", "bisect", "cmath", "collections", "copy", "datetime", "decimal", "enum", "fractions", "functools", "heapq", "itertools", "json", "math", "numbers",
    "operator", "random", "re", "statistics", "string", "textwrap", "time", "typing",
)  # fmt: skip
"""What a program may import: in memory before the filter falls, because no file can be read after it."""

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
KILL_PROCESS, NOT_PERMITTED, ALLOW = 0x80000000, 0x00050001, 0x7FFF0000  # SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_ERRNO | EPERM, SECCOMP_RET_ALLOW
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF_LD+W+ABS, BPF_JMP+JEQ+K, BPF_RET+K
NUMBER, ARCHITECTURE = 0, 4  # offsets in struct seccomp_data

# No madvise: to root it can take pages of the machine's memory out of use, and who allocates does without.
CALLS = (
    "read", "write", "close", "mmap", "munmap", "mremap", "mprotect", "brk", "futex", "rt_sigreturn", "clock_gettime", "clock_nanosleep",
    "getrandom", "exit", "exit_group",
)  # fmt: skip
MACHINES = {  # machine -> its AUDIT_ARCH, and the numbers of CALLS (asm/unistd_64.h; asm-generic/unistd.h)
    "x86_64": (0xC000003E, (0, 1, 3, 9, 11, 25, 10, 12, 202, 15, 228, 230, 318, 60, 231)),
    "aarch64": (0xC00000B7, (63, 64, 57, 222, 215, 216, 226, 214, 98, 139, 113, 115, 278, 93, 94)),
}


def filter_code(architecture: int, numbers: tuple[int, ...]) -> bytes:
    """The filter in the kernel's instructions: these calls of this architecture pass, its others fail, those of another architecture kill."""
    steps = [(LOAD, 0, 0, ARCHITECTURE), (JUMP_IF_EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL_PROCESS), (LOAD, 0, 0, NUMBER)]
    steps += [(JUMP_IF_EQUAL, len(numbers) - place, 0, number) for place, number in enumerate(numbers)]
    steps += [(RETURN, 0, 0, NOT_PERMITTED), (RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def lock(cpu_seconds: int, memory: int, output: int) -> None:
    """Limits and the filter, for good. Raises KeyError on a machine that is not in MACHINES, OSError where its kernel has no such filter."""
    architecture, numbers = MACHINES[platform.machine()]
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))  # the first ends it by a signal of its own, SIGXCPU
    for limit, value in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, output), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(limit, (value, value))
    code = filter_code(architecture, numbers)
    buffer = ctypes.create_string_buffer(code, len(code))
    filters = struct.pack("HP", len(code) // 8, ctypes.addressof(buffer))  # struct sock_fprog
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    for arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filters, 0, 0)):
        if prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), f"prctl({arguments[0]}): {os.strerror(ctypes.get_errno())}")
    try:
        os.open("/", os.O_RDONLY)
    except PermissionError:
        return
    raise OSError("the filter stands, and yet a folder can be opened")


def run(source: bytes) -> None:
    """The program; of what it raises the last line is printed, with the line of the program where it happened."""
    space = {"__name__": "__main__"}
    try:
        exec(compile(source, "<program>", "exec"), space)
    except SystemExit:
        return
    except BaseException as error:  # whatever the program raises is data here
        trace, line = error.__traceback__, ""
        while trace is not None:
            line = f" (line {trace.tb_lineno})" if trace.tb_frame.f_code.co_filename == "<program>" else line
            trace = trace.tb_next
        space.clear()  # after a MemoryError there must be room for the message
        print(f"{type(error).__name__}{': ' if str(error) else ''}{error}{line}")


def main() -> None:
    for name in MODULES:
        importlib.import_module(name)
    source = sys.stdin.buffer.read()
    try:
        lock(*map(int, sys.argv[1:]))
    except (OSError, KeyError, ValueError) as error:
        os.write(2, f"{type(error).__name__}: {error}".encode())
        os._exit(1)
    os.write(2, b"locked")
    os.close(2)
    sys.stderr, sys.path, sys.argv = sys.stdout, [], [""]
    sys.stdout.reconfigure(line_buffering=True)  # what was printed before an end by force is kept
    random.seed(0)
    try:
        run(source)
        sys.stdout.flush()
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
