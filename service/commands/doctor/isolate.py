"""Runs one check in a child process, because a damaged library may kill the process that loads it, and a driver may
hang.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
from dataclasses import asdict
from multiprocessing.connection import Connection

from foldserve.service.commands.doctor.check import Check, ProblemError, Result, first_line
from foldserve.service.errors import DeviceError

_TIMEOUT = 60  # seconds; on a machine with many GPUs, the first CUDA context takes several seconds


def run_isolated(check: Check) -> Result:
    """Run one check of the doctor in a forked process.

    A crash, a time-out or an exception becomes a result, so this function raises no exception.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_run_in_child, args=(check, sender), daemon=True)
    try:
        child.start()
        # From here on, only the child holds the sending end, so `recv` raises EOFError if the child dies.
        sender.close()
        if not receiver.poll(_TIMEOUT):
            child.kill()
            return Result(check.name, "wrong", f"no answer within {_TIMEOUT} s", check.remedy)
        result = Result(**json.loads(receiver.recv_bytes()))
    except EOFError:
        child.join()
        code = child.exitcode or 0
        end = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return Result(check.name, "wrong", f"the process of this check died: {end}", check.remedy)
    except OSError as error:
        return Result(check.name, "wrong", f"this check can't start: {error}", check.remedy)
    finally:
        receiver.close()
    child.join()
    return result


def _run_in_child(check: Check, sender: Connection) -> None:
    # Libraries print while they load; their text must not reach the report or the JSON.
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # with this limit, a crash writes no core dump
    try:
        found = check.examine()
        result = found if isinstance(found, Result) else Result(check.name, "ok", found)
    except ProblemError as problem:
        result = Result(check.name, "wrong", str(problem), problem.remedy or check.remedy)
    except DeviceError as error:
        result = Result(check.name, "wrong", str(error), check.remedy)
    except BaseException as error:  # noqa: BLE001 (a broken package may raise anything, SystemExit too)
        result = Result(check.name, "wrong", f"{type(error).__name__}: {first_line(str(error))}", check.remedy)
    # `send` is not used, because it would pickle the result.
    sender.send_bytes(json.dumps(asdict(result)).encode())
