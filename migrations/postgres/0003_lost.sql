-- An attempt counts when a slot begins it, no longer when it is claimed. What an ended lease held comes back uncounted, with the number of such leases
-- raised; from then on it is noted in the lease when a slot begins it, and what was begun comes back counted.
-- The new columns are NULL for what never lost a lease: they cost such rows nothing, and older nodes, which do not write
-- them, are read as if nothing was lost and nothing begun. `lease.attempts` goes on to include the attempt of the lease.

ALTER TABLE laneway.lease ADD COLUMN losts integer[], ADD COLUMN begun bit varying;
COMMENT ON COLUMN laneway.lease.attempts IS 'Attempts counted, and the one of this lease.';
COMMENT ON COLUMN laneway.lease.losts IS 'Leases in which each was lost before; NULL, or an element NULL, is none.';
COMMENT ON COLUMN laneway.lease.begun IS
    'One bit for each delivery: 1 if it was lost before and a slot has begun it since. NULL is none.';

ALTER TABLE laneway.delivery ADD COLUMN lost integer;
COMMENT ON COLUMN laneway.delivery.lost IS
    'Leases that ended with it unsettled since an answer was last counted; NULL is none.';
COMMENT ON COLUMN laneway.delivery.attempt IS 'Attempts counted: answered, or begun under a lease that ended.';
COMMENT ON COLUMN laneway.delivery.first_attempt_at IS 'When the first attempt that counts was claimed; NULL if none does.';

-- Under a lease that has ended, only what was begun counts.
CREATE OR REPLACE VIEW laneway.owed AS
    SELECT d.message_seq, d.subscription_id, d.lane, d.priority, d.available_at, d.attempt, d.first_attempt_at,
        d.last_error, coalesce(d.parked, false) AS parked, NULL::bigint AS lease_token, coalesce(d.lost, 0) AS lost
    FROM laneway.delivery d
    UNION ALL
    SELECT u.message_seq, l.subscription_id, l.lane, u.priority, l.leased_until,
        u.attempt - uncounted.one,
        CASE WHEN u.attempt > uncounted.one THEN coalesce(u.first_attempt_at, l.leased_at) ELSE u.first_attempt_at END,
        u.last_error, false, l.token, coalesce(u.lost, 0) + (l.leased_until <= now())::integer
    FROM laneway.lease l
    CROSS JOIN LATERAL unnest(l.message_seqs, l.priorities, l.attempts, l.first_attempts_at, l.last_errors, l.losts)
        WITH ORDINALITY AS u(message_seq, priority, attempt, first_attempt_at, last_error, lost, place)
    CROSS JOIN LATERAL (
        SELECT (l.leased_until <= now() AND coalesce(get_bit(l.begun, u.place::integer - 1), 0) = 0)::integer AS one
    ) uncounted
    WHERE get_bit(l.open, u.place::integer - 1) = 1;

-- What lost a lease was claimed, and may have run, though it may have no attempt that counts.
CREATE OR REPLACE FUNCTION laneway.count_waiting(message_seq bigint) RETURNS bigint LANGUAGE sql AS $$
    SELECT w.deliveries
    FROM laneway.message m
    CROSS JOIN LATERAL (
        SELECT count(*) AS deliveries, coalesce(max(d.attempt), 0) AS attempt, coalesce(max(d.lost), 0) AS lost
        FROM laneway.delivery d WHERE d.message_seq = m.seq
    ) w
    WHERE m.seq = count_waiting.message_seq
        AND w.attempt = 0 AND w.lost = 0
        AND (w.deliveries > 0 OR EXISTS (SELECT FROM laneway.unrouted u WHERE u.message_seq = m.seq))
        AND NOT EXISTS (SELECT FROM laneway.lease l
            WHERE m.seq BETWEEN l.message_seq_min AND l.message_seq_max AND m.seq = ANY (l.message_seqs))
        AND NOT EXISTS (SELECT FROM laneway.dead_letter f WHERE f.message_seq = m.seq)
        AND NOT EXISTS (SELECT FROM laneway.subscription s JOIN laneway.marker k ON k.subscription_id = s.id
            WHERE s.kind <> 'consumer' AND k.message_id = m.id)
$$;
