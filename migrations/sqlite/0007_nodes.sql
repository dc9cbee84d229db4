-- Which nodes there are. A process reports under an id of its own, which stands in laneway_node.name. Nodes of versions
-- before this one report under the name that they were given, and write none of these columns.

-- The name that its operator gave it; NULL of a version before this one.
ALTER TABLE laneway_node ADD COLUMN label TEXT;
-- Where it runs, in words.
ALTER TABLE laneway_node ADD COLUMN place TEXT;
-- When it first said who it is.
ALTER TABLE laneway_node ADD COLUMN since INTEGER;

-- By which rule each node runs each schedule, or would if it held: only nodes with the rule that holds run it.
CREATE TABLE laneway_schedule_holder (
    -- The schedule.
    schedule TEXT NOT NULL,
    -- The id of the process.
    node TEXT NOT NULL,
    -- Its rule: expression and time zone.
    rule TEXT NOT NULL,
    -- Since when it has had this rule.
    held_at INTEGER NOT NULL,

    PRIMARY KEY (schedule, node)
) WITHOUT ROWID;
