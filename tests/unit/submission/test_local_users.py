"""Programs of this machine: the account that each user sends as."""

from __future__ import annotations

from mailgate.submission.local_users import LocalUsers, local_users

USERS = {"root": 0, "www-data": 33}


def test_users_go_by_name_and_number_and_the_star_is_any_other() -> None:
    """unix(7): the kernel tells a number."""
    table = [("root", "postmaster@x.test"), ("1000", "alice@x.test"), ("*", "cron@x.test")]
    users, unknown = local_users(table, USERS.__getitem__)
    assert [users.account_of(uid) for uid in (0, 1000, 33)] == ["postmaster@x.test", "alice@x.test", "cron@x.test"]
    assert unknown == ()


def test_who_is_not_named_has_to_authenticate() -> None:
    """Without a star nobody else is let in."""
    assert local_users([("www-data", "web@x.test")], USERS.__getitem__)[0].account_of(0) is None
    assert LocalUsers({}).account_of(0) is None


def test_a_name_that_this_machine_does_not_know_is_left_out() -> None:
    """It is told, and takes nothing else with it."""
    users, unknown = local_users([("nobody-here", "a@x.test"), ("root", "b@x.test")], USERS.__getitem__)
    assert unknown == ("nobody-here",)
    assert users == LocalUsers({0: "b@x.test"})
