"""Running an untrusted Python program: the sandbox, from the caller's side (`sandbox`) down to the kernel (`linux`).

    sandbox.py      in the caller: starts a fork server, hands it programs, reads verdicts, starts it again where it died
    fork_server.py  a fresh Python inside the jail, with nothing of the caller's: forks one child a program, ends it in time
    jail.py         the namespaces and the file system that the fork server, and so every program, lives in
    clock.py        when a program's time is up
    program.py      in the child: what HumanEval's own checker does with a program, and the report
    seccomp.py      the system calls that a program may not make
    linux.py        the C calls behind it all

Everything below `sandbox` needs the standard library alone, since inside the jail there is nothing else.
"""
