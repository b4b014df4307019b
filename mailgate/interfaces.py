"""Every interface that a plugin may provide or use.

A method that answers later returns a Deferred. What an interface promises to raise is all that its users handle.
"""

from __future__ import annotations

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import ICredentials
from zope.interface import Attribute, Interface


class IPolicy(Interface):
    """Something that has an opinion at one or more stages of the dialogue."""

    name: str = Attribute("How configuration, logs and the record name this policy.")
    stages: object = Attribute("A frozenset of `mailgate.policy.stage.Stage`: when it is asked.")

    # May also have `after`: the names of policies whose notes of the same stage it wants to see, and `waits_for_dns`:
    # whether it has to look something up, so that clients on loopback can be spared it.

    def decide(request):  # type: ignore[no-untyped-def]  # mypy-zope takes the types from the implementation
        """Give an opinion on a `mailgate.policy.stage.Request`.

        @return: a Verdict, or an awaitable (coroutine or Deferred) of one. It is cancelled when the stage's deadline
            passes or the client goes.
        @raises Exception: whatever it raises, the transaction is deferred with 451 and the log names the policy.
        """


class IPolicyProvider(Interface):
    """A plugin that makes policies. `mailgate.policy.plugin` has two ready ones."""

    name: str = Attribute("What `use` says in the configuration.")
    options: object = Attribute("A frozen dataclass: the keys of the policy's table. Every field has a default.")

    def make(options, services):  # type: ignore[no-untyped-def]
        """Make one policy.

        @param options: an instance of `options`, as configured.
        @param services: a `mailgate.policy.plugin.Services`.
        @return: an IPolicy.
        """


class IDirectory(Interface):
    """Knows the domains, mailboxes and aliases that are ours."""

    def resolve(address):  # type: ignore[no-untyped-def]
        """Find what a recipient address leads to.

        @param address: a `mailgate.envelope.Address`.
        @return: a `mailgate.storage.directory.Answer`, or a Deferred of one where the database has to be asked.
        @raises mailgate.storage.pool.StorageUnavailable: the database can't be asked now.
        """


class IMailboxWriter(Interface):
    """Makes accepted messages ours."""

    def store(message):  # type: ignore[no-untyped-def]
        """Write one `mailgate.storage.records.IncomingMessage`.

        @return: a Deferred of `mailgate.storage.records.Stored`, fired after COMMIT. Cancelling it does not take a
            message back that is already on its way.
        @raises mailgate.storage.pool.StorageUnavailable: whether the message is ours is unknown, or it is not; the
            client has to hear 451.
        """

    def confirm(transaction_ids):  # type: ignore[no-untyped-def]
        """Note that the client went on after the 250 of these transactions: it knows that they are ours."""

    def connection_lost(transaction_ids):  # type: ignore[no-untyped-def]
        """Note that the connection ended with these 250 unconfirmed: the client may send the same again.

        Said of a message that is still being stored as well, as soon as its client has gone, and again once it is
        stored.
        """


class IJournal(Interface):
    """Keeps what happened, behind the reply and never at the cost of accepted mail. Neither method fails or waits."""

    def transaction_ended(record):  # type: ignore[no-untyped-def]
        """Keep one `mailgate.storage.records.TransactionRecord`."""

    def session_ended(record):  # type: ignore[no-untyped-def]
        """Keep one `mailgate.storage.records.SessionRecord`."""


class IAuthenticator(Interface):
    """Checks credentials: the seam behind AUTH (RFC 4954)."""

    def mechanisms(session):  # type: ignore[no-untyped-def]
        """The SASL mechanisms to offer to that `SessionView`, a tuple of str; empty where AUTH is not offered."""

    def begin(mechanism, session):  # type: ignore[no-untyped-def]
        """Start one exchange.

        @return: an object with `step(response)`, called with the client's decoded response (bytes; None where it sent
            no initial response). It returns, or a Deferred fires with, bytes (the next challenge), a str (the
            authenticated account's name), or a `mailgate.smtp.reply.Reply` (refused). It may have `account`, the name
            that the client has given, for the record.
        """


class IAccount(Interface):
    """The avatar of twisted.cred here: who has authenticated."""

    name: str = Attribute("The account's name: the mailbox's address, both parts as keys.")


class IScramProof(ICredentials):
    """Credentials: what a client of SCRAM has sent to prove that it knows a password."""

    username: bytes = Attribute("The account's name in UTF-8.")
    start: object = Attribute("The `mailgate.accounts.checker.ScramStart` that the exchange began with.")
    proof: object = Attribute("A `mailgate.sasl.scram.Proof`.")
    matched: object = Attribute("Set by the checker: the Verifier that the proof matches.")


class IScramChecker(ICredentialsChecker):
    """A checker that can check an IScramProof, and so lets SCRAM be offered."""

    def start_scram(name):  # type: ignore[no-untyped-def]
        """What an exchange begins with.

        @param name: the account's name; of one that does not exist, the answer must look alike, and be the same each
            time.
        @return: a Deferred of a `mailgate.accounts.checker.ScramStart`.
        """


class ICheckerProvider(Interface):
    """A plugin that makes a checker of credentials, to be used instead of mailgate's own."""

    name: str = Attribute("What `authentication.checker` says in the configuration.")

    def make(services):  # type: ignore[no-untyped-def]
        """Make the checker.

        @param services: a `mailgate.policy.plugin.Services`.
        @return: a twisted.cred ICredentialsChecker. With IUsernamePassword among its credentialInterfaces PLAIN and
            LOGIN are offered; with IScramProof, as an IScramChecker, SCRAM too. The avatar id that it gives is the
            account's name, the address of a mailbox.
        """
