-- Every query of the command line: "-- name: what it is for", then one statement with named parameters.

-- other_connections: how many clients besides this one use the database
SELECT count(*) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid();

-- list_domains: every domain, with how much hangs on it
SELECT d.name, d.is_enabled, d.catch_all, d.plus_separator,
       (SELECT count(*) FROM mailbox m WHERE m.domain_id = d.id),
       (SELECT count(DISTINCT a.local_part) FROM alias a WHERE a.domain_id = d.id),
       d.created_at
FROM domain d
ORDER BY d.name;

-- find_domain: one domain by its name
SELECT id, is_enabled, catch_all, plus_separator FROM domain WHERE name = %(name)s;

-- published_dkim_keys: the keys whose records are to be in the DNS: all but those that have signed nothing for a week
SELECT selector, algorithm, public_key FROM dkim_key
WHERE domain = %(domain)s AND (retired_at IS NULL OR retired_at > now() - interval '7 days')
ORDER BY created_at, algorithm DESC, selector;

-- add_domain: a domain that is not there yet
INSERT INTO domain (name, catch_all, plus_separator, is_enabled)
VALUES (%(name)s, %(catch_all)s, coalesce(%(plus_separator)s, '+'), coalesce(%(is_enabled)s, true))
ON CONFLICT (name) DO NOTHING;

-- set_domain: change what was given, keep the rest
UPDATE domain
SET catch_all = CASE WHEN %(changes_catch_all)s THEN %(catch_all)s ELSE catch_all END,
    plus_separator = coalesce(%(plus_separator)s, plus_separator),
    is_enabled = coalesce(%(is_enabled)s, is_enabled)
WHERE name = %(name)s;

-- count_mailboxes_of_domain: what keeps a domain from being removed
SELECT count(*) FROM mailbox WHERE domain_id = %(domain_id)s;

-- remove_aliases_of_domain: aliases go with their domain
DELETE FROM alias WHERE domain_id = %(domain_id)s;

-- remove_domain: a domain without mailboxes
DELETE FROM domain WHERE id = %(domain_id)s;

-- list_mailboxes: every mailbox, or those of one domain
SELECT m.id, m.local_part, d.name, m.is_enabled, m.quota_octets, coalesce(u.messages, 0), coalesce(u.octets, 0),
       m.created_at, m.sending_limit
FROM mailbox m
JOIN domain d ON d.id = m.domain_id
LEFT JOIN mailbox_usage u ON u.mailbox_id = m.id
WHERE %(domain)s IS NULL OR d.name = %(domain)s
ORDER BY d.name, m.local_part;

-- find_mailbox: one mailbox by its address
SELECT m.id, m.is_enabled, m.quota_octets, coalesce(u.messages, 0), coalesce(u.octets, 0), m.created_at, m.sending_limit
FROM mailbox m
JOIN domain d ON d.id = m.domain_id
LEFT JOIN mailbox_usage u ON u.mailbox_id = m.id
WHERE d.name = %(domain)s AND m.local_part = %(local_part)s;

-- add_mailbox: a mailbox that is not there yet
INSERT INTO mailbox (domain_id, local_part, quota_octets, is_enabled)
VALUES (%(domain_id)s, %(local_part)s, %(quota_octets)s, coalesce(%(is_enabled)s, true))
ON CONFLICT (domain_id, local_part) DO NOTHING
RETURNING id;

-- set_mailbox: change what was given, keep the rest
UPDATE mailbox
SET quota_octets = CASE WHEN %(changes_quota)s THEN %(quota_octets)s ELSE quota_octets END,
    sending_limit = CASE WHEN %(changes_sending_limit)s THEN %(sending_limit)s ELSE sending_limit END,
    is_enabled = coalesce(%(is_enabled)s, is_enabled)
WHERE id = %(mailbox_id)s;

-- lock_mailbox: nothing is delivered to it until this transaction ends
SELECT 1 FROM mailbox_usage WHERE mailbox_id = %(mailbox_id)s FOR UPDATE;

-- count_deliveries: how many messages a mailbox holds
SELECT count(*) FROM delivery WHERE mailbox_id = %(mailbox_id)s;

-- remove_deliveries: all mail of a mailbox, and the messages that nobody else has and that wait for no sending
WITH removed AS (
    DELETE FROM delivery WHERE mailbox_id = %(mailbox_id)s RETURNING message_id
)
DELETE FROM message m
USING removed r
WHERE m.id = r.message_id
  AND NOT EXISTS (SELECT FROM delivery d WHERE d.message_id = m.id AND d.mailbox_id <> %(mailbox_id)s)
  AND NOT EXISTS (SELECT FROM queue q WHERE q.message_id = m.id);

-- share_secret: a secret that all nodes share, unless it is there
INSERT INTO secret (name, octets) VALUES (%(name)s, %(octets)s) ON CONFLICT (name) DO NOTHING;

-- find_secret: a secret that all nodes share
SELECT octets FROM secret WHERE name = %(name)s;

-- replace_password: the account's own password, whatever it was before
INSERT INTO credential (mailbox_id, name, selector, argon2, scram_sha256)
VALUES (%(mailbox_id)s, %(name)s, %(selector)s, %(argon2)s, %(scram_sha256)s)
ON CONFLICT (mailbox_id, name) DO UPDATE
SET argon2 = EXCLUDED.argon2, scram_sha256 = EXCLUDED.scram_sha256, created_at = now(), last_used_at = NULL,
    last_used_from = NULL;

-- add_app_password: an app password, unless its name is taken
INSERT INTO credential (mailbox_id, name, selector, argon2, scram_sha256)
VALUES (%(mailbox_id)s, %(name)s, %(selector)s, %(argon2)s, %(scram_sha256)s)
ON CONFLICT (mailbox_id, name) DO NOTHING;

-- list_app_passwords: the app passwords of an account
SELECT name, created_at, last_used_at, host(last_used_from) FROM credential
WHERE mailbox_id = %(mailbox_id)s AND name <> ''
ORDER BY name;

-- remove_password: one password of an account; "" is its own
DELETE FROM credential WHERE mailbox_id = %(mailbox_id)s AND name = %(name)s;

-- list_bans: who is banned now, and what counts against others
SELECT kind, subject, failures, counted_since,
       CASE WHEN banned_until > now() AND isfinite(banned_until) THEN banned_until END,
       coalesce(banned_until = 'infinity', false),
       CASE WHEN banned_until > now() THEN reason END
FROM ban
WHERE banned_until > now() OR %(with_counts)s
ORDER BY kind DESC, banned_until NULLS LAST, network, subject;

-- lift_bans: forget what counts against an account, or against every network that a client is in
DELETE FROM ban
WHERE (kind = 'account' AND subject = %(account)s) OR network >>= %(network)s::inet;

-- add_ban: ban a network or an account, until then or until somebody lifts it
INSERT INTO ban (kind, subject, banned_until, reason)
VALUES (%(kind)s, %(subject)s, coalesce(%(until)s, 'infinity'::timestamptz), %(reason)s)
ON CONFLICT (kind, subject) DO UPDATE SET banned_until = EXCLUDED.banned_until, reason = EXCLUDED.reason;

-- remove_mailbox: a mailbox without mail
DELETE FROM mailbox WHERE id = %(mailbox_id)s;

-- add_grant: an address, or "@" and a domain, that a mailbox may send as
INSERT INTO send_grant (mailbox_id, address) VALUES (%(mailbox_id)s, %(address)s) ON CONFLICT DO NOTHING;

-- remove_grant: what a mailbox may send as no longer
DELETE FROM send_grant WHERE mailbox_id = %(mailbox_id)s AND address = %(address)s;

-- list_grants: what mailboxes may send as beside their own names, or one of them
SELECT m.local_part, d.name, g.address, g.created_at
FROM send_grant g
JOIN mailbox m ON m.id = g.mailbox_id
JOIN domain d ON d.id = m.domain_id
WHERE %(mailbox_id)s::integer IS NULL OR m.id = %(mailbox_id)s
ORDER BY d.name, m.local_part, g.address;

-- list_aliases: every alias with its targets, or those of one domain
SELECT a.local_part, d.name, array_agg(a.target ORDER BY a.target), min(a.created_at)
FROM alias a
JOIN domain d ON d.id = a.domain_id
WHERE %(domain)s IS NULL OR d.name = %(domain)s
GROUP BY d.name, a.local_part
ORDER BY d.name, a.local_part;

-- find_alias: the targets of one alias
SELECT a.target
FROM alias a
JOIN domain d ON d.id = a.domain_id
WHERE d.name = %(domain)s AND a.local_part = %(local_part)s
ORDER BY a.target;

-- aliases_to: the aliases that lead to an address
SELECT a.local_part, d.name
FROM alias a
JOIN domain d ON d.id = a.domain_id
WHERE lower(a.target) = lower(%(target)s)
ORDER BY d.name, a.local_part;

-- add_alias_target: one more target, unless it is there
INSERT INTO alias (domain_id, local_part, target)
VALUES (%(domain_id)s, %(local_part)s, %(target)s)
ON CONFLICT DO NOTHING;

-- remove_alias: an alias, or one of its targets
DELETE FROM alias
WHERE domain_id = %(domain_id)s AND local_part = %(local_part)s
  AND (%(target)s IS NULL OR target = %(target)s);

-- newest_deliveries: the last messages of a mailbox, newest first
SELECT d.uid, d.message_id, m.received_at, coalesce(m.header_from, m.reverse_path), m.subject, m.size_octets, d.flags,
       d.folder
FROM delivery d
JOIN message m ON m.id = d.message_id
WHERE d.mailbox_id = %(mailbox_id)s AND (%(folder)s IS NULL OR d.folder = %(folder)s)
ORDER BY d.uid DESC
LIMIT %(limit)s;

-- later_deliveries: what came to a mailbox after that UID, oldest first
SELECT d.uid, d.message_id, m.received_at, coalesce(m.header_from, m.reverse_path), m.subject, m.size_octets, d.flags,
       d.folder
FROM delivery d
JOIN message m ON m.id = d.message_id
WHERE d.mailbox_id = %(mailbox_id)s AND d.uid > %(uid)s AND (%(folder)s IS NULL OR d.folder = %(folder)s)
ORDER BY d.uid;

-- next_uid: where a mailbox's new mail will begin
SELECT uid_next FROM mailbox_usage WHERE mailbox_id = %(mailbox_id)s;

-- find_message: one message without its content
SELECT received_at, reverse_path, header_from, subject, header_message_id, trace, size_octets, content IS NULL, sha256
FROM message WHERE id = %(id)s;

-- content_part: some octets of a message's content that is kept in one piece; the first octet is 1
SELECT substring(content FROM %(start)s FOR %(length)s) FROM message WHERE id = %(id)s;

-- content_piece: one piece of a message's content that is kept in pieces
SELECT octets FROM message_piece WHERE message_id = %(id)s AND position = %(position)s;

-- find_transaction: how a transaction went
SELECT t.session_id, t.node, t.listener, host(t.client_address), t.helo, t.protocol, t.authenticated, t.reverse_path,
       t.disposition, t.stage, t.policy, t.reason, t.reply, t.size_octets, t.started_at, t.ended_at, t.envid, t.ret,
       s.tls_version, s.tls_cipher, s.client_port
FROM transaction t
LEFT JOIN session s ON s.id = t.session_id
WHERE t.id = %(id)s;

-- recipients_of: every forward-path of a transaction and its fate
SELECT forward_path, is_accepted, reply FROM recipient WHERE transaction_id = %(id)s ORDER BY position;

-- deliveries_of: which mailboxes got a message
SELECT b.local_part, o.name, d.folder, d.uid, d.flags
FROM delivery d
JOIN mailbox b ON b.id = d.mailbox_id
JOIN domain o ON o.id = b.domain_id
WHERE d.message_id = %(id)s
ORDER BY o.name, b.local_part, d.uid;

-- waiting_for: where a message is still to be sent
SELECT recipient FROM queue WHERE message_id = %(id)s ORDER BY id;

-- list_sessions: the last sessions since a time, newest first
SELECT id, started_at, ended_at, node, listener, host(client_address), client_port, helo, tls_version, tls_cipher,
       authenticated, transactions, errors, ending, dialogue
FROM session
WHERE id >= id_at(%(since)s)
ORDER BY id DESC
LIMIT %(limit)s;

-- find_session: one session
SELECT id, started_at, ended_at, node, listener, host(client_address), client_port, helo, tls_version, tls_cipher,
       authenticated, transactions, errors, ending, dialogue
FROM session
WHERE id = %(id)s;

-- list_refusals: as the view recent_refusals, since a time; bounded by id first, which is what the partitions go by
SELECT refusal.id, refusal.ended_at, host(refusal.client_address), refusal.helo, refusal.reverse_path,
       refusal.forward_path, refusal.stage, refusal.reply, refusal.policy, refusal.reason
FROM (
    (SELECT t.id, t.ended_at, t.client_address, t.helo, t.reverse_path, NULL AS forward_path, t.stage, t.reply,
            t.policy, t.reason
     FROM transaction t
     WHERE t.disposition IN ('refused', 'deferred') AND t.stage <> 'rcpt' AND t.id >= id_at(%(since)s)
     ORDER BY t.id DESC
     LIMIT %(limit)s)
    UNION ALL
    (SELECT r.transaction_id, t.ended_at, t.client_address, t.helo, t.reverse_path, r.forward_path, 'rcpt', r.reply,
            coalesce(r.policy, CASE WHEN t.stage = 'rcpt' THEN t.policy END),
            CASE WHEN t.stage = 'rcpt' THEN t.reason END
     FROM recipient r
     JOIN transaction t ON t.id = r.transaction_id
     WHERE NOT r.is_accepted AND r.transaction_id >= id_at(%(since)s)
     ORDER BY r.transaction_id DESC
     LIMIT %(limit)s)
    UNION ALL
    (SELECT s.id, s.ended_at, s.client_address, s.helo, NULL, NULL, s.stage, s.reply, s.policy, NULL
     FROM refused_session s
     WHERE s.id >= id_at(%(since)s)
     ORDER BY s.id DESC
     LIMIT %(limit)s)
) AS refusal
ORDER BY refusal.id DESC
LIMIT %(limit)s;

-- folders_of: the folders of a mailbox and how many messages are in each
SELECT folder, count(*) FROM delivery WHERE mailbox_id = %(mailbox_id)s GROUP BY folder ORDER BY folder;

-- deliveries_to_export: some messages of a folder in the order of their UIDs, with what does not grow with their size
SELECT d.uid, d.message_id, d.flags, d.delivered_at, m.reverse_path, m.trace, m.size_octets, m.content IS NULL
FROM delivery d
JOIN message m ON m.id = d.message_id
WHERE d.mailbox_id = %(mailbox_id)s AND d.folder = %(folder)s AND d.uid > %(uid)s
ORDER BY d.uid
LIMIT %(limit)s;

-- draw_instance: a number for the middle bits of new ids, and whether a living process has it
SELECT number, instance_is_alive(number::integer) FROM nextval('instance') AS number;

-- hold_instance: let others see that the number is taken for as long as this connection lives
SELECT pg_advisory_lock_shared(1836345701, %(instance)s);

-- add_message: a message that was brought by a command and not by a transaction
INSERT INTO message (id, received_at, reverse_path, header_from, subject, header_message_id, trace, content,
                     size_octets, sha256)
VALUES (%(id)s, %(received_at)s, %(reverse_path)s, %(header_from)s, %(subject)s, %(header_message_id)s, '',
        %(content)s, %(size_octets)s, %(sha256)s);

-- add_piece: a piece of a message's content, before the message itself
INSERT INTO message_piece (message_id, position, octets) VALUES (%(id)s, %(position)s, %(octets)s);

-- claim_uids: room in a mailbox, and its next UIDs, until this transaction ends; no row where its quota has no room
UPDATE mailbox_usage u
SET uid_next = u.uid_next + %(messages)s, messages = u.messages + %(messages)s, octets = u.octets + %(octets)s
FROM mailbox b
WHERE u.mailbox_id = %(mailbox_id)s AND b.id = u.mailbox_id
  AND (%(ignores_quota)s OR b.quota_octets IS NULL OR u.octets + %(octets)s <= b.quota_octets)
RETURNING u.uid_next - %(messages)s;

-- add_deliveries: put messages into a mailbox, from that UID on, and tell whoever waits for new mail
WITH added AS (
    INSERT INTO delivery (mailbox_id, uid, message_id, folder, flags, delivered_at)
    SELECT %(mailbox_id)s, %(first_uid)s + n.place - 1, n.message_id, n.folder, n.flags::text[], n.delivered_at
    FROM unnest(%(ids)s::bigint[], %(folders)s::text[], %(flags)s::text[], %(times)s::timestamptz[])
         WITH ORDINALITY AS n (message_id, folder, flags, delivered_at, place)
    RETURNING mailbox_id, uid
)
SELECT count(pg_notify('newmail', format('{"mailbox":%%s,"uid":%%s}', mailbox_id, uid))) FROM added;

-- evidence_of_transaction: what was found in a transaction and what policies said of it
SELECT results, verdicts FROM transaction WHERE id = %(id)s;

-- evidence_of_session: what was found in a session, as far as no transaction has it
SELECT results, verdicts FROM session WHERE id = %(id)s;

-- fates_of: every forward-path of a transaction, and what became of its copy
SELECT position, forward_path, is_accepted, reply, disposition, policy, reason
FROM recipient
WHERE transaction_id = %(id)s
ORDER BY position;

-- transactions_of: the transactions of a session; bounded by id, which is what the partitions go by
SELECT id, reverse_path, disposition, stage, policy, reply
FROM transaction
WHERE id BETWEEN %(id)s AND id_at(coalesce(%(ended_at)s, id_time(%(id)s) + interval '1 hour') + interval '1 second')
  AND session_id = %(id)s
ORDER BY id;

-- dns_answers: what results name
SELECT digest, name, type, outcome, rcode, records, ttl_seconds, is_authenticated, answered_at, detail
FROM dns_answer
WHERE digest = ANY (%(digests)s::bigint[]);

-- policy_configurations: what verdicts name
SELECT fingerprint, policy, options, first_seen_at
FROM policy_configuration
WHERE fingerprint = ANY (%(fingerprints)s::text[]);

-- list_dkim_keys: the keys of one domain, or of all, without what is sealed
SELECT domain, selector, algorithm, state, public_key, created_at, activated_at, retired_at
FROM dkim_key
WHERE %(domain)s IS NULL OR domain = %(domain)s
ORDER BY domain, array_position(ARRAY['active', 'pending', 'retired'], state), created_at, algorithm DESC, selector;

-- find_sealed_dkim_key: the sealed part of a key, and which master key opens it
SELECT sealed_key, master_key_id FROM dkim_key WHERE domain = %(domain)s AND selector = %(selector)s;

-- lock_sealed_dkim_keys: all that one master key opens, until the transaction ends
SELECT domain, selector, sealed_key FROM dkim_key WHERE master_key_id = %(master_key_id)s
ORDER BY domain, selector FOR UPDATE;

-- reseal_dkim_key: the same key, sealed with another master key
UPDATE dkim_key SET sealed_key = %(sealed_key)s, master_key_id = %(master_key_id)s
WHERE domain = %(domain)s AND selector = %(selector)s;

-- add_dkim_key: a key that waits for its record
INSERT INTO dkim_key (domain, selector, algorithm, sealed_key, master_key_id, public_key)
VALUES (%(domain)s, %(selector)s, %(algorithm)s, %(sealed_key)s, %(master_key_id)s, %(public_key)s);

-- activate_dkim_key: sign with this key instead of the others of its algorithm; gives the selectors of those
WITH retired AS (
    UPDATE dkim_key SET state = 'retired', retired_at = now()
    WHERE domain = %(domain)s AND algorithm = %(algorithm)s AND state = 'active' AND selector <> %(selector)s
    RETURNING selector
), activated AS (
    UPDATE dkim_key SET state = 'active', activated_at = now(), retired_at = NULL
    WHERE domain = %(domain)s AND selector = %(selector)s
)
SELECT selector FROM retired;

-- retire_dkim_key: sign with this key no longer
UPDATE dkim_key SET state = 'retired', retired_at = now()
WHERE domain = %(domain)s AND selector = %(selector)s AND state = 'active';

-- remove_dkim_key: a key that does not sign
DELETE FROM dkim_key WHERE domain = %(domain)s AND selector = %(selector)s AND state <> 'active';

-- dmarc_sources: which hosts sent as a domain and what is below it, by the reports that came
WITH told AS (
    SELECT r.source, r.messages, r.dkim = 'pass' AS dkim, r.spf = 'pass' AS spf, r.disposition, r.results,
           d.organization, d.ends_at
    FROM dmarc_report d JOIN dmarc_report_row r ON r.dmarc_report_id = d.id
    WHERE (d.domain = %(domain)s OR right(d.domain, length(%(domain)s) + 1) = '.' || %(domain)s)
      AND d.ends_at >= %(since)s
      AND (%(shows_all)s OR d.authenticated_as IS NOT NULL)
)
SELECT host(t.source), sum(t.messages)::bigint,
       coalesce(sum(t.messages) FILTER (WHERE t.dkim OR t.spf), 0)::bigint,
       coalesce(sum(t.messages) FILTER (WHERE t.dkim), 0)::bigint,
       coalesce(sum(t.messages) FILTER (WHERE t.spf), 0)::bigint,
       coalesce(sum(t.messages) FILTER (WHERE t.disposition IN ('quarantine', 'reject')), 0)::bigint,
       array_agg(DISTINCT t.organization),
       coalesce(array_agg(DISTINCT a.domain) FILTER (WHERE a.domain IS NOT NULL), '{}'),
       max(t.ends_at)
FROM told t
LEFT JOIN LATERAL (
    -- One of them for each row, so that no row is counted twice.
    SELECT e.value ->> 'domain' AS domain FROM jsonb_array_elements(t.results) AS e (value)
    WHERE e.value ->> 'result' = 'pass' ORDER BY e.value ->> 'kind' LIMIT 1
) AS a ON true
GROUP BY t.source
ORDER BY sum(t.messages) DESC, t.source;

-- count_unproven_dmarc: how many reports about a domain nobody proved to have sent
SELECT count(*) FROM dmarc_report
WHERE (domain = %(domain)s OR right(domain, length(%(domain)s) + 1) = '.' || %(domain)s)
  AND ends_at >= %(since)s AND authenticated_as IS NULL;

-- list_reports_sent: the reports that we have made, the newest last
SELECT kind, domain, day, report_id, recipients, made_at FROM report_sent
WHERE kind = %(kind)s AND (%(domain)s IS NULL OR domain = %(domain)s) AND (%(day)s::date IS NULL OR day = %(day)s)
ORDER BY made_at, domain;

-- preview_dmarc_domains: whom the mail of a day was from, with the DMARC record that applied last
SELECT g.domain, g.messages, g.passed,
       (SELECT a.records FROM dns_answer a
        WHERE a.digest IN (SELECT digest::bigint FROM jsonb_array_elements_text(g.answers) AS digest)
          AND a.name = '_dmarc.' || g.domain AND a.type = 'TXT' LIMIT 1)
FROM (
    SELECT d.domain, sum(d.messages)::bigint AS messages,
           coalesce(sum(d.messages) FILTER (WHERE d.disposition = 'pass'), 0)::bigint AS passed,
           (array_agg(d.answers ORDER BY d.last_transaction_id DESC))[1] AS answers
    FROM dmarc_groups(%(day)s, %(domain)s) AS d
    GROUP BY d.domain
) AS g
ORDER BY g.messages DESC, g.domain;

-- preview_dmarc_rows: what the DMARC report of a domain would say
SELECT host(source), messages, disposition, aligned_dkim, aligned_spf, header_from, envelope_from, reasons::text,
       results::text
FROM dmarc_groups(%(day)s, %(domain)s)
ORDER BY messages DESC, source
LIMIT %(at_most)s;

-- preview_tls_results: what the TLS report of a domain would say
SELECT policy_type, policy, mx_host, result_type, sending_address, receiving_address, sessions, reason
FROM tls_result
WHERE day = %(day)s AND policy_domain = %(domain)s
ORDER BY policy_type, policy, sessions DESC, mx_host, result_type
LIMIT %(at_most)s;

-- list_tls_reports: the TLS reports about a domain and what is below it, the newest last
SELECT organization, begins_at, ends_at, successes, failures, policies, authenticated_as
FROM tls_report
WHERE (domain = %(domain)s OR right(domain, length(%(domain)s) + 1) = '.' || %(domain)s)
  AND ends_at >= %(since)s AND (%(shows_all)s OR authenticated_as IS NOT NULL)
ORDER BY begins_at, organization;

-- count_unproven_tls: how many TLS reports about a domain nobody proved to have sent
SELECT count(*) FROM tls_report
WHERE (domain = %(domain)s OR right(domain, length(%(domain)s) + 1) = '.' || %(domain)s)
  AND ends_at >= %(since)s AND authenticated_as IS NULL;

-- list_suppressions: the addresses elsewhere that are refused, or all that were counted
SELECT address, failures, suppressed_until, last_failed_at, last_reply FROM suppression
WHERE %(shows_all)s OR suppressed_until > now()
ORDER BY address;

-- add_suppression: refuse an address, whatever was counted
INSERT INTO suppression (address, failures, suppressed_until, last_reply, last_failed_at)
VALUES (%(address)s, 0, %(until)s, %(reason)s, now())
ON CONFLICT (address) DO UPDATE SET suppressed_until = excluded.suppressed_until, last_reply = excluded.last_reply;

-- remove_suppression: forget an address
DELETE FROM suppression WHERE address = %(address)s;

-- list_queue: what waits to be sent, the oldest first
SELECT o.id, o.message_id, o.recipient, o.domain, o.reverse_path, o.sender, o.size_octets, o.created_at, o.state,
       o.attempts, o.next_attempt_at, o.last_attempt_at, o.last_status, o.last_reply
FROM queue_overview o
WHERE o.id IN (SELECT queue_selected(%(messages)s, %(recipient)s, %(domain)s, %(sender)s))
ORDER BY o.id LIMIT %(limit)s;

-- count_queue: how much is selected
SELECT count(*), count(DISTINCT q.message_id) FROM queue q
WHERE q.id IN (SELECT queue_selected(%(messages)s, %(recipient)s, %(domain)s, %(sender)s));

-- list_attempts: what was tried for a message, the oldest first
SELECT attempted_at, recipient, result, status, reply, is_remote, is_ambiguous, host, address, port,
       tls_version, tls_cipher, tls_is_verified, tls_source, duration_seconds, node
FROM attempt WHERE transaction_id = %(id)s
ORDER BY attempted_at, queue_id;

-- retry_queue: try again now
UPDATE queue q SET due_at = now(), is_ready = true
WHERE q.id IN (SELECT queue_selected(%(messages)s, %(recipient)s, %(domain)s, %(sender)s)) AND NOT q.is_held;

-- retry_destinations: whose back-off ends with that
UPDATE destination d SET backed_off_until = now(), changed_at = now()
WHERE d.backed_off_until > now()
  AND (num_nonnulls(%(messages)s, %(recipient)s::text, %(domain)s::text, %(sender)s::text) = 0  -- smarthosts too
       OR d.name IN (SELECT q.domain FROM queue q
                     WHERE q.id IN (SELECT queue_selected(%(messages)s, %(recipient)s, %(domain)s, %(sender)s))));

-- hold_queue: don't send for now
UPDATE queue q SET is_held = true
WHERE q.id IN (SELECT queue_selected(%(messages)s, %(recipient)s, %(domain)s, %(sender)s)) AND NOT q.is_held;

-- release_queue: send what was held; its time begins anew
UPDATE queue q SET is_held = false, is_ready = true, due_at = now(), starts_at = now()
WHERE q.id IN (SELECT queue_selected(%(messages)s, %(recipient)s, %(domain)s, %(sender)s)) AND q.is_held;

-- bounce_queue: give up, and tell the senders
UPDATE queue q SET done = 'returned', domain = '-', is_held = false, is_ready = true, due_at = now(),
                   last_reply = %(reason)s
WHERE q.id IN (SELECT queue_selected(%(messages)s, %(recipient)s, %(domain)s, %(sender)s)) AND q.leased_by IS NULL;

-- remove_queue: give up, and tell nobody
WITH removed AS (
    DELETE FROM queue q
    WHERE q.id IN (SELECT queue_selected(%(messages)s, %(recipient)s, %(domain)s, %(sender)s)) AND q.leased_by IS NULL
    RETURNING q.message_id
)
SELECT count(*), coalesce(array_agg(DISTINCT message_id), '{}') FROM removed;

-- remove_unqueued_messages: messages that nobody waits for any more
DELETE FROM message m
WHERE m.id = ANY (%(messages)s)
  AND NOT EXISTS (SELECT FROM delivery d WHERE d.message_id = m.id)
  AND NOT EXISTS (SELECT FROM queue q WHERE q.message_id = m.id);

-- pause_destination: send nothing there
INSERT INTO destination AS d (name, is_paused, reason, changed_at) VALUES (%(name)s, true, %(reason)s, now())
ON CONFLICT (name) DO UPDATE SET is_paused = true, reason = excluded.reason, changed_at = now();

-- resume_destination: send there again, whatever trouble there was
DELETE FROM destination WHERE name = %(name)s;

-- list_destinations: where something waits, or that is left alone
SELECT coalesce(d.name, q.domain), coalesce(q.recipients, 0), coalesce(q.messages, 0), q.oldest_at,
       coalesce(d.is_paused, false), d.backed_off_until, coalesce(d.failures, 0), d.reason
FROM (SELECT domain, count(*) AS recipients, count(DISTINCT message_id) AS messages, min(created_at) AS oldest_at
      FROM queue GROUP BY domain) AS q
FULL JOIN destination d ON d.name = q.domain
ORDER BY coalesce(q.recipients, 0) DESC, 1
LIMIT %(limit)s;

-- notify_queue: tell the runners
SELECT pg_notify('queue', %(payload)s);
