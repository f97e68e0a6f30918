"""Flags override the environment, which overrides the file, which overrides the defaults.

An error names the source of the invalid value.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from foldserve.service import settings
from foldserve.service.errors import SettingsError
from foldserve.service.settings import Settings, load, unused_variables


def refusal(*sources: Any) -> str:
    with pytest.raises(SettingsError) as refused:
        load(*sources)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "foldserve.toml"


def test_without_any_source_every_setting_has_its_default() -> None:
    assert load({}, {}) == Settings()
    assert Settings().host == "127.0.0.1"


def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(config: Path) -> None:
    config.write_text("port = 1\nmax_rows = 1\nmax_body = 1\n")
    environment = {"FOLDSERVE_PORT": "2", "FOLDSERVE_MAX_ROWS": "2"}
    found = load({"port": "3"}, environment, config)
    assert (found.port, found.max_rows, found.max_body) == (3, 2, 1)
    assert found.threads == Settings().threads
    # The test also reads each source alone, without the sources of higher priority, so that a wrong order of the
    # sources can't pass by chance.
    assert load({}, environment, config).port == 2
    assert load({}, {}, config).port == 1
    assert load({"port": "3"}, {}).port == 3


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_every_setting_has_a_variable_and_a_line_in_the_file(name: str, config: Path) -> None:
    values: dict[str, Any] = {
        "models": "/srv/models",
        "host": "0.0.0.0",  # noqa: S104
        "admin_host": "0.0.0.0",  # noqa: S104
        "allowed_hosts": "foldserve.example",
        "keys": "/run/secrets/keys",
        "cors_origins": "https://app.example",
        "device": "cpu",
        "default_model": "digits",
        "max_head": 4096,
        "log_level": "debug",
        "compression": False,
        "strict_readiness": False,
        "metrics": False,
        "access_log": True,
        "log_format": "json",
        "otel": True,
        "watch": False,
        "policy": "/etc/foldserve/policy.toml",
        "swap_policy": "always",
        "uds": "/run/foldserve.sock",
        "model_name": "digits",
        "model_dir": "/mnt/models",
        "page": False,
        "early_port": False,
        "drift": False,
        "precision": "bf16",
        "prediction_log": "/var/lib/foldserve/predictions",
        "prediction_log_share": 0.5,
        "prediction_log_size": 2**21,
        "prediction_log_exclude": "name,email",
    }
    value = values.get(name, 7)
    if name.startswith("tls_"):
        value = f"/etc/foldserve/{name}.pem"
    if name in ("buckets", "gpu_memory", "max_memory"):
        value = (7, 70) if name == "buckets" else 2**30
    text = str(value).lower() if type(value) is bool else str(value).strip("()")
    config.write_text(f"{name} = {json.dumps(value)}\n")
    wanted = Settings.model_validate({name: value})
    assert wanted != Settings()
    assert load({}, {settings.PREFIX + name.upper(): text}) == wanted
    assert load({}, {}, config) == wanted
    assert load({name: text}, {}) == wanted


def test_the_memory_has_room_for_the_largest_body() -> None:
    assert load({"max_memory": "5", "max_body": "5"}, {}).max_memory == 5
    assert refusal({"max_memory": "4", "max_body": "5"}, {}) == (
        "setting 'max_memory' (flag): Input should be at least max_body"
    )


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_every_setting_is_described(name: str) -> None:
    description = Settings.model_fields[name].description
    assert description
    assert "\n" not in description


@pytest.mark.parametrize(("text", "sizes"), [("", ()), ("8", (8,)), ("64, 1,8,64", (1, 8, 64))])
def test_buckets_are_sorted_without_duplicates(text: str, sizes: tuple[int, ...]) -> None:
    assert load({"buckets": text}, {}).buckets == load({}, {"FOLDSERVE_BUCKETS": text}).buckets == sizes


def test_other_variables_of_the_environment_are_ignored() -> None:
    assert load({}, {"PORT": "1", "foldserve_port": "2", "FOLDSERVE_UNHEARD_OF": "3"}) == Settings()


# Kubernetes sets these variables for a service named foldserve that has the ports http and metrics.
LINK = {
    "FOLDSERVE_SERVICE_HOST": "10.99.0.217",
    "FOLDSERVE_SERVICE_PORT": "80",
    "FOLDSERVE_SERVICE_PORT_HTTP": "80",
    "FOLDSERVE_PORT": "tcp://10.99.0.217:80",
    "FOLDSERVE_PORT_80_TCP": "tcp://10.99.0.217:80",
    "FOLDSERVE_PORT_80_TCP_PROTO": "tcp",
    "FOLDSERVE_PORT_80_TCP_PORT": "80",
    "FOLDSERVE_PORT_80_TCP_ADDR": "10.99.0.217",
}


def test_a_service_link_sets_no_port() -> None:
    assert load({}, LINK) == Settings()
    assert load({}, LINK | {"FOLDSERVE_HOST": "::1"}).host == "::1"
    assert load({}, LINK | {"FOLDSERVE_PORT": "9000"}).port == 9000
    assert load({}, {"FOLDSERVE_PORT": "tcp://[fd00::1]:80"}) == Settings()


def test_only_a_service_link_that_names_a_setting_is_logged() -> None:
    assert unused_variables(LINK) == [
        "ignored FOLDSERVE_PORT: a Kubernetes service link has set it to 'tcp://10.99.0.217:80'"
    ]
    others = {"FOLDSERVE_METRICS_SERVICE_HOST": "10.0.0.1", "FOLDSERVE_METRICS_PORT": "udp://10.0.0.1:9090"}
    assert unused_variables(others) == []


@pytest.mark.parametrize("value", ["tcp://", "http://10.0.0.1:80", "tcp://10.0.0.1", "80/tcp", "tcp:80"])
def test_any_other_text_is_an_invalid_port(value: str) -> None:
    assert "setting 'port' (environment)" in refusal({}, {"FOLDSERVE_PORT": value})


def test_a_misspelt_variable_is_named_with_its_neighbour_and_without_its_value() -> None:
    environment = {"FOLDSERVE_PROT": "secret", "FOLDSERVE_MAX_QUEUES": "1", "FOLDSERVE_ZZ": "2", "FOLDSERVE_HOST": "::"}
    assert unused_variables(environment | {"PORT": "1", "foldserve_port": "2"}) == [
        "ignored FOLDSERVE_MAX_QUEUES: there is no such setting; did you mean FOLDSERVE_MAX_QUEUE?",
        "ignored FOLDSERVE_PROT: there is no such setting; did you mean FOLDSERVE_PORT?",
        "ignored FOLDSERVE_ZZ: there is no such setting",
    ]


def test_no_setting_has_a_name_of_a_service_link() -> None:
    given = {settings.PREFIX + name.upper(): "1" for name in Settings.model_fields}
    assert unused_variables(given) == []


def test_loaded_settings_can_not_be_changed() -> None:
    with pytest.raises(ValidationError):
        load({}, {}).port = 1  # type: ignore[misc]


BAD: list[tuple[str, Any]] = [
    ("port", "abc"),
    ("port", ""),
    ("port", "-1"),
    ("port", "65536"),
    ("port", "1.5"),
    ("port", "1" * 5000),
    ("allowed_hosts", "a b"),
    ("allowed_hosts", "https://a.example"),
    ("cors_origins", "a.example"),
    ("cors_origins", "https://a.example/"),
    ("threads", "-1"),
    ("precision", "int8"),
    ("buckets", "0"),
    ("buckets", "1,two"),
    ("buckets", "1048577"),
    ("buckets", ",".join(map(str, range(1, 18)))),
    ("crossover", "-1"),
    ("gpu_memory", "1048575"),
    ("threads", "1025"),
    ("device", "tpu"),
    ("device", "CPU"),
    ("max_body", "0"),
    ("max_rows", "0"),
    ("workers", "0"),
    ("workers", "257"),
    ("max_head", "1023"),
    ("max_batch", "0"),
    ("max_batch", "1048577"),
    ("max_queue", "0"),
    ("max_delay", "-0.1"),
    ("max_delay", "11"),
    ("max_delay", "nan"),
    ("timeout", "0"),
    ("timeout", "inf"),
    ("request_timeout", "0"),
    ("idle_timeout", "0"),
    ("compression", "perhaps"),
    ("metrics", "perhaps"),
    ("drain_timeout", "-1"),
    ("drain_timeout", "inf"),
    ("log_level", "trace"),
    ("access_log", "perhaps"),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_an_invalid_value_is_named_with_its_source(name: str, value: str, config: Path) -> None:
    config.write_text(f'{name} = "{value}"\n')
    assert refusal({name: value}, {}).startswith(f"setting {name!r} (flag): ")
    assert refusal({}, {settings.PREFIX + name.upper(): value}).startswith(f"setting {name!r} (environment): ")
    assert refusal({}, {}, config).startswith(f"setting {name!r} (--config): ")


def test_the_error_names_the_source_that_took_effect(config: Path) -> None:
    config.write_text("port = 1\n")
    assert "(environment)" in refusal({}, {"FOLDSERVE_PORT": "abc"}, config)
    assert load({"port": "1"}, {"FOLDSERVE_PORT": "abc"}).port == 1


@pytest.mark.parametrize("text", ["unheard_of = 1", "PORT = 1", "max-rows = 1", "[foldserve]\nport = 1"])
def test_an_unknown_setting_in_the_file_is_refused(text: str, config: Path) -> None:
    config.write_text(text)
    (name,) = tomllib.loads(text)
    assert refusal({}, {}, config) == f"setting {name!r} (--config): Extra inputs are not permitted"


@pytest.mark.parametrize("text", ["port = [1]", "[port]\nof = 1", "models = 1", "host = 1", "default_model = false"])
def test_a_value_of_the_wrong_type_in_the_file_is_refused(text: str, config: Path) -> None:
    config.write_text(text)
    (name,) = tomllib.loads(text)
    assert refusal({}, {}, config).startswith(f"setting {name!r} (--config): ")


@pytest.mark.parametrize("content", [b"port", b"port = ", b"port = 1\nport = 2", b"\xff\xfe", b"[", b"{}"])
def test_a_file_that_is_not_toml_is_named(content: bytes, config: Path) -> None:
    config.write_bytes(content)
    assert refusal({}, {}, config).startswith(f"{config} is not TOML: ")


def test_a_file_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    assert refusal({}, {}, tmp_path / "none") == f"can't read {tmp_path / 'none'}: No such file or directory"
    assert refusal({}, {}, tmp_path) == f"can't read {tmp_path}: Is a directory"


def test_devices_and_precisions_are_those_of_the_runtime() -> None:
    from foldserve.service.runtime import session

    assert get_args(Settings.model_fields["device"].annotation) == get_args(session.Device)
    assert get_args(Settings.model_fields["precision"].annotation) == get_args(session.Precision)
