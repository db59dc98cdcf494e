"""`gpumem web`: the page."""

from __future__ import annotations

from contextlib import suppress

import click

from app.options import asked_quiet


@click.command()
@click.option(
    "--host",
    default="127.0.0.1",
    envvar="GRADIO_SERVER_NAME",
    show_default=True,
    help="Address to serve at; 0.0.0.0 for every machine that can reach this one.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=7860,
    envvar="GRADIO_SERVER_PORT",
    show_default=True,
    help="Port; 0 takes a free one.",
)
@click.option("--open", "open_browser", is_flag=True, help="Open the page in a browser.")
@click.option("-q", "--quiet", is_flag=True, help="Do not print the address.")
@click.pass_context
def web(ctx: click.Context, host: str, port: int, open_browser: bool, quiet: bool) -> None:
    """Serve the page: an estimate as one types, in a browser.

    It needs no network and makes no request to any other host. Ctrl-C ends it.
    """
    from app.web.server import bind, serve

    listener = bind(host, port)
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    address = f"http://{f'[{shown}]' if ':' in shown else shown}:{listener.getsockname()[1]}/"

    def ready() -> None:
        if not asked_quiet(ctx, quiet):
            click.echo(f"{address} (Ctrl-C ends it)")
        if open_browser:
            click.launch(address)

    with suppress(KeyboardInterrupt):  # the way to end it
        serve(listener, ready)
