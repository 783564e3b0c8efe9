"""What looks like a credential does not leave the cluster, and what a reader needs stays."""

from __future__ import annotations

import pytest

from nodenet.cluster import redact

JWT = "eyJhbGciOiJSUzI1NiIsImtpZCI6IjEifQ.eyJzdWIiOiJzeXN0ZW06c2VydmljZWFjY291bnQifQ.c2lnbmF0dXJl"
SECRET = "hunter2hunter2"


@pytest.mark.parametrize(
    "line",
    [
        f"Authorization: Bearer {SECRET}",
        "authorization: basic " + SECRET,
        f'"Authorization": "Token {SECRET}"',
        f"token={SECRET}",
        f'"password": "{SECRET}"',
        f"DB_PASSWORD: '{SECRET}'",
        f"aws_secret_access_key = {SECRET}",
        f"--api-key={SECRET}",
        f"postgres://app:{SECRET}@db:5432/x",
        f"client-key-data: {SECRET}",
        f"-----BEGIN EC PRIVATE KEY-----\n{SECRET}\n-----END EC PRIVATE KEY-----",
        f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}",
        f"GET /x?access_token={SECRET}&a=1",
        f"url=x?token={SECRET}",
        f"-HTTP://app:{SECRET}@db/x",
        f"my.token-of.mine={SECRET}",
    ],
)
def test_a_credential_is_removed_from_a_text(line: str) -> None:
    found = redact.text(f"before {line} after")
    assert SECRET not in found
    assert redact.REDACTED in found
    assert found.startswith("before ")


def test_tokens_are_found_without_a_name() -> None:
    assert redact.text(f"sent {JWT} to") == f"sent {redact.REDACTED} to"
    assert redact.text("key AKIAABCDEFGHIJKLMNOP!") == f"key {redact.REDACTED}!"


def test_a_token_after_other_words_is_found() -> None:
    assert (
        redact.text(f"name-of-a-thing.{JWT} sent-{JWT}!")
        == f"name-of-a-thing.{redact.REDACTED} sent-{redact.REDACTED}!"
    )


@pytest.mark.parametrize(
    "word", ["a", "token", "a.", "eyJaaaaaaaa-", "eyJaaaaaaaa.", "a:", "a://", "pass-", "-----BEGIN ", "authorization-"]
)
def test_the_time_grows_with_the_length_and_not_with_its_square(word: str) -> None:
    """512 KB: with the square it would take hours, and the timeout of the test ends it."""
    data = word * ((1 << 19) // len(word))
    assert SECRET not in redact.text(f"{data} password={SECRET}")
    assert len(redact.text(data)) <= len(data) + len(redact.REDACTED)
    # Spaces between a name with many keywords and nothing.
    assert redact.text("token" * 1000 + " " * (1 << 19)).startswith("token")
    assert not redact.is_secret(f"{data}!")


@pytest.mark.parametrize(
    "line",
    [
        "10.0.0.1:41000 -> 10.96.0.1:443 FORWARDED tcp SYN",
        "automountServiceAccountToken: false",
        "secretName: tls-cert",
        "tokenExpirationSeconds: 3600",
        "authority: /var/run/secrets/kubernetes.io/serviceaccount/ca.crt",
        "passed: 12",
        "https://172.30.0.1:6443/api/v1/pods",
        "2026-12-01 11:00:26 INFO nodenet.agent: ready after 9.55 s",
    ],
)
def test_what_is_no_credential_stays(line: str) -> None:
    assert redact.text(line) == line


def test_an_object_is_redacted_by_names_and_by_content() -> None:
    found = redact.obj(
        {
            "metadata": {
                "name": "p",
                "managedFields": [1],
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": SECRET, "note": f"token={SECRET}"},
            },
            "spec": {
                "automountServiceAccountToken": True,
                "containers": [
                    {
                        "name": "c",
                        "args": [f"--password={SECRET}", "--port=80"],
                        "env": [
                            {"name": "API_TOKEN", "value": SECRET},
                            {"name": "MODE", "value": "fast"},
                            {"name": "P", "valueFrom": {"secretKeyRef": {"name": "s", "key": "password"}}},
                        ],
                    }
                ],
            },
        }
    )
    assert SECRET not in str(found)
    [container] = found["spec"]["containers"]
    assert container["env"][0] == {"name": "API_TOKEN", "value": redact.REDACTED}
    assert container["env"][1] == {"name": "MODE", "value": "fast"}
    assert container["env"][2]["valueFrom"]["secretKeyRef"] == {"name": "s", "key": "password"}
    assert container["args"][1] == "--port=80"
    assert found["spec"]["automountServiceAccountToken"] is True
    assert "managedFields" not in found["metadata"]
