"""What `clipskip serve` refuses before it listens, and where it takes its secrets from."""

import json

import pytest

from clipskip.__main__ import main
from clipskip.cli.serve import origin, secret
from clipskip.errors import RequestError


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["--port", "x"], "port"),
        (["--max-queue", "0"], "max_queue"),
        (["--timeout", "soon"], "timeout"),
        (["--models-memory", "1"], "models_memory"),
        (["--token", ""], "token"),
        (["--token", "@/nowhere/at/all"], "token"),
        (["--user", "me"], "user"),
        (["--cors", "our.example"], "cors"),
        (["--cors", "https://our.example/"], "cors"),
        (["--cors", "https://Our.example"], "cors"),
        (["--target", "gpux"], "target"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(sample_store, capsys, arguments, field):
    assert main(["serve", str(sample_store), "--json", *arguments]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["field"] == field


def test_a_store_that_is_not_there_and_a_port_that_is_taken_are_told(sample_store, tmp_path, capsys):
    import socket

    assert main(["serve", str(tmp_path / "none"), "--json"]) == 4
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", str(sample_store), "--port", port, "--json"]) == 7
    assert f"port {port}" in json.loads(capsys.readouterr().out.splitlines()[-1])["error"]["message"]


def test_secrets_come_from_the_option_a_file_or_the_environment(tmp_path, monkeypatch):
    (tmp_path / "token").write_text("from a file\n")
    monkeypatch.setenv("CLIPSKIP_TOKEN", "from the environment")
    assert secret("token", "typed") == "typed"
    assert secret("token", f"@{tmp_path / 'token'}") == "from a file"
    assert secret("token", None) == "from the environment"
    assert secret("user", None) == ""


@pytest.mark.parametrize(("name", "value", "said"), [("TOKEN", "", "is empty"), ("USER", "me", "is written NAME:PASS")])
def test_a_secret_of_the_environment_that_is_none_is_refused_by_its_own_name(monkeypatch, name, value, said):
    monkeypatch.setenv(f"CLIPSKIP_{name}", value)
    with pytest.raises(RequestError, match=f"^CLIPSKIP_{name} {said}"):
        secret(name.lower(), None)


def test_sites_are_taken_as_browsers_name_them():
    sites = ["https://our.example", "http://127.0.0.1:8080", "http://[::1]:80", "chrome-extension://abc", "*", "null"]
    assert [*map(origin, sites)] == sites
