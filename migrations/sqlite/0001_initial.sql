-- The outbox, its deliveries and their effects, in the application's own file: every name begins with laneway_.
-- Producers insert with their own SQLite, which may be years old: whatever runs on their connection (defaults, checks,
-- triggers) keeps to what SQLite 3.38 knows. They must leave trusted_schema on, as it is by default: before SQLite 3.42
-- or so, checks and triggers may otherwise use no JSON function. Times are milliseconds since 1970 UTC, by the database's clock:
--     CAST((julianday('now') - 2440587.5) * 86400000 + 0.5 AS INTEGER)
-- A check's name is all that its violation tells the producer, so it says what is allowed.

-- The outbox: messages as producers wrote them. Never updated.
CREATE TABLE laneway_message (
    -- Position in the outbox, in the order of commits; a number never comes twice.
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    -- Identity that travels with the message; a UUIDv7 unless the producer gives its own.
    id TEXT NOT NULL DEFAULT (lower(printf('%08x-%04x-7%03x-%04x-%s',
        CAST((julianday('now') - 2440587.5) * 86400000 + 0.5 AS INTEGER) >> 16,
        CAST((julianday('now') - 2440587.5) * 86400000 + 0.5 AS INTEGER) & 65535,
        random() & 4095, 32768 | (random() & 16383), hex(randomblob(6))))),
    -- What it is sent under.
    topic TEXT NOT NULL,
    -- Ordering key.
    key TEXT,
    -- How urgent; higher first.
    priority INTEGER NOT NULL DEFAULT 0,
    -- Media type of the payload.
    content_type TEXT NOT NULL DEFAULT 'application/json',
    -- Named values that travel with it, as a JSON object.
    headers TEXT NOT NULL DEFAULT '{}',
    -- Tenant that it belongs to.
    tenant TEXT,
    -- Stream that it was received from or belongs to.
    stream TEXT,
    -- Position in its stream; stands once in it.
    position INTEGER,
    -- When it was written.
    created_at INTEGER NOT NULL DEFAULT (CAST((julianday('now') - 2440587.5) * 86400000 + 0.5 AS INTEGER)),
    -- Not before; NULL is at once.
    available_at INTEGER,
    -- The body, opaque. The last column, so that a list of messages does not read through it.
    payload BLOB NOT NULL,

    CONSTRAINT laneway_message_id_is_taken UNIQUE (id),
    CONSTRAINT "seq: best left to the outbox; from 1 to 8796093022207" CHECK (seq BETWEEN 1 AND 8796093022207),
    -- Lengths in bytes and in characters are equal only without characters beyond ASCII and without NUL.
    CONSTRAINT "id: 1 to 200 visible ASCII characters" CHECK (typeof(id) = 'text'
        AND length(CAST(id AS BLOB)) BETWEEN 1 AND 200 AND length(CAST(id AS BLOB)) = length(id)
        AND id NOT GLOB '*[^!-~]*'),
    CONSTRAINT "topic: 1-255 bytes, dot-separated segments of A-Z a-z 0-9 _ -" CHECK (typeof(topic) = 'text'
        AND length(CAST(topic AS BLOB)) BETWEEN 1 AND 255 AND length(CAST(topic AS BLOB)) = length(topic)
        AND topic NOT GLOB '*[^A-Za-z0-9_.-]*'
        AND topic NOT GLOB '.*' AND topic NOT GLOB '*.' AND topic NOT GLOB '*..*'),
    CONSTRAINT "key: text of at most 1024 bytes"
        CHECK (key IS NULL OR (typeof(key) = 'text' AND length(CAST(key AS BLOB)) <= 1024)),
    CONSTRAINT "priority: an integer of 32 bits"
        CHECK (typeof(priority) = 'integer' AND priority BETWEEN -2147483648 AND 2147483647),
    CONSTRAINT "content_type: text of at most 255 bytes"
        CHECK (typeof(content_type) = 'text' AND length(CAST(content_type AS BLOB)) <= 255),
    CONSTRAINT "headers: at most 65536 bytes" CHECK (length(CAST(headers AS BLOB)) <= 65536),
    CONSTRAINT "headers: a JSON object whose values are strings" CHECK (headers = '{}' OR (typeof(headers) = 'text'
        AND CASE WHEN json_valid(headers) THEN json_type(headers) = 'object' ELSE 0 END)),
    CONSTRAINT "tenant: text of at most 1024 bytes"
        CHECK (tenant IS NULL OR (typeof(tenant) = 'text' AND length(CAST(tenant AS BLOB)) <= 1024)),
    CONSTRAINT "stream and position: both or neither" CHECK ((stream IS NULL) = (position IS NULL)),
    CONSTRAINT "created_at and available_at: milliseconds since 1970, as integers"
        CHECK (typeof(created_at) = 'integer' AND typeof(available_at) IN ('integer', 'null')
            AND created_at BETWEEN 0 AND 253402207200999 AND coalesce(available_at, 0) BETWEEN 0 AND 253402207200999),
    CONSTRAINT "payload: a blob or text" CHECK (typeof(payload) IN ('blob', 'text'))
);
CREATE UNIQUE INDEX laneway_message_stream_position ON laneway_message (stream, position) WHERE stream IS NOT NULL;

-- Which topics go to whom. Rows stay when a topology drops them, inactive.
CREATE TABLE laneway_subscription (
    -- Stable for as long as the name is; never used again.
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    -- Declared name.
    name TEXT NOT NULL UNIQUE,
    -- Topic pattern as declared. One without wildcards is compared with the topic as it stands.
    pattern TEXT NOT NULL,
    -- handler or publisher; consumer is an application that keeps markers only.
    kind TEXT NOT NULL,
    -- A pattern with wildcards as a GLOB, whose * runs across dots; NULL without wildcards.
    topic_glob TEXT,
    -- Fewest dots that a matching topic has.
    dots_min INTEGER NOT NULL,
    -- Most dots that a matching topic has.
    dots_max INTEGER NOT NULL,
    -- Literal segments by their position, as a JSON object, where GLOB and dots do not tell enough; else NULL.
    literals TEXT,
    -- Messages of a lower priority go to the backfill lane.
    lane_threshold INTEGER NOT NULL,
    -- Whether messages of one key come one at a time and in order.
    ordered INTEGER NOT NULL DEFAULT 0,
    -- Whether new messages are routed to it.
    active INTEGER NOT NULL,
    -- The whole declaration, as JSON.
    policies TEXT NOT NULL,

    CONSTRAINT "id: fits beside the message in the id of a delivery" CHECK (id BETWEEN 1 AND 1048575),
    CONSTRAINT "kind: handler, publisher or consumer" CHECK (kind IN ('handler', 'publisher', 'consumer')),
    CONSTRAINT "ordered: 0 or 1" CHECK (ordered IN (0, 1)),
    CONSTRAINT "active: 0 or 1" CHECK (active IN (0, 1)),
    CONSTRAINT "dots: an ordered range" CHECK (0 <= dots_min AND dots_min <= dots_max)
);

-- Messages owed, one row for each subscription; gone when settled.
CREATE TABLE laneway_delivery (
    -- message_seq * 1048576 + subscription_id: one delivery a message and subscription, with no index to hold it so.
    id INTEGER PRIMARY KEY,
    -- Whose.
    subscription_id INTEGER NOT NULL,
    -- 0 primary, 1 backfill.
    lane INTEGER NOT NULL,
    -- The message's.
    priority INTEGER NOT NULL,
    -- The message.
    message_seq INTEGER NOT NULL,
    -- When it is due. New, delayed, retried, leased: this alone decides.
    available_at INTEGER NOT NULL,
    -- Attempts counted; a claim counts.
    attempt INTEGER NOT NULL DEFAULT 0,
    -- The last lease, NULL if none since it was handed back.
    lease_token INTEGER,
    -- When the first attempt that counts was claimed.
    first_attempt_at INTEGER,
    -- Error of the last attempt that counted.
    last_error TEXT,
    -- The message's key, if the subscription is ordered.
    key TEXT,
    -- Of a key: 0 in its line, 1 there behind another one; NULL before its time, and from the first claim on.
    parked INTEGER,

    CONSTRAINT "id: made of message and subscription" CHECK (id = message_seq * 1048576 + subscription_id),
    CONSTRAINT "lane: 0 or 1" CHECK (lane IN (0, 1)),
    CONSTRAINT "lease_token: only with an attempt" CHECK (lease_token IS NULL OR attempt > 0),
    CONSTRAINT "first_attempt_at: from the first attempt on"
        CHECK (attempt >= 0 AND (attempt = 0) = (first_attempt_at IS NULL))
);
-- The order of claims. What is not due sorts behind what is due, within its priority. The token rides along so that
-- counting leases needs no row.
CREATE INDEX laneway_delivery_due
    ON laneway_delivery (subscription_id, lane, priority DESC, available_at, message_seq, lease_token)
    WHERE parked IS NOT 1;
-- The order of each key.
CREATE INDEX laneway_delivery_line ON laneway_delivery (subscription_id, key, message_seq) WHERE parked IS NOT NULL;
-- What has a key and is in no line: delayed, or claimed before.
CREATE INDEX laneway_delivery_upcoming ON laneway_delivery (subscription_id, available_at)
    WHERE key IS NOT NULL AND parked IS NULL;

-- Keys of ordered subscriptions of which a message was claimed and is not settled.
CREATE TABLE laneway_busy_key (
    -- Whose.
    subscription_id INTEGER NOT NULL,
    -- The key.
    key TEXT NOT NULL,
    -- The message; it alone may be claimed of its key.
    message_seq INTEGER NOT NULL,

    PRIMARY KEY (subscription_id, key)
) WITHOUT ROWID;

-- Messages that matched no subscription when they were written.
CREATE TABLE laneway_unrouted (
    -- The message.
    message_seq INTEGER PRIMARY KEY
);

-- Messages whose effects are committed, by subscription.
CREATE TABLE laneway_marker (
    -- Who processed it.
    subscription_id INTEGER NOT NULL,
    -- The message's id.
    message_id TEXT NOT NULL,
    -- When.
    processed_at INTEGER NOT NULL,
    -- What the handler noted, as JSON.
    metadata TEXT,

    PRIMARY KEY (subscription_id, message_id),
    CONSTRAINT "metadata: JSON" CHECK (metadata IS NULL OR json_valid(metadata))
) WITHOUT ROWID;
-- For cleanup, which looks for the oldest.
CREATE INDEX laneway_marker_processed_at ON laneway_marker (processed_at);

-- Deliveries that exhausted their attempts or were rejected.
CREATE TABLE laneway_dead_letter (
    -- In order of failure.
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    -- The message.
    message_seq INTEGER NOT NULL,
    -- The message's id.
    message_id TEXT NOT NULL,
    -- Whose delivery.
    subscription_id INTEGER NOT NULL,
    -- 0 primary, 1 backfill.
    lane INTEGER NOT NULL,
    -- The message's.
    priority INTEGER NOT NULL,
    -- Why, as a code.
    reason TEXT NOT NULL,
    -- Why, in words.
    error TEXT NOT NULL,
    -- Attempts counted.
    attempts INTEGER NOT NULL,
    -- When the first attempt was claimed.
    first_attempt_at INTEGER,
    -- When the last attempt was settled.
    failed_at INTEGER NOT NULL,
    -- SHA-256 of the component that ran last.
    plugin TEXT,

    CONSTRAINT "lane: 0 or 1" CHECK (lane IN (0, 1)),
    CONSTRAINT "attempts: a count" CHECK (attempts >= 0)
);
CREATE INDEX laneway_dead_letter_subscription ON laneway_dead_letter (subscription_id);
CREATE INDEX laneway_dead_letter_message ON laneway_dead_letter (message_seq);

-- Transactional state of handlers.
CREATE TABLE laneway_state (
    -- Whose state.
    namespace TEXT NOT NULL,
    -- The key.
    key TEXT NOT NULL,
    -- Its value.
    value BLOB NOT NULL,
    -- Drawn at random for each write.
    version INTEGER NOT NULL,

    PRIMARY KEY (namespace, key)
) WITHOUT ROWID;

-- Commutative counters of handlers.
CREATE TABLE laneway_counter (
    -- Whose counter.
    namespace TEXT NOT NULL,
    -- The key.
    key TEXT NOT NULL,
    -- The sum of all additions, wrapped to 64 bits.
    value INTEGER NOT NULL,

    PRIMARY KEY (namespace, key),
    CONSTRAINT "value: an integer, never rounded" CHECK (typeof(value) = 'integer')
) WITHOUT ROWID;

-- Topologies applied; the last one is active.
CREATE TABLE laneway_topology (
    -- Counts up with each change.
    revision INTEGER PRIMARY KEY AUTOINCREMENT,
    -- The topology as canonical JSON.
    canonical TEXT NOT NULL,
    -- When.
    applied_at INTEGER NOT NULL
);

-- Values in force, by name. payload_bytes_max: largest payload that the outbox accepts (a trigger holds the number).
CREATE TABLE laneway_setting (
    -- Name of the value.
    name TEXT PRIMARY KEY NOT NULL,
    -- The value.
    value TEXT NOT NULL
) WITHOUT ROWID;

-- Schedules that nodes have run under.
CREATE TABLE laneway_schedule (
    -- Declared name.
    name TEXT PRIMARY KEY NOT NULL,
    -- When it fires: expression and time zone.
    rule TEXT NOT NULL,
    -- Since when it has had this rule; no earlier time was missed.
    since INTEGER NOT NULL
) WITHOUT ROWID;

-- Times at which schedules fired: each once, by whichever node came first.
CREATE TABLE laneway_schedule_run (
    -- The schedule.
    schedule TEXT NOT NULL,
    -- The time that the schedule names.
    fire_at INTEGER NOT NULL,
    -- The node that ran it.
    node TEXT NOT NULL,
    -- When it did.
    started_at INTEGER NOT NULL,
    -- When it was done; NULL while it runs, or if its node died.
    ended_at INTEGER,
    -- How it ended.
    outcome TEXT,
    -- What it did, or why it failed.
    detail TEXT,

    PRIMARY KEY (schedule, fire_at),
    CONSTRAINT "outcome: done, failed or skipped" CHECK (outcome IN ('done', 'failed', 'skipped')),
    CONSTRAINT "ended_at and outcome: both or neither" CHECK ((ended_at IS NULL) = (outcome IS NULL))
) WITHOUT ROWID;

-- What operators did.
CREATE TABLE laneway_audit (
    -- In the order in which it was done.
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    -- When.
    at INTEGER NOT NULL,
    -- What was done.
    action TEXT NOT NULL,
    -- To what, and how much of it, as JSON.
    detail TEXT NOT NULL
);

-- Nodes and when they last said that they are alive.
CREATE TABLE laneway_node (
    -- Name of the node.
    name TEXT PRIMARY KEY NOT NULL,
    -- When it was last seen.
    seen_at INTEGER NOT NULL
) WITHOUT ROWID;

-- What a check cannot say: it may hold no query.
CREATE TRIGGER laneway_message_headers BEFORE INSERT ON laneway_message
WHEN NEW.headers <> '{}' AND json_valid(NEW.headers)
BEGIN
    SELECT RAISE(ABORT, 'headers: a JSON object whose values are strings')
    FROM json_each(NEW.headers) h WHERE h.type <> 'text';
END;

-- A message that replaces one of the same number, as INSERT OR REPLACE does, tells no trigger that the other is gone.
CREATE TRIGGER laneway_message_replaced BEFORE INSERT ON laneway_message WHEN NEW.seq > 0
BEGIN
    DELETE FROM laneway_delivery WHERE id BETWEEN NEW.seq * 1048576 AND NEW.seq * 1048576 + 1048575
        AND EXISTS (SELECT 1 FROM laneway_message m WHERE m.seq = NEW.seq);
END;

-- One delivery for each subscription that matches, in the producer's transaction. GLOB and the number of dots decide
-- for most patterns; a literal behind a * in an open-ended pattern is looked up by its position.
CREATE TRIGGER laneway_message_fan_out AFTER INSERT ON laneway_message
BEGIN
    INSERT INTO laneway_delivery (id, subscription_id, lane, priority, message_seq, available_at, key, parked)
    SELECT NEW.seq * 1048576 + s.id, s.id, NEW.priority < s.lane_threshold, NEW.priority, NEW.seq,
        max(coalesce(NEW.available_at, 0), CAST((julianday('now') - 2440587.5) * 86400000 + 0.5 AS INTEGER)),
        iif(s.ordered, NEW.key, NULL),
        iif(s.ordered AND NEW.key IS NOT NULL AND coalesce(NEW.available_at, 0)
            <= CAST((julianday('now') - 2440587.5) * 86400000 + 0.5 AS INTEGER), 0, NULL)
    FROM laneway_subscription s
    WHERE s.active AND (s.pattern = NEW.topic OR (
        NEW.topic GLOB s.topic_glob
        AND length(NEW.topic) - length(replace(NEW.topic, '.', '')) BETWEEN s.dots_min AND s.dots_max
        AND (s.literals IS NULL OR NOT EXISTS (
            SELECT 1 FROM json_each(s.literals) l
            WHERE l.value IS NOT json_extract('["' || replace(NEW.topic, '.', '","') || '"]', '$[' || l.key || ']')
        ))
    ));

    INSERT INTO laneway_unrouted (message_seq)
    SELECT NEW.seq WHERE NOT EXISTS (
        SELECT 1 FROM laneway_delivery d WHERE d.id BETWEEN NEW.seq * 1048576 AND NEW.seq * 1048576 + 1048575
    );
END;

CREATE TRIGGER laneway_message_immutable BEFORE UPDATE ON laneway_message
BEGIN
    SELECT RAISE(ABORT, 'messages are immutable; write a new one');
END;

-- A delivery without its message could be neither run nor explained.
CREATE TRIGGER laneway_message_deleted AFTER DELETE ON laneway_message
BEGIN
    DELETE FROM laneway_delivery WHERE id BETWEEN OLD.seq * 1048576 AND OLD.seq * 1048576 + 1048575;
    DELETE FROM laneway_unrouted WHERE message_seq = OLD.seq;
END;

-- Whoever ends a delivery of a key, and why ever, lets the next one out of the line. One too many is no harm: a claim
-- looks at it again.
CREATE TRIGGER laneway_delivery_key AFTER DELETE ON laneway_delivery WHEN OLD.key IS NOT NULL
BEGIN
    DELETE FROM laneway_busy_key
    WHERE subscription_id = OLD.subscription_id AND key = OLD.key AND message_seq = OLD.message_seq;

    UPDATE laneway_delivery SET parked = 0 WHERE parked = 1 AND id = (
        SELECT d.id FROM laneway_delivery d
        WHERE d.subscription_id = OLD.subscription_id AND d.key = OLD.key AND d.parked IS NOT NULL
        ORDER BY d.message_seq LIMIT 1
    );
END;

-- Status of each message, derived.
CREATE VIEW laneway_message_status AS
    SELECT m.seq, m.id, m.topic,
        CASE
            WHEN EXISTS (SELECT 1 FROM laneway_delivery d
                WHERE d.id BETWEEN m.seq * 1048576 AND m.seq * 1048576 + 1048575 AND d.lease_token IS NOT NULL
                AND d.available_at > CAST((julianday('now') - 2440587.5) * 86400000 + 0.5 AS INTEGER))
                THEN 'processing'
            WHEN EXISTS (SELECT 1 FROM laneway_delivery d
                WHERE d.id BETWEEN m.seq * 1048576 AND m.seq * 1048576 + 1048575) THEN 'pending'
            WHEN EXISTS (SELECT 1 FROM laneway_dead_letter f WHERE f.message_seq = m.seq) THEN 'failed'
            WHEN EXISTS (SELECT 1 FROM laneway_unrouted u WHERE u.message_seq = m.seq) THEN 'unrouted'
            ELSE 'processed'
        END AS status
    FROM laneway_message m;
