-- The statements of storage: "-- name: what it is for", then the statement. Read by mailgate.storage.queries.
-- %(name)s stands for a literal that mailgate.storage.literal has made.

-- accept_messages: make a batch of messages ours: one round trip, one transaction. Repeating it changes nothing.
SELECT resends, usage_mailbox, usage_octets FROM mailgate.accept_messages(
    %(instance)s, %(node)s, %(confirmed)s, %(lost)s,
    -- messages
    %(id)s, %(session_id)s, %(resend_key)s, %(listener)s, %(client_address)s, %(helo)s, %(protocol)s,
    %(authenticated)s, %(reverse_path)s, %(body)s, %(is_smtputf8)s, %(ret)s, %(envid)s, %(disposition)s,
    %(policy)s, %(reason)s, %(reply)s, %(started_at)s, %(received_at)s, %(header_from)s, %(subject)s,
    %(header_message_id)s, %(size_octets)s, %(sha256)s, %(trace)s, %(content)s, %(results)s, %(verdicts)s,
    -- recipients
    %(recipient_transaction_id)s, %(recipient_position)s, %(recipient_forward_path)s, %(recipient_is_accepted)s,
    %(recipient_reply)s, %(recipient_notify)s, %(recipient_orcpt)s, %(recipient_disposition)s,
    %(recipient_policy)s, %(recipient_reason)s,
    -- deliveries
    %(delivery_message)s, %(delivery_mailbox)s, %(delivery_folder)s, %(delivery_detail)s, %(delivery_size_octets)s,
    %(delivery_received_at)s,
    -- queue rows
    %(queue)s,
    -- DNS answers
    %(answer_digest)s, %(answer_name)s, %(answer_type)s, %(answer_outcome)s, %(answer_rcode)s, %(answer_records)s,
    %(answer_ttl_seconds)s, %(answer_is_authenticated)s, %(answer_answered_at)s, %(answer_detail)s
);

-- settle_unconfirmed: what clients let us know of our 250s, when no batch carries it: they know, or their connection ended first.
DELETE FROM mailgate.unconfirmed WHERE transaction_id = ANY (%(confirmed)s::bigint[]);
UPDATE mailgate.unconfirmed SET is_lost = true
WHERE (transaction_id = ANY (%(lost)s::bigint[]) OR resent_by = ANY (%(lost)s::bigint[])) AND NOT is_lost;

-- begin: begin the transaction of a large message.
BEGIN;

-- commit: from here on the large message is ours.
COMMIT;

-- rollback: after an error.
ROLLBACK;

-- insert_piece: write one piece of a large message; it may be there already where the answer to an earlier COMMIT was lost.
INSERT INTO mailgate.message_piece (message_id, position, octets) VALUES (%(message_id)s, %(position)s, %(octets)s)
ON CONFLICT DO NOTHING;

-- hold_instance_lock: show for as long as this connection lives that the instance does; see the function instance_is_alive.
SELECT pg_advisory_lock_shared(1836345701, %(instance)s);

-- draw_instance: a number for a new process, and whether a living one has it already, after 4096 others.
SELECT number, mailgate.instance_is_alive(number::integer) FROM nextval('mailgate.instance') AS number;

-- record: write sessions, and transactions that brought no message, with their recipients and DNS answers. Repeating it changes nothing.
-- Nobody waits for this, so it doesn't wait for the disk; SET LOCAL ends with the transaction that the text is.
SET LOCAL synchronous_commit = off;
INSERT INTO mailgate.session (id, node, listener, role, client_address, client_port, server_address, server_port, helo,
                              is_esmtp, tls_version, tls_cipher, tls_server_name, client_certificate, authenticated,
                              started_at, ended_at, ending, transactions, errors, dialogue, results, verdicts)
SELECT n.id, %(node)s, n.listener, n.role, n.client_address, n.client_port, n.server_address, n.server_port, n.helo,
       n.is_esmtp, n.tls_version, n.tls_cipher, n.tls_server_name, n.client_certificate, n.authenticated,
       to_timestamp(n.started_at), to_timestamp(n.ended_at), n.ending, n.transactions, n.errors, n.dialogue,
       n.results, n.verdicts
FROM unnest(%(session_id)s::bigint[], %(session_listener)s::text[], %(session_role)s::text[],
            %(session_client_address)s::inet[], %(session_client_port)s::integer[],
            %(session_server_address)s::inet[], %(session_server_port)s::integer[], %(session_helo)s::text[],
            %(session_is_esmtp)s::boolean[], %(session_tls_version)s::text[], %(session_tls_cipher)s::text[],
            %(session_tls_server_name)s::text[], %(session_client_certificate)s::text[],
            %(session_authenticated)s::text[], %(session_started_at)s::double precision[],
            %(session_ended_at)s::double precision[], %(session_ending)s::text[], %(session_transactions)s::integer[],
            %(session_errors)s::integer[], %(session_dialogue)s::text[], %(session_results)s::jsonb[],
            %(session_verdicts)s::jsonb[])
     AS n (id, listener, role, client_address, client_port, server_address, server_port, helo, is_esmtp, tls_version,
           tls_cipher, tls_server_name, client_certificate, authenticated, started_at, ended_at, ending, transactions,
           errors, dialogue, results, verdicts)
ON CONFLICT DO NOTHING;
INSERT INTO mailgate.transaction (id, session_id, node, listener, client_address, helo, protocol, authenticated,
                                  reverse_path, body, is_smtputf8, ret, envid, disposition, stage, policy, reason,
                                  reply, size_octets, sha256, started_at, ended_at, results, verdicts)
SELECT n.id, n.session_id, %(node)s, n.listener, n.client_address, n.helo, n.protocol, n.authenticated, n.reverse_path,
       n.body, n.is_smtputf8, n.ret, n.envid, n.disposition, n.stage, n.policy, n.reason, n.reply, n.size_octets,
       n.sha256, to_timestamp(n.started_at), to_timestamp(n.ended_at), n.results, n.verdicts
FROM unnest(%(transaction_id)s::bigint[], %(transaction_session_id)s::bigint[], %(transaction_listener)s::text[],
            %(transaction_client_address)s::inet[], %(transaction_helo)s::text[], %(transaction_protocol)s::text[],
            %(transaction_authenticated)s::text[], %(transaction_reverse_path)s::text[], %(transaction_body)s::text[],
            %(transaction_is_smtputf8)s::boolean[], %(transaction_ret)s::text[], %(transaction_envid)s::text[],
            %(transaction_disposition)s::text[], %(transaction_stage)s::text[], %(transaction_policy)s::text[],
            %(transaction_reason)s::text[], %(transaction_reply)s::text[], %(transaction_size_octets)s::bigint[],
            %(transaction_sha256)s::bytea[], %(transaction_started_at)s::double precision[],
            %(transaction_ended_at)s::double precision[], %(transaction_results)s::jsonb[],
            %(transaction_verdicts)s::jsonb[])
     AS n (id, session_id, listener, client_address, helo, protocol, authenticated, reverse_path, body, is_smtputf8,
           ret, envid, disposition, stage, policy, reason, reply, size_octets, sha256, started_at, ended_at, results,
           verdicts)
ON CONFLICT DO NOTHING;
INSERT INTO mailgate.recipient (transaction_id, position, forward_path, is_accepted, reply, notify, orcpt, disposition,
                                policy, reason)
SELECT n.transaction_id, n.position, n.forward_path, n.is_accepted, n.reply, n.notify::text[], n.orcpt, n.disposition,
       n.policy, n.reason
FROM unnest(%(recipient_transaction_id)s::bigint[], %(recipient_position)s::integer[],
            %(recipient_forward_path)s::text[], %(recipient_is_accepted)s::boolean[], %(recipient_reply)s::text[],
            %(recipient_notify)s::text[], %(recipient_orcpt)s::text[], %(recipient_disposition)s::text[],
            %(recipient_policy)s::text[], %(recipient_reason)s::text[])
     AS n (transaction_id, position, forward_path, is_accepted, reply, notify, orcpt, disposition, policy, reason)
ON CONFLICT DO NOTHING;
INSERT INTO mailgate.dns_answer (digest, name, type, outcome, rcode, records, ttl_seconds, is_authenticated, answered_at,
                                 detail)
SELECT n.digest, n.name, n.type, n.outcome, n.rcode, n.records::text[], n.ttl_seconds, n.is_authenticated,
       to_timestamp(n.answered_at), nullif(n.detail, '')
FROM unnest(%(answer_digest)s::bigint[], %(answer_name)s::text[], %(answer_type)s::text[], %(answer_outcome)s::text[],
            %(answer_rcode)s::text[], %(answer_records)s::text[], %(answer_ttl_seconds)s::integer[],
            %(answer_is_authenticated)s::boolean[], %(answer_answered_at)s::double precision[],
            %(answer_detail)s::text[])
     AS n (digest, name, type, outcome, rcode, records, ttl_seconds, is_authenticated, answered_at, detail)
ON CONFLICT DO NOTHING;

-- record_policies: write how policies are configured, where that is new.
INSERT INTO mailgate.policy_configuration (fingerprint, policy, options, first_seen_at)
SELECT n.fingerprint, n.policy, n.options, now()
FROM unnest(%(fingerprint)s::text[], %(policy)s::text[], %(options)s::jsonb[]) AS n (fingerprint, policy, options)
ON CONFLICT DO NOTHING;

-- keep_partitions: make the partitions of the coming months and drop those that are older than the record is kept.
-- A reader of the record holds locks that this has to wait for, and writers would queue up behind: rather next time.
SET LOCAL lock_timeout = '500ms';
SELECT p.name
FROM (SELECT mailgate.retention_is_ours() AS is_ours OFFSET 0) AS held
CROSS JOIN LATERAL (
    SELECT mailgate.create_partitions(to_timestamp(%(now)s), %(months_ahead)s)
    WHERE held.is_ours
    UNION ALL
    SELECT mailgate.drop_partitions(to_timestamp(%(before)s))
    WHERE held.is_ours
) AS p (name);

-- sender_rights: the account, what it has sent today, and whether an address is its own.
SELECT mailbox_id, is_enabled, sending_limit, is_own, day, messages, recipients
FROM mailgate.sender_rights(%(account_local)s, %(account_domain)s, %(address_local)s, %(address_domain)s, %(address)s);

-- count_sending: count a message of an account on its day, unless that would be over a limit; then there is no row.
-- What is older than a month goes with it. Nobody's mail depends on it, so it doesn't wait for the disk.
SET LOCAL synchronous_commit = off;
DELETE FROM mailgate.sending_usage
WHERE mailbox_id = %(mailbox_id)s AND day < (now() AT TIME ZONE 'UTC')::date - 31;
INSERT INTO mailgate.sending_usage AS u (mailbox_id, day, messages, recipients)
SELECT %(mailbox_id)s, (now() AT TIME ZONE 'UTC')::date, 1, %(recipients)s
WHERE 1 <= %(messages_limit)s AND %(recipients)s <= %(recipients_limit)s
ON CONFLICT (mailbox_id, day) DO UPDATE
SET messages = u.messages + 1, recipients = u.recipients + excluded.recipients
WHERE u.messages + 1 <= %(messages_limit)s AND u.recipients + excluded.recipients <= %(recipients_limit)s
RETURNING day, messages, recipients;

-- forget_unconfirmed: remove what is too old to be a resend of.
DELETE FROM mailgate.unconfirmed WHERE accepted_at < now() - interval '1 hour';

-- remove_old_answers: remove some DNS answers that the record does not need any longer.
SELECT mailgate.remove_old_answers(to_timestamp(%(before)s), %(at_most)s);

-- expire_deliveries: remove some deliveries that a folder does not keep any longer.
SELECT mailgate.expire_deliveries(%(folder)s, to_timestamp(%(before)s), %(at_most)s);

-- remove_unused_messages: remove those of some messages that are in no mailbox and not waiting to be sent.
SELECT mailgate.remove_unused_messages(%(after)s, %(before)s, %(at_most)s);

-- find_signing_keys: the active keys of the first of these domains, from the longest name up, that has some.
SELECT domain, selector, sealed_key, master_key_id FROM mailgate.dkim_key
WHERE state = 'active'
  AND domain = (SELECT domain FROM mailgate.dkim_key
                WHERE state = 'active' AND domain = ANY (%(domains)s::text[])
                ORDER BY length(domain) DESC LIMIT 1)
ORDER BY algorithm DESC, activated_at DESC;

-- foreign_signing_keys: an active key that another master key has sealed, if there is any.
SELECT domain, selector, master_key_id FROM mailgate.dkim_key
WHERE state = 'active' AND master_key_id <> %(master_key_id)s
ORDER BY domain, selector LIMIT 1;

-- find_reverse_path: the reverse-path that a transaction had.
SELECT reverse_path FROM mailgate.transaction WHERE id = %(id)s AND disposition = 'accepted';

-- make_secret: a secret of that name, unless there is one.
INSERT INTO mailgate.secret (name, octets) VALUES (%(name)s, %(octets)s) ON CONFLICT DO NOTHING;

-- find_secret: the secret of that name.
SELECT octets FROM mailgate.secret WHERE name = %(name)s;

-- admission: who is banned now, and how often this network has failed lately.
SELECT EXISTS (
           SELECT FROM mailgate.ban WHERE network >>= %(address)s::inet AND banned_until > now()
       ) AS is_network_banned,
       EXISTS (
           SELECT FROM mailgate.ban b
           WHERE b.kind = 'account' AND b.subject = %(account)s AND b.banned_until > now()
             AND (b.reason IS NOT NULL
                  OR NOT EXISTS (SELECT FROM mailgate.known_network k
                                 WHERE k.account = %(account)s AND k.network = %(network)s::inet))
       ) AS is_account_banned;

-- count_failure: count a failed authentication against its network and its account, and ban whichever has had enough.
-- Nobody waits for this to be on disk: a crash forgives a guess or two.
SET LOCAL synchronous_commit = off;
SELECT kind, failures, is_banned FROM mailgate.count_failure(
    %(network)s, %(account)s, make_interval(secs => %(window)s), %(network_failures)s, %(account_failures)s,
    make_interval(secs => %(ban)s), make_interval(secs => %(maximum_ban)s)
);

-- know_network: remember that an account has been used from a network, and forget some that have not been for a month.
SET LOCAL synchronous_commit = off;
DELETE FROM mailgate.known_network WHERE (account, network) IN (
    SELECT account, network FROM mailgate.known_network
    WHERE last_used_at < now() - make_interval(secs => %(keep)s)
    ORDER BY last_used_at LIMIT 10 FOR UPDATE SKIP LOCKED
);
INSERT INTO mailgate.known_network AS k (account, network) VALUES (%(account)s, %(network)s::inet)
ON CONFLICT (account, network) DO UPDATE SET last_used_at = now();

-- find_credentials: the passwords of an account that may be used.
SELECT c.id, c.selector, c.argon2, c.scram_sha256
FROM mailgate.domain d
JOIN mailgate.mailbox m ON m.domain_id = d.id
JOIN mailgate.credential c ON c.mailbox_id = m.id
WHERE d.name = %(domain)s AND d.is_enabled AND m.local_part = %(local_part)s AND m.is_enabled
ORDER BY c.id;

-- credential_used: note when a password was used last, to some minutes.
SET LOCAL synchronous_commit = off;
UPDATE mailgate.credential SET last_used_at = now(), last_used_from = %(address)s::inet
WHERE id = %(id)s AND (last_used_at IS NULL OR last_used_at < now() - interval '5 minutes'
                       OR last_used_from IS DISTINCT FROM %(address)s::inet);

-- rehash_credential: keep a password by newer parameters, unless it has been changed meanwhile.
UPDATE mailgate.credential SET argon2 = %(argon2)s WHERE id = %(id)s AND argon2 = %(old)s;

-- find_mta_sts_policy: the MTA-STS policy that is kept for a domain, expired or not.
SELECT policy_id, policy_text, extract(epoch FROM fetched_at) FROM mailgate.mta_sts_policy WHERE domain = %(domain)s;

-- keep_mta_sts_policy: keep a policy as it was fetched, unless another node has fetched one since.
INSERT INTO mailgate.mta_sts_policy AS kept (domain, policy_id, mode, mx, policy_text, fetched_at, expires_at)
VALUES (%(domain)s, %(policy_id)s, %(mode)s, %(mx)s::text[], %(policy_text)s, to_timestamp(%(fetched_at)s),
        to_timestamp(%(expires_at)s))
ON CONFLICT (domain) DO UPDATE
SET policy_id = EXCLUDED.policy_id, mode = EXCLUDED.mode, mx = EXCLUDED.mx, policy_text = EXCLUDED.policy_text,
    fetched_at = EXCLUDED.fetched_at, expires_at = EXCLUDED.expires_at
WHERE kept.fetched_at <= EXCLUDED.fetched_at;

-- count_tls_results: add the sessions of one node to what all have counted.
INSERT INTO mailgate.tls_result AS counted (day, digest, policy_domain, policy_type, policy, mx_host, result_type,
                                            sending_address, receiving_address, reason, sessions)
SELECT * FROM unnest(%(day)s::date[], %(digest)s::bytea[], %(policy_domain)s::text[], %(policy_type)s::text[],
                     %(policy)s::text[], %(mx_host)s::text[], %(result_type)s::text[], %(sending_address)s::text[],
                     %(receiving_address)s::text[], %(reason)s::text[], %(sessions)s::bigint[])
ON CONFLICT (day, digest) DO UPDATE SET sessions = counted.sessions + EXCLUDED.sessions;

-- collect_dmarc_day: count the record of a day for the DMARC reports about it; once, whichever node asks first.
SELECT mailgate.collect_dmarc_day(%(day)s::date);

-- list_dmarc_domains: which domains a DMARC report of that day is still to be made for, behind one, with the record that they published.
SELECT g.domain, g.messages, g.passed,
       (SELECT a.records FROM mailgate.dns_answer a
        WHERE a.digest IN (SELECT digest::bigint FROM jsonb_array_elements_text(g.answers) AS digest)
          AND a.name = '_dmarc.' || g.domain AND a.type = 'TXT' LIMIT 1)
FROM (
    SELECT d.domain, sum(d.messages)::bigint AS messages,
           coalesce(sum(d.messages) FILTER (WHERE d.disposition = 'pass'), 0)::bigint AS passed,
           (array_agg(d.answers ORDER BY d.last_transaction_id DESC))[1] AS answers
    FROM mailgate.dmarc_day d
    WHERE d.day = %(day)s::date AND d.domain > %(after)s
      AND NOT EXISTS (SELECT FROM mailgate.report_sent s
                      WHERE s.kind = 'dmarc' AND s.domain = d.domain AND s.day = d.day)
    GROUP BY d.domain
    ORDER BY d.domain
    LIMIT %(at_most)s
) AS g
ORDER BY g.domain;

-- list_dmarc_rows: what the DMARC report of a domain is to say, the most frequent first.
SELECT host(source), messages, disposition, aligned_dkim, aligned_spf, header_from, envelope_from, reasons::text,
       results::text
FROM mailgate.dmarc_day
WHERE day = %(day)s::date AND domain = %(domain)s
ORDER BY messages DESC, source
LIMIT %(at_most)s;

-- list_tls_domains: which domains a TLS report of that day is still to be made for, behind one.
SELECT DISTINCT r.policy_domain
FROM mailgate.tls_result r
WHERE r.day = %(day)s::date AND r.policy_domain > %(after)s
  AND NOT EXISTS (SELECT FROM mailgate.report_sent s
                  WHERE s.kind = 'tls' AND s.domain = r.policy_domain AND s.day = r.day)
ORDER BY r.policy_domain
LIMIT %(at_most)s;

-- list_tls_results: what the TLS report of a domain is to say.
SELECT policy_type, policy, mx_host, result_type, sending_address, receiving_address, sessions, reason
FROM mailgate.tls_result
WHERE day = %(day)s::date AND policy_domain = %(domain)s
ORDER BY policy_type, policy, sessions DESC, mx_host, result_type
LIMIT %(at_most)s;

-- send_report: send a report, and note that it was made, where no node has made it yet.
SELECT mailgate.send_report(
    %(kind)s, %(domain)s, %(day)s::date, %(report_id)s, %(addresses)s, %(id)s, %(now)s, %(header_from)s, %(subject)s,
    %(header_message_id)s, %(content)s, %(sha256)s, %(recipients)s, %(local_keys)s, %(domains)s
);

-- find_possible_reports: some messages behind the one that was looked at last that may bring reports, and how far this looked.
-- Ids are in the order of time, but rows are there only at COMMIT: what may still be on its way is left for later.
WITH looked_at AS (
    SELECT m.id, m.subject, m.size_octets FROM mailgate.message m
    WHERE m.id > greatest((SELECT c.message_id FROM mailgate.report_cursor c WHERE c.name = 'received'), %(first)s)
      AND m.id < %(before)s
    ORDER BY m.id
    LIMIT %(at_most)s
)
SELECT l.id, l.id = (SELECT max(id) FROM looked_at), coalesce(
           l.size_octets <= %(max_octets)s AND l.subject ~* '(report[ _-]*domain|dmarc|tls.?rpt|tls report|aggregate report)',
           false)
FROM looked_at l
WHERE l.id = (SELECT max(id) FROM looked_at)
   OR l.size_octets <= %(max_octets)s
      AND l.subject ~* '(report[ _-]*domain|dmarc|tls.?rpt|tls report|aggregate report)'
ORDER BY l.id;

-- read_possible_report: one message that may bring a report: when it came, what proves who sent it, and its octets.
SELECT extract(epoch FROM m.received_at)::double precision, t.results, mailgate.message_octets(m.id)
FROM mailgate.message m LEFT JOIN mailgate.transaction t ON t.id = m.id
WHERE m.id = %(id)s;

-- move_report_cursor: note how far the search for reports has come.
INSERT INTO mailgate.report_cursor (name, message_id) VALUES ('received', %(message_id)s)
ON CONFLICT (name) DO UPDATE SET message_id = excluded.message_id
WHERE mailgate.report_cursor.message_id < excluded.message_id;

-- keep_dmarc_report: keep a report about a domain of ours, once, unless its sender has filled a day's rows already.
WITH kept AS (
    INSERT INTO mailgate.dmarc_report (organization, report_id, domain, contact, begins_at, ends_at, policy, message_id,
                                       received_at, authenticated_as)
    SELECT %(organization)s, %(report_id)s, %(domain)s, %(contact)s, to_timestamp(%(begins_at)s),
           to_timestamp(%(ends_at)s), %(policy)s::jsonb, %(message_id)s, to_timestamp(%(received_at)s),
           %(authenticated_as)s
    WHERE EXISTS (SELECT FROM mailgate.domain d
                  WHERE %(domain)s = d.name OR right(%(domain)s, length(d.name) + 1) = '.' || d.name)
      AND (SELECT count(*)
           FROM mailgate.dmarc_report r JOIN mailgate.dmarc_report_row w ON w.dmarc_report_id = r.id
           WHERE r.received_at > to_timestamp(%(received_at)s) - interval '1 day'
             AND r.authenticated_as IS NOT DISTINCT FROM %(authenticated_as)s) < %(rows_a_day)s
    ON CONFLICT DO NOTHING
    RETURNING id
)
INSERT INTO mailgate.dmarc_report_row (dmarc_report_id, position, source, messages, disposition, dkim, spf, reasons,
                                       header_from, envelope_from, envelope_to, results)
SELECT kept.id, n.position, n.source, n.messages, n.disposition, n.dkim, n.spf, n.reasons::text[], n.header_from,
       nullif(n.envelope_from, ''), nullif(n.envelope_to, ''), n.results
FROM kept, unnest(%(row_position)s::integer[], %(row_source)s::inet[], %(row_messages)s::bigint[],
                  %(row_disposition)s::text[], %(row_dkim)s::text[], %(row_spf)s::text[], %(row_reasons)s::text[],
                  %(row_header_from)s::text[], %(row_envelope_from)s::text[], %(row_envelope_to)s::text[],
                  %(row_results)s::jsonb[])
     AS n (position, source, messages, disposition, dkim, spf, reasons, header_from, envelope_from, envelope_to, results);

-- keep_tls_report: keep a report about a domain of ours, once.
INSERT INTO mailgate.tls_report (organization, report_id, domain, begins_at, ends_at, successes, failures, policies,
                                 message_id, received_at, authenticated_as)
SELECT %(organization)s, %(report_id)s, %(domain)s, to_timestamp(%(begins_at)s), to_timestamp(%(ends_at)s),
       %(successes)s, %(failures)s, %(policies)s::jsonb, %(message_id)s, to_timestamp(%(received_at)s),
       %(authenticated_as)s
WHERE EXISTS (SELECT FROM mailgate.domain d
              WHERE %(domain)s = d.name OR right(%(domain)s, length(d.name) + 1) = '.' || d.name)
ON CONFLICT DO NOTHING;

-- forget_reports: remove reports, and what was counted for ours, from before a time; and policies that hold no more.
DELETE FROM mailgate.dmarc_report WHERE ends_at < to_timestamp(%(before)s);
DELETE FROM mailgate.tls_report WHERE ends_at < to_timestamp(%(before)s);
DELETE FROM mailgate.report_sent WHERE day < to_timestamp(%(before)s)::date;
DELETE FROM mailgate.tls_result WHERE day < to_timestamp(%(now)s)::date - 8;
DELETE FROM mailgate.mta_sts_policy WHERE expires_at < to_timestamp(%(now)s) - interval '1 day';

-- note_failure: count that an address failed for good, and suppress it where that is often enough.
INSERT INTO mailgate.suppression (address, failures, last_reply, last_failed_at)
SELECT n.address, 1, n.reply, to_timestamp(%(now)s)
FROM unnest(%(addresses)s::text[], %(replies)s::text[]) AS n (address, reply)
ON CONFLICT (address) DO UPDATE
SET failures = CASE WHEN suppression.last_failed_at < to_timestamp(%(now)s) - make_interval(days => %(days)s) THEN 1
                    ELSE suppression.failures + 1 END,
    last_reply = excluded.last_reply, last_failed_at = excluded.last_failed_at,
    suppressed_until = CASE
        WHEN suppression.last_failed_at >= to_timestamp(%(now)s) - make_interval(days => %(days)s)
             AND suppression.failures + 1 >= %(threshold)s
        THEN to_timestamp(%(now)s) + make_interval(days => %(days)s)
        ELSE suppression.suppressed_until END;

-- find_suppression: until when an address is refused, and why; no row where it is not.
SELECT extract(epoch FROM suppressed_until)::double precision, last_reply FROM mailgate.suppression
WHERE address = %(address)s AND suppressed_until > to_timestamp(%(now)s);

-- forget_suppressions: remove what is long past.
DELETE FROM mailgate.suppression
WHERE last_failed_at < to_timestamp(%(now)s) - make_interval(days => %(days)s)
  AND coalesce(suppressed_until, '-infinity') < to_timestamp(%(now)s);

-- claim_queue: lease some rows that are ready, and read them with the contents of small messages.
SELECT mailgate.claim_queue(
    %(instance)s, %(claim)s, %(now)s, %(lease_seconds)s, %(at_most)s, %(octets)s, %(inline_octets)s,
    %(per_destination)s, %(skipped)s, %(skipped_senders)s, %(after_sender)s, %(senders)s, %(after_domains)s);
SELECT * FROM mailgate.leased_rows(%(instance)s, %(claim)s, %(inline_octets)s);

-- claim_overdue: lease some rows whose senders are to be told something, and read them.
SELECT mailgate.claim_overdue(
    %(instance)s, %(claim)s, %(now)s, %(lease_seconds)s, %(delay_seconds)s, %(give_up_seconds)s, %(at_most)s);
SELECT * FROM mailgate.leased_rows(%(instance)s, %(claim)s, %(inline_octets)s);

-- settle_queue: write what came of some rows, with all that tells of it.
SELECT disowned, usage_mailbox, usage_octets FROM mailgate.settle_queue(
    %(instance)s, %(node)s, %(now)s, %(ended_id)s, %(ended_claim)s, %(ended_is_delivered)s, %(kept)s,
    -- attempts
    %(attempt_transaction)s, %(attempt_queue_id)s, %(attempt_recipient)s, %(attempt_at)s, %(attempt_seconds)s,
    %(attempt_result)s, %(attempt_status)s, %(attempt_reply)s, %(attempt_is_remote)s, %(attempt_is_ambiguous)s,
    %(attempt_host)s, %(attempt_address)s, %(attempt_port)s, %(attempt_tls_version)s, %(attempt_tls_cipher)s,
    %(attempt_tls_is_verified)s, %(attempt_tls_source)s,
    %(destinations)s,
    -- notices
    %(notice_id)s, %(notice_header_from)s, %(notice_subject)s, %(notice_header_message_id)s, %(notice_trace)s,
    %(notice_size_octets)s, %(notice_sha256)s, %(notice_content)s,
    %(about_notice)s, %(about_id)s, %(about_claim)s, %(about_is_delivered)s,
    %(delivery_message)s, %(delivery_mailbox)s, %(delivery_folder)s, %(delivery_detail)s, %(delivery_size_octets)s,
    %(delivery_received_at)s,
    %(queue)s
);

-- renew_leases: keep what we are at, and let go of what nobody is at any more.
SELECT mailgate.renew_leases(%(instance)s, %(claims)s, %(now)s, %(lease_seconds)s, %(dead)s, %(is_steady)s,
                             %(grace_seconds)s);

-- list_destinations: what is left alone, or was in trouble.
SELECT name, is_paused, extract(epoch FROM backed_off_until)::double precision, failures, reason
FROM mailgate.destination;

-- queued_piece: a piece of a large content.
SELECT mailgate.queued_piece(%(message_id)s, %(position)s, %(piece_octets)s);
