-- Times are milliseconds. One in seconds would be a moment in January 1970: the message would be delivered at once, and
-- removed by the next cleanup. So what is before the year 2000 is refused, unless the clock of the machine itself is.
-- Rows that are there stay as they are.
CREATE TRIGGER laneway_message_times BEFORE INSERT ON laneway_message
WHEN NEW.created_at < 946684800000 OR NEW.available_at < 946684800000
BEGIN
    SELECT RAISE(ABORT,
        'created_at and available_at: milliseconds since 1970, as integers; before the year 2000, as seconds would be')
    WHERE (julianday('now') - 2440587.5) * 86400000 >= 946684800000;
END;
