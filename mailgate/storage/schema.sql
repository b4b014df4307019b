-- mailgate's schema, version 1.
--
-- The directory (who is ours), the mail (one copy of a message, a delivery for each mailbox), the record (what every
-- session and transaction said and heard), and the few tables that make acceptance exactly once.
-- `mailgate db migrate` applies this to an empty database; migrations/ carries older ones up to it.

CREATE SCHEMA mailgate;
SET search_path = mailgate;

CREATE TABLE schema_version (
    version integer NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

CREATE SEQUENCE instance AS integer MINVALUE 0 MAXVALUE 4095 CYCLE;

-- ---------------------------------------------------------------- directory

CREATE TABLE domain (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,              -- A-form, lower case, no trailing dot; "[192.0.2.1]" for a literal of ours
    is_enabled boolean NOT NULL DEFAULT true,
    catch_all text,                         -- address that takes mail for unknown local parts, or NULL
    plus_separator text NOT NULL DEFAULT '+', -- "" turns plus-addressing off
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE mailbox (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    domain_id integer NOT NULL REFERENCES domain,
    local_part text NOT NULL,               -- case-folded
    is_enabled boolean NOT NULL DEFAULT true,
    quota_octets bigint,                    -- NULL: no bound
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (domain_id, local_part)
);

CREATE TABLE mailbox_usage (                -- apart from mailbox: it changes with every message
    mailbox_id integer PRIMARY KEY REFERENCES mailbox ON DELETE CASCADE,
    uid_validity integer NOT NULL,
    uid_next bigint NOT NULL DEFAULT 1,
    messages bigint NOT NULL DEFAULT 0,
    octets bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 20);

CREATE TABLE alias (
    domain_id integer NOT NULL REFERENCES domain,
    local_part text NOT NULL,               -- case-folded
    target text NOT NULL,                   -- an address, ours or elsewhere
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (domain_id, local_part, target)
);

-- ---------------------------------------------------------------- mail

CREATE TABLE message (
    id bigint PRIMARY KEY,                  -- the id of the transaction that brought it
    received_at timestamptz NOT NULL,
    reverse_path text NOT NULL,             -- "" for the null path
    header_from text,                       -- decoded for people
    subject text,                           -- decoded for people
    header_message_id text,
    trace bytea NOT NULL,                   -- the fields that we put on top
    content bytea,                          -- as received; NULL where it is kept in message_piece
    size_octets bigint NOT NULL,            -- of content
    sha256 bytea NOT NULL                   -- of content
);

CREATE TABLE message_piece (
    message_id bigint NOT NULL REFERENCES message ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
    position integer NOT NULL,
    octets bytea NOT NULL,
    PRIMARY KEY (message_id, position)
);

CREATE TABLE delivery (
    mailbox_id integer NOT NULL REFERENCES mailbox,
    uid bigint NOT NULL,
    message_id bigint NOT NULL REFERENCES message,
    folder text NOT NULL DEFAULT 'INBOX',
    flags text[] NOT NULL DEFAULT '{}',     -- \Seen, \Deleted and so on, as IMAP writes them
    detail text,                            -- behind the plus sign
    delivered_at timestamptz NOT NULL,
    PRIMARY KEY (mailbox_id, uid)
);
CREATE INDEX ON delivery (message_id);

CREATE TABLE queue (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    message_id bigint NOT NULL REFERENCES message,
    recipient text NOT NULL,
    recipient_position integer NOT NULL,
    created_at timestamptz NOT NULL
);
CREATE INDEX ON queue (message_id);

-- ---------------------------------------------------------------- record

CREATE TABLE session (
    id bigint NOT NULL,
    node text NOT NULL,
    listener text NOT NULL,
    role text NOT NULL,
    client_address inet NOT NULL,
    client_port integer NOT NULL,
    server_address inet,
    server_port integer,
    helo text,
    is_esmtp boolean NOT NULL,
    tls_version text,
    tls_cipher text,
    tls_server_name text,
    client_certificate text,
    authenticated text,
    started_at timestamptz NOT NULL,
    ended_at timestamptz NOT NULL,
    ending text NOT NULL,
    transactions integer NOT NULL,
    errors integer NOT NULL,
    dialogue text NOT NULL,
    PRIMARY KEY (id)
) PARTITION BY RANGE (id);

CREATE TABLE transaction (
    id bigint NOT NULL,
    session_id bigint NOT NULL,
    node text NOT NULL,
    listener text NOT NULL,
    client_address inet NOT NULL,
    helo text,
    protocol text NOT NULL,                 -- the word of Received: ESMTPS and its kin
    authenticated text,
    reverse_path text NOT NULL,
    body text,
    is_smtputf8 boolean NOT NULL DEFAULT false,
    ret text,
    envid text,
    disposition text NOT NULL,
    stage text NOT NULL,
    policy text,
    reason text,
    reply text NOT NULL,
    size_octets bigint,
    sha256 bytea,
    started_at timestamptz NOT NULL,
    ended_at timestamptz NOT NULL,
    PRIMARY KEY (id)
) PARTITION BY RANGE (id);

CREATE TABLE recipient (
    transaction_id bigint NOT NULL,
    position integer NOT NULL,
    forward_path text NOT NULL,
    is_accepted boolean NOT NULL,
    reply text NOT NULL,
    notify text[],
    orcpt text,
    PRIMARY KEY (transaction_id, position)
) PARTITION BY RANGE (transaction_id);

-- ---------------------------------------------------------------- exactly once

CREATE TABLE unconfirmed (
    transaction_id bigint PRIMARY KEY,
    resend_key uuid NOT NULL,               -- of client network, envelope and SHA-256
    instance integer NOT NULL,              -- the process that answered 250
    is_lost boolean NOT NULL DEFAULT false, -- the connection ended before the client's next command
    accepted_at timestamptz NOT NULL
);
CREATE INDEX ON unconfirmed (resend_key);
