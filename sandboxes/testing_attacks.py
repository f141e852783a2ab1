"""Checks of what a sandbox withstands."""

from __future__ import annotations

import ast
import contextlib
import os
import socket
import tempfile
import time
from pathlib import Path

from agentgym.sandboxes import seccomp
from agentgym.sandboxes.base import Sandbox
from agentgym.sandboxes.testing_base import check, fresh, raises, same

_SURVIVOR = (
    "import os, signal, time\n"
    "if os.fork() == 0:\n"
    "    os.setsid()\n"
    "    for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT): signal.signal(n, signal.SIG_IGN)\n"
    "    if os.fork() == 0:\n"
    "        while True:\n"
    "            open('alive', 'a').write('x')\n"
    "            time.sleep(0.02)\n"
    "    os._exit(0)\n"
    "time.sleep(0.2)\n"
)


@check(needs="kill-tree")
def survivors(box: Sandbox) -> None:
    """What detaches itself is gone when the call is over, whether it ended by itself or not."""
    for action in (
        lambda: fresh(box, _SURVIVOR),
        lambda: fresh(box, _SURVIVOR + "time.sleep(60)", timeout=0.5),
        lambda: box.exec(
            "(trap '' TERM HUP; while :; do echo x >> alive; sleep 0.02; done) >/dev/null 2>&1 &\nsleep 0.2"
        ),
        lambda: box.python(_SURVIVOR),
        lambda: (
            box.python("import subprocess; subprocess.Popen(['sh', '-c', 'sleep 100'], start_new_session=True)")
            and box.python(_SURVIVOR + "time.sleep(60)", timeout=0.5)
        ),
    ):
        action()
        size = len(box.get("alive")) if "alive" in [e.name for e in box.list()] else 0
        time.sleep(0.15)
        same(len(box.get("alive")) if size else 0, size)
        if size:
            box.exec("rm alive")
    box.stop()
    pids = (
        "import os; sorted(p for p in map(int, filter(str.isdigit, os.listdir('/proc'))) if p not in (1, os.getpid()))"
    )
    same(fresh(box, pids).stdout, "[]\n")


@check(needs="kill-tree")
def first_process(box: Sandbox) -> None:
    """The box's own process cannot be stopped, killed, looked into, traced or starved by the agent."""
    box.exec("for s in TERM INT HUP QUIT USR1 STOP KILL SEGV; do kill -$s 1; done; kill -9 -1; true")
    box.exec("for f in mem environ maps fd/0 root/etc/shadow; do cat /proc/1/$f | head -c 1 && echo seen $f; done")
    result = box.exec("cat /proc/1/environ /proc/1/maps; ls /proc/1/fd")
    same(result.stdout, "")
    code = (
        "import ctypes, os, resource\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "print(libc.ptrace(16, 1, 0, 0), libc.process_vm_readv(1, 0, 0, 0, 0, 0), end=' ')\n"
        "for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE):\n"
        "    try: resource.prlimit(1, limit, (0, 0)); print('limited', end=' ')\n"
        "    except OSError: pass\n"
        "for change in (lambda: os.setpriority(os.PRIO_PROCESS, 1, 19), lambda: os.setpriority(os.PRIO_USER, 0, 19),\n"
        "               lambda: os.sched_setaffinity(1, {0}), lambda: os.sched_setscheduler(1, 5, os.sched_param(0)),\n"
        "               lambda: open('/proc/1/oom_score_adj', 'w').write('1000')):\n"
        "    try: change(); print('changed', end=' ')\n"
        "    except OSError: pass\n"
    )
    same(fresh(box, code).stdout, "-1 -1 ")


@check(needs="no-host-files")
def host_files(box: Sandbox) -> None:
    """Neither files nor variables of the owner are to be seen, nor anything of the machine to be written."""
    with tempfile.NamedTemporaryFile(prefix="agentgym-secret-", suffix=".txt") as secret:
        secret.write(b"very secret")
        secret.flush()
        os.environ["AGENTGYM_SECRET_OF_A_TEST"] = "very secret"
        try:
            assert not box.exec(["cat", secret.name]).ok
            for home in {Path.home(), Path.cwd()}:
                listed = box.exec(f"find {home} -type f -name '*.toml' 2>/dev/null | grep -v /lib/ | head").stdout
                same(listed, "")
            found = box.exec("env | grep AGENTGYM; cat /proc/*/environ | tr '\\0' '\\n' | grep -a AGENTGYM_SECRET")
            same(found.stdout, "")
            found = box.exec("cat /etc/shadow ~root/.bashrc /root/.bashrc; ls /var/run/docker.sock /run/docker.sock")
            same(found.stdout, "")
        finally:
            del os.environ["AGENTGYM_SECRET_OF_A_TEST"]
    for path in ("/x", "/usr/x", "/etc/x", "/bin/x", "/dev/x", "/proc/sys/kernel/core_pattern", "/sys/x", "/run/x"):
        assert not box.exec(f"echo x > {path}").ok, f"{path} was written"
    code = "import os; [top for top, _, _ in os.walk('/') if os.access(top, os.W_OK) and not top.startswith('/proc/')]"
    writable = set(ast.literal_eval(fresh(box, code).stdout))
    assert writable <= {box.workspace, "/tmp", "/dev/shm", "/dev/mqueue", "/var/tmp"}, writable


@check(needs="no-network")
def network(box: Sandbox) -> None:
    """No address, no name, no other kind of socket; not even a server of the machine itself."""
    with socket.create_server(("0.0.0.0", 0)) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        if _has_route():
            probe.connect(("192.0.2.1", 9))  # sends nothing, but tells this machine's own address
        own = probe.getsockname()[0]
        code = (
            "import socket\n"
            f"for host in ('127.0.0.1', {own!r}, '192.0.2.1', '::1', '169.254.169.254'):\n"
            f"    try: socket.create_connection((host, {server.getsockname()[1]}), 1); print('connected', host)\n"
            "    except OSError: pass\n"
            "try: print(socket.getaddrinfo('example.com', 80))\n"
            "except OSError: pass\n"
            "for family, kind in ((17, 3), (16, 3), (40, 1), (38, 5), (29, 3), (31, 3), (44, 3)):\n"
            "    try: socket.socket(family, kind); print('socket', family)\n"
            "    except OSError: pass\n"
            "try: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1); print('raw')\n"
            "except OSError: pass\n"
        )
        result = fresh(box, code)
        assert result.ok, result
        same(result.stdout.replace("socket 16\n", ""), "")  # netlink may be opened; it can change nothing
        server.settimeout(0.1)
        raises(TimeoutError, server.accept)
    same(box.exec("cat /proc/net/dev | grep -v lo: | grep -c :").stdout, "0\n")


def _has_route() -> bool:
    with contextlib.suppress(OSError), open("/proc/net/route") as file:
        return len(file.readlines()) > 1
    return False


_REFUSED = (
    "mount umount2 chroot pivot_root unshare setns keyctl add_key bpf userfaultfd io_uring_setup perf_event_open "
    "reboot open_by_handle_at init_module kexec_load swapon sethostname settimeofday syslog fsopen move_mount "
    "ptrace kcmp process_vm_writev mq_open"
)
_CALLS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
numbers = NUMBERS
for name, number in numbers.items():
    ctypes.set_errno(0)
    argument = {'unshare': 0x10000000}.get(name, 0)
    if libc.syscall(number, argument, 0, 0, 0, 0, 0) >= 0 or ctypes.get_errno() not in (1, 38):
        print(name, ctypes.get_errno())
for setter in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]), lambda: os.chroot('/tmp'),
               lambda: os.mknod('device', 0o60600, os.makedev(254, 0)), lambda: os.chown('/workspace', 0, 0)):
    try: setter(); print('allowed', setter)
    except OSError: pass
status = dict(line.split(':', 1) for line in open('/proc/self/status'))
print(*(status[k].strip() for k in ('CapPrm', 'CapEff', 'CapBnd', 'CapAmb', 'NoNewPrivs', 'Seccomp')), os.getuid() != 0)
"""


@check(needs="no-privileges")
def privileges(box: Sandbox) -> None:
    """No capabilities, no way to get any, and no system call that an agent has no use for."""
    none = "0" * 16
    numbers = {name: seccomp.number(name) for name in _REFUSED.split()}
    same(fresh(box, _CALLS.replace("NUMBERS", repr(numbers))).stdout, f"{none} {none} {none} {none} 1 2 True\n")
    found = box.exec("find / -xdev -perm /6000 -type f 2>/dev/null | head -1; true").stdout
    if found:  # no_new_privs makes them harmless
        same(box.exec("cp $(command -v id) ./id && chmod u+s id && ./id -u").stdout, box.exec("id -u").stdout)


@check(needs="no-privileges")
def devices(box: Sandbox) -> None:
    """Only the harmless ones."""
    listed = box.exec("find /dev -type c -o -type b").stdout.split()
    allowed = {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "console"}
    assert {os.path.basename(path) for path in listed} <= allowed | set("0123456789"), listed
    for path in ("/dev/mem", "/dev/kvm", "/dev/vda", "/dev/sda", "/dev/fuse", "/dev/vsock"):
        assert not box.exec(f"head -c 1 {path}").ok, path


@check()
def forged_answers(box: Sandbox) -> None:
    """Code in the session that writes to every open descriptor fools nobody but itself."""
    same(box.python("x = 1").exit_code, 0)
    code = "import os\nfor fd in range(3, 1024):\n    try: os.write(fd, b'\\xff' * 64)\n    except OSError: pass"
    box.python(code, timeout=5)
    same(box.exec("echo hi").stdout, "hi\n")
    same(box.python("1 + 1").stdout, "2\n")
    box.python("import os; os.closerange(0, 1024)", timeout=5)
    same(box.python("1 + 1").stdout, "2\n")
    box.exec("for f in /proc/self/fd/*; do echo junk > $f; done 2>/dev/null; true")


@check()
def dirty_state(box: Sandbox) -> None:
    """After a reset nothing is left for the next episode, however hard it was made to remove."""
    code = """
import os, subprocess, tempfile
x = 1
subprocess.Popen(['sleep', '1000'], start_new_session=True)
os.makedirs('locked/in')
open('locked/in/file', 'w').close()
os.chmod('locked/in', 0)
os.chmod('locked', 0)
open('new\\nline \\udcff', 'w').close()
os.symlink('/', 'root')
os.mkfifo('.hidden')
open(tempfile.gettempdir() + '/left', 'w').write('x')
os.umask(0o777)
"""
    same(box.python(code).exit_code, 0)
    folders = [box.workspace]
    if "no-host-files" in box.guarantees:
        box.exec("touch /dev/shm/left; echo x > /tmp/.left")
        folders += ["/tmp", "/dev/shm"]
    box.reset()
    same({folder: box.list(folder) for folder in folders}, {folder: [] for folder in folders})
    same(box.python("'x' in globals()").stdout, "False\n")
    same(box.exec("touch file && stat -c %a file").stdout, "644\n")


@check()
def deep_folders(box: Sandbox) -> None:
    """Folders within folders, thousands deep, are removed too."""
    code = "import os\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')\nopen('f', 'w').close()"
    same(fresh(box, code).exit_code, 0)
    box.reset()
    same(box.list(), [])


@check()
def grader(box: Sandbox) -> None:
    """What an agent prepared does not touch code that comes after `stop`: no process, no module, no variable of its."""
    box.put("sitecustomize.py", "print('PASS')")
    box.put("answer.txt", "wrong")
    code = """
import os, threading, time
def tamper():
    while True:
        open('answer.txt', 'w').write('right')
        time.sleep(0.001)
threading.Thread(target=tamper, daemon=True).start()
os.environ['PYTHONPATH'] = '.'
"""
    same(box.python(code).exit_code, 0)
    box.python("import subprocess; subprocess.Popen(['sh', '-c', 'while :; do echo right > answer.txt; done'])")
    box.stop()
    box.put("answer.txt", "wrong")
    result = fresh(box, "import time; time.sleep(0.2); print(open('answer.txt').read())")
    same((result.stdout, result.exit_code), ("wrong\n", 0))
