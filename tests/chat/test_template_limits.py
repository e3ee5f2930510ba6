"""A chat template is tried in a process of its own before it may render any row."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from processes import ROOT
from transformers import PreTrainedTokenizerBase

from zephyr.chat import check_template_limits
from zephyr.data.tokenizer import load_tokenizer

ENDLESS = "{% for _ in range(99999) %}{% for _ in range(99999) %}{% endfor %}{% endfor %}"
MUCH = "{{ 'x' * 10**6 }}"


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(tiny)


@pytest.mark.parametrize(
    "template, message",
    [
        (f"{{% if add_generation_prompt %}}{MUCH}{{% endif %}}", "multiplies text"),
        (f"{{% if not add_generation_prompt %}}{MUCH}{{% endif %}}", "multiplies text"),
        ("{{ 'x' * 10**10 }}", "takes over 1024 MiB to render two short turns: it multiplies text"),
        ("{% if add_generation_prompt %}{{ 'x' * 10**10 }}{% endif %}", "takes over 1024 MiB"),
    ],
)
def test_what_multiplies_text_is_refused(
    template: str, message: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Before the answer as after it. Fails where one of the two is not tried: then the first row,
    in this process, is what shows it."""
    with pytest.raises(ValueError, match=message):
        check_template_limits(tokenizer, template)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0]['content'] }}",
        "{{ raise_exception('no system turn') }}",
        "{% if not add_generation_prompt %}{{ raise_exception('no answer') }}{% endif %}",
        "{% set x = 'x' * 10**8 %}{{ x | length }}",
    ],
)
def test_what_refuses_or_is_large_is_no_fault_here(
    template: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Each row is judged for itself, and 100 MB are there to be had, whatever this process has
    taken already. Fails where a template that wants a system turn can't be loaded."""
    check_template_limits(tokenizer, template)


def test_a_trial_that_is_killed_is_told(tokenizer: PreTrainedTokenizerBase) -> None:
    """As the kernel does where memory is short. Fails where the end of its pipe ends this program
    with a traceback."""

    def kill() -> None:
        while not (children := multiprocessing.active_children()):
            pass
        children[0].kill()

    killer = threading.Timer(0.3, kill)
    killer.start()
    with pytest.raises(ValueError, match=r"the chat template ended its process \(exit code -9\)"):
        check_template_limits(tokenizer, ENDLESS)
    killer.join()


BOUND = """
import resource
from zephyr.chat.template_limits import limit_memory
space = resource.RLIMIT_AS
own = 4096 + int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
def bound(more):
    limit_memory(more)
    return resource.getrlimit(space)
soft, hard = bound(2**28)
assert abs(soft - own - 2**28) < 2**26 and hard == resource.RLIM_INFINITY, (soft, hard, own)
bytearray(2**27)
try:
    bytearray(2**29)
except MemoryError:
    pass
else:
    raise AssertionError("there was no bound")
resource.setrlimit(space, (own + 2**30, own + 2**30))
assert bound(2**40) == (own + 2**30, own + 2**30)
soft, hard = bound(2**28)
assert abs(soft - own - 2**28) < 2**26 and hard == own + 2**30, "it can be given back"
"""


def test_the_bound_is_above_what_is_taken_and_below_what_may_be() -> None:
    """In a process of its own, which keeps it. Fails where a process that has taken much gets no
    more, or a limit that the system has set already ends it with an error."""
    done = subprocess.run([sys.executable, "-c", BOUND], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
