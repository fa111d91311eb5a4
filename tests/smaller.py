"""Run a program where there is less: ``python smaller.py WHAT… -- FILE …``.

WHAT is ``without=ssl,zlib`` (modules that cannot be imported), ``nofile=32`` (descriptors),
``memory=64`` (MiB of address space beyond those in use), ``nofiles`` (nothing can be written to
files), ``nofork`` (the system gives no process), ``nothreads`` (nor a thread), ``nobody``,
``seccomp`` (the kernel refuses new processes and programs, sockets and connections, and to open
files but for reading).
"""

import os
import sys

# Of linux/audit.h; numbers of calls that are refused (socket, connect, bind, fork and its like,
# exec, mkdir, unlink, rename); of those that open files, and which argument has the flags.
MACHINES = {
    "x86_64": (
        0xC000003E,
        (41, 42, 49, 56, 57, 58, 59, 82, 83, 85, 87, 258, 263, 264, 322, 435),
        ((2, 1), (257, 2)),
    ),
    "aarch64": (0xC00000B7, (34, 35, 38, 198, 200, 203, 220, 221, 281, 435), ((56, 2),)),
}
RETURN, LOAD, JUMP_EQUAL, JUMP_SET = 0x06, 0x20, 0x15, 0x45  # of linux/bpf_common.h
ALLOW, REFUSE = 0x7FFF0000, 0x00050001  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO with EPERM
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Lacking:
    """Stand at the head of sys.meta_path and know of nothing that is missing."""

    def __init__(self, names):
        # What an interpreter needs for itself, even the smallest, is loaded by now.
        import collections  # noqa: F401
        import functools  # noqa: F401

        self.names = names
        for name in list(sys.modules):
            if name.split(".")[0] in names:
                del sys.modules[name]

    def find_spec(self, name, path=None, target=None):
        """Fail for what is missing."""
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def refuse(*_arguments, **_options):
    """Stand for a system call that is not allowed."""
    raise PermissionError(1, "Operation not permitted")


def refuse_thread(*_arguments, **_options):
    """Stand for _thread.start_new_thread where there is one thread only, as in WebAssembly."""
    raise RuntimeError("can't start new thread")


def limit(name, value):
    """Set a limit of the process."""
    import resource

    resource.setrlimit(getattr(resource, name), (value, value))


def filter_calls():
    """Have the kernel refuse system calls, for good (seccomp(2))."""
    import ctypes
    import struct

    architecture, refused, opens = MACHINES[os.uname().machine]
    code = [(LOAD, 0, 0, 4), (JUMP_EQUAL, 1, 0, architecture), (RETURN, 0, 0, REFUSE)]
    code.append((LOAD, 0, 0, 0))
    for number in refused:
        code += [(JUMP_EQUAL, 0, 1, number), (RETURN, 0, 0, REFUSE)]
    for number, place in opens:
        code += [(JUMP_EQUAL, 0, 4, number), (LOAD, 0, 0, 16 + 8 * place)]
        code += [(JUMP_SET, 0, 1, WRITES), (RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW)]
    code.append((RETURN, 0, 0, ALLOW))
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in code)
    buffer = ctypes.create_string_buffer(program)
    whole = struct.pack("HP", len(code), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, whole, 0, 0):
        sys.exit(f"smaller.py: no seccomp: {os.strerror(ctypes.get_errno())}")


def take_away(what):
    """Have less."""
    name, _, value = what.partition("=")
    if name == "without":
        sys.meta_path.insert(0, Lacking(value.split(",")))
    elif name == "nofile":
        limit("RLIMIT_NOFILE", int(value))
    elif name == "memory":
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        limit("RLIMIT_AS", used + (int(value) << 20))
    elif name == "nofiles":
        limit("RLIMIT_FSIZE", 0)
    elif name == "nofork":
        os.fork = refuse
    elif name == "nothreads":
        import _thread

        _thread.start_new_thread = refuse_thread
        _thread.start_joinable_thread = refuse_thread
    elif name == "seccomp":
        filter_calls()
    elif name == "nobody":
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    else:
        sys.exit(f"smaller.py: what is {what!r}?")


def main():
    """Take away what is asked for, then become the program."""
    cut = sys.argv.index("--")
    wanted = sys.argv[1:cut]
    sys.argv = sys.argv[cut + 1 :]
    with open(sys.argv[0], "rb") as file:
        code = compile(file.read(), sys.argv[0], "exec")
    if not sys.flags.isolated:  # else the program's folder is not on the path anyway
        sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    for what in wanted:
        take_away(what)
    space = vars(sys.modules["__main__"])
    space["__file__"] = sys.argv[0]
    space["__builtins__"] = __builtins__
    exec(code, space)


if __name__ == "__main__":
    main()
