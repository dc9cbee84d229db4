-- Which messages were routed to each subscription. Most messages that are settled leave no marker: publishers keep none,
-- and markers are removed after a while. A message that was routed once, and is neither owed nor among the dead letters,
-- was settled; `laneway replay` leaves it alone unless it is told otherwise. Where it cannot be known whether a message
-- was routed, it counts as routed: what is left out can be asked for, and what was sent twice cannot be taken back.

CREATE TABLE laneway.routed (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subscription_id integer NOT NULL,
    topic_regex text COLLATE "C" NOT NULL,
    from_seq bigint,
    until_seq bigint,
    begun_xid bigint,
    stopped_by xid8,
    stopped_beside text[],
    CONSTRAINT "until_seq and stopped_beside: only of what was stopped"
        CHECK (stopped_by IS NOT NULL OR (until_seq IS NULL AND stopped_beside IS NULL))
);
CREATE INDEX routed_to ON laneway.routed (subscription_id);
-- What laneway.bound_routed() still has to do, so that a heartbeat finds out at once that it is nothing.
CREATE INDEX routed_without_bound ON laneway.routed (id) WHERE stopped_by IS NOT NULL AND until_seq IS NULL;
COMMENT ON TABLE laneway.routed IS 'Stretches of the outbox that were routed to a subscription by one pattern.';
COMMENT ON COLUMN laneway.routed.id IS 'In the order in which they began.';
COMMENT ON COLUMN laneway.routed.subscription_id IS 'Whose.';
COMMENT ON COLUMN laneway.routed.topic_regex IS 'The pattern as a regular expression.';
COMMENT ON COLUMN laneway.routed.from_seq IS
    'The first message that may have been routed; NULL is unknown, since it began before this table was there.';
COMMENT ON COLUMN laneway.routed.until_seq IS
    'The last message that may have been routed; NULL while it goes on, or while its end is not known yet.';
COMMENT ON COLUMN laneway.routed.begun_xid IS
    'The oldest transaction that was writing messages when it began, by its 32 bits, NULL if there was none: what was
    written since then may have been routed too, whatever its number.';
COMMENT ON COLUMN laneway.routed.stopped_by IS 'The transaction that stopped it; NULL while it goes on.';
COMMENT ON COLUMN laneway.routed.stopped_beside IS
    'Transactions that may not see yet that it was stopped; its end is known when all of them have ended.';

-- Rows of messages that are gone are removed by the next replay to the same subscription.
CREATE TABLE laneway.replayed (
    subscription_id integer NOT NULL,
    message_seq bigint NOT NULL,
    PRIMARY KEY (subscription_id, message_seq)
);
COMMENT ON TABLE laneway.replayed IS 'Messages that were not routed to a subscription, and were owed to it by a replay.';
COMMENT ON COLUMN laneway.replayed.subscription_id IS 'Whose.';
COMMENT ON COLUMN laneway.replayed.message_seq IS 'The message.';

-- A trigger, so that it does not matter which version of the program applies a topology.
CREATE FUNCTION laneway.note_routed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    reached bigint;
    ours bigint := pg_current_xact_id()::text::bigint;
    oldest bigint;
    unnamed boolean;
BEGIN
    -- Rows that a restore brings come with their stretches.
    IF laneway.is_restoring() THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' AND OLD.active AND NOT (NEW.active AND NEW.topic_regex = OLD.topic_regex) THEN
        UPDATE laneway.routed r SET stopped_by = pg_current_xact_id()
            WHERE r.subscription_id = NEW.id AND r.stopped_by IS NULL;
    END IF;
    IF NOT NEW.active
        OR EXISTS (SELECT FROM laneway.routed r WHERE r.subscription_id = NEW.id AND r.stopped_by IS NULL)
    THEN
        RETURN NULL;
    END IF;
    -- A topology stops all subscriptions and begins those again that go on, in one transaction: nobody saw them stopped.
    UPDATE laneway.routed r SET stopped_by = NULL
        WHERE r.subscription_id = NEW.id AND r.topic_regex = NEW.topic_regex AND r.stopped_by = pg_current_xact_id();
    IF FOUND THEN
        RETURN NULL;
    END IF;
    -- First the number, then who is writing: a smaller number belongs to a transaction that has ended and was routed
    -- without this, or to one of these.
    SELECT CASE WHEN q.is_called THEN q.last_value ELSE q.last_value - 1 END INTO reached
        FROM laneway.message_seq_seq q;
    FOR round IN 1..3 LOOP
        WITH held AS MATERIALIZED (
            SELECT l.* FROM pg_locks l WHERE l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
        ), writing AS (
            SELECT DISTINCT h.virtualtransaction FROM held h
            WHERE h.locktype = 'relation' AND h.relation = 'laneway.message'::regclass AND h.mode = 'RowExclusiveLock'
                AND h.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
        ), named AS (
            -- Each transaction holds a lock on its own number. Of two of them the older is that which is further behind
            -- ours, in a circle of 32 bits.
            SELECT (h.transactionid::text::bigint - ours % 4294967296 + 6442450944) % 4294967296 - 2147483648 AS ahead
            FROM writing w LEFT JOIN held h ON h.virtualtransaction = w.virtualtransaction
                AND h.locktype = 'transactionid' AND h.mode = 'ExclusiveLock'
        )
        SELECT min(n.ahead), bool_or(n.ahead IS NULL) INTO oldest, unnamed FROM named n;
        -- One that has only begun gets its number with its first row, at once.
        EXIT WHEN unnamed IS NOT TRUE;
        PERFORM pg_sleep(0.005);
    END LOOP;
    INSERT INTO laneway.routed (subscription_id, topic_regex, from_seq, begun_xid)
        VALUES (NEW.id, NEW.topic_regex, reached + 1, (ours + oldest) % 4294967296);
    RETURN NULL;
END
$$;
CREATE TRIGGER note_routed AFTER INSERT OR UPDATE OF active, topic_regex ON laneway.subscription
    FOR EACH ROW WHEN (NEW.kind <> 'consumer') EXECUTE FUNCTION laneway.note_routed();

-- Finds out how far messages may have been routed to what was stopped, in two looks. The first, when the stop is
-- committed, notes the transactions under way: they may go on by what they saw before. The last number that was given
-- out when all of them have ended is the end.
CREATE FUNCTION laneway.bound_routed() RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    running text[];
    reached bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM laneway.routed r WHERE r.stopped_by IS NOT NULL AND r.until_seq IS NULL) THEN
        RETURN;
    END IF;
    running := ARRAY(SELECT l.virtualtransaction FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
        WHERE l.locktype = 'virtualxid' AND l.granted AND l.mode = 'ExclusiveLock' AND l.pid <> pg_backend_pid()
            AND a.datname = current_database());
    -- Read after it was seen who has ended, so that no number of theirs is greater.
    SELECT greatest(q.last_value, (SELECT max(m.seq) FROM laneway.message m)) INTO reached
        FROM laneway.message_seq_seq q;
    UPDATE laneway.routed r SET
        until_seq = CASE WHEN NOT coalesce(r.stopped_beside, running) && running THEN reached END,
        stopped_beside = coalesce(r.stopped_beside, running)
        WHERE r.id IN (
            SELECT w.id FROM laneway.routed w
            WHERE w.stopped_by IS NOT NULL AND w.until_seq IS NULL
                AND w.stopped_by IS DISTINCT FROM pg_current_xact_id_if_assigned()
            -- One that is being changed can wait, and nobody waits for it.
            FOR UPDATE SKIP LOCKED
        );
END
$$;
REVOKE EXECUTE ON FUNCTION laneway.bound_routed() FROM PUBLIC;
COMMENT ON FUNCTION laneway.bound_routed() IS 'Ends the stretches that were stopped, as soon as their end is known.';

-- With each heartbeat of a node, whatever its version.
CREATE FUNCTION laneway.bound_routed_now_and_then() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM laneway.bound_routed();
    RETURN NULL;
END
$$;
CREATE TRIGGER bound_routed AFTER INSERT OR UPDATE ON laneway.node
    FOR EACH STATEMENT EXECUTE FUNCTION laneway.bound_routed_now_and_then();

-- Nobody noted what was routed so far, nor by which patterns: all that is written until now counts as routed.
INSERT INTO laneway.routed (subscription_id, topic_regex, stopped_by)
    SELECT s.id, '', pg_current_xact_id() FROM laneway.subscription s WHERE s.kind <> 'consumer';
INSERT INTO laneway.routed (subscription_id, topic_regex)
    SELECT s.id, s.topic_regex FROM laneway.subscription s WHERE s.kind <> 'consumer' AND s.active;
