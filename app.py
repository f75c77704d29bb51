"""A page on which people generate, interpolate and edit faces by named attributes.

Opens on this machine alone. It shows what manipulate.py makes, and says the command that makes it again.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import flags  # first: it refuses an old Python in one line

# isort: split
import devices
from config import Config, ModelFiles, count, flag, nested

# Flags that Docker images and others set by gradio's variables.
VARIABLES = {"host": "GRADIO_SERVER_NAME", "port": "GRADIO_SERVER_PORT", "root_path": "GRADIO_ROOT_PATH"}


@dataclass(frozen=True)
class AppConfig(Config):
    """Flags of app.py."""

    judge: str | None = flag(
        None, "of evaluate.py judge: says what edits changed; none given: a pretrained model's probe"
    )
    beside: str | None = flag(None, "another model: the page shows its edit beside that of --checkpoint")
    # who may visit
    host: str = flag(
        "127.0.0.1",
        "who may visit: 127.0.0.1 or ::1 this machine alone, 0.0.0.0 or :: every machine; or "
        f"{VARIABLES['host']}",
        metavar="ADDRESS",
    )
    port: int = count(7860, f"of the page; or {VARIABLES['port']}", low=0, high=65535)
    root_path: str | None = flag(None, "where a proxy shows the page, such as /faces")
    share: bool = flag(False, "also open it to the world, at an address that gradio's servers give")
    max_upload: float = flag(20.0, "largest file that a visitor may send, in MB", above=0)
    files: ModelFiles = nested(ModelFiles)


def parse_args(argv: Sequence[str] | None = None) -> AppConfig:
    options = []
    for name, variable in VARIABLES.items():
        value = os.environ.pop(variable, "")  # gradio would read it in spite of the command line
        options += [f"--{name}={value}"] if value else []
    return flags.parse(AppConfig, __doc__, [*options, *(sys.argv[1:] if argv is None else argv)])


def check_address(host: str, port: int) -> None:
    """Raise OSError unless a page can open at this address. Gradio needs 127.0.0.1, too."""
    for name in (host, "127.0.0.1"):
        try:
            family = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0][0]
            socket.create_server((name, port), family=family).close()
        except OSError as error:
            raise OSError(
                f"no page can open at {name}, port {port} ({error.strerror}): choose another --port, or "
                "check --host"
            ) from None


def serve(config: AppConfig) -> None:
    """Open the page, until a signal such as Ctrl-C."""
    host, root = config.host.strip("[]"), config.root_path
    if root and "://" not in root:
        root = f"/{root.strip('/')}"
    check_address(host, config.port)  # before the models are loaded
    from page.folder import own_folder
    from page.worker import Worker

    with own_folder() as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(folder)  # read when gradio is imported
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        worker = Worker(config.files, config.judge)
        beside = worker.another(config.beside) if config.beside else None
        os.environ["no_proxy"] = "*"  # gradio calls its own address: no proxy
        from gradio.tunneling import CURRENT_TUNNELS
        from starlette.responses import JSONResponse
        from starlette.routing import Route

        from page.layout import Page
        from page.parts import CSS, THEME
        from page.visitors import MOST_VISITORS, Visitors

        visitors = Visitors(folder)
        page = Page(worker, visitors, beside).blocks
        server, *_ = page.queue(max_size=64).launch(
            server_name=f"[{host}]" if ":" in host else host,
            server_port=config.port or None,  # None: any that is free
            root_path=root,
            share=config.share,
            max_file_size=round(config.max_upload * 1e6),
            state_session_capacity=MOST_VISITORS,  # gradio keeps half a megabyte for each
            theme=THEME,
            css=CSS,
            footer_links=[],
            ssr_mode=False,
            enable_monitoring=False,
            quiet=True,
            prevent_thread_lock=True,
        )
        # This route stores uploads of any size, and the page does not need it.
        shut = Route(
            "/gradio_api/component_server{rest:path}", lambda _: JSONResponse(None), methods=["POST"]
        )
        server.router.routes.insert(0, shut)
        address = page.local_url.replace("[::]", "localhost")
        place = f", for a proxy that shows it at {root}" if root else ""
        print(f"the page: {address}{place} (Ctrl-C ends it)", flush=True)
        with suppress(KeyboardInterrupt):
            visitors.sweep_always()
        for tunnel in CURRENT_TUNNELS:
            tunnel.kill()
    os._exit(0)  # what still computes would go on, and write


if __name__ == "__main__":
    # A page stays open beside other work.
    os.environ.setdefault("GOMP_SPINCOUNT", devices.SHORT_WAIT)
    flags.run(lambda: serve(parse_args()))
