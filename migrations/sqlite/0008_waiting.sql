-- A delivery that waits for its destination without using up an attempt knows since when.

-- When an attempt was first claimed that failed and did not count; NULL if none did. first_attempt_at knows only attempts
-- that count. Earlier builds leave it alone.
ALTER TABLE laneway_delivery ADD COLUMN waiting_since INTEGER;
