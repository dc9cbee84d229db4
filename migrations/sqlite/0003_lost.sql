-- An attempt counts when a slot begins it, no longer when it is claimed. What an ended lease held is claimed again uncounted, with the number of such
-- leases raised; from then on it is noted when a slot begins it, and what was begun counts. `attempt` of what is leased
-- goes on to include the attempt of the lease.

-- Leases that ended with it unsettled since an answer was last counted. One that has ended and was not claimed again yet
-- is not among them.
ALTER TABLE laneway_delivery ADD COLUMN lost INTEGER NOT NULL DEFAULT 0;
-- The lease under which a slot has begun it, noted only of what was lost before. It tells something only where it is
-- equal to lease_token: so a claim, be it of an older program, need not clear it.
ALTER TABLE laneway_delivery ADD COLUMN begun_token INTEGER;
