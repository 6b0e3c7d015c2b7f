"""What keys are made of and how they change."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.core import keys
from taskqueue.core.errors import InvalidRequest, InvalidStatus, KeyExists, KeyNotFound
from taskqueue.core.keys import Key, Permission, digest_of, is_mistyped, new_secret

NOW = 1_000_000_000


def a_key(name: str = "ops", *permissions: Permission, **fields: object) -> Key:
    """A key that permits everything unless told otherwise."""
    return Key(
        id=f"key_{name}",
        name=name,
        digest=f"digest of {name}",
        hint="abcd",
        permissions=permissions or (Permission.ADMIN,),
        created_at=0,
        **fields,  # type: ignore[arg-type]
    )


def test_a_secret_is_its_prefix_256_bits_and_a_checksum() -> None:
    secret = new_secret()
    assert re.fullmatch(r"tq_[0-9A-Za-z]{49}", secret.text)
    assert (secret.digest, secret.hint) == (digest_of(secret.text), secret.text[-4:])
    assert not is_mistyped(secret.text)
    assert len({new_secret().text for _ in range(100)}) == 100


@given(st.integers(3, 51), st.sampled_from("0123456789ABCxyz"))
def test_a_secret_with_one_wrong_character_is_known_as_mistyped(place: int, letter: str) -> None:
    text = new_secret().text
    wrong = text[:place] + letter + text[place + 1 :]
    assert is_mistyped(wrong) == (wrong != text)


@given(st.text(max_size=80))
def test_any_text_can_be_asked_about(text: str) -> None:
    assert is_mistyped(text) in (False, True)
    assert len(digest_of(text)) == 64


def test_admin_permits_everything_and_others_only_themselves() -> None:
    assert all(a_key().permits(permission) for permission in Permission)
    reader = a_key("r", Permission.READ_TASKS)
    assert [one for one in Permission if reader.permits(one)] == [Permission.READ_TASKS]


def test_the_first_key_must_permit_admin_unless_somebody_else_does() -> None:
    reader = a_key("r", Permission.READ_TASKS)
    with pytest.raises(InvalidRequest, match="admin"):
        keys.create({}, reader, NOW, is_spare=False)
    assert keys.create({}, reader, NOW, is_spare=True) is reader
    ops = a_key()
    assert keys.create({ops.id: ops}, reader, NOW, is_spare=False) is reader
    ended = a_key(expires_at=NOW)
    with pytest.raises(InvalidRequest, match="admin"):
        keys.create({ended.id: ended}, reader, NOW, is_spare=False)


def test_a_name_is_taken_as_long_as_its_key_is_valid() -> None:
    ops, other = a_key(), a_key("other")
    again = a_key()
    with pytest.raises(KeyExists, match="ops"):
        keys.create({ops.id: ops, other.id: other}, again, NOW, is_spare=False)
    gone = keys.revoke({ops.id: ops, other.id: other}, ops, NOW, is_spare=False)
    assert keys.create({gone.id: gone, other.id: other}, again, NOW, is_spare=False) is again


def test_there_is_an_end_to_the_number_of_keys() -> None:
    many = {str(number): a_key(str(number)) for number in range(keys.MOST_KEYS)}
    with pytest.raises(InvalidRequest, match="10000"):
        keys.create(many, a_key("more"), NOW, is_spare=False)


def test_a_rotated_key_has_two_secrets_for_a_while() -> None:
    key = keys.rotate(a_key(), "new", "wxyz", overlap=10, wall=NOW)
    assert key.digests(NOW + 9) == ["new", "digest of ops"]
    assert key.digests(NOW + 10) == ["new"]
    twice = keys.rotate(key, "newer", "wxyz", overlap=0, wall=NOW)
    assert twice.digests(NOW) == ["newer"]


def test_what_has_ended_lets_nobody_in_and_cannot_be_rotated() -> None:
    for key in (a_key(revoked_at=NOW), a_key(expires_at=NOW)):
        assert key.digests(NOW) == []
        with pytest.raises(InvalidStatus):
            keys.rotate(key, "new", "wxyz", overlap=10, wall=NOW)


def test_the_last_administrator_cannot_be_revoked() -> None:
    ops, other = a_key(), a_key("other")
    with pytest.raises(InvalidStatus, match="last"):
        keys.revoke({ops.id: ops}, ops, NOW, is_spare=False)
    assert keys.revoke({ops.id: ops}, ops, NOW, is_spare=True).revoked_at == NOW
    both = {ops.id: ops, other.id: other}
    gone = keys.revoke(both, ops, NOW, is_spare=False)
    assert keys.revoke(both, gone, NOW + 5, is_spare=False) is gone
    expired = a_key(expires_at=NOW)
    assert keys.revoke({expired.id: expired}, expired, NOW, is_spare=False).revoked_at == NOW


def test_use_is_noted_as_the_latest_moment() -> None:
    used = keys.note_use(keys.note_use(a_key(), 7), 5)
    assert used.used_at == 7


def test_an_unknown_key_is_said_to_be_so() -> None:
    with pytest.raises(KeyNotFound):
        keys.require_key({}, "key_x")
