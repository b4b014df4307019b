-- The statements of storage: "-- name: what it is for", then the statement. Read by mailgate.storage.queries.
-- %(name)s stands for a literal that mailgate.storage.literal has made.

-- accept_messages: make a batch of messages ours: one round trip, one transaction. Repeating it changes nothing.
SELECT resends, usage_mailbox, usage_octets FROM mailgate.accept_messages(
    %(instance)s, %(node)s, %(confirmed)s, %(lost)s,
    -- messages
    %(id)s, %(session_id)s, %(resend_key)s, %(listener)s, %(client_address)s, %(helo)s, %(protocol)s,
    %(authenticated)s, %(reverse_path)s, %(body)s, %(is_smtputf8)s, %(ret)s, %(envid)s, %(disposition)s,
    %(policy)s, %(reason)s, %(reply)s, %(started_at)s, %(received_at)s, %(header_from)s, %(subject)s,
    %(header_message_id)s, %(size_octets)s, %(sha256)s, %(trace)s, %(content)s,
    -- recipients
    %(recipient_transaction_id)s, %(recipient_position)s, %(recipient_forward_path)s, %(recipient_is_accepted)s,
    %(recipient_reply)s, %(recipient_notify)s, %(recipient_orcpt)s,
    -- deliveries
    %(delivery_message)s, %(delivery_mailbox)s, %(delivery_folder)s, %(delivery_detail)s, %(delivery_size_octets)s,
    %(delivery_received_at)s,
    -- queue rows
    %(queue_message)s, %(queue_recipient)s, %(queue_position)s, %(queue_received_at)s
);

-- settle_unconfirmed: what clients let us know of our 250s, when no batch carries it: they know, or their connection ended first.
DELETE FROM mailgate.unconfirmed WHERE transaction_id = ANY (%(confirmed)s::bigint[]);
UPDATE mailgate.unconfirmed SET is_lost = true WHERE transaction_id = ANY (%(lost)s::bigint[]) AND NOT is_lost;

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

-- draw_instance: a number for a new process that no living process has.
SELECT nextval('mailgate.instance')::integer AS instance;
