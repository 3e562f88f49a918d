"""``thawline serve``: one or several processes behind one port, each with the model in its memory."""

import json
import logging
import os
import socket
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thawline import environment, logs
from thawline.config import TrainConfig
from thawline.engines import EngineName
from thawline.exceptions import ServingError, ThawlineError
from thawline.registry import MlflowRegistry, parse_model
from thawline.serving.follower import Follower
from thawline.tracking import open_store
from thawline.training import runtime_for, set_up_process

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from thawline.serving.metrics import Metrics
    from thawline.serving.shadow import Shadow

__all__ = ["GRACE_SECONDS", "ServeOptions", "config_of", "http_server", "serve"]

_log = logging.getLogger("thawline.serving")

_OPTIONS = "THAWLINE_SERVE_OPTIONS"
"""Variable with the options for several processes, which uvicorn starts by the name of a function only."""
_START = "THAWLINE_SERVE_START"
"""Variable with the folder of :class:`thawline.serving.workers.Start`."""
GRACE_SECONDS = 30
_STARTING_SECONDS = 60
"""Time after which a process that does not respond is killed and restarted. A process responds once its imports are
done, which on a busy machine took longer than uvicorn's five seconds, again and again."""
_SHORTEST_SECRET = 16


@dataclass(frozen=True)
class ServeOptions:
    """All options of ``thawline serve``; limits apply to each of its processes."""

    model: str
    tracking_uri: str | None
    """URI of the registry; ``None`` for the same default as a search."""
    home: Path
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    max_batch: int = 32
    max_delay_ms: float = 2.0
    max_waiting: int = 1024
    max_items: int = 256
    max_megapixels: float = 200.0
    max_body_mb: float = 32.0
    max_bodies_mb: float = 128.0
    max_connections: int = 512
    client_seconds: float = 30.0
    allowed_hosts: tuple[str, ...] = ()
    shadow: float | None = None
    """Share of the requests that the challenger classifies too."""
    poll_seconds: float = 2.0
    device: str = "auto"
    engine: EngineName = "auto"
    token_file: Path | None = None
    webhook_secret_file: Path | None = None

    def to_json(self) -> str:
        """The options for the server's processes."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "ServeOptions":
        """Read the output of :meth:`to_json`."""
        values: dict[str, Any] = json.loads(text)
        values["home"] = Path(values["home"])
        values["allowed_hosts"] = tuple(values["allowed_hosts"])
        for name in ("token_file", "webhook_secret_file"):
            values[name] = Path(values[name]) if values[name] else None
        return cls(**values)


def serve(options: ServeOptions) -> None:
    """Serve until SIGTERM or Ctrl-C; requests in flight are finished.

    Raises:
        RegistryError: if there is no such model, or it fails the check on its input example.
        ServingError: if the port is taken, the token file or the device cannot be used, or limits contradict each
            other.
    """
    _log_to_terminal()
    _check(options)
    listening = _listen(options.host, options.port)
    port = listening.getsockname()[1]
    with listening:
        if options.workers == 1:
            app = create_app_from(options)
            _say_that_it_answers(options.host, port)
            http_server(app, options).run(sockets=[listening])
            return
        from thawline.serving.workers import Start, Workers, when_it_answers

        _registry(options).resolve(parse_model(options.model))
        with tempfile.TemporaryDirectory(prefix="thawline-serve-") as folder:
            start = Start(Path(folder))
            os.environ |= {"PROMETHEUS_MULTIPROC_DIR": folder, _OPTIONS: options.to_json(), _START: folder}
            config = config_of(
                "thawline.serving.server:create_worker_app", options, factory=True, workers=options.workers
            )
            _log.info("%s: starting %d processes", _url(options.host, port), options.workers)

            def answered() -> None:
                start.answered()
                _say_that_it_answers(options.host, port)

            when_it_answers(options.host, port, answered)
            Workers(config, [listening], start).run()
            if start.reason is not None:
                raise ServingError(start.reason)


def _say_that_it_answers(host: str, port: int) -> None:
    _log.info("%s is ready; press Ctrl-C to stop it", _url(host, port))


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def http_server(app: "FastAPI", options: ServeOptions) -> "uvicorn.Server":
    """uvicorn's server for the application, within the limits of the options."""
    import uvicorn

    return uvicorn.Server(config_of(app, options))


def config_of(app: "FastAPI | str", options: ServeOptions, **more: Any) -> "uvicorn.Config":
    """uvicorn's settings, within the limits of the options; ``more`` are further settings."""
    import uvicorn

    from thawline.serving.connections import BoundedConnection

    bounded: Any = partial(BoundedConnection, most=options.max_connections, seconds=options.client_seconds)
    return uvicorn.Config(
        app,
        http=bounded,
        ws="none",
        log_config=None,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_worker_healthcheck=_STARTING_SECONDS,
        server_header=False,
        **more,
    )


def create_worker_app() -> "FastAPI":
    """Create the application in one of several processes."""
    environment.prepare()
    _log_to_terminal()
    options = ServeOptions.from_json(os.environ[_OPTIONS])
    set_up_process(threads=max(1, (os.cpu_count() or 1) // options.workers), seed=0)
    from thawline.serving.workers import Start

    start = Start(Path(os.environ[_START]))
    try:
        app = create_app_from(options)
    except ThawlineError as error:
        start.refuse(str(error))
    start.loaded()
    return app


def create_app_from(options: ServeOptions) -> "FastAPI":
    """Load the model, and create the application that follows it.

    Raises:
        RegistryError: if there is no such model, or it fails the check on its input example.
    """
    from thawline.serving.app import AppOptions, create_app
    from thawline.serving.metrics import Metrics

    name = parse_model(options.model)
    follower = Follower(
        _registry(options), name, poll_seconds=options.poll_seconds, device=options.device, engine=options.engine
    )
    follower.load_first()
    model = follower.model
    following = f", following the alias {name.alias}" if name.alias else ""
    _log.info("%s version %s on %s by %s%s", model.name, model.version, model.device, model.engine, following)
    app_options = AppOptions(
        max_batch=options.max_batch,
        max_delay=options.max_delay_ms / 1000,
        max_waiting=options.max_waiting,
        max_items=options.max_items,
        max_pixels=round(options.max_megapixels * 1e6),
        max_body=round(options.max_body_mb * 1e6),
        max_bodies=round(options.max_bodies_mb * 1e6),
        client_seconds=options.client_seconds,
        allowed_hosts=(options.host, *options.allowed_hosts),
        token=_secret(options.token_file),
        webhook_secret=_secret(options.webhook_secret_file),
    )
    metrics = Metrics()
    return create_app(follower, app_options, metrics, _shadow(options, name.name, metrics))


def _shadow(options: ServeOptions, name: str, metrics: "Metrics") -> "Shadow | None":
    from thawline.serving.shadow import Shadow

    if options.shadow is None:
        return None
    return Shadow(
        _registry(options),
        name,
        share=options.shadow,
        poll_seconds=options.poll_seconds,
        device=options.device,
        engine=options.engine,
        max_batch=options.max_batch,
        metrics=metrics,
    )


def _log_to_terminal() -> None:
    """Log Thawline's messages, and warnings of others; there is no access log, which is the task of a proxy."""
    logs.start()  # if the format is JSON; basicConfig keeps existing handlers
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("thawline").setLevel(logging.INFO)


def _registry(options: ServeOptions) -> MlflowRegistry:
    return MlflowRegistry(open_store(options.tracking_uri, options.home))


def _check(options: ServeOptions) -> None:
    """Check the options before the model is loaded."""
    parse_model(options.model)
    if options.max_waiting < options.max_items:
        raise ServingError(
            f"--max-waiting {options.max_waiting} is smaller than --max-items {options.max_items}: a request with "
            "that many items would never fit. Raise the former or lower the latter."
        )
    if options.max_bodies_mb < options.max_body_mb:
        raise ServingError(
            f"--max-bodies {options.max_bodies_mb:g} MB is smaller than --max-body {options.max_body_mb:g} MB: such a "
            "body would never fit. Raise the former or lower the latter."
        )
    _secret(options.token_file)
    _secret(options.webhook_secret_file)
    runtime_for(TrainConfig(device=options.device))


def _secret(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        secret = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ServingError(f"{file} cannot be read: {error}.") from None
    if len(secret) < _SHORTEST_SECRET:
        raise ServingError(
            f"The secret in {file} has {len(secret)} characters, but needs at least {_SHORTEST_SECRET}. Create one: "
            f"python -c 'import secrets; print(secrets.token_urlsafe())' > {file}"
        )
    return secret


def _listen(host: str, port: int) -> socket.socket:
    """Bind the port before the model is loaded, so that a wrong one costs no time."""
    listening = socket.socket(
        socket.AF_INET6 if ":" in host else socket.AF_INET,
        socket.SOCK_STREAM,
        socket.IPPROTO_TCP,  # explicit, or asyncio leaves Nagle's algorithm on, which delays responses by 40 ms
    )
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(2048)
    except OSError as error:
        listening.close()
        raise ServingError(
            f"Cannot listen on {host}:{port}: {error.strerror or error}. Choose another port with --port (0 for any "
            "free one), or stop the process that uses it."
        ) from None
    return listening
