-- What applications hold of the outbox, and which nodes there are.

-- Removes messages one by one, which the caller has locked, but for those that somebody owes by now. What a constraint or a
-- trigger of the application refuses stays, and holds up no other. Answers how many went, and what refused how many.
CREATE FUNCTION laneway.remove_messages_singly(seqs bigint[], OUT removed bigint, OUT refused_by text[], OUT refused bigint[])
LANGUAGE plpgsql AS $$
DECLARE
    one bigint;
    code text;
    named text;
    owner text;
    relation text;
    said text;
    place integer;
BEGIN
    removed := 0;
    refused_by := '{}';
    refused := '{}';
    -- A constraint that is checked at the end would otherwise refuse all.
    SET CONSTRAINTS ALL IMMEDIATE;
    FOREACH one IN ARRAY seqs LOOP
        BEGIN
            DELETE FROM laneway.message m WHERE m.seq = one
                AND NOT EXISTS (SELECT FROM laneway.delivery d WHERE d.message_seq = one)
                AND NOT EXISTS (SELECT FROM laneway.dead_letter f WHERE f.message_seq = one)
                AND NOT EXISTS (SELECT FROM laneway.lease l
                    WHERE one BETWEEN l.message_seq_min AND l.message_seq_max
                        AND get_bit(l.open, array_position(l.message_seqs, one) - 1) = 1);
            IF FOUND THEN
                removed := removed + 1;
            END IF;
        EXCEPTION WHEN OTHERS THEN
            GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, named = CONSTRAINT_NAME, owner = SCHEMA_NAME,
                relation = TABLE_NAME, said = MESSAGE_TEXT;
            -- Not the message's fault.
            IF left(code, 2) IN ('08', '25', '28', '3D', '40', '42', '53', '54', '55', '57', '58', 'F0', 'XX')
                AND code <> '42501'
            THEN
                RAISE;
            END IF;
            IF code = '23503' THEN
                said := format('foreign key "%s" of table %I.%I', named, owner, relation);
            ELSIF named <> '' THEN
                said := format('constraint "%s" of table %I.%I', named, owner, relation);
            ELSE
                said := format('an error of the application''s: %s (SQLSTATE %s)', left(said, 200), code);
            END IF;
            place := array_position(refused_by, said);
            IF place IS NULL AND cardinality(refused_by) >= 10 THEN
                -- A text that names the message is another one each time.
                place := 10;
            END IF;
            IF place IS NULL THEN
                refused_by := refused_by || said;
                refused := refused || 1::bigint;
            ELSE
                refused[place] := refused[place] + 1;
            END IF;
        END;
    END LOOP;
END
$$;
REVOKE EXECUTE ON FUNCTION laneway.remove_messages_singly(bigint[]) FROM PUBLIC;
COMMENT ON FUNCTION laneway.remove_messages_singly(bigint[]) IS
    'Removes messages that are locked one by one; what the application refuses stays.';

-- A process reports under an id of its own, which stands in laneway.node.name. Nodes of versions before this one report under
-- the name that they were given, and write none of these columns.
ALTER TABLE laneway.node ADD COLUMN label text COLLATE "C", ADD COLUMN place text, ADD COLUMN since timestamptz;
COMMENT ON COLUMN laneway.node.name IS 'The id of the process; of a version before this one, its name.';
COMMENT ON COLUMN laneway.node.label IS 'The name that its operator gave it; NULL of a version before this one.';
COMMENT ON COLUMN laneway.node.place IS 'Where it runs, in words.';
COMMENT ON COLUMN laneway.node.since IS 'When it first said who it is.';

-- By which rule each node runs each schedule: only nodes with the rule that holds run it.
CREATE TABLE laneway.schedule_holder (
    schedule text COLLATE "C" NOT NULL,
    node text COLLATE "C" NOT NULL,
    rule text NOT NULL,
    held_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (schedule, node)
);
COMMENT ON TABLE laneway.schedule_holder IS 'By which rule nodes run schedules, or would if it held.';
COMMENT ON COLUMN laneway.schedule_holder.schedule IS 'The schedule.';
COMMENT ON COLUMN laneway.schedule_holder.node IS 'The id of the process.';
COMMENT ON COLUMN laneway.schedule_holder.rule IS 'Its rule: expression and time zone.';
COMMENT ON COLUMN laneway.schedule_holder.held_at IS 'Since when it has had this rule.';
