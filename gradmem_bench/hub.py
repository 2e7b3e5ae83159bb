"""How long a hub is waited for: a machine without a network says so at once, and takes what the cache holds.

huggingface_hub (1.31) asks a hub that it cannot connect to five times more, for 23 s, and has no setting for that.
"""

from functools import cache
from importlib import import_module
from typing import Any

import huggingface_hub
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import logging

_CONNECT_SECONDS = 3.0


@cache
def wait_briefly() -> None:
    """From here on, what cannot be connected to counts as offline, until a first answer of the same host.

    A host that has answered is waited for as before: a download is not lost for one lost connection.
    """
    # What the client says while it retries is said once, in the sentence that ends it.
    logging.set_verbosity_error()
    standard = huggingface_hub.get_session()
    # The hub's HTTP library, which has been httpx and is httpx2.
    library: Any = import_module(type(standard).__module__.partition(".")[0])
    answered: set[str] = set()

    class BriefClient(type(standard)):
        def send(self, request: Any, **options: Any) -> Any:
            host = request.url.netloc
            if host in answered:
                return super().send(request, **options)
            limits = dict(request.extensions.get("timeout", {}))
            limits["connect"] = min(limits.get("connect") or _CONNECT_SECONDS, _CONNECT_SECONDS)
            request.extensions = {**request.extensions, "timeout": limits}
            try:
                response = super().send(request, **options)
            except (library.ConnectError, library.ConnectTimeout) as error:
                raise OfflineModeIsEnabled(f"{request.url.host} cannot be reached: {error}") from error
            answered.add(host)
            return response

    hooks = standard.event_hooks
    huggingface_hub.set_client_factory(lambda: BriefClient(event_hooks=hooks, follow_redirects=True, timeout=None))
