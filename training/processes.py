"""How a command ends that may run as several processes."""

import os
import sys

from accelerate import PartialState


def leave_together() -> None:
    """
    The end of a command. Of several processes none leaves before all are done: launchers stop the one that still saves when
    another one is gone. They end here, with their process group as it is. Taking it down waits for its threads and holds the
    lock of the interpreter meanwhile, which a thread may need to let go of a tensor: now and then a process would wait forever.
    """
    state = PartialState()
    if state.num_processes > 1:
        state.wait_for_everyone()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
