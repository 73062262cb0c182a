"""Promise of `restart_with_malloc_settings`."""

import sys

from f3_training import malloc_settings
from f3_training.malloc_settings import restart_with_malloc_settings


def test_a_process_is_replaced_once_and_keeps_arguments_and_environment(monkeypatch):
    started = []
    monkeypatch.setattr(malloc_settings.os, "execve", lambda *call: started.append(call))
    monkeypatch.setattr(sys, "argv", ["program", "--steps", "3"])
    monkeypatch.setenv("KEPT", "yes")
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    restart_with_malloc_settings("a.module")
    ((_, command, environment),) = started
    assert command == [sys.executable, "-m", "a.module", "--steps", "3"] and environment["KEPT"] == "yes"
    monkeypatch.setattr(malloc_settings.os, "environ", environment)
    restart_with_malloc_settings("a.module")
    assert len(started) == 1
