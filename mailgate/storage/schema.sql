-- mailgate's schema, version 1.
--
-- The directory (who is ours), the accounts (who may send), the mail (one copy of a message, a delivery for each mailbox,
-- a queue row for each recipient elsewhere), the record (what every session, transaction and attempt said and heard), what
-- delivery knows of other hosts, reports, and what makes acceptance exactly once. `mailgate db migrate` applies this
-- to an empty database; migrations/ carries older ones up to it.
--
-- Columns are described by COMMENT ON, so that a person in psql reads them too; indexes by the query they serve.
-- PostgreSQL 15 and newer; the server's encoding is UTF8.

CREATE SCHEMA mailgate;
SET search_path = mailgate;

CREATE TABLE schema_version (
    version integer NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE schema_version IS 'The versions that this database has been brought to; the highest one counts.';
COMMENT ON COLUMN schema_version.version IS 'The number of the schema.';
COMMENT ON COLUMN schema_version.applied_at IS 'When the migration to it was committed.';

CREATE SEQUENCE instance AS integer MINVALUE 0 MAXVALUE 4095 CYCLE;
COMMENT ON SEQUENCE instance IS 'Each process draws its number here when it starts: the middle bits of every id it makes.';

-- ---------------------------------------------------------------- ids

CREATE FUNCTION id_text(id bigint) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN (
    SELECT string_agg(substr('0123456789abcdefghjkmnpqrstvwxyz', ((id >> (60 - 5 * place)) & 31)::integer + 1, 1), ''
                      ORDER BY place)
    FROM generate_series(0, 12) AS place
);
COMMENT ON FUNCTION id_text(bigint) IS 'An id as people see it: 13 characters of Crockford''s base 32 in lower case.';

CREATE FUNCTION id_number(id_text text) RETURNS bigint LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    cleaned text := translate(lower(btrim(btrim(id_text), '[]')), 'ilo', '110');
    number numeric := 0;
BEGIN
    IF cleaned !~ '^[0-9a-hjkmnp-tv-z]{13}$' THEN
        RAISE invalid_text_representation
            USING MESSAGE = format('%L is not an id: an id is 13 letters and digits, as 1m9x2k7q0vb3d', id_text);
    END IF;
    FOR place IN 1..13 LOOP
        number := number * 32 + strpos('0123456789abcdefghjkmnpqrstvwxyz', substr(cleaned, place, 1)) - 1;
    END LOOP;
    RETURN number::bigint;  -- numeric_value_out_of_range where it is too large
END
$$;
COMMENT ON FUNCTION id_number(text) IS 'The id that a person wrote; capitals and the look-alikes i, l, o are understood.';

CREATE FUNCTION id_at(moment timestamptz) RETURNS bigint LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN (floor(extract(epoch FROM moment) * 1000)::bigint - 1577836800000) << 22;
COMMENT ON FUNCTION id_at(timestamptz) IS 'The smallest id of that time: where a partition begins, and how to ask the record by time.';

CREATE FUNCTION id_time(id bigint) RETURNS timestamptz LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN to_timestamp(((id >> 22) + 1577836800000) / 1000.0);
COMMENT ON FUNCTION id_time(bigint) IS 'When that id was made, to the millisecond.';

-- ---------------------------------------------------------------- directory

CREATE TABLE domain (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,  -- the index finds the domain of a recipient
    is_enabled boolean NOT NULL DEFAULT true,
    catch_all text,
    plus_separator text NOT NULL DEFAULT '+' CHECK (length(plus_separator) <= 1),
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE domain IS 'The domains whose mail is ours.';
COMMENT ON COLUMN domain.id IS 'Never used twice.';
COMMENT ON COLUMN domain.name IS 'A-form, lower case, no trailing dot; "[192.0.2.1]" for an address literal of ours.';
COMMENT ON COLUMN domain.is_enabled IS 'False: its recipients are refused for now, nothing is lost.';
COMMENT ON COLUMN domain.catch_all IS 'The address that takes mail for unknown local parts; NULL: they are refused.';
COMMENT ON COLUMN domain.plus_separator IS 'What parts a local part from its detail, "+" as a rule; "": nothing does.';
COMMENT ON COLUMN domain.created_at IS 'When it was added.';

CREATE TABLE mailbox (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    domain_id integer NOT NULL REFERENCES domain,
    local_part text NOT NULL,
    is_enabled boolean NOT NULL DEFAULT true,
    quota_octets bigint CHECK (quota_octets >= 0),
    sending_limit integer CHECK (sending_limit >= 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (domain_id, local_part)  -- the index finds the mailbox of a recipient
);
COMMENT ON TABLE mailbox IS 'Where mail is kept.';
COMMENT ON COLUMN mailbox.id IS 'Never used twice.';
COMMENT ON COLUMN mailbox.domain_id IS 'Its domain; a domain with mailboxes can''t be removed.';
COMMENT ON COLUMN mailbox.local_part IS 'Before the at-sign, case-folded.';
COMMENT ON COLUMN mailbox.is_enabled IS 'False: mail for it is refused.';
COMMENT ON COLUMN mailbox.quota_octets IS 'How many octets it may hold; NULL: no bound.';
COMMENT ON COLUMN mailbox.sending_limit IS 'To how many recipients it may send in a day (UTC); NULL: the configured limits hold.';
COMMENT ON COLUMN mailbox.created_at IS 'When it was added.';

CREATE TABLE mailbox_usage (
    mailbox_id integer PRIMARY KEY REFERENCES mailbox ON DELETE CASCADE,
    uid_validity bigint NOT NULL DEFAULT extract(epoch FROM now())::bigint,
    uid_next bigint NOT NULL DEFAULT 1,
    messages bigint NOT NULL DEFAULT 0,
    octets bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
COMMENT ON TABLE mailbox_usage IS 'What a mailbox holds. Apart from mailbox because it changes with every batch; pages are left mostly empty so that a change stays on its page and touches no index. The writer that has changed the row owns the mailbox''s next UIDs until it commits.';
COMMENT ON COLUMN mailbox_usage.mailbox_id IS 'The mailbox; there is one row for each, made with it.';
COMMENT ON COLUMN mailbox_usage.uid_validity IS 'IMAP''s UIDVALIDITY (RFC 9051 section 2.3.1.1): the second in which the mailbox was made.';
COMMENT ON COLUMN mailbox_usage.uid_next IS 'The UID that the next delivery gets; UIDs only ever grow.';
COMMENT ON COLUMN mailbox_usage.messages IS 'How many deliveries it has.';
COMMENT ON COLUMN mailbox_usage.octets IS 'The sum of their messages'' size_octets; what a quota is held against.';

CREATE FUNCTION mailbox_is_made() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO mailgate.mailbox_usage (mailbox_id) VALUES (NEW.id);
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION mailbox_is_made() IS 'Gives every new mailbox its row in mailbox_usage.';
CREATE TRIGGER mailbox_is_made AFTER INSERT ON mailbox FOR EACH ROW EXECUTE FUNCTION mailbox_is_made();

CREATE TABLE alias (
    domain_id integer NOT NULL REFERENCES domain,
    local_part text NOT NULL,
    target text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (domain_id, local_part, target)  -- finds the targets of a recipient
);
COMMENT ON TABLE alias IS 'Other names for mailboxes and for addresses elsewhere; one row a target.';
COMMENT ON COLUMN alias.domain_id IS 'The domain of the alias.';
COMMENT ON COLUMN alias.local_part IS 'Before the at-sign, case-folded.';
COMMENT ON COLUMN alias.target IS 'An address, ours or elsewhere.';
COMMENT ON COLUMN alias.created_at IS 'When it was added.';

-- ---------------------------------------------------------------- accounts
--
-- An account is a mailbox with a credential: its name is the mailbox's address.

CREATE TABLE secret (
    name text PRIMARY KEY,
    octets bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE secret IS 'What all nodes share and nobody else may know; made by the first node that needs it.';
COMMENT ON COLUMN secret.name IS 'What it is for: "srs" signs rewritten reverse-paths, "scram-salt" gives each account its salt.';
COMMENT ON COLUMN secret.octets IS 'Random.';
COMMENT ON COLUMN secret.created_at IS 'When it was made.';

CREATE TABLE credential (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mailbox_id integer NOT NULL REFERENCES mailbox ON DELETE CASCADE,
    name text NOT NULL,
    selector bytea CHECK ((selector IS NULL) = (name = '')),
    argon2 text NOT NULL,
    scram_sha256 text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz,
    last_used_from inet,
    UNIQUE (mailbox_id, name)  -- finds the passwords of an account
);
COMMENT ON TABLE credential IS 'The passwords of an account: one of its own, and app passwords.';
COMMENT ON COLUMN credential.id IS 'Never used twice.';
COMMENT ON COLUMN credential.mailbox_id IS 'The account.';
COMMENT ON COLUMN credential.name IS '"" for the account''s own password, else the app password''s name.';
COMMENT ON COLUMN credential.selector IS 'The first octets of an app password''s SHA-256, so that one Argon2id tells whether a password is right, however many there are. An app password is random, and far longer than this helps to guess. NULL for the account''s own password.';
COMMENT ON COLUMN credential.argon2 IS 'Argon2id in PHC string format (RFC 9106).';
COMMENT ON COLUMN credential.scram_sha256 IS 'The SCRAM verifier (RFC 5802 section 3): "SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>", each in base64.';
COMMENT ON COLUMN credential.created_at IS 'When the password was set.';
COMMENT ON COLUMN credential.last_used_at IS 'When somebody last authenticated with it; exact to some minutes.';
COMMENT ON COLUMN credential.last_used_from IS 'The client''s address then.';

CREATE FUNCTION credentials_are_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('credential', TG_TABLE_NAME);
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION credentials_are_changed() IS 'Tells running nodes to forget whom they have let in.';
CREATE TRIGGER credentials_are_changed AFTER INSERT OR DELETE OR TRUNCATE OR UPDATE OF argon2, scram_sha256 ON credential
    FOR EACH STATEMENT EXECUTE FUNCTION credentials_are_changed();

CREATE TABLE ban (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('network', 'account')),
    subject text NOT NULL,
    network inet GENERATED ALWAYS AS (CASE kind WHEN 'network' THEN subject::inet END) STORED,
    failures integer NOT NULL DEFAULT 0,
    counted_since timestamptz NOT NULL DEFAULT now(),
    bans integer NOT NULL DEFAULT 0,
    banned_until timestamptz,
    reason text,
    UNIQUE (kind, subject)  -- finds what counts against a client or an account
);
COMMENT ON TABLE ban IS 'Failed authentication, counted for all nodes, and who may not try for a while.';
COMMENT ON COLUMN ban.id IS 'Never used twice.';
COMMENT ON COLUMN ban.kind IS 'network: clients of a network. account: one account, whoever tries; where failures are the reason, except from networks in known_network.';
COMMENT ON COLUMN ban.subject IS '"192.0.2.7/32", "2001:db8::/64" or "alice@example.test"; the account need not exist.';
COMMENT ON COLUMN ban.network IS 'The subject as a network; NULL for an account.';
COMMENT ON COLUMN ban.failures IS 'Failures since counted_since.';
COMMENT ON COLUMN ban.counted_since IS 'When counting began anew.';
COMMENT ON COLUMN ban.bans IS 'How often failures have led to a ban; each doubles the length of the next, until there has been no failure for a day.';
COMMENT ON COLUMN ban.banned_until IS 'Until when nobody is let in, infinity: until somebody lifts it; NULL: not banned.';
COMMENT ON COLUMN ban.reason IS 'Why, in words; NULL where failures are the reason.';
CREATE INDEX ban_banned_until ON ban (banned_until) WHERE banned_until IS NOT NULL;
COMMENT ON INDEX ban_banned_until IS 'Who is banned now?';
CREATE INDEX ban_network ON ban USING gist (network inet_ops) WHERE banned_until IS NOT NULL;
COMMENT ON INDEX ban_network IS 'Is this client in a network that is banned?';
CREATE INDEX ban_counted_since ON ban (counted_since);
COMMENT ON INDEX ban_counted_since IS 'Which counts are so old that they can go?';

CREATE FUNCTION bans_are_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('credential', TG_TABLE_NAME);
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION bans_are_changed() IS 'Tells running nodes to forget whom they have let in, when somebody has made a ban. One that failures have led to need not end what was right a moment before, and an attack would else have every node forget all the time.';
CREATE TRIGGER bans_are_changed AFTER INSERT OR UPDATE OF banned_until, reason ON ban
    FOR EACH ROW WHEN (NEW.reason IS NOT NULL) EXECUTE FUNCTION bans_are_changed();

CREATE TABLE known_network (
    account text NOT NULL,
    network inet NOT NULL,
    last_used_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account, network)  -- finds whether an account has been used from there
);
COMMENT ON TABLE known_network IS 'From where accounts have been used lately: there, guesses of strangers elsewhere do not lock their owners out.';
COMMENT ON COLUMN known_network.account IS 'The account''s name.';
COMMENT ON COLUMN known_network.network IS 'A network as failures are counted by.';
COMMENT ON COLUMN known_network.last_used_at IS 'When somebody last authenticated from there; exact to some minutes.';
CREATE INDEX known_network_last_used_at ON known_network (last_used_at);
COMMENT ON INDEX known_network_last_used_at IS 'Which have not been used for so long that they can go?';

CREATE FUNCTION count_failure(
    p_network text,
    p_account text,
    p_window interval,
    p_network_failures integer,
    p_account_failures integer,
    p_ban interval,
    p_maximum_ban interval
) RETURNS TABLE (kind text, failures integer, is_banned boolean) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    was_banned boolean;
BEGIN
    -- What has not counted for a day goes, a few rows at a time: strangers can make up any number of names.
    DELETE FROM mailgate.ban WHERE id IN (
        SELECT id FROM mailgate.ban
        WHERE counted_since < now() - greatest(p_window, interval '1 day')
          AND coalesce(banned_until < now() - interval '1 day', true)
        ORDER BY counted_since LIMIT 10 FOR UPDATE SKIP LOCKED
    );
    -- What a network had under way when it was banned counts against no account: one burst would else ban it for others.
    -- Always the network before the account, so that two sessions never wait for each other.
    SELECT b.banned_until > now() INTO was_banned
    FROM mailgate.ban b WHERE b.kind = 'network' AND b.subject = p_network FOR UPDATE;
    INSERT INTO mailgate.ban AS b (kind, subject, failures)
    SELECT n.kind, n.subject, 1 FROM (VALUES ('account', p_account), ('network', p_network)) AS n (kind, subject)
    WHERE n.kind = 'network' OR was_banned IS NOT TRUE
    ORDER BY n.kind DESC
    ON CONFLICT (kind, subject) DO UPDATE
    SET failures = CASE WHEN b.counted_since < now() - p_window THEN 1 ELSE b.failures + 1 END,
        counted_since = CASE WHEN b.counted_since < now() - p_window THEN now() ELSE b.counted_since END,
        reason = CASE WHEN b.banned_until > now() THEN b.reason END;
    -- A ban begins a count anew. One that somebody has made, or that lasts longer, stays as it is.
    RETURN QUERY
    WITH counted AS (
        SELECT b.id, b.kind, b.failures,
               b.failures >= CASE b.kind WHEN 'account' THEN p_account_failures ELSE p_network_failures END AS is_enough
        FROM mailgate.ban b
        WHERE (b.kind, b.subject) IN (('account', p_account), ('network', p_network))
          AND (b.kind = 'network' OR was_banned IS NOT TRUE)
    ), banned AS (
        UPDATE mailgate.ban b
        SET failures = 0,
            bans = b.bans + 1,
            banned_until = greatest(b.banned_until, now() + least(p_ban * 2.0 ^ least(b.bans, 20), p_maximum_ban))
        FROM counted c
        WHERE b.id = c.id AND c.is_enough
    )
    SELECT c.kind, c.failures, c.is_enough FROM counted c;
END
$$;
COMMENT ON FUNCTION count_failure(text, text, interval, integer, integer, interval, interval) IS 'Counts a failed authentication against the client''s network and the account, and bans whichever has had so many within the window: for p_ban the first time, twice as long each time after it, p_maximum_ban at most. Gives both counts; that of the network alone where it was banned already.';

CREATE TABLE send_grant (
    mailbox_id integer NOT NULL REFERENCES mailbox ON DELETE CASCADE,
    address text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (mailbox_id, address)  -- finds what an account may send as
);
COMMENT ON TABLE send_grant IS 'Addresses that an account may send as beside its own and its aliases.';
COMMENT ON COLUMN send_grant.mailbox_id IS 'The account.';
COMMENT ON COLUMN send_grant.address IS 'An address, case-folded, or "@example.test" for all of a domain.';
COMMENT ON COLUMN send_grant.created_at IS 'When it was given.';

CREATE TABLE sending_usage (
    mailbox_id integer NOT NULL REFERENCES mailbox ON DELETE CASCADE,
    day date NOT NULL,
    messages integer NOT NULL DEFAULT 0,
    recipients integer NOT NULL DEFAULT 0,
    PRIMARY KEY (mailbox_id, day)  -- finds what an account has used of its day
);
COMMENT ON TABLE sending_usage IS 'How much an account has sent on a day, for all nodes.';
COMMENT ON COLUMN sending_usage.mailbox_id IS 'The account.';
COMMENT ON COLUMN sending_usage.day IS 'The day in UTC.';
COMMENT ON COLUMN sending_usage.messages IS 'Messages accepted from it.';
COMMENT ON COLUMN sending_usage.recipients IS 'Their accepted recipients.';

CREATE TABLE dkim_key (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    domain text NOT NULL,
    selector text NOT NULL,
    algorithm text NOT NULL CHECK (algorithm IN ('rsa', 'ed25519')),
    state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'active', 'retired')),
    sealed_key bytea NOT NULL,
    master_key_id text NOT NULL,
    public_key text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    activated_at timestamptz,
    retired_at timestamptz,
    UNIQUE (domain, selector)  -- a selector is one key
);
COMMENT ON TABLE dkim_key IS 'The keys that mail of a domain is signed with.';
COMMENT ON COLUMN dkim_key.id IS 'Never used twice.';
COMMENT ON COLUMN dkim_key.domain IS 'A-form, lower case: d= of its signatures.';
COMMENT ON COLUMN dkim_key.selector IS 's= of its signatures.';
COMMENT ON COLUMN dkim_key.algorithm IS 'rsa or ed25519.';
COMMENT ON COLUMN dkim_key.state IS 'pending: made, waits for its DNS record. active: signs. retired: signs no longer; its record stays until mail that it signed has arrived.';
COMMENT ON COLUMN dkim_key.sealed_key IS 'The private key (PKCS #8, DER), encrypted with the master key.';
COMMENT ON COLUMN dkim_key.master_key_id IS 'Which master key: the first 16 hexadecimal digits of its SHA-256.';
COMMENT ON COLUMN dkim_key.public_key IS 'p= of its DNS record.';
COMMENT ON COLUMN dkim_key.created_at IS 'When it was made.';
COMMENT ON COLUMN dkim_key.activated_at IS 'Since when it signs; NULL: it does not yet.';
COMMENT ON COLUMN dkim_key.retired_at IS 'Since when it does not any more; NULL: it does, or has not begun.';

-- ---------------------------------------------------------------- mail

CREATE TABLE message (
    id bigint PRIMARY KEY,
    received_at timestamptz NOT NULL,
    reverse_path text NOT NULL,
    header_from text,
    subject text,
    header_message_id text,
    trace bytea NOT NULL,
    content bytea,
    size_octets bigint NOT NULL,
    sha256 bytea NOT NULL CHECK (length(sha256) = 32)
);
COMMENT ON TABLE message IS 'One copy of each accepted message, whatever its recipients.';
COMMENT ON COLUMN message.id IS 'The id of the transaction that brought it.';
COMMENT ON COLUMN message.received_at IS 'When the end of data came.';
COMMENT ON COLUMN message.reverse_path IS 'Without angle brackets; "" for the null path.';
COMMENT ON COLUMN message.header_from IS 'The first From field decoded for people, shortened; NULL where there is none.';
COMMENT ON COLUMN message.subject IS 'The first Subject field decoded for people, shortened; NULL where there is none.';
COMMENT ON COLUMN message.header_message_id IS 'The first Message-ID field as sent, shortened; NULL where there is none.';
COMMENT ON COLUMN message.trace IS 'The fields that we put on top: Return-Path and Received. The message is trace, then content.';
COMMENT ON COLUMN message.content IS 'As received, transparency undone; NULL where it is kept in message_piece.';
COMMENT ON COLUMN message.size_octets IS 'The length of content, or of all its pieces.';
COMMENT ON COLUMN message.sha256 IS 'SHA-256 over content.';

CREATE TABLE message_piece (
    message_id bigint NOT NULL REFERENCES message ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
    position integer NOT NULL CHECK (position >= 0),
    octets bytea NOT NULL,
    PRIMARY KEY (message_id, position)  -- reads a large message in order
);
COMMENT ON TABLE message_piece IS 'The content of messages too large to be handled in one piece. Pieces are written first and the message last, in one transaction.';
COMMENT ON COLUMN message_piece.message_id IS 'The message.';
COMMENT ON COLUMN message_piece.position IS '0, 1, 2 and so on; the content is the pieces in this order.';
COMMENT ON COLUMN message_piece.octets IS 'The piece.';

-- PostgreSQL's own compression (pglz) would be most of the CPU time of a large message. lz4 is nearly free, but not
-- every server is built with it.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_settings WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals)) THEN
        ALTER TABLE mailgate.message ALTER COLUMN content SET COMPRESSION lz4;
        ALTER TABLE mailgate.message_piece ALTER COLUMN octets SET COMPRESSION lz4;
    ELSE
        ALTER TABLE mailgate.message ALTER COLUMN content SET STORAGE EXTERNAL;
        ALTER TABLE mailgate.message_piece ALTER COLUMN octets SET STORAGE EXTERNAL;
    END IF;
END
$$;

CREATE TABLE delivery (
    mailbox_id integer NOT NULL REFERENCES mailbox_usage,
    uid bigint NOT NULL,
    message_id bigint NOT NULL REFERENCES message,
    folder text NOT NULL DEFAULT 'INBOX',
    flags text[] NOT NULL DEFAULT '{}',
    detail text,
    delivered_at timestamptz NOT NULL,
    PRIMARY KEY (mailbox_id, uid)  -- lists a mailbox in order, finds one delivery
);
COMMENT ON TABLE delivery IS 'A message in a mailbox.';
COMMENT ON COLUMN delivery.mailbox_id IS 'The mailbox, by its row in mailbox_usage: whoever delivers has that row locked already, so the check costs no lock on mailbox. A mailbox with deliveries can''t be removed.';
COMMENT ON COLUMN delivery.uid IS 'IMAP''s UID: unique in the mailbox over all folders, and growing.';
COMMENT ON COLUMN delivery.message_id IS 'The message.';
COMMENT ON COLUMN delivery.folder IS '"INBOX", "Junk", "Trash" or another name; decides how long it is kept.';
COMMENT ON COLUMN delivery.flags IS '\Seen, \Flagged and so on, as IMAP writes them.';
COMMENT ON COLUMN delivery.detail IS 'What stood behind the plus sign in the forward-path; NULL where nothing did.';
COMMENT ON COLUMN delivery.delivered_at IS 'When it came into the mailbox.';
CREATE INDEX delivery_message ON delivery (message_id);
COMMENT ON INDEX delivery_message IS 'Is this message still in a mailbox? Who has it?';
CREATE INDEX delivery_expiry ON delivery (folder, delivered_at) WHERE folder <> 'INBOX';
COMMENT ON INDEX delivery_expiry IS 'Which deliveries in Junk or Trash are older than they are kept? INBOX is left out: the index costs accepted mail nothing.';

CREATE TABLE queue (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    message_id bigint NOT NULL REFERENCES message,
    recipient text NOT NULL,
    recipient_position integer,
    domain text NOT NULL CHECK (domain <> ''),  -- turns begin behind ''
    reverse_path text NOT NULL,
    sender text NOT NULL CHECK (sender <> ''),  -- likewise
    notify text[],
    orcpt text,
    ret text,
    envid text,
    is_eight_bit boolean NOT NULL DEFAULT false,
    is_smtputf8 boolean NOT NULL DEFAULT false,
    requires_tls boolean NOT NULL DEFAULT false,
    tls_is_optional boolean NOT NULL DEFAULT false,
    deliver_by timestamptz,
    deliver_by_mode text CHECK (deliver_by_mode IN ('N', 'R')),
    size_octets bigint NOT NULL,
    done text CHECK (done IN ('delivered', 'expanded', 'returned')),
    created_at timestamptz NOT NULL,
    starts_at timestamptz NOT NULL,
    due_at timestamptz NOT NULL,
    is_ready boolean NOT NULL,
    is_held boolean NOT NULL DEFAULT false,
    delayed_at timestamptz,
    leased_by integer,
    claim bigint,
    leased_until timestamptz,
    attempts integer NOT NULL DEFAULT 0,
    last_attempt_at timestamptz,
    last_status text,
    last_reply text,
    CHECK (num_nonnulls(leased_by, claim, leased_until) IN (0, 3))
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
COMMENT ON TABLE queue IS 'Mail for elsewhere: a row for each recipient that is still to be served. It is written with the message, and goes when the next host has taken it over or it has failed.';
COMMENT ON COLUMN queue.id IS 'Grows with time.';
COMMENT ON COLUMN queue.message_id IS 'The message.';
COMMENT ON COLUMN queue.recipient IS 'The address elsewhere.';
COMMENT ON COLUMN queue.recipient_position IS 'recipient.position of the forward-path that led there; NULL for mail of our own.';
COMMENT ON COLUMN queue.domain IS 'Its domain in A-form and lower case, or an address literal in brackets; "-" where nothing is to be sent any more.';
COMMENT ON COLUMN queue.reverse_path IS 'As it is sent out: rewritten where an alias forwards; "" for the null path.';
COMMENT ON COLUMN queue.sender IS 'Who shares the queue fairly: the account, "client:" and its network where none authenticated, "alias:" and the forward-path for forwards, "mailgate" for our own notices.';
COMMENT ON COLUMN queue.notify IS 'The NOTIFY parameter to act on (RFC 3461 section 4.1); NULL where it was not given.';
COMMENT ON COLUMN queue.orcpt IS 'The ORCPT parameter, decoded; NULL where it was not given.';
COMMENT ON COLUMN queue.ret IS 'The RET parameter: FULL or HDRS; NULL where it was not given.';
COMMENT ON COLUMN queue.envid IS 'The ENVID parameter, decoded; NULL where it was not given.';
COMMENT ON COLUMN queue.is_eight_bit IS 'Whether its content has octets over 127.';
COMMENT ON COLUMN queue.is_smtputf8 IS 'Whether it needs SMTPUTF8 (RFC 6531): an address or the header has octets over 127.';
COMMENT ON COLUMN queue.requires_tls IS 'REQUIRETLS was asked (RFC 8689).';
COMMENT ON COLUMN queue.tls_is_optional IS '"TLS-Required: No" was asked (RFC 8689 section 5).';
COMMENT ON COLUMN queue.deliver_by IS 'By when it is to be delivered (RFC 2852); NULL where nothing was asked.';
COMMENT ON COLUMN queue.deliver_by_mode IS 'N: tell when it is late. R: give it up then.';
COMMENT ON COLUMN queue.size_octets IS 'Of trace and content.';
COMMENT ON COLUMN queue.done IS 'Nothing is to be sent, the sender only wants to know what became of the recipient: delivered, to a mailbox of ours; expanded, to what an alias leads to; returned, because an operator has given it up. NULL: it is to be sent.';
COMMENT ON COLUMN queue.created_at IS 'When the message was accepted.';
COMMENT ON COLUMN queue.starts_at IS 'Since when it may be tried: since it was accepted, or until when its sender wanted it held (RFC 4865). Notice of delay and giving up count from here.';
COMMENT ON COLUMN queue.due_at IS 'When the next attempt is due.';
COMMENT ON COLUMN queue.is_ready IS 'Whether due_at has come, as far as somebody has looked.';
COMMENT ON COLUMN queue.is_held IS 'True: an operator has stopped it.';
COMMENT ON COLUMN queue.delayed_at IS 'When it had waited so long that its sender was told, if that was wanted; NULL: it has not.';
COMMENT ON COLUMN queue.leased_by IS 'The instance that is at it; NULL: none.';
COMMENT ON COLUMN queue.claim IS 'Which of the claims of that instance took it: what an earlier one brought does not count any more.';
COMMENT ON COLUMN queue.leased_until IS 'Until when that instance may be at it; then another takes it over.';
COMMENT ON COLUMN queue.attempts IS 'How many attempts were made.';
COMMENT ON COLUMN queue.last_attempt_at IS 'When the last attempt ended.';
COMMENT ON COLUMN queue.last_status IS 'The status code that it came to (RFC 3463).';
COMMENT ON COLUMN queue.last_reply IS 'What it came to, as one line.';
CREATE INDEX queue_message ON queue (message_id);
COMMENT ON INDEX queue_message IS 'Does this message still wait to be sent?';
CREATE INDEX queue_ready ON queue (sender, domain, id) WHERE is_ready AND NOT is_held AND leased_by IS NULL;
COMMENT ON INDEX queue_ready IS 'Which senders have mail to be sent, where to, and which is it? Each question is one step in the index, however much lies between.';
CREATE INDEX queue_waiting ON queue (due_at) WHERE NOT is_ready AND NOT is_held AND leased_by IS NULL;
COMMENT ON INDEX queue_waiting IS 'What is due again?';
CREATE INDEX queue_not_delayed ON queue (starts_at) WHERE delayed_at IS NULL AND NOT is_held AND leased_by IS NULL;
COMMENT ON INDEX queue_not_delayed IS 'Whose senders are to be told of a delay?';
CREATE INDEX queue_delayed ON queue (starts_at) WHERE delayed_at IS NOT NULL AND NOT is_held AND leased_by IS NULL;
COMMENT ON INDEX queue_delayed IS 'What is to be given up?';
CREATE INDEX queue_deliver_by ON queue (deliver_by) WHERE deliver_by IS NOT NULL AND NOT is_held AND leased_by IS NULL;
COMMENT ON INDEX queue_deliver_by IS 'What was to be delivered by now?';
CREATE INDEX queue_leased ON queue (leased_by, claim) WHERE leased_by IS NOT NULL;
COMMENT ON INDEX queue_leased IS 'What is an instance at? Which leases have ended?';

CREATE TABLE destination (
    name text PRIMARY KEY,  -- finds whether mail may be sent there
    is_paused boolean NOT NULL DEFAULT false,
    backed_off_until timestamptz,
    failures integer NOT NULL DEFAULT 0,
    reason text,
    changed_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE destination IS 'Destinations that are left alone: paused by an operator, or backed off because they are in trouble. All nodes heed it.';
COMMENT ON COLUMN destination.name IS 'A domain as in queue.domain, or the smarthost that its mail goes to, as the route names it.';
COMMENT ON COLUMN destination.is_paused IS 'Whether an operator has paused it.';
COMMENT ON COLUMN destination.backed_off_until IS 'Until when nothing is tried; NULL: it is well.';
COMMENT ON COLUMN destination.failures IS 'How often in a row it was in trouble.';
COMMENT ON COLUMN destination.reason IS 'The last trouble, or the operator''s words.';
COMMENT ON COLUMN destination.changed_at IS 'When this last changed.';

CREATE TABLE suppression (
    address text PRIMARY KEY,
    failures integer NOT NULL DEFAULT 1,
    suppressed_until timestamptz,
    last_reply text NOT NULL,
    last_failed_at timestamptz NOT NULL
);
COMMENT ON TABLE suppression IS 'Addresses elsewhere that failed for good, and are refused for a while where configuration says so.';
COMMENT ON COLUMN suppression.address IS 'The address, its domain in A-form and lower case.';
COMMENT ON COLUMN suppression.failures IS 'How often it failed for good, never so long apart as an address is refused.';
COMMENT ON COLUMN suppression.suppressed_until IS 'Until when it is refused; NULL: it is only counted.';
COMMENT ON COLUMN suppression.last_reply IS 'Why it failed last.';
COMMENT ON COLUMN suppression.last_failed_at IS 'When it failed last.';

CREATE TABLE mta_sts_policy (
    domain text PRIMARY KEY,
    policy_id text NOT NULL,
    mode text NOT NULL CHECK (mode IN ('enforce', 'testing', 'none')),
    mx text[] NOT NULL,
    policy_text text NOT NULL,
    fetched_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
);
COMMENT ON TABLE mta_sts_policy IS 'MTA-STS policies as fetched (RFC 8461).';
COMMENT ON COLUMN mta_sts_policy.domain IS 'The policy domain, A-form.';
COMMENT ON COLUMN mta_sts_policy.policy_id IS 'id= of the TXT record it was fetched for.';
COMMENT ON COLUMN mta_sts_policy.mode IS 'enforce, testing or none.';
COMMENT ON COLUMN mta_sts_policy.mx IS 'The names that may be MX hosts, "*.example.test" included.';
COMMENT ON COLUMN mta_sts_policy.policy_text IS 'The policy as fetched.';
COMMENT ON COLUMN mta_sts_policy.fetched_at IS 'When it was fetched.';
COMMENT ON COLUMN mta_sts_policy.expires_at IS 'fetched_at and max_age.';

CREATE TABLE tls_result (
    day date NOT NULL,
    digest bytea NOT NULL CHECK (length(digest) = 32),
    policy_domain text NOT NULL,
    policy_type text NOT NULL CHECK (policy_type IN ('tlsa', 'sts', 'no-policy-found')),
    policy text NOT NULL,
    mx_host text NOT NULL,
    result_type text NOT NULL,
    sending_address text NOT NULL,
    receiving_address text NOT NULL,
    sessions bigint NOT NULL,
    reason text NOT NULL DEFAULT '',
    PRIMARY KEY (day, digest)  -- adds to a count; finds a day's
);
COMMENT ON TABLE tls_result IS 'How TLS with other hosts went, counted for reports (RFC 8460).';
COMMENT ON COLUMN tls_result.day IS 'The day in UTC.';
COMMENT ON COLUMN tls_result.digest IS 'SHA-256 of all that is counted apart: what follows up to reason, without sessions.';
COMMENT ON COLUMN tls_result.policy_domain IS 'The domain whose policy applied: the recipient''s; of tlsa the name under which the TLSA records are.';
COMMENT ON COLUMN tls_result.policy_type IS 'tlsa: DANE. sts: MTA-STS. no-policy-found: neither (RFC 8460 section 4.2).';
COMMENT ON COLUMN tls_result.policy IS 'The policy as text: TLSA records or the lines of the MTA-STS policy; "" where there was none.';
COMMENT ON COLUMN tls_result.mx_host IS 'The host; "" where a policy could not be fetched, before any host.';
COMMENT ON COLUMN tls_result.result_type IS '"" for success, else a result type of RFC 8460 section 4.3.';
COMMENT ON COLUMN tls_result.sending_address IS 'Our address; "" for successes.';
COMMENT ON COLUMN tls_result.receiving_address IS 'The host''s address; "" for successes.';
COMMENT ON COLUMN tls_result.sessions IS 'How many.';
COMMENT ON COLUMN tls_result.reason IS 'failure-reason-code: more words; "" where there are none.';

CREATE FUNCTION message_octets(id bigint) RETURNS bytea LANGUAGE sql STABLE STRICT PARALLEL SAFE
RETURN (
    SELECT m.trace || coalesce(
        m.content,
        (SELECT string_agg(p.octets, ''::bytea ORDER BY p.position) FROM mailgate.message_piece p
         WHERE p.message_id = m.id))
    FROM mailgate.message m WHERE m.id = message_octets.id
);
COMMENT ON FUNCTION message_octets(bigint) IS 'The whole message: trace and content. NULL where there is none.';

-- ---------------------------------------------------------------- record
--
-- Partitioned by id, which is by time: a month is dropped in one step when it is older than the record is kept. The
-- default partitions are a safety net: an insert never fails because a partition is missing.

CREATE TABLE session (
    id bigint PRIMARY KEY,  -- finds one session; dates it
    node text NOT NULL,
    listener text NOT NULL,
    role text NOT NULL CHECK (role IN ('mx', 'submission')),
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
    ending text NOT NULL
        CHECK (ending IN ('quit', 'lost', 'timeout', 'limit', 'refused', 'shutdown', 'tls-failed')),
    transactions integer NOT NULL,
    errors integer NOT NULL,
    dialogue text NOT NULL,
    results jsonb,
    verdicts jsonb
) PARTITION BY RANGE (id);
CREATE TABLE session_default PARTITION OF session DEFAULT;
COMMENT ON TABLE session IS 'Every ended connection.';
COMMENT ON TABLE session_default IS 'Sessions for whose month no partition was made in time; empty as a rule.';
COMMENT ON COLUMN session.id IS 'Time-ordered; see id_text and id_at.';
COMMENT ON COLUMN session.node IS 'The node that served it.';
COMMENT ON COLUMN session.listener IS 'The listener''s name in the configuration.';
COMMENT ON COLUMN session.role IS 'What the listener is for: mx (mail from other hosts) or submission (mail from our users).';
COMMENT ON COLUMN session.client_address IS 'The client, from the PROXY header where one was trusted.';
COMMENT ON COLUMN session.client_port IS 'Its port; 0 where unknown.';
COMMENT ON COLUMN session.server_address IS 'The address it connected to; NULL where unknown.';
COMMENT ON COLUMN session.server_port IS 'The port it connected to.';
COMMENT ON COLUMN session.helo IS 'The client''s last HELO or EHLO argument, as sent; NULL: it never greeted.';
COMMENT ON COLUMN session.is_esmtp IS 'Whether that was EHLO.';
COMMENT ON COLUMN session.tls_version IS '"TLSv1.3"; NULL: the session was plain.';
COMMENT ON COLUMN session.tls_cipher IS 'The cipher''s name.';
COMMENT ON COLUMN session.tls_server_name IS 'The name that the client asked for (SNI).';
COMMENT ON COLUMN session.client_certificate IS 'The common name of a verified client certificate.';
COMMENT ON COLUMN session.authenticated IS 'The account that authenticated.';
COMMENT ON COLUMN session.started_at IS 'When the connection came.';
COMMENT ON COLUMN session.ended_at IS 'When it ended.';
COMMENT ON COLUMN session.ending IS 'quit: the client said so. lost: it went without. timeout: it was too slow. limit: too many errors or transactions. refused: turned away at once. shutdown: we stopped. tls-failed: the handshake did.';
COMMENT ON COLUMN session.transactions IS 'How many transactions it began.';
COMMENT ON COLUMN session.errors IS 'How many commands got 4xx or 5xx.';
COMMENT ON COLUMN session.dialogue IS 'Commands and replies, a line each, "C: " and "S: "; shortened; no credentials, no message data.';
COMMENT ON COLUMN session.results IS 'What was found at CONNECT and HELO, as transaction.results, where no transaction has it: the client was refused there, or began none. Else NULL.';
COMMENT ON COLUMN session.verdicts IS 'What policies said there, as transaction.verdicts; what refused the client is the last one.';
CREATE INDEX session_refused ON session (id) WHERE ending IN ('timeout', 'limit', 'refused') OR verdicts IS NOT NULL;
COMMENT ON INDEX session_refused IS 'The newest refusals since a time.';

CREATE TABLE transaction (
    id bigint PRIMARY KEY,  -- finds one transaction; dates it
    session_id bigint NOT NULL,
    node text NOT NULL,
    listener text NOT NULL,
    client_address inet NOT NULL,
    helo text,
    protocol text NOT NULL CHECK (protocol IN (
        'SMTP', 'ESMTP', 'ESMTPS', 'ESMTPA', 'ESMTPSA', 'UTF8SMTP', 'UTF8SMTPS', 'UTF8SMTPA', 'UTF8SMTPSA')),
    authenticated text,
    reverse_path text NOT NULL,
    body text CHECK (body IN ('7BIT', '8BITMIME')),
    is_smtputf8 boolean NOT NULL DEFAULT false,
    ret text CHECK (ret IN ('FULL', 'HDRS')),
    envid text,
    disposition text NOT NULL CHECK (disposition IN (
        'accepted', 'quarantined', 'discarded', 'refused', 'deferred', 'abandoned')),
    stage text NOT NULL CHECK (stage IN ('connect', 'helo', 'mail', 'rcpt', 'data', 'end_of_data')),
    policy text,
    reason text,
    reply text NOT NULL,
    size_octets bigint,
    sha256 bytea,
    started_at timestamptz NOT NULL,
    ended_at timestamptz NOT NULL,
    results jsonb,
    verdicts jsonb
) PARTITION BY RANGE (id);
CREATE TABLE transaction_default PARTITION OF transaction DEFAULT;
COMMENT ON TABLE transaction IS 'Every transaction, MAIL to its end: accepted ones are written with their message, before the 250; all others behind the reply.';
COMMENT ON TABLE transaction_default IS 'Transactions for whose month no partition was made in time; empty as a rule.';
COMMENT ON COLUMN transaction.id IS 'Time-ordered; message.id where it brought one.';
COMMENT ON COLUMN transaction.session_id IS 'Its session, whose row is written when it ends.';
COMMENT ON COLUMN transaction.node IS 'The node that served it.';
COMMENT ON COLUMN transaction.listener IS 'The listener''s name in the configuration.';
COMMENT ON COLUMN transaction.client_address IS 'The client.';
COMMENT ON COLUMN transaction.helo IS 'The client''s HELO or EHLO argument, as sent.';
COMMENT ON COLUMN transaction.protocol IS 'The word of the Received field: S for TLS, A for authenticated (RFC 3848), UTF8SMTP for SMTPUTF8 (RFC 6531).';
COMMENT ON COLUMN transaction.authenticated IS 'The account that authenticated.';
COMMENT ON COLUMN transaction.reverse_path IS 'Without angle brackets; "" for the null path.';
COMMENT ON COLUMN transaction.body IS 'The BODY parameter of MAIL: 7BIT or 8BITMIME (RFC 6152); NULL where it was not given.';
COMMENT ON COLUMN transaction.is_smtputf8 IS 'Whether MAIL had SMTPUTF8 (RFC 6531).';
COMMENT ON COLUMN transaction.ret IS 'The RET parameter of MAIL: FULL or HDRS, what a bounce returns (RFC 3461 section 4.3).';
COMMENT ON COLUMN transaction.envid IS 'The ENVID parameter of MAIL, decoded (RFC 3461 section 4.4).';
COMMENT ON COLUMN transaction.disposition IS 'accepted: in mailboxes or the queue. quarantined: in Junk. discarded: answered 250 and not kept, because a policy said so. refused: 5xx. deferred: 4xx. abandoned: the client left, or began anew, before the end of data.';
COMMENT ON COLUMN transaction.stage IS 'Where it ended: connect, helo, mail, rcpt, data (before 354 or the first BDAT), end_of_data.';
COMMENT ON COLUMN transaction.policy IS 'The policy that decided, by its name in the configuration; NULL where none objected.';
COMMENT ON COLUMN transaction.reason IS 'Why, in words for us.';
COMMENT ON COLUMN transaction.reply IS 'The deciding reply as one line; "" where the client left.';
COMMENT ON COLUMN transaction.size_octets IS 'Of the content, where it came.';
COMMENT ON COLUMN transaction.sha256 IS 'Of the content, where it came whole.';
COMMENT ON COLUMN transaction.started_at IS 'When MAIL came.';
COMMENT ON COLUMN transaction.ended_at IS 'When it ended; for accepted ones, when the end of data came.';
COMMENT ON COLUMN transaction.results IS 'What authentication found, an array of objects in the order in which it was found; NULL where nothing was. "kind" is spf, dkim, arc, dmarc, author-fault, trusted-forwarder or override; the other keys are the fields of mailgate.auth.results, left out where they have their defaults. "answers" are the dns_answer rows that it rests on, "recipient" is there where it concerns one only: recipient.position.';
COMMENT ON COLUMN transaction.verdicts IS 'What policies said where that was more than to go on: an array of objects with "stage", "policy", "fingerprint" (of policy_configuration), "verdict" (accept, reject, defer, quarantine or discard), "reason", and "recipient" as above; NULL where there is none. The one that decided is transaction.policy.';
CREATE INDEX transaction_refused ON transaction (id) WHERE disposition IN ('refused', 'deferred');
COMMENT ON INDEX transaction_refused IS 'The newest refusals since a time.';

CREATE TABLE recipient (
    transaction_id bigint NOT NULL,
    position integer NOT NULL,
    forward_path text NOT NULL,
    is_accepted boolean NOT NULL,
    reply text NOT NULL,
    notify text[] CHECK (notify <@ '{NEVER,SUCCESS,FAILURE,DELAY}'),
    orcpt text,
    disposition text CHECK (disposition IN ('quarantined', 'discarded')),
    policy text,
    reason text,
    PRIMARY KEY (transaction_id, position)  -- the recipients of a transaction
) PARTITION BY RANGE (transaction_id);
CREATE TABLE recipient_default PARTITION OF recipient DEFAULT;
COMMENT ON TABLE recipient IS 'Every RCPT of a transaction and its fate.';
COMMENT ON TABLE recipient_default IS 'Recipients for whose month no partition was made in time; empty as a rule.';
COMMENT ON COLUMN recipient.transaction_id IS 'The transaction.';
COMMENT ON COLUMN recipient.position IS '0 for the first RCPT, and so on, refused ones included.';
COMMENT ON COLUMN recipient.forward_path IS 'As sent, without angle brackets.';
COMMENT ON COLUMN recipient.is_accepted IS 'Whether RCPT got 250.';
COMMENT ON COLUMN recipient.reply IS 'The reply to RCPT as one line.';
COMMENT ON COLUMN recipient.notify IS 'The NOTIFY parameter (RFC 3461 section 4.1): NEVER, or some of SUCCESS, FAILURE, DELAY; NULL where it was not given.';
COMMENT ON COLUMN recipient.orcpt IS 'The ORCPT parameter, decoded (RFC 3461 section 4.2).';
COMMENT ON COLUMN recipient.disposition IS 'What became of this recipient''s copy, where it is not what became of the message: quarantined (in Junk) or discarded (not kept). Else NULL.';
COMMENT ON COLUMN recipient.policy IS 'The policy that refused this recipient, or whose wish that disposition is; else NULL.';
COMMENT ON COLUMN recipient.reason IS 'Why that disposition, in words for us; NULL for refused ones, whose reply says it.';
CREATE INDEX recipient_refused ON recipient (transaction_id) WHERE NOT is_accepted;
COMMENT ON INDEX recipient_refused IS 'The newest refusals since a time.';

CREATE TABLE attempt (
    transaction_id bigint NOT NULL,
    queue_id bigint NOT NULL,
    recipient text NOT NULL,
    attempted_at timestamptz NOT NULL,
    duration_seconds real NOT NULL,
    node text NOT NULL,
    result text NOT NULL CHECK (result IN ('delivered', 'deferred', 'failed', 'expired')),
    status text NOT NULL,
    reply text NOT NULL,
    is_remote boolean NOT NULL,
    is_ambiguous boolean NOT NULL DEFAULT false,
    host text,
    address text,
    port integer,
    tls_version text,
    tls_cipher text,
    tls_is_verified boolean,
    tls_source text,
    PRIMARY KEY (transaction_id, queue_id, attempted_at)  -- what was tried for a message; once, though it be written twice
) PARTITION BY RANGE (transaction_id);
CREATE TABLE attempt_default PARTITION OF attempt DEFAULT;
COMMENT ON TABLE attempt IS 'Every attempt to serve a recipient elsewhere, and what came of it.';
COMMENT ON TABLE attempt_default IS 'Attempts for whose month no partition was made in time; empty as a rule.';
COMMENT ON COLUMN attempt.transaction_id IS 'The message, by the transaction that brought it.';
COMMENT ON COLUMN attempt.queue_id IS 'queue.id, which may be gone.';
COMMENT ON COLUMN attempt.recipient IS 'The address.';
COMMENT ON COLUMN attempt.attempted_at IS 'When it began.';
COMMENT ON COLUMN attempt.duration_seconds IS 'How long it took.';
COMMENT ON COLUMN attempt.node IS 'The node that made it.';
COMMENT ON COLUMN attempt.result IS 'delivered: the host has taken it over. deferred: to be tried again. failed: for good. expired: given up.';
COMMENT ON COLUMN attempt.status IS 'The status code (RFC 3463).';
COMMENT ON COLUMN attempt.reply IS 'The host''s reply as one line, or our words.';
COMMENT ON COLUMN attempt.is_remote IS 'Whether the host said that.';
COMMENT ON COLUMN attempt.is_ambiguous IS 'Whether the connection was lost behind the final dot, so that the host may have it all the same.';
COMMENT ON COLUMN attempt.host IS 'The host''s name; NULL where none was reached.';
COMMENT ON COLUMN attempt.address IS 'Its address.';
COMMENT ON COLUMN attempt.port IS 'Its port.';
COMMENT ON COLUMN attempt.tls_version IS 'NULL: in plain text.';
COMMENT ON COLUMN attempt.tls_cipher IS 'As OpenSSL names it.';
COMMENT ON COLUMN attempt.tls_is_verified IS 'Whether the host''s certificate was matched.';
COMMENT ON COLUMN attempt.tls_source IS 'Who asked for TLS: default, config, dane, mta-sts or requiretls.';

CREATE TABLE dns_answer (
    digest bigint PRIMARY KEY,  -- finds what a result names
    name text NOT NULL,
    type text NOT NULL,
    outcome text NOT NULL CHECK (outcome IN ('answer', 'nodata', 'nxdomain', 'failure')),
    rcode text NOT NULL,
    records text[] NOT NULL,
    ttl_seconds integer NOT NULL,
    is_authenticated boolean NOT NULL,
    answered_at timestamptz NOT NULL,
    detail text
);
COMMENT ON TABLE dns_answer IS 'The DNS answers that results rest on, each once, however many transactions used it from the cache. Written with the first of them. Kept for as long as the record.';
COMMENT ON COLUMN dns_answer.digest IS 'The first 64 bits of SHA-256 over all else.';
COMMENT ON COLUMN dns_answer.name IS 'The name that was asked for, in A-form, lower case, without the final dot.';
COMMENT ON COLUMN dns_answer.type IS 'The type that was asked for: "TXT".';
COMMENT ON COLUMN dns_answer.outcome IS 'answer: there are records. nodata: the name exists, without records of the type. nxdomain: the name does not exist. failure: nobody answered in time, or the servers failed.';
COMMENT ON COLUMN dns_answer.rcode IS 'As the server said it: "NOERROR"; "" where none did.';
COMMENT ON COLUMN dns_answer.records IS 'Each as a zone file has it, TXT without its quotes and other octets than printable ASCII as \DDD; shortened where they are very long.';
COMMENT ON COLUMN dns_answer.ttl_seconds IS 'How long it held when it came.';
COMMENT ON COLUMN dns_answer.is_authenticated IS 'Whether a trusted resolver said that DNSSEC proves it (the AD bit).';
COMMENT ON COLUMN dns_answer.answered_at IS 'When it came.';
COMMENT ON COLUMN dns_answer.detail IS 'Why it failed; NULL where there is nothing to say.';
CREATE INDEX dns_answer_answered_at ON dns_answer (answered_at);
COMMENT ON INDEX dns_answer_answered_at IS 'Which answers are older than the record is kept?';

CREATE TABLE policy_configuration (
    fingerprint text PRIMARY KEY,  -- finds what a verdict names
    policy text NOT NULL,
    options jsonb NOT NULL,
    first_seen_at timestamptz NOT NULL
);
COMMENT ON TABLE policy_configuration IS 'How policies were configured when they gave the verdicts in the record: written when a node starts with a configuration, or reloads it.';
COMMENT ON COLUMN policy_configuration.fingerprint IS 'The first 12 hexadecimal digits of SHA-256 over policy and options.';
COMMENT ON COLUMN policy_configuration.policy IS 'The policy as `use` names it in the configuration: "dmarc".';
COMMENT ON COLUMN policy_configuration.options IS 'All its options, those with their default included.';
COMMENT ON COLUMN policy_configuration.first_seen_at IS 'When a node first had it so.';

-- Results of a few signatures make a long row, for which the same holds as for a message's content.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_settings WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals)) THEN
        ALTER TABLE mailgate.transaction ALTER COLUMN results SET COMPRESSION lz4;
        ALTER TABLE mailgate.transaction_default ALTER COLUMN results SET COMPRESSION lz4;
        ALTER TABLE mailgate.dns_answer ALTER COLUMN records SET COMPRESSION lz4;
    END IF;
END
$$;

-- ---------------------------------------------------------------- partitions of the record

CREATE FUNCTION create_partitions(since timestamptz, months_ahead integer) RETURNS SETOF text
LANGUAGE plpgsql AS $$
DECLARE
    parent text;
    starts timestamp;
    first_id bigint;
    end_id bigint;
    child text;
BEGIN
    FOR ahead IN 0..months_ahead LOOP
        starts := date_trunc('month', since AT TIME ZONE 'UTC') + make_interval(months => ahead);
        first_id := mailgate.id_at(starts AT TIME ZONE 'UTC');
        end_id := mailgate.id_at((starts + interval '1 month') AT TIME ZONE 'UTC');
        FOREACH parent IN ARRAY ARRAY['session', 'transaction', 'recipient', 'attempt'] LOOP
            child := parent || to_char(starts, '_YYYY_MM');
            CONTINUE WHEN to_regclass(format('mailgate.%I', child)) IS NOT NULL;
            -- Attached rather than made as a partition: that leaves those who write to other partitions alone. What the
            -- default partition has taken of the month moves.
            EXECUTE format('CREATE TABLE mailgate.%I (LIKE mailgate.%I INCLUDING ALL)', child, parent);
            EXECUTE format('COMMENT ON TABLE mailgate.%I IS %L', child,
                           format('The rows of %s from %s.', parent, to_char(starts, 'FMMonth YYYY')));
            EXECUTE format('WITH moved AS (DELETE FROM mailgate.%1$I WHERE %2$I >= %3$s AND %2$I < %4$s RETURNING *)'
                           ' INSERT INTO mailgate.%5$I SELECT * FROM moved',
                           parent || '_default', CASE WHEN parent IN ('recipient', 'attempt') THEN 'transaction_id' ELSE 'id' END,
                           first_id, end_id, child);
            EXECUTE format('ALTER TABLE mailgate.%I ATTACH PARTITION mailgate.%I FOR VALUES FROM (%s) TO (%s)',
                           parent, child, first_id, end_id);
            RETURN NEXT child;
        END LOOP;
    END LOOP;
END
$$;
COMMENT ON FUNCTION create_partitions(timestamptz, integer) IS 'Makes the missing partitions of the record for that month and so many months after it; gives the names of the new ones.';

CREATE FUNCTION drop_partitions(before timestamptz) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
    child text;
BEGIN
    FOR child IN
        SELECT c.relname
        FROM pg_inherits i
        JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent IN ('mailgate.session'::regclass, 'mailgate.transaction'::regclass,
                              'mailgate.recipient'::regclass, 'mailgate.attempt'::regclass)
          AND c.relname ~ '_\d{4}_\d{2}$'
          AND to_date(right(c.relname, 7), 'YYYY_MM') + interval '1 month' <= before AT TIME ZONE 'UTC'
        ORDER BY 1
    LOOP
        EXECUTE format('DROP TABLE mailgate.%I', child);
        RETURN NEXT child;
    END LOOP;
    DELETE FROM mailgate.session_default WHERE id < mailgate.id_at(before);
    DELETE FROM mailgate.transaction_default WHERE id < mailgate.id_at(before);
    DELETE FROM mailgate.recipient_default WHERE transaction_id < mailgate.id_at(before);
    DELETE FROM mailgate.attempt_default WHERE transaction_id < mailgate.id_at(before);
END
$$;
COMMENT ON FUNCTION drop_partitions(timestamptz) IS 'Drops the partitions of the record that end before that time; gives their names.';

SELECT create_partitions(now(), 2);

-- ---------------------------------------------------------------- reports

CREATE TABLE report_sent (
    kind text NOT NULL CHECK (kind IN ('dmarc', 'tls')),
    domain text NOT NULL,
    day date NOT NULL,
    report_id text NOT NULL,
    recipients text[] NOT NULL,
    made_at timestamptz NOT NULL DEFAULT now(),
    message_id bigint,
    PRIMARY KEY (kind, domain, day)  -- one a domain and day, whatever the nodes do
);
COMMENT ON TABLE report_sent IS 'The reports that we have made.';
COMMENT ON COLUMN report_sent.kind IS 'dmarc: RFC 9990. tls: RFC 8460.';
COMMENT ON COLUMN report_sent.domain IS 'The domain that it is about.';
COMMENT ON COLUMN report_sent.day IS 'The day in UTC that it is about.';
COMMENT ON COLUMN report_sent.report_id IS 'Its id.';
COMMENT ON COLUMN report_sent.recipients IS 'Where it was sent; empty: nobody could be told, and it is not tried again.';
COMMENT ON COLUMN report_sent.made_at IS 'When it was made.';
COMMENT ON COLUMN report_sent.message_id IS 'The message that carried it.';

CREATE TABLE report_cursor (
    name text PRIMARY KEY,
    message_id bigint NOT NULL
);
COMMENT ON TABLE report_cursor IS 'How far the search for reports among accepted messages has come.';
COMMENT ON COLUMN report_cursor.name IS 'What is searched for.';
COMMENT ON COLUMN report_cursor.message_id IS 'The last message that was looked at.';

CREATE TABLE dmarc_report (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    organization text NOT NULL,
    report_id text NOT NULL,
    domain text NOT NULL,
    contact text NOT NULL,
    begins_at timestamptz NOT NULL,
    ends_at timestamptz NOT NULL,
    policy jsonb NOT NULL,
    message_id bigint,
    received_at timestamptz NOT NULL,
    authenticated_as text,
    UNIQUE NULLS NOT DISTINCT (organization, report_id, domain, authenticated_as)  -- the same report is kept once
);
COMMENT ON TABLE dmarc_report IS 'DMARC aggregate reports about our domains that reached us.';
COMMENT ON COLUMN dmarc_report.id IS 'Never used twice.';
COMMENT ON COLUMN dmarc_report.organization IS 'org_name: who reports.';
COMMENT ON COLUMN dmarc_report.report_id IS 'The reporter''s id of it.';
COMMENT ON COLUMN dmarc_report.domain IS 'policy_published.domain: the domain of ours.';
COMMENT ON COLUMN dmarc_report.contact IS 'The reporter''s address.';
COMMENT ON COLUMN dmarc_report.begins_at IS 'The beginning of its time.';
COMMENT ON COLUMN dmarc_report.ends_at IS 'The end of its time.';
COMMENT ON COLUMN dmarc_report.policy IS 'policy_published, by its element names.';
COMMENT ON COLUMN dmarc_report.message_id IS 'The message that brought it, which may have been removed.';
COMMENT ON COLUMN dmarc_report.received_at IS 'When that came.';
COMMENT ON COLUMN dmarc_report.authenticated_as IS 'The domain that the message proved to be from: the author''s where DMARC passed, else one whose DKIM signature did; NULL: anybody may have written it.';
CREATE INDEX dmarc_report_domain ON dmarc_report (domain, ends_at);
COMMENT ON INDEX dmarc_report_domain IS 'What was reported about a domain lately?';
CREATE INDEX dmarc_report_received_at ON dmarc_report (received_at);
COMMENT ON INDEX dmarc_report_received_at IS 'How much has somebody reported in the last day?';

CREATE TABLE dmarc_report_row (
    dmarc_report_id integer NOT NULL REFERENCES dmarc_report ON DELETE CASCADE,
    position integer NOT NULL,
    source inet NOT NULL,
    messages bigint NOT NULL,
    disposition text NOT NULL,
    dkim text NOT NULL,
    spf text NOT NULL,
    reasons text[] NOT NULL,
    header_from text NOT NULL,
    envelope_from text,
    envelope_to text,
    results jsonb NOT NULL,
    PRIMARY KEY (dmarc_report_id, position)  -- the rows of a report
);
COMMENT ON TABLE dmarc_report_row IS 'What a report says of one source.';
COMMENT ON COLUMN dmarc_report_row.dmarc_report_id IS 'The report.';
COMMENT ON COLUMN dmarc_report_row.position IS '0, 1, 2 and so on.';
COMMENT ON COLUMN dmarc_report_row.source IS 'source_ip.';
COMMENT ON COLUMN dmarc_report_row.messages IS 'count.';
COMMENT ON COLUMN dmarc_report_row.disposition IS 'none, quarantine, reject or pass.';
COMMENT ON COLUMN dmarc_report_row.dkim IS 'Whether DKIM passed aligned: pass or fail.';
COMMENT ON COLUMN dmarc_report_row.spf IS 'Whether SPF passed aligned: pass or fail.';
COMMENT ON COLUMN dmarc_report_row.reasons IS 'Why the disposition is not the policy''s: types and comments.';
COMMENT ON COLUMN dmarc_report_row.header_from IS 'The author''s domain.';
COMMENT ON COLUMN dmarc_report_row.envelope_from IS 'The reverse-path''s domain; NULL where it is not told.';
COMMENT ON COLUMN dmarc_report_row.envelope_to IS 'The recipient''s domain; NULL where it is not told.';
COMMENT ON COLUMN dmarc_report_row.results IS 'auth_results: an array of objects by its element names.';

CREATE TABLE tls_report (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    organization text NOT NULL,
    report_id text NOT NULL,
    domain text NOT NULL,
    begins_at timestamptz NOT NULL,
    ends_at timestamptz NOT NULL,
    successes bigint NOT NULL,
    failures bigint NOT NULL,
    policies jsonb NOT NULL,
    message_id bigint,
    received_at timestamptz NOT NULL,
    authenticated_as text,
    UNIQUE NULLS NOT DISTINCT (organization, report_id, domain, authenticated_as)  -- the same report is kept once
);
COMMENT ON TABLE tls_report IS 'TLS reports about our domains that reached us (RFC 8460).';
COMMENT ON COLUMN tls_report.id IS 'Never used twice.';
COMMENT ON COLUMN tls_report.organization IS 'organization-name: who reports.';
COMMENT ON COLUMN tls_report.report_id IS 'The reporter''s id of it.';
COMMENT ON COLUMN tls_report.domain IS 'policy-domain: the domain of ours.';
COMMENT ON COLUMN tls_report.begins_at IS 'The beginning of its time.';
COMMENT ON COLUMN tls_report.ends_at IS 'The end of its time.';
COMMENT ON COLUMN tls_report.successes IS 'Sessions that went well.';
COMMENT ON COLUMN tls_report.failures IS 'Sessions that did not.';
COMMENT ON COLUMN tls_report.policies IS 'The policies of that domain as reported.';
COMMENT ON COLUMN tls_report.message_id IS 'The message that brought it, which may have been removed.';
COMMENT ON COLUMN tls_report.received_at IS 'When that came.';
COMMENT ON COLUMN tls_report.authenticated_as IS 'As dmarc_report.authenticated_as.';
CREATE INDEX tls_report_domain ON tls_report (domain, ends_at);
COMMENT ON INDEX tls_report_domain IS 'What was reported about a domain lately?';

CREATE TABLE dmarc_day (
    day date NOT NULL,
    domain text NOT NULL,
    source inet NOT NULL,
    messages bigint NOT NULL,
    disposition text NOT NULL CHECK (disposition IN ('none', 'pass', 'quarantine', 'reject')),
    aligned_dkim boolean NOT NULL,
    aligned_spf boolean NOT NULL,
    header_from text NOT NULL,
    envelope_from text NOT NULL,
    reasons jsonb NOT NULL,
    results jsonb NOT NULL,
    last_transaction_id bigint NOT NULL,
    answers jsonb NOT NULL
);
COMMENT ON TABLE dmarc_day IS 'What the reports of a day will say: the record of that day, counted. Filled once a day, and emptied when all reports are made.';
COMMENT ON COLUMN dmarc_day.day IS 'The day in UTC.';
COMMENT ON COLUMN dmarc_day.domain IS 'Where the DMARC record was found: whom to tell.';
COMMENT ON COLUMN dmarc_day.source IS 'The client.';
COMMENT ON COLUMN dmarc_day.messages IS 'How many transactions were alike in all that follows.';
COMMENT ON COLUMN dmarc_day.disposition IS 'pass: DMARC passed. none: it failed, and nothing was done about it. quarantine: it failed, and Junk was asked for and done. reject: it failed, and was refused.';
COMMENT ON COLUMN dmarc_day.aligned_dkim IS 'Whether DKIM passed for the author''s domain.';
COMMENT ON COLUMN dmarc_day.aligned_spf IS 'Whether SPF passed for the author''s domain.';
COMMENT ON COLUMN dmarc_day.header_from IS 'The author''s domain.';
COMMENT ON COLUMN dmarc_day.envelope_from IS 'The domain of the reverse-path; "" for the null path.';
COMMENT ON COLUMN dmarc_day.reasons IS 'Why something else was done than was asked for: objects with reason and comment.';
COMMENT ON COLUMN dmarc_day.results IS 'What SPF and DKIM came to: objects with kind, domain, selector, result, problem.';
COMMENT ON COLUMN dmarc_day.last_transaction_id IS 'The last of these transactions.';
COMMENT ON COLUMN dmarc_day.answers IS 'The dns_answer rows that DMARC rested on in that one.';
CREATE INDEX dmarc_day_domain ON dmarc_day (day, domain);
COMMENT ON INDEX dmarc_day_domain IS 'What is the report of a domain to say?';

CREATE FUNCTION dmarc_groups(p_day date, p_domain text DEFAULT NULL) RETURNS SETOF dmarc_day LANGUAGE sql STABLE AS $$
    WITH bounds AS (
        SELECT mailgate.id_at(p_day::timestamp AT TIME ZONE 'UTC') AS first_id,
               mailgate.id_at((p_day + 1)::timestamp AT TIME ZONE 'UTC') AS end_id
    ), told AS (
        SELECT t.id, t.client_address, t.results, t.verdicts, d.value AS dmarc,
               coalesce(lower(substring(t.reverse_path FROM '@([^@]+)$')), '') AS envelope_from
        FROM mailgate.transaction t
        CROSS JOIN bounds b
        CROSS JOIN LATERAL jsonb_array_elements(t.results) AS d (value)
        WHERE t.id >= b.first_id AND t.id < b.end_id
          AND t.results IS NOT NULL
          AND t.disposition NOT IN ('deferred', 'abandoned')
          AND d.value ->> 'kind' = 'dmarc'
          AND d.value ->> 'result' IN ('pass', 'fail')
          AND d.value ->> 'policy_domain' <> ''
          AND (p_domain IS NULL OR d.value ->> 'policy_domain' = p_domain)
    ), described AS (
        SELECT told.id, told.client_address, told.envelope_from, told.dmarc,
               CASE WHEN dmarc ->> 'result' = 'pass' THEN 'pass'
                    ELSE coalesce((SELECT v.value ->> 'verdict' FROM jsonb_array_elements(told.verdicts) AS v (value)
                                   WHERE v.value ->> 'policy' = 'dmarc'
                                     AND v.value ->> 'verdict' IN ('quarantine', 'reject') LIMIT 1), 'none')
               END AS disposition,
               coalesce((SELECT jsonb_agg(jsonb_build_object('reason', r.value ->> 'reason',
                                                             'comment', r.value ->> 'comment'))
                         FROM jsonb_array_elements(told.results) AS r (value)
                         WHERE r.value ->> 'kind' = 'override'), '[]') AS reasons,
               coalesce((SELECT jsonb_agg(jsonb_build_object(
                                    'kind', r.value ->> 'kind', 'domain', r.value ->> 'domain',
                                    'selector', coalesce(r.value ->> 'selector', ''), 'result', r.value ->> 'result',
                                    'problem', coalesce(left(r.value ->> 'problem', 200), '')) ORDER BY r.place)
                         FROM jsonb_array_elements(told.results) WITH ORDINALITY AS r (value, place)
                         WHERE coalesce(r.value ->> 'domain', '') <> ''
                           AND (r.value ->> 'kind' = 'dkim'
                                OR r.value ->> 'kind' = 'spf' AND r.value ->> 'identity' = 'mailfrom')), '[]') AS results
        FROM told
    )
    SELECT p_day, dmarc ->> 'policy_domain', client_address, count(*), disposition,
           coalesce((dmarc ->> 'aligned_dkim')::boolean, false), coalesce((dmarc ->> 'aligned_spf')::boolean, false),
           dmarc ->> 'author_domain', envelope_from, reasons, results, max(id),
           (array_agg(coalesce(dmarc -> 'answers', '[]') ORDER BY id DESC))[1]
    FROM described
    GROUP BY 2, 3, 5, 6, 7, 8, 9, 10, 11
$$;
COMMENT ON FUNCTION dmarc_groups(date, text) IS 'The rows of dmarc_day for that day, from the record: of one domain, or of all (NULL).';

CREATE FUNCTION collect_dmarc_day(p_day date) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF NOT pg_try_advisory_xact_lock(1836345701, -2) THEN
        RETURN false;
    END IF;
    INSERT INTO mailgate.report_cursor (name, message_id) VALUES ('dmarc-day', 0) ON CONFLICT DO NOTHING;
    UPDATE mailgate.report_cursor SET message_id = p_day - date '2020-01-01'
    WHERE name = 'dmarc-day' AND message_id < p_day - date '2020-01-01';
    IF FOUND THEN
        DELETE FROM mailgate.dmarc_day WHERE day < p_day - 2;
        INSERT INTO mailgate.dmarc_day SELECT * FROM mailgate.dmarc_groups(p_day);
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION collect_dmarc_day(date) IS 'Fills dmarc_day for that day, once. False where another node is at it.';

CREATE FUNCTION send_own(
    p_id bigint, p_now double precision, p_header_from text, p_subject text, p_header_message_id text, p_content bytea,
    p_sha256 bytea, p_sender text, p_tls_is_optional boolean, p_recipients text[], p_local_keys text[], p_domains text[]
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    mailboxes integer[];
    rows jsonb;
BEGIN
    INSERT INTO mailgate.message (id, received_at, reverse_path, header_from, subject, header_message_id, trace, content,
                                  size_octets, sha256)
    VALUES (p_id, to_timestamp(p_now), '', p_header_from, p_subject, p_header_message_id,
            convert_to(E'Return-Path: <>\r\n', 'UTF8'), p_content, octet_length(p_content), p_sha256);
    WITH found AS (
        SELECT r.kind, r.mailbox_id, r.is_enabled, n.place - 1 AS place,
               CASE r.kind WHEN 'not_ours' THEN n.recipient ELSE r.local_part || '@' || r.domain_name END AS address
        FROM unnest(p_recipients, p_local_keys, p_domains) WITH ORDINALITY AS n (recipient, local_key, domain, place)
        CROSS JOIN LATERAL mailgate.resolve(n.local_key, n.domain, (mailgate.split_address(n.recipient)).local_part) AS r
    )
    SELECT array_agg(DISTINCT mailbox_id) FILTER (WHERE kind = 'mailbox' AND is_enabled),
           jsonb_agg(jsonb_build_object(
               'message_id', p_id, 'recipient', address, 'recipient_position', place,
               'domain', (mailgate.split_address(address)).domain_name, 'reverse_path', '', 'sender', p_sender,
               'tls_is_optional', p_tls_is_optional, 'size_octets', octet_length(p_content), 'created_at', p_now))
               FILTER (WHERE kind IN ('forward', 'not_ours'))
    INTO mailboxes, rows FROM found;
    IF mailboxes IS NOT NULL THEN
        PERFORM mailgate.deliver_messages(
            array_agg(p_id), array_agg(m), array_agg('INBOX'::text), array_agg(NULL::text),
            array_agg(octet_length(p_content)::bigint), array_agg(p_now), '{}')
        FROM unnest(mailboxes) AS m;
    END IF;
    IF rows IS NOT NULL THEN
        PERFORM mailgate.enqueue(rows, '{}');
    END IF;
END
$$;
COMMENT ON FUNCTION send_own IS 'Makes a message of our own, from the null path: a row, a delivery for each mailbox of ours that a recipient leads to, and a row of the queue for each address elsewhere. p_local_keys and p_domains are the recipients'' parts, folded. A recipient that leads nowhere gets nothing. p_now is seconds since the epoch; p_tls_is_optional is that of the queue.';

CREATE FUNCTION send_report(
    p_kind text, p_domain text, p_day date, p_report_id text, p_addresses text[],
    p_id bigint, p_now double precision, p_header_from text, p_subject text, p_header_message_id text, p_content bytea, p_sha256 bytea,
    p_recipients text[], p_local_keys text[], p_domains text[]
) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO mailgate.report_sent (kind, domain, day, report_id, recipients, message_id)
    VALUES (p_kind, p_domain, p_day, p_report_id, p_addresses,
            CASE WHEN p_recipients <> '{}' THEN p_id END)
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF p_recipients <> '{}' THEN
        PERFORM mailgate.send_own(p_id, p_now, p_header_from, p_subject, p_header_message_id, p_content, p_sha256,
                                  'mailgate', p_kind = 'tls', p_recipients, p_local_keys, p_domains);
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION send_report IS 'Sends a report, and notes it in the same transaction. False, and nothing done, where that was done before.';

-- ---------------------------------------------------------------- exactly once

CREATE TABLE unconfirmed (
    transaction_id bigint PRIMARY KEY,
    resend_key uuid NOT NULL,
    instance integer NOT NULL,
    is_lost boolean NOT NULL DEFAULT false,
    accepted_at timestamptz NOT NULL,
    resent_by bigint
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
COMMENT ON TABLE unconfirmed IS 'Messages whose 250 the client may not have heard: written with the message, removed when the client''s next command shows that it knows. Here a resend is recognised.';
COMMENT ON COLUMN unconfirmed.transaction_id IS 'The message, which may have been removed since.';
COMMENT ON COLUMN unconfirmed.resend_key IS 'The first 128 bits of SHA-256 over client network, envelope, and the content''s SHA-256.';
COMMENT ON COLUMN unconfirmed.instance IS 'The process that answered 250; it holds an advisory lock while it lives.';
COMMENT ON COLUMN unconfirmed.is_lost IS 'Whether the connection ended before the client''s next command.';
COMMENT ON COLUMN unconfirmed.accepted_at IS 'When 250 was last due for it.';
COMMENT ON COLUMN unconfirmed.resent_by IS 'The last transaction that was recognised as a resend of this one; it makes that decision repeatable.';
CREATE INDEX unconfirmed_resend_key ON unconfirmed (resend_key);
COMMENT ON INDEX unconfirmed_resend_key IS 'Has this message come before, and does its client know?';
CREATE INDEX unconfirmed_resent_by ON unconfirmed (resent_by) WHERE resent_by IS NOT NULL;
COMMENT ON INDEX unconfirmed_resent_by IS 'Which message did that resend repeat?';

CREATE FUNCTION instance_is_alive(instance integer) RETURNS boolean LANGUAGE sql STABLE STRICT
RETURN EXISTS (
    SELECT FROM pg_locks l
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
      AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
      AND l.classid = 1836345701 AND l.objid = instance_is_alive.instance::oid
);
COMMENT ON FUNCTION instance_is_alive(integer) IS 'Whether a process holds the advisory lock (1836345701, instance): "mate" in ASCII.';

-- ---------------------------------------------------------------- the queue
--
-- A row is written with its message, and notified on the channel `queue`. From then on (see mailgate.storage.queue):
--
--     claim_queue     a row that is ready, and whose destination is well, is leased to one instance
--     claim_overdue   so is a row whose sender is to be told something, whatever its destination
--     settle_queue    the row goes, or it waits for the next attempt; with what was tried, and notices to senders
--     renew_leases    a lease lasts while its instance is at the row
--     release_leases  what nobody is at any more is ready again
--
-- Times are the caller's clock: p_now is seconds since the epoch. Leases alone go by the server's, which is the same for
-- all: a node whose clock is ahead must not take what another has under way.

CREATE FUNCTION enqueue(p_rows jsonb, p_skipped bigint[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    is_ready_now boolean;
BEGIN
    WITH added AS (
        INSERT INTO mailgate.queue (message_id, recipient, recipient_position, domain, reverse_path, sender, notify,
                                    orcpt, ret, envid, is_eight_bit, is_smtputf8, requires_tls, tls_is_optional,
                                    deliver_by, deliver_by_mode, size_octets, done, created_at, starts_at, due_at,
                                    is_ready)
        SELECT n.message_id, n.recipient, n.recipient_position, n.domain, n.reverse_path, n.sender, n.notify,
               n.orcpt, n.ret, n.envid, coalesce(n.is_eight_bit, false), coalesce(n.is_smtputf8, false),
               coalesce(n.requires_tls, false), coalesce(n.tls_is_optional, false),
               to_timestamp(n.deliver_by), n.deliver_by_mode, n.size_octets, n.done, to_timestamp(n.created_at),
               to_timestamp(coalesce(n.starts_at, n.created_at)), to_timestamp(coalesce(n.starts_at, n.created_at)),
               coalesce(n.starts_at <= n.created_at, true)
        FROM jsonb_to_recordset(p_rows) AS n (
            message_id bigint, recipient text, recipient_position integer, domain text, reverse_path text, sender text,
            notify text[], orcpt text, ret text, envid text, is_eight_bit boolean, is_smtputf8 boolean,
            requires_tls boolean, tls_is_optional boolean, deliver_by double precision, deliver_by_mode text,
            size_octets bigint, done text, created_at double precision, starts_at double precision)
        WHERE n.message_id <> ALL (p_skipped)
        RETURNING is_ready
    )
    SELECT bool_or(is_ready) INTO is_ready_now FROM added;
    IF is_ready_now THEN
        PERFORM pg_notify('queue', '');
    END IF;
END
$$;
COMMENT ON FUNCTION enqueue(jsonb, bigint[]) IS 'Puts recipients of messages into the queue, those of some messages excepted; an array of objects whose keys are columns, times as seconds since the epoch.';

CREATE FUNCTION deliver_messages(
    d_message bigint[],
    d_mailbox integer[],
    d_folder text[],
    d_detail text[],
    d_size_octets bigint[],
    d_received_at double precision[],
    p_skipped bigint[],
    OUT usage_mailbox integer[],
    OUT usage_octets bigint[]
) LANGUAGE plpgsql AS $$
BEGIN
    -- The UIDs of a mailbox belong to whoever has locked its row. Locked in the order of mailbox_id.
    WITH new AS MATERIALIZED (
        SELECT n.*, row_number() OVER (PARTITION BY n.mailbox_id ORDER BY n.place) AS place_in_mailbox
        FROM unnest(d_message, d_mailbox, d_folder, d_detail, d_size_octets, d_received_at) WITH ORDINALITY
             AS n (message_id, mailbox_id, folder, detail, size_octets, received_at, place)
        WHERE n.message_id <> ALL (p_skipped)
    ), total AS (
        SELECT mailbox_id, count(*) AS messages, sum(size_octets)::bigint AS octets FROM new GROUP BY mailbox_id
    ), locked AS MATERIALIZED (
        SELECT mailbox_id FROM mailgate.mailbox_usage
        WHERE mailbox_id = ANY (d_mailbox) ORDER BY mailbox_id FOR NO KEY UPDATE
    ), taken AS (
        UPDATE mailgate.mailbox_usage u
        SET uid_next = u.uid_next + t.messages, messages = u.messages + t.messages, octets = u.octets + t.octets
        FROM locked JOIN total t USING (mailbox_id)
        WHERE u.mailbox_id = locked.mailbox_id
        RETURNING u.mailbox_id, u.uid_next - t.messages AS first_uid, u.octets
    ), delivered AS (
        INSERT INTO mailgate.delivery (mailbox_id, uid, message_id, folder, detail, delivered_at)
        SELECT n.mailbox_id, t.first_uid + n.place_in_mailbox - 1, n.message_id, n.folder, n.detail,
               to_timestamp(n.received_at)
        FROM new n LEFT JOIN taken t USING (mailbox_id)
        RETURNING mailbox_id, uid
    ), announced AS (
        SELECT count(pg_notify('newmail', format('{"mailbox":%s,"uid":%s}', mailbox_id, uid))) FROM delivered
    )
    SELECT array_agg(mailbox_id), array_agg(octets) INTO usage_mailbox, usage_octets
    FROM taken CROSS JOIN announced;
END
$$;
COMMENT ON FUNCTION deliver_messages IS 'Puts messages into mailboxes, those of some messages excepted; gives what the mailboxes hold then.';

CREATE FUNCTION accept_messages(
    -- scalars
    p_instance integer,
    p_node text,
    -- what clients let us know since the last batch: ids
    p_confirmed bigint[],
    p_lost bigint[],
    -- one element a message
    p_id bigint[],
    p_session_id bigint[],
    p_resend_key uuid[],
    p_listener text[],
    p_client_address inet[],
    p_helo text[],
    p_protocol text[],
    p_authenticated text[],
    p_reverse_path text[],
    p_body text[],
    p_is_smtputf8 boolean[],
    p_ret text[],
    p_envid text[],
    p_disposition text[],
    p_policy text[],
    p_reason text[],
    p_reply text[],
    p_started_at double precision[],
    p_received_at double precision[],
    p_header_from text[],
    p_subject text[],
    p_header_message_id text[],
    p_size_octets bigint[],
    p_sha256 bytea[],
    p_trace bytea[],
    p_content bytea[],  -- NULL: the pieces of all of them are in message_piece already
    p_results jsonb[],
    p_verdicts jsonb[],
    -- one element a recipient
    r_transaction_id bigint[],
    r_position integer[],
    r_forward_path text[],
    r_is_accepted boolean[],
    r_reply text[],
    r_notify text[],  -- each the text form of a text[]
    r_orcpt text[],
    r_disposition text[],
    r_policy text[],
    r_reason text[],
    -- one element a delivery
    d_message bigint[],
    d_mailbox integer[],
    d_folder text[],
    d_detail text[],
    d_size_octets bigint[],
    d_received_at double precision[],
    -- recipients elsewhere, as for enqueue
    p_queue jsonb,
    -- one element a DNS answer that is not known to be here, in the order of digests
    a_digest bigint[],
    a_name text[],
    a_type text[],
    a_outcome text[],
    a_rcode text[],
    a_records text[],  -- each the text form of a text[]
    a_ttl_seconds integer[],
    a_is_authenticated boolean[],
    a_answered_at double precision[],
    a_detail text[],
    -- answer
    OUT resends bigint[],  -- pairs: the id given, the id of the message that it repeats
    OUT usage_mailbox integer[],
    OUT usage_octets bigint[]
) LANGUAGE plpgsql AS $$
DECLARE
    known bigint[];
    resent bigint[];
    skipped bigint[] := '{}';
BEGIN
    -- Whoever writes the same message at this moment, another node or a backend whose answer was lost, ends first.
    -- Always in the same order, so that two batches never wait for each other; mailbox_usage is locked after these.
    PERFORM pg_advisory_xact_lock(k)
    FROM (SELECT uuid_hash_extended(u, 0) AS k FROM unnest(p_resend_key) AS u ORDER BY 1) AS keys;

    IF p_confirmed <> '{}' THEN
        DELETE FROM mailgate.unconfirmed WHERE transaction_id = ANY (p_confirmed);
    END IF;
    IF p_lost <> '{}' THEN
        -- A resend whose answer was lost too goes by its own id: nobody has heard which message it repeats.
        UPDATE mailgate.unconfirmed SET is_lost = true
        WHERE (transaction_id = ANY (p_lost) OR resent_by = ANY (p_lost)) AND NOT is_lost;
    END IF;

    -- Repeated by us, because the answer to COMMIT was lost: what is here already is stored, and nothing else happens.
    -- A message that was sent on since is gone; but its client has not heard of it, so it is still in unconfirmed.
    SELECT array_agg(o.id) INTO known FROM (
        SELECT m.id FROM mailgate.message m WHERE m.id = ANY (p_id)
        UNION SELECT u.transaction_id FROM mailgate.unconfirmed u WHERE u.transaction_id = ANY (p_id)) AS o;
    IF known IS NOT NULL THEN
        IF EXISTS (
            SELECT FROM unnest(p_id, p_session_id, p_sha256) AS n (id, session_id, sha256)
            JOIN mailgate.message m USING (id)
            LEFT JOIN mailgate.transaction t USING (id)
            WHERE m.sha256 <> n.sha256 OR t.session_id IS DISTINCT FROM n.session_id
        ) THEN
            RAISE unique_violation USING MESSAGE = 'the id of a new message is taken by another one';
        END IF;
        IF p_content IS NULL THEN
            DELETE FROM mailgate.message_piece p
            WHERE p.message_id = ANY (known)
              AND NOT EXISTS (SELECT FROM mailgate.message m WHERE m.id = p.message_id);
        END IF;
        skipped := known;
    END IF;

    -- Repeated by the client, because it can't know of our 250. Each row of unconfirmed is good for one resend, as if
    -- the messages of the batch came one after the other; what an earlier attempt has decided stays decided.
    IF EXISTS (SELECT FROM mailgate.unconfirmed u WHERE u.resend_key = ANY (p_resend_key)) THEN
        WITH new AS (
            SELECT n.id, n.resend_key, u.transaction_id AS first_id
            FROM unnest(p_id, p_resend_key) AS n (id, resend_key)
            LEFT JOIN mailgate.unconfirmed u ON u.resend_key = n.resend_key AND u.resent_by = n.id
            WHERE n.id <> ALL (skipped)
        ), undecided AS (
            SELECT id, resend_key, row_number() OVER (PARTITION BY resend_key ORDER BY id) AS place
            FROM new WHERE first_id IS NULL
        ), unknown_to_client AS (
            SELECT u.transaction_id AS first_id, u.resend_key,
                   row_number() OVER (PARTITION BY u.resend_key ORDER BY u.transaction_id) AS place
            FROM mailgate.unconfirmed u
            WHERE u.resend_key = ANY (p_resend_key)
              AND u.transaction_id <> ALL (p_id)
              AND u.accepted_at > now() - interval '1 hour'
              AND (u.is_lost
                   OR u.accepted_at < now() - interval '30 seconds'
                   OR (u.instance <> p_instance AND NOT mailgate.instance_is_alive(u.instance)))
        ), repeated AS (
            SELECT id, first_id FROM new WHERE first_id IS NOT NULL
            UNION ALL
            SELECT n.id, u.first_id FROM undecided n JOIN unknown_to_client u USING (resend_key, place)
        )
        SELECT array_agg(ARRAY[id, first_id]), array_agg(id) INTO resends, resent FROM repeated;
    END IF;
    IF resent IS NOT NULL THEN
        UPDATE mailgate.unconfirmed u
        SET instance = p_instance, is_lost = false, accepted_at = now(), resent_by = r.id
        FROM (SELECT resends[i][1] AS id, resends[i][2] AS first_id FROM generate_subscripts(resends, 1) AS i) AS r
        WHERE u.transaction_id = r.first_id;
        DELETE FROM mailgate.message_piece WHERE message_id = ANY (resent);
        skipped := skipped || resent;
    END IF;

    INSERT INTO mailgate.message (id, received_at, reverse_path, header_from, subject, header_message_id, trace,
                                  content, size_octets, sha256)
    SELECT n.id, to_timestamp(n.received_at), n.reverse_path, n.header_from, n.subject, n.header_message_id, n.trace,
           n.content, n.size_octets, n.sha256
    FROM unnest(p_id, p_received_at, p_reverse_path, p_header_from, p_subject, p_header_message_id, p_trace,
                p_content, p_size_octets, p_sha256)
         AS n (id, received_at, reverse_path, header_from, subject, header_message_id, trace,
               content, size_octets, sha256)
    WHERE n.id <> ALL (skipped);

    IF p_content IS NULL AND EXISTS (
        SELECT FROM unnest(p_id, p_size_octets) AS n (id, size_octets)
        WHERE n.id <> ALL (skipped)
          AND n.size_octets IS DISTINCT FROM (SELECT sum(octet_length(p.octets)) FROM mailgate.message_piece p
                                              WHERE p.message_id = n.id)
    ) THEN
        RAISE check_violation USING MESSAGE = 'the pieces of a message are not all here';
    END IF;

    INSERT INTO mailgate.unconfirmed (transaction_id, resend_key, instance, accepted_at)
    SELECT n.id, n.resend_key, p_instance, now()
    FROM unnest(p_id, p_resend_key) AS n (id, resend_key)
    WHERE n.id <> ALL (skipped);

    INSERT INTO mailgate.transaction (id, session_id, node, listener, client_address, helo, protocol, authenticated,
                                      reverse_path, body, is_smtputf8, ret, envid, disposition, stage, policy, reason,
                                      reply, size_octets, sha256, started_at, ended_at, results, verdicts)
    SELECT n.id, n.session_id, p_node, n.listener, n.client_address, n.helo, n.protocol, n.authenticated,
           n.reverse_path, n.body, n.is_smtputf8, n.ret, n.envid, n.disposition, 'end_of_data', n.policy, n.reason,
           n.reply, n.size_octets, n.sha256, to_timestamp(n.started_at), to_timestamp(n.received_at), n.results,
           n.verdicts
    FROM unnest(p_id, p_session_id, p_listener, p_client_address, p_helo, p_protocol, p_authenticated, p_reverse_path,
                p_body, p_is_smtputf8, p_ret, p_envid, p_disposition, p_policy, p_reason, p_reply, p_size_octets,
                p_sha256, p_started_at, p_received_at, p_results, p_verdicts)
         AS n (id, session_id, listener, client_address, helo, protocol, authenticated, reverse_path,
               body, is_smtputf8, ret, envid, disposition, policy, reason, reply, size_octets,
               sha256, started_at, received_at, results, verdicts)
    WHERE n.id <> ALL (skipped);

    INSERT INTO mailgate.recipient (transaction_id, position, forward_path, is_accepted, reply, notify, orcpt,
                                    disposition, policy, reason)
    SELECT n.transaction_id, n.position, n.forward_path, n.is_accepted, n.reply, n.notify::text[], n.orcpt,
           n.disposition, n.policy, n.reason
    FROM unnest(r_transaction_id, r_position, r_forward_path, r_is_accepted, r_reply, r_notify, r_orcpt,
                r_disposition, r_policy, r_reason)
         AS n (transaction_id, position, forward_path, is_accepted, reply, notify, orcpt, disposition, policy, reason)
    WHERE n.transaction_id <> ALL (skipped);

    -- Another writer may be at the same answers, always in this order: one waits for the other, never both.
    IF a_digest <> '{}' THEN
        INSERT INTO mailgate.dns_answer (digest, name, type, outcome, rcode, records, ttl_seconds, is_authenticated,
                                         answered_at, detail)
        SELECT n.digest, n.name, n.type, n.outcome, n.rcode, n.records::text[], n.ttl_seconds, n.is_authenticated,
               to_timestamp(n.answered_at), nullif(n.detail, '')
        FROM unnest(a_digest, a_name, a_type, a_outcome, a_rcode, a_records, a_ttl_seconds, a_is_authenticated,
                    a_answered_at, a_detail)
             AS n (digest, name, type, outcome, rcode, records, ttl_seconds, is_authenticated, answered_at, detail)
        ON CONFLICT DO NOTHING;
    END IF;

    SELECT u.usage_mailbox, u.usage_octets INTO usage_mailbox, usage_octets
    FROM mailgate.deliver_messages(d_message, d_mailbox, d_folder, d_detail, d_size_octets, d_received_at, skipped) AS u;
    IF p_queue <> '[]' THEN
        PERFORM mailgate.enqueue(p_queue, skipped);
    END IF;
END
$$;
COMMENT ON FUNCTION accept_messages IS 'Makes a batch of messages ours, all tables in one statement. Repeating it changes nothing.';

CREATE FUNCTION next_destination(
    p_sender text,
    p_after text,
    p_last text,  -- the last that may be; NULL: any may
    p_away jsonb,  -- those to pass over, as keys
    p_at_most integer,  -- steps
    OUT domain text,
    OUT steps integer
) LANGUAGE plpgsql STABLE AS $$
BEGIN
    domain := p_after;
    FOR step IN 1..p_at_most LOOP
        SELECT q.domain INTO domain FROM mailgate.queue q
        WHERE q.is_ready AND NOT q.is_held AND q.leased_by IS NULL AND q.sender = p_sender
          AND q.domain > next_destination.domain
        ORDER BY q.domain LIMIT 1;
        steps := step;
        IF domain IS NULL OR domain > p_last THEN
            domain := NULL;
            RETURN;
        END IF;
        EXIT WHEN NOT p_away ? domain;
        IF step = p_at_most THEN
            domain := NULL;
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION next_destination IS 'The next destination in the order of names that a sender has mail for and that is not away; NULL where there is none, or none was found in so many steps.';

CREATE FUNCTION claim_queue(
    p_instance integer,
    p_claim bigint,
    p_now double precision,
    p_lease_seconds double precision,
    p_at_most integer,
    p_octets bigint,  -- of content; the last row may exceed it
    p_inline_octets bigint,
    p_per_destination integer,
    p_skipped text[],  -- destinations that the instance has enough of
    p_skipped_senders text[],
    p_after_sender text,  -- where the last claim ended
    p_senders text[],  -- and where it ended with each of these
    p_after_domains text[]
) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    max_senders CONSTANT integer := 50;
    max_steps CONSTANT integer := 20000;
    max_shaky CONSTANT integer := 5;
    moment CONSTANT timestamptz := to_timestamp(p_now);
    away jsonb;  -- destinations that nothing is sent to now, as keys: there may be very many
    shaky jsonb;  -- and those that were in trouble: a few messages show whether they still are
    away_count integer;
    max_passed CONSTANT integer := 100;  -- of a sender's destinations that are away, before it counts as one that has others
    passed integer;
    last_step integer;  -- of this sender: those behind it are to have theirs
    senders text[] := '{}';
    last_sender text := p_after_sender;
    next_sender text;
    after_domain text;
    last_domain text;
    next_domain text;
    is_second_round boolean := false;
    quota integer;
    taken bigint[];
    taken_octets bigint;
    total integer := 0;
    total_octets bigint := 0;
    steps integer := 0;
BEGIN
    UPDATE mailgate.queue q SET is_ready = true
    FROM (SELECT o.id FROM mailgate.queue o
          WHERE NOT o.is_ready AND NOT o.is_held AND o.leased_by IS NULL AND o.due_at <= moment
          ORDER BY o.due_at LIMIT 2 * p_at_most FOR UPDATE SKIP LOCKED) AS woken
    WHERE q.id = woken.id;

    SELECT coalesce(jsonb_object_agg(n.name, true) FILTER (WHERE n.is_away), '{}'),
           coalesce(jsonb_object_agg(n.name, true) FILTER (WHERE n.is_shaky), '{}'),
           count(DISTINCT n.name) FILTER (WHERE n.is_away)
    INTO away, shaky, away_count
    FROM (SELECT d.name, d.is_paused OR coalesce(d.backed_off_until > moment, false), d.failures > 0
          FROM mailgate.destination d
          UNION ALL
          SELECT s.name, true, false FROM unnest(p_skipped) AS s (name)) AS n (name, is_away, is_shaky);

    -- The next senders in the order of names, round and round.
    -- One whose destinations are all away is none of them, or a few such would keep everybody else from their turn.
    WHILE cardinality(senders) < max_senders AND steps < max_steps LOOP
        SELECT q.sender INTO next_sender FROM mailgate.queue q
        WHERE q.is_ready AND NOT q.is_held AND q.leased_by IS NULL AND q.sender > last_sender
        ORDER BY q.sender LIMIT 1;
        steps := steps + 1;
        IF next_sender IS NULL THEN
            EXIT WHEN is_second_round OR p_after_sender = '';
            is_second_round := true;
            last_sender := '';
            CONTINUE;
        END IF;
        EXIT WHEN is_second_round AND next_sender > p_after_sender;
        last_sender := next_sender;
        CONTINUE WHEN next_sender = ANY (p_skipped_senders);
        IF away_count > 0 THEN
            SELECT n.domain, n.steps INTO next_domain, passed
            FROM mailgate.next_destination(next_sender, '', NULL, away, max_passed) AS n;
            steps := steps + passed;
            CONTINUE WHEN next_domain IS NULL AND passed < max_passed;
        END IF;
        senders := senders || next_sender;
    END LOOP;
    steps := 0;

    FOR i IN 1..cardinality(senders) LOOP
        EXIT WHEN total >= p_at_most OR total_octets >= p_octets OR steps >= max_steps;
        -- What the senders before have left of their shares goes to the others.
        quota := ceil((p_at_most - total)::numeric / (cardinality(senders) - i + 1));
        last_step := steps + (max_steps - steps) / (cardinality(senders) - i + 1);
        after_domain := coalesce(p_after_domains[array_position(p_senders, senders[i])], '');
        -- Where more is passed over than there are steps, each claim begins elsewhere, so that all have their turn.
        IF away_count >= last_step - steps THEN
            SELECT k.name INTO after_domain
            FROM jsonb_object_keys(away) WITH ORDINALITY AS k (name, place)
            OFFSET floor(random() * away_count)::integer LIMIT 1;
        END IF;
        last_domain := after_domain;
        is_second_round := false;
        -- Their destinations likewise.
        WHILE quota > 0 AND total_octets < p_octets AND steps < last_step LOOP
            SELECT n.domain, n.steps INTO next_domain, passed
            FROM mailgate.next_destination(
                senders[i], last_domain, CASE WHEN is_second_round THEN after_domain END, away, last_step - steps) AS n;
            steps := steps + passed;
            IF next_domain IS NULL THEN
                EXIT WHEN is_second_round OR after_domain = '';
                is_second_round := true;
                last_domain := '';
                CONTINUE;
            END IF;
            last_domain := next_domain;
            WITH found AS MATERIALIZED (
                SELECT q.id, q.message_id, q.size_octets FROM mailgate.queue q
                WHERE q.is_ready AND NOT q.is_held AND q.leased_by IS NULL AND q.sender = senders[i]
                  AND q.domain = next_domain
                ORDER BY q.id
                LIMIT least(quota, CASE WHEN shaky ? next_domain THEN max_shaky ELSE p_per_destination END)
                FOR UPDATE SKIP LOCKED
            ), sized AS (
                SELECT f.id,
                       CASE WHEN row_number() OVER (PARTITION BY f.message_id ORDER BY f.id) = 1
                            THEN least(f.size_octets, p_inline_octets) ELSE 0 END AS octets
                FROM found f
            ), summed AS (
                SELECT s.id, s.octets, sum(s.octets) OVER (ORDER BY s.id) - s.octets AS before FROM sized s
            )
            SELECT array_agg(s.id), sum(s.octets) INTO taken, taken_octets
            FROM summed s WHERE total_octets + s.before < p_octets;
            CONTINUE WHEN taken IS NULL;
            UPDATE mailgate.queue q
            SET leased_by = p_instance, claim = p_claim, leased_until = clock_timestamp() + make_interval(secs => p_lease_seconds)
            WHERE q.id = ANY (taken);
            quota := quota - cardinality(taken);
            total := total + cardinality(taken);
            total_octets := total_octets + taken_octets;
        END LOOP;
    END LOOP;
    RETURN total;
END
$$;
COMMENT ON FUNCTION claim_queue IS 'Leases rows that are ready to an instance, in fair shares to senders and round their destinations; gives how many. The work goes by what is taken and by how many destinations are passed over, not by what waits for these.';

CREATE FUNCTION claim_overdue(
    p_instance integer,
    p_claim bigint,
    p_now double precision,
    p_lease_seconds double precision,
    p_delay_seconds double precision,
    p_give_up_seconds double precision,
    p_at_most integer
) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    moment CONSTANT timestamptz := to_timestamp(p_now);
    late bigint[];
    delayed bigint[];
    expired bigint[];
    taken bigint[];
BEGIN
    SELECT array_agg(o.id) INTO late FROM (
        SELECT q.id FROM mailgate.queue q
        WHERE q.deliver_by IS NOT NULL AND NOT q.is_held AND q.leased_by IS NULL AND q.deliver_by <= moment
        ORDER BY q.deliver_by LIMIT p_at_most FOR UPDATE SKIP LOCKED) AS o;
    SELECT array_agg(o.id) INTO delayed FROM (
        SELECT q.id FROM mailgate.queue q
        WHERE q.delayed_at IS NULL AND NOT q.is_held AND q.leased_by IS NULL
          AND q.starts_at <= moment - make_interval(secs => p_delay_seconds)
        ORDER BY q.starts_at LIMIT p_at_most FOR UPDATE SKIP LOCKED) AS o;
    -- What can be tried is tried a last time, and given up when that has failed.
    SELECT array_agg(o.id) INTO expired FROM (
        SELECT q.id FROM mailgate.queue q
        WHERE q.delayed_at IS NOT NULL AND NOT q.is_held AND q.leased_by IS NULL
          AND q.starts_at <= moment - make_interval(secs => p_give_up_seconds)
          AND EXISTS (SELECT FROM mailgate.destination d
                      WHERE d.name = q.domain AND (d.is_paused OR d.backed_off_until > moment))
        ORDER BY q.starts_at LIMIT p_at_most FOR UPDATE SKIP LOCKED) AS o;
    UPDATE mailgate.queue q
    SET leased_by = p_instance, claim = p_claim, leased_until = clock_timestamp() + make_interval(secs => p_lease_seconds)
    FROM (SELECT DISTINCT unnest(late || delayed || expired) AS id) AS o
    WHERE q.id = o.id;
    GET DIAGNOSTICS p_at_most = ROW_COUNT;
    RETURN p_at_most;
END
$$;
COMMENT ON FUNCTION claim_overdue IS 'Leases rows whose senders are due a notice to an instance, be their destinations well or not; gives how many.';

CREATE FUNCTION leased_rows(p_instance integer, p_claim bigint, p_inline_octets bigint)
RETURNS TABLE (
    id bigint,
    message_id bigint,
    recipient text,
    domain text,
    reverse_path text,
    original_path text,  -- the message's own reverse-path, for what is told of it
    sender text,
    notify text,  -- words, a blank between them
    orcpt text,
    ret text,
    envid text,
    is_eight_bit boolean,
    is_smtputf8 boolean,
    requires_tls boolean,
    tls_is_optional boolean,
    deliver_by double precision,
    deliver_by_mode text,
    size_octets bigint,
    done text,
    created_at double precision,
    starts_at double precision,
    is_delayed boolean,
    attempts integer,
    last_attempt_at double precision,
    last_status text,
    last_reply text,
    trace bytea,
    content bytea
) LANGUAGE sql STABLE AS $$
    SELECT q.id, q.message_id, q.recipient, q.domain, q.reverse_path, m.reverse_path, q.sender,
           array_to_string(q.notify, ' '), q.orcpt, q.ret, q.envid, q.is_eight_bit, q.is_smtputf8, q.requires_tls, q.tls_is_optional,
           extract(epoch FROM q.deliver_by)::double precision, q.deliver_by_mode, q.size_octets, q.done,
           extract(epoch FROM q.created_at)::double precision, extract(epoch FROM q.starts_at)::double precision,
           q.delayed_at IS NOT NULL, q.attempts, extract(epoch FROM q.last_attempt_at)::double precision, q.last_status,
           q.last_reply, CASE WHEN q.place = 1 THEN m.trace END,
           CASE WHEN q.place = 1 AND q.size_octets <= p_inline_octets THEN m.content END
    FROM (SELECT o.*, row_number() OVER (PARTITION BY o.message_id ORDER BY o.id) AS place
          FROM mailgate.queue o WHERE o.leased_by = p_instance AND o.claim = p_claim) AS q
    JOIN mailgate.message m ON m.id = q.message_id
    ORDER BY q.id
$$;
COMMENT ON FUNCTION leased_rows IS 'What a claim has taken, in order; the first row of each message with its trace, and with its content if that is small.';

CREATE FUNCTION queued_piece(p_message_id bigint, p_position integer, p_octets integer) RETURNS bytea
LANGUAGE sql STABLE
RETURN (
    SELECT CASE WHEN m.content IS NULL
                THEN (SELECT p.octets FROM mailgate.message_piece p
                      WHERE p.message_id = m.id AND p.position = p_position)
                ELSE substring(m.content FROM p_position * p_octets + 1 FOR p_octets) END
    FROM mailgate.message m WHERE m.id = p_message_id
);
COMMENT ON FUNCTION queued_piece IS 'A piece of a content: as it is kept, or so many octets of it; empty or NULL behind the last.';

CREATE FUNCTION settle_queue(
    p_instance integer,
    p_node text,
    p_now double precision,
    -- rows that are at their end: delivered, or failed
    e_id bigint[],
    e_claim bigint[],
    e_is_delivered boolean[],
    -- rows that stay, an array of objects: id, claim, due_at (NULL: nothing was tried, and it is due as before), status,
    -- reply, is_attempt, is_delayed, is_deliver_by_over
    p_kept jsonb,
    -- one element an attempt
    a_transaction_id bigint[],
    a_queue_id bigint[],
    a_recipient text[],
    a_attempted_at double precision[],
    a_duration_seconds real[],
    a_result text[],
    a_status text[],
    a_reply text[],
    a_is_remote boolean[],
    a_is_ambiguous boolean[],
    a_host text[],
    a_address text[],
    a_port integer[],
    a_tls_version text[],
    a_tls_cipher text[],
    a_tls_is_verified boolean[],
    a_tls_source text[],
    -- destinations, an array of objects: name, reason (NULL: it is well again), first_seconds, longest_seconds
    p_destinations jsonb,
    -- one element a notice
    m_id bigint[],
    m_header_from text[],
    m_subject text[],
    m_header_message_id text[],
    m_trace bytea[],
    m_size_octets bigint[],
    m_sha256 bytea[],
    m_content bytea[],
    -- one element a row that a notice is about
    k_notice bigint[],
    k_queue_id bigint[],
    k_claim bigint[],
    k_is_delivered boolean[],
    -- one element a notice that goes to a mailbox of ours
    d_message bigint[],
    d_mailbox integer[],
    d_folder text[],
    d_detail text[],
    d_size_octets bigint[],
    d_received_at double precision[],
    -- notices that go elsewhere, as for enqueue
    p_queue jsonb,
    OUT disowned bigint[],  -- notices that were not made: another instance has a row that they are about
    OUT usage_mailbox integer[],
    OUT usage_octets bigint[]
) LANGUAGE plpgsql AS $$
DECLARE
    moment CONSTANT timestamptz := to_timestamp(p_now);
    not_ended bigint[] := '{}';
    left_messages bigint[];
BEGIN
    disowned := '{}';
    IF m_id <> '{}' THEN
        -- A notice is made together with what it tells of, or not at all: so there is exactly one.
        PERFORM FROM mailgate.queue q WHERE q.id = ANY (k_queue_id) ORDER BY q.id FOR UPDATE;
        SELECT coalesce(array_agg(DISTINCT k.notice), '{}') INTO disowned
        FROM unnest(k_notice, k_queue_id, k_claim, k_is_delivered) AS k (notice, queue_id, claim, is_delivered)
        WHERE NOT EXISTS (
            SELECT FROM mailgate.queue q
            WHERE q.id = k.queue_id AND (k.is_delivered OR (q.leased_by = p_instance AND q.claim = k.claim)));
        IF disowned <> '{}' THEN
            SELECT coalesce(array_agg(k.queue_id), '{}') INTO not_ended
            FROM unnest(k_notice, k_queue_id, k_is_delivered) AS k (notice, queue_id, is_delivered)
            WHERE k.notice = ANY (disowned) AND NOT k.is_delivered;
            UPDATE mailgate.queue q SET leased_by = NULL, claim = NULL, leased_until = NULL
            FROM unnest(k_queue_id, k_claim) AS k (queue_id, claim)
            WHERE q.id = k.queue_id AND q.id = ANY (not_ended) AND q.leased_by = p_instance AND q.claim = k.claim;
        END IF;
    END IF;

    WITH ended AS (
        DELETE FROM mailgate.queue q
        USING unnest(e_id, e_claim, e_is_delivered) AS e (id, claim, is_delivered)
        WHERE q.id = e.id AND (e.is_delivered OR (q.leased_by = p_instance AND q.claim = e.claim))
          AND q.id <> ALL (not_ended)
        RETURNING q.message_id
    )
    SELECT array_agg(DISTINCT message_id) INTO left_messages FROM ended;

    IF p_kept <> '[]' THEN
        UPDATE mailgate.queue q
        SET leased_by = NULL, claim = NULL, leased_until = NULL,
            due_at = coalesce(to_timestamp(k.due_at), q.due_at),
            is_ready = CASE WHEN k.due_at IS NULL THEN q.is_ready ELSE k.due_at <= p_now END,
            delayed_at = CASE WHEN k.is_delayed THEN moment ELSE q.delayed_at END,
            deliver_by = CASE WHEN k.is_deliver_by_over THEN NULL ELSE q.deliver_by END,
            attempts = q.attempts + coalesce(k.is_attempt, false)::integer,
            last_attempt_at = CASE WHEN k.is_attempt THEN moment ELSE q.last_attempt_at END,
            last_status = coalesce(k.status, q.last_status),
            last_reply = coalesce(k.reply, q.last_reply)
        FROM jsonb_to_recordset(p_kept) AS k (id bigint, claim bigint, due_at double precision, status text, reply text,
                                              is_attempt boolean, is_delayed boolean, is_deliver_by_over boolean)
        WHERE q.id = k.id AND q.leased_by = p_instance AND q.claim = k.claim AND q.id <> ALL (not_ended);
    END IF;

    IF a_queue_id <> '{}' THEN
        INSERT INTO mailgate.attempt (transaction_id, queue_id, recipient, attempted_at, duration_seconds, node, result,
                                      status, reply, is_remote, is_ambiguous, host, address, port, tls_version,
                                      tls_cipher, tls_is_verified, tls_source)
        SELECT a.transaction_id, a.queue_id, a.recipient, to_timestamp(a.attempted_at), a.duration_seconds, p_node,
               a.result, a.status, a.reply, a.is_remote, a.is_ambiguous, a.host, a.address, a.port, a.tls_version,
               a.tls_cipher, a.tls_is_verified, a.tls_source
        FROM unnest(a_transaction_id, a_queue_id, a_recipient, a_attempted_at, a_duration_seconds, a_result, a_status,
                    a_reply, a_is_remote, a_is_ambiguous, a_host, a_address, a_port, a_tls_version, a_tls_cipher,
                    a_tls_is_verified, a_tls_source)
             AS a (transaction_id, queue_id, recipient, attempted_at, duration_seconds, result, status, reply, is_remote,
                   is_ambiguous, host, address, port, tls_version, tls_cipher, tls_is_verified, tls_source)
        ON CONFLICT DO NOTHING;
    END IF;

    IF m_id <> '{}' THEN
        INSERT INTO mailgate.message (id, received_at, reverse_path, header_from, subject, header_message_id, trace,
                                      content, size_octets, sha256)
        SELECT n.id, moment, '', n.header_from, n.subject, n.header_message_id, n.trace, n.content, n.size_octets,
               n.sha256
        FROM unnest(m_id, m_header_from, m_subject, m_header_message_id, m_trace, m_size_octets, m_sha256, m_content)
             AS n (id, header_from, subject, header_message_id, trace, size_octets, sha256, content)
        WHERE n.id <> ALL (disowned);
        SELECT u.usage_mailbox, u.usage_octets INTO usage_mailbox, usage_octets
        FROM mailgate.deliver_messages(d_message, d_mailbox, d_folder, d_detail, d_size_octets, d_received_at,
                                       disowned) AS u;
        PERFORM mailgate.enqueue(p_queue, disowned);
    END IF;

    IF p_destinations <> '[]' THEN
        -- Trouble that two instances have at the same time counts once. Locked in the order of names.
        INSERT INTO mailgate.destination AS d (name, failures, backed_off_until, reason, changed_at)
        SELECT n.name, 1, moment + make_interval(secs => n.first_seconds), n.reason, moment
        FROM jsonb_to_recordset(p_destinations) AS n (name text, reason text, first_seconds double precision)
        WHERE n.reason IS NOT NULL
        ORDER BY n.name
        ON CONFLICT (name) DO NOTHING;
        UPDATE mailgate.destination d
        SET failures = CASE WHEN n.reason IS NULL THEN 0 ELSE d.failures + 1 END,
            backed_off_until = CASE WHEN n.reason IS NOT NULL
                THEN moment + make_interval(secs => least(n.longest_seconds, n.first_seconds * 2.0 ^ least(d.failures, 30)))
                END,
            reason = CASE WHEN n.reason IS NULL AND d.is_paused THEN d.reason ELSE n.reason END,
            changed_at = moment
        FROM (SELECT o.name AS locked FROM mailgate.destination o
              WHERE o.name IN (SELECT j ->> 'name' FROM jsonb_array_elements(p_destinations) AS j)
              ORDER BY o.name FOR UPDATE) AS l
        JOIN jsonb_to_recordset(p_destinations)
             AS n (name text, reason text, first_seconds double precision, longest_seconds double precision)
          ON n.name = l.locked
        WHERE d.name = l.locked AND (n.reason IS NULL OR d.backed_off_until IS NULL OR d.backed_off_until <= moment);
        DELETE FROM mailgate.destination d
        WHERE d.failures = 0 AND NOT d.is_paused
          AND d.name IN (SELECT j ->> 'name' FROM jsonb_array_elements(p_destinations) AS j);
    END IF;

    IF left_messages IS NOT NULL THEN
        DELETE FROM mailgate.message m
        WHERE m.id = ANY (left_messages)
          AND NOT EXISTS (SELECT FROM mailgate.delivery d WHERE d.message_id = m.id)
          AND NOT EXISTS (SELECT FROM mailgate.queue q WHERE q.message_id = m.id);
    END IF;
END
$$;
COMMENT ON FUNCTION settle_queue IS 'Writes what came of rows that an instance has leased, and the notices that tell of it. Repeating it changes nothing.';

CREATE FUNCTION renew_leases(
    p_instance integer,
    p_claims bigint[],  -- what the instance is at
    p_now double precision,
    p_lease_seconds double precision,
    p_dead integer[],  -- instances that seemed dead a while ago
    p_is_steady boolean,  -- whether the instance has done this lately: else it may be the one that was cut off
    p_grace_seconds double precision  -- after a start of the server, when no instance has its lock back yet
) RETURNS integer[] LANGUAGE plpgsql AS $$
DECLARE
    moment CONSTANT timestamptz := to_timestamp(p_now);
    dead integer[];
    released integer;
BEGIN
    UPDATE mailgate.queue q SET leased_until = clock_timestamp() + make_interval(secs => p_lease_seconds)
    WHERE q.leased_by = p_instance AND q.claim = ANY (p_claims);
    IF p_is_steady AND pg_postmaster_start_time() < clock_timestamp() - make_interval(secs => p_grace_seconds) THEN
        SELECT array_agg(o.leased_by) INTO dead
        FROM (SELECT DISTINCT q.leased_by FROM mailgate.queue q
              WHERE q.leased_by IS NOT NULL AND q.leased_by <> p_instance) AS o
        WHERE NOT mailgate.instance_is_alive(o.leased_by);
    END IF;
    UPDATE mailgate.queue q SET leased_by = NULL, claim = NULL, leased_until = NULL
    WHERE q.leased_by IS NOT NULL
      AND CASE WHEN q.leased_by = p_instance THEN q.claim <> ALL (p_claims)
               WHEN NOT p_is_steady THEN false
               ELSE q.leased_until < clock_timestamp() OR (q.leased_by = ANY (p_dead) AND q.leased_by = ANY (dead)) END;
    GET DIAGNOSTICS released = ROW_COUNT;
    IF released > 0 THEN
        PERFORM pg_notify('queue', '');
    END IF;
    DELETE FROM mailgate.destination d
    WHERE NOT d.is_paused AND coalesce(d.backed_off_until, d.changed_at) < moment - interval '1 day';
    RETURN coalesce(dead, '{}');
END
$$;
COMMENT ON FUNCTION renew_leases IS 'Keeps the leases of an instance, and ends those that nobody is at any more: of claims that it knows nothing of, of instances that have died or let their time run out. Gives the instances that seem dead; who has seemed so twice is.';

CREATE FUNCTION queue_selected(p_messages bigint[], p_recipient text, p_domain text, p_sender text) RETURNS SETOF bigint
LANGUAGE sql STABLE AS $$
    SELECT q.id FROM mailgate.queue q
    WHERE (p_messages IS NULL OR q.message_id = ANY (p_messages))
      AND (p_recipient IS NULL OR lower(q.recipient) = lower(p_recipient))
      AND (p_domain IS NULL OR q.domain = p_domain)
      AND (p_sender IS NULL OR lower(q.sender) = lower(p_sender) OR lower(q.reverse_path) = lower(p_sender)
           OR EXISTS (SELECT FROM mailgate.message m
                      WHERE m.id = q.message_id AND lower(m.reverse_path) = lower(p_sender)))
$$;
COMMENT ON FUNCTION queue_selected IS 'The rows of the queue that meet all that is not NULL: messages, recipient, destination, and the account or the reverse-path.';

CREATE VIEW queue_overview AS
SELECT q.id,
       q.message_id,
       q.recipient,
       q.domain,
       q.reverse_path,
       q.sender,
       q.size_octets,
       q.created_at,
       q.attempts,
       q.last_attempt_at,
       q.last_status,
       q.last_reply,
       CASE WHEN q.leased_by IS NOT NULL THEN 'sending'
            WHEN q.is_held THEN 'held'
            WHEN d.is_paused THEN 'paused'
            WHEN d.backed_off_until > now() THEN 'backed off'
            WHEN q.due_at <= now() THEN 'ready'
            ELSE 'waiting' END AS state,
       CASE WHEN NOT q.is_held AND NOT coalesce(d.is_paused, false)
            THEN greatest(q.due_at, d.backed_off_until) END AS next_attempt_at
FROM queue q
LEFT JOIN destination d ON d.name = q.domain;
COMMENT ON VIEW queue_overview IS 'What waits to be sent: a row a recipient.';
COMMENT ON COLUMN queue_overview.id IS 'queue.id.';
COMMENT ON COLUMN queue_overview.message_id IS 'The message.';
COMMENT ON COLUMN queue_overview.recipient IS 'The address elsewhere.';
COMMENT ON COLUMN queue_overview.domain IS 'Its destination.';
COMMENT ON COLUMN queue_overview.reverse_path IS 'As it is sent out.';
COMMENT ON COLUMN queue_overview.sender IS 'Who shares the queue fairly.';
COMMENT ON COLUMN queue_overview.size_octets IS 'Of trace and content.';
COMMENT ON COLUMN queue_overview.created_at IS 'When the message was accepted.';
COMMENT ON COLUMN queue_overview.attempts IS 'How many attempts were made.';
COMMENT ON COLUMN queue_overview.last_attempt_at IS 'When the last one ended.';
COMMENT ON COLUMN queue_overview.last_status IS 'The status code that it came to.';
COMMENT ON COLUMN queue_overview.last_reply IS 'What it came to, as one line.';
COMMENT ON COLUMN queue_overview.state IS 'sending: an instance is at it. held: an operator has stopped it. paused: its destination. backed off: its destination is in trouble. ready: somebody will take it. waiting: for its next attempt.';
COMMENT ON COLUMN queue_overview.next_attempt_at IS 'When it is tried, at the earliest; NULL: when an operator lets it.';

-- ---------------------------------------------------------------- retention
--
-- Each function does a bounded piece of work in one transaction, and nothing where another node is at it (NULL).

CREATE FUNCTION retention_is_ours() RETURNS boolean LANGUAGE sql VOLATILE
RETURN pg_try_advisory_xact_lock(1836345701, -1);
COMMENT ON FUNCTION retention_is_ours() IS 'Whether this transaction is the only one that prunes, and nobody else may until it ends.';

CREATE FUNCTION expire_deliveries(p_folder text, p_before timestamptz, p_at_most integer) RETURNS integer
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    doomed bigint[];
    boxes integer[];
    uids bigint[];
BEGIN
    IF NOT mailgate.retention_is_ours() THEN
        RETURN NULL;
    END IF;
    SELECT array_agg(d.mailbox_id), array_agg(d.uid), array_agg(DISTINCT d.message_id) INTO boxes, uids, doomed
    FROM (
        SELECT mailbox_id, uid, message_id FROM mailgate.delivery
        WHERE folder = p_folder AND delivered_at < p_before
        ORDER BY delivered_at LIMIT p_at_most
    ) AS d;
    IF boxes IS NULL THEN
        RETURN 0;
    END IF;
    -- In the writers' order: mailbox_usage first, by mailbox_id.
    PERFORM FROM mailgate.mailbox_usage WHERE mailbox_id = ANY (boxes) ORDER BY mailbox_id FOR NO KEY UPDATE;
    WITH gone AS (
        DELETE FROM mailgate.delivery d USING unnest(boxes, uids) AS n (mailbox_id, uid)
        WHERE d.mailbox_id = n.mailbox_id AND d.uid = n.uid AND d.folder = p_folder
        RETURNING d.mailbox_id, d.message_id
    ), total AS (
        SELECT g.mailbox_id, count(*) AS messages, sum(m.size_octets)::bigint AS octets
        FROM gone g JOIN mailgate.message m ON m.id = g.message_id GROUP BY g.mailbox_id
    )
    UPDATE mailgate.mailbox_usage u SET messages = u.messages - t.messages, octets = u.octets - t.octets
    FROM total t WHERE u.mailbox_id = t.mailbox_id;
    DELETE FROM mailgate.message m
    WHERE m.id = ANY (doomed)
      AND NOT EXISTS (SELECT FROM mailgate.delivery d WHERE d.message_id = m.id)
      AND NOT EXISTS (SELECT FROM mailgate.queue q WHERE q.message_id = m.id);
    RETURN cardinality(boxes);
END
$$;
COMMENT ON FUNCTION expire_deliveries(text, timestamptz, integer) IS 'Removes so many deliveries of that folder from before that time, and messages that nobody has any more; gives how many deliveries.';

CREATE FUNCTION remove_unused_messages(p_after bigint, p_before bigint, p_at_most integer) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    looked_at bigint[];
BEGIN
    IF NOT mailgate.retention_is_ours() THEN
        RETURN NULL;
    END IF;
    SELECT array_agg(m.id) INTO looked_at FROM (
        SELECT id FROM mailgate.message WHERE id > p_after AND id < p_before ORDER BY id LIMIT p_at_most
    ) AS m;
    DELETE FROM mailgate.message m
    WHERE m.id = ANY (looked_at)
      AND NOT EXISTS (SELECT FROM mailgate.delivery d WHERE d.message_id = m.id)
      AND NOT EXISTS (SELECT FROM mailgate.queue q WHERE q.message_id = m.id);
    RETURN looked_at[cardinality(looked_at)];
END
$$;
COMMENT ON FUNCTION remove_unused_messages(bigint, bigint, integer) IS 'Looks at so many messages between those ids and removes those that are in no mailbox and not waiting to be sent, as they are left when a mailbox is emptied; gives the last id looked at, NULL where there was none.';

CREATE FUNCTION remove_old_answers(p_before timestamptz, p_at_most integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    removed integer;
BEGIN
    IF NOT mailgate.retention_is_ours() THEN
        RETURN NULL;
    END IF;
    -- The record goes by whole months, so some of it is older than that time; and what it used from a cache is older
    -- still.
    DELETE FROM mailgate.dns_answer WHERE digest IN (
        SELECT a.digest FROM mailgate.dns_answer a
        WHERE a.answered_at < date_trunc('month', p_before, 'UTC') - interval '7 days'
        ORDER BY a.answered_at LIMIT p_at_most);
    GET DIAGNOSTICS removed = ROW_COUNT;
    RETURN removed;
END
$$;
COMMENT ON FUNCTION remove_old_answers(timestamptz, integer) IS 'Removes so many DNS answers that nothing in the record can name any more once it has lost the months that end before that time; gives how many.';

-- ---------------------------------------------------------------- views

CREATE VIEW inbox AS
SELECT b.local_part || '@' || o.name AS mailbox,
       d.uid,
       d.folder,
       d.flags,
       m.received_at,
       m.header_from AS "from",
       m.subject,
       m.size_octets,
       id_text(m.id) AS message
FROM delivery d
JOIN message m ON m.id = d.message_id
JOIN mailbox b ON b.id = d.mailbox_id
JOIN domain o ON o.id = b.domain_id;
COMMENT ON VIEW inbox IS 'What is in the mailboxes: a row a delivery.';
COMMENT ON COLUMN inbox.mailbox IS 'The mailbox''s address.';
COMMENT ON COLUMN inbox.uid IS 'IMAP''s UID in that mailbox.';
COMMENT ON COLUMN inbox.folder IS 'INBOX, Junk, Trash or another.';
COMMENT ON COLUMN inbox.flags IS 'As IMAP writes them.';
COMMENT ON COLUMN inbox.received_at IS 'When the end of data came.';
COMMENT ON COLUMN inbox."from" IS 'The From field, decoded.';
COMMENT ON COLUMN inbox.subject IS 'The Subject field, decoded.';
COMMENT ON COLUMN inbox.size_octets IS 'Of the content, without our trace fields.';
COMMENT ON COLUMN inbox.message IS 'The message''s id as people see it; message_octets(id_number(...)) gives the message.';

CREATE VIEW refused_session AS
SELECT s.id, s.ended_at, s.client_address, s.helo, refusal.stage, refusal.reply, refusal.policy
FROM session s
CROSS JOIN LATERAL (SELECT s.verdicts -> -1 AS verdict, split_part(rtrim(s.dialogue, E'\n'), E'\n', -1) AS line) AS last
CROSS JOIN LATERAL (
    -- Some objections are for some recipients only and wait for RCPT: that one refused shows in what the client heard.
    SELECT coalesce(last.verdict ->> 'verdict' IN ('reject', 'defer')
                    AND strpos(E'\n' || s.dialogue, E'\nS: ' || left(last.verdict ->> 'reason', 3)) > 0, false)
) AS policy (has_refused)
CROSS JOIN LATERAL (
    SELECT last.verdict ->> 'stage' AS stage, last.verdict ->> 'reason' AS reply, last.verdict ->> 'policy' AS policy
    WHERE policy.has_refused
    UNION ALL
    SELECT 'session', CASE WHEN last.line LIKE 'S: %' THEN substr(last.line, 4) ELSE '' END, NULL
    WHERE s.ending IN ('timeout', 'limit', 'refused') AND NOT (policy.has_refused AND s.ending = 'refused')
) AS refusal
WHERE s.ending IN ('timeout', 'limit', 'refused') OR s.verdicts IS NOT NULL;
COMMENT ON VIEW refused_session IS 'Who was refused at CONNECT or HELO, and sessions that we ended: what recent_refusals has beside transactions. Ask for a time by id: >= id_at(now() - interval ''1 day'').';
COMMENT ON COLUMN refused_session.id IS 'The session''s.';
COMMENT ON COLUMN refused_session.ended_at IS 'When the session ended.';
COMMENT ON COLUMN refused_session.client_address IS 'The client.';
COMMENT ON COLUMN refused_session.helo IS 'What it called itself, where that was not refused; NULL: it never did.';
COMMENT ON COLUMN refused_session.stage IS 'connect, helo, or session where we ended it later: a bound was reached, or the client was too slow.';
COMMENT ON COLUMN refused_session.reply IS 'What the client heard, of several refusals at HELO the last; "" where the dialogue was too long to have it.';
COMMENT ON COLUMN refused_session.policy IS 'The policy that refused; NULL where none did.';

CREATE VIEW recent_refusals AS  -- from the newest id backwards, so that LIMIT ends it soon
SELECT refusal.ended_at AS refused_at,
       id_text(refusal.id) AS id,
       refusal.client_address AS client,
       refusal.helo,
       refusal.reverse_path,
       refusal.forward_path,
       refusal.stage,
       refusal.reply,
       refusal.policy,
       refusal.reason
FROM (
    (SELECT t.id, t.ended_at, t.client_address, t.helo, t.reverse_path, part.forward_path, part.stage, part.reply,
            part.policy, part.reason
     FROM transaction t
     CROSS JOIN LATERAL (
         SELECT NULL::text AS forward_path, t.stage, t.reply, t.policy, t.reason
         WHERE t.disposition IN ('refused', 'deferred') AND t.stage <> 'rcpt'
         UNION ALL
         SELECT r.forward_path, 'rcpt', r.reply, coalesce(r.policy, CASE WHEN t.stage = 'rcpt' THEN t.policy END),
                CASE WHEN t.stage = 'rcpt' THEN t.reason END
         FROM recipient r
         WHERE r.transaction_id = t.id AND NOT r.is_accepted
     ) AS part
     ORDER BY t.id DESC)
    UNION ALL
    (SELECT s.id, s.ended_at, s.client_address, s.helo, NULL, NULL, s.stage, s.reply, s.policy, NULL
     FROM refused_session s
     ORDER BY s.id DESC)
) AS refusal
ORDER BY refusal.id DESC;
COMMENT ON VIEW recent_refusals IS 'What was refused or deferred, newest first: a row for each refused recipient, one for each transaction refused as a whole, and those of refused_session.';
COMMENT ON COLUMN recent_refusals.refused_at IS 'When the transaction ended; without one, the session.';
COMMENT ON COLUMN recent_refusals.id IS 'The transaction''s id, as the client heard it; without one, the session''s.';
COMMENT ON COLUMN recent_refusals.client IS 'The client''s address.';
COMMENT ON COLUMN recent_refusals.helo IS 'What it called itself; NULL where it did not, or was refused for it.';
COMMENT ON COLUMN recent_refusals.reverse_path IS 'Whom it is from; "" for the null path; NULL where there was no MAIL.';
COMMENT ON COLUMN recent_refusals.forward_path IS 'Whom it was for; NULL where the transaction or the client was refused as a whole.';
COMMENT ON COLUMN recent_refusals.stage IS 'Where: connect, helo, mail, rcpt, data, end_of_data; session where we ended it at a bound or because the client was too slow.';
COMMENT ON COLUMN recent_refusals.reply IS 'What the client heard.';
COMMENT ON COLUMN recent_refusals.policy IS 'The policy that decided; NULL where none did.';
COMMENT ON COLUMN recent_refusals.reason IS 'Why, in words for us.';

CREATE VIEW verdicts AS
SELECT t.ended_at,
       id_text(t.id) AS id,
       v.stage,
       v.policy,
       v.fingerprint,
       v.verdict,
       v.reason,
       r.forward_path,
       t.client_address AS client,
       t.reverse_path,
       t.disposition,
       t.id AS transaction_id
FROM transaction t
CROSS JOIN LATERAL jsonb_to_recordset(t.verdicts)
    AS v (stage text, policy text, fingerprint text, verdict text, reason text, recipient integer)
LEFT JOIN recipient r ON r.transaction_id = t.id AND r.position = v.recipient
WHERE t.verdicts IS NOT NULL;
COMMENT ON VIEW verdicts IS 'What policies said of transactions where that was more than to go on: a row a verdict. Ask for a time by transaction_id: >= id_at(now() - interval ''1 day'').';
COMMENT ON COLUMN verdicts.ended_at IS 'When the transaction ended.';
COMMENT ON COLUMN verdicts.id IS 'The transaction''s id, as the client heard it.';
COMMENT ON COLUMN verdicts.stage IS 'When it was said: connect, helo, mail, rcpt, data, end_of_data.';
COMMENT ON COLUMN verdicts.policy IS 'Whose verdict it is, by its name in the configuration.';
COMMENT ON COLUMN verdicts.fingerprint IS 'Of the policy''s configuration, see policy_configuration; NULL for a policy that can''t be configured.';
COMMENT ON COLUMN verdicts.verdict IS 'accept, reject, defer, quarantine or discard.';
COMMENT ON COLUMN verdicts.reason IS 'The reply as one line, or the reason.';
COMMENT ON COLUMN verdicts.forward_path IS 'The recipient that it is about; NULL where it is about the transaction.';
COMMENT ON COLUMN verdicts.client IS 'The client''s address.';
COMMENT ON COLUMN verdicts.reverse_path IS 'Whom the transaction is from; "" for the null path.';
COMMENT ON COLUMN verdicts.disposition IS 'What became of the transaction in the end.';
COMMENT ON COLUMN verdicts.transaction_id IS 'The id as a number, by which the record is partitioned.';

CREATE VIEW authentication AS
SELECT t.ended_at,
       id_text(t.id) AS id,
       a.kind AS method,
       CASE a.kind WHEN 'dmarc' THEN 'from' WHEN 'arc' THEN 'seal' ELSE a.identity END AS identity,
       CASE a.kind WHEN 'dmarc' THEN a.author_domain
                   WHEN 'arc' THEN a.sealers ->> -1
                   ELSE a.domain END AS domain,
       a.result,
       a.problem,
       a.selector,
       a.algorithm,
       a.mechanism,
       CASE WHEN a.kind = 'dmarc' THEN coalesce(a.policy, '') END AS policy,
       CASE WHEN a.kind = 'dmarc' THEN coalesce(a.aligned_spf, false) END AS aligned_spf,
       CASE WHEN a.kind = 'dmarc' THEN coalesce(a.aligned_dkim, false) END AS aligned_dkim,
       coalesce(a.answers, '{}') AS answers,
       t.client_address AS client,
       t.reverse_path,
       t.disposition,
       t.id AS transaction_id
FROM transaction t
CROSS JOIN LATERAL jsonb_to_recordset(t.results)
    AS a (kind text, identity text, domain text, author_domain text, sealers jsonb, result text, problem text,
          selector text, algorithm text, mechanism text, policy text, aligned_spf boolean, aligned_dkim boolean,
          answers bigint[])
WHERE t.results IS NOT NULL AND a.kind IN ('spf', 'dkim', 'dmarc', 'arc');
COMMENT ON VIEW authentication IS 'What authentication found: a row a result. Ask for a time by transaction_id: >= id_at(now() - interval ''1 day'').';
COMMENT ON COLUMN authentication.ended_at IS 'When the transaction ended.';
COMMENT ON COLUMN authentication.id IS 'The transaction''s id, as the client heard it.';
COMMENT ON COLUMN authentication.method IS 'spf, dkim, dmarc or arc.';
COMMENT ON COLUMN authentication.identity IS 'What was checked: helo or mailfrom for spf; i= for dkim; from for dmarc; seal for arc.';
COMMENT ON COLUMN authentication.domain IS 'The domain that the result is about: that of the identity, d= for dkim, the author''s for dmarc, the newest sealer''s for arc. NULL where there is none.';
COMMENT ON COLUMN authentication.result IS 'In the words of RFC 8601: none, pass, fail, softfail, neutral, policy, temperror or permerror.';
COMMENT ON COLUMN authentication.problem IS 'Why it did not pass; NULL where there is nothing to say.';
COMMENT ON COLUMN authentication.selector IS 's= of a dkim signature.';
COMMENT ON COLUMN authentication.algorithm IS 'a= of a dkim signature.';
COMMENT ON COLUMN authentication.mechanism IS 'What matched in the spf record, as it is written there.';
COMMENT ON COLUMN authentication.policy IS 'What the author''s domain asks for in this case: none, quarantine or reject; "" where it has no policy. NULL for all but dmarc.';
COMMENT ON COLUMN authentication.aligned_spf IS 'Whether spf passed for the author''s domain. NULL for all but dmarc.';
COMMENT ON COLUMN authentication.aligned_dkim IS 'Whether dkim passed for the author''s domain. NULL for all but dmarc.';
COMMENT ON COLUMN authentication.answers IS 'The dns_answer rows that it rests on, by digest.';
COMMENT ON COLUMN authentication.client IS 'The client''s address.';
COMMENT ON COLUMN authentication.reverse_path IS 'Whom the transaction is from; "" for the null path.';
COMMENT ON COLUMN authentication.disposition IS 'What became of the transaction.';
COMMENT ON COLUMN authentication.transaction_id IS 'The id as a number, by which the record is partitioned.';

CREATE VIEW authentication_by_domain AS
SELECT a.domain,
       a.method,
       a.result,
       count(DISTINCT a.transaction_id) AS messages,
       count(DISTINCT a.transaction_id) FILTER (WHERE a.disposition = 'accepted') AS accepted,
       max(a.ended_at) AS last_seen_at
FROM authentication a
WHERE a.transaction_id >= id_at(now() - interval '30 days') AND a.domain <> ''
GROUP BY a.domain, a.method, a.result;
COMMENT ON VIEW authentication_by_domain IS 'How mail of each domain fared in authentication in the last 30 days: a row for a domain, method and result.';
COMMENT ON COLUMN authentication_by_domain.domain IS 'The domain that was checked or that signed; the author''s for dmarc.';
COMMENT ON COLUMN authentication_by_domain.method IS 'spf, dkim, dmarc or arc.';
COMMENT ON COLUMN authentication_by_domain.result IS 'In the words of RFC 8601.';
COMMENT ON COLUMN authentication_by_domain.messages IS 'How many transactions had that result, refused ones included.';
COMMENT ON COLUMN authentication_by_domain.accepted IS 'How many of these were accepted and not put into Junk.';
COMMENT ON COLUMN authentication_by_domain.last_seen_at IS 'When the last of them ended.';

-- ---------------------------------------------------------------- directory functions

CREATE FUNCTION local_key(local_part text) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN replace(replace(lower(normalize(local_part, NFC)), 'ß', 'ss'), 'ς', 'σ');
COMMENT ON FUNCTION local_key IS 'The local part of a stored target, case-folded as that of an address in the dialogue. lower() does not know all that Unicode''s case folding does: of letters in use these two differ. In a database whose locale is C it knows ASCII alone.';

CREATE FUNCTION split_address(address text, OUT local_part text, OUT domain_name text) LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN (
    SELECT ROW (
        CASE WHEN parts[1] LIKE '"%"'
             THEN regexp_replace(substr(parts[1], 2, length(parts[1]) - 2), '\\(.)', '\1', 'g')
             ELSE parts[1] END,
        CASE WHEN parts[2] LIKE '[%' THEN parts[2] ELSE rtrim(lower(parts[2]), '.') END)
    FROM regexp_match(address, '^(.*)@([^@]*)$') AS parts
);
COMMENT ON FUNCTION split_address IS 'The parts of a stored address, quotes and backslashes of the local part removed.';

-- What a recipient leads to. In this order:
--   1. An alias of that name: all its targets, which are resolved in turn. A target that is the alias itself means the
--      mailbox of that name: "alice -> alice, bob" keeps a copy with alice.
--   2. The mailbox of that name.
--   3. The same two for what stands before the domain's separator, with the rest as detail.
--   4. The domain's catch-all.
-- A name that holds "%", "!" or "@" is only ever found as it is (1 and 2): such names are how relaying is tried.
--
-- postmaster and abuse always lead somewhere (RFC 5321 section 4.5.1, RFC 2142), in a domain that is not enabled too,
-- and no quota is held against them. Where 1 to 3 give nothing that takes mail: the domain's catch-all, the configured
-- postmaster, the domain's first enabled mailbox, the first enabled mailbox of all, the first mailbox of all. The bare
-- <Postmaster>, whose domain is '', is the postmaster of the first domain with such a mailbox or alias, or of the
-- first domain.

CREATE FUNCTION resolve(local_key text, domain_key text, local_as_sent text, postmaster text DEFAULT NULL)
RETURNS TABLE (
    kind text,
    mailbox_id integer,
    local_part text,
    domain_name text,
    detail text,
    is_enabled boolean,
    quota_octets bigint,
    octets bigint
) LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE
    max_depth CONSTANT integer := 16;
    is_role CONSTANT boolean := local_key IN ('postmaster', 'abuse');
    -- What is still to be looked up; grows while it is worked off.
    w_local text[];     -- as sent, or as the target has it
    w_domain text[];
    w_detail text[];
    w_depth integer[];
    i integer := 0;
    visited text[] := '{}';
    deliverable integer := 0;
    fallback integer := 0;
    home mailgate.domain;   -- the domain of the recipient itself
    d mailgate.domain;
    b mailgate.mailbox;
    folded text;
    name text;
    own_detail text;
    at_separator integer;
    is_found boolean;
    means_mailbox boolean;
    target text;
    target_local text;
    target_domain text;
BEGIN
    IF domain_key = '' THEN
        SELECT o.* INTO home FROM mailgate.domain o
        ORDER BY o.is_enabled DESC,
                 EXISTS (SELECT FROM mailgate.mailbox m WHERE m.domain_id = o.id AND m.local_part = local_key)
                 OR EXISTS (SELECT FROM mailgate.alias a WHERE a.domain_id = o.id AND a.local_part = local_key) DESC,
                 o.id
        LIMIT 1;
    ELSE
        SELECT o.* INTO home FROM mailgate.domain o WHERE o.name = domain_key;
        IF NOT FOUND THEN
            kind := 'not_ours';
            RETURN NEXT;
            RETURN;
        END IF;
    END IF;
    IF home.id IS NOT NULL THEN
        w_local := ARRAY[local_as_sent];
        w_domain := ARRAY[home.name];
        w_detail := ARRAY[NULL::text];
        w_depth := ARRAY[0];
    END IF;

    LOOP
        WHILE i < coalesce(cardinality(w_local), 0) LOOP
            i := i + 1;
            mailbox_id := NULL; quota_octets := NULL; octets := NULL; is_enabled := NULL;
            local_part := w_local[i]; domain_name := w_domain[i]; detail := w_detail[i];
            IF w_depth[i] > max_depth THEN
                kind := 'too_deep';
                RETURN NEXT;
                CONTINUE;
            END IF;
            SELECT o.* INTO d FROM mailgate.domain o WHERE o.name = w_domain[i];
            IF NOT FOUND THEN
                IF NOT (w_local[i] || '@' || w_domain[i] = ANY (visited)) THEN
                    visited := visited || (w_local[i] || '@' || w_domain[i]);
                    kind := 'forward';
                    deliverable := deliverable + 1;
                    RETURN NEXT;
                END IF;
                CONTINUE;
            END IF;
            IF NOT d.is_enabled AND NOT is_role THEN
                kind := 'suspended';
                RETURN NEXT;
                CONTINUE;
            END IF;

            folded := CASE WHEN w_depth[i] = 0 THEN local_key ELSE mailgate.local_key(w_local[i]) END;
            name := folded;
            own_detail := w_detail[i];
            is_found := false;
            means_mailbox := false;
            FOR pass IN 1..2 LOOP
                IF pass = 2 THEN
                    at_separator := CASE WHEN d.plus_separator = '' OR folded ~ '[%!@]' THEN 0
                                         ELSE strpos(folded, d.plus_separator) END;
                    EXIT WHEN at_separator <= 1;
                    name := left(folded, at_separator - 1);
                    own_detail := substr(w_local[i], strpos(w_local[i], d.plus_separator) + 1);
                END IF;
                IF EXISTS (SELECT FROM mailgate.alias a WHERE a.domain_id = d.id AND a.local_part = name) THEN
                    is_found := true;
                    EXIT WHEN name || '@' || d.name = ANY (visited);
                    visited := visited || (name || '@' || d.name);
                    FOR target IN
                        SELECT a.target FROM mailgate.alias a
                        WHERE a.domain_id = d.id AND a.local_part = name ORDER BY a.target
                    LOOP
                        SELECT s.local_part, s.domain_name INTO target_local, target_domain
                        FROM mailgate.split_address(target) AS s;
                        IF target_domain = d.name AND mailgate.local_key(target_local) = name THEN
                            means_mailbox := true;
                        ELSE
                            w_local := w_local || target_local;
                            w_domain := w_domain || target_domain;
                            w_detail := w_detail || own_detail;
                            w_depth := w_depth || (w_depth[i] + 1);
                        END IF;
                    END LOOP;
                    EXIT;
                END IF;
                IF EXISTS (SELECT FROM mailgate.mailbox m WHERE m.domain_id = d.id AND m.local_part = name) THEN
                    is_found := true;
                    means_mailbox := true;
                    EXIT;
                END IF;
            END LOOP;
            IF means_mailbox THEN
                SELECT m.* INTO b FROM mailgate.mailbox m WHERE m.domain_id = d.id AND m.local_part = name;
                IF FOUND THEN
                    kind := 'mailbox'; mailbox_id := b.id; local_part := b.local_part; domain_name := d.name;
                    detail := own_detail; is_enabled := b.is_enabled;
                    IF b.quota_octets IS NOT NULL AND NOT is_role THEN
                        quota_octets := b.quota_octets;
                        SELECT u.octets INTO octets FROM mailgate.mailbox_usage u WHERE u.mailbox_id = b.id;
                    END IF;
                    deliverable := deliverable + b.is_enabled::integer;
                ELSE
                    kind := 'dangling';  -- an alias of itself, without a mailbox
                END IF;
                RETURN NEXT;
            END IF;
            CONTINUE WHEN is_found;

            IF d.catch_all IS NOT NULL AND folded !~ '[%!@]' THEN
                IF NOT ('@' || d.name = ANY (visited)) THEN
                    visited := visited || ('@' || d.name);
                    SELECT s.local_part, s.domain_name INTO target_local, target_domain
                    FROM mailgate.split_address(d.catch_all) AS s;
                    w_local := w_local || target_local;
                    w_domain := w_domain || target_domain;
                    w_detail := w_detail || NULL::text;
                    w_depth := w_depth || (w_depth[i] + 1);
                END IF;
                CONTINUE;
            END IF;
            CONTINUE WHEN is_role AND w_depth[i] = 0;
            kind := CASE WHEN w_depth[i] = 0 THEN 'unknown' ELSE 'dangling' END;
            RETURN NEXT;
        END LOOP;

        EXIT WHEN NOT is_role OR deliverable > 0 OR fallback = 5;
        fallback := fallback + 1;
        target := CASE fallback WHEN 1 THEN home.catch_all WHEN 2 THEN postmaster END;
        IF target IS NOT NULL THEN
            SELECT s.local_part, s.domain_name INTO target_local, target_domain FROM mailgate.split_address(target) AS s;
            w_local := w_local || target_local;
            w_domain := w_domain || target_domain;
            w_detail := w_detail || NULL::text;
            w_depth := w_depth || 1;
        ELSIF fallback >= 3 THEN
            SELECT m.* INTO b FROM mailgate.mailbox m
            WHERE CASE fallback WHEN 3 THEN m.domain_id = home.id AND m.is_enabled WHEN 4 THEN m.is_enabled ELSE true END
            ORDER BY m.id LIMIT 1;
            IF FOUND THEN
                SELECT o.name INTO domain_name FROM mailgate.domain o WHERE o.id = b.domain_id;
                kind := 'mailbox'; mailbox_id := b.id; local_part := b.local_part; detail := NULL;
                is_enabled := true; quota_octets := NULL; octets := NULL;
                deliverable := deliverable + 1;
                RETURN NEXT;
            END IF;
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION resolve IS 'All that a recipient leads to, a row a destination. kind: mailbox, forward (an address elsewhere), not_ours, unknown, suspended (its domain is not enabled), dangling (a target of ours that leads nowhere), too_deep (aliases of aliases, more than 16). No row: aliases that lead only to each other. local_key and domain_key are folded; local_as_sent gives the detail its case; postmaster is the configured address, or NULL.';

CREATE FUNCTION directory_is_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('directory', TG_TABLE_NAME);
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION directory_is_changed() IS 'Tells running nodes to forget what they know of recipients.';
CREATE TRIGGER directory_is_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON domain
    FOR EACH STATEMENT EXECUTE FUNCTION directory_is_changed();
CREATE TRIGGER directory_is_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON mailbox
    FOR EACH STATEMENT EXECUTE FUNCTION directory_is_changed();
CREATE TRIGGER directory_is_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON alias
    FOR EACH STATEMENT EXECUTE FUNCTION directory_is_changed();
CREATE TRIGGER directory_is_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON send_grant
    FOR EACH STATEMENT EXECUTE FUNCTION directory_is_changed();

-- ---------------------------------------------------------------- who may send as whom
--
-- An address is an account's own if it is named in a grant, or leads to the account's mailbox by names alone: it is the
-- mailbox's, or an alias that leads to it, over other aliases or not, each with a detail or without. A catch-all and
-- what postmaster falls back to are no names: they say who reads mail that is meant for nobody. Nor does an alias make
-- the name of a mailbox somebody else's: it says who gets copies of that one's mail.

CREATE FUNCTION name_in_domain(p_domain_id integer, p_separator text, p_local_part text)
RETURNS text LANGUAGE sql STABLE STRICT
RETURN CASE
    WHEN EXISTS (SELECT FROM mailgate.alias a WHERE a.domain_id = p_domain_id AND a.local_part = p_local_part)
      OR EXISTS (SELECT FROM mailgate.mailbox m WHERE m.domain_id = p_domain_id AND m.local_part = p_local_part)
      OR p_separator = '' OR p_local_part ~ '[%!@]' OR strpos(p_local_part, p_separator) <= 1
    THEN p_local_part
    ELSE left(p_local_part, strpos(p_local_part, p_separator) - 1)
END;
COMMENT ON FUNCTION name_in_domain IS 'The name that a local part stands for, as resolve finds it: itself where there is such an alias or mailbox, else what stands before the separator.';

CREATE FUNCTION sender_rights(account_local text, account_domain text, address_local text, address_domain text, address text)
RETURNS TABLE (
    mailbox_id integer,
    is_enabled boolean,
    sending_limit integer,
    is_own boolean,
    day date,
    messages integer,
    recipients integer
) LANGUAGE sql STABLE AS $$
    WITH RECURSIVE reached (domain_id, name) AS (
        SELECT d.id, mailgate.name_in_domain(d.id, d.plus_separator, address_local)
        FROM mailgate.domain d
        WHERE d.name = address_domain AND d.is_enabled
        UNION
        SELECT d.id, mailgate.name_in_domain(d.id, d.plus_separator, mailgate.local_key(s.local_part))
        FROM reached r
        JOIN mailgate.alias a ON a.domain_id = r.domain_id AND a.local_part = r.name
        CROSS JOIN LATERAL mailgate.split_address(a.target) AS s
        JOIN mailgate.domain d ON d.name = s.domain_name AND d.is_enabled
        WHERE NOT EXISTS (SELECT FROM mailgate.mailbox m WHERE m.domain_id = r.domain_id AND m.local_part = r.name)
    )
    SELECT m.id, m.is_enabled AND d.is_enabled, m.sending_limit,
           EXISTS (SELECT FROM reached r WHERE r.domain_id = m.domain_id AND r.name = m.local_part)
           OR EXISTS (SELECT FROM mailgate.send_grant g
                      WHERE g.mailbox_id = m.id AND g.address IN (sender_rights.address, '@' || address_domain)),
           today.day, coalesce(u.messages, 0), coalesce(u.recipients, 0)
    FROM mailgate.domain d
    JOIN mailgate.mailbox m ON m.domain_id = d.id
    CROSS JOIN (SELECT (now() AT TIME ZONE 'UTC')::date) AS today (day)
    LEFT JOIN mailgate.sending_usage u ON u.mailbox_id = m.id AND u.day = today.day
    WHERE d.name = account_domain AND m.local_part = account_local
$$;
COMMENT ON FUNCTION sender_rights IS 'The account of that name, with what it has sent today, and whether an address is its own. No row where there is no such account. Local parts and domains are folded; address is both as one text, as in send_grant.';

CREATE FUNCTION signing_keys_are_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('dkim_key', '');
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION signing_keys_are_changed() IS 'Tells running nodes to forget what they know of keys that sign.';
CREATE TRIGGER signing_keys_are_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON dkim_key
    FOR EACH STATEMENT EXECUTE FUNCTION signing_keys_are_changed();
