"""A page on which people generate, interpolate and edit faces by named attributes.

Opens on this machine alone. It shows what manipulate.py makes, and says the command that makes it again.
"""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import flags  # first: it refuses an old Python in one line

# isort: split
from config import Config, ModelFiles, count, flag, nested


@dataclass(frozen=True)
class AppConfig(Config):
    """Flags of app.py."""

    judge: str | None = flag(
        None, "of evaluate.py judge: says what edits changed; none given: a pretrained model's probe"
    )
    # who may visit
    host: str = flag("127.0.0.1", "who may visit: 127.0.0.1 this machine alone, 0.0.0.0 every machine")
    port: int = count(7860, "of the page", low=0, high=65535)
    max_upload: float = flag(20.0, "largest file that a visitor may send, in MB", above=0)
    files: ModelFiles = nested(ModelFiles)


def serve(config: AppConfig) -> None:
    """Open the page, until Ctrl-C."""
    try:
        socket.create_server((config.host, config.port)).close()
    except OSError as error:  # before the models are loaded
        raise OSError(f"{error.strerror}: choose another --port") from None
    with tempfile.TemporaryDirectory(prefix="faces_page_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # read when gradio is imported
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        from page.layout import Page
        from page.parts import CSS, THEME
        from page.visitors import Visitors
        from page.worker import Worker

        visitors = Visitors(Path(folder))
        page = Page(Worker(config.files, config.judge), visitors).blocks
        threading.Thread(target=visitors.sweep_always, daemon=True).start()
        page.queue(max_size=64).launch(
            server_name=config.host,
            server_port=config.port or None,  # None: any that is free
            max_file_size=round(config.max_upload * 1e6),
            theme=THEME,
            css=CSS,
            footer_links=[],
            ssr_mode=False,
            share=False,
            enable_monitoring=False,
            quiet=True,
            prevent_thread_lock=True,
        )
        print(f"the page: {page.local_url} (Ctrl-C ends it)", flush=True)
        page.block_thread()


if __name__ == "__main__":
    flags.run(lambda: serve(flags.parse(AppConfig, __doc__)))
