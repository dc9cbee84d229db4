-- Which messages were routed to each subscription. Most messages that are settled leave no marker: publishers keep none,
-- and markers are removed after a while. A message that was routed once, and is neither owed nor among the dead letters,
-- was settled; `laneway replay` leaves it alone unless it is told otherwise.

-- Stretches of the outbox that were routed to a subscription by one pattern.
CREATE TABLE laneway_routed (
    -- In the order in which they began.
    id INTEGER PRIMARY KEY,
    -- Whose.
    subscription_id INTEGER NOT NULL,
    -- The pattern.
    pattern TEXT NOT NULL,
    -- The first message that may have been routed.
    from_seq INTEGER NOT NULL,
    -- The last message that may have been routed; NULL while it goes on.
    until_seq INTEGER
);
CREATE INDEX laneway_routed_to ON laneway_routed (subscription_id);

-- Messages that were not routed to a subscription, and were owed to it by a replay. Rows of messages that are gone are
-- removed by the next replay to the same subscription.
CREATE TABLE laneway_replayed (
    -- Whose.
    subscription_id INTEGER NOT NULL,
    -- The message.
    message_seq INTEGER NOT NULL,

    PRIMARY KEY (subscription_id, message_seq)
) WITHOUT ROWID;

-- Triggers, so that it does not matter which version of the program applies a topology. There is one writer, so that
-- the last number given out parts what was routed before from what is routed after.
CREATE TRIGGER laneway_subscription_begins AFTER INSERT ON laneway_subscription
WHEN NEW.active AND NEW.kind <> 'consumer'
BEGIN
    INSERT INTO laneway_routed (subscription_id, pattern, from_seq)
    SELECT NEW.id, NEW.pattern, coalesce((SELECT q.seq FROM sqlite_sequence q WHERE q.name = 'laneway_message'), 0) + 1;
END;

CREATE TRIGGER laneway_subscription_changes AFTER UPDATE OF active, pattern ON laneway_subscription
WHEN NEW.kind <> 'consumer'
BEGIN
    UPDATE laneway_routed
    SET until_seq = coalesce((SELECT q.seq FROM sqlite_sequence q WHERE q.name = 'laneway_message'), 0)
    WHERE subscription_id = NEW.id AND until_seq IS NULL AND NOT (NEW.active AND pattern = NEW.pattern);

    -- A topology stops all subscriptions and begins those again that go on: no message came between.
    UPDATE laneway_routed SET until_seq = NULL
    WHERE NEW.active AND subscription_id = NEW.id AND pattern = NEW.pattern
        AND until_seq = coalesce((SELECT q.seq FROM sqlite_sequence q WHERE q.name = 'laneway_message'), 0);

    INSERT INTO laneway_routed (subscription_id, pattern, from_seq)
    SELECT NEW.id, NEW.pattern, coalesce((SELECT q.seq FROM sqlite_sequence q WHERE q.name = 'laneway_message'), 0) + 1
    WHERE NEW.active
        AND NOT EXISTS (SELECT 1 FROM laneway_routed r WHERE r.subscription_id = NEW.id AND r.until_seq IS NULL);
END;

-- Nobody noted what was routed so far, nor by which patterns: all that is written until now counts as routed, since what
-- is left out can be asked for, and what was sent twice cannot be taken back.
INSERT INTO laneway_routed (subscription_id, pattern, from_seq, until_seq)
SELECT s.id, '>', 1, q.seq FROM laneway_subscription s JOIN sqlite_sequence q ON q.name = 'laneway_message'
WHERE s.kind <> 'consumer';
INSERT INTO laneway_routed (subscription_id, pattern, from_seq)
SELECT s.id, s.pattern, coalesce((SELECT q.seq FROM sqlite_sequence q WHERE q.name = 'laneway_message'), 0) + 1
FROM laneway_subscription s WHERE s.kind <> 'consumer' AND s.active;
