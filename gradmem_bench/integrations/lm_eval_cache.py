"""lm-eval's response cache, with what its key leaves out.

lm-eval (0.4.13) looks a request up by its arguments alone, the prompt and the generation settings. With the context
out of the prompt, ten contexts that are asked the same would share one answer, and so would two memories.
"""

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any

import lm_eval.api.model
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM

KINDS = ("generate_until", "loglikelihood", "loglikelihood_rolling")


def keyed(request: Instance, memory: str) -> Instance:
    """The request with one argument more, which the cache's key is made of too: the context's hash, and the memory."""
    context = str(request.doc.get("context", ""))
    key = {"context": sha256(context.encode()).hexdigest(), "memory": memory}
    return replace(request, arguments=(*request.args, key))


def is_keyed(request: Instance) -> bool:
    last = request.args[-1]
    return isinstance(last, dict) and {"context", "memory"} <= set(last)


class ContextCachingLM(CachingLM):
    """lm-eval's cache for every model, with requests `keyed` for one that has a `memory_key`."""

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        memory = getattr(self.lm, "memory_key", None)
        if name not in KINDS or memory is None:
            return found
        return _with_keys(found, memory)


def _with_keys(answer: Callable[[list[Instance]], list[Any]], memory: str) -> Callable[[list[Instance]], list[Any]]:
    return lambda requests: answer([keyed(request, memory) for request in requests])


def install() -> None:
    """Makes lm-eval use it: `simple_evaluate` takes the class from there, and has no other place to name one."""
    lm_eval.api.model.CachingLM = ContextCachingLM
