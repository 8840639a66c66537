"""Settings: flags over environment over file; whatever cannot be used is named in one line."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import pytest
from msgspec.structs import replace

from cli import settings_help
from lockstep.config import Settings, read_settings
from lockstep.lifetimes import Lifetimes
from lockstep.setting import SettingsError, help_of


def complaint(args: Sequence[str], environ: Mapping[str, str] | None = None) -> str:
    with pytest.raises(SettingsError) as error:
        read_settings(args, environ or {})
    line = str(error.value)
    assert line
    assert "\n" not in line
    return line


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "lockstep.toml"


def test_nothing_given_is_the_defaults() -> None:
    assert read_settings([], {"PATH": "/bin", "PORT": "1"}) == Settings()
    assert Settings().address == "127.0.0.1"
    assert Settings().broker == "memory://"
    assert Settings().max_message_bytes == 16_384
    assert (Settings().ping_interval_s, Settings().ping_timeout_s) == (5, 4)


def test_flags_win_over_the_environment_and_that_over_the_file(file: Path) -> None:
    file.write_text('port = 1\naddress = "::1"\nlog_level = "error"\n')
    environ = {"LOCKSTEP_PORT": "2", "LOCKSTEP_ADDRESS": "127.0.0.2"}
    settings = read_settings([f"--config={file}", "--port=3"], environ)
    assert (settings.port, settings.address, settings.log_level) == (3, "127.0.0.2", "error")


def test_the_choice_of_the_extension_is_no_setting() -> None:
    assert read_settings([], {"LOCKSTEP_TWIN": "1"}) == read_settings([], {})


def test_the_file_may_be_named_by_the_environment_and_the_flag_wins(file: Path, tmp_path: Path) -> None:
    file.write_text("port = 1")
    other = tmp_path / "other.toml"
    other.write_text("port = 2")
    environ = {"LOCKSTEP_CONFIG": str(file)}
    assert read_settings([], environ).port == 1
    assert read_settings([f"--config={other}"], environ).port == 2


def test_every_setting_is_read_from_each_of_the_three(file: Path) -> None:
    given = {
        "port": "8001",
        "address": "127.0.0.2",
        "broker": "redis://127.0.0.1:6379/0",
        "origins": "https://a.example, https://b.example:8443",
        "ping_interval_s": "7.5",
        "ping_timeout_s": "2",
        "max_message_bytes": "1024",
        "drain_s": "0",
        "keep_pending_s": "1",
        "log_level": "debug",
    }
    by_flag = read_settings([f"--{key.replace('_', '-')}={value}" for key, value in given.items()], {})
    by_variable = read_settings([], {f"LOCKSTEP_{key.upper()}": value for key, value in given.items()})
    numbers = {"port", "ping_interval_s", "ping_timeout_s", "max_message_bytes", "drain_s", "keep_pending_s"}
    file.write_text(
        "\n".join(f"{key} = {value if key in numbers else repr(value)}" for key, value in given.items())
    )
    by_file = read_settings([f"--config={file}"], {})
    assert by_flag == by_variable == by_file
    assert by_flag.ping_interval_s == 7.5
    assert by_flag.allowed_origins == {"https://a.example", "https://b.example:8443"}
    assert by_flag.lifetimes == replace(Lifetimes(), pending_ms=1_000)


def test_the_defaults_keep_sessions_as_long_as_promised() -> None:
    hour_ms = 3_600_000
    assert Settings().lifetimes == Lifetimes(
        pending_ms=24 * hour_ms,
        running_ms=24 * hour_ms,
        running_without_deadline_ms=48 * hour_ms,
        paused_ms=7 * 24 * hour_ms,
        terminal_ms=hour_ms,
    )


def test_an_unknown_key_is_named_wherever_it_stands(file: Path) -> None:
    assert "--prot" in complaint(["--prot=8001"])
    assert "LOCKSTEP_PROT" in complaint([], {"LOCKSTEP_PROT": "8001"})
    file.write_text("prot = 8001")
    line = complaint([f"--config={file}"])
    assert "prot" in line
    assert str(file) in line
    file.write_text("[server]\nport = 8001")
    assert "server" in complaint([f"--config={file}"])


@pytest.mark.parametrize("arg", ["port=8001", "--port", "-p", "8001", "", "--", "-port=1"])
def test_an_argument_that_is_no_setting_is_named(arg: str) -> None:
    assert arg in complaint([arg])


BAD = {
    "port": ["", "http", "-1", "65536", "80.5", "1e3", "0x50", "1" * 5_000, "nan"],
    "address": ["", ",", "127.0.0.1,0.0.0.0", "::", "::1,192.0.2.1"],
    "trusted_proxies": ["proxy", "10.0.0.0/33", "::/129", "10.0.0.1:80"],
    "keep_alive_s": ["0", "-1", "nan", "86401"],
    "origins": [
        *("example.org", "https://example.org/page", "ftp://example.org", "https://", "wss://example.org"),
        *("https://*", "https://*.", "https://a.*.example.org", "https://*example.org", "*.example.org"),
        *("https://user@example.org", "https://example.org:0x1", "https://example.org:70000", "http://[::g]"),
        *(
            "file://",
            "https://a b.example",
            "https://*.127.0.0.1",
            "https://example.org?x",
            "https://.example.org",
        ),
    ],
    "hosts": ["clock.example:8080", "http://clock.example", "*", "*.clock.example", "a b", "clock..example"],
    "ping_interval_s": ["0", "-1", "nan", "inf", "1e400", "soon", "3601", "1e300"],
    "ping_timeout_s": ["0", "-1", "5", "6", "nan"],
    "max_message_bytes": ["0", "-1", "1.5", "16777217", "9" * 400],
    "max_connections_per_session": ["-1", "1000000001", "9" * 400],
    "max_connections_per_ip": ["-1", "1000000001"],
    "max_connections": ["-1", "1000000001"],
    "connection_rate": ["-1", "1000000001"],
    "message_rate": ["-1", "1000000001"],
    "rate_limit_general": [
        "",
        "-1",
        "100",
        "100/0",
        "1/1.5",
        "1000000001/60",
        "1/31622401",
        "9" * 400 + "/1",
    ],
    "rate_limit_switch": ["10/", "/1", "10/1/1", "1e3/1", "inf/1", "1/" + "9" * 5_000, "\u0663/\u0663"],
    "drain_s": ["-1", "nan", "inf", "3601", "1e300"],
    "keep_pending_s": ["0", "-1", "nan", "inf", "1e300", "315360001", "0.0001"],
    "keep_running_s": ["0", "1e300", "nan", "inf"],
    "keep_running_without_deadline_s": ["0", "1e300", "nan", "inf"],
    "keep_paused_s": ["0", "1e300", "nan", "inf"],
    "keep_terminal_s": ["0", "1e300", "nan", "inf"],
    "log_level": ["", "loud", "INFO "],
}
"""What a broker's URL means is the broker's to say, when it is opened."""


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BAD.items() for value in values])
def test_a_bad_value_is_named_with_where_it_was_given(key: str, value: str) -> None:
    flag, variable = f"--{key.replace('_', '-')}", f"LOCKSTEP_{key.upper()}"
    assert flag in complaint([f"{flag}={value}"])
    assert variable in complaint([], {variable: value})
    assert flag in complaint([f"{flag}={value}"], {variable: value})


def test_a_bad_value_that_is_overruled_is_still_named() -> None:
    with pytest.raises(SettingsError, match="LOCKSTEP_PROT"):
        read_settings(["--port=1"], {"LOCKSTEP_PROT": "1"})


@pytest.mark.parametrize(
    "line",
    [
        'port = "http"',
        "port = 80.5",
        "port = true",
        "port = [1]",
        "port = 1979-05-27",
        "address = 5",
        "address = true",
        "ping_interval_s = nan",
        "ping_interval_s = true",
        "port = ",
        "port = 1\nport = 2",
        "\udcff",
    ],
)
def test_a_bad_file_is_named(line: str, file: Path) -> None:
    file.write_bytes(line.encode("utf-8", "surrogateescape"))
    assert str(file) in complaint([f"--config={file}"])


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    assert str(missing) in complaint([f"--config={missing}"])
    assert str(tmp_path) in complaint([f"--config={tmp_path}"])


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        ("", set()),
        ("*", {"*"}),
        (" https://a.example , http://b.example:81/,", {"https://a.example", "http://b.example:81"}),
    ],
)
def test_origins_are_a_list(given: str, allowed: set[str]) -> None:
    assert read_settings([f"--origins={given}"], {}).allowed_origins == allowed


def test_an_unknown_key_is_answered_with_the_nearest_one(file: Path) -> None:
    assert complaint(["--drain=1"]).endswith("did you mean --drain-s?")
    assert complaint([], {"LOCKSTEP_ORIGIN": "*"}).endswith("did you mean LOCKSTEP_ORIGINS?")
    file.write_text('brocker = "memory://"')
    assert complaint([f"--config={file}"]).endswith("did you mean broker?")
    assert complaint(["--zzz=1"]).endswith("lockstep --help lists them")


def test_help_explains_every_setting() -> None:
    for field in fields(Settings):
        assert help_of(field)
        assert f"--{field.name.replace('_', '-')}=" in settings_help()
