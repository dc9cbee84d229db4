-- A payload that is given as text, and is stored as it is. `payload` is bytea: what a driver sends there as text is
-- read in bytea's notation, in which a backslash and what follows it stand for other bytes, so that JSON with a
-- backslash is changed or refused. No trigger can see that: the value is bytes before any of them runs.
--
-- The stored row has the bytes in `payload` alone, so that everybody reads them there, older nodes too.

ALTER TABLE laneway.message ADD COLUMN payload_text text;
COMMENT ON COLUMN laneway.message.payload_text IS
    'The payload as text, for producers only: an insert moves it into payload as UTF-8, and it is NULL in every row.';

-- It qualifies what it calls rather than set a search path, which would cost each message more than the rest of it.
CREATE FUNCTION laneway.take_payload_text() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.payload_text IS NULL THEN
        RAISE EXCEPTION 'the message has no payload: give payload_text (text or JSON) or payload (bytes)'
            USING ERRCODE = 'not_null_violation', SCHEMA = 'laneway', TABLE = 'message', COLUMN = 'payload';
    ELSIF NEW.payload IS NOT NULL THEN
        RAISE EXCEPTION 'the message has two payloads: give payload_text (text or JSON) or payload (bytes), not both'
            USING ERRCODE = 'check_violation', SCHEMA = 'laneway', TABLE = 'message', COLUMN = 'payload_text';
    ELSIF NEW.content_type OPERATOR(pg_catalog.=) 'application/json'
        AND pg_catalog.starts_with(NEW.payload_text, '\x')
    THEN
        -- PostgreSQL turns bytes into such text where a column is text. No JSON begins like that.
        RAISE EXCEPTION 'payload_text begins with \x, as bytes do that were turned into text: give bytes as payload'
            USING ERRCODE = 'check_violation', SCHEMA = 'laneway', TABLE = 'message', COLUMN = 'payload_text';
    END IF;
    NEW.payload := pg_catalog.convert_to(NEW.payload_text, 'UTF8');
    NEW.payload_text := NULL;
    RETURN NEW;
END
$$;
-- For a message with bytes alone, only the condition is looked at.
CREATE TRIGGER take_payload_text BEFORE INSERT ON laneway.message
    FOR EACH ROW WHEN (NEW.payload_text IS NOT NULL OR NEW.payload IS NULL)
    EXECUTE FUNCTION laneway.take_payload_text();
