# SPDX-License-Identifier: MIT
# A sandbox for this process, as systemd and container runtimes make it: a seccomp filter (man 2
# seccomp) that answers chosen system calls with an error. It cannot be taken off again, so it is
# for child processes.
"""System calls that fail, by seccomp."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

# By `platform.machine()`: the column in system_calls.txt, and AUDIT_ARCH of linux/audit.h.
_MACHINES = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What a process may not call under systemd's `SystemCallFilter=@system-service` (version 252), ...
NOT_FOR_SERVICES = _names(
    """
    _sysctl acct adjtimex afs_syscall bpf chroot clock_adjtime clock_settime create_module
    delete_module fanotify_init fanotify_mark finit_module fsconfig fsmount fsopen fspick
    get_kernel_syms getpmsg init_module ioperm iopl kexec_file_load kexec_load landlock_add_rule
    landlock_create_ruleset landlock_restrict_self lookup_dcookie memfd_secret mincore modify_ldt
    mount mount_setattr move_mount nfsservctl open_by_handle_at open_tree perf_event_open
    pidfd_getfd pivot_root pkey_alloc pkey_free pkey_mprotect process_mrelease ptrace putpmsg
    query_module quotactl quotactl_fd reboot seccomp security setdomainname sethostname
    settimeofday swapoff swapon sysfs syslog tuxcall umount2 uselib ustat vhangup vserver
    """
)
# ... what is in its group `@resources`, ...
RESOURCES = _names(
    """
    ioprio_set mbind migrate_pages move_pages sched_setaffinity sched_setattr sched_setparam
    sched_setscheduler set_mempolicy set_mempolicy_home_node setpriority setrlimit
    """
)
# ... and what Docker's default profile does not let a container without capabilities call; to
# clone3, which is not listed here, it answers ENOSYS.
NOT_IN_DOCKER = _names(
    """
    _sysctl acct add_key afs_syscall bpf chroot clock_settime create_module delete_module
    fanotify_init finit_module fsconfig fsmount fsopen fspick get_kernel_syms get_mempolicy
    init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp kexec_file_load
    kexec_load keyctl lookup_dcookie mbind migrate_pages mount mount_setattr move_mount move_pages
    nfsservctl open_by_handle_at open_tree perf_event_open pidfd_getfd pivot_root process_madvise
    query_module quotactl quotactl_fd reboot request_key security set_mempolicy
    set_mempolicy_home_node setdomainname sethostname setns settimeofday swapoff swapon sysfs
    syslog tuxcall umount2 unshare userfaultfd uselib ustat vhangup vserver
    """
)

_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # of struct sock_filter
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER_AT, _MACHINE_AT = 0, 4  # in struct seccomp_data
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC = 1, 1


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def supported() -> bool:
    """Whether there is such a sandbox here, and the numbers of its system calls are known."""
    seccomp = Path("/proc/sys/kernel/seccomp/actions_avail")
    return platform.machine() in _MACHINES and seccomp.exists()


def numbers() -> dict[str, int]:
    """The system calls of this machine."""
    column, _ = _MACHINES[platform.machine()]
    lines = Path(__file__).with_name("system_calls.txt").read_text().splitlines()
    words = [line.split() for line in lines if not line.startswith("#")]
    return {each[0]: int(each[column]) for each in words if each[column] != "-"}


def deny(answers: Mapping[str, int]) -> None:
    """Have system calls fail from now on, in all threads of this process and its children.

    Args:
        answers: The errno by the name of the call. One that this machine does not have is passed
            over.
    """
    known = numbers()
    found = {known[name]: error for name, error in answers.items() if name in known}
    assert found, answers
    _install(found, otherwise=_ALLOW)


def allow_only(names: Iterable[str], error: int = errno.EPERM) -> None:
    """Have every system call fail from now on but these."""
    known = numbers()
    allowed = {known[name]: 0 for name in names if name in known}
    _install(allowed, otherwise=_ERRNO | error)


def _install(answers: Mapping[int, int], otherwise: int) -> None:
    _, machine = _MACHINES[platform.machine()]
    program = [
        _instruction(_LOAD, _MACHINE_AT),
        _instruction(_EQUAL, machine, 1, 0),
        _instruction(_RETURN, _ALLOW),
        _instruction(_LOAD, _NUMBER_AT),
    ]
    for number, error in answers.items():
        answer = _ERRNO | error if error else _ALLOW
        program += [_instruction(_EQUAL, number, 0, 1), _instruction(_RETURN, answer)]
    program.append(_instruction(_RETURN, otherwise))
    code = ctypes.create_string_buffer(b"".join(program))
    filters = _Program(len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.syscall(
        ctypes.c_long(numbers()["seccomp"]),
        ctypes.c_ulong(_SECCOMP_SET_MODE_FILTER),
        ctypes.c_ulong(_SECCOMP_FILTER_FLAG_TSYNC),
        ctypes.byref(filters),
    ):
        error = ctypes.get_errno()
        raise OSError(error, f"seccomp: {os.strerror(error)}")


def _instruction(code: int, value: int, if_so: int = 0, if_not: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_so, if_not, value)
